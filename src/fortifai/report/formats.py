"""The figure of knowledge by the format that it is asked for in, over the phases of collapse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter

from fortifai.report import style
from fortifai.report.knowledge import NAMES, Story
from fortifai.report.scene import MARKED, Plot, Scene, plot
from fortifai.report.style import CHANCE, SOFT, WIDE, Canvas

_PHASES = {
    "B": ("B: confidently wrong", "#fbe3b3"),
    "C": ("C: format lost", "#f4c4bd"),
    "unsure": ("unsure", "#e3e1dc"),
    "unknown": ("not above chance", "#f0efec"),
}
_CURVES: tuple[tuple[str, str, str, Any, str], ...] = (
    ("right", "accuracy", "#0a5c96", "-", "o"),
    ("adherent", "format adherence", "#b3261e", (0, (5, 2)), "s"),
    ("confidence", "confidence", "#4b7d1f", (0, (1, 1.4)), "^"),
)


def in_formats(scene: Scene) -> Plot | None:
    """Accuracy, adherence and confidence of each arm and format, over bands of the phases."""
    if not scene.stories:
        return None
    arms = list(dict.fromkeys(story.arm.label for story in scene.stories))
    kinds = list(dict.fromkeys(story.kind for story in scene.stories))
    columns, tall, pitch, top = min(4, len(kinds)), 128, 206, 54
    rows = math.ceil(len(kinds) / columns)
    canvas = Canvas(WIDE, top + pitch * len(arms) * rows + 4)
    step = (WIDE - 40) / columns
    for story in scene.stories:
        c, extra = kinds.index(story.kind) % columns, kinds.index(story.kind) // columns
        row = arms.index(story.arm.label) * rows + extra
        axes = canvas.axes(44 + c * step, top + 36 + row * pitch, step - 26, tall)
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        style.generations(axes, story.table.generations[-1], step - 26)
        axes.tick_params(axis="y", labelleft=not c)
        axes.axhline(story.table.chance, color=SOFT, **CHANCE, zorder=1)
        _bands(axes, story)
        _curves(axes, story)
        name = style.short(story.arm.label) if c == 0 else " "
        style.heading(axes, NAMES.get(story.kind, story.kind), name)
    canvas.legend(_entries(scene), left=44, top=14)
    asked = {len(story.table.ids) for story in scene.stories}
    n = f"{min(asked):,}" if len(asked) == 1 else f"{min(asked):,} to {max(asked):,}"
    seeds = max(len(story.table.seeds) for story in scene.stories)
    return plot(
        canvas,
        "formats",
        "Knowledge by the format it is asked for in",
        f"{n} questions in each format. Accuracy: share of questions whose right option the model "
        "finds likeliest. Adherence: share whose greedy answer keeps to the format. Confidence: "
        f"mean probability of the chosen option. Thin lines: each of {seeds} seeds; thick: their "
        "mean. Shaded: generations in phase B or C by the declared rule; unshaded: A, knowledge is "
        "kept.",
        f"Accuracy, first and last generation. {'; '.join(map(_ends, scene.stories))}.",
    )


def _ends(story: Story) -> str:
    means = story.table.right.mean((0, 2))
    kind = NAMES.get(story.kind, story.kind)
    return f"{story.arm.label}, {kind}: {means[0]:.2f} to {means[-1]:.2f}"


def _entries(scene: Scene) -> list[tuple[str, Any]]:
    phases = {p for story in scene.stories for p in story.phases.by_generation}
    curves = [
        (name, Line2D([], [], color=colour, ls=dash, marker=mark, markersize=6, linewidth=2))
        for _, name, colour, dash, mark in _CURVES
    ]
    bands = [
        (name, Patch(color=fill)) for phase, (name, fill) in _PHASES.items() if phase in phases
    ]
    return [*curves, *bands, ("chance", Line2D([], [], color=SOFT, **CHANCE))]


def _bands(axes: Any, story: Story) -> None:
    numbers = np.array(story.table.generations, dtype=float)
    left, right = axes.get_xlim()
    edges = np.concatenate([[left], (numbers[1:] + numbers[:-1]) / 2, [right]])
    for i, phase in enumerate(story.phases.by_generation):
        if phase in _PHASES:
            axes.axvspan(edges[i], edges[i + 1], color=_PHASES[phase][1], zorder=0, lw=0)


def _curves(axes: Any, story: Story) -> None:
    x = story.table.generations
    for what, _, colour, dash, mark in _CURVES:
        values = getattr(story.table, what).mean(2)
        for row in values if len(values) > 1 else ():
            axes.plot(x, row, color=colour, linewidth=0.7, alpha=0.45, zorder=3)
        axes.plot(
            x,
            values.mean(0),
            color=colour,
            linestyle=dash,
            marker=mark if len(x) <= MARKED else None,
            markersize=5,
            markeredgecolor="#ffffff",
            markeredgewidth=0.6,
            linewidth=2,
            zorder=4,
            clip_on=False,
        )
