"""Divergence of unigram token distributions, rewritten from real."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fortifai.lab.measures import Score
from fortifai.stats import kl_divergence


def _kl(written: NDArray[np.integer], real: NDArray[np.integer], vocab_size: int) -> float:
    counts = (np.bincount(ids, minlength=vocab_size) for ids in (written, real))
    return kl_divergence(*counts)


def unigram_kl(
    rewritten: NDArray[np.integer],
    real: NDArray[np.integer],
    vocab_size: int,
    *,
    on: str,
    seed: int,
) -> Score:
    """KL(rewritten || real) of unigram token distributions, in nats, at equal sizes.

    Sum over tokens of p log(p / q), frequencies below 1e-10 raised to it. This plug-in estimate
    grows as samples shrink, by about (V - 1) / (2 n): so the larger of the two is drawn down to
    the smaller one's size, without replacement, and numbers at equal sizes may be compared.

    Args:
        rewritten: (n,) token ids.
        real: (m,) token ids.
        vocab_size: V; ids lie in [0, V).
        on: Name of the rewritten text.
        seed: Of the draw.
    """
    n = min(len(rewritten), len(real))
    rng = np.random.default_rng(seed)
    a, b = (x if len(x) == n else rng.choice(x, n, replace=False) for x in (rewritten, real))
    value = _kl(a, b, vocab_size)
    return Score("kl.unigram", value, on, n)


def unigram_kl_paper(
    rewritten: NDArray[np.integer], real: NDArray[np.integer], vocab_size: int, *, on: str
) -> Score:
    """KL(rewritten || real) as ForTIFAI's code has it: all rewritten text, all real text.

    The sizes differ and change with the generation; see `unigram_kl` for one that compares.
    """
    value = _kl(rewritten, real, vocab_size)
    return Score("kl.unigram_paper", value, on, len(rewritten))
