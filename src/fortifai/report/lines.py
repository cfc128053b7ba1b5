"""The figures that are lines by generation: one panel a score, one line an arm."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from fortifai.lab.measures import About, Line
from fortifai.report import style
from fortifai.report.compare import mean_at
from fortifai.report.names import describe, lines_of
from fortifai.report.numbers import number
from fortifai.report.records import FIRST, KR, Key, generations
from fortifai.report.scene import (
    Curve,
    Panel,
    Plot,
    Scene,
    Series,
    draw,
    legend,
    legend_height,
    plot,
    series,
)
from fortifai.report.style import CHANCE, REAL, SOFT, WIDE, Canvas

PREDICTED = ("variance.ratio", "model")
"""What theory predicts, where it does."""
METRICS = ("acc_norm", "acc", "exact_match")
"""Of several metrics of a published benchmark, the one that is usually published first."""
BENCHMARKS = 12
"""Panels of published benchmarks; what more there is stands in ``scores.jsonl``."""
FAILED = "#b3261e"
"""Colour of a level of failure."""
FAR = 1e4
"""Largest over smallest value from which a linear axis would show nothing but the largest."""

Told = tuple[About, Line]


def by_panel(scene: Scene) -> list[Plot]:
    """A figure for each panel that the measures name, in their order, of what does not lead."""
    found: dict[str, list[Told]] = {}
    for measure in scene.measures:
        lines = [*lines_of(measure, scene.arms), *_benchmarks(scene, measure)]
        shown = [line for line in lines if scene.has(_key(line)) and _key(line) not in scene.leads]
        found.setdefault(measure.panel, []).extend((measure, line) for line in shown)
    return [_panel_figure(scene, panel, told) for panel, told in found.items() if told]


def slug(title: str) -> str:
    """A name for a file: the words of a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "figure"


def _key(line: Line) -> Key:
    return line.score, line.on


# --- one panel --------------------------------------------------------------------------------


def _panel(scene: Scene, told: Told) -> Panel:
    """The arms' lines of one score, what real data have, and chance."""
    measure, line = told
    lines = {arm.label: series(arm, _key(line)) for arm in scene.arms}
    values = [v for found in lines.values() for v in (*found.low, *found.high)]
    real = "real text" if scene.unit == "tokens" else f"real {scene.unit}"
    curves = [
        dataclasses.replace(_level(scene, real, level, REAL, colour), arm=arm)
        for arm, colour, level in _real_levels(scene, line, values)
    ]
    chance = scene.chance(_key(line))
    if chance is not None:
        curves.append(_level(scene, "chance", chance, CHANCE))
    values += [curve.y[0] for curve in curves]
    log = measure.log or max(values) > min(values) * FAR
    unit = line.unit or measure.unit
    return Panel(line.title, unit, _key(line), log and min(values) > 0, lines, curves)


def _level(
    scene: Scene, name: str, level: float, how: Mapping[str, Any], colour: str = SOFT
) -> Curve:
    return Curve(name, (0, scene.last), (level, level), colour, how)


def _draw(axes: Any, scene: Scene, panel: Panel, width: float) -> None:
    """Draw a panel whose curves are levels; size the axes."""
    values = [v for line in panel.lines.values() for v in (*line.low, *line.high)]
    for curve in panel.curves:
        values.append(curve.y[0])
        axes.axhline(curve.y[0], color=curve.colour, **curve.how, zorder=1)
    low, high = min(values), max(values)
    if panel.log:
        style.plain_log(axes, values)
    else:
        margin = (high - low) * 0.06 or abs(high) * 0.5 or 0.01
        axes.set_ylim(low - margin, high + margin)
        style.few_ticks(axes)
    style.generations(axes, scene.last, width)
    if panel.unseen is not None:
        left, right = axes.get_xlim()
        axes.axvspan(left, min(panel.unseen, right), color="#f0efec", zorder=0, lw=0)
    unit = f"{panel.unit}, log scale".lstrip(", ") if panel.log else panel.unit
    style.heading(axes, panel.title, unit)
    for arm in scene.arms:
        draw(axes, panel.lines[arm.label], scene.looks[arm.label], size=6.5)


def _real_levels(scene: Scene, line: Line, drawn: Sequence[float]) -> list[tuple[str, str, float]]:
    """What real data have, with arm and colour: one level, or each arm's own where they differ."""
    found = {
        arm.label: level
        for arm in scene.arms
        if line.real and (level := mean_at(arm, (line.score, line.real), 0)) is not None
    }
    if not found:
        return []
    low, high = min(found.values()), max(found.values())
    # lines so close together, one for each arm, would hide one another
    if high - low <= 0.05 * (max([*drawn, high]) - min([*drawn, low])):
        return [("", SOFT, next(iter(found.values())))]
    out: dict[str, tuple[str, str, float]] = {}
    for label, level in found.items():
        out.setdefault(f"{level:.6g}", (label, scene.looks[label].colour, level))
    return list(out.values())


def _extra(panels: Sequence[Panel]) -> list[tuple[str, Any]]:
    """A legend's entries for what is drawn besides the arms."""
    found = {curve.name: curve.how for panel in panels for curve in panel.curves}
    return [(name, Line2D([], [], color=SOFT, **how)) for name, how in found.items()]


def _alt(panels: Sequence[Panel]) -> str:
    """What is to be seen: where each line begins and ends."""
    told = [
        f"{panel.title}: "
        + ", ".join(
            f"{label} {number(line.mean[0])} to {number(line.mean[-1])}"
            for label, line in panel.lines.items()
            if line.x
        )
        for panel in panels
    ]
    return f"Lines by generation; the first and the last value. {'; '.join(told)}."


# --- many panels ------------------------------------------------------------------------------


def _panels(
    scene: Scene, panels: Sequence[Panel], *, columns: int = 4, share: bool = False
) -> Canvas:
    """Panels in rows under one legend, with one y axis for all if `share`."""
    extra = _extra(panels)
    top, tall, pitch = legend_height(scene, extra), 200, 292
    # as many in every row as may be: of six, three and three rather than five and one
    rows = math.ceil(len(panels) / columns)
    columns = max(2, math.ceil(len(panels) / rows))
    canvas = Canvas(WIDE, top + pitch * math.ceil(len(panels) / columns) - 4)
    step = (WIDE - 20) / columns
    for i, panel in enumerate(panels):
        left, down = 52 + step * (i % columns), top + 48 + i // columns * pitch
        _draw(canvas.axes(left, down, step - 66, tall), scene, panel, step - 66)
    limits = np.array([axes.get_ylim() for axes in canvas.figure.axes])
    for axes in canvas.figure.axes if share else ():
        axes.set_ylim(limits.min(), limits.max())
    legend(canvas, scene, extra)
    return canvas


def _panel_figure(scene: Scene, panel: str, told: Sequence[Told]) -> Plot:
    """The lines of the measures that share a panel's name."""
    columns = 3 if len(told) in (3, 5, 6, 9) else 4
    said = []
    for measure in dict.fromkeys(measure for measure, _ in told):
        n = scene.counts([_key(line) for owner, line in told if owner == measure])
        better = f" {measure.direction.capitalize()} is better." * (measure.direction != "none")
        said.append(f"{measure.title}: {measure.caption.rstrip('.')} (n = {n}).{better}")
    scales = "Scales differ. " if len(told) > 1 else ""
    caption = f"{' '.join(said)} {scales}{scene.seeds_said()}"
    panels = [_panel(scene, one) for one in told]
    canvas = _panels(scene, panels, columns=columns)
    return plot(canvas, slug(panel), panel, caption, _alt(panels), panels)


def splits_figure(scene: Scene) -> Plot | None:
    """KR on each split by generation, one panel a split."""
    on = {on for g in generations(scene.arms) for score, on in g.scores if score == KR}
    splits = sorted(int(name[6:]) for name in on if re.fullmatch(r"split-\d+", name))
    owner = next((measure for measure in scene.measures if measure.owns(KR)), None)
    if len(splits) < 2 or owner is None:
        return None
    panels = []
    for k in splits:
        found, edge = _panel(scene, (owner, Line(f"Split {k}", KR, f"split-{k}"))), None
        if (first := _first_seen(scene, k)) > 0:
            edge = first - 0.5
        panels.append(dataclasses.replace(found, unseen=edge))
    canvas = _panels(scene, panels, columns=5, share=True)
    limits = canvas.figure.axes[0].get_ylim()
    return plot(
        canvas,
        "splits",
        f"{owner.title} by split",
        "Share of a split's questions answered rightly. Grey: generations that had not yet trained "
        f"on any form of the split. {scene.seeds_said()}",
        _alt(panels),
        [dataclasses.replace(panel, limits=limits) for panel in panels],
    )


def _first_seen(scene: Scene, split: int) -> int:
    """The first generation of any arm that trained on a split, in whatever form."""
    trained = (
        g.number
        for g in generations(scene.arms)
        if any(int(part["split"]) == split for part in g.ledger.get("parts", ()))
    )
    return min(trained, default=scene.last + 1)


def _benchmarks(scene: Scene, measure: About) -> list[Line]:
    """Of each published benchmark the first metric on the whole of it; its tasks are not drawn."""
    found: dict[str, list[str]] = {}
    for score, on in dict.fromkeys(key for g in generations(scene.arms) for key in g.scores):
        if measure.name == "benchmark" and score.startswith(f"benchmark.{on}."):
            found.setdefault(on, []).append(score)
    out = []
    for on, scores in found.items():
        metrics = {score.removeprefix(f"benchmark.{on}."): score for score in scores}
        first = [m for wanted in METRICS for m in metrics if m.partition(".")[0] == wanted]
        metric = (first or list(metrics))[0]
        out.append(Line(style.short(on), metrics[metric], on, unit=metric))
    return out[:BENCHMARKS]


# --- the leading figure -----------------------------------------------------------------------


def lead_figure(scene: Scene, key: Key, of: str = "") -> Plot:
    """The score that a run leads with, large: with its level of failure and what theory expects.

    Args:
        scene: Runs, arms and their looks.
        key: The score.
        of: What the title begins with, where a page has several.
    """
    measure = max((m for m in scene.measures if m.owns(key[0])), key=lambda m: len(m.name))
    found = [line for line in lines_of(measure, scene.arms) if _key(line) == key]
    line = found[0] if found else Line(measure.title, *key)
    title = f"{of}: {describe(scene.measures, key)}" if of else describe(scene.measures, key)
    panel = _panel(scene, (measure, line))
    theory = _theory(scene, panel) if key == PREDICTED else []
    extra = _extra([panel, dataclasses.replace(panel, curves=theory)])
    top = 76 if extra else 50
    named = [f"{style.short(arm.label)} 0.000" for arm in scene.arms]
    right = 24 + max(style.text_width(name) for name in named)
    canvas = Canvas(WIDE, top + 362)
    axes = canvas.axes(60, top, WIDE - 60 - right, 318)
    _draw(axes, scene, panel, WIDE - 60 - right)
    for curve in theory:
        axes.plot(curve.x, curve.y, color=curve.colour, **curve.how, zorder=3)
        positive = [v for v in (*curve.y, *axes.get_ylim()) if v > 0 and math.isfinite(v)]
        axes.set_ylim(min(positive), max(positive))
    level, crossings = scene.failed.get(key, (None, {}))
    levels, rings = [], {}
    if level is not None:
        rings = {label: (time, level) for label, time in crossings.items()}
        _failure_level(axes, scene, level, crossings)
        levels = [_level(scene, "failure level", level, REAL, FAILED)]
    _direct_labels(axes, scene, panel.lines)
    if extra:
        canvas.legend(extra, left=60, top=14)
    said = measure.caption.rstrip(".")
    marked = " Rings: mean time to failure, where every seed failed." if crossings else ""
    if theory:
        marked += (
            " Dashes: its expectation by theory, bias times amplification times the finite-sample "
            "factor; dots: 95\u00a0% of single seeds by the same theory."
        )
    return plot(
        canvas,
        slug(title),
        title,
        f"{said} (n = {scene.counts([key])}).{_only_once(scene, key)} {scene.seeds_said()}{marked}"
        f"{scene.endings()}",
        _alt([dataclasses.replace(panel, title=title)]),
        [dataclasses.replace(panel, curves=[*panel.curves, *theory, *levels], failed=rings)],
    )


def _only_once(scene: Scene, key: Key) -> str:
    """Whether the real first split is trained on in generation 0 alone."""
    parts = [
        part
        for g in generations(scene.arms)
        if g.number
        for part in g.ledger.get("parts", ())
        if part["split"] == 0 and part["generation"] == 0
    ]
    return " Only generation 0 trains on its real form." if key[1] == FIRST and not parts else ""


def _theory(scene: Scene, panel: Panel) -> list[Curve]:
    """What theory expects of each arm, as far as the arm went."""
    names = {
        "low": ("95 % of single seeds, by theory", CHANCE),
        "high": ("95 % of single seeds, by theory", CHANCE),
        "mean": ("expected by theory", REAL),
    }
    out = []
    for label, told in scene.prediction.items():
        went = panel.lines[label].x[-1:]
        shown = [i for i, g in enumerate(told["generation"]) if went and g <= went[0]]
        x, colour = [told["generation"][i] for i in shown], scene.looks[label].colour
        for what, (name, how) in names.items():
            if shown and what in told:
                out.append(Curve(name, x, [told[what][i] for i in shown], colour, how, label))
    return out


def _failure_level(axes: Any, scene: Scene, level: float, crossings: Mapping[str, float]) -> None:
    """A level across the axes, and a ring where each arm falls through it."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(min(bottom, level), max(top, level))
    axes.axhline(level, color=FAILED, **REAL, zorder=1)
    axes.annotate(
        f"failure level {number(level, 'g')}",
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        color=FAILED,
        fontsize=11,
    )
    for label, time in crossings.items():
        colour = scene.looks[label].colour
        axes.plot([time, time], [axes.get_ylim()[0], level], color=colour, linewidth=1, ls=":")
        ring = {"markerfacecolor": "#ffffff", "markeredgecolor": colour, "markeredgewidth": 1.6}
        axes.plot([time], [level], marker="o", markersize=8, **ring, zorder=5)


def _direct_labels(axes: Any, scene: Scene, lines: Mapping[str, Series]) -> None:
    """Names and last values right of the lines, moved apart where they would overlap."""
    box, edge = axes.get_window_extent(), axes.get_xlim()[1]
    ends = {label: (line.x[-1], line.mean[-1]) for label, line in lines.items() if line.x}
    wanted = {label: axes.transData.transform(end)[1] - box.y0 for label, end in ends.items()}
    placed = style.apart(wanted, 16, box.height)
    for label, (x, y) in ends.items():
        colour = scene.looks[label].colour
        there = axes.transData.inverted().transform((0, box.y0 + placed[label]))[1]
        axes.annotate(
            f"{style.short(label)} {number(y)}",
            (edge, there),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            weight="bold",
            annotation_clip=False,
        )
        if abs(placed[label] - wanted[label]) > 3 or x < edge - 1:
            axes.plot([x, edge], [y, there], color=colour, lw=0.7, alpha=0.6, clip_on=False)
