"""The report of an audit: one HTML page with two figures, and its numbers as JSON."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter

from fortifai import files
from fortifai.errors import InputError, RunFailed
from fortifai.evals.confidence import BIN_EDGES
from fortifai.report import style
from fortifai.report.names import number, signed
from fortifai.report.page import fill
from fortifai.report.scene import Plot, plot
from fortifai.report.style import INK, REAL_FILL, SOFT, WIDE, Canvas
from fortifai.report.text import DASH
from fortifai.stats.scores import SCORES

if TYPE_CHECKING:
    from fortifai.audit import Audit, Finding

_BAD, _GOOD = "#d55e00", "#0072b2"


def write_audit(audit: Audit, folder: Path) -> Path:
    """Write ``index.html`` and ``audit.json`` into a folder.

    Args:
        audit: What was found.
        folder: Made if it is not there; an older audit in it is replaced.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: `folder` is a file, or holds a page that is no audit's.
        RunFailed: It could not be written.
    """
    check_folder(folder)
    plots = [figure for figure in (_distances(audit), _confidence(audit)) if figure]
    page = fill(
        "audit.html.j2",
        title=audit.subject,
        verdict=audit.verdict,
        headline=headline(audit),
        sampled=audit.sampled,
        reference=audit.reference,
        groups=_groups(audit),
        corpus=_corpus(audit),
        plots=plots,
        examples=audit.examples,
        not_measured=audit.not_measured,
        remarks=audit.remarks,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_whole(folder / "audit.json", json.dumps(audit.record(), indent=1) + "\n")
        files.write_whole(folder / "index.html", page)
    except OSError as error:
        raise RunFailed(
            f"the audit could not be written into {folder}: {error.strerror}; make room or choose "
            "another folder with --out"
        ) from error
    return folder / "index.html"


def _groups(audit: Audit) -> list[dict[str, Any]]:
    """Findings of all, then of each source: those that are judged, and the others."""
    out = []
    for source in sorted({found.source for found in audit.findings}):
        own = [found for found in audit.findings if found.source == source]
        out.append(
            {
                "source": source,
                "judged": [row(found) for found in own if found.level is not None],
                "shown": [row(found) for found in own if found.level is None],
            }
        )
    return out


def _corpus(audit: Audit) -> dict[str, Any] | None:
    """What is told of a corpus alone."""
    from fortifai.audit import CorpusAudit

    if not isinstance(audit, CorpusAudit):
        return None
    grown: dict[str, list[dict[str, str]]] = {}
    for each in audit.grown:
        grown.setdefault(each.source, []).append(
            {
                "words": each.words,
                "count": f"{each.count:,}",
                "expected": f"{each.expected:,.1f}",
                "documents": f"{each.documents:,}",
                "z": f"{each.z:.1f}",
            }
        )
    return {
        "grown": grown,
        "deciles": [
            {"score": SCORES[name].title if name in SCORES else "the detector's score",
             "whose": whose, "cells": [number(value) for value in values]}
            for name, each in audit.deciles.items() for whose, values in each.items() if values
        ],
        "overlaps": [
            (source or "all", f"{each.ratio:.0%}", f"{each.common:.2f}", each.alike)
            for source, each in audit.overlaps.items()
        ],
    }  # fmt: skip


def check_folder(folder: Path) -> None:
    """Refuse a folder into which an audit must not be written.

    Raises:
        InputError: It, or a folder above it, is a file, or it holds a page that is no audit's.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"{there} is a file; give a folder for the report with --out")
    if (folder / "index.html").exists() and not (folder / "audit.json").exists():
        raise InputError(
            f"{folder} holds an index.html that is no audit's (no audit.json is beside it); give "
            "another folder for the report with --out"
        )


def check_card(path: Path) -> None:
    """Refuse a file into which a card must not be written.

    Raises:
        InputError: Its folder is not there, or it holds something that is no card.
    """
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} for the card; make it first")
    if path.exists() and not (path.is_file() and CARD in path.read_text("utf-8", "replace")[:200]):
        raise InputError(
            f"{path} is there and is no card of an audit; give another file with --card"
        )


CARD = "## Audit: "
"""How a card begins."""


def headline(audit: Audit) -> str:
    """The verdict in a few words."""
    return f"{audit.subject}: {audit.headline}"


def row(found: Finding) -> dict[str, Any]:
    """A finding in print."""
    difference = found.difference
    # without a reference there is no difference: the interval is that of the value
    alone = found.reference is None
    fine = difference is not None and max(abs(difference.low), abs(difference.high)) < 0.05
    end = _number if alone else partial(signed, digits=3 if fine else 2)
    interval = "" if difference is None else f"{end(difference.low)} to {end(difference.high)}"
    return {
        "title": found.title,
        "against": found.against,
        "value": _number(found.value),
        "reference": _number(found.reference),
        "difference": "" if alone else DASH if difference is None else end(difference.value),
        "interval": interval,
        "floor": DASH if found.floor is None else f"± {_number(found.floor)}",
        "level": DASH if found.level is None else _level(found),
        "unit": found.unit,
        "evidence": found.evidence,
        "judged": found.level is not None,
    }


def _number(value: float | None) -> str:
    # shares of a few thousandths would all be 0.00
    return number(value, ",.4f" if value is not None and 0 < abs(value) < 0.01 else ",.2f")


def _level(found: Finding) -> str:
    assert found.level is not None
    if found.worse == "higher":
        return f"above {signed(found.level)}"
    return f"below {signed(-found.level)}"


def _distances(audit: Audit) -> Plot | None:
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


def _confidence(audit: Audit) -> Plot | None:
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
