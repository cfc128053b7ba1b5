"""Coverage: what a model finds in several samples beside what it finds in one.

A model that is trained on what it solves already gets surer and narrower: pass@1 rises while pass@k
falls, since what it sampled rarely it samples no more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fortifai.data import tokens
from fortifai.data.answers import Answered, answer_of, is_right
from fortifai.errors import InputError
from fortifai.evals.formats import INSTRUCTIONS
from fortifai.models.generation import uniform
from fortifai.models.options import Sample

if TYPE_CHECKING:
    from fortifai.models.causal_lm import CausalLM

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

LEAST = 16
"""Fewest questions of which an interval is worth anything."""


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What is asked, and how often.

    Attributes:
        questions: With their right answers; see `fortifai.data.answers.read_answered`.
        samples: Answers that are sampled a question, at temperature 1.
        k: Of pass@k; None: `samples`.
        answer_tokens: Most tokens of an answer.
        chat: Put questions into the tokenizer's chat template.
        most: Questions that are asked at most, evenly spread.

    Raises:
        InputError: `k` is under 2 or above `samples`, there are fewer than 16 questions, or an
            answer has no token.
    """

    questions: tuple[Answered, ...]
    samples: int = 8
    k: int | None = None
    answer_tokens: int = 256
    chat: bool = False
    most: int = 256

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise InputError(f"samples is {self.samples}; coverage takes 2 a question or more")
        if self.of < 2:
            raise InputError(
                f"k is {self.k}; pass@1 is measured anyhow, so give 2 to samples ({self.samples})"
            )
        if self.of > self.samples:
            raise InputError(
                f"k is {self.k} and samples is {self.samples}; pass@{self.k} takes {self.k} "
                "samples a question or more, so lower k or draw more"
            )
        if self.answer_tokens < 1:
            raise InputError(f"answer_tokens is {self.answer_tokens}; it must be 1 or more")
        if min(len(self.questions), self.most) < LEAST:
            raise InputError(
                f"there are {min(len(self.questions), self.most)} questions for coverage; an "
                f"interval over questions takes {LEAST} or more"
            )

    @property
    def of(self) -> int:
        """The k of pass@k."""
        return self.samples if self.k is None else self.k

    @property
    def asked(self) -> tuple[Answered, ...]:
        """The questions that are asked."""
        count = len(self.questions)
        if count <= self.most:
            return self.questions
        chosen = np.linspace(0, count - 1, self.most).round().astype(int)
        return tuple(self.questions[i] for i in chosen)


@dataclasses.dataclass(frozen=True)
class Covered:
    """What a model answered.

    Attributes:
        answers: (questions,) of (samples,): each as `fortifai.data.answers.normal` has it, or None
            where there was none.
        right: (questions, samples) whether it is a right one.
    """

    answers: tuple[tuple[str | None, ...], ...]
    right: NDArray[np.bool_]

    @property
    def counts(self) -> Counts:
        """(questions,) right answers of each."""
        return np.asarray(self.right.sum(1), dtype=np.int64)

    @property
    def distinct(self) -> Floats:
        """(questions,) different answers of each."""
        return np.array([len({*row} - {None}) for row in self.answers], dtype=np.float64)

    @property
    def answered(self) -> Floats:
        """(questions,) share of the samples in which there is an answer."""
        return np.array([sum(a is not None for a in row) / len(row) for row in self.answers])

    @property
    def solved(self) -> tuple[int, ...]:
        """How many questions have 0, 1, ... right answers; (samples + 1,)."""
        return tuple(np.bincount(self.counts, minlength=self.right.shape[1] + 1).tolist())

    def passed(self, k: int) -> Floats:
        """(questions,) pass@k of each; see `pass_at`."""
        return pass_at(k, self.counts, self.right.shape[1])


def pass_at(k: int, right: Counts, samples: int) -> Floats:
    """Unbiased estimate of the probability that one of k samples is right, by question.

    1 - C(n - c, k) / C(n, k) with c of n samples right: the share of the subsets of k samples
    in which one is right (Chen et al., 2107.03374, equation 1).

    Args:
        k: From 1 to `samples`.
        right: (questions,) c.
        samples: n.

    Returns:
        (questions,) float64 in [0, 1].
    """
    every = math.comb(samples, k)
    # whole numbers until the division: binomials of some hundred samples are beyond float64
    table = [(every - math.comb(samples - c, k)) / every for c in range(samples + 1)]
    return np.array(table)[right]


def check(lm: CausalLM, asked: Coverage) -> None:
    """Refuse what a model cannot be asked.

    Raises:
        InputError: It has no chat template and one is asked for, or a question with its answer is
            longer than the model reads.
    """
    longest = max(map(len, _prompts(lm, asked)))
    room = lm.positions - asked.answer_tokens
    if longest > room:
        raise InputError(
            f"coverage: the longest question has {longest:,} tokens, and with answers of "
            f"{asked.answer_tokens:,} the model has room for {max(room, 0):,} (it reads "
            f"{lm.positions:,}); lower the tokens of an answer, or leave long questions out"
        )


def cover(
    lm: CausalLM,
    asked: Coverage,
    *,
    seed: int,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Covered:
    """Sample answers to all questions at temperature 1.

    Each sample draws with random numbers of its own, from seed, question and number: which
    others are asked beside it, and in what batches, does not choose its text.

    Args:
        lm: The model, for which `check` has passed.
        asked: The questions.
        seed: Of the sampling.
        tick: Told how many of how many samples are done.
    """
    n, size, sampling = asked.samples, asked.answer_tokens, Sample(kind="sample")
    questions = asked.asked
    rows = [prompt for prompt in _prompts(lm, asked) for _ in range(n)]
    items = np.array([int(question.id, 16) for question in questions])
    each = [uniform(sampling, seed, items, size, segment=i) for i in range(n)]
    numbers = np.stack([part for part in each if part is not None], axis=1).reshape(-1, size)
    written = lm.write_answers(rows, size, sampling, numbers, tick=tick)
    texts = [_text(lm, ids) for ids in written]
    answers = [
        tuple(answer_of(text, question) for text in texts[n * i : n * (i + 1)])
        for i, question in enumerate(questions)
    ]
    right = [[is_right(a, q) for a in row] for row, q in zip(answers, questions, strict=True)]
    return Covered(tuple(answers), np.array(right, dtype=bool))


def _text(lm: CausalLM, ids: Sequence[int]) -> str:
    kept = [token for token in ids if token not in lm.special.ends]
    return str(lm.tokenizer.decode(kept, skip_special_tokens=True))


def _prompts(lm: CausalLM, asked: Coverage) -> list[list[int]]:
    """Token ids of each question, up to where the answer begins."""
    if not asked.chat:
        texts = tokens.encode(lm.tokenizer, [question.prompt for question in asked.asked])
        return [lm.special.front + text.ids.tolist() for text in texts]
    tokens.check_template(lm.tokenizer, {}, key="coverage")
    out = []
    for question in asked.asked:
        told = [question.text.strip()]
        if question.ask == "question" and not question.numeric:
            told.append(INSTRUCTIONS["short_answer"])
        out.append(tokens.chat_ids(lm.tokenizer, lm.special, [("user", "\n".join(told))]))
    return out
