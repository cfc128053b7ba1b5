"""Knowledge by the format in which it is asked for: accuracy, format adherence, confidence.

Every question is put in every format of `fortifai.data.exam`. Of each answer four things are told:

- *right*: the option with the highest score is the right one. An option's score is the geometric
  mean of its tokens' probabilities, exp(mean log p), as the paper scores short answers; under
  letters an option is its letter. Options that tie share the answer.
- *confidence*: the score of the chosen option, a probability. A model that is confidently wrong
  keeps it; one that has lost the format has none.
- *adherent*: what the model writes by itself, by greedy decoding, keeps to the format asked for;
  see `reads_as`.
- *greedy is right*: what it writes is the right answer.

(Knowledge Collapse in LLMs, 2509.04796: accuracy, format adherence and confidence by format, and
the share of greedy decisions among the right answers.)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fortifai.data import tokens
from fortifai.data.exam import LETTERED, Asked, Format, Item, answers, begins, prompt, solved
from fortifai.data.tokens import Encoded, SpecialTokens
from fortifai.errors import InputError
from fortifai.lab.measures import Score, mean_score, share_score

if TYPE_CHECKING:
    from fortifai.models.causal_lm import CausalLM

SHORT = 10
"""Words up to which an answer is short; more only where the longest option has more."""

LETTER_TOKENS = 4
"""Tokens written where a letter is asked for."""

_LETTER = re.compile(r"[\s*(]*([A-Z])(?!\w)")
_WORD = re.compile(r"\w+")

INSTRUCTIONS: Mapping[Format, str] = {
    "multiple_choice": "Answer with the letter of the right option and nothing else.",
    "few_shot": "Answer with the letter of the right option and nothing else.",
    "short_answer": "Answer in a few words.",
    "no_instruction": "",
}
"""What a chat model is told besides the question."""


@dataclasses.dataclass(frozen=True)
class Exam:
    """What every generation is asked, and how.

    Attributes:
        asked: The questions with the answered ones that stand before them under ``few_shot``.
        kinds: The formats.
        chat: Put questions into the tokenizer's chat template.
        chat_template_args: What the template is told, such as ``{"enable_thinking": False}``.
        answer_tokens: Tokens written where the answer is in words.
    """

    asked: tuple[Asked, ...]
    kinds: tuple[Format, ...]
    chat: bool = False
    answer_tokens: int = 24
    chat_template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def size(self, kind: Format) -> int:
        """Tokens written in a format."""
        return LETTER_TOKENS if kind in LETTERED else self.answer_tokens

    def check(self, tokenizer: Any, positions: int, special: SpecialTokens | None = None) -> None:
        """Refuse what this model cannot be asked.

        Args:
            tokenizer: The model's.
            positions: Longest sequence the model reads.
            special: Its special tokens; None for a model that reads no bos.

        Raises:
            InputError: It has no chat template and one is asked for, the template knows an argument
                not, or the model has too few positions.
        """
        if self.chat:
            arguments = self.chat_template_args
            tokens.check_template(tokenizer, arguments, key="formats.chat")
        for kind in self.kinds:
            encoded = _encode(tokenizer, special or SpecialTokens(None, 0), self, kind)
            longest = max(
                len(ids) - n + max(n, self.size(kind)) for row in encoded for ids, n in row
            )
            if longest > positions:
                raise InputError(
                    f"formats: a question in the format {kind} takes {longest:,} tokens with its "
                    f"answer and the model reads {positions:,} at most; lower formats.shots, leave "
                    "the format out of formats.kinds, or use more positions "
                    "(family.scratch.max_positions)"
                )


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """How one generation did on every question in one format; arrays of shape (questions,).

    Attributes:
        kind: The format.
        ids: Questions' ids.
        subjects: What they are about.
        right: 1 right, 0 wrong, a share where options tie. float64.
        adherent: The greedy answer keeps to the format. bool.
        confidence: Score of the chosen option, in [0, 1]. float64.
        greedy_right: The greedy answer is the right one. bool.
        chance: 1 over the number of options. float64.
        said: The greedy answers, as far as they were written.
    """

    kind: Format
    ids: tuple[str, ...]
    subjects: tuple[str, ...]
    right: NDArray[np.float64]
    adherent: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    greedy_right: NDArray[np.bool_]
    chance: NDArray[np.float64]
    said: tuple[str, ...]


def examine(
    lm: CausalLM,
    exam: Exam,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> list[Outcomes]:
    """Ask everything in every format.

    Args:
        lm: The model.
        exam: What to ask.
        tick: Told after each format how many of how many are done.

    Raises:
        InputError: The model gives no log-probability (NaN).
    """
    out = []
    for done, kind in enumerate(exam.kinds):
        out.append(_examine(lm, exam, kind))
        tick(done + 1, len(exam.kinds))
    return out


def _examine(lm: CausalLM, exam: Exam, kind: Format) -> Outcomes:
    rows = _encode(lm.tokenizer, lm.special, exam, kind)
    flat = [encoded for row in rows for encoded in row]
    sums = lm.sequence_log_prob(flat)
    if any(math.isnan(total) for total in sums):
        raise InputError(
            f"the model gives no log-probability (NaN) for a question in the format {kind}; its "
            "weights are not finite, so load or train another"
        )
    scores = iter(math.exp(total / count) for total, (_, count) in zip(sums, flat, strict=True))
    heads = [row[0][0][: len(row[0][0]) - row[0][1]] for row in rows]
    written = lm.write_greedily(heads, exam.size(kind))
    said = [_text(lm.tokenizer, lm.special.ends, ids) for ids in written]
    items = [asked.item for asked in exam.asked]
    by_item = [[next(scores) for _ in row] for row in rows]
    return Outcomes(
        kind=kind,
        ids=tuple(item.id for item in items),
        subjects=tuple(item.subject for item in items),
        right=np.array([_right(s, i.answer) for s, i in zip(by_item, items, strict=True)]),
        adherent=np.array([reads_as(kind, i, t) for i, t in zip(items, said, strict=True)]),
        confidence=np.array([max(found) for found in by_item]),
        greedy_right=np.array([says(kind, i, t) for i, t in zip(items, said, strict=True)]),
        chance=np.array([1 / len(item.options) for item in items]),
        said=tuple(said),
    )


def _right(scores: Sequence[float], answer: int) -> float:
    best = [i for i, score in enumerate(scores) if score == max(scores)]
    return 1 / len(best) if answer in best else 0.0


def _text(tokenizer: Any, ends: frozenset[int], ids: Sequence[int]) -> str:
    """What was written, up to the end of text or of the turn."""
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    # a line feed stands for the end, so that both ends of an answer read alike
    text = tokenizer.decode(list(ids[:end]), skip_special_tokens=True)
    return str(text) if end is None else f"{text}\n"


# --- what was written -------------------------------------------------------------------------


def reads_as(kind: Format, item: Item, said: str) -> bool:
    """Whether a text keeps to the format that was asked for.

    Letters: its first word is the letter of one of the options. A short answer: its first line has
    a word, is at an end, and has at most ten words (or as many as the longest option). Without an
    instruction: its first line has a word and is no letter and no label such as ``Question:``. In
    words, where every answer of the kind is known (`Item.variants`), it must also begin with one: a
    model that is asked for a town must name a town.

    Args:
        kind: The format.
        item: The question.
        said: What was written; a line feed closes a line that came to its end.
    """
    if kind in LETTERED:
        return _letter(said) in item.letters
    line, ended, _ = said.lstrip().partition("\n")
    words = _WORD.findall(line)
    if not words:
        return False
    if item.variants and not any(begins(line, value) for value in item.variants):
        return False
    if kind == "short_answer":
        most = max(SHORT, *(len(_WORD.findall(option)) for option in item.options))
        return bool(ended) and len(words) <= most
    return bool(item.variants) or not (_letter(line) or re.match(r"\w+:", line))


def says(kind: Format, item: Item, said: str) -> bool:
    """Whether a text begins with the right answer: its letter, or its words."""
    if kind in LETTERED:
        return _letter(said) == item.letters[item.answer]
    return begins(said, item.right)


def _letter(said: str) -> str | None:
    found = _LETTER.match(said)
    return found.group(1) if found else None


# --- tokens -----------------------------------------------------------------------------------


def _encode(
    tokenizer: Any, special: SpecialTokens, exam: Exam, kind: Format
) -> list[list[Encoded]]:
    """For each question, each option's tokens behind the prompt, and how many are the option's.

    Every option stands after the very same tokens; see `tokens.encode_pairs`. In a chat template it
    stands at the beginning of the answer.
    """
    options = [[option.strip() for option in answers(a.item, kind)] for a in exam.asked]
    flat = [option for row in options for option in row]
    if exam.chat:
        heads = [
            _chat(tokenizer, special, asked, kind, exam.chat_template_args) for asked in exam.asked
        ]
        tails = iter(tokens.inside(tokenizer, flat))
        return [
            [(head + ids, len(ids)) for ids in itertools.islice(tails, len(row))]
            for head, row in zip(heads, options, strict=True)
        ]
    prompts = [prompt(asked.item, kind, asked.examples).strip() for asked in exam.asked]
    pairs = [(p, option) for p, row in zip(prompts, options, strict=True) for option in row]
    # whole, whatever the model reads: what is too long for it is told, not cut
    found = iter(tokens.encode_pairs(tokenizer, pairs, special, limit=sys.maxsize))
    return [list(itertools.islice(found, len(row))) for row in options]


def _chat(
    tokenizer: Any,
    special: SpecialTokens,
    asked: Asked,
    kind: Format,
    arguments: Mapping[str, Any],
) -> list[int]:
    """The prompt as turns of a conversation, up to where the model answers."""
    turns = []
    lone: Format = "multiple_choice" if kind == "few_shot" else kind
    for example in asked.examples if kind == "few_shot" else ():
        answer = solved(example, lone).removeprefix(prompt(example, lone)).strip()
        turns += [("user", _told(example, lone)), ("assistant", answer)]
    turns.append(("user", _told(asked.item, lone)))
    return tokens.chat_ids(tokenizer, special, turns, arguments)


def _told(item: Item, kind: Format) -> str:
    """The question and what is asked for; the label before the answer is the template's work."""
    text = prompt(item, kind)
    body = text.rpartition("\n")[0] if kind != "no_instruction" else text
    return "\n".join(part for part in (body, INSTRUCTIONS[kind]) if part)


# --- numbers ----------------------------------------------------------------------------------


def scores(outcomes: Sequence[Outcomes]) -> list[Score]:
    """Accuracy, adherence, confidence and the greedy share of each format, and of its subjects.

    Returns:
        ``format.accuracy`` (chance: the mean of 1 over the number of options),
        ``format.adherence``, ``format.confidence`` and ``format.greedy`` (among the right answers,
        the share that greedy decoding gives too; left out where none is right), on the format's
        name, and on ``FORMAT.SUBJECT`` where there are several subjects.
    """
    out = []
    for found in outcomes:
        subjects = sorted(set(found.subjects))
        out += _scores(found, np.full(len(found.ids), True), found.kind)
        if len(subjects) > 1:
            where = np.array(found.subjects)
            for subject in subjects:
                out += _scores(found, where == subject, f"{found.kind}.{subject}")
    return out


def _scores(found: Outcomes, chosen: NDArray[np.bool_], on: str) -> list[Score]:
    right = found.right[chosen]
    out = [
        share_score("format.accuracy", right, on, chance=float(found.chance[chosen].mean())),
        share_score("format.adherence", found.adherent[chosen], on),
        mean_score("format.confidence", found.confidence[chosen], on),
    ]
    if (right == 1).any():
        out.append(share_score("format.greedy", found.greedy_right[chosen][right == 1], on))
    return out


def table(outcomes: Sequence[Outcomes]) -> list[dict[str, Any]]:
    """One row per question and format, for ``formats.parquet``."""
    return [
        {
            "id": found.ids[i],
            "subject": found.subjects[i],
            "format": found.kind,
            "right": float(found.right[i]),
            "adherent": bool(found.adherent[i]),
            "confidence": float(found.confidence[i]),
            "greedy_right": bool(found.greedy_right[i]),
            "chance": float(found.chance[i]),
            "said": found.said[i],
        }
        for found in outcomes
        for i in range(len(found.ids))
    ]
