"""Confidence: the probability that the model gives to the target token (Fig. 1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fortifai.lab.measures import Score, mean_score

BIN_EDGES: NDArray[np.float64] = np.linspace(0.0, 1.0, 21)


def confidence(log_p: NDArray[np.floating], on: str) -> Score:
    """Mean of p over a text's tokens, with its standard error.

    Args:
        log_p: (n,) log-probabilities in nats; -inf is p = 0.
        on: Name of the text.
    """
    p = np.exp(np.asarray(log_p, dtype=np.float64))
    return mean_score("confidence.mean", p, on)


def histogram(log_p: NDArray[np.floating]) -> NDArray[np.int64]:
    """Counts of p in the 20 equal bins of [0, 1] (`BIN_EDGES`); p = 1 falls into the last."""
    p = np.exp(np.minimum(np.asarray(log_p, dtype=np.float64), 0.0))
    return np.histogram(p, bins=BIN_EDGES)[0].astype(np.int64)
