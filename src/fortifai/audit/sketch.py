"""What is kept of a corpus of any size: samples by hash, which no order of rows can change."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai.stats.scores import ALL, ODD, Hashes, Words, mixed

Table = dict[str, NDArray[Any]]
"""Columns of one length."""

SHINGLE, BANDS, BAND = 5, 14, 8
"""Near-duplicates as FineWeb has them (2406.17557): 5-grams, 14 bands of 8 minima, about 75 %."""


class Lowest:
    """The rows with the lowest keys of a stream, equal rows counted once with their number.

    Args:
        most: Rows that are kept.
        same: Columns beside the key that tell rows of one key apart.
    """

    def __init__(self, most: int, same: tuple[str, ...] = ()) -> None:
        self.limit = ALL
        self._most, self._same = most, same
        self._parts: list[Table] = []
        self._pending = 0

    def add(self, rows: Table) -> None:
        """Take rows with a ``key`` and a ``count`` each."""
        kept = np.flatnonzero(rows["key"] <= self.limit)
        if not len(kept):
            return
        self._parts.append({name: column[kept] for name, column in rows.items()})
        self._pending += len(kept)
        if self._pending > self._most:
            self._shrink()

    def rows(self) -> Table:
        """What is kept, by rising key."""
        self._shrink()
        return self._parts[0] if self._parts else {}

    def _shrink(self) -> None:
        if not self._parts:
            return
        # dictionaries of our own: `rows` may have handed the first one out
        parts, self._parts = [dict(part) for part in self._parts], []
        by = [np.concatenate([part[name] for part in parts]) for name in ("key", *self._same)]
        # stable: of equal rows the first one stays
        order = np.lexsort(by[::-1])
        new = np.zeros(len(order), dtype=bool)
        new[:1] = True
        for column in by:
            new[1:] |= column[order][1:] != column[order][:-1]
        starts = np.flatnonzero(new)
        first = order[starts][: self._most]
        table: Table = {}
        for name in list(parts[0]):
            # a column is let go before the next one is put together, since all are large
            column = np.concatenate([part.pop(name) for part in parts])
            if name == "count":
                table[name] = np.add.reduceat(column[order], starts)[: self._most]
            else:
                table[name] = column[first]
        self._parts = [table]
        self._pending = 0
        if len(first) == self._most:
            self.limit = np.uint64(self._parts[0]["key"][-1])


def shingles(words: Words, contents: Hashes) -> tuple[Hashes, Hashes, NDArray[np.int64]]:
    """Each document's key of its sample, and the 5-grams of all with where each document's begin.

    The key is a MinHash of the 5-grams: of two documents that share a share J of theirs, both or
    neither are sampled with probability J, and equal ones always are; short documents have that of
    their content.
    """
    grams, at = words.grams(SHINGLE)
    grams = mixed(grams)
    starts = np.searchsorted(words.documents[at], np.arange(len(words.lengths)))
    keys = contents.copy()
    some = words.lengths >= SHINGLE
    if some.any():
        keys[some] = np.minimum.reduceat(grams, starts[some])
    # minima of many are small: mixed anew, they are uniform again
    return mixed(keys), grams, starts


def bands(grams: Hashes, starts: NDArray[np.int64], some: NDArray[np.int64]) -> Hashes:
    """Hashes of the bands of MinHashes of some documents: (documents, 14).

    Two documents share a band of 8 minima with probability J^8, one of 14 with 1 - (1 - J^8)^14: a
    half at J = 0.72.

    Args:
        grams: 5-grams of all documents.
        starts: Where each document's begin.
        some: The documents, in order; a document without 5-grams has no meaningful bands.
    """
    ends = np.append(starts, len(grams))[some + 1]
    sizes = ends - starts[some]
    out = np.zeros((len(some), BANDS), dtype=np.uint64)
    filled = np.flatnonzero(sizes)
    if not len(filled):
        return out
    begin = np.cumsum(sizes[filled]) - sizes[filled]
    steps = np.arange(int(sizes[filled].sum())) - np.repeat(begin, sizes[filled])
    taken = grams[steps + np.repeat(starts[some][filled], sizes[filled])]
    seeds = mixed(np.arange(1, BANDS * BAND + 1, dtype=np.uint64) * ODD)
    for k, seed in enumerate(seeds):
        minima = np.minimum.reduceat((taken ^ seed) * (mixed(seed[None])[0] | np.uint64(1)), begin)
        band = out[:, k // BAND]
        band[filled] = mixed(band[filled] ^ minima)
    return out


def near_duplicates(rows: Table) -> NDArray[np.bool_]:
    """Whether each row shares a band with an earlier row, that is, is a near-duplicate of one."""
    again = np.zeros(len(rows["key"]), dtype=bool)
    long = np.flatnonzero(rows["words"] >= SHINGLE)
    for band in rows["bands"][long].T:
        _, first = np.unique(band, return_index=True)
        repeated = np.ones(len(long), dtype=bool)
        repeated[first] = False
        again[long[repeated]] = True
    return again


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """What is kept of a corpus.

    Attributes:
        documents: A uniform sample of documents with ``text`` (of each the beginning), ``source``
            and their scores.
        by: The same of each source, where there are several.
        contents: Different documents with ``key``, ``content``, ``source``, ``count``, ``words``,
            ``bands`` and scores: those of the lowest keys.
        grams: Lowest 8-grams with ``count``, the number of documents that have them; of a
            reference.
    """

    documents: Table
    by: Mapping[str, Table]
    contents: Table
    grams: Table
