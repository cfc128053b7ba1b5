"""Questions in the form of MMLU's own CSV files."""

from __future__ import annotations

from pathlib import Path

from fortifai.errors import InputError
from fortifai.file_formats import Row
from fortifai.file_tables import csv_lines

PLACES = {name: place for place in range(4) for name in ("ABCD"[place], str(place))}
"""What names the right answer, and its place."""


def mmlu_rows(path: Path) -> list[Row]:
    """``question``, ``choices`` (four texts) and ``answer`` (0 to 3) of each line.

    Args:
        path: A file of question, four choices and answer, a letter or 0 to 3; a header or none.

    Raises:
        InputError: It is no such file; names the item.
    """
    lines = csv_lines(path)
    if lines[0][-1].strip().lower() == "answer":
        lines = lines[1:]
    for number, line in enumerate(lines, start=1):
        if len(line) != 6 or line[-1].strip() not in PLACES:
            raise InputError(
                f"{path}, item {number}, is not one of MMLU: it must be a question, four choices "
                "and an answer, A to D or 0 to 3"
            )
    return [{"question": q, "choices": c, "answer": PLACES[a.strip()]} for q, *c, a in lines]
