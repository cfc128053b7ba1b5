"""Files of any size in pieces of some hundred rows, the same however many processes take them."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from fortifai.audit.documents import Fields, Piece
from fortifai.errors import InputError
from fortifai.file_formats import Row, expand, file_format, hub_rows, no_column, read_bytes

HUB = "hub:"
"""What a data set of the hub begins with: ``hub:OWNER/NAME``, ``:CONFIG``, ``@SPLIT``."""

PASSAGE = 100
"""Words at which a passage of plain text, which has no documents, ends with its line."""

_ROWS, _BYTES, _READ = 512, 2_000_000, 1 << 20
_HUB_ID = re.compile(r"hub:([\w./-]+?)(?::([\w.-]+))?(?:@([\w.-]+))?")


# --- which files ------------------------------------------------------------------------------


def sources(names: Sequence[str | Path], fields: Fields, root: Path) -> list[str]:
    """The files and data sets that names and globs name, in the order of their names.

    Raises:
        InputError: One is no file, of a format that holds no rows and no text, binary, or a
            .parquet file without the fields.
    """
    hub = [str(name) for name in names if str(name).startswith(HUB)]
    for name in hub:
        if not _HUB_ID.fullmatch(name):
            raise InputError(f"{name} names no data set; give hub:OWNER/NAME:CONFIG@SPLIT")
    files = expand([name for name in names if str(name) not in hub], root)
    for path in files:
        _check(path, fields)
    # by name: the order in which they are given changes nothing
    return sorted({*hub, *map(str, files)})


def _check(path: Path, fields: Fields) -> None:
    found = file_format(path)
    if found.kind == "parquet":
        with _parquet(path) as file:
            names = file.schema_arrow.names
            for column in fields.columns:
                if column not in names:
                    raise InputError(no_column(str(path), column, names))
        return
    if found.kind not in ("text", "json", "jsonl"):
        raise InputError(
            f"{path} holds neither rows nor plain text by its name; give .jsonl, .ndjson, .json, "
            ".parquet or text, perhaps packed as .gz or .zst"
        )
    with _opened(path) as file:
        start = _read(file, path)
    if not start:
        raise InputError(f"{path} is empty; give a file with text")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path} is UTF-16, not UTF-8; convert it to UTF-8")
    if b"\0" in start:
        raise InputError(
            f"{path} is a binary file (a NUL byte at offset {start.index(0)}); give rows or text"
        )
    if found.kind == "text" and fields.by is not None:
        raise InputError(f"{path} is plain text, which has no column {fields.by!r} for --by")
    if found.kind == "text" and re.match(rb"\s*[{\[]\s*\"", start):
        raise InputError(
            f"{path} is plain text by its name and holds JSON; call it .jsonl (an object a line) "
            "or .json to have its rows read"
        )


def size(source: str) -> int:
    """Bytes of a file as it lies on the disk; 0 for a data set of the hub."""
    return 0 if source.startswith(HUB) else Path(source).stat().st_size


# --- pieces -----------------------------------------------------------------------------------


def pieces(source: str, number: int, fields: Fields) -> Iterator[Piece]:
    """A source in pieces, which are the same however many processes work on them.

    Raises:
        InputError: It cannot be read, or is not the whole of what it must be.
    """
    if source.startswith(HUB):
        yield from _from_hub(source, number)
        return
    path = Path(source)
    kind = file_format(path).kind
    if kind == "parquet":
        yield from _from_parquet(path, number, fields)
    elif kind == "json" and _is_list(path):
        yield from _from_list(path, number)
    elif kind == "text":
        yield from _passages(path, number)
    else:
        yield from _grouped(_lines(path), number, len)


def _opened(path: Path) -> IO[bytes]:
    packed = file_format(path).packed
    try:
        if packed == "gzip":
            return cast("IO[bytes]", gzip.open(path, "rb"))
        if packed == "zstd":
            import pyarrow as pa

            return cast("IO[bytes]", pa.input_stream(path, compression="zstd"))
        return path.open("rb")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); give a readable file"
        ) from None


def _read(file: IO[bytes], path: Path) -> bytes:
    try:
        return file.read(_READ)
    except (OSError, EOFError, zlib.error) as error:
        packed = file_format(path).packed or "readable"
        raise InputError(f"{path} is not a whole {packed} file ({error}); give it again") from None


def _blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Blocks of a file, and how many of its bytes on the disk have been read."""
    whole = path.stat().st_size
    with _opened(path) as file:
        first = True
        while block := _read(file, path):
            yield block.removeprefix(b"\xef\xbb\xbf") if first else block, _done(file, whole)
            first = False


def _done(file: Any, whole: int) -> int:
    inner = getattr(file, "fileobj", file)  # gzip tells where it is in what it unpacks
    try:
        return min(whole, int(inner.tell()))
    except (OSError, ValueError, AttributeError):
        return 0  # pyarrow does not tell


def _lines(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """Line numbers and lines, without those that are blank."""
    number, rest, done = 1, [b""], 0
    for block, done in _blocks(path):
        *whole, last = block.split(b"\n")
        if not whole:  # a line longer than a block
            rest.append(last)
            continue
        whole[0] = b"".join((*rest, whole[0]))
        rest = [last]
        for line in whole:
            if line.strip():
                yield number, line, done
            number += 1
    if (line := b"".join(rest)).strip():
        yield number, line, done


def _grouped(
    rows: Iterator[tuple[int, Any, int]], number: int, weigh: Callable[[Any], int]
) -> Iterator[Piece]:
    """Numbered rows in pieces."""
    part: list[tuple[int, Any]] = []
    weight = done = 0
    for row, value, done in rows:
        part.append((row, value))
        weight += weigh(value)
        if len(part) >= _ROWS or weight >= _BYTES:
            yield Piece(number, part[0][0], part, done)
            part, weight = [], 0
    if part:
        yield Piece(number, part[0][0], part, done)


def _passages(path: Path, number: int) -> Iterator[Piece]:
    """Plain text in passages of about a hundred words, with the lines where they begin."""

    def found() -> Iterator[tuple[int, str, int]]:
        begun, words = 0, 0
        part: list[str] = []
        for line, data, done in _lines(path):
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path} is not UTF-8: byte {data[error.start]:#04x} in line {line}; convert "
                    "it to UTF-8"
                ) from None
            if "\0" in text:
                raise InputError(f"{path} is a binary file (a NUL byte in line {line})")
            for piece in _cut(text):
                begun = begun if part else line
                part.append(piece)
                words += len(piece.split())
                # of scripts without spaces, a word is a character or two
                if words >= PASSAGE or sum(map(len, part)) >= 20 * PASSAGE:
                    yield begun, "\n".join(part), done
                    part, words = [], 0
        if part:
            yield begun, "\n".join(part), done

    yield from _grouped(found(), number, len)


def _cut(line: str) -> Iterator[str]:
    """A line, in pieces of a passage's words where it is longer than two."""
    if len(line) < 10 * PASSAGE:
        yield line
        return
    words = line.split(" ")
    step = 2 * PASSAGE if len(words) > len(line) // 30 else 0
    if not step:  # no spaces: by characters
        yield from (line[i : i + 10 * PASSAGE] for i in range(0, len(line), 10 * PASSAGE))
    elif len(words) <= step:
        yield line
    else:
        yield from (" ".join(words[i : i + PASSAGE]) for i in range(0, len(words), PASSAGE))


def _is_list(path: Path) -> bool:
    """Whether a .json file is not one object a line: a list, or an object over several lines."""
    with _opened(path) as file:
        start = _read(file, path)
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0]
    return first.startswith(b"[") or not first.rstrip().endswith(b"}")


# the marks that may come next, by what came last: a mark, or a row of the list
_MARKS = {"": "[", "[": "]", "row": ",]", ",": "", "]": ""}
_BLANKS = re.compile(r"[ \r\n\t]*")


def _from_list(path: Path, number: int) -> Iterator[Piece]:
    """The values of a list in a .json file, or the one that it holds, decoded one by one."""

    def found() -> Iterator[tuple[int, Row, int]]:
        decode, text, last, row = json.JSONDecoder().raw_decode, _Text(path), "", 0
        while mark := text.mark():
            if mark in _MARKS[last]:
                last = mark
                text.at += 1
                continue
            if last in ("row", "]"):
                raise InputError(f"{path}, row {row}, has {mark!r} behind it; repair the file")
            try:
                value, text.at = decode(text.read, text.at)
            except (ValueError, RecursionError) as error:
                # a value may go on behind what has been read
                if isinstance(error, json.JSONDecodeError) and text.ends(error) and text.more():
                    continue
                fault = f"{path}, row {row + 1}, is not JSON ({error}); repair the file"
                raise InputError(fault) from None
            last = "row" if last else "]"
            row += 1
            yield row, value, text.done
        if last not in ("", "]"):
            raise InputError(f"{path} ends within its list, behind row {row}; give it whole")

    yield from _grouped(found(), number, lambda value: 0)


class _Text:
    """The text of a file as far as it has been read and is not behind us."""

    def __init__(self, path: Path) -> None:
        self.read, self.at, self.done = "", 0, 0
        self._path, self._blocks, self._rest = path, _blocks(path), b""

    def mark(self) -> str:
        """The next character that is not blank; none at the file's end."""
        while True:
            self.at += len(_BLANKS.match(self.read, self.at)[0])  # type: ignore[index]
            if self.at < len(self.read) or not self.more():
                return self.read[self.at : self.at + 1]

    def ends(self, error: json.JSONDecodeError) -> bool:
        """Whether what ends here may be at fault: a string without its end, or half a word."""
        return error.msg.startswith("Unterminated") or error.pos > len(self.read) - 10

    def more(self) -> bool:
        """Read as much again as is ahead, so that a long value is not begun anew for each block."""
        self.read, self.at, data = self.read[self.at :], 0, self._rest
        there = len(self.read) + len(data)
        while len(data) <= there and (block := next(self._blocks, None)):
            data, self.done = data + block[0], block[1]
        grown = len(data) > len(self._rest)
        try:
            text, self._rest = data.decode("utf-8"), b""
        except UnicodeDecodeError as error:
            if not grown or error.reason != "unexpected end of data":
                raise InputError(
                    f"{self._path} is not UTF-8: byte {data[error.start]:#04x}; convert it to UTF-8"
                ) from None
            # a last character that is not yet whole
            text, self._rest = data[: error.start].decode("utf-8"), data[error.start :]
        self.read += text
        return grown


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    packed = file_format(path).packed
    try:
        return pq.ParquetFile(pa.BufferReader(read_bytes(path, packed)) if packed else path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a whole parquet file ({error})") from None


def _from_parquet(path: Path, number: int, fields: Fields) -> Iterator[Piece]:
    import pyarrow as pa

    whole, row = path.stat().st_size, 1
    with _parquet(path) as file:
        total = max(1, file.metadata.num_rows)
        try:
            for batch in file.iter_batches(_ROWS, columns=fields.columns):
                yield Piece(number, row, batch, whole * (row - 1 + batch.num_rows) // total)
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is not a whole parquet file ({error})") from None


def _from_hub(source: str, number: int) -> Iterator[Piece]:
    found = _HUB_ID.fullmatch(source)
    assert found is not None  # `sources` has looked
    name, config, split = found.groups()
    rows = hub_rows(name, config=config, split=split or "train")
    yield from _grouped(((i, row, 0) for i, row in enumerate(rows, start=1)), number, lambda row: 0)
