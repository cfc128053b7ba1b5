"""Text corpora from files and from the hub, as documents that know which lines they came from."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fortifai.errors import InputError
from fortifai.file_formats import (
    as_texts,
    column_texts,
    expand,
    file_format,
    hub_rows,
    no_column,
    read_plain,
)

Rows = Literal["documents", "lines"]
"""Whether rows of a table are documents, or the lines of WikiText, whose headings cut them."""

# " = Robert Boulter = ", but not " = = Career = = "
_HEADING = re.compile(r"^ ?= (?!=)(.*[^= ].*?) = ?$")
_INK = re.compile(r"\S")


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A piece of text that stands by itself.

    Attributes:
        text: Its text.
        title: Its heading, if it has one.
        line: Line (1-based) of the source where it starts; 0 if it has none.
        row: Whether it is a row of a table, which counts as one line however many its text has.
    """

    text: str
    title: str = ""
    line: int = 0
    row: bool = False


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents in order.

    Attributes:
        documents: The documents.
        source: Where they came from, for messages.
        lines: Number of lines of the source; 0 if not known.
        sections: Documents (their places, from 0) at which the text of each split begins, and last
            the one from which on there is none; empty for a text that is cut anywhere.
    """

    documents: tuple[Document, ...]
    source: str
    lines: int = 0
    sections: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """All documents, one after the other."""
        return "\n".join(document.text for document in self.documents)

    def find_line(self, line: int) -> tuple[int, int] | None:
        """Where a line of the source stands.

        A blank line stands for the next one that says something. ForTIFAI's authors count rows
        from 0 and locate a question at its article's heading, which counted from 1 is the blank
        line before that heading.

        Args:
            line: 1-based.

        Returns:
            Index of the document and character offset of the line in its text; None if the source
            has no such line, or nothing but blank ones from there on.
        """
        if line < 1 or (self.lines and line > self.lines):
            return None
        index = bisect.bisect_right(self._starts, (line, len(self.documents))) - 1
        if index >= 0:
            start, which = self._starts[index]
            offset = _line_offset(self.documents[which], line - start)
            if offset is not None:
                return which, offset
        if index + 1 == len(self._starts):
            return None
        which = self._starts[index + 1][1]
        return which, _line_offset(self.documents[which], 0) or 0

    @functools.cached_property
    def _starts(self) -> list[tuple[int, int]]:
        """(line, document), sorted, of the documents that have a line."""
        return sorted((d.line, i) for i, d in enumerate(self.documents) if d.line)


def _line_offset(document: Document, skip: int) -> int | None:
    """Where the first line with text after `skip` lines begins; None if there is none."""
    if document.row:
        return None if skip else 0
    offset = 0
    for _ in range(skip):
        offset = document.text.find("\n", offset) + 1
        if offset == 0:
            return None
    found = _INK.search(document.text, offset)
    return document.text.rfind("\n", 0, found.start()) + 1 if found else None


def read_text(
    files: Sequence[str | Path], *, root: Path, column: str = "text", rows: Rows | None = None
) -> Corpus:
    r"""Read local files: plain text, or rows (.jsonl, .ndjson, .json, .parquet); packed ones too.

    Plain text is cut at WikiText article headings (``= Title =``), or is one document a file; a row
    is one document. Lines are counted through the files in their order, from 1, and are what stands
    between line feeds (``\n``) and nothing else; a row counts as one line.

    Args:
        files: Paths or globs, relative to `root`; a file that is named twice is read once.
        root: Folder of relative paths.
        column: Column of rows that holds the text.
        rows: What rows are. None: documents, but for a .parquet file that is WikiText by lines,
            which is how it is published: rows of one line each, at least a quarter of them blank,
            and two or more article headings between blank ones.

    Raises:
        InputError: A file is missing, empty, binary, not UTF-8, not what its name says, of a format
            that holds no text, or lacks the column.
    """
    documents: list[Document] = []
    lines = 0
    paths = expand(files, root)
    for path in paths:
        kind = file_format(path).kind
        if kind in ("json", "jsonl", "parquet"):
            texts = column_texts(path, column)
            told = rows if kind == "parquet" else rows or "documents"
            documents += _from_rows(texts, lines + 1, told)
            lines += len(texts)
        else:
            found = read_plain(path).removesuffix("\n").split("\n")
            documents += _articles(found, lines + 1)
            lines += len(found)
    return Corpus(tuple(documents), ", ".join(path.name for path in paths), lines)


def read_hub(
    dataset: str, *, config: str | None, split: str, column: str, rows: Rows | None = None
) -> Corpus:
    """Read a data set of the hub, as a .parquet file is read.

    Args:
        dataset: Its id.
        config: Its configuration, if it has several.
        split: Such as ``train``.
        column: The one that holds the text.
        rows: See `read_text`.

    Raises:
        InputError: It cannot be loaded (no such data set, config or split, no network), has no
            such column, or the column holds no text.
    """
    found = hub_rows(dataset, config=config, split=split)
    if column not in found.column_names:
        raise InputError(no_column(dataset, column, found.column_names))
    texts = as_texts(found[column], column, f"{dataset} ({split})")
    return Corpus(tuple(_from_rows(texts, 1, rows)), dataset, len(texts))


# --- rows -------------------------------------------------------------------------------------


def _from_rows(texts: Sequence[str], first_line: int, rows: Rows | None) -> list[Document]:
    lines = [text.rstrip("\n") for text in texts]
    if rows == "lines" or (rows is None and _is_wikitext(lines)):
        # a line feed within a row would move all lines behind it
        return _articles([line.replace("\n", " ") for line in lines], first_line)
    numbered = enumerate(texts, start=first_line)
    return [Document(text, "", line, row=True) for line, text in numbered if text.strip()]


def _is_wikitext(lines: Sequence[str]) -> bool:
    """Whether rows are WikiText's lines: one row that looks like a heading makes none of others."""
    blank = [not line.strip() for line in lines]
    if 4 * sum(blank) < len(lines) or any("\n" in line for line in lines):
        return False
    apart = [True, *blank, True]  # the ends count as blank
    headings = [i for i, line in enumerate(lines) if _HEADING.match(line)]
    return sum(apart[i] and apart[i + 2] for i in headings) >= 2


# --- WikiText ---------------------------------------------------------------------------------


def _articles(lines: Sequence[str], first_line: int) -> list[Document]:
    """Cut at headings; what stands before the first one is a document if it says anything."""
    starts = _headings(lines)
    bounds = [0, *(s for s in starts if s), len(lines)]
    out = []
    for start, stop in itertools.pairwise(bounds):
        body = "\n".join(lines[start:stop])
        if body.strip():
            out.append(Document(body, starts.get(start, ""), first_line + start))
    return out


def _headings(lines: Sequence[str]) -> dict[int, str]:
    """Index and title of the lines that are article headings.

    WikiText broke formulas into lines of their own, and some look like headings (" = 1 henry and
    capacitance C = " in wiki.test.raw). They follow on each other as paragraphs do, whereas
    headings have wider gaps: what has a narrower one than most that look like headings is none.
    """
    found = {i: m.group(1) for i, line in enumerate(lines) if (m := _HEADING.match(line))}
    gaps = {i: _gap(lines, i) for i in found}
    counts = collections.Counter(gaps.values())
    usual = max(counts, key=lambda gap: (counts[gap], -gap), default=0)
    return {i: title for i, title in found.items() if gaps[i] >= usual}


def _gap(lines: Sequence[str], index: int) -> int:
    """Number of blank lines after a line."""
    stop = index + 1
    while stop < len(lines) and not lines[stop].strip():
        stop += 1
    return stop - index - 1
