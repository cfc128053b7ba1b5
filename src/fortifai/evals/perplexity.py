"""Perplexity, with a standard error that knows that neighbouring tokens are alike."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fortifai.lab.measures import Score

BLOCK = 128
"""Tokens whose mean is taken as one observation for the standard error."""


def perplexity(log_p: NDArray[np.floating], on: str) -> Score:
    """Exp of the mean negative log-probability of a text's tokens.

    The standard error is that of the mean over blocks of 128 tokens, since tokens close together
    are not independent, carried through exp by the delta method; None for fewer than two blocks.

    Args:
        log_p: (n,) log-probabilities in nats.
        on: Name of the text.
    """
    nll = -np.asarray(log_p, dtype=np.float64)
    value = math.exp(min(float(nll.mean()), 700.0))  # e^700 is the last power of ten that fits
    whole = len(nll) // BLOCK
    stderr = None
    if whole >= 2:
        means = nll[: whole * BLOCK].reshape(whole, BLOCK).mean(axis=1)
        stderr = value * float(means.std(ddof=1)) / math.sqrt(whole)
    return Score("perplexity", value, on, len(nll), stderr)
