"""Figures of an audit: distances to evidence, right answers, confidences, scores of documents.

They are half as wide as those of runs: two stand side by side on a screen, one on a telephone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from fortifai.audit import CorpusAudit
from fortifai.evals.confidence import BIN_EDGES
from fortifai.report import style
from fortifai.report.numbers import signed
from fortifai.report.scene import Plot, plot
from fortifai.report.style import INK, REAL_FILL, SOFT, Canvas
from fortifai.stats.scores import SCORES

if TYPE_CHECKING:
    from fortifai.audit import Audit, Finding

_BAD, _GOOD = "#d55e00", "#0072b2"
_WIDTH = 540
_EDGE = 16
_FURTHEST = 8
"""Levels of evidence that the axis of distances shows at most."""


def of(audit: Audit) -> list[Plot]:
    """All figures that the audit has numbers for."""
    drawn = (distances, scores, solved, confidence)
    return [figure for draw in drawn if (figure := draw(audit))]


# --- distances --------------------------------------------------------------------------------


def distances(audit: Audit) -> Plot | None:
    """Each check on one axis: how far on the way to its level."""
    checks = [f for f in audit.findings if f.level and f.difference is not None and not f.source]
    if not checks:
        return None
    left_out = "; ".join(f.title for f in audit.findings if f.level == 0)
    ways = [_way(found) for found in checks]
    furthest = min(_FURTHEST, max(2, math.ceil(max(high for _, _, high in ways) + 0.1)))
    nearest = -max(1, min(2, math.ceil(-min(low for low, _, _ in ways))))
    pitch, top = 44, 34
    several = len({found.against for found in checks}) > 1
    with style.drawing():
        canvas = Canvas(_WIDTH, top + pitch * len(checks) + 40)
        axes = canvas.axes(_EDGE, top, _WIDTH - 2 * _EDGE, pitch * len(checks))
        axes.grid(visible=False)
        axes.axvspan(1, furthest, color=_BAD, alpha=0.07, linewidth=0)
        for place, (found, way) in enumerate(zip(checks, ways, strict=True)):
            _lane(axes, place, found, way, (nearest, furthest))
            _label(axes, place, found, several)
        axes.set_ylim(len(checks) - 0.5, -0.5)
        axes.set_xlim(nearest, furthest)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(FixedLocator(list(range(nearest, furthest + 1))))
        names = {0: "reference", 1: "evidence", furthest: f"{furthest} times"}
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: names.get(round(v), "")))
        axes.get_xticklabels()[-1].set_ha("right")
        canvas.legend(
            [("passed", _line(_GOOD)), ("evidence", _line(_BAD)),
             ("noise floor", Patch(color=REAL_FILL, linewidth=0))],
            _EDGE, 8,
        )  # fmt: skip
        told = (
            f"{f.title} {signed(middle)}" for f, (_, middle, _) in zip(checks, ways, strict=True)
        )
        return plot(
            canvas,
            "checks",
            "How far from collapse",
            "Differences from the reference with their 95 % intervals, in units of the level of "
            "evidence, towards collapse to the right. Evidence needs the middle beyond the level "
            "and the whole interval beyond the noise floor. Arrows: beyond the axis."
            + (f" Not drawn, since its level is 0: {left_out}." if left_out else ""),
            f"Way to the level of evidence, which is 1: {'; '.join(told)}.",
        )


def _way(found: Finding) -> tuple[float, float, float]:
    """The difference and the ends of its interval in units of the level, collapse upwards."""
    assert found.level
    assert found.difference
    way = (1 if found.worse == "higher" else -1) / found.level
    low, high = sorted((found.difference.low * way, found.difference.high * way))
    return low, found.difference.value * way, high


def _lane(
    axes: Any, place: int, found: Finding, way: tuple[float, float, float], ends: tuple[int, int]
) -> None:
    """A check's interval and noise floor, under its label."""
    assert found.level
    colour = _BAD if found.evidence else _GOOD
    within = 0.015 * (ends[1] - ends[0])
    low, middle, high = (float(np.clip(x, ends[0] + within, ends[1] - within)) for x in way)
    y = place + 0.2
    if found.floor:
        reach = found.floor / found.level
        axes.barh(y, 2 * reach, 0.4, left=-reach, color=REAL_FILL, linewidth=0, zorder=1)
    # within the lane, so that no line runs through a label
    axes.vlines(0, y - 0.24, y + 0.24, color=SOFT, linewidth=0.8)
    axes.vlines(1, y - 0.24, y + 0.24, color=_BAD, linewidth=1.4)
    axes.plot([low, high], [y, y], color=colour, linewidth=2.2, zorder=3)
    mark = ">" if way[1] > ends[1] else "<" if way[1] < ends[0] else "o"
    axes.plot(middle, y, mark, color=colour, markersize=8, zorder=4)


def _label(axes: Any, place: int, found: Finding, several: bool) -> None:
    """What is measured, and by how much it differs."""
    assert found.difference
    digits = 3 if abs(found.difference.value) < 0.05 else 2
    amount = f"{signed(found.difference.value, digits)} {found.unit}".strip()
    title = style.short(found.title, 44)
    if several:
        title = f"{title} · {style.short(found.against, 20)}"
    how = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    for text, x, side in ((title, 0, "left"), (amount, 1, "right")):
        axes.annotate(
            text, (x, place - 0.2), xytext=(0, 0), ha=side, fontsize=12, color=INK, zorder=5, **how
        )


def _line(colour: str) -> Line2D:
    return Line2D([], [], color=colour, marker="o", markersize=7, linewidth=2.2)


# --- scores of documents ----------------------------------------------------------------------


def scores(audit: Audit) -> Plot | None:
    """How the scores of documents lie beside those of the reference's, a panel each."""
    if not isinstance(audit, CorpusAudit) or not audit.distributions:
        return None
    beside = any(counts["reference"] for counts in audit.distributions.values())
    rows = math.ceil(len(audit.distributions) / 2)
    pitch, top = 104, 34
    width = (_WIDTH - 3 * _EDGE) / 2
    told = []
    with style.drawing():
        canvas = Canvas(_WIDTH, top + pitch * rows + 6)
        for place, (name, found) in enumerate(audit.distributions.items()):
            known = SCORES.get(name)
            title = known.title if known else "the detector's score"
            left = _EDGE + (place % 2) * (width + _EDGE)
            above = top + pitch * (place // 2)
            canvas.text(left, above + 16, style.short(title, 40), fontsize=11, color=INK)
            axes = canvas.axes(left, above + 24, width, pitch - 48)
            axes.grid(visible=False)
            _panel(axes, found, known.unit if known else "")
            told.append(f"{title} {_middles(found)}")
        own: dict[str, Any] = {"color": _GOOD, "lw": 2.0}
        entries: list[tuple[str, Any]] = [(style.short(audit.subject, 24), Line2D([], [], **own))]
        if beside:
            other = Patch(color=REAL_FILL, linewidth=0)
            entries.append((style.short(audit.reference, 24), other))
        canvas.legend(entries, _EDGE, 8)
        return plot(
            canvas,
            "scores",
            "Scores of documents",
            "Share of the documents (height) by score. A text that is like its reference has the "
            "same shapes; a narrow one is shifted, or has a peak of its own. The outermost bins "
            "hold all that lies beyond them.",
            f"Medians: {'; '.join(told)}.",
        )


def _panel(axes: Any, found: Mapping[str, Sequence[float]], unit: str) -> None:
    edges = np.array(found["edges"])
    for whose, how in (
        ("reference", {"fill": True, "color": REAL_FILL, "lw": 0}),
        ("text", {"fill": False, "color": _GOOD, "lw": 2.0}),
    ):
        counts = np.array(found[whose], dtype=np.float64)
        if counts.sum():
            axes.stairs(counts / counts.sum(), edges, zorder=1 + (whose == "text"), **how)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.tick_params(axis="x", labelsize=10)
    if unit and unit != "share":
        axes.annotate(
            unit, (1, 1), xycoords="axes fraction", xytext=(0, 6), textcoords="offset points",
            ha="right", fontsize=10, color=SOFT,
        )  # fmt: skip


def _middles(found: Mapping[str, Sequence[float]]) -> str:
    """The medians, to a bin."""
    edges, out = np.array(found["edges"]), []
    for whose in ("text", "reference"):
        counts = np.array(found[whose], dtype=np.float64)
        if counts.sum():
            at = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
            out.append(f"{(edges[at] + edges[at + 1]) / 2:.3g}")
    return " against ".join(out)


# --- of models --------------------------------------------------------------------------------


def solved(audit: Audit) -> Plot | None:
    """How many questions had 0, 1, ... right answers of several."""
    if not audit.solved:
        return None
    names = list(audit.solved)
    edges = np.arange(len(audit.solved[names[0]]) + 1) - 0.5
    shares = {name: np.array(c) / max(1, sum(c)) for name, c in audit.solved.items()}
    told = (f"{n}: {', '.join(f'{share:.2f}' for share in each)}" for n, each in shares.items())
    with style.drawing():
        canvas, axes = _beside(shares, edges, "right answers of one question")
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        return plot(
            canvas,
            "solved",
            "Right answers a question",
            "Share of questions (y) by how many of their sampled answers are right (x). A model "
            "that gets narrower has more at both ends: questions that it always solves, and "
            "questions that it never does.",
            f"Shares of questions with 0, 1, ... right answers: {'; '.join(told)}.",
        )


def confidence(audit: Audit) -> Plot | None:
    """Histograms of the confidence on the model's own text and on human text."""
    if not audit.histograms:
        return None
    edges = np.array(BIN_EDGES)
    shares = {name: np.array(c) / max(1, sum(c)) for name, c in audit.histograms.items()}
    middles = (edges[1:] + edges[:-1]) / 2
    told = (f"{name} {each @ middles:.2f}" for name, each in shares.items())
    with style.drawing():
        canvas, _ = _beside(shares, edges, "confidence p")
        return plot(
            canvas,
            "confidence",
            "Confidence on its own text and on human text",
            "Share of tokens (y) by the probability p that the model gives them (x), on what it "
            "wrote and on what stood after the same prompts. A model whose confidence is "
            "that of human text has the same histogram twice.",
            f"Mean confidence: {'; '.join(told)}.",
        )


def _beside(shares: Mapping[str, Any], edges: Any, label: str) -> tuple[Canvas, Any]:
    """Histograms: the first as a line, the other, if there is one, filled behind it."""
    canvas = Canvas(_WIDTH, 300)
    axes = canvas.axes(48, 40, _WIDTH - 64, 208)
    entries: list[tuple[str, Any]] = []
    for place, (name, each) in enumerate(shares.items()):
        how: dict[str, Any] = (
            {"color": REAL_FILL, "lw": 0} if place else {"color": _GOOD, "lw": 2.2}
        )
        axes.stairs(each, edges, fill=bool(place), zorder=1 + 2 * (not place), **how)
        handle = Patch(**how) if place else Line2D([], [], **how)
        entries.append((style.short(name, 24), handle))
    axes.set_xlim(edges[0], edges[-1])
    style.few_ticks(axes, 4)
    axes.set_xlabel(label, color=SOFT, fontsize=11)
    canvas.legend(entries, 48, 8)
    return canvas, axes
