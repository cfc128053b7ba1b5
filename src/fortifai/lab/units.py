"""Samples cut into units that know where they come from: what cures work on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        splits: (n,) the split that each unit stands in.
    """

    samples: Samples
    edges: Indices
    origins: Indices
    splits: Indices

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, i: int) -> Samples:
        unit: Samples = self.samples[self.edges[i] : self.edges[i + 1]]
        return unit

    def read_only(self) -> Units:
        """The same, in arrays that cannot be written to."""
        seen = {f.name: getattr(self, f.name).view() for f in dataclasses.fields(self)}
        for values in seen.values():
            values.flags.writeable = False
        return Units(**seen)

    def take(self, which: Indices) -> Units:
        """The units of these numbers, in this order."""
        lengths = np.diff(self.edges)[which]
        edges = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(edges[-1]) + np.repeat(self.edges[which] - edges[:-1], lengths)
        return Units(self.samples[places], edges, self.origins[which], self.splits[which])

    @classmethod
    def join(cls, parts: Sequence[Units]) -> Units:
        """Several, one behind the other."""
        lengths = np.concatenate([np.diff(part.edges) for part in parts])
        return cls(
            np.concatenate([part.samples for part in parts]),
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate([part.origins for part in parts]),
            np.concatenate([part.splits for part in parts]),
        )

    def recut(self, edges_of: Callable[[Samples], Indices]) -> Units:
        """Other units, none of which has samples of two origins or splits.

        Args:
            edges_of: Where the units of samples begin, and the end.
        """
        changes = np.diff(self.origins).astype(bool) | np.diff(self.splits).astype(bool)
        edges, firsts, start = [np.zeros(1, dtype=np.int64)], [], 0
        for end in np.append(np.flatnonzero(changes) + 1, len(self)):
            first, last = self.edges[start], self.edges[end]
            found = edges_of(self.samples[first:last])
            edges.append(first + found[1:])
            firsts.append(np.full(len(found) - 1, start))
            start = end
        of = np.concatenate(firsts)
        return Units(self.samples, np.concatenate(edges), self.origins[of], self.splits[of])

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
