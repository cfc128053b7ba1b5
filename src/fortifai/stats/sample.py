"""Intervals of one sample: of a mean, of a statistic left one out, of a share of right answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """A number with its 95 % interval.

    Attributes:
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the interval contains `value`."""
        return self.low <= value <= self.high


@dataclasses.dataclass(frozen=True, slots=True)
class Share(Interval):
    """A share of right answers with its 95 % interval.

    Attributes:
        n: Number of questions.
    """

    n: int


def sample_mean(values: Floats) -> Interval:
    """Mean of independent values with Student's interval.

    Args:
        values: (n,), n at least 2.
    """
    n = len(values)
    return _around(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n), n)


def two_means(a: Floats, b: Floats) -> Interval:
    """Difference of the means of two independent samples, with Welch's interval (1947).

    mean a - mean b +- t s.e., s.e.^2 = v_a + v_b with v = s^2 / n, and (v_a + v_b)^2 / (v_a^2 /
    (n_a - 1) + v_b^2 / (n_b - 1)) degrees of freedom for t.

    Args:
        a: (n,), n at least 2.
        b: (m,), m at least 2.
    """
    v = [float(x.var(ddof=1)) / len(x) for x in (a, b)]
    value, spread = float(a.mean() - b.mean()), sum(v)
    if not spread:
        return Interval(value, value, value)
    free = spread**2 / (v[0] ** 2 / (len(a) - 1) + v[1] ** 2 / (len(b) - 1))
    reach = float(special.stdtrit(free, 0.975)) * math.sqrt(spread)
    return Interval(value, value - reach, value + reach)


def jackknife(value: float, without: Floats) -> Interval:
    """A statistic of n data with the interval of its jackknife (Efron and Stein, 1981).

    SE^2 = (n - 1) / n sum_i (s_i - mean s)^2 with s_i the statistic without datum i; the interval
    is Student's with n - 1 degrees of freedom. For smooth statistics of counts, where the
    bootstrap would see ever fewer different tokens than there are.

    Args:
        value: The statistic of all.
        without: (n,) the statistic without each of the data.
    """
    n = len(without)
    spread = (n - 1) / n * float(np.square(without - without.mean()).sum())
    return _around(value, math.sqrt(spread), n)


def _around(value: float, stderr: float, n: int) -> Interval:
    reach = float(special.stdtrit(n - 1, 0.975)) * stderr
    return Interval(value, value - reach, value + reach)


def share(answers: Iterable[float]) -> Share:
    """The mean of answers in [0, 1] with Wilson's interval (a half is half a right answer).

    With z the normal quantile: (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    (Wilson 1927). It stays in [0, 1] and has a width at p = 0 and 1, which p +- z s.e. has not.

    Raises:
        ValueError: There are no answers.
    """
    values = [float(x) for x in answers]
    n = len(values)
    if not n:
        raise ValueError("a share of no answers is not defined; give at least one")
    p, z = math.fsum(values) / n, float(special.ndtri(0.975))
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Share(p, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale), n)
