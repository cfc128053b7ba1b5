"""Text corpora from files and from the hub, as documents that know which lines they came from."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import glob
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fortifai.errors import InputError, nearest

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


def read_text(files: Sequence[str | Path], *, root: Path, column: str = "text") -> Corpus:
    r"""Read local files: plain text, .jsonl, .parquet, or gzip of the first two.

    Plain text is cut at WikiText article headings (``= Title =``), or is one document a file; a row
    of .jsonl or .parquet is one document, or one line of a document where rows are WikiText lines.
    Lines are counted through the files in their order, from 1, and are what stands between line
    feeds (``\n``) and nothing else; a row counts as one line.

    Args:
        files: Paths or globs, relative to `root`; a file that is named twice is read once.
        root: Folder of relative paths.
        column: Column of .jsonl and .parquet files that holds the text.

    Raises:
        InputError: A file is missing, empty, binary, not UTF-8, not what its name says, or lacks
            the column.
    """
    documents: list[Document] = []
    lines = 0
    paths = expand(files, root)
    for path in paths:
        if _suffix(path) in (".jsonl", ".parquet"):
            texts = _column(path, column)
            documents += _from_rows(texts, lines + 1)
            lines += len(texts)
        else:
            found = read_utf8(path).removesuffix("\n").split("\n")
            documents += _articles(found, lines + 1)
            lines += len(found)
    return Corpus(tuple(documents), ", ".join(path.name for path in paths), lines)


def read_hub(dataset: str, *, config: str | None, split: str, column: str) -> Corpus:
    """Read a data set of the hub; each row is a line, and WikiText headings start documents.

    Args:
        dataset: Its id.
        config: Its configuration, if it has several.
        split: Such as ``train``.
        column: The one that holds the text.

    Raises:
        InputError: It cannot be loaded (no such data set, config or split, no network), has no
            such column, or the column holds no text.
    """
    rows = hub_rows(dataset, config=config, split=split)
    if column not in rows.column_names:
        raise InputError(_no_column(dataset, column, rows.column_names))
    texts = _strings(rows[column], column, f"{dataset} ({split})")
    return Corpus(tuple(_from_rows(texts, 1)), dataset, len(texts))


def hub_rows(dataset: str, *, config: str | None, split: str) -> Any:
    """The rows of a data set of the hub, as `datasets.Dataset`.

    Raises:
        InputError: It cannot be loaded.
    """
    import datasets

    try:
        return datasets.load_dataset(dataset, config, split=split)
    except Exception as error:  # the hub's clients raise some twenty unrelated kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        name = f"{dataset} ({config})" if config else dataset
        raise InputError(
            f"the data set {name}, split {split!r}, could not be loaded ({reason}); check its id, "
            "config and split, and that there is a network, or give local files"
        ) from error


# --- files ------------------------------------------------------------------------------------


def expand(files: Sequence[str | Path], root: Path) -> list[Path]:
    """The files that paths and globs name, each once, in order (those of a glob by name).

    Raises:
        InputError: One names no file.
    """
    out: list[Path] = []
    for name in files:
        path = root / name
        # a file whose own name has brackets is meant before a glob is
        found = [path] if path.is_file() else _glob(str(name), root)
        if not found:
            what = (
                f"{str(name)!r} is a folder" if path.is_dir() else f"there is no file {str(name)!r}"
            )
            raise InputError(
                f"{what} (looked for {path}); give the path of a file, or a glob that names some"
            )
        out += [p for p in found if p not in out]
    return out


def _glob(pattern: str, root: Path) -> list[Path]:
    # Path.glob takes no absolute patterns
    names = glob.glob(pattern, root_dir=root, recursive=True)  # noqa: PTH207
    found = (root / name for name in sorted(names))
    return [path for path in found if path.is_file()]


def read_utf8(path: Path) -> str:
    r"""A UTF-8 text file, perhaps gzipped, without byte order mark and with ``\n`` for ``\r\n``.

    Raises:
        InputError: It cannot be read, or is empty, binary, not UTF-8 or not gzip.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file ({error}); give it again") from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give a readable file"
        ) from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path} is UTF-16, not UTF-8; convert it to UTF-8")
    if b"\0" in data:
        raise InputError(
            f"{path} is a binary file (a NUL byte at offset {data.index(0)}); give UTF-8 text, "
            ".jsonl or .parquet"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # utf-8-sig counts from behind the byte order mark
        at = error.start + (len(data) - len(error.object))
        raise InputError(
            f"{path} is not UTF-8: byte {data[at]:#04x} at offset {at}; convert it to UTF-8"
        ) from error
    if not text.strip():
        raise InputError(f"{path} is empty; give a file with text")
    return text.replace("\r\n", "\n")


def jsonl_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, perhaps gzipped; blank lines are passed over.

    Raises:
        InputError: A line is not a JSON object; names it.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}, is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, line {number}, is a {type(row).__name__}, not an object with fields"
            )
        rows.append(row)
    return rows


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .parquet file.

    Raises:
        InputError: It is not a parquet file.
    """
    rows: list[dict[str, Any]] = _parquet(path, None).to_pylist()
    return rows


def _parquet(path: Path, column: str | None) -> Any:
    """The table in a file, or one column of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column is not None and column not in names:
                raise InputError(_no_column(str(path), column, names))
            return file.read(None if column is None else [column])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a whole parquet file ({error})") from error


# --- rows -------------------------------------------------------------------------------------


def _column(path: Path, column: str) -> list[str]:
    """The texts of one column; a null is an empty text."""
    if _suffix(path) == ".parquet":
        return _strings(_parquet(path, column)[column].to_pylist(), column, str(path))
    rows = jsonl_rows(path)
    for number, row in enumerate(rows, start=1):
        if column not in row:
            raise InputError(_no_column(f"{path}, row {number},", column, row))
    return _strings([row[column] for row in rows], column, str(path))


def _strings(values: Iterable[Any], column: str, where: str) -> list[str]:
    texts = ["" if value is None else value for value in values]
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise InputError(
                f"{where}, row {number}: column {column!r} is a {type(text).__name__}, not text"
            )
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise InputError(
                f"{where}, row {number}: column {column!r} holds half of a surrogate pair, which "
                "is not text; repair the row"
            )
    if not any(text.strip() for text in texts):
        raise InputError(f"column {column!r} of {where} holds no text; name the one that does")
    return texts


def _no_column(what: str, column: str, there: Iterable[str]) -> str:
    names = [str(name) for name in there]
    return f"{what} has no column {column!r}{nearest(column, names)}; it has {', '.join(names)}"


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _from_rows(texts: Sequence[str], first_line: int) -> list[Document]:
    """WikiText comes one line a row; in anything else a row is a document."""
    lines = [text.rstrip("\n") for text in texts]
    if any(map(_HEADING.match, lines)) and not any("\n" in line for line in lines):
        return _articles(lines, first_line)
    rows = enumerate(texts, start=first_line)
    return [Document(text, "", line, row=True) for line, text in rows if text.strip()]


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
