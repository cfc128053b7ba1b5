"""Text corpora from files and from the hub, as documents that know which lines they came from."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import glob
import gzip
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fortifai.errors import InputError, nearest

# " = Robert Boulter = ", but not " = = Career = = "
_HEADING = re.compile(r"^ ?= (?!=)(.*[^= ].*?) = ?$")


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A piece of text that stands by itself.

    Attributes:
        text: Its text.
        title: Its heading, if it has one.
        line: Line (1-based) of the source where it starts; 0 if it has none.
    """

    text: str
    title: str = ""
    line: int = 0


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents in order.

    Attributes:
        documents: The documents.
        source: Where they came from, for messages.
    """

    documents: tuple[Document, ...]
    source: str

    @property
    def text(self) -> str:
        """All documents, one after the other."""
        return "\n".join(document.text for document in self.documents)

    def find_line(self, line: int) -> tuple[int, int] | None:
        """(index of the document, character offset in it) of a line of the source, or None."""
        index = bisect.bisect_right(self._starts, (line, len(self.documents))) - 1
        if index < 0:
            return None
        start, which = self._starts[index]
        document, offset = self.documents[which], 0
        for _ in range(line - start):
            offset = document.text.find("\n", offset) + 1
            if offset == 0:
                return None
        return which, offset

    @functools.cached_property
    def _starts(self) -> list[tuple[int, int]]:
        """(line, document), sorted, of the documents that have a line."""
        return sorted((d.line, i) for i, d in enumerate(self.documents) if d.line)


def read_text(files: Sequence[str | Path], *, root: Path, column: str = "text") -> Corpus:
    r"""Read local files: plain text, .jsonl, .parquet, or gzip of the first two.

    A plain file is cut at WikiText article headings (``= Title =``), or is one document; a row of
    .jsonl or .parquet is one document. Lines are counted through the files in their order, from 1,
    and are what stands between line feeds (``\n``); a row counts as one line.

    Args:
        files: Paths or globs, relative to `root`.
        root: Folder of relative paths.
        column: Column of .jsonl and .parquet files that holds the text.

    Raises:
        InputError: A file is missing, empty, binary, not UTF-8, not what its name says, or lacks
            the column.
    """
    documents: list[Document] = []
    line = 1
    paths = expand(files, root)
    for path in paths:
        if _suffix(path) in (".jsonl", ".parquet"):
            texts = _rows(path, column)
            documents += [Document(text, "", line + i) for i, text in enumerate(texts)]
            line += len(texts)
        else:
            text = read_utf8(path)
            documents += _articles(text, line)
            line += text.count("\n") + (not text.endswith("\n"))
    return Corpus(tuple(documents), ", ".join(path.name for path in paths))


def read_hub(dataset: str, *, config: str | None, split: str, column: str) -> Corpus:
    """Read a data set of the hub; each row is a line, and WikiText headings start documents.

    Raises:
        InputError: It cannot be loaded (no such data set, config or split, no network) or has no
            such column.
    """
    rows = hub_rows(dataset, config=config, split=split)
    if column not in rows.column_names:
        raise InputError(_no_column(dataset, column, rows.column_names))
    texts = [str(t) if t is not None else "" for t in rows[column]]
    if not any(t.strip() for t in texts):
        raise InputError(f"column {column!r} of {dataset} ({split}) holds no text")
    if any(_HEADING.match(t.strip("\n")) for t in texts):
        # WikiText on the hub: one line a row
        return Corpus(tuple(_articles("\n".join(t.rstrip("\n") for t in texts), 1)), dataset)
    return Corpus(tuple(Document(t, "", i + 1) for i, t in enumerate(texts) if t.strip()), dataset)


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


def expand(files: Sequence[str | Path], root: Path) -> list[Path]:
    """The files that paths and globs name, each once, in order.

    Raises:
        InputError: One names no file.
    """
    out: list[Path] = []
    for name in files:
        path = root / name
        found = [path] if path.is_file() else sorted(Path(p) for p in glob.glob(str(path)))
        found = [p for p in found if p.is_file()]
        if not found:
            raise InputError(
                f"there is no file {str(name)!r} (looked for {path}); give the path of a file or "
                "a glob, relative to the YAML's folder or, for a preset, to the current one"
            )
        out += [p for p in found if p not in out]
    return out


def read_utf8(path: Path) -> str:
    """A UTF-8 text file, perhaps gzipped.

    Raises:
        InputError: It is empty, binary, not UTF-8 or not gzip.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{path} is not a whole gzip file ({error}); give it again") from error
    if b"\0" in data[:65536]:
        raise InputError(f"{path} is a binary file; give UTF-8 text, .jsonl or .parquet")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}; convert "
            "it to UTF-8"
        ) from error
    if not text.strip():
        raise InputError(f"{path} is empty; give a file with text")
    return text.replace("\r\n", "\n")


def jsonl_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, perhaps gzipped.

    Raises:
        InputError: A line is not a JSON object; names it.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
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
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a parquet file ({error})") from error
    return rows


def _rows(path: Path, column: str) -> list[str]:
    rows = jsonl_rows(path) if _suffix(path) == ".jsonl" else parquet_rows(path)
    for number, row in enumerate(rows, start=1):
        if column not in row:
            raise InputError(_no_column(f"{path}, row {number},", column, row))
        if not isinstance(row[column], str):
            raise InputError(
                f"{path}, row {number}: column {column!r} is a {type(row[column]).__name__}, not "
                "text"
            )
    if not any(str(row[column]).strip() for row in rows):
        raise InputError(f"column {column!r} of {path} holds no text")
    return [row[column] for row in rows]


def _no_column(what: str, column: str, there: Iterable[str]) -> str:
    names = [str(name) for name in there]
    return f"{what} has no column {column!r}{nearest(column, names)}; it has {', '.join(names)}"


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _articles(text: str, first_line: int) -> list[Document]:
    """Cut at headings; what stands before the first one is a document if it says anything."""
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    starts = [i for i, line in enumerate(lines) if _HEADING.match(line)]
    bounds = [0, *(s for s in starts if s), len(lines)]
    out = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        body = "\n".join(lines[start:stop])
        found = _HEADING.match(lines[start]) if lines else None
        if body.strip():
            out.append(Document(body, found.group(1) if found else "", first_line + start))
    return out
