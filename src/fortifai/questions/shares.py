"""A share of right answers with its interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from scipy import special


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """A share and its 95 % interval.

    Attributes:
        value: The share.
        low: Lower end.
        high: Upper end.
        n: Number of questions.
    """

    value: float
    low: float
    high: float
    n: int

    def holds(self, value: float) -> bool:
        """Whether the interval contains `value`."""
        return self.low <= value <= self.high


def share(answers: Iterable[float], *, confidence: float = 0.95) -> Share:
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
    p, z = math.fsum(values) / n, float(special.ndtri((1 + confidence) / 2))
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Share(p, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale), n)
