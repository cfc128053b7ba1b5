"""What a run looks like in a terminal and in a log: generations as reports count them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from fortifai import configuration
from fortifai.cli import terminal
from fortifai.lab.executor import Event
from fortifai.lab.plan import ArmPlan, RunPlan

JOB = ("ce", "seed-0")


def shown(generations: int, **console: object) -> str:
    """What a run prints that does one step of its last generation and ends it."""
    raw, _ = configuration.read_raw("demo")
    config = configuration.resolve(raw | {"generations": generations})
    out = io.StringIO()
    with terminal.watching(config, Console(file=out, width=100, **console), 2) as listen:
        for kind in ("step", "end"):
            last = generations - 1
            listen(Event(kind, JOB, generation=last, stage="train", done=1, total=2))
    return out.getvalue()


@pytest.mark.parametrize(
    ("generations", "line"),
    [(8, "ce seed 0 generation 7 (of 0 to 7)"), (1, "ce seed 0 generation 0")],
)
def test_lines_count_generations_from_0(generations, line):
    assert shown(generations) == f"{line}\n"


def test_bars_count_them_alike():
    told = shown(8, force_terminal=True, _environ={"TERM": "xterm"})
    assert "2 x generations 0 to 7" in told
    assert "ce seed 0 generation 7 (of 0 to 7)" in told


def test_a_dumb_terminal_has_lines():
    told = shown(8, force_terminal=True, no_color=True, _environ={"TERM": "dumb"})
    assert told == "ce seed 0 generation 7 (of 0 to 7)\n"


def test_the_plan_counts_as_the_league_does():
    """A seed at a time, all generations together."""
    arm = ArmPlan("ce", 9_830_400, 38_400, 1_228_800, (1.0, 0.0))
    raw, _ = configuration.read_raw("demo")
    chains = tuple(f"seed-{i}" for i in range(5))
    out = io.StringIO()
    made = RunPlan((arm,), chains, 5, 2, "tokens", (), 0, ())
    terminal.print_plan(Console(file=out, width=100), configuration.resolve(raw), made, Path("run"))
    told = " ".join(out.getvalue().split())
    assert "per arm and seed, all generations together" in told
    assert "ce 1,966,080 7,680 245,760" in told
    assert "5 seeds take 5 times as much." in told
