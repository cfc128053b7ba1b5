"""What a run looks like in a terminal and in a log: generations as reports count them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fortifai import configuration
from fortifai.cli import terminal
from fortifai.lab.executor import Event

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
