"""Phases of knowledge collapse and rates of decay, for each arm and format, ready to be shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai.evals.phases import Curves, Onset, Phases, phases
from fortifai.report.answers import FormatAnswers
from fortifai.report.records import Arm, Chain, Run
from fortifai.report.text import DASH
from fortifai.stats import Estimate, Ratio, decay_rate, decay_ratio

Row = dict[str, Any]
Floats = NDArray[np.float64]

NAMES: Mapping[str, str] = {
    "multiple_choice": "Multiple choice",
    "few_shot": "Few-shot",
    "short_answer": "Short answer",
    "no_instruction": "No instruction",
}
"""Formats as they are shown."""


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """What all seeds of an arm answered in one format; arrays (seeds, generations, questions).

    Attributes:
        seeds: Which seeds.
        generations: Which generations, those that all of them have.
        ids: Which questions.
        right: Share right.
        adherent: Kept to the format.
        certainty: Probability of the chosen answer.
        chance: What guessing gives.
    """

    seeds: tuple[int, ...]
    generations: tuple[int, ...]
    ids: tuple[str, ...]
    right: Floats
    adherent: Floats
    certainty: Floats
    chance: float


def formats_of(arm: Arm) -> list[str]:
    """The formats that any generation of an arm was asked in."""
    found = (kind for chain in arm.chains for g in chain.generations for kind in g.formats)
    return list(dict.fromkeys(found))


def table(arm: Arm, kind: str, *, seeds: Sequence[int] | None = None) -> Table | None:
    """The answers in one format; None where fewer than two generations have them.

    Args:
        arm: Whose.
        kind: The format.
        seeds: Of these seeds alone; None: of all.
    """
    chains = [c for c in arm.chains if seeds is None or c.seed in seeds]
    found = [_answers(chain, kind) for chain in chains]
    shared = sorted(set.intersection(*(set(rows) for rows in found))) if found else []
    if len(shared) < 2:
        return None
    asked = {rows[g].ids for rows in found for g in shared}
    if len(asked) != 1 or len(next(iter(asked))) < 2:
        return None  # other questions in other generations cannot be paired

    def stacked(what: str) -> Floats:
        return np.array([[getattr(rows[g], what) for g in shared] for rows in found])

    return Table(
        seeds=tuple(chain.seed for chain in chains),
        generations=tuple(shared),
        ids=next(iter(asked)),
        right=stacked("right"),
        adherent=stacked("adherent"),
        certainty=stacked("certainty"),
        chance=found[0][shared[0]].chance,
    )


def _answers(chain: Chain, kind: str) -> dict[int, FormatAnswers]:
    return {g.number: g.formats[kind] for g in chain.generations if kind in g.formats}


@dataclasses.dataclass(frozen=True, slots=True)
class Story:
    """What became of one arm in one format."""

    arm: Arm
    kind: str
    table: Table
    phases: Phases
    rate: Estimate | None
    ratio: Ratio | None


def stories(runs: Sequence[Run]) -> list[Story]:
    """Phases, decay rates and their ratio to the baseline of every arm and format."""
    out = []
    for run in runs:
        for arm in run.arms:
            for kind in formats_of(arm):
                own = table(arm, kind)
                if own is None:
                    continue
                curves = Curves(own.right, own.adherent, own.chance, own.certainty)
                found = phases({kind: curves}, run.rule, generations=own.generations)[kind]
                out.append(
                    Story(arm, kind, own, found, _rate(own), _ratio(arm, run.baseline, kind))
                )
    return out


def _rate(own: Table) -> Estimate | None:
    try:
        return decay_rate(own.right, own.chance, generations=own.generations)
    except ValueError:  # not above chance at generation 0, or fewer than three generations
        return None


def _ratio(arm: Arm, baseline: Arm | None, kind: str) -> Ratio | None:
    if baseline is None or arm.baseline:
        return None
    seeds = [c.seed for c in arm.chains if any(b.seed == c.seed for b in baseline.chains)]
    one, other = (table(a, kind, seeds=seeds) for a in (arm, baseline))
    if not seeds or one is None or other is None or one.ids != other.ids:
        return None
    shared = sorted(set(one.generations) & set(other.generations))
    rights = [
        t.right[:, [t.generations.index(g) for g in shared]][[t.seeds.index(s) for s in seeds]]
        for t in (one, other)
    ]
    try:
        return decay_ratio(rights[0], rights[1], one.chance, generations=shared)
    except ValueError:
        return None


# --- tables -----------------------------------------------------------------------------------


def onset_table(found: Sequence[Story], colours: Mapping[str, str]) -> Row | None:
    """Onsets of the phases, by arm and format."""
    if not found:
        return None
    rows = []
    for story in found:
        t, told = story.table, story.phases
        ends = [_change(x) for x in (t.right, t.adherent, t.certainty)]
        rows.append(
            {
                "label": story.arm.label,
                "colour": colours[story.arm.label],
                "kind": NAMES.get(story.kind, story.kind),
                "cells": [*ends, _onset(told.b), _onset(told.c), _run(told.by_generation)],
                "note": told.note,
            }
        )
    return {"rows": rows, "notes": list(dict.fromkeys(r["note"] for r in rows if r["note"]))}


def _change(values: Floats) -> str:
    means = values.mean((0, 2))
    return f"{means[0]:.2f} → {means[-1]:.2f}"


def _onset(onset: Onset | None) -> Row:
    if onset is None:
        return {"text": DASH, "note": ""}
    last = "open" if onset.high is None else f"{onset.high}"
    return {"text": f"{onset.generation}", "note": f"{onset.low} {DASH} {last}"}


def _run(by_generation: Sequence[str]) -> str:
    return " ".join({"unsure": "u", "unknown": "?"}.get(p, p) for p in by_generation)


def decay_table(found: Sequence[Story], colours: Mapping[str, str]) -> Row | None:
    """Rates at which accuracy decays to chance, and how many times slower than the baseline."""
    known = [story for story in found if story.rate is not None]
    if not known:
        return None
    rows = []
    for story in known:
        assert story.rate is not None
        rate, ratio = story.rate, story.ratio
        rows.append(
            {
                "label": story.arm.label,
                "colour": colours[story.arm.label],
                "kind": NAMES.get(story.kind, story.kind),
                "rate": {"text": f"{rate.value:.3f}", "note": _span(rate.low, rate.high)},
                "ratio": _ratio_cell(ratio, story.arm, _of_baseline(known, story)),
            }
        )
    return {"rows": rows, "over": known[0].rate.over if known[0].rate else ""}


def _of_baseline(known: Sequence[Story], story: Story) -> Estimate | None:
    """The rate of the run's baseline in the same format."""
    for other in known:
        if other.arm.baseline and (other.arm.run, other.kind) == (story.arm.run, story.kind):
            return other.rate
    return None


def _ratio_cell(ratio: Ratio | None, arm: Arm, fast: Estimate | None) -> Row:
    if arm.baseline:
        return {"text": "1", "note": "baseline"}
    if fast is None or fast.low is None or fast.low <= 0:
        # a ratio to a rate that may be 0 says nothing
        return {"text": DASH, "note": "the baseline's decay is not beyond noise"}
    if ratio is None or ratio.value is None:
        return {"text": DASH, "note": "no pair to compare" if ratio is None else "does not decay"}
    if ratio.low is None and ratio.high is None:
        return {"text": f"{ratio.value:.2f}", "note": "any ratio is possible"}
    return {"text": f"{ratio.value:.2f}", "note": _span(ratio.low, ratio.high)}


def _span(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f"from {low:.3g}"
    if low is None:
        return f"up to {high:.3g}"
    return f"{low:.3g} to {high:.3g}"
