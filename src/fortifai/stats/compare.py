"""Are two arms different? Differences on the same questions, tests, and many of them at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fortifai.stats.variance import Estimate, Floats, Over, finite, mean_estimate


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean over seeds, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    found = mean_estimate(values)
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def paired_difference(arm: ArrayLike, baseline: ArrayLike, *, over: Over | None = None) -> Estimate:
    """Difference of two arms' shares of right answers, with interval and p-value.

    The mean of the differences seed by seed and question by question, see `mean_estimate`. The
    p-value is that of a paired test over the same seeds and questions.

    Args:
        arm: (seeds, questions) answers in [0, 1].
        baseline: The same of the baseline.
        over: What to generalise over; None: all that there is more than one of.

    Raises:
        ValueError: The shapes differ, or see `mean_estimate`.
    """
    a, b = _pair(arm, baseline, 2)
    return mean_estimate(a - b, over=over)


def _pair(arm: ArrayLike, baseline: ArrayLike, axes: int) -> tuple[Floats, Floats]:
    a, b = finite(arm, "the arm"), finite(baseline, "the baseline")
    if a.shape != b.shape or a.ndim != axes or not a.size:
        shape = "(seeds, questions)" if axes == 2 else "(questions,)"
        raise ValueError(f"arm is {a.shape} and baseline {b.shape}; both must be {shape}")
    return a, b


@dataclasses.dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's test of two models on the same questions.

    Attributes:
        arm_only: Questions that the arm alone answered rightly.
        baseline_only: Questions that the baseline alone answered rightly.
        exact: Two-sided p-value, never too small.
        mid: Two-sided mid-p-value: half of the weight of what was seen. Close to its level where
            the exact one is too careful.
    """

    arm_only: int
    baseline_only: int
    exact: float
    mid: float


def mcnemar(arm: ArrayLike, baseline: ArrayLike) -> McNemar:
    """McNemar's test: do two models answer equally many of the same questions?

    Where they are equal, each of the n questions that only one of them got right is the arm's with
    probability 1/2. With B ~ Binomial(n, 1/2) and m the smaller count,

        exact p = min(1, 2 P(B <= m)),   mid p = 2 P(B <= m) - P(B = m)

    (1 - P(B = m) / 2 where both counts are equal; McNemar 1947; mid-p: Fagerland, Lydersen, Laake
    2013). It speaks of these two models: for several seeds take `paired_difference`.

    Args:
        arm: (questions,) answers, 0 or 1.
        baseline: The same of the baseline.

    Raises:
        ValueError: The shapes differ, or an answer is neither right nor wrong.
    """
    a, b = _pair(arm, baseline, 1)
    if not np.isin(a, (0, 1)).all() or not np.isin(b, (0, 1)).all():
        raise ValueError(
            "McNemar's test takes answers that are 0 or 1; decide ties first, or take "
            "paired_difference"
        )
    arm_only, baseline_only = int((a > b).sum()), int((b > a).sum())
    n, less = arm_only + baseline_only, min(arm_only, baseline_only)
    if n == 0:
        return McNemar(0, 0, 1.0, 1.0)
    up_to = float(special.bdtr(less, n, 0.5))
    here = up_to - float(special.bdtr(less - 1, n, 0.5)) if less else up_to
    mid = 1 - here / 2 if arm_only == baseline_only else 2 * up_to - here
    return McNemar(arm_only, baseline_only, min(1.0, 2 * up_to), mid)


def permutation_test(
    arm: ArrayLike, baseline: ArrayLike, *, n_draws: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value of equal arms, by exchanging their answers question by question.

    A question's answers of all seeds are exchanged together, since they are not independent. The
    p-value is the share of exchanges whose absolute mean difference is at least the seen one: of
    all 2^n where at most 16 questions differ, else of `n_draws` and the seen one itself. It assumes
    nothing about the answers, but speaks of these models and seeds only. For other seeds take
    `paired_difference`.

    Args:
        arm: (seeds, questions) answers.
        baseline: The same of the baseline.
        n_draws: Random exchanges.
        seed: Of the exchanges.

    Raises:
        ValueError: The shapes differ.
    """
    a, b = _pair(arm, baseline, 2)
    gaps = (a - b).sum(0)
    gaps = gaps[gaps != 0]
    n = len(gaps)
    if n == 0:
        return 1.0
    seen = abs(float(gaps.sum())) * (1 - 1e-12)  # sums of floats in another order
    if n <= 16:
        signs = 1 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float((np.abs(signs @ gaps) >= seen).mean())
    rng, hits = np.random.default_rng(seed), 0
    for start in range(0, n_draws, 1000):
        size = min(1000, n_draws - start)
        signs = rng.integers(0, 2, (size, n), dtype=np.int8).astype(np.float32) * 2 - 1
        hits += int((np.abs(signs @ gaps) >= seen).sum())
    return (hits + 1) / (n_draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values that may be compared with one level, however many there are.

    In rising order, p_(i) becomes max over j <= i of min(1, (m - j + 1) p_(j)). Calling those under
    0.05 different is wrong about any of them with probability 0.05 at most, whatever their
    dependence (Holm 1979).

    Raises:
        ValueError: A p-value is not in [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values lie in [0, 1], not {list(p_values)}")
    order = np.argsort(p, kind="stable")
    raised = np.minimum(1.0, (len(p) - np.arange(len(p))) * p[order])
    out = np.empty_like(p)
    out[order] = np.maximum.accumulate(raised)
    return [float(x) for x in out]
