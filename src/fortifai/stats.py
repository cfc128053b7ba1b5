"""Statistics of runs: time to failure, its ratio between arms, intervals over seeds and questions.

Plain functions on arrays. A curve is one measure by generation; generations count from 0.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

Floats = NDArray[np.float64]
Direction = Literal["below", "above"]
HALF_GAIN: Literal["half_gain"] = "half_gain"
Level = float | Literal["half_gain"]


@dataclasses.dataclass(frozen=True, slots=True)
class TimeToFailure:
    """When a curve failed.

    Attributes:
        stage: Generations until the level was crossed, interpolated; for a censored one the last
            generation, a lower bound.
        censored: It had not failed by the last generation.
    """

    stage: float
    censored: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """How many times longer an arm lasts than the baseline.

    Attributes:
        value: Ratio of mean times to failure; None where the baseline fails at once.
        low: Lower end of the 95 % interval; None where there is nothing to resample.
        high: Upper end.
        bound: Which way censoring leaves `value` open: ``lower`` (the arm outlasted the run, so the
            true ratio is larger), ``upper`` (the baseline did), ``none``, or ``unknown`` (both).
        over: What was resampled: ``seeds and questions``, ``questions``, ``seeds`` or ``nothing``.
    """

    value: float | None
    low: float | None
    high: float | None
    bound: Literal["none", "lower", "upper", "unknown"]
    over: str


def half_gain_level(first: float, chance: float) -> float:
    """The level at which half of the gain over chance is lost: chance + (first - chance) / 2.

    With a perfect first score and chance 1/2 it is ForTIFAI's 75 % (2509.08972, section 4.5).
    """
    return chance + (first - chance) / 2


def time_to_failure(
    values: Sequence[float],
    level: float,
    direction: Direction = "below",
    *,
    generations: Sequence[int] | None = None,
) -> TimeToFailure:
    """First crossing of a level, linearly interpolated between generations.

    A curve that is on the wrong side at generation 0 has failed at 0. One that never crosses is
    right-censored at its last generation. Touching the level is not crossing it.

    Args:
        values: The measure at the generations measured.
        level: What counts as failure when passed.
        direction: ``below`` for measures that fall when a model fails, ``above`` for those that
            rise.
        generations: Which ones were measured; None: 0, 1, 2, ...

    Raises:
        ValueError: No values, or one that is NaN.
    """
    curve = np.asarray(values, dtype=np.float64)[None]
    stages, censored = _crossings(curve, level, direction, generations)
    return TimeToFailure(float(stages[0]), bool(censored[0]))


def _crossings(
    curves: Floats,
    level: float | Floats,
    direction: Direction,
    generations: Sequence[int] | None = None,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Times and censoring of many curves (..., generations); `level` is a scalar or (...)."""
    if curves.shape[-1] == 0:
        raise ValueError("a curve without values has no time to failure; give one a generation")
    if np.isnan(curves).any():
        raise ValueError("a curve holds NaN; a measure that failed must be left out, not compared")
    sign = 1.0 if direction == "below" else -1.0
    margin = sign * (curves - np.asarray(level)[..., None])  # negative where failed
    failed = margin < 0
    last = curves.shape[-1] - 1
    first = np.where(failed.any(-1), failed.argmax(-1), last)
    before = np.maximum(first - 1, 0)
    high = np.take_along_axis(margin, before[..., None], -1)[..., 0]
    low = np.take_along_axis(margin, first[..., None], -1)[..., 0]
    drop = high - low
    share = np.divide(high, drop, out=np.zeros_like(high), where=drop > 0)
    censored = ~failed.any(-1)
    stages = np.where(censored, last, np.where(first == 0, 0.0, before + share)).astype(np.float64)
    if generations is not None:  # straight lines between the measured ones, in true distance
        stages = np.interp(stages, np.arange(last + 1), np.asarray(generations, dtype=np.float64))
    return stages, censored


def _levels(curves: Floats, level: Level, chance: float | None) -> float | Floats:
    if level != HALF_GAIN:
        return float(level)
    if chance is None:
        raise ValueError("level half_gain needs a measure with a chance level")
    return chance + (curves[..., 0] - chance) / 2  # `half_gain_level`, of every curve


def seed_times(
    curves: ArrayLike, level: Level, direction: Direction, *, chance: float | None = None
) -> list[TimeToFailure]:
    """Time to failure of each seed's curve.

    Args:
        curves: (seeds, generations).
        level: A number, or ``half_gain`` for half of each curve's own first gain over chance.
        direction: See `time_to_failure`.
        chance: Needed for ``half_gain``.
    """
    array = np.asarray(curves, dtype=np.float64)
    stages, censored = _crossings(array, _levels(array, level, chance), direction)
    return [TimeToFailure(float(s), bool(c)) for s, c in zip(stages, censored, strict=True)]


def ratio_to_baseline(
    arm: ArrayLike,
    baseline: ArrayLike,
    level: Level,
    direction: Direction = "below",
    *,
    chance: float | None = None,
    generations: Sequence[int] | None = None,
    n_boot: int = 2000,
    seed: int = 0,
) -> Ratio:
    """Ratio of mean times to failure with a hierarchical bootstrap interval.

    Seeds are drawn with replacement, then questions; arm and baseline share every draw, since they
    were trained with the same seeds and asked the same questions. The interval is the 2.5th to
    97.5th percentile. With one seed it speaks of the questions alone, and without questions there
    is none.

    Args:
        arm: (seeds, generations) values, or (seeds, generations, questions) answers in [0, 1],
            whose mean over the last axis is the measure.
        baseline: The same of the baseline, same shape.
        level: A number or ``half_gain``.
        direction: See `time_to_failure`.
        chance: Needed for ``half_gain``.
        generations: Which ones were measured; None: 0, 1, 2, ...
        n_boot: Resamples.
        seed: Of the resampling.

    Raises:
        ValueError: The shapes differ.
    """
    pair = [np.asarray(x, dtype=np.float64) for x in (arm, baseline)]
    if pair[0].shape != pair[1].shape or pair[0].ndim not in (2, 3):
        raise ValueError(
            f"arm is {pair[0].shape} and baseline {pair[1].shape}; both must be (seeds, "
            "generations) or (seeds, generations, questions)"
        )
    with_questions = pair[0].ndim == 3
    means = [x.mean(-1) if with_questions else x for x in pair]
    found = [_crossings(m, _levels(m, level, chance), direction, generations) for m in means]
    (arm_times, arm_censored), (base_times, base_censored) = found
    value = float(arm_times.mean() / base_times.mean()) if base_times.mean() > 0 else None
    bound = _bound(bool(arm_censored.any()), bool(base_censored.any()))
    over = _over(pair[0].shape[0], with_questions)
    if over == "nothing" or value is None:
        return Ratio(value, None, None, bound, over)
    rng = np.random.default_rng(seed)
    draws = _resampled(pair, level, direction, chance, generations, n_boot, rng)
    low, high = np.quantile(draws, [0.025, 0.975], method="nearest")
    return Ratio(
        value,
        float(low) if math.isfinite(low) else None,
        float(high) if math.isfinite(high) else None,
        bound,
        over,
    )


def _bound(arm: bool, baseline: bool) -> Literal["none", "lower", "upper", "unknown"]:
    if arm and baseline:
        return "unknown"
    if arm:
        return "lower"
    return "upper" if baseline else "none"


def _over(seeds: int, with_questions: bool) -> str:
    names = (["seeds"] if seeds > 1 else []) + (["questions"] if with_questions else [])
    return " and ".join(names) or "nothing"


def _resampled(
    pair: list[Floats],
    level: Level,
    direction: Direction,
    chance: float | None,
    generations: Sequence[int] | None,
    n_boot: int,
    rng: np.random.Generator,
) -> Floats:
    """Ratios of `n_boot` resamples; infinite where the baseline fails at once."""
    n_seeds = pair[0].shape[0]
    chosen = rng.integers(n_seeds, size=(n_seeds, n_boot))
    counts = None
    if pair[0].ndim == 3:
        n = pair[0].shape[2]
        counts = rng.multinomial(n, np.full(n, 1 / n), size=n_boot).T / n  # (questions, n_boot)
    totals = []
    for x in pair:
        if counts is None:
            curves = np.broadcast_to(x[:, None, :], (n_seeds, n_boot, x.shape[1]))
        else:
            curves = np.moveaxis(x @ counts, 2, 1)  # (seeds, n_boot, generations)
        times, _ = _crossings(curves, _levels(curves, level, chance), direction, generations)
        totals.append(np.take_along_axis(times, chosen, axis=0).mean(0))
    ratios: Floats = np.divide(
        totals[0], totals[1], out=np.full(n_boot, np.inf), where=totals[1] > 0
    )
    return ratios


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean over seeds, by Student's t; None for fewer than two values."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return None
    half = float(scipy_stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return float(x.mean()) - half, float(x.mean()) + half


def paired_difference(
    arm: ArrayLike, baseline: ArrayLike, *, n_boot: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Difference of two arms' shares of right answers, with a 95 % interval.

    Hierarchical bootstrap over seeds, then questions, both arms sharing every draw.

    Args:
        arm: (seeds, questions) answers in [0, 1].
        baseline: The same of the baseline.
        n_boot: Resamples.
        seed: Of the resampling.

    Returns:
        The mean difference, and the lower and upper end.

    Raises:
        ValueError: The shapes differ.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (arm, baseline))
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(
            f"arm is {a.shape} and baseline {b.shape}; both must be (seeds, questions)"
        )
    difference = a - b
    rng = np.random.default_rng(seed)
    n_seeds, n = difference.shape
    counts = rng.multinomial(n, np.full(n, 1 / n), size=n_boot).T / n
    by_seed = difference @ counts  # (seeds, n_boot)
    chosen = rng.integers(n_seeds, size=(n_seeds, n_boot))
    draws = np.take_along_axis(by_seed, chosen, axis=0).mean(0)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)


def gaussian_crossing(values: ArrayLike) -> float | None:
    """Where the weighted densities of two Gaussians fitted to `values` cross between their means.

    The fit is by EM from the lower and the upper quarter, without chance.

    Args:
        values: Any shape; at most some 100,000 of them, evenly spaced in order, are used.

    Returns:
        The x between the means with w0 N(x; m0, v0) = w1 N(x; m1, v1), or None where there is
        none: all values are equal, or one density lies above the other all the way.
    """
    from sklearn.mixture import GaussianMixture  # here: it takes half a second to import

    # 100,000 values fix the crossing to a thousandth of their spread
    x = np.sort(np.asarray(values, dtype=np.float64).ravel())
    x = x[:: max(1, len(x) // 100_000)]
    if len(x) < 2 or x[0] == x[-1]:
        return None
    starts = np.array([x[len(x) // 4], x[3 * len(x) // 4]])
    starts = np.array([x[0], x[-1]]) if starts[0] == starts[1] else starts
    fitted = GaussianMixture(2, means_init=starts[:, None], random_state=0, max_iter=500, tol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that EM stopped early moves the crossing by little
        fitted.fit(x[:, None])
    order = np.argsort(fitted.means_[:, 0])
    w, m = fitted.weights_[order], fitted.means_[order, 0]
    v = fitted.covariances_[order, 0, 0]
    # log w0 N0 - log w1 N1 = a x^2 + b x + c
    a = 0.5 / v[1] - 0.5 / v[0]
    b = m[0] / v[0] - m[1] / v[1]
    c = 0.5 * (m[1] ** 2 / v[1] - m[0] ** 2 / v[0] + np.log(v[1] / v[0])) + np.log(w[0] / w[1])
    roots = np.roots([a, b, c])
    between = [float(r.real) for r in roots if r.imag == 0 and m[0] <= r.real <= m[1]]
    return between[0] if between else None
