"""Diversity of a text: distinct n-grams and the entropy of its tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fortifai.evals.score import Score


def distinct(tokens: NDArray[np.integer], n: int) -> float:
    """Share of different ones among all n-grams of a token stream (1510.03055); NaN if none."""
    if len(tokens) < n:
        return float("nan")
    grams = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens), n)
    return len(np.unique(grams, axis=0)) / len(grams)


def entropy(tokens: NDArray[np.integer]) -> float:
    """Plug-in entropy of the unigram token distribution, in nats."""
    _, counts = np.unique(tokens, return_counts=True)
    p = counts / counts.sum()
    return float(-np.sum(p * np.log(p))) + 0.0


def diversity(tokens: NDArray[np.integer], on: str) -> list[Score]:
    """distinct-1, distinct-2, distinct-3 and the token entropy of a text.

    All of them depend on its length: compare texts of one length only.
    """
    out = [
        Score(
            f"distinct-{n}",
            distinct(tokens, n),
            on,
            len(tokens) - n + 1,
            None,
            "share",
            None,
            "higher",
        )
        for n in (1, 2, 3)
        if len(tokens) >= n
    ]
    out.append(
        Score("entropy.unigram", entropy(tokens), on, len(tokens), None, "nats", None, "higher")
    )
    return out
