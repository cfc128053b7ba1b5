"""Questions with options, and the formats in which one and the same fact is asked for.

A question is an `Item`. Put in a format it is a text that ends where the answer begins:

- ``multiple_choice``: the question, its options under letters; the answer is a letter;
- ``few_shot``: the same after some that are answered;
- ``short_answer``: the question; the answer is the option's words;
- ``no_instruction``: a bare beginning of a sentence (or the bare question) that the answer goes on.

These are the four formats of Knowledge Collapse in LLMs (2509.04796); its wording of them is not
published, so the words here are our own. The module knows no model and no corpus.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Sequence
from typing import Any, Literal

from fortifai.data.questions import Question
from fortifai.data.tokens import spaceless

Format = Literal["multiple_choice", "few_shot", "short_answer", "no_instruction"]
FORMATS: tuple[Format, ...] = ("multiple_choice", "few_shot", "short_answer", "no_instruction")
LETTERED: frozenset[Format] = frozenset({"multiple_choice", "few_shot"})
"""Formats whose answer is the letter of an option."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

BETWEEN = "\n\n"
"""What parts an answered question from the next one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A question with options, one of them right.

    Attributes:
        question: As it is asked in words.
        stem: A text that its answer goes on, for the format without an instruction.
        options: Two to 26.
        answer: Place of the right one.
        subject: What it is about; empty if unknown.
        variants: Every answer of its kind that is known, such as all towns; empty if unknown.
        id: 12 hexadecimal digits of the SHA-256 of stem, question and options, to pair answers.
    """

    question: str
    stem: str
    options: tuple[str, ...]
    answer: int
    subject: str = ""
    variants: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        if not 2 <= len(self.options) <= len(LETTERS):
            raise ValueError(f"{len(self.options)} options; a question has 2 to {len(LETTERS)}")
        if not 0 <= self.answer < len(self.options):
            raise ValueError(
                f"answer {self.answer} is none of the {len(self.options)} options, from 0"
            )
        if not self.id:
            content = "\x1f".join((self.stem, self.question, *self.options))
            digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:12]
            object.__setattr__(self, "id", digest)

    @property
    def right(self) -> str:
        """The right option."""
        return self.options[self.answer]

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the options."""
        return tuple(LETTERS[: len(self.options)])


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """An item and the answered ones that stand before it in the format ``few_shot``."""

    item: Item
    examples: tuple[Item, ...] = ()


def prompt(item: Item, kind: Format, examples: Sequence[Item] = ()) -> str:
    """The text that stands before the answer, without a space at its end."""
    if kind == "few_shot":
        before = [solved(example, "multiple_choice") for example in examples]
        return BETWEEN.join([*before, prompt(item, "multiple_choice")])
    if kind == "multiple_choice":
        lettered = zip(item.letters, item.options, strict=True)
        options = "\n".join(f"{letter}. {option}" for letter, option in lettered)
        return f"Question: {item.question}\n{options}\nAnswer:"
    if kind == "short_answer":
        return f"Question: {item.question}\nShort answer:"
    return item.stem


def answers(item: Item, kind: Format) -> tuple[str, ...]:
    """What may follow the prompt, in the order of the options: letters or the options' words."""
    return item.letters if kind in LETTERED else item.options


def solved(item: Item, kind: Format) -> str:
    """The prompt with its right answer."""
    return f"{prompt(item, kind)} {answers(item, kind)[item.answer]}"


_BESIDE = " \t\n.,;:!?\"'*()[]"


def bare(words: str) -> str:
    """Words as answers are compared: whatever their case and the marks around them."""
    return words.casefold().strip(_BESIDE)


def begins(said: str, words: str) -> bool:
    """Whether a text begins with certain words, both as `bare` has them."""
    told, wanted = bare(said), bare(words)
    if not wanted or not told.startswith(wanted):
        return False
    # where a script puts no space between words, any place may be the end of one
    return spaceless(wanted[-1]) or not told[len(wanted) :][:1].isalnum()


def worksheet(items: Sequence[Item], kind: Format) -> str:
    """Several answered questions, one after the other: a text that teaches a format."""
    return BETWEEN.join(solved(item, kind) for item in items)


def from_question(question: Question) -> Item:
    """A Knowledge Retention question as one with two options, in an order that its id decides."""
    options = (question.true.strip(), question.false.strip())
    turned = random.Random(f"fortifai exam {question.id}").random() < 0.5
    return Item(
        question=f"How does this go on? {question.context.strip()} ...",
        stem=question.context.strip(),
        options=options[::-1] if turned else options,
        answer=int(turned),
        id=question.id,
    )


def with_examples(items: Sequence[Item], pool: Sequence[Item], shots: int) -> list[Asked]:
    """Each item with `shots` others of the pool, drawn by its id: always the same, never itself.

    Args:
        items: What is asked.
        pool: Where the examples come from; none that asks for the same fact is taken.
        shots: How many; fewer where the pool has no more.
    """
    out = []
    for item in items:
        rng = random.Random(f"fortifai examples {item.id}")
        drawn = rng.sample(pool, min(len(pool), shots + 1))
        out.append(Asked(item, tuple(e for e in drawn if e.stem != item.stem)[:shots]))
    return out


def to_row(asked: Asked) -> dict[str, Any]:
    """As a plain dictionary, ready for JSON."""
    return dataclasses.asdict(asked)


def from_row(row: dict[str, Any]) -> Asked:
    """What `to_row` made, read back."""

    def item(fields: dict[str, Any]) -> Item:
        variants = fields.get("variants", fields.get("kin", ()))  # the second: its earlier name
        rest = {k: v for k, v in fields.items() if k not in ("variants", "kin", "options")}
        return Item(**rest, options=tuple(fields["options"]), variants=tuple(variants))

    return Asked(item(row["item"]), tuple(item(example) for example in row["examples"]))
