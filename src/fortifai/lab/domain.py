"""What the loop and the experiment ask of a kind of data: its models, and what is measured."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fortifai.lab.budget import Spent
from fortifai.lab.measures import Generation, Score
from fortifai.lab.progress import Progress
from fortifai.lab.seeds import Seed

Samples = NDArray[Any]
"""An array whose first axis is the sample: tokens, images or points."""


class Model(Protocol):
    """A generative model of one generation.

    Attributes:
        spent: Where it counts what it trains on, writes and scores.
    """

    spent: Spent

    def fit(self, samples: Samples, *, seed: Any, progress: Progress) -> Mapping[str, Any]:
        """Train on `samples`; returns what is worth writing down (loss, truncated share...).

        Raises:
            Diverged: The model has diverged or collapsed so far that it cannot go on.
        """
        ...

    def regenerate(self, samples: Samples, *, seed: Any, progress: Progress) -> Samples:
        """Write data in the place of `samples`.

        Raises:
            Diverged: As in `fit`.
        """
        ...

    def log_prob(self, samples: Samples) -> NDArray[np.floating]:
        """Log-probability in nats, one number per token, pixel or point."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights and what `Family.load` needs into `folder`, which this makes."""
        ...


M = TypeVar("M", bound=Model)
M_co = TypeVar("M_co", bound=Model, covariant=True)


class Family(Protocol[M_co]):
    """Makes the models of one arm."""

    def create(self, start: Literal["base", "scratch"], *, seed: Any) -> M_co:
        """The base model, or a new one with random weights from the seed."""
        ...

    def load(self, folder: Path) -> M_co:
        """The model that `Model.save` wrote."""
        ...

    def share(self, samples: Samples, between: tuple[float, float], seed: Any) -> Samples:
        """A random share of the units of `samples`; see `draw_share`."""
        ...

    def edges(self, samples: Samples, *, unit: str | None) -> NDArray[np.int64]:
        """Where the units of `samples` begin, and the end, for cures.

        Args:
            samples: Of one split.
            unit: One of the experiment's `units`; None: what the family trains on.
        """
        ...


class Domain(Protocol):
    """The data of one experiment, its models and its measures.

    An experiment reads it (`Experiment.read`), which checks all that can be checked before work
    starts; it is saved for all chains, which load it (`Experiment.load`).
    """

    @property
    def real(self) -> Sequence[Samples]:
        """D_k^(0), the splits."""
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

    def save(self, folder: Path, progress: Progress, *, before: Path | None = None) -> None:
        """Write what all chains share into `folder`.

        Args:
            folder: Where to; a folder in it that was committed when an earlier call was killed is
                taken as it is.
            progress: Receives the steps.
            before: What was saved for fewer generations on the same foundation, if so: a base
                model is taken from there.
        """
        ...

    def chain(self, arm: str, seed: Any, folder: Path) -> tuple[Family[Any], Sequence[Samples]]:
        """The models and the splits of one chain that works in `folder`."""
        ...

    def evaluate(self, generation: Generation[Any, Any], folder: Path) -> Sequence[Score]:
        """Measure a generation; tables and pictures that are not scores go into `folder`."""
        ...


def fingerprint(arrays: Iterable[Samples]) -> str:
    """SHA-256 of the values of arrays, in their order."""
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def draw_share(values: Samples, between: tuple[float, float], unit: int, seed: int) -> Samples:
    """A random share of the units of `values`, in their order.

    Args:
        values: Samples; the first axis is cut into units of `unit` values, the last one shorter.
        between: Range of the random order of units to take, as shares in [0, 1]. Ranges that
            part [0, 1] also part the units, given equal seeds.
        unit: Values that stay together.
        seed: Of the order.
    """
    n = -(-len(values) // unit)
    first, last = (round(share * n) for share in between)
    taken = np.sort(np.random.default_rng(seed).permutation(n)[first:last])
    places = (taken[:, None] * unit + np.arange(unit)).ravel()
    chosen: Samples = values[places[places < len(values)]]
    return chosen


def even_edges(count: int, unit: int) -> NDArray[np.int64]:
    """Edges of units of `unit` samples each, the last one shorter."""
    return np.append(np.arange(0, count, unit), count).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Under:
    """Progress under another stage's name."""

    progress: Progress
    stage: str

    def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
        """Pass the step on."""
        self.progress.step(self.stage, done, total, tokens=tokens)

    def begin(self, generation: int) -> None:
        """Pass the start on."""
        self.progress.begin(generation)

    def end(self, generation: int, scores: Sequence[Score]) -> None:
        """Pass the end on."""
        self.progress.end(generation, scores)


__all__ = [
    "Domain",
    "Family",
    "Model",
    "Samples",
    "Seed",
    "Under",
    "draw_share",
    "even_edges",
    "fingerprint",
]
