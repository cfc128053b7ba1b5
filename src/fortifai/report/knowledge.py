"""Phases of knowledge collapse and rates of decay, for each arm and format, ready to be shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fortifai.evals.phases import Curves, Onset, Phases, phases
from fortifai.report.numbers import span
from fortifai.report.page import Row, table
from fortifai.report.records import Arm, Chain, Floats, FormatAnswers, Run
from fortifai.report.text import DASH, MINUS
from fortifai.stats import Estimate, Ratio, decay_rate, decay_ratio

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
        confidence: Probability of the chosen answer.
        chance: What guessing gives.
    """

    seeds: tuple[int, ...]
    generations: tuple[int, ...]
    ids: tuple[str, ...]
    right: Floats
    adherent: Floats
    confidence: Floats
    chance: float


def formats_of(arm: Arm) -> list[str]:
    """The formats that any generation of an arm was asked in."""
    found = (kind for chain in arm.chains for g in chain.generations for kind in g.formats)
    return list(dict.fromkeys(found))


def answers_of(arm: Arm, kind: str, *, seeds: Sequence[int] | None = None) -> Table | None:
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
        confidence=stacked("confidence"),
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
                own = answers_of(arm, kind)
                if own is None:
                    continue
                curves = Curves(own.right, own.adherent, own.chance, own.confidence)
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
    one, other = (answers_of(a, kind, seeds=seeds) for a in (arm, baseline))
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


def tables(found: Sequence[Story], colours: Mapping[str, str]) -> list[Row]:
    """Onsets of the phases and rates of decay, by arm and format."""
    if not found:
        return []
    phases_of = table(
        "phases",
        "Phases of knowledge collapse",
        [_named(story, colours, *map(_change, _curves(story)), *_onsets(story)) for story in found],
        head=[
            "arm",
            "format",
            "accuracy",
            "adherence",
            "confidence",
            "onset of B",
            "onset of C",
            "generation by generation",
        ],
        intro="A: knowledge is kept. B: it is lost while answers keep their format and confidence "
        "(confidently wrong). C: the format is lost. An onset is claimed only where the loss is "
        "statistically significant; small: the generations it may lie at.",
        note="Accuracy, adherence and confidence: first and last generation, mean over seeds and "
        "questions. u: unsure, accuracy and confidence are both lost; ?: generation 0 does not "
        "answer above chance.",
    )
    known = [(story, story.rate) for story in found if story.rate is not None]
    decays = table(
        "decay",
        "Decay of knowledge",
        [
            _named(
                story,
                colours,
                {"text": f"{rate.value:.3f}", "note": span(rate.low, rate.high, ".3g")},
                _ratio_cell(story.ratio, story.arm, _of_baseline(known, story)),
            )
            for story, rate in known
        ],
        head=["arm", "format", "rate", "times slower"],
        intro=f"Rate k at which accuracy decays to chance, chance + A exp({MINUS}k g) by least "
        "squares, per generation, and how many times slower than the baseline: the baseline's rate "
        "over the arm's.",
        note=f"Small: 95\u00a0% intervals over {known[0][1].over if known else ''}.",
    )
    return [phases_of, decays] if known else [phases_of]


def _named(story: Story, colours: Mapping[str, str], *cells: Any) -> Row:
    kind = NAMES.get(story.kind, story.kind)
    label = story.arm.label
    return {"label": label, "colour": colours[label], "cells": [kind, *cells]}


def _curves(story: Story) -> tuple[Floats, ...]:
    return story.table.right, story.table.adherent, story.table.confidence


def _onsets(story: Story) -> list[Any]:
    told = story.phases
    return [_onset(told.b), _onset(told.c), _run(told.by_generation)]


def _change(values: Floats) -> str:
    means = values.mean((0, 2))
    return f"{means[0]:.2f} → {means[-1]:.2f}"


def _onset(onset: Onset | None) -> Row:
    if onset is None:
        return {"text": DASH, "note": ""}
    note = f"from {onset.low}" if onset.high is None else f"{onset.low} to {onset.high}"
    return {"text": f"{onset.generation}", "note": note}


def _run(by_generation: Sequence[str]) -> str:
    return " ".join({"unsure": "u", "unknown": "?"}.get(p, p) for p in by_generation)


def _of_baseline(known: Sequence[tuple[Story, Estimate]], story: Story) -> Estimate | None:
    """The rate of the run's baseline in the same format."""
    place = (story.arm.run, story.kind)
    of = (r for s, r in known if s.arm.baseline and (s.arm.run, s.kind) == place)
    return next(of, None)


def _ratio_cell(ratio: Ratio | None, arm: Arm, fast: Estimate | None) -> Row:
    if arm.baseline:
        return {"text": "1", "note": "baseline"}
    if fast is None or fast.low is None or fast.low <= 0:
        # a ratio to a rate that may be 0 says nothing
        return {"text": DASH, "note": "the baseline's decay is not statistically significant"}
    if ratio is None or ratio.value is None:
        return {"text": DASH, "note": "no pair to compare" if ratio is None else "does not decay"}
    if ratio.low is None and ratio.high is None:
        return {"text": f"{ratio.value:.2f}", "note": "any ratio is possible"}
    return {"text": f"{ratio.value:.2f}", "note": span(ratio.low, ratio.high, ".3g")}
