"""The Knowledge Retention test: does the model find a true sentence likelier than a false one?

A question is a context with a true and a false continuation; it is answered rightly when the true
one has the higher log-probability: per token (``mean``, the default of ForTIFAI's code) or whole
(``sum``, what its paper says). Chance is 1/2. (ForTIFAI, 2509.08972, section on the KR-test.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from fortifai.errors import InputError
from fortifai.lab.measures import Score, share_score

if TYPE_CHECKING:
    from fortifai.data.questions import Question

Variant = Literal["mean", "sum"]
VARIANTS: tuple[Variant, ...] = ("mean", "sum")


class Scorer(Protocol):
    """A model that knows the log-probability of a continuation."""

    def continuation_log_prob(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """(sum of log p in nats, number of tokens) of each (context, continuation)."""
        ...


@dataclasses.dataclass(frozen=True)
class KRResult:
    """The answers to a list of questions, in its order.

    Attributes:
        ids: Questions' ids.
        true: Per variant, (n,) float64 log p of the true continuations, in nats (``mean``: nats
            per token).
        false: The same of the false ones.
    """

    ids: tuple[str, ...]
    true: dict[Variant, np.ndarray]
    false: dict[Variant, np.ndarray]

    def right(self, variant: Variant) -> np.ndarray:
        """(n,) float64: 1 where the true continuation is likelier, 0 where the false one is.

        A tie counts 1/2, what guessing would give: a model to which all continuations are equally
        likely scores chance, neither 0 nor 1.
        """
        true, false = self.true[variant], self.false[variant]
        return np.where(true == false, 0.5, (true > false).astype(np.float64))


def kr_test(model: Scorer, questions: Sequence[Question]) -> KRResult:
    """Put all questions to a model, in batches that the model chooses.

    Raises:
        InputError: A continuation is empty or too long for the model, or a log p is NaN.
    """
    pairs = [(q.context, text) for q in questions for text in (q.true, q.false)]
    answers = np.array(model.continuation_log_prob(pairs), dtype=np.float64).reshape(-1, 2, 2)
    total, count = answers[..., 0], answers[..., 1]
    if np.isnan(total).any():
        first = questions[int(np.argwhere(np.isnan(total))[0, 0])]
        raise InputError(
            f"the model gives no log-probability (NaN) for the question {first.context[:60]!r}; "
            "its weights are not finite, so load or train another"
        )
    mean = total / count
    return KRResult(
        ids=tuple(q.id for q in questions),
        true={"mean": mean[:, 0], "sum": total[:, 0]},
        false={"mean": mean[:, 1], "sum": total[:, 1]},
    )


def scores(result: KRResult, splits: Sequence[int], stage: int) -> list[Score]:
    """The share of right answers: on each split, on all splits up to the stage, and in total.

    Args:
        result: From `kr_test`.
        splits: The split of each question, in the same order.
        stage: The generation, counted from 0, that the model has been trained through:
            ``up-to-stage`` takes splits 0 to `stage`.

    Returns:
        ``kr.mean`` and ``kr.sum`` on ``split-K``, ``up-to-stage`` and ``total``; nothing on sets
        without a question. The standard error is the binomial sqrt(p (1 - p) / n).
    """
    where = np.asarray(splits, dtype=np.int64)
    if len(where) != len(result.ids):
        raise ValueError(f"{len(where)} splits for {len(result.ids)} questions; give one for each")
    sets = {f"split-{k}": where == k for k in sorted(set(where.tolist()))}
    sets |= {"up-to-stage": where <= stage, "total": np.full(len(where), True)}
    return [
        share_score(f"kr.{variant}", result.right(variant)[chosen], on, chance=0.5)
        for variant in VARIANTS
        for on, chosen in sets.items()
        if chosen.any()
    ]


def table(result: KRResult, splits: Sequence[int]) -> list[dict[str, Any]]:
    """One row per question and variant, for ``questions.parquet``.

    Returns:
        Rows of ``id``, ``split``, ``variant``, ``true_log_prob``, ``false_log_prob`` and
        ``correct``; a tie is not ``correct`` here, and shows by its two equal numbers.
    """
    return [
        {
            "id": result.ids[i],
            "split": int(split),
            "variant": variant,
            "true_log_prob": float(result.true[variant][i]),
            "false_log_prob": float(result.false[variant][i]),
            "correct": bool(result.true[variant][i] > result.false[variant][i]),
        }
        for variant in VARIANTS
        for i, split in enumerate(splits)
    ]
