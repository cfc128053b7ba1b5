"""Panels of lines side by side: one measure each, one line an arm."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from fortifai.report import style
from fortifai.report.compare import mean_at
from fortifai.report.records import Arm
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


_FAR = 1e4
"""Largest over smallest value from which a linear axis would show nothing but the largest."""


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
        for colour, level in _real_levels(scene, panel, values):
            values.append(level)
            axes.axhline(level, color=colour, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        far = max(values) > _FAR and 0 < min(values) < max(values) / _FAR
        if far or (log and min(values) > 0):
            style.plain_log(axes, values)
        else:
            span = (max(values) - min(values)) * 0.06 or abs(max(values)) * 0.5 or 0.01
            axes.set_ylim(*(whole if share_y else (min(values) - span, max(values) + span)))
            style.few_ticks(axes)
        generations(axes, scene.last, step - 66)
        style.heading(axes, panel.title, f"{panel.unit}, log scale" if far else panel.unit)
        for arm, line in zip(scene.arms, lines, strict=True):
            draw(axes, line, scene.looks[arm.label], size=6.5)
    legend(canvas, scene, extra)
    return canvas, shown


def generations(axes: Any, last: int, width: float) -> None:
    """An axis of whole generations, with as many round numbers as fit into `width` pixels."""
    style.generations(axes, last)
    fits = min(11, max(2, int(width / (style.text_width(str(last), 11) + 12))))
    steps = (n * 10**k for k in range(len(str(last)) + 1) for n in (1, 2, 3, 5))
    step = next(step for step in steps if last // step < fits)
    axes.xaxis.set_major_locator(FixedLocator(list(range(0, last + 1, step))))


def name_column(arms: Sequence[Arm]) -> tuple[float, Mapping[str, str]]:
    """Width in pixels of a column of arms in bold print, and what it shows of each label."""
    shown = {arm.label: style.short(arm.label, 20) for arm in arms}
    return max(90, 18 + max(1.16 * style.text_width(name) for name in shown.values())), shown


def _real_levels(scene: Scene, panel: Panel, drawn: Sequence[float]) -> list[tuple[str, float]]:
    """What real data have, with a colour: one level, or each arm's own where they differ."""
    found = {
        arm.label: level
        for arm in scene.arms
        if panel.real and (level := mean_at(arm, panel.measure, panel.real, 0)) is not None
    }
    if not found:
        return []
    low, high = min(found.values()), max(found.values())
    # lines so close together, one for each arm, would hide one another
    if high - low <= 0.05 * (max([*drawn, high]) - min([*drawn, low])):
        return [(SOFT, next(iter(found.values())))]
    out: dict[str, tuple[str, float]] = {}
    for label, level in found.items():
        out.setdefault(f"{level:.6g}", (scene.looks[label].colour, level))
    return list(out.values())


def _real_name(scene: Scene) -> str:
    return "real text" if scene.unit == "tokens" else f"real {scene.unit}"
