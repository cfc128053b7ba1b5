"""What an experiment needs of its kind of data: one protocol before work starts, one within it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fortifai.evals.score import Score
from fortifai.evals.view import Stage
from fortifai.loop.progress import Progress
from fortifai.loop.recurse import Family, Samples


class Inputs(Protocol):
    """Everything that a run works on, read and checked, in memory; nothing is written yet."""

    @property
    def unit(self) -> str:
        """What samples are counted in: tokens, points, images."""
        ...

    @property
    def splits(self) -> int:
        """How many splits there are."""
        ...

    @property
    def split_size(self) -> int:
        """Samples of one split."""
        ...

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """What a plan says of them, name and value."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about them."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the data."""
        ...

    @property
    def model_bytes(self) -> int:
        """Size of the saved model of one chain."""
        ...

    @property
    def sample_bytes(self) -> int:
        """Size of one saved sample of one seed."""
        ...

    def effort(self, arm: str, samples: int) -> tuple[int, int]:
        """Samples read in training on so many, and optimizer steps (0: it has none)."""
        ...

    def foundation(self, splits: int) -> str:
        """SHA-256 of what chains on the first `splits` splits are trained on, base model included.

        With more splits in all it stays what it was, where a run can grow.
        """
        ...

    def write(self, folder: Path, progress: Progress, *, before: Path | None = None) -> None:
        """Write what all chains share into `folder`.

        Args:
            folder: Where to.
            progress: Receives the steps.
            before: What was written for fewer generations on the same foundation, if so: a base
                model is taken from there.
        """
        ...


def fingerprint(arrays: Iterable[Samples]) -> str:
    """SHA-256 of the values of arrays, in their order."""
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Ground:
    """What one chain stands on."""

    family: Family[Any]
    real: Sequence[Samples]
    evaluate: Callable[[Stage[Any], Path], Sequence[Score]]


class Shared(Protocol):
    """What `Inputs.write` wrote, as the chains read it back."""

    def ground(self, arm: str, seeds: tuple[int, ...], folder: Path) -> Ground:
        """The family, the data and the measures of one chain that works in `folder`."""
        ...
