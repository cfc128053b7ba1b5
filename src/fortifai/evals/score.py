"""A score is a record: what was measured, where, how surely, and what chance alone would give."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Direction = Literal["higher", "lower", "none"]


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """One measured number.

    Attributes:
        measure: Name of the measure, dotted by variant, such as ``kr.mean`` or ``perplexity``.
        value: The number.
        on: The data it was measured on: ``split-0`` (the real text of split 0), ``rewritten-0``,
            ``held-out``, ``up-to-stage``, ``total``, ``train``, or ``model`` for what is read off
            the model's parameters.
        n: How many items (questions, tokens) stand behind it.
        stderr: Standard error of `value`, or None where none is defined.
        unit: ``share``, ``nats``, ``perplexity``, ``tokens``...
        chance: What guessing would give, or None.
        direction: Whether ``higher`` or ``lower`` is better, or ``none``.
        by_seed: Where one model holds all seeds of an arm: the value of each seed, in the order of
            the seeds; `value` is their mean. None where the score is of one seed.
    """

    measure: str
    value: float
    on: str
    n: int
    stderr: float | None = None
    unit: str = ""
    chance: float | None = None
    direction: Direction = "none"
    by_seed: tuple[float, ...] | None = None

    def record(self) -> dict[str, Any]:
        """The score as a plain dictionary, ready for JSON."""
        out = dataclasses.asdict(self)
        if self.by_seed is None:
            del out["by_seed"]
        return out
