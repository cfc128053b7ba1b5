"""Panels of lines side by side: one measure each, one line an arm."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from matplotlib.lines import Line2D

from fortifai.report import style
from fortifai.report.scene import Scene, draw, legend, legend_height, limits, series
from fortifai.report.style import SOFT, WIDE, Canvas


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """One measure on one text, a line an arm."""

    title: str
    unit: str
    measure: str
    on: str
    real: str = ""
    """Text whose value in generation 0 is drawn as a dashed line: what real text has."""


def panels(
    scene: Scene, wanted: Sequence[Panel], *, log: bool = False, share_y: bool = False
) -> tuple[Canvas, list[Panel]] | None:
    """Panels side by side under one legend; those without numbers are left out."""
    shown = [p for p in wanted if scene.has(p.measure, p.on)]
    if not shown:
        return None
    dashed = Line2D([], [], color=SOFT, linewidth=1.2, linestyle=(0, (4, 3)))
    extra = [(_real_name(scene), dashed)] if any(p.real for p in shown) else []
    top, tall = legend_height(scene, [name for name, _ in extra]), 220
    canvas = Canvas(WIDE, top + tall + 92)
    step = (WIDE - 20) / len(shown)
    whole = limits(scene, [(p.measure, p.on) for p in shown])
    for i, panel in enumerate(shown):
        axes = canvas.axes(52 + step * i, top + 48, step - 66, tall)
        lines = [series(arm, panel.measure, panel.on) for arm in scene.arms]
        values = [v for line in lines for v in (*line.low, *line.high)]
        level = _real_level(scene, panel)
        if level is not None:
            values.append(level)
            axes.axhline(level, color=SOFT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        if log and min(values) > 0:
            style.plain_log(axes, values)
        else:
            span = (max(values) - min(values)) * 0.06 or abs(max(values)) * 0.06 or 0.01
            axes.set_ylim(*(whole if share_y else (min(values) - span, max(values) + span)))
            style.few_ticks(axes)
        style.generations(axes, scene.last)
        style.heading(axes, panel.title, panel.unit)
        for arm, line in zip(scene.arms, lines, strict=True):
            draw(axes, line, scene.looks[arm.label], size=6.5)
    legend(canvas, scene, extra)
    return canvas, shown


def _real_level(scene: Scene, panel: Panel) -> float | None:
    if not panel.real:
        return None
    for arm in scene.arms:
        first = arm.chains[0].at(0)
        value = first.value(panel.measure, panel.real) if first else None
        if value is not None:
            return value
    return None


def _real_name(scene: Scene) -> str:
    return "real text" if scene.unit == "tokens" else f"real {scene.unit}"
