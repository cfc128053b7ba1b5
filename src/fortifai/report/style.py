"""How figures look: colours, canvas, axes, and SVG that is the same bytes for the same numbers."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fortifai.report.records import Arm
from fortifai.report.text import MINUS

INK, SOFT, GRID = "#26262b", "#6d6d76", "#e6e5e2"
FONTS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', "
    "'Liberation Sans', Arial, sans-serif"
)
WIDE, HALF = 1040, 520
"""Widths of figures in pixels: the report's column, and half of it."""

# Okabe and Ito's colours, safe under the common colour blindnesses, the light ones darkened until
# text in them is legible on white. Marks and dashes tell arms apart where colour cannot.
_COLOURS = ("#0072b2", "#d55e00", "#008a63", "#b0509a", "#a87900", "#4a9cc9", "#8a4b2a")
_NEUTRALS = ("#26262b", "#76767e", "#a3a3aa")
_MARKS = ("s", "^", "D", "v", "P", "X", "p")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))

_RC: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a $ in a name is a $
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same layout on every machine
    "font.size": 12,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """How an arm is drawn in every figure."""

    colour: str
    mark: str
    dash: Any


def looks(arms: Sequence[Arm]) -> dict[str, Look]:
    """A look for each arm, by its label: baselines in neutral greys, others in colours."""
    out: dict[str, Look] = {}
    coloured = neutral = 0
    for arm in arms:
        if arm.baseline:
            out[arm.label] = Look(
                _NEUTRALS[neutral % len(_NEUTRALS)], "o", _DASHES[neutral % len(_DASHES)]
            )
            neutral += 1
        else:
            turn = coloured // len(_COLOURS)
            out[arm.label] = Look(
                _COLOURS[coloured % len(_COLOURS)],
                _MARKS[(coloured + turn) % len(_MARKS)],
                _DASHES[turn % len(_DASHES)],
            )
            coloured += 1
    return out


def short(text: str, limit: int = 30) -> str:
    """`text`, cut in its middle where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}…{text[-(limit - limit // 2 - 1) :]}"


def text_width(text: str, size: float = 12) -> float:
    """A generous guess of the width of `text` in pixels."""
    return 0.62 * size * len(text)


def legend_columns(names: Sequence[str], width: float) -> int:
    """How many of a legend's entries fit side by side, each column as wide as its longest name."""
    for columns in range(len(names), 1, -1):
        widest = (max(text_width(name) + 52 for name in names[c::columns]) for c in range(columns))
        if sum(widest) <= width:
            return columns
    return 1


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Draw inside: matplotlib's settings are ours for the while, then as they were."""
    with rc_context({**_RC, "svg.hashsalt": name}):
        yield


class Canvas:
    """A figure measured in pixels from its upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes at a place, with a light horizontal grid and without a frame."""
        axes = self.figure.add_axes(
            (
                left / self.width,
                1 - (top + height) / self.height,
                width / self.width,
                height / self.height,
            ),
            facecolor="none",
        )
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0, pad=6, labelsize=11)
        axes.tick_params(axis="x", length=4, width=0.8, pad=4, labelsize=11)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        return axes

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text whose baseline stands `top` pixels under the upper edge."""
        self.figure.text(
            left / self.width, 1 - top / self.height, text, **({"va": "baseline"} | style)
        )

    def legend(self, entries: Sequence[tuple[str, Any]], left: float, top: float) -> None:
        """Rows of handles with their names, as wide as the canvas."""
        columns = legend_columns([name for name, _ in entries], self.width - left)
        self.figure.legend(
            [handle for _, handle in _by_row(entries, columns)],
            [name for name, _ in _by_row(entries, columns)],
            loc="upper left",
            bbox_to_anchor=(left / self.width, 1 - top / self.height),
            ncols=columns,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=2.4,
            columnspacing=1.6,
            fontsize=12,
        )

    def svg(self, name: str, title: str) -> str:
        """The figure as one ``<svg>`` element, in pixels, with ids that no other figure has."""
        stream = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        # the resolution of what is drawn as pixels; all else has none
        self.figure.savefig(stream, format="svg", metadata=nothing, dpi=120)
        text = stream.getvalue().decode("utf-8")
        body = text[text.index(">", text.index("<svg")) + 1 :]
        body = re.sub(r"<!--.*?-->\n?", "", body, flags=re.DOTALL)
        body = re.sub(r"'DejaVu Sans'(, sans-serif)?", FONTS, body)
        body = re.sub(r'(<(?:g|path|clipPath|use|image) [^>]*?)\bid="', rf'\1id="{name}-', body)
        body = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", body)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" '
            'xmlns:xlink="http://www.w3.org/1999/xlink" version="1.1" '
            f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img"><title>{title}</title>{body}'
        )


def _by_row(entries: Sequence[tuple[str, Any]], columns: int) -> list[tuple[str, Any]]:
    """Entries put so that matplotlib, which fills columns first, shows them row by row."""
    rows = math.ceil(len(entries) / columns)
    full = len(entries) - columns * (rows - 1)  # columns that are `rows` high, the rest one less
    order = [r * columns + c for c in range(columns) for r in range(rows if c < full else rows - 1)]
    return [entries[i] for i in order]


def handle(look: Look) -> Line2D:
    """A legend's handle for an arm."""
    return Line2D(
        [], [], color=look.colour, linestyle=look.dash, marker=look.mark, markersize=6, linewidth=2
    )


def generations(axes: Any, last: int, *, first: int = 0, label: str | None = "generation") -> None:
    """An axis of whole generations."""
    step = max(1, math.ceil((last - first) / 10))
    axes.xaxis.set_major_locator(FixedLocator(list(range(first, last + 1, step))))
    axes.xaxis.set_minor_locator(NullLocator())
    margin = max(0.15, (last - first) * 0.03)
    axes.set_xlim(first - margin, last + margin)
    if label:
        axes.set_xlabel(label, color=SOFT, fontsize=11, labelpad=4)


def heading(axes: Any, text: str, unit: str = "") -> None:
    """A panel's title over its left edge, with the unit in a softer tone beneath."""
    lift = 22 if unit else 10
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "baseline"}
    axes.annotate(text, (0, 1), xytext=(0, lift), weight="bold", fontsize=12, **place)
    if unit:
        axes.annotate(unit, (0, 1), xytext=(0, 8), color=SOFT, fontsize=11, **place)


def plain_log(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic y axis with plain numbers."""
    axes.set_yscale("log")
    low, high = min(values), max(values)
    if low == high:
        low, high = low / 1.5, high * 1.5
    spread = math.log10(high / low)
    axes.set_ylim(low / 10 ** (0.07 * spread), high * 10 ** (0.07 * spread))
    subs: tuple[float, ...] = (
        (1.0,) if spread > 3 else (1.0, 3.0) if spread > 1.6 else (1.0, 2.0, 5.0)
    )
    if spread < 0.6:
        subs = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=99 if spread < 8 else 8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda v, _: f"{v:,.0f}" if 10 <= v < 1e7 else _exponent(v))
    )


def _exponent(value: float) -> str:
    return re.sub(r"e([+-])0*", r"e\1", f"{value:g}").replace("-", MINUS)


def few_ticks(axes: Any, count: int = 5) -> None:
    """Few round ticks on the y axis."""
    axes.yaxis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}".replace("-", MINUS)))


def apart(wanted: Mapping[str, float], gap: float, low: float, high: float) -> dict[str, float]:
    """Heights near the wanted ones, at least `gap` apart, kept within [low, high] if they fit."""
    names = sorted(wanted, key=lambda name: wanted[name])
    groups: list[tuple[list[str], float]] = []  # names and the height of their middle
    for name in names:
        group, middle = [name], min(max(wanted[name], low), high)
        while (
            groups and middle - _half(group, gap) < groups[-1][1] + _half(groups[-1][0], gap) + gap
        ):
            earlier, there = groups.pop()
            middle = (there * len(earlier) + middle * len(group)) / (len(earlier) + len(group))
            group = earlier + group
            half = _half(group, gap)
            middle = max(min(middle, high - half), low + half)
        groups.append((group, middle))
    return {
        name: middle - _half(group, gap) + i * gap
        for group, middle in groups
        for i, name in enumerate(group)
    }


def _half(group: Sequence[str], gap: float) -> float:
    return (len(group) - 1) * gap / 2
