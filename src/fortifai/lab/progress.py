"""How long work tells what it is doing, without knowing who listens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fortifai.lab.measures import Score


class Progress(Protocol):
    """Receives progress of one arm and seed."""

    def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
        """Say that `done` of `total` steps of `stage` are done.

        Args:
            stage: What is being done: ``train``, ``rewrite``, ``measure``, ``pretrain``.
            done: Steps finished so far.
            total: Steps in this stage.
            tokens: Tokens processed in this stage so far; 0 where tokens mean nothing.
        """
        ...

    def begin(self, generation: int) -> None:
        """Say that a generation starts."""
        ...

    def end(self, generation: int, scores: Sequence[Score]) -> None:
        """Say that a generation was measured and committed."""
        ...


class Silent:
    """Listens to nothing: for tests and for library use."""

    def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
        """Ignore the step."""

    def begin(self, generation: int) -> None:
        """Ignore the start."""

    def end(self, generation: int, scores: Sequence[Score]) -> None:
        """Ignore the end."""


class Counted(Silent):
    """Passes steps on, and keeps how many tokens they have come to."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self.tokens = progress, 0

    def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
        """Count and pass on."""
        self.tokens = tokens
        self._progress.step(stage, done, total, tokens=tokens)
