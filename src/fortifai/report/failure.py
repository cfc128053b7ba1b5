"""Times to failure of every arm at every declared level, ready to be shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai.report.compare import shared
from fortifai.report.records import FIRST, KR, Arm, Chain, Level, Run
from fortifai.report.text import DASH
from fortifai.stats import (
    Ratio,
    TimeToFailure,
    half_gain_level,
    ratio_to_baseline,
    time_to_failure,
)

Cell = dict[str, Any]

_NAMES = {
    "kr.mean": "KR",
    "kr.sum": "KR (sum)",
    "perplexity": "Perplexity",
    "variance.ratio": "Variance ratio",
    "components.kept": "Components kept",
    "spread": "Spread of codes",
    "wasserstein": "Wasserstein-1",
    "classes.entropy": "Class entropy",
    "frechet": "Fréchet",
    "l2": "L2 distance",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Failures:
    """Times to failure.

    Attributes:
        levels: The declared levels in words.
        cells: By arm, one pair a level: generations until failure, and the ratio to the baseline.
        note: How the intervals are made.
        level: The absolute level of KR on the first split, if one is declared.
        crossings: Mean time to failure at that level, of arms that reached it in every seed.
    """

    levels: Sequence[str]
    cells: Mapping[str, Sequence[tuple[Cell, Cell]]]
    note: str
    level: float | None
    crossings: Mapping[str, float]


def failures(runs: Sequence[Run]) -> Failures:
    """Times to failure at every level that any of the runs declares, and ratios to its baseline."""
    levels = list(dict.fromkeys(level for run in runs for level in run.levels))
    arms = [(run, arm) for run in runs for arm in run.arms]
    drawn = next((v for v in levels if _is_drawn(v)), None)
    crossings = {}
    for _, arm in arms:
        times = _times(arm, drawn) if drawn else []
        if times and not any(time.censored for time in times):
            crossings[arm.label] = float(np.mean([time.stage for time in times]))
    return Failures(
        levels=[describe(level) for level in levels],
        cells={
            arm.label: [(_time_cell(arm, v), _ratio_cell(arm, run.baseline, v)) for v in levels]
            for run, arm in arms
        },
        note=(
            "Generations: mean over seeds; small: the lowest and highest seed. Ratio: mean time of "
            "the arm over mean time of its run's baseline, on the seeds and generations that both "
            "have; small: 95\u00a0% interval (Fieller's, by Student's t) over seeds, and over "
            "questions where a measure has them, both arms paired. With two or three seeds it is "
            "wide, as little is then known of others. A ratio after “>” or “<” is a bound, because "
            "one of the two did not fail within the run; “from” leaves the upper end open. Half of "
            "the gain over chance is counted from each seed's own generation 0."
        ),
        level=float(drawn.level) if drawn else None,
        crossings=crossings,
    )


def _is_drawn(level: Level) -> bool:
    return (level.measure, level.on, level.direction) == (KR, FIRST, "below") and not isinstance(
        level.level, str
    )


def describe(level: Level) -> str:
    """A level in words, such as "KR, first split < 0.75"."""
    name = _NAMES.get(level.measure, level.measure)
    text = {FIRST: ", first split", "held-out": ", held-out data"}.get(level.on, f", {level.on}")
    if level.on == "model" or (level.on == "rewritten" and level.measure in _NAMES):
        text = ""  # these are taken on nothing else
    if level.measure == "perplexity" and level.on == FIRST:
        text = ", original first split"
    if isinstance(level.level, str):
        return f"{name}{text}: half of the gain lost"
    return f"{name}{text} {'<' if level.direction == 'below' else '>'} {level.level:g}"


# --- times ------------------------------------------------------------------------------------


def _chance(chain: Chain, level: Level) -> float | None:
    score = chain.generations[0].scores.get((level.measure, level.on))
    return score.chance if score else None


def _times(arm: Arm, level: Level) -> list[TimeToFailure]:
    """Of the seeds that have the measure; empty where none has."""
    out = []
    for chain in arm.chains:
        values, chance = chain.values(level.measure, level.on), _chance(chain, level)
        if not values or (isinstance(level.level, str) and chance is None):
            continue
        if isinstance(level.level, str):
            assert chance is not None
            height = half_gain_level(values[0], chance)
        else:
            height = level.level
        out.append(
            time_to_failure(
                values,
                height,
                "below" if level.direction == "below" else "above",
                generations=chain.due[: len(values)],
            )
        )
    return out


def _time_cell(arm: Arm, level: Level) -> Cell:
    times = _times(arm, level)
    if not times:
        return {"text": DASH, "note": "not measured"}
    open_ = sum(time.censored for time in times)
    mean = float(np.mean([time.stage for time in times]))
    if open_ == len(times):
        return {"text": f"> {min(time.stage for time in times):g}", "note": ""}
    if open_:
        note = f"{len(times) - open_} of {len(times)} seeds failed"
        return {"text": f"> {mean:.2f}", "note": note}
    low, high = min(time.stage for time in times), max(time.stage for time in times)
    return {"text": f"{mean:.2f}", "note": f"{low:.2f} {DASH} {high:.2f}" if len(times) > 1 else ""}


# --- ratios -----------------------------------------------------------------------------------


def _ratio_cell(arm: Arm, baseline: Arm | None, level: Level) -> Cell:
    if arm.baseline:
        return {"text": "1", "note": "baseline"}
    if baseline is None:
        return {"text": DASH, "note": "no baseline yet"}
    found = ratio(arm, baseline, level)
    if found is None:
        return {"text": DASH, "note": "not measured in both"}
    return _ratio_words(found)


def _ratio_words(found: Ratio) -> Cell:
    if found.bound == "unknown":
        return {"text": DASH, "note": "neither failed in every seed"}
    if found.value is None:
        return {"text": DASH, "note": "baseline fails at once"}
    sign = {"none": "", "lower": "> ", "upper": "< "}[found.bound]
    note = ""
    if found.bound == "upper":
        note = f"up to {found.high:.2f}" if found.high is not None else ""
    elif found.low is not None and (found.low > 0 or found.high is not None):
        closed = found.bound == "none" and found.high is not None
        note = f"{found.low:.2f} {DASH} {found.high:.2f}" if closed else f"from {found.low:.2f}"
    return {"text": f"{sign}{found.value:.2f}", "note": note}


def ratio(arm: Arm, baseline: Arm, level: Level) -> Ratio | None:
    """Ratio of times to failure on the seeds and generations that both arms have.

    For KR on a split the questions' answers go in, so that the interval speaks of them too.
    """
    pairs = [(a, b) for a in arm.chains for b in baseline.chains if a.seed == b.seed]
    curves = [
        (a.values(level.measure, level.on), b.values(level.measure, level.on)) for a, b in pairs
    ]
    chance = _chance(pairs[0][0], level) if pairs else None
    numbers = shared([chain for pair in pairs for chain in pair], level.measure, level.on)
    length = len(numbers)
    if not length or (isinstance(level.level, str) and chance is None):
        return None
    tables: list[NDArray[np.float64]] = [
        np.array([both[side][:length] for both in curves], dtype=np.float64) for side in (0, 1)
    ]
    if level.measure == KR and level.on.startswith("split-"):
        asked = _asked(pairs, int(level.on.removeprefix("split-")), length)
        tables = list(asked) if asked is not None else tables
    return ratio_to_baseline(
        tables[0],
        tables[1],
        "half_gain" if isinstance(level.level, str) else level.level,
        "below" if level.direction == "below" else "above",
        chance=chance,
        generations=numbers,
    )


def _asked(
    pairs: Sequence[tuple[Chain, Chain]], split: int, length: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Answers (seeds, generations, questions) of both arms, or None where they are not kept.

    The questions must be the same ones throughout: only then are the draws paired.
    """
    sides: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])
    names: set[tuple[str, ...]] = set()
    for pair in pairs:
        for chain, side in zip(pair, sides, strict=True):
            rows = []
            for generation in chain.generations[:length]:
                if generation.answers is None:
                    return None
                chosen = np.flatnonzero(generation.answers.split == split)
                names.add(tuple(generation.answers.ids[i] for i in chosen))
                rows.append(generation.answers.right[chosen])
            if len({len(row) for row in rows}) != 1 or len(names) != 1 or not rows[0].size:
                return None
            side.append(np.stack(rows))
    return np.stack(sides[0]), np.stack(sides[1])
