"""What all figures share: the arms, their lines with bands, legends, and the finished figure."""

from __future__ import annotations

import dataclasses
import functools
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fortifai.lab.measures import About
from fortifai.report import style
from fortifai.report.knowledge import Story, stories
from fortifai.report.names import leads
from fortifai.report.records import Arm, Key, Run, generations
from fortifai.report.style import WIDE, Canvas, Look

Z95 = 1.959964
"""Standard errors on either side of a mean that hold 95 % of a normal distribution."""
MARKED = 25
"""Points of a line up to which each gets a mark; more would hide the line."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plot:
    """A finished figure.

    Attributes:
        name: File name without its ending, and the id in the report.
        title: What it is about.
        caption: What is shown: unit, n, seeds, interval.
        svg: One ``<svg>`` element.
        panels: What it draws, where that is lines by generation.
    """

    name: str
    title: str
    caption: str
    svg: str
    panels: Sequence[Panel] = ()

    @property
    def file(self) -> str:
        """The figure as a file of its own, on white."""
        head, body = self.svg.split("</desc>", 1)
        return (
            f'<?xml version="1.0" encoding="utf-8"?>\n{head}</desc>'
            f'<rect width="100%" height="100%" fill="#ffffff"/>{body}'
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """One arm's line: mean over seeds, and what its band spans (equal to the mean: no band)."""

    x: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """What is drawn beside the arms: a level from end to end, or what theory expects.

    Attributes:
        name: What it is.
        x: Generations.
        y: Values there.
        colour: Its colour.
        how: Its width and dashes, as matplotlib takes them.
        arm: Whose it is; "": of all.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    how: Mapping[str, Any]
    arm: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """One score by generation: a line for each arm.

    Attributes:
        title: Its heading.
        unit: What stands under the heading.
        key: The score.
        log: The axis of its values is logarithmic.
        lines: By arm.
        curves: What else is drawn.
        unseen: Grey up to here: generations that had not yet trained on what is asked.
        limits: Ends of the axis of values, where panels share it.
        failed: By arm, where a ring stands: the mean time to failure, and the level.
    """

    title: str
    unit: str
    key: Key
    log: bool
    lines: Mapping[str, Series]
    curves: Sequence[Curve] = ()
    unseen: float | None = None
    limits: tuple[float, float] | None = None
    failed: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What all figures of a report share.

    Attributes:
        runs: What was read.
        failed: By score, an absolute level of failure, and by arm the mean time to it.
    """

    runs: Sequence[Run]
    failed: Mapping[Key, tuple[float, Mapping[str, float]]] = dataclasses.field(
        default_factory=dict
    )

    @functools.cached_property
    def arms(self) -> list[Arm]:
        """In the order in which they are told."""
        return [arm for run in self.runs for arm in run.arms]

    @functools.cached_property
    def looks(self) -> dict[str, Look]:
        """Colours and marks by arm."""
        return style.looks(self.arms)

    @functools.cached_property
    def measures(self) -> list[About]:
        """What any of the runs measured, each once."""
        return list({m.name: m for run in self.runs for m in run.measures}.values())

    @functools.cached_property
    def stories(self) -> list[Story]:
        """What became of each arm in each format of questions."""
        return stories(self.runs)

    @functools.cached_property
    def prediction(self) -> dict[str, Mapping[str, Sequence[float]]]:
        """By arm, what theory says: ``generation``, ``mean``; of one seed, ``low`` and ``high``."""
        pairs = [(arm, run.prediction.get(arm.name)) for run in self.runs for arm in run.arms]
        return {arm.label: found for arm, found in pairs if found}

    @property
    def unit(self) -> str:
        """What samples are counted in: tokens, points, images."""
        return self.runs[0].unit

    @property
    def last(self) -> int:
        """The last generation of any arm."""
        return max(arm.last for arm in self.arms)

    @property
    def seeds(self) -> int:
        """The largest number of seeds of any arm."""
        return max(len(arm.chains) for arm in self.arms)

    @property
    def leads(self) -> list[Key]:
        """The score that each run leads with."""
        found = [leads(run.measures, run.arms)[:1] for run in self.runs]
        return list(dict.fromkeys(key for keys in found for key in keys))

    def has(self, key: Key) -> bool:
        """Whether a score of any generation of any arm has a value that can be drawn."""
        return any(
            key in g.scores and math.isfinite(g.scores[key].value) for g in generations(self.arms)
        )

    def chance(self, key: Key) -> float | None:
        """What guessing would give, or None."""
        found = (g.scores[key].chance for g in generations(self.arms) if key in g.scores)
        return next((chance for chance in found if chance is not None), None)

    def counts(self, keys: Sequence[Key]) -> str:
        """How many items stand behind scores: one number, or the least and the most."""
        found = [g.scores[k].n for g in generations(self.arms) for k in keys if k in g.scores]
        low, high = min(found), max(found)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    def seeds_said(self) -> str:
        """How lines and bands are made, for captions."""
        if self.seeds == 1:
            items = "questions or tokens" if self.unit == "tokens" else self.unit
            return f"One seed; bands: 95\u00a0% interval over {items}, where given."
        counts = sorted({len(arm.chains) for arm in self.arms})
        said = " to ".join(str(c) for c in dict.fromkeys((counts[0], counts[-1])))
        return f"Lines: mean of {said} seeds; bands: lowest to highest seed."

    def endings(self) -> str:
        """The arms that ended early, for captions."""
        ended = {
            f"{arm.label} before generation {chain.ended.generation}"
            for arm in self.arms
            for chain in arm.chains
            if chain.ended
        }
        return f" Ended early: {', '.join(sorted(ended))}." if ended else ""


def series(arm: Arm, key: Key) -> Series:
    """Mean and range over seeds by generation; with one seed, the value and its 95 % interval."""
    out = Series([], [], [], [])
    for number in arm.numbers:
        found = arm.scores(key, number)
        values = [score.value for score in found if math.isfinite(score.value)]
        if not values:
            continue
        error = found[0].stderr if len(arm.chains) == 1 else None
        half = Z95 * error if error is not None else 0.0
        out.x.append(number)
        out.mean.append(float(np.mean(values)))
        out.low.append(min(values) - half)
        out.high.append(max(values) + half)
    return out


def draw(axes: Any, line: Series, look: Look, *, size: float = 7) -> None:
    """Draw one arm's line with its band."""
    if any(h > low for h, low in zip(line.high, line.low, strict=True)):
        axes.fill_between(
            line.x, line.low, line.high, color=look.colour, alpha=0.13, linewidth=0, zorder=2
        )
    axes.plot(
        line.x,
        line.mean,
        color=look.colour,
        linestyle=look.dash,
        marker=look.mark if len(line.x) <= MARKED else None,
        markersize=size,
        markeredgecolor="#ffffff",
        markeredgewidth=0.7,
        linewidth=2,
        solid_capstyle="round",
        zorder=4,
        clip_on=False,
    )


def legend(canvas: Canvas, scene: Scene, extra: Sequence[tuple[str, Any]] = ()) -> None:
    """The arms, and what else is drawn, over the panels."""
    entries = [(style.short(arm.label), style.handle(scene.looks[arm.label])) for arm in scene.arms]
    canvas.legend([*entries, *extra], left=52, top=14)


def legend_height(scene: Scene, extra: Sequence[tuple[str, Any]] = ()) -> int:
    """Pixels that a legend of the arms, and of what else is drawn, takes."""
    names = [*(style.short(arm.label) for arm in scene.arms), *(name for name, _ in extra)]
    return 18 + 20 * math.ceil(len(names) / style.legend_columns(names, WIDE - 52))


def plot(
    canvas: Canvas, name: str, title: str, caption: str, alt: str, panels: Sequence[Panel] = ()
) -> Plot:
    """The finished figure; called while `style.drawing` holds.

    Args:
        canvas: What was drawn.
        name: Its file name without the ending.
        title: What it is about.
        caption: What is shown.
        alt: What is to be seen, for those who do not see it.
        panels: What is drawn as lines by generation.
    """
    svg = canvas.svg(name, html.escape(title), html.escape(alt))
    return Plot(name, title, caption, svg, panels)
