"""The report of an audit: one HTML page with figures, and its numbers as JSON."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai import files
from fortifai.errors import InputError
from fortifai.report.numbers import number, signed
from fortifai.report.text import DASH
from fortifai.stats.scores import SCORES

if TYPE_CHECKING:
    from fortifai.audit import Audit, Finding


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
    # loaded where a page is written: they bring matplotlib, which a terminal needs not
    from fortifai.report import audit_figures
    from fortifai.report.page import fill

    check_folder(folder)
    plots = audit_figures.of(audit)
    page = fill(
        "audit.html.j2",
        title=audit.subject,
        verdict=audit.verdict,
        next_step=audit.next_step,
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
    with files.writing("the audit", folder, "another folder with --out"):
        folder.mkdir(parents=True, exist_ok=True)
        files.write_whole(folder / "audit.json", json.dumps(audit.record(), indent=1) + "\n")
        files.write_whole(folder / "index.html", page)
    return folder / "index.html"


def _groups(audit: Audit) -> list[dict[str, Any]]:
    """Findings of all, then of each source: those that are judged, and the others."""
    out = []
    for source in sorted({found.source for found in audit.findings}):
        own = [found for found in audit.findings if found.source == source]
        against = {found.against for found in own}
        out.append(
            {
                "source": source,
                # what all are compared with, which then stands above them once
                "against": against.pop() if len(against) == 1 else "",
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
