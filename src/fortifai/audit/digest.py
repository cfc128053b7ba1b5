"""What is taken of some rows of a corpus: what may be sampled, and scores of documents.

Scores take most of the time, so they are of what may be sampled alone, unless those of all
documents are to be written.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai.audit import sketch
from fortifai.audit.documents import Fields, Piece, decode
from fortifai.audit.sketch import Table
from fortifai.stats import scores
from fortifai.stats.scores import ALL, Hashes, Reference

CHARACTERS = 4_000
"""What is kept of a sampled document's text."""


@dataclasses.dataclass(slots=True)
class Digest:
    """What a process found in some rows.

    Attributes:
        file: Their file's number.
        counts: As of a `Corpus`.
        sources: Documents with words of each source.
        samples: What may be sampled, with the name of the sample.
        scored: Numbers of rows, scores and sources of all documents, where these are asked for.
        bad: Row and fault of those that are no rows.
        there: Columns of a row that lacks the field.
        done: Bytes of the file that have been read.
    """

    file: int
    counts: dict[str, int]
    sources: collections.Counter[str]
    samples: list[tuple[str, Table]]
    scored: tuple[Sequence[int], Table, Sequence[str] | None] | None
    bad: list[tuple[int, str]]
    there: tuple[str, ...] = ()
    done: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What a process is to find.

    Attributes:
        fields: Where in a row text, source and detector's score are.
        reference: What documents are compared with.
        grams: Whether 8-grams are sampled.
        scores: Whether those of all documents are asked for.
    """

    fields: Fields
    reference: Reference | None
    grams: bool
    scores: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Largest keys that would still be sampled; known only so far, which saves work alone."""

    documents: np.uint64 = ALL
    by: dict[str, np.uint64] | None = None
    contents: np.uint64 = ALL
    grams: np.uint64 = ALL


def digest(piece: Piece, wanted: Wanted, limits: Limits) -> Iterator[Digest]:
    """Pick of the rows of a piece what may be sampled, and score that, or all of them."""
    rows = decode(piece, wanted.fields)
    counts = {"missing": rows.missing, "bad": len(rows.bad)}
    first = 0
    for texts in [*scores.batches(rows.texts)] or [[]]:
        part = slice(first, first + len(texts))
        whole, words = rows.texts[part], scores.encode(texts)
        by = rows.by[part] if wanted.fields.by is not None else None
        counts |= {
            "rows": len(texts),
            "empty": sum(not text.strip() for text in texts),
            "wordless": sum(
                bool(text.strip()) and not n for text, n in zip(texts, words.lengths, strict=True)
            ),
            "long": sum(len(text or "") > scores.LONGEST for text in whole),
            "spaceless": int(words.spaceless.sum()),
            "words": int(words.lengths.sum()),
        }
        some = np.flatnonzero(words.lengths)
        source = np.array(by if by is not None else [""] * len(texts), dtype=object)
        contents = np.array([_content(text or "") for text in whole], dtype=np.uint64)
        detector = rows.detector[part] if wanted.fields.detector is not None else None
        batch = _Batch(texts, words, source, contents, detector)
        # with the content, since passages of one line have its number
        place = np.array(rows.numbers[part], dtype=np.uint64) | np.uint64(piece.file << 44)
        ranks = scores.mixed(scores.mixed(place * scores.ODD) ^ contents)
        samples, scored = _samples(batch, some, ranks, wanted, limits)
        if wanted.grams:
            samples.append(("grams", _grams(words, limits.grams)))
        yield Digest(
            piece.file,
            counts,
            collections.Counter(source[some].tolist()),
            samples,
            (rows.numbers[part], scored, by) if wanted.scores else None,
            rows.bad,
            rows.there,
            piece.done,
        )
        first += len(texts)
        counts, rows.bad = {}, []


@dataclasses.dataclass(frozen=True, slots=True)
class _Batch:
    """Documents that are looked at together, of each what there is before it is scored."""

    texts: Sequence[str]
    words: scores.Words
    source: NDArray[Any]
    contents: Hashes
    detector: Sequence[float | None] | None

    def scored(self, these: scores.Counts, reference: Reference | None) -> Table:
        columns = scores.scored([self.texts[i] for i in these], self.words.of(these), reference)
        if self.detector is not None:
            columns["detector"] = np.array(self.detector, dtype=np.float64)[these]
        return columns


def _samples(
    batch: _Batch, some: scores.Counts, ranks: Hashes, wanted: Wanted, limits: Limits
) -> tuple[list[tuple[str, Table]], Table]:
    """What may be sampled of the documents that have words, and the scores that this takes."""
    own = np.zeros(len(ranks), dtype=bool)
    if wanted.fields.by is not None:
        limit = [(limits.by or {}).get(name, ALL) for name in batch.source]
        own = ranks <= np.array(limit, dtype=np.uint64)
    drawn = some[(ranks <= limits.documents)[some] | own[some]]
    keys, grams, starts = sketch.shingles(batch.words, batch.contents)
    near = some[keys[some] <= limits.contents]
    these = np.arange(len(ranks)) if wanted.scores else np.union1d(drawn, near)
    columns = batch.scored(these, wanted.reference)

    def table(key: Hashes, picked: scores.Counts) -> Table:
        at = np.searchsorted(these, picked)
        found = {"key": key[picked], "count": np.ones(len(picked), dtype=np.int64)}
        found |= {"source": batch.source[picked]}
        return found | {name: column[at] for name, column in columns.items()}

    out = []
    if len(drawn):
        beginnings = np.array([batch.texts[i][:CHARACTERS] for i in drawn], dtype=object)
        out.append(("documents", table(ranks, drawn) | {"text": beginnings}))
    if len(near):
        more = {"content": batch.contents[near], "bands": sketch.bands(grams, starts, near)}
        out.append(("contents", table(keys, near) | more))
    return out, columns


def _content(text: str) -> int:
    digest = blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _grams(words: scores.Words, limit: np.uint64) -> Table:
    """Different 8-grams of each document up to a limit, with how many of these documents."""
    hashes, at = words.grams(8)
    hashes = scores.mixed(hashes)
    taken = hashes <= limit
    documents = words.documents[at[taken]].astype(np.uint64)
    order = np.lexsort((documents, hashes[taken]))
    keys, documents = hashes[taken][order], documents[order]
    new = np.ones(len(keys), dtype=bool)
    new[1:] = (keys[1:] != keys[:-1]) | (documents[1:] != documents[:-1])
    keys, counts = np.unique(keys[new], return_counts=True)
    return {"key": keys, "count": counts.astype(np.int64)}
