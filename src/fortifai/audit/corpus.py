"""One pass over a corpus of any size: a sample of bounded size, and scores of documents."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai.audit import pieces as pieces_
from fortifai.audit.digest import Digest, Limits, Wanted, digest
from fortifai.audit.documents import Fields, Piece
from fortifai.audit.sketch import Lowest, Sample, Table
from fortifai.audit.table import ScoreFile
from fortifai.errors import InputError, RunFailed
from fortifai.file_formats import no_column
from fortifai.machine import end_with_parent, process_context
from fortifai.stats.scores import Reference

DOCUMENTS, PER_SOURCE, CONTENTS, GRAMS = 10_000, 1_000, 100_000, 2_000_000
"""What is sampled: documents with text, those of each source, different documents, 8-grams."""

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

    @property
    def end(self) -> tuple[int, int] | None:
        """Key and content up to which the sample holds every document, this one left out.

        None where it holds all that there are.
        """
        rows = self.sample.contents
        if rows["count"].sum() == self.documents:
            return None
        # documents of one template may all have one key; the content's last source may be cut off
        return int(rows["key"][-1]), int(rows["content"][-1])


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
        wanted = Wanted(reading.fields, reference, reading.grams, file is not None)
        for found in _digests(names, wanted, reading.processes, merged.limits):
            merged.add(found)
            if file is not None and found.scored is not None:
                file.write(names[found.file], *found.scored)
            tick(before[found.file] + found.done, before[-1], merged.counts["rows"])
        whole = merged.corpus()
    return whole


# --- processes --------------------------------------------------------------------------------


def _digests(
    names: Sequence[str], wanted: Wanted, processes: int, limits: Callable[[], Limits]
) -> Iterator[Digest]:
    """Digests of all pieces, in the order of files and rows."""
    every = (
        piece
        for number, name in enumerate(names)
        for piece in pieces_.pieces(name, number, wanted.fields)
    )
    if processes == 1:
        for piece in every:
            yield from digest(piece, wanted, limits())
        return
    pool = ProcessPoolExecutor(
        processes,
        mp_context=process_context(),
        initializer=_begin,
        initargs=(wanted,),
    )
    try:
        waiting: collections.deque[Any] = collections.deque()
        for piece in every:
            waiting.append(pool.submit(_work, piece, limits()))
            if len(waiting) > 3 * processes:
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


_wanted: list[Wanted] = []
"""What a process is to find, told once."""


def _begin(wanted: Wanted) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends its processes
    _wanted.append(wanted)
    end_with_parent()


def _work(piece: Piece, limits: Limits) -> list[Digest]:
    return list(digest(piece, _wanted[0], limits))


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

    def limits(self) -> Limits:
        """What a process needs to know, as far as it is known."""
        return Limits(
            self._documents.limit,
            {name: lowest.limit for name, lowest in self._by.items()},
            self._contents.limit,
            self._grams.limit,
        )

    def add(self, found: Digest) -> None:
        self.counts.update(found.counts)
        self._rows[found.file] += found.counts.get("rows", 0)
        self._without[found.file] += found.counts.get("missing", 0)
        if found.there:
            self._there.setdefault(found.file, found.there)
        if self.counts["bad"] > self._reading.skip_bad:
            row, fault = found.bad[self._reading.skip_bad - self.counts["bad"]]
            allowed = self._reading.skip_bad
            more = f"more than the {allowed} allowed; " if allowed else ""
            raise InputError(
                f"{self._names[found.file]}, row {row:,}, {fault}; {more}repair it, or let "
                "--skip-bad N pass over so many"
            )
        for kind, table in found.samples:
            if kind == "documents":
                self._documents.add(table)
                self._add_by(table)
            else:
                (self._contents if kind == "contents" else self._grams).add(table)
        self._count(found)

    def _add_by(self, table: Table) -> None:
        if self._reading.fields.by is None:
            return
        for name in dict.fromkeys(table["source"].tolist()):
            mine = np.flatnonzero(table["source"] == name)
            lowest = self._by.setdefault(name, Lowest(PER_SOURCE))
            lowest.add({column: values[mine] for column, values in table.items()})

    def _count(self, found: Digest) -> None:
        self._sources.update(found.sources)
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


def both_hold(text: Corpus, against: Corpus) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of each of two samples of different documents, the rows where both hold every document."""
    ends = [end for end in (text.end, against.end) if end is not None]
    key, content = map(np.uint64, min(ends, default=(2**64 - 1, 2**64 - 1)))
    rows, others = text.sample.contents, against.sample.contents
    mine, theirs = (
        (each["key"] < key) | ((each["key"] == key) & (each["content"] < content))
        for each in (rows, others)
    )
    return mine, theirs


def processes(names: Sequence[str], wanted: int | None, cores: int) -> int:
    """How many processes are worth their start: one for each 16 MB, at most the cores, at most 3.

    As many as are `wanted` where that is said.
    """
    if wanted is not None:
        return wanted
    total = sum(map(pieces_.size, names))
    return int(max(1, min(cores, MOST_PROCESSES, total // 16_000_000)))
