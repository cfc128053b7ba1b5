"""Progress as plain lines, where no terminal draws bars: in logs and behind pipes."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

EVERY = 10.0
"""Seconds from the start to the first line, and from one to the next."""


def draws_bars(console: Console) -> bool:
    """Whether it is a terminal that can move its cursor; a file, a pipe and a dumb one cannot."""
    return console.is_terminal and not console.is_dumb_terminal


class Lines:
    """Prints a line of progress every so often; work that is done before has none.

    Args:
        console: Where to.
        clock: Seconds that only rise.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._last = clock()

    def __call__(self, what: str, told: str) -> None:
        """Say how far something is, if the last line is long ago.

        Args:
            what: Is being done.
            told: How much of it is done.
        """
        now = self._clock()
        if now - self._last >= EVERY:
            self._last = now
            self._console.print(Text(f"{what}: {told}"), soft_wrap=True, highlight=False)
