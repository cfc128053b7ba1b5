"""What the template of a report is given: plain words, tables and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fortifai.lab.budget import Spent
from fortifai.report import knowledge, style, words
from fortifai.report.compare import (
    Difference,
    Pairs,
    differences,
    last_of,
    mean_at,
    to_baseline,
    to_first_run,
)
from fortifai.report.distributions import ledgers
from fortifai.report.failure import Failures
from fortifai.report.names import describe, headlines
from fortifai.report.numbers import number, signed, span
from fortifai.report.page import Row, table
from fortifai.report.passages import places
from fortifai.report.records import Arm, Key, Run
from fortifai.report.scene import Plot, Scene
from fortifai.report.text import DASH, TIMES
from fortifai.stats import Estimate

CURRENCIES = tuple(field.name for field in dataclasses.fields(Spent))
COLUMNS = 3
"""Scores that the summary has room for; each is told twice."""


def context(scene: Scene, plots: Sequence[Plot], failures: Failures) -> dict[str, Any]:
    """The values that ``template.html.j2`` names.

    Args:
        scene: Runs, arms and their looks.
        plots: The figures.
        failures: Times to failure.
    """
    runs = scene.runs
    return {
        "title": ", ".join(run.label for run in runs),
        "state": words.state(runs),
        "headline": words.headline(runs),
        "stories": [_story(scene, run) for run in runs],
        "method": words.method(runs),
        "tables": [
            _summary(scene, failures),
            *([_failure_table(scene, failures)] if failures.levels else []),
            *_difference_tables(scene),
            *_cost_table(scene),
            *_time_table(scene),
            *knowledge.tables(scene.stories, _colours(scene)),
        ],
        "unit": scene.unit,
        "plots": plots,
        "passages": _passages(scene),
        "passage_seed": _followed(scene.arms),
        "ledgers": _ledger_tables(scene.arms),
        "made": [_made(run) for run in runs],
    }


def _colours(scene: Scene) -> dict[str, str]:
    return {label: look.colour for label, look in scene.looks.items()}


def _named(scene: Scene, arm: Arm) -> Row:
    return {"label": arm.label, "colour": scene.looks[arm.label].colour}


def _story(scene: Scene, run: Run) -> Row:
    arms = sorted(run.arms, key=lambda arm: not arm.baseline)
    lines = [_named(scene, arm) | {"text": words.sentence(run, arm)} for arm in arms]
    return {"run": run.label, "verdicts": words.verdicts(run), "lines": lines}


# --- summary ----------------------------------------------------------------------------------


def _summary(scene: Scene, failures: Failures) -> Row:
    """The first headlines that there are numbers for, and the first level of failure."""
    told = {key: form for key, form in headlines(scene.measures).items() if scene.has(key)}
    keys = list(told)[:COLUMNS]
    over = [("", 2), *((describe(scene.measures, key), 2) for key in keys)]
    head = ["arm", f"gen.\u00a0{TIMES} seeds", *["first", "last"] * len(keys)]
    if failures.levels:
        over, head = [*over, (failures.levels[0], 1)], [*head, "generations, ratio"]
    rows = []
    for arm in scene.arms:
        cells: list[Any] = [_extent(arm)]
        cells += [_cell(arm, k, g, told[k]) for k in keys for g in (0, last_of(arm, k))]
        if failures.levels:
            time, ratio = failures.cells[arm.label][0]
            note = ratio["note"]
            if not arm.baseline and ratio["text"] != DASH:
                note = f"{TIMES} {ratio['text']}{f' ({note})' if note else ''}"
            cells.append({"text": time["text"], "note": note})
        rows.append(_named(scene, arm) | {"cells": cells})
    small = (
        "the lowest and highest seed"
        if scene.seeds > 1
        else "half the 95\u00a0% interval over what was measured, where there is one"
    )
    note = (
        f"Means over seeds; small: {small}. First: generation 0, which trained on the real first "
        "split. Last: the last generation that all seeds of the arm have finished."
    )
    return table("summary", "Summary", rows, head=head, over=over, note=note)


def _cell(arm: Arm, key: Key, generation: int | None, form: str) -> Row:
    value = None if generation is None else mean_at(arm, key, generation)
    if generation is None or value is None:
        return {"text": DASH, "note": ""}
    scores, note = arm.scores(key, generation), ""
    if len(scores) > 1:
        note = span(min(s.value for s in scores), max(s.value for s in scores), form)
    elif scores[0].stderr is not None:
        note = f"± {number(1.96 * scores[0].stderr, form)}"
    return {"text": number(value, form), "note": note}


def _extent(arm: Arm) -> str:
    lengths = {len(chain.generations) for chain in arm.chains}
    low, high = min(lengths), max(lengths)
    return f"{low if low == high else f'{low} to {high}'} {TIMES} {len(arm.chains)}"


# --- failure and differences ------------------------------------------------------------------


def _failure_table(scene: Scene, failures: Failures) -> Row:
    return table(
        "failure",
        "Time to failure",
        [
            _named(scene, arm) | {"cells": [c for pair in failures.cells[arm.label] for c in pair]}
            for arm in scene.arms
        ],
        head=["arm", *["generations", "ratio to baseline"] * len(failures.levels)],
        over=[("", 1), *((level, 2) for level in failures.levels)],
        intro="Generations until a measure crosses its level, read off a straight line between the "
        "generation before and the one after. An arm that did not cross is shown as “> ” its last "
        "generation.",
        note=failures.note,
    )


def _difference_tables(scene: Scene) -> list[Row]:
    """Each arm against its run's baseline, and against its namesake in the first run."""
    baselines = [to_baseline(run) for run in scene.runs]
    return [
        *_difference_table(
            scene,
            "differences",
            "Differences to the baseline",
            "Each arm's share of right answers minus the baseline's, on the same seeds and the "
            "same questions, at the last generation that both have.",
            baselines,
        ),
        *_difference_table(
            scene,
            "between-runs",
            "Differences between runs",
            "Each arm's share of right answers minus that of the arm of the same name in "
            f"{scene.runs[0].label}, on the seeds and questions that both have.",
            [to_first_run(scene.runs)],
        ),
    ]


def _difference_table(
    scene: Scene, name: str, title: str, intro: str, compared: Sequence[Pairs]
) -> list[Row]:
    """The first split's questions, and all of them; no table where nothing can be compared."""
    columns: tuple[tuple[str, int | None], ...] = (("KR, first split", 0), ("KR, all splits", None))
    found = [
        {one.arm: one for pairs in compared for one in differences(pairs, split)}
        for _, split in columns
    ]
    rows = [
        _named(scene, arm)
        | {"cells": [text for column in found for text in _difference(column.get(arm.label))]}
        for arm in scene.arms
        if any(arm.label in column for column in found)
    ]
    arms = (
        "The arms: interval over seeds and questions, what other seeds would give. With two or "
        "three seeds only large differences are statistically significant."
        if scene.seeds > 1
        else "There is one seed: no interval here says what another would give."
    )
    made = table(
        name,
        title,
        rows,
        head=["arm", *["gen.", "difference", "95\u00a0%, the arms", "these models", "p"] * 2],
        over=[("", 1), *((title, 5) for title, _ in columns)],
        intro=intro,
        note=f"{arms} These models: interval over questions alone. Each interval is of one "
        "difference. p: two-sided, that the arms are equal, after Holm's correction over the arms "
        f"of {'a run' if len(compared) == len(scene.runs) else 'all runs'} in this column; under "
        "0.05 a difference may be claimed however many arms there are.",
    )
    return [made] if rows else []


def _difference(found: Difference | None) -> list[str]:
    """Generation, difference, both intervals and p."""
    if found is None:
        return [DASH] * 5
    p = found.corrected
    return [
        str(found.generation),
        signed(found.gap.value, 3),
        _interval(found.gap),
        _interval(found.these),
        DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
    ]


def _interval(gap: Estimate) -> str:
    if gap.low is None or gap.high is None:
        return DASH
    return f"{signed(gap.low, 3)} to {signed(gap.high, 3)}"


def _cost_table(scene: Scene) -> list[Row]:
    """What a generation of each arm cost, of the runs that have counted it."""
    rows = []
    for arm in scene.arms:
        spent = [
            g.ledger["spent"] for c in arm.chains for g in c.generations if "spent" in g.ledger
        ]
        if spent:
            means = (sum(one[what] for one in spent) / len(spent) for what in CURRENCIES)
            rows.append(_named(scene, arm) | {"cells": [f"{mean:,.0f}" for mean in means]})
    made = table(
        "cost",
        "Cost",
        rows,
        head=["arm", *CURRENCIES],
        over=[("", 1), (f"{scene.unit} a generation", len(CURRENCIES))],
        note="Means over the generations that were measured, and seeds. Trained: updates times "
        "batch. Scored: read for their probabilities, by cures, fitted thresholds and the choice "
        "of a checkpoint; what measuring reads is the same for all arms and not counted.",
    )
    return [made] if rows else []


def _time_table(scene: Scene) -> list[Row]:
    """How long a generation of each arm took, and its parts, of the runs that wrote it down."""
    took = {
        arm.label: [g.took for c in arm.chains for g in c.generations if g.took]
        for arm in scene.arms
    }
    stages = list(dict.fromkeys(s for many in took.values() for one in many for s in one.stages))
    rows = []
    for arm in scene.arms:
        if many := took[arm.label]:
            n, seconds = (
                sum(v) for v in zip(*((t.generations, t.seconds) for t in many), strict=True)
            )
            parts = [sum(t.stages.get(stage, 0.0) for t in many) for stage in stages]
            cells = [f"{seconds / n:,.1f}", f"{sum(t.processor_seconds for t in many) / n:,.1f}"]
            shares = [f"{part / seconds:.0%}" for part in [*parts, seconds - sum(parts)]]
            rows.append(_named(scene, arm) | {"cells": [*cells, *shares]})
    made = table(
        "time",
        "Time",
        rows,
        head=["arm", "by the clock", "of processors", *stages, "other"],
        over=[("", 1), ("seconds a generation", 2), ("share of the clock's", len(stages) + 1)],
        note="Means over generations and seeds, on the machine of the run and beside whatever else "
        "it did. Other: reading, setting up and saving.",
    )
    return [made] if rows else []


# --- passages, ledger, settings ---------------------------------------------------------------


def _followed(arms: Sequence[Arm]) -> int:
    """The seed whose passages are shown: the smallest."""
    return min(chain.seed for arm in arms for chain in arm.chains)


def _passages(scene: Scene) -> list[Row]:
    """Each followed place of each run, with what one seed of each arm made of it."""
    seed, out = _followed(scene.arms), []
    for place in places(scene):
        arms = []
        for arm in dict.fromkeys(version.arm.label for version in place.versions):
            found = [version for version in place.versions if version.arm.label == arm]
            shown = seed if any(version.seed == seed for version in found) else found[0].seed
            rows = [
                {
                    "times": f"generated {version.times}{TIMES}",
                    "changed": f"{version.changed:.0%} changed",
                    "pieces": version.pieces,
                }
                for version in found
                if version.seed == shown
            ]
            arms.append(_named(scene, found[0].arm) | {"rows": rows})
        out.append({"title": place.title, "real": place.real, "arms": arms})
    return out


def _ledger_tables(arms: Sequence[Arm]) -> list[Row]:
    return [
        table(
            f"ledger-{i}",
            ", ".join(labels),
            [
                {
                    "label": str(row.generation),
                    "colour": "",
                    "cells": [
                        *(f"{n:,}" for n in (row.real, row.total - row.real, row.total)),
                        f"{row.real_share:.0%}",
                    ],
                }
                for row in style.thinned(rows, 12)
            ],
            head=["generation", "real", "generated", "all", "real share"],
        )
        for i, (labels, rows) in enumerate(ledgers(arms).items(), start=1)
    ]


def _made(run: Run) -> Row:
    facts = [("fortifai", str(run.head.get("version", "unknown")))]
    for key in ("versions", "machine"):
        told = run.head.get(key)
        if isinstance(told, Mapping):
            facts += [(str(name).replace("_", " "), str(value)) for name, value in told.items()]
    return {"label": run.label, "notes": run.notes, "facts": facts, "yaml": run.yaml}
