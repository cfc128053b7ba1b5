"""Whether two texts are of one kind, by the words that their documents have."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fortifai.stats import scores

LEAST_RATIO, NARROW = 0.7, 1.05
"""What another kind has less of, and what a narrow text of the same kind has more of."""

_STRETCH, _MOST = 100, 60_000


@dataclasses.dataclass(frozen=True, slots=True)
class Overlap:
    """How far the vocabulary of a text is that of a reference.

    Attributes:
        value: Overlap sum_w min(p, q) of the shares that words have in stretches of 100 words, each
            word counted once a stretch, of the text and of half of the reference.
        halves: The same of both halves of the reference.
        common: Share of the text's words, so counted, that are among those that make up four
            fifths of the half, over that of the other half.
    """

    value: float
    halves: float
    common: float

    @property
    def ratio(self) -> float:
        """Overlap with the reference over that of its halves."""
        return self.value / self.halves

    @property
    def alike(self) -> bool:
        """Whether the texts are of one kind.

        They are where they overlap nearly as much as halves of the reference do. A text that has
        collapsed overlaps less, too, but because it says what is common more often; one of another
        kind has words that are not common in the reference. Both limits are conventions.
        """
        return self.ratio >= LEAST_RATIO or self.common >= NARROW


def overlap(text: Sequence[str], reference: Sequence[str]) -> Overlap:
    """How far the vocabulary of a text is that of a reference, of as many words of either.

    Copies count once: a page that stands there often is no kind of its own.

    Args:
        text: Documents in random order.
        reference: The same of the reference.
    """
    others = list(dict.fromkeys(reference))
    parts = [
        scores.encode(part).hashes
        for part in (list(dict.fromkeys(text)), others[::2], others[1::2])
    ]
    size = min(_MOST, *map(len, parts)) // _STRETCH * _STRETCH or min(map(len, parts))
    types, flat = np.unique(np.concatenate([part[:size] for part in parts]), return_inverse=True)
    own, half, other = (_shares(ids, len(types)) for ids in np.split(flat, 3))
    order = np.argsort(-half, kind="stable")
    common = order[: int(np.searchsorted(np.cumsum(half[order]), 0.8)) + 1]
    return Overlap(
        float(np.minimum(own, half).sum()),
        float(np.minimum(other, half).sum()),
        float(own[common].sum() / other[common].sum()),
    )


def _shares(ids: NDArray[np.int64], types: int) -> NDArray[np.float64]:
    """In how many stretches each word stands, over all."""
    stretch = np.arange(len(ids)) // _STRETCH
    counts = np.bincount(np.unique(stretch * types + ids) % types, minlength=types)
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares
