"""Cures: what is done to a training set between its writing and the fit on it.

From generation 1 on, the units that a generation is about to train on (documents or blocks of text,
points, images) pass through the cures of its arm, one after the other. A cure selects units, some
of them more than once if it likes, or edits them. It knows where each unit comes from, and can ask
the model that wrote the newest of them how likely each is. What is rewritten next are the samples
as they were written: a cure decides what is learnt from, and losses do not add up over generations.

To add one, write a subclass of `Select` or `Edit` with a ``kind`` and one method, and name it in
`CURES`.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fortifai.errors import Diverged, RunFailed
from fortifai.options import Options

Samples = NDArray[Any]
Indices = NDArray[np.int64]

REAL = -1
"""The origin of a unit that no model has written."""


@dataclasses.dataclass(frozen=True)
class Units:
    """Samples cut into units.

    Attributes:
        samples: All of them, one behind the other.
        edges: (n + 1,) where each unit begins, and the end.
        origins: (n,) the generation that wrote each unit, or `REAL`.
    """

    samples: Samples
    edges: Indices
    origins: Indices

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, i: int) -> Samples:
        unit: Samples = self.samples[self.edges[i] : self.edges[i + 1]]
        return unit

    def take(self, which: Indices) -> Units:
        """The units of these numbers, in this order."""
        lengths = np.diff(self.edges)[which]
        edges = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(edges[-1]) + np.repeat(self.edges[which] - edges[:-1], lengths)
        return Units(self.samples[places], edges, self.origins[which])

    @classmethod
    def join(cls, parts: Sequence[Units]) -> Units:
        """Several, one behind the other."""
        lengths = np.concatenate([np.diff(part.edges) for part in parts])
        return cls(
            np.concatenate([part.samples for part in parts]),
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate([part.origins for part in parts]),
        )

    def recut(self, edges_of: Callable[[Samples], Indices]) -> Units:
        """Other units, none of which has samples of two origins.

        Args:
            edges_of: Where the units of samples begin, and the end.
        """
        ends = np.append(np.flatnonzero(np.diff(self.origins)) + 1, len(self))
        edges, origins, start = [np.zeros(1, dtype=np.int64)], [], 0
        for end in ends:
            first, last = self.edges[start], self.edges[end]
            found = edges_of(self.samples[first:last])
            edges.append(first + found[1:])
            origins.append(np.full(len(found) - 1, self.origins[start]))
            start = end
        return Units(self.samples, np.concatenate(edges), np.concatenate(origins))

    def counts(self) -> dict[str, int]:
        """Units by origin: ``real``, ``generation-0``..."""
        found, counts = np.unique(self.origins, return_counts=True)
        return {_name(int(o)): int(n) for o, n in zip(found, counts, strict=True)}

    def values(self) -> tuple[int, int]:
        """Samples of real units, and all samples."""
        lengths = np.diff(self.edges)
        return int(lengths[self.origins == REAL].sum()), int(lengths.sum())


def _name(origin: int) -> str:
    return "real" if origin == REAL else f"generation-{origin}"


@dataclasses.dataclass(frozen=True)
class Context:
    """What a cure knows besides the units.

    Attributes:
        generation: The one that is about to be trained.
        seed: For what it draws at random.
        model: Log-probability in nats of samples under the model of the generation before, one
            number for each token, pixel or point; None for a cure without ``needs_model``.
    """

    generation: int
    seed: int
    model: Callable[[Samples], NDArray[np.floating]] | None

    def log_prob(self, samples: Samples) -> NDArray[np.floating]:
        """Log-probability in nats, one number for each token, pixel or point.

        Raises:
            RunFailed: The cure does not say that it needs the model, which then is not kept.
        """
        if self.model is None:
            raise RunFailed(
                "a cure asks for log-probabilities and does not say so; give its class "
                "needs_model = True"
            )
        return self.model(samples)

    def mean_log_prob(self, units: Units) -> NDArray[np.float64]:
        """(n,) mean log-probability of each unit, float64."""
        found = self.log_prob(units.samples).astype(np.float64)
        each = found.reshape(len(found), -1).mean(axis=1)
        # not differences of a cumulative sum, which a single -inf would spoil behind it
        sums: NDArray[np.float64] = np.add.reduceat(each, units.edges[:-1])
        return sums / np.diff(units.edges)


class Cure(Options):
    """A step between the writing of a training set and the fit on it.

    Attributes:
        kind: By which a YAML names it.
        unit: What it works on, such as ``document``; None: what the family trains on.
        needs_model: Whether it asks for log-probabilities.
    """

    kind: str
    unit: str | None = None
    needs_model: ClassVar[bool] = False

    @abstractmethod
    def apply(self, units: Units, context: Context) -> tuple[Units, dict[str, Any]]:
        """The units after it, and what the ledger says of it."""


class Select(Cure):
    """A cure that chooses units."""

    @abstractmethod
    def select(self, units: Units, context: Context) -> Indices:
        """The numbers of the units to train on, in their order, repeats allowed."""

    def apply(self, units: Units, context: Context) -> tuple[Units, dict[str, Any]]:
        """See `Cure`."""
        which = np.asarray(self.select(units, context), dtype=np.int64)
        if len(which) and not 0 <= which.min() <= which.max() < len(units):
            raise RunFailed(
                f"the cure {self.kind!r} selects units {which.min()} to {which.max()}, and there "
                f"are {len(units):,}, from 0; correct its select"
            )
        if len(which) == 0:
            raise Diverged(f"the cure {self.kind!r} keeps none of {len(units):,} units")
        kept = units.take(which)
        distinct = units.take(np.unique(which)).counts()
        row = {"read": units.counts(), "kept": distinct, "changed": {}}
        return kept, row | {"drawn_again": _less(kept.counts(), distinct)}


class Edit(Cure):
    """A cure that changes units and leaves their number as it is."""

    @abstractmethod
    def edit(self, units: Units, context: Context) -> Units:
        """The same units, changed; in the same order, with the same origins."""

    def apply(self, units: Units, context: Context) -> tuple[Units, dict[str, Any]]:
        """See `Cure`."""
        after = self.edit(units, context)
        if len(after) != len(units):
            raise RunFailed(
                f"the cure {self.kind!r} made {len(after):,} of {len(units):,} units; one that "
                "edits must keep their number, so correct its edit"
            )
        changed = [i for i in range(len(units)) if not np.array_equal(units[i], after[i])]
        row = {"read": units.counts(), "kept": units.counts(), "drawn_again": {}}
        which = np.array(changed, dtype=np.int64)
        return after, row | {"changed": units.take(which).counts()}


def _less(counts: dict[str, int], taken: dict[str, int]) -> dict[str, int]:
    left = {name: n - taken.get(name, 0) for name, n in counts.items()}
    return {name: n for name, n in left.items() if n}


class Deduplicate(Select):
    """Each unit once: of units that are equal value by value, the first is kept."""

    kind: Literal["deduplicate"] = "deduplicate"

    def select(self, units: Units, context: Context) -> Indices:
        """The first of each."""
        seen: dict[bytes, int] = {}
        for i in range(len(units)):
            seen.setdefault(units[i].tobytes(), i)
        return np.array(list(seen.values()), dtype=np.int64)


class _KeepShare(Select):
    """Keeps a share of the units, by their mean log-probability, in their order."""

    share: Annotated[float, Field(gt=0, le=1)]
    needs_model: ClassVar[bool] = True

    def best(self, scores: NDArray[np.float64]) -> Indices:
        """The numbers of the highest scores, in rising order; of equal ones, the first."""
        count = max(1, round(self.share * len(scores)))
        return np.sort(np.argsort(-scores, kind="stable")[:count])


class KeepLikeliest(_KeepShare):
    """Keep the share of the units that the model finds likeliest."""

    kind: Literal["keep_likeliest"] = "keep_likeliest"

    def select(self, units: Units, context: Context) -> Indices:
        """The likeliest."""
        return self.best(context.mean_log_prob(units))


class KeepUnlikeliest(_KeepShare):
    """Keep the share of the units that the model finds least likely: those of the tails.

    Near to the filter of 2410.12341, which keeps what has the highest surplexity, the perplexity
    under the model: there of whole documents cut at 512 tokens, from the pool of all generations.
    """

    kind: Literal["keep_unlikeliest"] = "keep_unlikeliest"

    def select(self, units: Units, context: Context) -> Indices:
        """The least likely."""
        return self.best(-context.mean_log_prob(units))


CURES: tuple[type[Cure], ...] = (Deduplicate, KeepLikeliest, KeepUnlikeliest)
