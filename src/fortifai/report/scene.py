"""What all figures share: the arms, their lines with bands, legends, and the finished figure."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fortifai.report import style
from fortifai.report.knowledge import Story
from fortifai.report.records import Arm
from fortifai.report.style import WIDE, Canvas, Look

Z95 = 1.959964
"""Standard errors on either side of a mean that hold 95 % of a normal distribution."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plot:
    """A finished figure.

    Attributes:
        name: File name without its ending, and the id in the report.
        title: What it is about.
        caption: What is shown: unit, n, seeds, interval.
        svg: One ``<svg>`` element.
        wide: It takes the whole width of the page.
    """

    name: str
    title: str
    caption: str
    svg: str
    wide: bool = True

    @property
    def file(self) -> str:
        """The figure as a file of its own, on white."""
        head, body = self.svg.split("</title>", 1)
        return (
            f'<?xml version="1.0" encoding="utf-8"?>\n{head}</title>'
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
class Scene:
    """What all figures of a report share.

    Attributes:
        arms: In the order in which they are told.
        unit: What samples are counted in: tokens, points, images.
        prediction: By arm, what theory predicts for the variance: ``generation``, ``mean`` and,
            where there is an interval of one seed, ``low`` and ``high``.
        crossings: Mean time to failure at an absolute level of KR on the first split, by arm.
        level: That level, or None where no absolute one is declared.
        stories: What became of each arm in each format of questions.
    """

    arms: Sequence[Arm]
    level: float | None = None
    crossings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    unit: str = "tokens"
    prediction: Mapping[str, Mapping[str, Sequence[float]]] = dataclasses.field(
        default_factory=dict
    )
    stories: Sequence[Story] = ()

    @property
    def looks(self) -> dict[str, Look]:
        """Colours and marks by arm."""
        return style.looks(self.arms)

    @property
    def last(self) -> int:
        """The last generation of any arm."""
        return max(arm.last for arm in self.arms)

    @property
    def seeds(self) -> int:
        """The largest number of seeds of any arm."""
        return max(len(arm.chains) for arm in self.arms)

    def has(self, measure: str, on: str) -> bool:
        """Whether any generation of any arm took a measure."""
        return any(
            g.value(measure, on) is not None
            for arm in self.arms
            for chain in arm.chains
            for g in chain.generations
        )

    def names(self, measure: str, prefix: str) -> list[str]:
        """The texts with a number behind `prefix` that `measure` was taken on, in order."""
        found = {
            on
            for arm in self.arms
            for chain in arm.chains
            for g in chain.generations
            for m, on in g.scores
            if m == measure and on.startswith(prefix) and on[len(prefix) :].isdigit()
        }
        return sorted(found, key=lambda on: int(on[len(prefix) :]))

    def counts(self, measure: str, on: str) -> str:
        """How many items stand behind a measure: one number, or a span of numbers."""
        found = {
            g.scores[measure, on].n
            for arm in self.arms
            for chain in arm.chains
            for g in chain.generations
            if (measure, on) in g.scores
        }
        low, high = min(found), max(found)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    @property
    def rewritten_for_good(self) -> bool:
        """No generation after 0 trained on the first split in its real form."""
        return not any(
            part["split"] == 0 and part["generation"] == 0
            for arm in self.arms
            for chain in arm.chains
            for g in chain.generations[1:]
            for part in g.ledger.get("parts", ())
        )

    def seeds_said(self) -> str:
        """How lines and bands are made, for captions."""
        if self.seeds == 1:
            items = "questions or tokens" if self.unit == "tokens" else self.unit
            return f"One seed; bands: 95\u00a0% interval over {items}, where given."
        counts = sorted({len(arm.chains) for arm in self.arms})
        said = " to ".join(str(c) for c in dict.fromkeys((counts[0], counts[-1])))
        return f"Lines: mean of {said} seeds; bands: lowest to highest seed."


def series(arm: Arm, measure: str, on: str) -> Series:
    """Mean and range over seeds by generation; with one seed, the value and its 95 % interval."""
    out = Series([], [], [], [])
    for number in arm.numbers:
        found = [
            g.scores[measure, on]
            for chain in arm.chains
            if (g := chain.at(number)) and (measure, on) in g.scores
        ]
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


MARKED = 25
"""Points of a line up to which each gets a mark; more would hide the line."""


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


def legend_height(scene: Scene, extra: Sequence[str] = (), width: int = WIDE) -> int:
    """Pixels that a legend of the arms, and of what else is drawn, takes."""
    names = [*(style.short(arm.label) for arm in scene.arms), *extra]
    return 18 + 20 * math.ceil(len(names) / style.legend_columns(names, width - 52))


def plot(canvas: Canvas, name: str, title: str, caption: str, *, wide: bool = True) -> Plot:
    """The finished figure; called while `style.drawing` holds."""
    return Plot(name, title, caption, canvas.svg(name, html.escape(title)), wide)


def limits(
    scene: Scene, wanted: Sequence[tuple[str, str]], always: Sequence[float] = ()
) -> tuple[float, float]:
    """A y axis that holds the lines of several measures, with a margin."""
    found = [series(arm, *what) for arm in scene.arms for what in wanted]
    values = [*always, *(v for s in found for v in (*s.low, *s.high))]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin
