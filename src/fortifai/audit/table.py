"""Scores of documents as a .parquet file, written as they come."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fortifai import files
from fortifai.audit.documents import Fields
from fortifai.audit.sketch import Table
from fortifai.errors import InputError

_GROUP = 20_000


class ScoreFile:
    """A .parquet file of a row a document, which is there when all of it is.

    Columns: ``file`` (dictionary), ``row`` (int64, from 1; of .jsonl and text, the line),
    ``source`` with --by, and the scores (float64, null where a document is too short; ``words``
    int64).

    Args:
        path: The file.
        fields: Whether there are sources.

    Raises:
        InputError: It is there already, is no .parquet by its name, or its folder is not there.
        RunFailed: It could not be written.
    """

    def __init__(self, path: Path, fields: Fields) -> None:
        check_scores(path)
        self._path, self._by = path, fields.by is not None
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        self._writer: Any = None
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def __enter__(self) -> ScoreFile:
        return self

    def write(
        self, name: str, numbers: Sequence[int], columns: Table, by: Sequence[str] | None
    ) -> None:
        """Add documents of one file."""
        # read as a category in pandas: a file's name stands once
        which = pa.DictionaryArray.from_arrays(pa.array([0] * len(numbers), pa.int32()), [name])
        table: dict[str, Any] = {"file": which, "row": pa.array(numbers, pa.int64())}
        if by is not None:
            table["source"] = pa.array(by, pa.string())
        # from_pandas: NaN is null
        table |= {key: pa.array(values, from_pandas=True) for key, values in columns.items()}
        self._waiting.append(pa.table(table))
        self._rows += len(numbers)
        if self._rows >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting).unify_dictionaries().combine_chunks()
        self._waiting, self._rows = [], 0
        with self._writing():
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._partial, table.schema, compression="zstd")
            self._writer.write_table(table)

    def _writing(self) -> AbstractContextManager[None]:
        return files.writing("the scores", self._path, "another file with --scores")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # an interrupt may come in here, too
        try:
            if kind is None:
                self._flush()
            if self._writer is not None:
                with self._writing() if kind is None else suppress(OSError):
                    self._writer.close()
                    if kind is None:
                        files.sync(self._partial)
                        files.replace(self._partial, self._path)
        finally:
            self._partial.unlink(missing_ok=True)


def check_scores(path: Path) -> None:
    """Refuse a file for scores that must not be written.

    Raises:
        InputError: It is there already, is no .parquet by its name, or its folder is not there.
    """
    if path.suffix.lower() != ".parquet":
        raise InputError(f"--scores is {path}; scores are written as .parquet, name such a file")
    if path.exists():
        raise InputError(f"{path} is there already; remove it, or give another file for --scores")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} for the scores; make it first")
