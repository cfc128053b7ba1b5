"""Knowledge Retention questions: a context, a true and a false continuation, and where it says so.

The format is that of ForTIFAI's authors (2509.08972, appendix B): a JSON list or JSON lines with
``context``, ``sentence_true``, ``sentence_false`` and ``location``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fortifai import files
from fortifai.errors import InputError, nearest
from fortifai.file_formats import Row, expand
from fortifai.file_formats import read_rows as read_objects

FIELDS = ("context", "sentence_true", "sentence_false", "location")


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        context: What both continuations follow.
        true: The continuation that the text bears out.
        false: The one that it does not.
        location: Line of the corpus (1-based) where the fact stands.
        article: Title of the document, if known.
        id: 12 hexadecimal digits of the SHA-256 of context, true and false, to pair answers across
            arms.
    """

    context: str
    true: str
    false: str
    location: int
    article: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            content = "\x1f".join((self.context, self.true, self.false))
            # surrogates cannot come from a file, but a Question may be made by hand
            digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:12]
            object.__setattr__(self, "id", digest)


def read_questions(paths: Sequence[str | Path], *, root: Path) -> tuple[list[Question], list[str]]:
    """Read questions; one that stands several times counts once, where it stands first.

    Questions are the same if context and both continuations are: in the authors'
    ``kt_dataset_full.json`` the eight questions of the first article stand again, with another
    location, for each of 491 articles.

    Args:
        paths: Files of rows, as `fortifai.file_formats.read_rows` takes them, or globs, relative to
            `root`.
        root: Folder of relative paths.

    Returns:
        The questions and notes for the user, such as on duplicates.

    Raises:
        InputError: A file is missing or not of rows, or a row lacks a field or has an impossible
            one.
    """
    questions: dict[str, Question] = {}
    notes: list[str] = []
    for path in expand(paths, root):
        rows = read_objects(path)
        found: dict[str, Question] = {}
        for number, row in enumerate(rows, start=1):
            question = _question(row, path, number)
            found.setdefault(question.id, question)
        if len(found) < len(rows):
            notes.append(
                f"{path.name}: {len(rows):,} rows, {len(found):,} different; duplicates are "
                "counted once"
            )
        again = len(found.keys() & questions.keys())
        if again:
            notes.append(
                f"{path.name}: {again:,} of {len(found):,} questions stand in an earlier file too; "
                "they are counted once"
            )
        questions |= {id_: q for id_, q in found.items() if id_ not in questions}
    return list(questions.values()), notes


def read_rows(path: Path) -> list[Question]:
    """Every row of one file as it stands, to be checked: duplicates and equal sentences too.

    Raises:
        InputError: The file is missing or not of rows, or a row lacks a field or has an impossible
            one.
    """
    return [
        _question(row, path, number, distinct=False)
        for number, row in enumerate(read_objects(path), start=1)
    ]


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Write questions as JSON lines in the authors' format, the whole file or nothing.

    ``article`` is in a row where it is known.
    """
    lines = []
    for q in questions:
        row: dict[str, Any] = {
            "context": q.context,
            "sentence_true": q.true,
            "sentence_false": q.false,
            "location": q.location,
        }
        row |= {"article": q.article} if q.article else {}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    files.write_whole(path, "".join(lines))


def _question(row: Row, path: Path, number: int, *, distinct: bool = True) -> Question:
    where = f"{path}, question {number},"
    missing = [field for field in FIELDS if field not in row]
    if missing:
        raise InputError(
            f"{where} has no field {' or '.join(map(repr, missing))}{nearest(missing[0], row)}; "
            f"needed are {', '.join(FIELDS)}"
        )
    for field in FIELDS[:3]:
        _check_text(row[field], field, where)
    if distinct and row["sentence_true"].strip() == row["sentence_false"].strip():
        raise InputError(
            f"{where} has the same sentence_true and sentence_false ({row['sentence_true']!r}); "
            "they must differ"
        )
    location = row["location"]
    if isinstance(location, bool) or not isinstance(location, int):
        raise InputError(f"{where} has location {location!r}; it must be a line number, from 1")
    return Question(
        row["context"],
        row["sentence_true"],
        row["sentence_false"],
        location,
        str(row.get("article") or ""),
    )


def _check_text(value: Any, field: str, where: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} has {field} {value!r}; it must be text and not empty")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise InputError(f"{where} has half of a surrogate pair in {field}, which is not text")
