"""One pass over a corpus of any size: scores of every document, and a sample of bounded size."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from fortifai.audit import pieces as pieces_
from fortifai.audit import sketch
from fortifai.audit.documents import Fields, Piece, decode
from fortifai.audit.sketch import Lowest, Sample, Table
from fortifai.audit.table import ScoreFile
from fortifai.errors import InputError, RunFailed
from fortifai.file_formats import no_column
from fortifai.stats import scores
from fortifai.stats.scores import ALL, Reference

DOCUMENTS, PER_SOURCE, CONTENTS, GRAMS = 10_000, 1_000, 100_000, 2_000_000
"""What is sampled: documents with text, those of each source, different documents, 8-grams."""

CHARACTERS = 4_000
"""What is kept of a sampled document's text."""

MOST_SOURCES = 64

MOST_PROCESSES = 3
"""So many are started unasked: of some 140 MiB each, they stay under 1 GiB with the parent, which
comes to some 470 beside a reference."""

Tick = Callable[[int, int, int], None]
"""Told bytes done, bytes in all (0 if not known) and rows."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """How corpora are read.

    Attributes:
        fields: Where in a row text, source and detector's score are.
        skip_bad: Rows that are no rows, and are passed over, at most.
        processes: How many work at a time; 1 is this one. The result is the same for any number.
        grams: Whether 8-grams are sampled, as of a reference.
    """

    fields: Fields = dataclasses.field(default_factory=Fields)
    skip_bad: int = 0
    processes: int = 1
    grams: bool = False


@dataclasses.dataclass(slots=True)
class Corpus:
    """What a pass found.

    Attributes:
        names: The files, and data sets of the hub.
        sample: What is kept of it.
        counts: ``rows``; of them ``empty`` (null or blank), ``missing`` (without the field),
            ``wordless``, ``long`` (longer than a million characters), ``spaceless`` (characters
            counted for words) and ``bad`` ones that were passed over; ``words``.
        sources: Documents with words of each source.
    """

    names: tuple[str, ...]
    sample: Sample
    counts: dict[str, int]
    sources: dict[str, int]

    @property
    def documents(self) -> int:
        """Documents with words."""
        return sum(self.sources.values())


@dataclasses.dataclass(slots=True)
class _Digest:
    """What a process found in some rows."""

    file: int
    numbers: list[int]
    columns: Table
    by: list[str] | None
    counts: dict[str, int]
    samples: list[tuple[str, Table]]
    bad: list[tuple[int, str]]
    there: tuple[str, ...] = ()
    done: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class _Limits:
    """Largest keys that would still be sampled; known only so far, which saves work alone."""

    documents: np.uint64 = ALL
    by: dict[str, np.uint64] | None = None
    contents: np.uint64 = ALL
    grams: np.uint64 = ALL


def read(
    names: Sequence[str],
    reading: Reading,
    reference: Reference | None = None,
    *,
    scores_to: Path | None = None,
    tick: Tick = lambda done, total, rows: None,
) -> Corpus:
    """Read a corpus once, in bounded memory.

    Samples are those of lowest hashes of file and row, or of content, so the result depends neither
    on the number of processes nor on the order of files.

    Args:
        names: Files and data sets, as `fortifai.audit.pieces.sources` lists them.
        reading: How.
        reference: What documents are compared with; None: no scores ``rare`` and ``shared``.
        scores_to: A .parquet file for the scores of all documents; it appears when all is done.
        tick: Told of progress, a few times a second.

    Raises:
        InputError: More bad rows than allowed, a field that no row of a file has, no text at all,
            or more than 64 sources.
        RunFailed: A process was killed, or the scores could not be written.
    """
    before = list(itertools.accumulate(map(pieces_.size, names), initial=0))
    merged = _Merged(names, reading)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(ScoreFile(scores_to, reading.fields)) if scores_to else None
        for digest in _digests(names, reading, reference, merged.limits):
            merged.add(digest)
            if file is not None:
                file.write(names[digest.file], digest.numbers, digest.columns, digest.by)
            tick(before[digest.file] + digest.done, before[-1], merged.counts["rows"])
        found = merged.corpus()
    return found


# --- processes --------------------------------------------------------------------------------


def _digests(
    names: Sequence[str],
    reading: Reading,
    reference: Reference | None,
    limits: Callable[[], _Limits],
) -> Iterator[_Digest]:
    """Digests of all pieces, in the order of files and rows."""
    fields, grams = reading.fields, reading.grams
    every = (
        piece for number, name in enumerate(names) for piece in pieces_.pieces(name, number, fields)
    )
    if reading.processes == 1:
        for piece in every:
            yield from digest(piece, fields, reference, grams, limits())
        return
    pool = ProcessPoolExecutor(
        reading.processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(fields, reference, grams),
    )
    try:
        waiting: collections.deque[Any] = collections.deque()
        for piece in every:
            waiting.append(pool.submit(_work, piece, limits()))
            if len(waiting) > 3 * reading.processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RunFailed(
            "a process was killed (out of memory?); start again with fewer --processes"
        ) from error
    except BaseException:
        for process in (pool._processes or {}).values():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_shared: dict[str, Any] = {}


def _begin(fields: Fields, reference: Reference | None, grams: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends its processes
    _shared.update(fields=fields, reference=reference, grams=grams)
    threading.Thread(target=_leave_if_orphaned, daemon=True).start()


def _leave_if_orphaned() -> None:
    import os

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(piece: Piece, limits: _Limits) -> list[_Digest]:
    return list(digest(piece, _shared["fields"], _shared["reference"], _shared["grams"], limits))


# --- what a process does ----------------------------------------------------------------------


def digest(
    piece: Piece,
    fields: Fields,
    reference: Reference | None,
    grams: bool,
    limits: _Limits,
) -> Iterator[_Digest]:
    """Score the rows of a piece, and pick what may be sampled."""
    rows = decode(piece, fields)
    counts = {"missing": rows.missing, "bad": len(rows.bad)}
    first = 0
    for texts in [*scores.batches(rows.texts)] or [[]]:
        part = slice(first, first + len(texts))
        whole = rows.texts[part]
        words = scores.encode(texts)
        columns = scores.scored(texts, words, reference)
        if fields.detector is not None:
            columns["detector"] = np.array(rows.detector[part], dtype=np.float64)
        by = rows.by[part] if fields.by is not None else None
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
        samples = _samples(piece.file, rows.numbers[part], texts, whole, words, columns, by, limits)
        if grams:
            samples.append(("grams", _grams(words, limits.grams)))
        yield _Digest(
            piece.file, rows.numbers[part], columns, by, counts, samples, rows.bad, rows.there,
            piece.done,
        )  # fmt: skip
        first += len(texts)
        counts, rows.bad = {}, []


def _samples(
    file: int,
    numbers: Sequence[int],
    texts: Sequence[str],
    whole: Sequence[str | None],
    words: scores.Words,
    columns: Table,
    by: Sequence[str] | None,
    limits: _Limits,
) -> list[tuple[str, Table]]:
    some = np.flatnonzero(words.lengths)
    if not len(some):
        return []
    source = np.array(by if by is not None else [""] * len(texts), dtype=object)
    ones = np.ones(len(texts), dtype=np.int64)
    contents = np.array([_content(text or "") for text in whole], dtype=np.uint64)
    # with the content, since passages of one line have its number
    place = np.array(numbers, dtype=np.uint64) | np.uint64(file << 44)
    rank = scores.mixed(scores.mixed(place * scores.ODD) ^ contents)
    limit = np.array([(limits.by or {}).get(name, ALL) for name in source], dtype=np.uint64)
    own = rank <= limit if by is not None else np.zeros(len(texts), dtype=bool)
    picked = some[(rank <= limits.documents)[some] | own[some]]
    beginnings = np.array([text[:CHARACTERS] for text in texts], dtype=object)
    every = {"key": rank, "count": ones, "source": source, "text": beginnings} | columns
    out = [("documents", {name: column[picked] for name, column in every.items()})]
    keys, grams, starts = sketch.shingles(words, contents)
    taken = some[keys[some] <= limits.contents]
    every = {"key": keys, "content": contents, "count": ones, "source": source} | columns
    picked_ = {name: column[taken] for name, column in every.items()}
    out.append(("contents", picked_ | {"bands": sketch.bands(grams, starts, taken)}))
    return out


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


# --- what the parent does ---------------------------------------------------------------------


class _Merged:
    """Digests put together, in their order."""

    def __init__(self, names: Sequence[str], reading: Reading) -> None:
        self._names, self._reading = names, reading
        self.counts: collections.Counter[str] = collections.Counter()
        self._sources: collections.Counter[str] = collections.Counter()
        self._documents = Lowest(DOCUMENTS)
        self._by: dict[str, Lowest] = {}
        self._contents = Lowest(CONTENTS, ("content", "source"))
        self._grams = Lowest(GRAMS)
        self._rows: collections.Counter[int] = collections.Counter()
        self._without: collections.Counter[int] = collections.Counter()
        self._there: dict[int, tuple[str, ...]] = {}

    def limits(self) -> _Limits:
        """What a process needs to know, as far as it is known."""
        return _Limits(
            self._documents.limit,
            {name: lowest.limit for name, lowest in self._by.items()},
            self._contents.limit,
            self._grams.limit,
        )

    def add(self, digest: _Digest) -> None:
        self.counts.update(digest.counts)
        self._rows[digest.file] += len(digest.numbers)
        self._without[digest.file] += digest.counts.get("missing", 0)
        if digest.there:
            self._there.setdefault(digest.file, digest.there)
        if self.counts["bad"] > self._reading.skip_bad:
            row, fault = digest.bad[self._reading.skip_bad - self.counts["bad"]]
            allowed = self._reading.skip_bad
            more = f"more than the {allowed} allowed; " if allowed else ""
            raise InputError(
                f"{self._names[digest.file]}, row {row:,}, {fault}; {more}repair it, or let "
                "--skip-bad N pass over so many"
            )
        for kind, table in digest.samples:
            if kind == "documents":
                self._documents.add(table)
                self._add_by(digest, table)
            else:
                (self._contents if kind == "contents" else self._grams).add(table)
        self._count(digest)

    def _add_by(self, digest: _Digest, table: Table) -> None:
        if digest.by is None:
            return
        for name in dict.fromkeys(table["source"].tolist()):
            mine = np.flatnonzero(table["source"] == name)
            lowest = self._by.setdefault(name, Lowest(PER_SOURCE))
            lowest.add({column: values[mine] for column, values in table.items()})

    def _count(self, digest: _Digest) -> None:
        some = np.flatnonzero(digest.columns["words"])
        if digest.by is None:
            self._sources[""] += len(some)
            return
        self._sources.update(digest.by[i] for i in some)
        if len(self._sources) > MOST_SOURCES:
            raise InputError(
                f"the column {self._reading.fields.by!r} of --by has more than {MOST_SOURCES} "
                "different values; name one that tells sources apart, not rows"
            )

    def corpus(self) -> Corpus:
        """What was found.

        Raises:
            InputError: A file has no row with the field, or there is no text at all.
        """
        for file, rows in self._rows.items():
            if rows and self._without[file] == rows:
                field = self._reading.fields.text
                told = no_column(self._names[file], field, self._there.get(file, ()))
                raise InputError(f"{told}; name the one that holds the text with --field")
        if not self.counts["words"]:
            raise InputError(
                f"{', '.join(self._names)[:200]}: no words in {self.counts['rows']:,} rows; name "
                "the field that holds the text with --field"
            )
        return Corpus(
            tuple(self._names),
            Sample(
                self._documents.rows(),
                {name: self._by[name].rows() for name in sorted(self._by)},
                self._contents.rows(),
                self._grams.rows(),
            ),
            dict(self.counts),
            {name: self._sources[name] for name in sorted(self._sources)},
        )


def processes(names: Sequence[str], wanted: int | None, cores: int) -> int:
    """How many processes are worth their start: one for each 16 MB, at most the cores, at most 3.

    As many as are `wanted` where that is said.
    """
    if wanted is not None:
        return wanted
    total = sum(map(pieces_.size, names))
    return int(max(1, min(cores, MOST_PROCESSES, total // 16_000_000)))
