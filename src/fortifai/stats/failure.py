"""Time to failure of a curve, and how many times longer one arm lasts than another.

A curve is one measure by generation; generations count from 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fortifai.stats.bootstrap import bootstrap_spread
from fortifai.stats.variance import Floats, Over, Spread, estimate, ratio_interval

Direction = Literal["below", "above"]


@dataclasses.dataclass(frozen=True, slots=True)
class TimesFirst:
    """A level that is so many times generation 0's value, of each curve its own."""

    times_first: float


Level = float | Literal["half_gain"] | TimesFirst


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
        low: Lower end of the 95 % interval; None where there is nothing to judge it by.
        high: Upper end; None also where the baseline's time is not surely above 0.
        bound: Which way censoring leaves `value` open: ``lower`` (the arm outlasted the run, so the
            true ratio is larger), ``upper`` (the baseline did), ``none``, or ``unknown`` (both).
        over: What the interval generalises over: ``seeds and questions``, ``questions``, ``seeds``
            or ``nothing``.
        p: Two-sided p-value of "it is 1", by Student's t: under 0.05 exactly where the interval
            leaves 1 out. None where there is no interval.
    """

    value: float | None
    low: float | None
    high: float | None
    bound: Literal["none", "lower", "upper", "unknown"]
    over: Over
    p: float | None = None


def time_to_failure(
    values: Sequence[float],
    level: Level,
    direction: Direction = "below",
    *,
    chance: float | None = None,
    generations: Sequence[int] | None = None,
) -> TimeToFailure:
    """First crossing of a level, linearly interpolated between generations.

    A curve that is on the wrong side at generation 0 has failed at 0. One that never crosses is
    right-censored at its last generation. Touching the level is not crossing it.

    Args:
        values: The measure at the generations measured.
        level: What counts as failure when passed; ``half_gain``: chance + (first - chance) / 2, at
            which half of the first value's gain over chance is lost. With a perfect first value
            and chance 1/2 it is ForTIFAI's 75 % (2509.08972, section 4.5). `TimesFirst`: a
            multiple of the first value.
        direction: ``below`` for measures that fall when a model fails, ``above`` for those that
            rise.
        chance: Needed for ``half_gain``.
        generations: Which ones were measured; None: 0, 1, 2, ...

    Raises:
        ValueError: No values, one that is NaN, or ``half_gain`` without a chance level.
    """
    curve = np.asarray(values, dtype=np.float64)[None]
    stages, censored = _crossings(curve, level, direction, chance, generations)
    return TimeToFailure(float(stages[0]), bool(censored[0]))


def _crossings(
    curves: Floats,
    level: Level,
    direction: Direction,
    chance: float | None,
    generations: Sequence[int] | None,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Times and censoring, (...) each, of many curves (..., generations)."""
    if curves.shape[-1] == 0:
        raise ValueError("a curve without values has no time to failure; give one a generation")
    if np.isnan(curves).any():
        raise ValueError("a curve holds NaN; a measure that failed must be left out, not compared")
    if isinstance(level, TimesFirst):
        height: float | Floats = level.times_first * curves[..., :1]
    elif level != "half_gain":
        height = level
    elif chance is None:
        raise ValueError("level half_gain needs a measure with a chance level")
    else:
        height = chance + (curves[..., :1] - chance) / 2
    sign = 1.0 if direction == "below" else -1.0
    margin = sign * (curves - height)  # negative where failed
    failed = margin < 0
    last = curves.shape[-1] - 1
    first = np.where(failed.any(-1), failed.argmax(-1), last)
    before = np.maximum(first - 1, 0)
    high = np.take_along_axis(margin, before[..., None], -1)[..., 0]
    low = np.take_along_axis(margin, first[..., None], -1)[..., 0]
    drop = high - low
    # a value without end before the crossing puts it at the generation that is finite again
    share = np.where(np.isinf(high), 1.0, 0.0)
    np.divide(high, drop, out=share, where=(drop > 0) & np.isfinite(high))
    censored: NDArray[np.bool_] = np.asarray(~failed.any(-1))
    stages = np.where(censored, last, np.where(first == 0, 0.0, before + share)).astype(np.float64)
    if generations is not None:  # straight lines between the measured ones, in true distance
        stages = np.interp(stages, np.arange(last + 1), np.asarray(generations, dtype=np.float64))
    return stages, censored


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
    """Ratio of mean times to failure with an interval over seeds and questions.

    Arm and baseline are paired: they were trained with the same seeds and asked the same questions.
    The covariance of the two mean times comes from the seeds' own times or, with questions, from
    the hierarchical bootstrap; Fieller's theorem and Student's t make the interval
    (`fortifai.stats.ratio_interval`). With one seed it speaks of the questions alone, and without
    questions there is none.

    Args:
        arm: (seeds, generations) values, or (seeds, generations, questions) answers in [0, 1],
            whose mean over the last axis is the measure.
        baseline: The same of the baseline, same shape.
        level: See `time_to_failure`.
        direction: See `time_to_failure`.
        chance: See `time_to_failure`.
        generations: Which ones were measured; None: 0, 1, 2, ...
        n_boot: Draws, where there are questions.
        seed: Of the draws.

    Raises:
        ValueError: The shapes differ.
    """
    pair = [np.asarray(x, dtype=np.float64) for x in (arm, baseline)]
    if pair[0].shape != pair[1].shape or pair[0].ndim not in (2, 3):
        raise ValueError(
            f"arm is {pair[0].shape} and baseline {pair[1].shape}; both must be (seeds, "
            "generations) or (seeds, generations, questions)"
        )

    def crossings(curves: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        return _crossings(curves, level, direction, chance, generations)

    def mean_times(*curves: Floats) -> Floats:
        return np.stack([crossings(c)[0].mean(-1) for c in curves], axis=-1)

    with_questions = pair[0].ndim == 3
    found = [crossings(x.mean(-1) if with_questions else x) for x in pair]
    times = np.stack([stages for stages, _ in found], axis=-1)  # (seeds, 2)
    if with_questions:
        _, spread = bootstrap_spread(mean_times, *pair, items=True, n_boot=n_boot, seed=seed)
    else:
        spread = _of_seeds(times)
    bound = _bound(*(bool(censored.any()) for _, censored in found))
    mine, base = (float(time) for time in times.mean(0))
    if base == 0:
        return Ratio(None, None, None, bound, spread.over)
    low, high = ratio_interval((mine, base), spread)
    if spread.over != "nothing":
        low = max(low, 0.0) if low is not None else 0.0  # times are not negative
    p = estimate(mine - base, spread.along(np.array([1.0, -1.0]))).p
    return Ratio(mine / base, low, high, bound, spread.over, p)


def _of_seeds(times: Floats) -> Spread:
    """The covariance of the means of (seeds, 2) times that have no questions."""
    n = len(times)
    none = np.zeros((2, 2))
    return Spread(np.cov(times, rowvar=False) / n if n > 1 else none, none, none, n, 1)


def _bound(arm: bool, baseline: bool) -> Literal["none", "lower", "upper", "unknown"]:
    if arm and baseline:
        return "unknown"
    if arm:
        return "lower"
    return "upper" if baseline else "none"
