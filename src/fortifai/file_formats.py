"""Files and data sets that a user names: which format each is in, and the text or rows it holds.

What a file's name says is decided in one place, `file_format`; everything that reads files of users
asks there.
"""

from __future__ import annotations

import dataclasses
import glob
import gzip
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fortifai.errors import InputError, nearest, reason

Row = dict[str, Any]
Kind = Literal["text", "json", "jsonl", "parquet", "csv", "npy", "other"]

ROW_ENDINGS = ".jsonl, .ndjson, .json or .parquet"

_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".npy": "npy",
}
_PACKED = {".gz": "gzip", ".zst": "zstd"}
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
# surely no running text: it would be trained on as markup, numbers or bytes; not .pt, .br, .ps and
# .so, which are languages too, and whose other files have NUL bytes
_OTHER = """
tsv tab xls xlsx ods arrow feather ipc orc avro msgpack jsonc json5 geojson ipynb htm html xhtml
mhtml xml svg yaml yml toml pdf djvu doc docx odt rtf ppt pptx epub mobi pkl pickle joblib npz h5
hdf5 bin pth ckpt onnx safetensors gguf db sqlite sqlite3 mdb lmdb zip tar tgz bz2 xz lzma lz4 7z
rar snappy warc wet wat png jpg jpeg gif bmp webp tif tiff mp3 mp4 wav flac ogg avi mkv exe dll pyc
"""
_KINDS |= dict.fromkeys((f".{ending}" for ending in _OTHER.split()), "other")


@dataclasses.dataclass(frozen=True, slots=True)
class Format:
    """What a file's name says of it.

    Attributes:
        kind: ``text`` for every name that says nothing else, such as ``wiki.test.raw`` or one
            without a suffix; ``other`` for formats that fortifai does not read.
        packed: ``gzip``, ``zstd`` or ``""``.
        stem: The name without the suffixes that say so.
    """

    kind: Kind
    packed: str
    stem: str


def file_format(path: Path) -> Format:
    """The format of a file by its name; upper and lower case are the same."""
    packed = _PACKED.get(path.suffix.lower(), "")
    inner = Path(path.stem) if packed else path
    suffix = inner.suffix.lower()
    kind = _KINDS.get(suffix, "text")
    return Format(kind, packed, inner.name if kind == "text" else inner.stem)


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


# --- bytes and text ---------------------------------------------------------------------------


def read_bytes(path: Path, packed: str = "") -> bytes:
    """The bytes of a file; gzip and zstd, known by their first bytes, are unpacked.

    Args:
        path: The file.
        packed: What it must be: ``gzip``, ``zstd`` or anything.

    Raises:
        InputError: It cannot be read, or is not the whole of what it must be or begins as.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give a readable file"
        ) from None
    for magic, name in _MAGIC.items():
        packed = packed or (name if data.startswith(magic) else "")
    if not packed:
        return data
    try:
        return gzip.decompress(data) if packed == "gzip" else _unpack_zstd(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} is not a whole {packed} file: {len(data)} bytes came ({error}); give it again"
        ) from error


def _unpack_zstd(data: bytes) -> bytes:
    import pyarrow as pa

    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        unpacked: bytes = stream.read()
    return unpacked


def read_utf8(path: Path) -> str:
    r"""A UTF-8 text file, perhaps packed, without byte order mark and with ``\n`` for ``\r\n``.

    Raises:
        InputError: It cannot be read, or is empty, binary, not UTF-8 or not what its name says.
    """
    data = read_bytes(path, file_format(path).packed)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path} is UTF-16, not UTF-8; convert it to UTF-8")
    if b"\0" in data:
        at = data.index(0)
        raise InputError(
            f"{path} is a binary file (a NUL byte at offset {at}, line {_line(data, at)}); give "
            f"UTF-8 text, {ROW_ENDINGS}"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # utf-8-sig counts from behind the byte order mark
        at = error.start + (len(data) - len(error.object))
        raise InputError(
            f"{path} is not UTF-8: byte {data[at]:#04x} at offset {at}, line {_line(data, at)}; "
            "convert it to UTF-8"
        ) from error
    if not text.strip():
        raise InputError(f"{path} is empty; give a file with text")
    return text.replace("\r\n", "\n")


def _line(data: bytes, at: int) -> int:
    return data.count(b"\n", 0, at) + 1


def read_plain(path: Path) -> str:
    """A file of running text, as `read_utf8` reads it.

    Raises:
        InputError: As `read_utf8`, or its name or its first and last lines say that it is something
            else.
    """
    if file_format(path).kind != "text":
        raise InputError(
            f"{path} is no plain text by its name; give text (such as .txt, .md or .raw), or rows "
            f"with a column of text ({ROW_ENDINGS})"
        )
    text = read_utf8(path)
    if _is_json(text):
        raise InputError(
            f"{path} is plain text by its name and holds JSON; call it .jsonl (an object a line) "
            "or .json to have its rows read"
        )
    return text


def _is_json(text: str) -> bool:
    """Whether a text is one JSON object, a list of objects, or an object on each line."""
    start = text.lstrip()
    if not start.startswith(("{", "[")):
        return False
    lines = text.strip().split("\n")
    if all(isinstance(_parsed(line), dict) for line in (lines[0], lines[-1])):
        return True
    whole = _parsed(text)
    return isinstance(whole, dict) or (
        isinstance(whole, list) and bool(whole) and all(isinstance(row, dict) for row in whole)
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# --- rows -------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """The rows of a .jsonl, .ndjson, .json or .parquet file, perhaps packed.

    A .json file holds a list of objects, one object, or one a line, and so does a file whose name
    says nothing. Blank lines are passed over; lines are what stands between line feeds.

    Raises:
        InputError: It cannot be read, has no rows, is not what its name says, or a row is no object
            or has a key twice; names the row or line.
    """
    kind = file_format(path).kind
    if kind == "parquet":
        found: list[Row] = parquet_table(path).to_pylist()
        if not found:
            raise InputError(f"{path} has no rows; give a file with some")
        return found
    if kind in ("csv", "npy", "other"):
        raise InputError(f"{path} holds no rows by its name; give {ROW_ENDINGS}")
    text = read_utf8(path)
    if kind != "jsonl" and text.lstrip().startswith("["):
        return _list(text, path)
    if kind != "jsonl":
        try:
            whole = json.loads(text, object_pairs_hook=_object)
        except (ValueError, RecursionError):
            pass  # several objects, one a line, or what is told by its line
        else:
            return _objects([whole], path)
    return _lines(text, path)


def _list(text: str, path: Path) -> list[Row]:
    try:
        whole = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error})") from error
    if not whole:
        raise InputError(f"{path} holds an empty list; give a file with rows")
    return _objects(whole, path)


def _objects(values: list[Any], path: Path) -> list[Row]:
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise InputError(
                f"{path}, row {number}, is a {type(value).__name__}, not an object with fields"
            )
    return values


def _lines(text: str, path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}, is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, line {number}, is a {type(row).__name__}, not an object with fields"
            )
        rows.append(row)
    return rows


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """A JSON object; json itself drops all but the last value of a key that stands twice."""
    out = dict(pairs)
    if len(out) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return out


def parquet_table(path: Path, column: str | None = None) -> Any:
    """The `pyarrow.Table` in a .parquet file, or one column of it.

    Raises:
        InputError: It is not a whole parquet file, or lacks the column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    packed = file_format(path).packed
    source = pa.BufferReader(read_bytes(path, packed)) if packed else path
    try:
        with pq.ParquetFile(source) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise InputError(f"{path} has two columns {twice!r}; rename one")
            if column is not None and column not in names:
                raise InputError(no_column(str(path), column, names))
            return file.read(None if column is None else [column])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a whole parquet file ({error})") from error


def column_texts(path: Path, column: str) -> list[str]:
    """The texts of one column of a file of rows; a null is an empty text.

    Raises:
        InputError: As `read_rows`, or the column is missing, holds something else, or no text.
    """
    if file_format(path).kind == "parquet":
        return as_texts(parquet_table(path, column)[column].to_pylist(), column, str(path))
    rows = read_rows(path)
    for number, row in enumerate(rows, start=1):
        if column not in row:
            raise InputError(no_column(f"{path}, row {number},", column, row))
    return as_texts([row[column] for row in rows], column, str(path))


def as_texts(values: Iterable[Any], column: str, where: str) -> list[str]:
    """Values of a column as texts; a null is an empty one.

    Raises:
        InputError: One is no text, or none says anything.
    """
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


def no_column(what: str, column: str, there: Iterable[str]) -> str:
    """What to say of a column that is not there."""
    names = [str(name) for name in there]
    return f"{what} has no column {column!r}{nearest(column, names)}; it has {', '.join(names)}"


def hub_rows(dataset: str, *, config: str | None, split: str) -> Any:
    """The rows of a data set of the hub, as `datasets.Dataset`.

    Raises:
        InputError: It cannot be loaded.
    """
    import datasets

    try:
        return datasets.load_dataset(dataset, config, split=split)
    except Exception as error:  # the hub's clients raise some twenty unrelated kinds
        name = f"{dataset} ({config})" if config else dataset
        raise InputError(
            f"the data set {name}, split {split!r}, could not be loaded ({reason(error)}); check "
            "its id, config and split, and that there is a network, or give local files"
        ) from error


def read_npy(path: Path) -> NDArray[Any]:
    """The array in a .npy file; pickled objects are refused.

    Raises:
        InputError: It cannot be read or is not a whole .npy file.
    """
    try:
        with path.open("rb") as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give a readable file"
        ) from None
    except (ValueError, EOFError) as error:
        raise InputError(
            f"{path} is not a whole .npy file of numbers ({reason(error)}); save it anew with "
            "numpy.save"
        ) from error
    return array
