"""`fortifai audit` of corpora: one beside a reference, or one before and after a filter stage."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fortifai.cli.common import FOUND, err_console, out_console, say
from fortifai.cli.findings import show
from fortifai.cli.plain import Lines, draws_bars
from fortifai.errors import InputError
from fortifai.report.text import neutral

if TYPE_CHECKING:
    from fortifai.audit import CorpusAudit
    from fortifai.audit.corpus import Corpus, Tick
    from fortifai.audit.documents import Fields
    from fortifai.audit.survival import Survival
    from fortifai.stats.scores import Reference

STOPPED, NOT_COMPARED = 130, 2


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command was given."""

    text: tuple[str, ...]
    against: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    fields: Fields
    scores: Path | None
    fail_on: tuple[str, ...]
    skip_bad: int
    processes: int | None
    card: Path | None
    out: Path | None
    seed: int
    as_json: bool


def run(o: Options) -> int:
    """Do it, and say it; returns the exit code."""
    try:
        return _stage(o) if o.before or o.after else _audit(o)
    except KeyboardInterrupt:
        err_console.print("stopped; nothing was written", soft_wrap=True)
        return STOPPED


def _audit(o: Options) -> int:
    from fortifai.audit import audit_corpus, reference_of
    from fortifai.audit.table import check_scores

    if not o.text:
        raise InputError(
            "nothing to audit; give a MODEL, a corpus with --text, or --before and --after"
        )
    levels = _levels(o.fail_on)
    if levels and not o.against:
        raise InputError("--fail-on judges differences; give a reference with --against")
    if o.scores is not None:
        check_scores(o.scores)
    texts, others = _sources(o.text, o.fields), _sources(o.against, o.fields, reference=True)
    with _reading() as bar:
        other = made = None
        if o.against:
            other = _read(others, o, bar("reference"), reference=True)
            made = reference_of(other)
        text = _read(texts, o, bar("text"), made, scores=o.scores)
    subject, reference = _called(o.text), _called(o.against)
    found = audit_corpus(
        text, other, subject=subject, reference=reference, fail_on=levels, seed=o.seed
    )
    if o.as_json:
        typer.echo(json.dumps(found.record()))
    else:
        show(found, found.grown)
    _write(found, o)
    if found.collapsed:
        return FOUND
    return 0 if found.comparable or levels else NOT_COMPARED


def _write(found: CorpusAudit, o: Options) -> None:
    from fortifai.report.audit import write_audit
    from fortifai.report.card import write_card

    if o.out is not None:
        path = write_audit(found, o.out)
        err_console.print(Text(f"report: {path.resolve()}"), soft_wrap=True)
    if o.card is not None:
        write_card(found, o.card)
        err_console.print(Text(f"card: {o.card.resolve()}"), soft_wrap=True)
    if o.scores is not None:
        err_console.print(Text(f"scores: {o.scores.resolve()}"), soft_wrap=True)


def _stage(o: Options) -> int:
    from fortifai.audit.survival import survival

    if not (o.before and o.after) or o.text or o.against:
        raise InputError(
            "a filter stage is --before FILE --after FILE, without --text and --against"
        )
    if o.scores or o.fail_on or o.card or o.out:
        raise InputError("--scores, --fail-on, --card and --out need --text; leave them out")
    names = _sources(o.before, o.fields), _sources(o.after, o.fields)
    with _reading() as bar:
        before, after = _read(names[0], o, bar("before")), _read(names[1], o, bar("after"))
    found = survival(before, after)
    if o.as_json:
        typer.echo(json.dumps(found.record()))
    else:
        _show_survival(found)
    return 0


def _show_survival(found: Survival) -> None:
    out_console.print(Text(found.sampled, style="dim"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("documents", overflow="fold")
    for name in ("before", "kept", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    last = ""
    for group in found.groups:
        if group.of not in (last, "all"):
            table.add_row(Text(f"by {group.of}", style="bold dim"))
        last = group.of
        table.add_row(
            Text("all" if group.of == "all" else f"  {neutral(group.name) or '(none)'}"),
            f"{group.kept.n:,}",
            f"{group.kept.value:.1%}",
            f"{group.kept.low:.1%} to {group.kept.high:.1%}",
        )
    out_console.print(table)
    if found.added:
        say(f"{found.added:.1%} of the documents after the stage were not there before it")


def _sources(
    names: tuple[str, ...], fields: Fields, *, reference: bool = False
) -> tuple[list[str], Fields]:
    """Files, and where in their rows things are."""
    from fortifai.audit import pieces

    try:
        return pieces.sources(names, fields, Path.cwd()), fields
    except InputError:
        if not reference:
            raise
        # a reference need not have sources or a detector's scores
        fields = dataclasses.replace(fields, by=None, detector=None)
        return pieces.sources(names, fields, Path.cwd()), fields


def _read(
    what: tuple[list[str], Fields],
    o: Options,
    tick: Tick,
    made: Reference | None = None,
    *,
    scores: Path | None = None,
    reference: bool = False,
) -> Corpus:
    from fortifai.audit import corpus
    from fortifai.machine import cores

    names, fields = what
    workers = corpus.processes(names, o.processes, cores())
    reading = corpus.Reading(fields, o.skip_bad, workers, grams=reference)
    return corpus.read(names, reading, made, scores_to=scores, tick=tick)


@contextmanager
def _reading() -> Iterator[Callable[[str], Tick]]:
    """Bars for corpora that are read, by their names; lines without a terminal."""
    if not draws_bars(err_console):
        yield partial(_in_lines, Lines(err_console))
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows, {task.fields[rate]:,.0f} a second"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err_console, transient=True) as progress:
        yield _Bar(progress)


def _in_lines(line: Lines, what: str) -> Tick:
    def tick(done: int, total: int, rows: int) -> None:
        line(f"reading {what}", f"{rows:,} rows" + (f", {done / total:.0%}" if total else ""))

    return tick


class _Bar:
    """A progress bar for each corpus."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, what: str) -> Tick:
        task = self._progress.add_task(what, total=None, rows=0, rate=0.0)

        def tick(done: int, total: int, rows: int) -> None:
            elapsed = self._progress.tasks[task].elapsed or 1e-9
            self._progress.update(
                task, completed=done, total=total or None, rows=rows, rate=rows / elapsed
            )

        return tick


def _called(names: tuple[str, ...]) -> str:
    """Corpora in print; the order in which files are given changes nothing."""
    first, *more = sorted(names) or [""]
    first = first if first.startswith("hub:") else Path(first).name
    return f"{first} and {len(more)} more" if more else first


def _levels(given: tuple[str, ...]) -> dict[str, float] | None:
    out: dict[str, float] = {}
    for one in given:
        name, _, level = one.rpartition(":")
        try:
            out[name] = float(level)
        except ValueError:
            out[name] = 0.0
        if not name or not abs(out[name]) > 0 or abs(out[name]) == float("inf"):
            raise InputError(
                f"--fail-on is {one!r}; give MEASURE:LEVEL with a difference that is not 0, such "
                "as entropy:-0.2 or repetition:0.05"
            )
    return out or None
