"""What the measures see of a finished generation, whatever the family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

M = TypeVar("M")


@dataclasses.dataclass(frozen=True)
class Stage(Generic[M]):
    """A generation that was trained and has rewritten its data.

    Attributes:
        generation: i, from 0.
        model: M_i.
        real: D_k^(0), the splits as they were.
        rewritten: What M_i wrote, by split.
        fit: What training reported, such as ``loss``, ``tokens`` and ``truncated_share``.
        seed: For measures that draw at random.
        tick: Tells how many of how many steps of measuring are done.
        origin: Folder of generation 0, for measures that compare with it: generation 0 writes
            there what the later ones read back.
    """

    generation: int
    model: M
    real: Sequence[NDArray[Any]]
    rewritten: Mapping[int, NDArray[Any]]
    fit: Mapping[str, Any]
    seed: int
    tick: Callable[[int, int], None]
    origin: Path
