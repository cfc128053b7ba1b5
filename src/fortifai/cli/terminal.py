"""What a run looks like in a terminal, and in a log file."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from fortifai.cli.plain import draws_bars
from fortifai.lab.executor import Event, Job, Listen
from fortifai.lab.experiment import SHARED
from fortifai.lab.plan import RunPlan
from fortifai.lab.spec import AnyExperiment
from fortifai.lab.status import ChainStatus, State


@contextmanager
def watching(config: AnyExperiment, console: Console, chains: int) -> Iterator[Listen]:
    """A listener that draws progress on a terminal, and prints one line a generation elsewhere.

    Args:
        config: What is run.
        console: Where to.
        chains: How many of its chains.
    """
    if not draws_bars(console):
        yield _Lines(config, console)
        return
    columns = (
        TextColumn("{task.description}", table_column=None),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[info]}"),
        TimeElapsedColumn(),
        _Left(),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        yield _Bars(config, progress, chains)


class _Left(ProgressColumn):
    """Time left, from the share that is done."""

    def render(self, task: Task) -> Text:
        if not task.total or not task.completed or task.elapsed is None or task.finished:
            return Text("")
        left = task.elapsed * (task.total - task.completed) / task.completed
        return Text(f"{_clock(left)} left", style="cyan")


class _Rate:
    """Tokens per second of the stage a chain is in."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._since, self._tokens = 0.0, 0

    def __call__(self, event: Event) -> str:
        now, key = time.monotonic(), (event.job, event.generation, event.stage)
        if key != self._key or event.tokens < self._tokens:
            self._key, self._since, self._tokens = key, now, event.tokens
            return ""
        seconds = now - self._since
        if not event.tokens or seconds < 0.5:
            return ""
        return f"{(event.tokens - self._tokens) / seconds:,.0f} tokens/s"


class _Bars:
    """One bar for the whole, one for each chain at work."""

    def __init__(self, config: AnyExperiment, progress: Progress, chains: int) -> None:
        self._config, self._progress = config, progress
        self._lock = threading.Lock()
        self._whole = progress.add_task(
            f"[bold]{escape(config.name)}[/]",
            total=chains * config.generations,
            info=f"{chains} x generations 0 to {config.generations - 1}",
        )
        self._reached: dict[Job, int] = {}
        self._tasks: dict[Job, int] = {}
        self._rates: dict[Job, _Rate] = {}

    def __call__(self, event: Event) -> None:
        with self._lock:
            if event.kind == "note":
                self._progress.console.print(Text(f"{_name(event.job)}: {event.text}"))
            elif event.kind == "end":
                self._end(event)
            else:
                self._step(event)

    def _end(self, event: Event) -> None:
        # a chain that is taken up again starts behind what it has already
        self._reached[event.job] = event.generation + 1
        self._progress.update(self._whole, completed=sum(self._reached.values()))
        line = _line(event, self._config)
        self._progress.console.print(Text(line), highlight=False)
        if event.generation == self._config.generations - 1 and event.job in self._tasks:
            self._progress.remove_task(self._tasks.pop(event.job))  # type: ignore[arg-type]

    def _step(self, event: Event) -> None:
        if event.job not in self._tasks:
            self._tasks[event.job] = self._progress.add_task("", total=1, info="")
            self._rates[event.job] = _Rate()
        task = self._tasks[event.job]
        self._progress.update(
            task,  # type: ignore[arg-type]
            description=f"  {escape(_name(event.job))}"
            + ("" if event.job == SHARED else f" gen {event.generation}"),
            completed=event.done,
            total=event.total or 1,
            info=f"{event.stage} {event.done:,}/{event.total:,} {self._rates[event.job](event)}",
        )
        if event.job == SHARED and event.done >= event.total:
            self._progress.remove_task(self._tasks.pop(event.job))  # type: ignore[arg-type]


class _Lines:
    """One plain line a generation: for logs."""

    def __init__(self, config: AnyExperiment, console: Console) -> None:
        self._config, self._console = config, console

    def __call__(self, event: Event) -> None:
        if event.kind == "note":
            text = f"{_name(event.job)}: {event.text}"
        elif event.kind == "end":
            text = _line(event, self._config)
        else:
            return
        self._console.print(Text(text), soft_wrap=True, highlight=False)


def _name(job: Job) -> str:
    # one chain for all seeds is the arm itself
    return job[0] if job[1] in ("", "seeds") else f"{job[0]} {job[1].replace('-', ' ')}"


def _line(event: Event, config: AnyExperiment) -> str:
    # counted as in tables, figures and folders: generation 0 is the first that is trained
    parts = [f"{_name(event.job)} {_numbered(event.generation, config.generations)}"]
    for measure in config.taken():
        for headline in measure.headlines:
            key = (headline.score, headline.on)
            found = [s.value for s in event.scores if (s.measure, s.on) == key]
            if found:  # where a chain holds several seeds, their mean
                parts.append(f"{headline.label} {sum(found) / len(found):{headline.form}}")
    return "  ".join(parts)


def _numbered(generation: int, count: int) -> str:
    return f"generation {generation}" + (f" (of 0 to {count - 1})" if count > 1 else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


_BEGUN = (
    "; a text that is written anew begins as it was, which is counted here and not in what the run "
    "counts as generated"
)


def print_plan(console: Console, config: AnyExperiment, plan: RunPlan, folder: Path) -> None:
    """The plan of a run as tables."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for key, value in (
        ("run", f"{config.name} -> {folder}"),
        ("arms x seeds", f"{len(plan.arms)} x {plan.seeds}, {plan.generations} generations each"),
        *plan.facts,
        ("disk", f"about {plan.disk_bytes / 1e6:,.0f} MB"),
    ):
        facts.add_row(key, Text(value))
    for note in plan.notes:
        facts.add_row("note", Text(note))
    console.print(facts)
    title = "\nper arm and seed, all generations together"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("arm", f"trained {plan.unit}", "steps", f"written {plan.unit}", "real share"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm in plan.arms:
        table.add_row(
            Text(arm.arm),
            f"{arm.trained // plan.seeds:,}",
            f"{arm.steps // plan.seeds:,}",
            f"{arm.rewritten // plan.seeds:,}",
            _shares(arm.real_share, plan.generations),
        )
    console.print(table)
    several = f"{plan.seeds} seeds take {plan.seeds} times as much. " if plan.seeds > 1 else ""
    begun = _BEGUN if plan.unit == "tokens" else ""
    told = f"{several}Before cures, which may drop some{begun}."
    console.print(Text(told, style="dim"))
    console.print("nothing was written; run it without --dry-run", highlight=False)


def print_status(console: Console, chains: Sequence[ChainStatus]) -> None:
    """The chains of a run as a table, and how many are in which state."""
    table = Table(box=None, pad_edge=False)
    for heading in ("chain", "state", "generations", ""):
        table.add_column(heading, no_wrap=heading != "", overflow="fold")
    for one in chains:
        color = {"failed": "red", "finished": "green", "running": "cyan"}.get(one.state, "")
        table.add_row(
            *(one.chain, Text(one.state, style=color), f"{one.done} of {one.due}", Text(one.told))
        )
    console.print(table)
    states = Counter(one.state for one in chains)
    told = ", ".join(f"{states[state]} {state}" for state in get_args(State) if states[state])
    console.print(f"{len(chains)} chains: {told}", highlight=False)


def _shares(shares: tuple[float, ...], generations: int) -> str:
    """The real share by generation, with a gap where some are left out."""
    told = [f"{share:.0%}" for share in shares]
    return " ".join(told if len(told) == generations else [*told[:-1], "...", told[-1]])
