"""What grew: the n-grams that a text says more often than a reference does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fortifai.stats import scores

MOST, LEAST_DOCUMENTS, LONGEST = 50, 5, 4
"""n-grams that are told, documents that one must stand in, and words of the longest."""

PRIOR = 1_000.0
"""Words that the prior counts for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Grown:
    """An n-gram that is over-represented.

    Attributes:
        words: It.
        z: Log-odds ratio over its standard error.
        count: How often the sampled text has it.
        expected: How often it would at the reference's rate.
        documents: Sampled documents that have it.
        source: The part of the corpus; "" is all of it.
    """

    words: str
    z: float
    count: int
    expected: float
    documents: int
    source: str = ""


def grown(text: Sequence[str], reference: Sequence[str], source: str = "") -> list[Grown]:
    """The 50 n-grams of 1 to 4 words that are most over-represented, by falling z.

    z = delta / sqrt(var) with the log-odds ratio delta = log((y + a) / (n + A - y - a)) - log((y' +
    a) / (n' + A - y' - a)) of y among n n-grams of the text and y' among n' of the reference, var =
    1 / (y + a) + 1 / (y' + a), and the Dirichlet prior a = A (y + y') / (n + n') with A = 1,000
    (Monroe, Colaresi and Quinn 2008, eqs. 15, 16, 22). Of n-grams that are parts of each other and
    about as frequent, the longer one is told; each stands in five documents at least.

    Args:
        text: Documents.
        reference: Documents.
        source: What part of a corpus the text is.
    """
    own, other = scores.encode(text), scores.encode(reference)
    found = [each for n in range(1, LONGEST + 1) for each in _of_length(own, other, n)]
    # more than are told, since some are parts of others
    found.sort(key=lambda each: (-each[0], each[1:]))
    starts = np.cumsum(own.lengths) - own.lengths
    out: list[Grown] = []
    for z, n, count, expected, documents, at in found[: 8 * MOST]:
        document = int(np.searchsorted(starts, at, side="right")) - 1
        first = at - int(starts[document])
        every = scores.words_of(text[document][: scores.LONGEST])
        out.append(Grown(" ".join(every[first : first + n]), z, count, expected, documents, source))
    return _longest(out)[:MOST]


def _of_length(
    own: scores.Words, other: scores.Words, n: int
) -> list[tuple[float, int, int, float, int, int]]:
    """(z, n, count, expected, documents, where it stands) of the most over-represented n-grams."""
    (mine, at), (theirs, _) = own.grams(n), other.grams(n)
    if not len(mine) or not len(theirs):
        return []
    types, first, back, y = np.unique(
        mine, return_index=True, return_inverse=True, return_counts=True
    )
    known, their_counts = np.unique(theirs, return_counts=True)
    there = np.minimum(np.searchsorted(known, types), len(known) - 1)
    y_ = np.where(known[there] == types, their_counts[there], 0)
    z = log_odds(y, y_, len(mine), len(theirs))
    pairs = np.unique(back.astype(np.int64) * len(own.lengths) + own.documents[at])
    documents = np.bincount(pairs // len(own.lengths), minlength=len(types))
    some = np.flatnonzero((z > 1.96) & (documents >= LEAST_DOCUMENTS))
    best = some[np.argsort(-z[some], kind="stable")[: 4 * MOST]]
    return [
        (float(z[i]), n, int(y[i]), float(y_[i] * len(mine) / len(theirs)), int(documents[i]),
         int(at[first[i]]))
        for i in best
    ]  # fmt: skip


def log_odds(y: NDArray[np.int64], y_: NDArray[np.int64], n: int, n_: int) -> NDArray[np.float64]:
    """Z of log-odds ratios with an informative Dirichlet prior; see `grown`."""
    a = PRIOR * (y + y_) / (n + n_)
    delta = np.log((y + a) / (n + PRIOR - y - a)) - np.log((y_ + a) / (n_ + PRIOR - y_ - a))
    z: NDArray[np.float64] = delta / np.sqrt(1 / (y + a) + 1 / (y_ + a))
    return z


def _longest(found: Sequence[Grown]) -> list[Grown]:
    """Without n-grams that are parts of others as frequent, or nearly so."""
    out: list[Grown] = []
    for each in found:
        inside = f" {each.words} "
        if any(
            inside in f" {other.words} " and 1.25 * other.count >= each.count and other != each
            for other in found
        ):
            continue
        out.append(each)
    return out
