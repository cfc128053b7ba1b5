"""Are two arms different? Differences on the same questions, tests, and many of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fortifai.stats.variance import Estimate, Over, finite, mean_estimate


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
    a, b = finite(arm, "the arm"), finite(baseline, "the baseline")
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(
            f"arm is {a.shape} and baseline {b.shape}; both must be (seeds, questions)"
        )
    return mean_estimate(a - b, over=over)


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
