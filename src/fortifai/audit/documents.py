"""Documents in rows: where in a row the text is, and what is in a piece of a file."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from fortifai.errors import InputError
from fortifai.file_formats import Row


@dataclasses.dataclass(frozen=True, slots=True)
class Fields:
    """Where in a row things are: paths such as ``text``, ``meta.url`` or ``messages[].content``.

    Attributes:
        text: The text; of a list, all that it holds, one a line.
        role: Only the parts of a list whose ``role`` is this one.
        by: The source of a row.
        detector: A detector's score.
    """

    text: str = "text"
    role: str | None = None
    by: str | None = None
    detector: str | None = None

    def __post_init__(self) -> None:
        for path in self.paths:
            if not re.fullmatch(r"[^.\[\]]+(\[\])?(\.[^.\[\]]+(\[\])?)*", path):
                raise InputError(
                    f"{path!r} names no field; give a column or a path into rows, such as "
                    "messages[].content"
                )
        if self.role is not None and "[]." not in self.text:
            raise InputError(
                f"--role picks parts of a list, and --field {self.text} has none; give a path "
                "such as messages[].content"
            )

    @property
    def paths(self) -> list[str]:
        """All that are named."""
        return [path for path in (self.text, self.by, self.detector) if path is not None]

    @property
    def columns(self) -> list[str]:
        """The columns in which they begin, each once."""
        return list(dict.fromkeys(re.split(r"[.\[]", path)[0] for path in self.paths))


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Some rows that follow on each other in a file, not yet decoded.

    Attributes:
        file: The file's number.
        first: Row (1-based; of lines, the line) of the first one.
        rows: Lines of JSON, rows, passages with their lines, or a `pyarrow.RecordBatch`.
        done: Bytes of the file that have been read.
    """

    file: int
    first: int
    rows: Any
    done: int = 0


@dataclasses.dataclass(slots=True)
class Rows:
    """The documents of a piece.

    Attributes:
        numbers: Row of each.
        texts: Its text; None where there is none: a null, or the field is missing.
        by: Its source, where sources are asked for.
        detector: A detector's score, where asked for; None where there is none.
        missing: How many lack the field.
        bad: Row and fault of those that are no rows.
        there: Columns of a row that lacks the field.
    """

    numbers: list[int] = dataclasses.field(default_factory=list)
    texts: list[str | None] = dataclasses.field(default_factory=list)
    by: list[str] = dataclasses.field(default_factory=list)
    detector: list[float | None] = dataclasses.field(default_factory=list)
    missing: int = 0
    bad: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    there: tuple[str, ...] = ()


def decode(piece: Piece, fields: Fields) -> Rows:
    """The documents of a piece."""
    out = Rows()
    rows: Any = piece.rows
    if not isinstance(rows, list):
        rows = list(enumerate(rows.to_pylist(), start=piece.first))
    for number, row in rows:
        try:
            value = _parsed(row) if isinstance(row, bytes) else row
            if isinstance(value, str):  # a passage
                found: tuple[str | None, str, float | None] = value, "", None
            else:
                found = _picked(value, fields, out)
        except _BadRow as fault:
            out.bad.append((number, str(fault)))
            continue
        text, by, detector = found
        out.numbers.append(number)
        out.texts.append(text)
        if fields.by is not None:
            out.by.append(by)
        if fields.detector is not None:
            out.detector.append(detector)
    return out


class _BadRow(Exception):  # noqa: N818 - reads as what it is
    pass


def _parsed(line: bytes) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadRow(f"is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise _BadRow(f"is a {type(value).__name__}, not an object with fields")
    return value


def _picked(row: Any, fields: Fields, out: Rows) -> tuple[str | None, str, float | None]:
    if not isinstance(row, dict):
        raise _BadRow(f"is a {type(row).__name__}, not an object with fields")
    found = _at(row, fields.text, fields.role)
    if found is None:
        out.missing += 1
        out.there = out.there or tuple(map(str, row))
    parts = [value for value in found or () if value is not None]
    for value in parts:
        if not isinstance(value, str):
            hint = "; name one part of it" if isinstance(value, dict | list) else ""
            raise _BadRow(
                f"has a {type(value).__name__} in {fields.text!r}, which is not text{hint}"
            )
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise _BadRow(f"has half of a surrogate pair in {fields.text!r}, which is not text")
    by = "" if fields.by is None else _label(_at(row, fields.by))
    score = None if fields.detector is None else _number(_at(row, fields.detector), fields.detector)
    return "\n".join(parts) if parts else None, by, score


def _at(row: Any, path: str, role: str | None = None) -> list[Any] | None:
    """All values at a path; None where a field on the way is missing."""
    if "." not in path and not path.endswith("]"):  # most paths, quickly
        return [row[path]] if path in row else None
    values = [row]
    for step in path.split("."):
        name, several = step.removesuffix("[]"), step.endswith("[]")
        if any(not isinstance(value, dict) or name not in value for value in values):
            values = [v for v in values if isinstance(v, dict) and name in v]
            if not values:
                return None
        values = [value[name] for value in values]
        if several:
            values = [part for value in values if isinstance(value, list) for part in value]
            if role is not None:
                values = [v for v in values if isinstance(v, dict) and v.get("role") == role]
            if not values:
                return []
    return values


def _label(values: list[Any] | None) -> str:
    """A source in words; rows without one are of none."""
    shown = [str(value) for value in values or () if value is not None]
    return " ".join(shown)[:80]


def _number(values: list[Any] | None, path: str) -> float | None:
    values = [value for value in values or () if value is not None]
    if not values:
        return None
    if len(values) > 1 or not isinstance(values[0], int | float):
        raise _BadRow(f"has a {type(values[0]).__name__} in {path!r}, which is no number")
    return float(values[0])
