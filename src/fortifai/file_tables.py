"""Files of rows as tables, for what asks for columns of one kind: published benchmarks, MMLU."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fortifai.errors import InputError, reason
from fortifai.file_formats import Row, file_format, parquet_table, read_rows, read_utf8


def read_table(path: Path) -> Any:
    """The rows of a .jsonl, .ndjson, .json, .csv or .parquet file as a `pyarrow.Table`.

    A field that only some rows have is null in the others; fields of a .csv file are texts.

    Raises:
        InputError: As `read_rows`, or a field is not of one kind in all rows.
    """
    if file_format(path).kind == "parquet":
        return parquet_table(path)
    if file_format(path).kind != "csv":
        return as_table(read_rows(path), path)
    names, *lines = csv_lines(path)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path} has two columns {twice!r}; rename one")
    return as_table([dict(zip(names, line, strict=True)) for line in lines], path)


def as_table(rows: Sequence[Row], path: Path) -> Any:
    """Rows of the file `path` as a `pyarrow.Table`; see `read_table`."""
    import pyarrow as pa

    columns = {}
    # not Table.from_pylist, which takes the fields of the first row for those of all
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError) as error:
            raise InputError(
                f"{path}: the field {name!r} is not of one kind in all items ({reason(error)}); "
                "give it one, or leave it out"
            ) from error
    return pa.table(columns)


def csv_lines(path: Path) -> list[list[str]]:
    """The lines of a .csv file that are not blank, all with as many columns; at least one.

    Raises:
        InputError: It is no such file.
    """
    try:
        lines = [line for line in csv.reader(io.StringIO(read_utf8(path)), strict=True) if line]
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as CSV ({error}); give it again") from error
    for number, line in enumerate(lines, start=1):
        if len(line) != len(lines[0]):
            raise InputError(
                f"{path}, row {number}, has {len(line)} columns and the first {len(lines[0])}; "
                "all rows must have as many"
            )
    return lines
