"""How figures look: colours, canvas, axes, and SVG that is the same bytes for the same numbers."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fortifai.report.records import Arm
from fortifai.report.text import MINUS

T = TypeVar("T")

INK, SOFT, GRID = "#26262b", "#6d6d76", "#e6e5e2"
FONTS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', "
    "'Liberation Sans', Arial, sans-serif"
)
WIDE = 1040
"""Width of figures in pixels: the report's column."""
REAL: dict[str, Any] = {"linewidth": 1.2, "linestyle": (0, (4, 3))}
CHANCE: dict[str, Any] = {"linewidth": 1.0, "linestyle": (0, (1, 2))}
"""How what real data have, and what guessing gives, is drawn: dashed, and dotted."""
REAL_FILL = "#d4d3cf"

# Okabe and Ito's colours, safe under the common colour blindnesses, the light ones darkened until
# text in them is legible on white. Marks and dashes tell arms apart where colour cannot.
_COLOURS = ("#0072b2", "#d55e00", "#008a63", "#b0509a", "#a87900", "#4a9cc9", "#8a4b2a")
_NEUTRALS = ("#26262b", "#76767e", "#a3a3aa")
_MARKS = ("s", "^", "D", "v", "P", "X", "p")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))

_RC: dict[str, Any] = {
    "svg.hashsalt": "fortifai",  # equal figures are equal bytes
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
    """How many of a legend's entries fit side by side, each as wide as the longest name."""
    widest = max(text_width(name) for name in names) + 52
    return max(1, min(len(names), int(width // widest)))


@contextmanager
def drawing() -> Iterator[None]:
    """Draw inside: matplotlib's settings are ours for the while, then as they were."""
    with rc_context(_RC):
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
            [handle for _, handle in entries],
            [name for name, _ in entries],
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

    def svg(self, name: str, title: str, alt: str) -> str:
        """The figure as one ``<svg>`` element, in pixels, with ids that no other figure has."""
        stream = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        # the resolution of what is drawn as pixels; all else has none
        self.figure.savefig(stream, format="svg", metadata=nothing, dpi=120)
        text = stream.getvalue().decode("utf-8")
        body = text[text.index(">", text.index("<svg")) + 1 :]
        body = re.sub(r"<!--.*?-->\n?|<style.*?</style>\n?", "", body, flags=re.DOTALL)
        body = re.sub(r"'DejaVu Sans'(, sans-serif)?", FONTS, body)
        # earlier versions write the font as one property, which is no attribute
        font = r"font-weight: \1; font-size: \2; font-family: "
        body = re.sub(r"\bfont: (?:(\w+) )?([\d.]+px) ", font, body)
        body = re.sub(r' style="([^"]*)"', _attributes, body)
        body = re.sub(r'(<(?:g|path|clipPath|use|image) [^>]*?)\bid="', rf'\1id="{name}-', body)
        body = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", body)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" '
            'xmlns:xlink="http://www.w3.org/1999/xlink" version="1.1" '
            f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" stroke-linejoin="round" role="img"><title>{title}</title>'
            f"<desc>{alt}</desc>{body}"
        )


def _attributes(style: re.Match[str]) -> str:
    """Styles as attributes, which a content policy that allows no styles in elements lets be."""
    pairs = (one.split(":", 1) for one in style[1].split(";") if ":" in one)
    found = {name.strip(): value.strip() for name, value in pairs}
    return "".join(f' {name}="{value}"' for name, value in found.items())


def handle(look: Look) -> Line2D:
    """A legend's handle for an arm."""
    return Line2D(
        [], [], color=look.colour, linestyle=look.dash, marker=look.mark, markersize=6, linewidth=2
    )


def generations(axes: Any, last: int, width: float) -> None:
    """An axis of whole generations, with as many round numbers as fit into `width` pixels."""
    fits = min(11, max(2, int(width / (text_width(str(last), 11) + 12))))
    steps = (n * 10**k for k in range(len(str(last)) + 1) for n in (1, 2, 3, 5))
    step = next(step for step in steps if last // step < fits)
    axes.xaxis.set_major_locator(FixedLocator(list(range(0, last + 1, step))))
    axes.xaxis.set_minor_locator(NullLocator())
    margin = max(0.15, last * 0.03)
    axes.set_xlim(-margin, last + margin)
    axes.set_xlabel("generation", color=SOFT, fontsize=11, labelpad=4)


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


def apart(wanted: Mapping[str, float], gap: float, high: float) -> dict[str, float]:
    """Heights near the wanted ones, at least `gap` apart, kept within [0, high] if they fit."""
    names = sorted(wanted, key=lambda name: wanted[name])
    heights = [min(max(wanted[name], 0.0), high) for name in names]
    # each pair that is too close is moved by half of what it lacks, until none is left
    for _ in range(100):
        for i in range(len(heights) - 1):
            lack = (gap - (heights[i + 1] - heights[i])) / 2
            if lack > 0:
                heights[i], heights[i + 1] = heights[i] - lack, heights[i + 1] + lack
        heights = [
            min(max(h, i * gap), high - (len(heights) - 1 - i) * gap) for i, h in enumerate(heights)
        ]
    return dict(zip(names, heights, strict=True))


def thinned(rows: Sequence[T], count: int) -> list[T]:
    """At most so many rows, evenly spaced, the first and the last among them."""
    if len(rows) <= count:
        return list(rows)
    return [rows[place] for place in np.linspace(0, len(rows) - 1, count).round().astype(int)]
