"""Published benchmarks by generation: one panel a benchmark, one line an arm."""

from __future__ import annotations

import math

from fortifai.report import style
from fortifai.report.panels import generations
from fortifai.report.scene import Plot, Scene, draw, legend, legend_height, limits, plot, series
from fortifai.report.style import SOFT, WIDE, Canvas

PREFERRED = ("acc_norm", "acc", "exact_match")
"""Of several metrics, the one that is usually published first."""

MOST = 12
"""Panels; what more there is stands in ``scores.jsonl``."""


OWN = frozenset({"train"})
"""What measures that are no benchmarks are named after and taken on."""


def benchmarks(scene: Scene) -> Plot | None:
    """Each benchmark's first metric, with what guessing would give; its tasks are not drawn."""
    shown = _shown(scene)
    if not shown:
        return None
    top, tall = legend_height(scene), 170
    columns = min(3, len(shown))
    canvas = Canvas(WIDE, top + math.ceil(len(shown) / columns) * (tall + 92) + 4)
    step = (WIDE - 20) / columns
    for i, what in enumerate(shown):
        left, down = 52 + step * (i % columns), top + 48 + (i // columns) * (tall + 92)
        axes = canvas.axes(left, down, step - 66, tall)
        chance = _chance(scene, what)
        axes.set_ylim(*limits(scene, [what], [] if chance is None else [chance]))
        if chance is not None:
            axes.axhline(chance, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        style.few_ticks(axes, 4)
        generations(axes, scene.last, step - 66)
        measure, on = what
        metric = measure.removeprefix(f"{on}.")
        style.heading(axes, style.short(on), f"{metric}, n = {scene.counts(*what)}")
        for arm in scene.arms:
            draw(axes, series(arm, *what), scene.looks[arm.label], size=5.5)
    legend(canvas, scene)
    names = ", ".join(on for _, on in shown)
    return plot(
        canvas,
        "benchmarks",
        "Published benchmarks",
        f"{names}: asked and counted by lm-evaluation-harness. Dashes: what guessing "
        f"gives, where answers are chosen. {scene.seeds_said()}",
    )


def _shown(scene: Scene) -> list[tuple[str, str]]:
    """The measure to draw of each benchmark on the whole of it, in the order they were taken."""
    found: dict[str, list[str]] = {}
    for arm in scene.arms:
        for chain in arm.chains:
            for generation in chain.generations:
                for measure, on in generation.scores:
                    if measure.startswith(f"{on}.") and on not in OWN:
                        found.setdefault(on, []).append(measure)
    return [(_first(on, measures), on) for on, measures in found.items()][:MOST]


def _first(on: str, measures: list[str]) -> str:
    for metric in PREFERRED:
        for measure in measures:
            if measure == f"{on}.{metric}" or measure.startswith(f"{on}.{metric}."):
                return measure
    return measures[0]


def _chance(scene: Scene, what: tuple[str, str]) -> float | None:
    for arm in scene.arms:
        for chain in arm.chains:
            for generation in chain.generations:
                if what in generation.scores:
                    return generation.scores[what].chance
    return None
