"""The league as JSON, as Markdown and as a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fortifai import files
from fortifai.errors import InputError
from fortifai.report import style
from fortifai.report.failure import times_of
from fortifai.report.league import CLASSES, KNOWLEDGE, Entry, League, Row, enter
from fortifai.report.lines import lead_figure
from fortifai.report.numbers import number, span
from fortifai.report.page import fill, table
from fortifai.report.records import FIRST, KR, Arm
from fortifai.report.scene import Plot, Scene
from fortifai.report.text import DASH, neutral
from fortifai.stats import Ratio

VERSION = 1
"""Of the layout of ``league.json``."""
DRAWN = 5
"""Arms in a figure besides the baseline: those that lasted longest."""
SMALL = 1.3
"""A class whose every interval ends below this many times the baseline's time does not help."""

_HEAD = (
    "cure", "knowledge", "decay a generation", "generations to failure", "times the baseline's",
    "p, corrected", "perplexity: times the baseline's", "distinct-3, of real text's",
    "tokens trained", "generated", "scored", "seconds a generation",
)  # fmt: skip
_METHOD = (
    "Failure: half of the gain over chance in Knowledge Retention is lost; for perplexity, three "
    "times generation 0's on the first split's original. Small: 95\u00a0% intervals over seeds, "
    "and over questions where there are any, arm and baseline paired; p-values after Holm's "
    "correction over the arms of a table. Arms of a table took equal updates and equal generation; "
    "tokens are means over seeds of all generations together, seconds those of the entry's "
    "processors."
)


def write_league(folders: Sequence[Path], out: Path) -> Path:
    """Judge entries; write ``league.json``, ``league.md``, ``index.html`` and its figures.

    Args:
        folders: Run folders of the league's presets.
        out: Where to; made if need be.

    Returns:
        The path of ``index.html``. The same entries give the same bytes.

    Raises:
        InputError: See `fortifai.report.league.enter`; or `out` is a file.
        RunFailed: The league could not be written.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for the league")
    league = enter(folders)
    plots = [plot for entry in league.entries for plot in _figures(entry)]
    rows = [{**dataclasses.asdict(row), "entry": dict(row.entry)} for row in league.rows]
    told = json.dumps({"version": VERSION, "rows": rows}, indent=1, sort_keys=True) + "\n"
    with files.writing("the league", out, "another folder with --out"):
        (out / "figures").mkdir(parents=True, exist_ok=True)
        files.write_whole(out / "league.json", told)
        files.write_whole(out / "league.md", markdown(league))
        for plot in plots:
            files.write_whole(out / "figures" / f"{plot.name}.svg", plot.file)
        files.write_whole(out / "index.html", _page(league, plots))
    return out / "index.html"


# --- tables -----------------------------------------------------------------------------------


def _tables(league: League) -> list[tuple[str, str, list[Row]]]:
    """A track, what is compared in it, and its rows: the baseline first, the longest next."""
    out = []
    for track in league.tracks:
        for group in CLASSES:
            for larger in (False, True):
                rows = [
                    row
                    for row in league.rows
                    if (row.track, row.group, row.larger) == (track, group, larger)
                ]
                if rows:
                    title = f"{group}{', at a larger budget' if larger else ''}"
                    out.append((track, title, sorted(rows, key=_rank)))
    return out


def _rank(row: Row) -> tuple[bool, float, str]:
    value = row.longer.value if row.longer and row.longer.value is not None else 0.0
    return not row.baseline, -value, row.arm


def _cells(row: Row) -> list[Any]:
    knowledge = DASH
    if row.knowledge is not None:
        knowledge = " to ".join(number(v, ".3f") for v in row.knowledge)
    decay = {"text": DASH, "note": ""}
    if row.decay is not None:
        decay = {"text": number(row.decay[0], ".3f"), "note": span(*row.decay[1:], ".3f")}
    budget = dataclasses.astuple(row.budget)
    ended = f"{row.diverged} of {row.seeds} seeds diverged" if row.diverged else ""
    return [
        {"text": knowledge, "note": ended},
        decay,
        _time(row),
        _longer(row, row.longer),
        DASH if row.corrected is None else number(row.corrected, ".2g"),
        _longer(row, row.fluent),
        number(row.diversity),
        *(f"{value:,.0f}" for value in budget),
        number(row.seconds, ".1f"),
    ]


def _time(row: Row) -> dict[str, str]:
    if row.time is None:
        return {"text": DASH, "note": "not measured"}
    mean, open_ = row.time
    note = f"{row.seeds - open_} of {row.seeds} seeds failed" if open_ else ""
    return {"text": f"{'> ' if open_ else ''}{mean:.2f}", "note": note}


def _longer(row: Row, found: Ratio | None) -> dict[str, str]:
    if found is None or found.value is None or found.bound == "unknown":
        return {"text": "1" if row.baseline else DASH, "note": "baseline" if row.baseline else ""}
    sign = {"none": "", "lower": "> ", "upper": "< ", "unknown": ""}[found.bound]
    return {"text": f"{sign}{found.value:.2f}", "note": span(found.low, found.high, ".2f")}


def markdown(league: League) -> str:
    """The tables of a league, and what follows from them, in Markdown."""
    lines = ["# League of cures", ""]
    for track, title, rows in _tables(league):
        lines += [f"## {track}: {title}", "", _bar(_HEAD), _bar(["---"] * len(_HEAD))]
        for row in rows:
            lines.append(_bar([row.arm, *map(_flat, _cells(row))]))
        lines += ["", advice(rows), ""]
    return "\n".join([*lines, _METHOD.replace("\u00a0", " "), ""])


def _bar(cells: Sequence[str]) -> str:
    safe = (neutral(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(safe)} |"


def _flat(cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell['text']} ({cell['note']})" if cell["note"] else str(cell["text"])


def advice(rows: Sequence[Row]) -> str:
    """What to use, by one table and no more than it carries."""
    judged = [row for row in rows if row.longer is not None and row.longer.low is not None]
    if not judged:
        return "No cure of this table has an interval, so nothing can be said of it."
    sure = [
        row
        for row in judged
        if row.longer
        and row.longer.low is not None
        and row.longer.low > 1
        and (row.corrected is None or row.corrected < 0.05)
    ]
    if sure:
        best = max(sure, key=lambda row: row.longer.low or 0.0 if row.longer else 0.0)
        told = _flat(_longer(best, best.longer))
        others = [row.arm for row in sure if row is not best]
        more = f" So {'do' if others[1:] else 'does'} {', '.join(others)}." if others else ""
        return (
            f"Use {best.arm}: knowledge lasts {told} times as long as under the baseline, which is "
            f"statistically significant.{more}"
        )
    ends = [row.longer.high for row in judged if row.longer]
    if all(high is not None and high < SMALL for high in ends):
        return (
            f"**No cure of this table helps knowledge**: every interval ends below {SMALL} times "
            "the baseline's time."
        )
    return (
        "No cure of this table makes knowledge last longer with statistical significance; the "
        f"intervals do not exclude {SMALL} times, so more seeds or questions may."
    )


# --- the page ---------------------------------------------------------------------------------


def _page(league: League, plots: Sequence[Plot]) -> str:
    tables = [
        table(
            f"table-{i}",
            f"{track}: {title}",
            [{"label": row.arm, "colour": "", "cells": _cells(row)} for row in rows],
            head=list(_HEAD),
            note=advice(rows).replace("**", ""),
        )
        for i, (track, title, rows) in enumerate(_tables(league))
    ]
    seeds = max(row.seeds for row in league.rows)
    return fill(
        "template.html.j2",
        title="League of cures",
        state=f"{_counted(len(league.rows), 'arm')} in {_counted(len(league.entries), 'entry')}",
        headline="Which cure slows model collapse, at an equal budget",
        stories=[
            {
                "run": "What to use",
                "verdicts": [],
                "lines": [_story(*told) for told in _tables(league)],
            },
        ],
        method=f"{_METHOD} Seeds of an arm: at most {seeds}.",
        tables=tables,
        plots=plots,
        passages=[],
        passage_seed=0,
        ledgers=[],
        unit="tokens",
        made=[_made(entry) for entry in league.entries],
    )


def _counted(number: int, what: str) -> str:
    if number == 1:
        return f"1 {what}"
    return f"{number} {what[:-1]}ies" if what.endswith("y") else f"{number} {what}s"


def _story(track: str, title: str, rows: Sequence[Row]) -> dict[str, str]:
    told = advice(rows).replace("**", "")
    return {"label": f"{track}, {title}.", "text": told, "colour": "transparent"}


def _figures(entry: Entry) -> list[Plot]:
    """Knowledge by generation: the baseline and the arms that lasted longest."""

    def lasted(arm: Arm) -> float:
        found = times_of(arm, KNOWLEDGE)
        return sum(time.stage for time in found) / len(found) if found else 0.0

    others = sorted((a for a in entry.run.arms if not a.baseline), key=lasted, reverse=True)
    arms = tuple(arm for arm in entry.run.arms if arm.baseline or arm in others[:DRAWN])
    scene = Scene([dataclasses.replace(entry.run, arms=arms)])
    if not scene.has((KR, FIRST)):
        return []
    with style.drawing():
        return [lead_figure(scene, (KR, FIRST), of=entry.track)]


def _made(entry: Entry) -> dict[str, Any]:
    facts = [(name, json.dumps(value)) for name, value in entry.facts.items()]
    run = entry.run
    return {"label": run.label, "notes": run.notes, "facts": facts, "yaml": run.yaml}


__all__ = ["advice", "markdown", "write_league"]
