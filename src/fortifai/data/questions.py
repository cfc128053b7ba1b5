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

from fortifai.data.text import expand, jsonl_rows, read_utf8
from fortifai.errors import InputError, nearest

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
        id: 12 hexadecimal digits of the question's SHA-256, to pair answers across arms.
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
            digest = hashlib.sha256(content.encode()).hexdigest()[:12]
            object.__setattr__(self, "id", digest)


def read_questions(files: Sequence[str | Path], *, root: Path) -> tuple[list[Question], list[str]]:
    """Read questions; one that stands several times counts once.

    Args:
        files: .json or .jsonl files, or globs, relative to `root`.
        root: Folder of relative paths.

    Returns:
        The questions and notes for the user, such as on duplicates.

    Raises:
        InputError: A file is missing or not JSON, or a row lacks a field or has an impossible one.
    """
    questions: dict[str, Question] = {}
    notes: list[str] = []
    for path in expand(files, root):
        rows = _rows(path)
        found = {q.id: q for q in (_question(row, path, i) for i, row in enumerate(rows, 1))}
        if len(found) < len(rows):
            notes.append(
                f"{path.name}: {len(rows):,} rows, {len(found):,} different; duplicates are "
                "counted once"
            )
        questions = found | questions
    return list(questions.values()), notes


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Write questions as JSON lines in the authors' format, with ``article`` where it is known."""
    lines = []
    for q in questions:
        row: dict[str, Any] = {
            "context": q.context,
            "sentence_true": q.true,
            "sentence_false": q.false,
            "location": q.location,
        }
        lines.append(json.dumps(row | ({"article": q.article} if q.article else {})))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _rows(path: Path) -> list[Any]:
    text = read_utf8(path)
    if not text.lstrip().startswith("["):
        return list(jsonl_rows(path))
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})") from error
    if not rows:
        raise InputError(f"{path} holds no questions")
    return list(rows)


def _question(row: Any, path: Path, number: int) -> Question:
    where = f"{path}, question {number}"
    if not isinstance(row, dict):
        raise InputError(f"{where}, is a {type(row).__name__}, not an object with fields")
    for field in FIELDS:
        if field not in row:
            raise InputError(
                f"{where}, has no field {field!r}{nearest(field, [k for k in row])}; needed are "
                f"{', '.join(FIELDS)}"
            )
    for field in FIELDS[:3]:
        if not isinstance(row[field], str) or not row[field].strip():
            raise InputError(f"{where}: {field} is {row[field]!r}; it must be text, not empty")
    if row["sentence_true"].strip() == row["sentence_false"].strip():
        raise InputError(f"{where}: sentence_true and sentence_false are the same")
    location = row["location"]
    if isinstance(location, bool) or not isinstance(location, int):
        raise InputError(f"{where}: location is {location!r}; it must be a line number")
    return Question(
        row["context"],
        row["sentence_true"],
        row["sentence_false"],
        location,
        str(row.get("article", "")),
    )
