"""Times to failure of every arm at every declared level, ready to be shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fortifai.lab.measures import About
from fortifai.lab.spec import FailureLevel
from fortifai.report.compare import pairs_of, shared
from fortifai.report.names import describe
from fortifai.report.numbers import span
from fortifai.report.records import KR, Arm, Chain, Floats, Key, Run
from fortifai.report.text import DASH
from fortifai.stats import (
    Ratio,
    TimesFirst,
    TimeToFailure,
    ratio_to_baseline,
    time_to_failure,
)

Cell = dict[str, Any]

_NOTE = (
    "Generations: mean over seeds; small: the lowest and highest seed. Ratio: mean time of the arm "
    "over mean time of its run's baseline, on the seeds and generations that both have; small: "
    "95\u00a0% interval (Fieller's, by Student's t) over seeds, and over questions where there are "
    "any, both arms paired. With two or three seeds it is wide, as little is then known of others. "
    "A ratio after “>” or “<” is a bound, because one of the two did not fail within the run; "
    "“from” leaves the upper end open. Half of the gain over chance is counted from each seed's "
    "own generation 0."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Failures:
    """Times to failure.

    Attributes:
        levels: The declared levels in words.
        cells: By arm, one pair a level: generations until failure, and the ratio to the baseline.
        drawn: By score, the first absolute level that is declared of it, and the mean time to
            failure there of the arms that reached it in every seed.
        unmeasured: Levels that no seed of any arm can be held to, each with the reason.
        note: How the intervals are made.
    """

    levels: Sequence[str]
    cells: Mapping[str, Sequence[tuple[Cell, Cell]]]
    drawn: Mapping[Key, tuple[float, Mapping[str, float]]]
    unmeasured: Sequence[str] = ()
    note: str = _NOTE


def failures(runs: Sequence[Run]) -> Failures:
    """Times to failure at every level that any of the runs declares, and ratios to its baseline."""
    levels = list(dict.fromkeys(level for run in runs for level in run.levels))
    arms = [(run, arm) for run in runs for arm in run.arms]
    measures = [measure for run in runs for measure in run.measures]
    drawn: dict[Key, tuple[float, Mapping[str, float]]] = {}
    for level in levels:
        if isinstance(level.level, float):
            times = {arm.label: times_of(arm, level) for _, arm in arms}
            crossings = {
                label: float(np.mean([time.stage for time in found]))
                for label, found in times.items()
                if found and not any(time.censored for time in found)
            }
            drawn.setdefault((level.measure, level.on), (level.level, crossings))
    return Failures(
        levels=[in_words(level, measures) for level in levels],
        cells={
            arm.label: [(_time_cell(arm, v), _ratio_cell(arm, run.baseline, v)) for v in levels]
            for run, arm in arms
        },
        drawn=drawn,
        unmeasured=[why for level in levels if (why := _unmeasured(arms, level))],
    )


def _unmeasured(arms: Sequence[tuple[Run, Arm]], level: FailureLevel) -> str | None:
    if any(times_of(arm, level) for _, arm in arms):
        return None
    found = [g.scores for _, arm in arms for chain in arm.chains for g in chain.generations]
    on = sorted({on for scores in found for measure, on in scores if measure == level.measure})
    told = f"time_to_failure of {level.measure} on {level.on} is not told"
    if level.on not in on:
        there = f"it was measured on {', '.join(on)}" if on else "it was not measured"
        return f"{told}: {there}"
    return f"{told}: half_gain counts from what guessing gives, which {level.measure} has not"


def in_words(level: FailureLevel, measures: Sequence[About]) -> str:
    """A level in words, such as "Knowledge Retention, first split < 0.75"."""
    name = describe(measures, (level.measure, level.on))
    sign = "<" if level.direction == "below" else ">"
    if isinstance(level.level, TimesFirst):
        return f"{name} {sign} {level.level.times_first:g} times generation 0's"
    if isinstance(level.level, str):
        return f"{name}: half of the gain lost"
    return f"{name} {sign} {level.level:g}"


# --- times ------------------------------------------------------------------------------------


def _chance(chain: Chain, level: FailureLevel) -> float | None:
    score = chain.generations[0].scores.get((level.measure, level.on))
    return score.chance if score else None


def times_of(arm: Arm, level: FailureLevel) -> list[TimeToFailure]:
    """Of the seeds that have the measure; empty where none has."""
    out = []
    for chain in arm.chains:
        values, chance = chain.values((level.measure, level.on)), _chance(chain, level)
        if not values or (isinstance(level.level, str) and chance is None):
            continue
        due = chain.due[: len(values)]
        out.append(
            time_to_failure(values, level.level, level.direction, chance=chance, generations=due)
        )
    return out


def _time_cell(arm: Arm, level: FailureLevel) -> Cell:
    times = times_of(arm, level)
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
    return {"text": f"{mean:.2f}", "note": span(low, high, ".2f") if len(times) > 1 else ""}


# --- ratios -----------------------------------------------------------------------------------


def _ratio_cell(arm: Arm, baseline: Arm | None, level: FailureLevel) -> Cell:
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
    # a bound leaves one end open; a lower end of 0 without an upper one says nothing
    low = None if found.bound == "upper" or (not found.low and found.high is None) else found.low
    high = None if found.bound == "lower" else found.high
    return {"text": f"{sign}{found.value:.2f}", "note": span(low, high, ".2f")}


def ratio(arm: Arm, baseline: Arm, level: FailureLevel) -> Ratio | None:
    """Ratio of times to failure on the seeds and generations that both arms have.

    For KR on a split the questions' answers go in, so that the interval speaks of them too.
    """
    pairs, key = pairs_of(arm, baseline), (level.measure, level.on)
    chance = _chance(pairs[0][0], level) if pairs else None
    numbers = shared([chain for pair in pairs for chain in pair], key)
    length = len(numbers)
    if not length or (isinstance(level.level, str) and chance is None):
        return None
    tables: list[Floats] = [
        np.array([pair[side].values(key)[:length] for pair in pairs]) for side in (0, 1)
    ]
    if level.measure == KR and level.on.startswith("split-"):
        asked = _asked(pairs, int(level.on.removeprefix("split-")), length)
        tables = list(asked) if asked is not None else tables
    return ratio_to_baseline(
        tables[0],
        tables[1],
        level.level,
        level.direction,
        chance=chance,
        generations=numbers,
    )


def _asked(
    pairs: Sequence[tuple[Chain, Chain]], split: int, length: int
) -> tuple[Floats, Floats] | None:
    """Answers (seeds, generations, questions) of both arms, or None where they are not kept.

    The questions must be the same ones throughout: only then are the draws paired.
    """
    sides: tuple[list[Floats], list[Floats]] = ([], [])
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
