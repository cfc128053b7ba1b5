"""Entropy and divergence of token counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special  # not scipy.stats, whose import takes half a second

from fortifai.stats.variance import Floats

FLOOR = 1e-10
"""Probability given to a token that does not occur, as in ForTIFAI's code (2509.08972)."""


def entropy(counts: ArrayLike) -> float:
    """Plug-in Shannon entropy of a sample of tokens, in nats: -sum p log p with p the shares.

    It is too small by about (K - 1) / (2 n) for n tokens of K that can occur (Miller 1955, Madow).

    Args:
        counts: How often each token occurs, any shape, not all 0.

    Raises:
        ValueError: No counts, or negative ones.
    """
    return float(special.entr(_shares(counts)).sum())


def kl_divergence(written: ArrayLike, real: ArrayLike, *, floor: float = FLOOR) -> float:
    """KL(written || real) of two samples of tokens, in nats, plug-in.

    sum p log(p / q) with the shares p of `written` and q of `real`, those under `floor` raised to
    it. It is too large by about (K - 1) / n for two samples of n tokens of K common ones.

    Args:
        written: (V,) counts.
        real: (V,) counts.
        floor: The smallest share.

    Raises:
        ValueError: The shapes differ, or there are no or negative counts.
    """
    p, q = _shares(written), _shares(real)
    if p.shape != q.shape:
        raise ValueError(f"{len(p)} and {len(q)} counts; both must be of the same tokens")
    return float(special.rel_entr(np.maximum(p, floor), np.maximum(q, floor)).sum())


def _shares(counts: ArrayLike) -> Floats:
    c = np.asarray(counts, dtype=np.float64).ravel()
    if not c.size or (c < 0).any() or not c.sum() > 0:
        raise ValueError("counts must be 0 or more and not all 0")
    shares: Floats = c / c.sum()
    return shares
