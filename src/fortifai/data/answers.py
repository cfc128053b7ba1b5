"""Questions with the answers that count as right, and what a written text answers.

Two texts give the same answer if they are equal after `normal`: numbers by their value, words
whatever their case and the marks around them. There is no algebra in it: 1/2 and 0.5 are two.
"""

from __future__ import annotations

import dataclasses
import decimal
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fortifai.data.exam import bare, begins
from fortifai.errors import InputError, nearest
from fortifai.file_formats import Row, expand, read_rows

Ask = Literal["question", "prompt", "context"]
ASKS: tuple[Ask, ...] = ("question", "prompt", "context")
"""Fields of a row that say what is asked."""

MARK = "####"
"""What stands before the final answer in GSM8K (2110.14168)."""

_NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?(?:\d[\d,]*(?:\.\d+)?|(?<!\w)\.\d+)")
_ALONE = re.compile(rf"[-+]?{_NUMBER.pattern}")
_BOXED = re.compile(r"\\boxed\s*\{")


@dataclasses.dataclass(frozen=True, slots=True)
class Answered:
    """A question and its right answers.

    Attributes:
        text: What is asked.
        ask: How: a ``question`` is put into words around it; a ``prompt`` or the ``context`` of a
            Knowledge Retention question stands as it is.
        answers: The answers that are right, one or several.
        id: 12 hexadecimal digits of the SHA-256 of `ask` and `text`.
    """

    text: str
    ask: Ask
    answers: tuple[str, ...]
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            content = f"{self.ask}\x1f{self.text}".encode("utf-8", "surrogatepass")
            object.__setattr__(self, "id", hashlib.sha256(content).hexdigest()[:12])

    @property
    def prompt(self) -> str:
        """The text that the answer goes on, without a space at its end."""
        text = self.text.strip()
        return f"Question: {text}\nAnswer:" if self.ask == "question" else text

    @property
    def numeric(self) -> bool:
        """Whether all right answers are numbers."""
        return all(_value(answer) is not None for answer in self.answers)


# --- files ------------------------------------------------------------------------------------


def read_answered(paths: Sequence[str | Path], *, root: Path) -> tuple[list[Answered], list[str]]:
    """Read questions with their answers; one that stands several times counts once.

    A row says what is asked in ``question`` (a ``prompt`` is given to the model as it stands) and
    what is right in ``answer``: a text, a number, or a list of them, each of which is right. Of a
    text with ``####``, as in GSM8K, the answer is what follows the last one. Knowledge Retention
    questions (``context``, ``sentence_true``) are read, too.

    Args:
        paths: Files of rows, as `fortifai.file_formats.read_rows` takes them, or globs, relative to
            `root`.
        root: Folder of relative paths.

    Returns:
        The questions, and notes for the user on duplicates.

    Raises:
        InputError: A file is missing or not of rows, or a row lacks a question or an answer, has an
            impossible one, or is multiple choice.
    """
    found: dict[str, Answered] = {}
    notes = []
    for path in expand(paths, root):
        rows = read_rows(path)
        before = len(found)
        for number, row in enumerate(rows, start=1):
            question = _answered(row, f"{path}, question {number},")
            found.setdefault(question.id, question)
        if len(found) - before < len(rows):
            notes.append(
                f"{path.name}: {len(rows):,} rows, {len(found) - before:,} questions that were "
                "not there before; each is asked once"
            )
    return list(found.values()), notes


def _answered(row: Row, where: str) -> Answered:
    asks = [ask for ask in ASKS if ask in row]
    if len(asks) != 1:
        raise InputError(
            f"{where} has {' and '.join(asks) if asks else 'no question'}"
            f"{'' if asks else nearest('question', row)}; give one of question, prompt and "
            "context, and the answer"
        )
    ask = asks[0]
    if "choices" in row or "options" in row:
        raise InputError(
            f"{where} is multiple choice, where guessing alone finds the answer in a few samples; "
            "give questions whose answers are written out"
        )
    field = "sentence_true" if ask == "context" else "answer"
    if field not in row:
        raise InputError(
            f"{where} has no field {field!r}{nearest(field, row)}; coverage needs the right "
            "answer of each question"
        )
    text = row[ask]
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where} has {ask} {text!r}; it must be text and not empty")
    values = row[field] if isinstance(row[field], list) else [row[field]]
    answers = [_right(value, field, where) for value in values]
    if not answers:
        raise InputError(f"{where} has an empty list for {field}; name at least one right answer")
    return Answered(text, ask, tuple(dict.fromkeys(answers)))


def _right(value: Any, field: str, where: str) -> str:
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if isinstance(text, str):
        text = text.rpartition(MARK)[2].strip()
        if normal(text):
            return text
    raise InputError(
        f"{where} has {field} {value!r}; it must be a number, a text that says something, or a "
        "list of them"
    )


# --- what a text answers ----------------------------------------------------------------------


def normal(answer: str) -> str:
    """An answer as it is compared: a number by its value, words by `fortifai.data.exam.bare`."""
    value = _value(answer)
    if value is None:
        return bare(answer)
    return format(value.normalize() + 0, "f")  # 18.00 is 18, and -0 is 0


def _value(text: str) -> decimal.Decimal | None:
    """The number that a text is, as it is written in prose: 1,200 or $18.00."""
    text = text.strip().rstrip(".")
    if not _ALONE.fullmatch(text):
        return None
    return decimal.Decimal(text.replace(",", "").replace("$", ""))


def answer_of(said: str, question: Answered) -> str | None:
    r"""What a written text answers, as `normal` has it; None where there is no answer in it.

    Of what stands before the model goes on with another ``Question:``, it is what stands in the
    last ``\boxed{}``, else in the line of the last ``####``, else the last number, where the right
    answers are numbers, or the first line that says something, where they are words. A text that
    begins with the words of a right answer gives that answer.

    Args:
        said: The text, up to where the model ended it.
        question: The question.
    """
    said = said.split("\nQuestion:")[0]
    told = _boxed(said)
    if told is None and MARK in said:
        told = said.rpartition(MARK)[2].strip().partition("\n")[0]
    if question.numeric:
        numbers = _NUMBER.findall(said if told is None else told)
        return normal(numbers[-1]) if numbers else None
    if told is None:
        told = next((line for line in said.split("\n") if bare(line)), "")
    for right in question.answers:
        if begins(told, right):
            return normal(right)
    return normal(told) or None


def is_right(answer: str | None, question: Answered) -> bool:
    """Whether an answer, as `answer_of` gives it, is a right one."""
    return answer is not None and answer in {normal(right) for right in question.answers}


def _boxed(said: str) -> str | None:
    r"""What stands between the braces of the last ``\boxed{}`` that is closed."""
    for opened in reversed(list(_BOXED.finditer(said))):
        depth = 1
        for at in range(opened.end(), len(said)):
            depth += {"{": 1, "}": -1}.get(said[at], 0)
            if not depth:
                return said[opened.end() : at]
    return None
