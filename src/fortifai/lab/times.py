"""How long generations take: beside what they leave, since a rerun writes the same bytes."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from fortifai.lab.measures import Score
from fortifai.lab.progress import Progress

TIMES = ".times.jsonl"
"""In a chain's folder; a line for each commit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Took:
    """What a committed generation took, with those behind the commit before it.

    Attributes:
        generations: How many.
        seconds: By the clock.
        processor_seconds: Of all threads of the chain's process.
        stages: Seconds by the clock of ``train``, ``rewrite``, ``measure`` and others; what is left
            of `seconds` is reading, saving and setting up.
    """

    generations: int
    seconds: float
    processor_seconds: float
    stages: dict[str, float]


class Timed:
    """Passes progress on, and writes down what each commit took."""

    def __init__(self, progress: Progress, folder: Path) -> None:
        self._progress, self._folder = progress, folder
        self._generations = 0
        self._restart()

    def _restart(self) -> None:
        self._began, self._used = time.monotonic(), time.process_time()
        self._heard = self._began
        self._stages: dict[str, float] = {}

    def begin(self, generation: int) -> None:
        """Start the clock, if it is the first one behind a commit."""
        if self._generations == 0:
            self._restart()
        self._generations += 1
        self._heard = time.monotonic()
        self._progress.begin(generation)

    def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
        """Count the time since the last word as this stage's: a step is told when it is done."""
        now = time.monotonic()
        self._stages[stage] = self._stages.get(stage, 0.0) + now - self._heard
        self._heard = now
        self._progress.step(stage, done, total, tokens=tokens)

    def end(self, generation: int, scores: Sequence[Score]) -> None:
        """Write down what the commit took."""
        took = Took(
            self._generations,
            round(time.monotonic() - self._began, 3),
            round(time.process_time() - self._used, 3),
            {stage: round(seconds, 3) for stage, seconds in self._stages.items()},
        )
        self._generations = 0
        with (self._folder / TIMES).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"generation": generation, **dataclasses.asdict(took)}) + "\n")
        self._progress.end(generation, scores)


def times(folder: Path) -> dict[int, Took]:
    """What the commits of a chain took, by generation, as far as it was written down.

    Of one that was done again the last time counts; a line that a kill cut short does not.
    """
    out: dict[int, Took] = {}
    path = folder / TIMES
    for line in path.read_text("utf-8", "replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            generation = int(row.pop("generation"))
            out[generation] = Took(**row)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return out


__all__ = ["TIMES", "Timed", "Took", "times"]
