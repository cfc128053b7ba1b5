"""Figures of an audit: distances to evidence, confidences, right answers, scores of documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from fortifai.evals.confidence import BIN_EDGES
from fortifai.report import style
from fortifai.report.names import signed
from fortifai.report.scene import Plot, plot
from fortifai.report.style import INK, REAL_FILL, SOFT, WIDE, Canvas

if TYPE_CHECKING:
    from fortifai.audit import Audit

_BAD, _GOOD = "#d55e00", "#0072b2"


def of(audit: Audit) -> list[Plot]:
    """All figures that the audit has numbers for."""
    return [figure for draw in (distances, solved, confidence) if (figure := draw(audit))]


def distances(audit: Audit) -> Plot | None:
    """Each check on one axis: how far on the way to its level."""
    checks = [f for f in audit.findings if f.level and f.difference is not None and not f.source]
    if not checks:
        return None
    left_out = "; ".join(f.title for f in audit.findings if f.level == 0)
    pitch, top = 34, 40
    told = []
    with style.drawing():
        canvas = Canvas(WIDE, top + pitch * len(checks) + 56)
        left = 300
        axes = canvas.axes(left, top, WIDE - left - 60, pitch * len(checks))
        axes.grid(visible=False)
        axes.axvspan(1, 9, color=_BAD, alpha=0.07, linewidth=0)
        axes.axvline(0, color=SOFT, linewidth=0.8)
        axes.axvline(1, color=_BAD, linewidth=1.2, linestyle=(0, (4, 2)))
        for place, found in enumerate(checks):
            assert found.level
            assert found.difference
            way = (1 if found.worse == "higher" else -1) / found.level
            low, high = sorted((found.difference.low * way, found.difference.high * way))
            middle = found.difference.value * way
            told.append(f"{found.title} {signed(middle)}")
            colour = _BAD if found.evidence else _GOOD
            shown = [float(np.clip(x, -1.9, 2.9)) for x in (low, middle, high)]
            if found.floor:
                reach = min(found.floor / found.level, 1.9)
                axes.barh(
                    place, 2 * reach, 0.6, left=-reach, color=REAL_FILL, linewidth=0, zorder=1
                )
            axes.plot([shown[0], shown[2]], [place, place], color=colour, linewidth=2.2, zorder=3)
            mark = "o" if low > -1.9 and high < 2.9 else ">" if middle > 0 else "<"
            axes.plot(shown[1], place, mark, color=colour, markersize=8, zorder=4)
            for text, lift, size, ink in (
                (style.short(found.title, 52), 1, 12, INK),
                (f"against {style.short(found.against, 40)}", -11, 9.5, SOFT),
            ):
                axes.annotate(
                    text,
                    (0, place),
                    xycoords=("axes fraction", "data"),
                    xytext=(-14, lift),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                    fontsize=size,
                    color=ink,
                )
        axes.set_ylim(len(checks) - 0.5, -0.5)
        axes.set_xlim(-2, 3)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(FixedLocator([-2, -1, 0, 1, 2, 3]))
        names = {0: "as the reference", 1: "level of evidence", 3: "three times it"}
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: names.get(round(v), "")))
        canvas.legend(
            [
                ("passed, 95 % interval", _line(_GOOD)),
                ("evidence of collapse", _line(_BAD)),
                ("noise floor", Patch(color=REAL_FILL, linewidth=0)),
            ],
            left,
            8,
        )
        return plot(
            canvas,
            "checks",
            "How far from collapse",
            "Each check's distance from its reference in units of its level, towards collapse to "
            "the right; evidence needs the middle beyond the level and the whole interval beyond "
            "the noise floor. Arrows: beyond the axis."
            + (f" Not drawn, since its level is 0: {left_out}." if left_out else ""),
            f"Way to the level of evidence, which is 1: {'; '.join(told)}.",
        )


def _line(colour: str) -> Line2D:
    return Line2D([], [], color=colour, marker="o", markersize=7, linewidth=2.2)


def confidence(audit: Audit) -> Plot | None:
    """Histograms of the confidence on the model's own text and on human text."""
    if not audit.histograms:
        return None
    with style.drawing():
        canvas = Canvas(WIDE, 300)
        axes = canvas.axes(56, 44, WIDE - 80, 200)
        entries: list[tuple[str, Any]] = []
        middles, means = (np.array(BIN_EDGES[1:]) + BIN_EDGES[:-1]) / 2, []
        for name, counts in audit.histograms.items():
            shares = np.array(counts, dtype=np.float64) / max(1, sum(counts))
            means.append(f"{name} {shares @ middles:.2f}")
            own = name == "its own text"
            how: dict[str, Any]
            how = {"color": _GOOD, "lw": 2.2} if own else {"color": REAL_FILL, "lw": 0}
            axes.stairs(shares, BIN_EDGES, fill=not own, zorder=1 + 2 * own, **how)
            entries.append((name, Line2D([], [], **how) if own else Patch(**how)))
        axes.set_xlim(0, 1)
        style.few_ticks(axes, 4)
        axes.set_xlabel("confidence p", color=SOFT, fontsize=11)
        canvas.legend(entries, 56, 8)
        return plot(
            canvas,
            "confidence",
            "Confidence on its own text and on human text",
            "Share of tokens (y) by the probability p that the model gives them (x), on what it "
            "wrote and on what stood after the same prompts. A model whose confidence is "
            "that of human text has the same histogram twice.",
            f"Mean confidence: {'; '.join(means)}.",
        )


def solved(audit: Audit) -> Plot | None:
    """How many questions had 0, 1, ... right answers of several."""
    if not audit.solved:
        return None
    with style.drawing():
        canvas = Canvas(WIDE, 300)
        axes = canvas.axes(56, 44, WIDE - 80, 200)
        entries: list[tuple[str, Any]] = []
        told = []
        names = list(audit.solved)
        edges = np.arange(len(audit.solved[names[0]]) + 1) - 0.5
        for name, counts in reversed(list(audit.solved.items())):
            shares = np.array(counts, dtype=np.float64) / max(1, sum(counts))
            own = name == names[0]
            how: dict[str, Any]
            how = {"color": _GOOD, "lw": 2.2} if own else {"color": REAL_FILL, "lw": 0}
            axes.stairs(shares, edges, fill=not own, zorder=1 + 2 * own, **how)
            entries.append((style.short(name), Line2D([], [], **how) if own else Patch(**how)))
            told.append(f"{name}: {', '.join(f'{share:.2f}' for share in shares)}")
        axes.set_xlim(edges[0], edges[-1])
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        style.few_ticks(axes, 4)
        axes.set_xlabel("right answers of one question", color=SOFT, fontsize=11)
        canvas.legend(entries[::-1], 56, 8)
        return plot(
            canvas,
            "solved",
            "Right answers a question",
            "Share of questions (y) by how many of their sampled answers are right (x). A model "
            "that gets narrower has more at both ends: questions that it always solves, and "
            "questions that it never does.",
            f"Shares of questions with 0, 1, ... right answers: {'; '.join(told)}.",
        )
