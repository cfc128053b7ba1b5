"""How fast a measure decays to its chance level, generation by generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from fortifai.stats.bootstrap import bootstrap_interval, bootstrap_spread
from fortifai.stats.failure import Ratio
from fortifai.stats.variance import Estimate, Floats, finite, ratio_interval

_GOLDEN = (5**0.5 - 1) / 2


def decay_rate(
    curves: ArrayLike,
    chance: float = 0.0,
    *,
    generations: Sequence[int] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The rate k of an exponential decay to chance, with an interval over seeds and questions.

        y_g = chance + A exp(-k g) + noise

    by least squares in A and k on the mean curve. The half-life is log(2) / k generations. A rate
    of 0 is no decay, a negative one growth.

    Args:
        curves: (seeds, generations) values, or (seeds, generations, questions) answers whose mean
            over the last axis is the measure.
        chance: What it decays to.
        generations: Which ones were measured; None: 0, 1, 2, ...
        n_boot: Draws of the bootstrap.
        seed: Of the draws.

    Returns:
        k per generation. Rates that leave less than 1 % after the first step cannot be told from
        each other and are cut there.

    Raises:
        ValueError: The shape is another, there are fewer than three generations, or the measure
            does not start above chance.
    """
    data, rates = _rates([curves], chance, generations)
    return bootstrap_interval(rates, *data, items=data[0].ndim == 3, n_boot=n_boot, seed=seed)


def decay_ratio(
    arm: ArrayLike,
    baseline: ArrayLike,
    chance: float = 0.0,
    *,
    generations: Sequence[int] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> Ratio:
    """Decay rate of the baseline over that of the arm: how many times slower the arm decays.

    Both are fitted as in `decay_rate`, on the same seeds and questions, and the interval is
    Fieller's (`ratio_interval`). It is open above where the arm may not decay at all.

    Returns:
        The ratio; its value is None where the arm's rate is exactly 0. Negative where one of the
        two grows: then look at the rates.

    Raises:
        ValueError: The shapes differ, or see `decay_rate`.
    """
    if np.shape(arm) != np.shape(baseline):
        raise ValueError(f"arm is {np.shape(arm)} and baseline {np.shape(baseline)}; equal shapes")
    data, rates = _rates([baseline, arm], chance, generations)
    items = data[0].ndim == 3
    values, spread = bootstrap_spread(rates, *data, items=items, n_boot=n_boot, seed=seed)
    fast, slow = (float(v) for v in values)
    if slow == 0:
        return Ratio(None, None, None, "none", spread.over)
    low, high = ratio_interval((fast, slow), spread)
    return Ratio(fast / slow, low, high, "none", spread.over)


def _rates(
    tables: Sequence[ArrayLike], chance: float, generations: Sequence[int] | None
) -> tuple[list[Floats], Callable[..., Floats]]:
    """The tables without chance, and the function that fits the rates of their item means."""
    data = [finite(x, "a curve") - chance for x in tables]
    if data[0].ndim not in (2, 3) or data[0].shape[1] < 3:
        raise ValueError(
            f"the curves are {data[0].shape}; they must be (seeds, generations) or (seeds, "
            "generations, questions) with three generations or more"
        )
    at = np.arange(data[0].shape[1]) if generations is None else np.asarray(generations)
    if at.shape != (data[0].shape[1],) or (np.diff(at) <= 0).any():
        raise ValueError(f"{len(at)} rising generations are needed, one a value: {list(at)}")
    for x in data:
        first = float(x[:, 0].mean())
        if first <= 0:
            raise ValueError(
                f"the measure starts {abs(first):.3g} under its chance level {chance:g}; there is "
                "nothing above chance that could decay"
            )

    def rates(*curves: Floats) -> Floats:
        return np.stack([fit_rate(c.mean(1), at - at[0]) for c in curves], axis=-1)

    return data, rates


def fit_rate(curves: Floats, at: ArrayLike) -> Floats:
    """Least-squares k of A exp(-k x) for many curves.

    For a given k the best A is (y . e) / (e . e) with e = exp(-k x), and what it explains is
    (y . e)^2 / (e . e): one number to maximise, first on a grid, then by golden section.

    Args:
        curves: (draws, points), chance taken off.
        at: (points,) x, rising from 0.
    """
    x = np.asarray(at, dtype=np.float64)
    end, step = x[-1], np.diff(x).min()
    fastest = np.log(100) / step
    slow = np.linspace(-3 / end, 3 / end, 61)
    grid = slow
    if fastest > 3 / end:
        grid = np.concatenate([slow, np.geomspace(3 / end, fastest, 60)[1:]])
    e = np.exp(-np.outer(grid, x))
    along = curves @ (e / np.sqrt((e**2).sum(1))[:, None]).T
    best = along.argmax(1)  # of the positive A
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]

    def explained(k: Floats) -> Floats:
        e = np.exp(-k[:, None] * x)
        found: Floats = (curves * e).sum(1) / np.sqrt((e**2).sum(1))
        return found

    left, right = high - (high - low) * _GOLDEN, low + (high - low) * _GOLDEN
    of_left, of_right = explained(left), explained(right)
    for _ in range(32):  # 0.618^32 of a cell: 2e-7
        down = of_left > of_right  # the best lies left of `right`
        low, high = np.where(down, low, left), np.where(down, right, high)
        kept, of_kept = np.where(down, left, right), np.where(down, of_left, of_right)
        new = low + high - kept  # its mirror image
        of_new = explained(new)
        left, right = np.where(down, new, kept), np.where(down, kept, new)
        of_left, of_right = np.where(down, of_new, of_kept), np.where(down, of_kept, of_new)
    middle: Floats = (low + high) / 2
    return middle
