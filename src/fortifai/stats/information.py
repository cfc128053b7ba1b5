"""Entropy and divergence of token counts, with what small samples do to them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fortifai.stats.variance import Floats

FLOOR = 1e-10
"""Probability given to a token that does not occur, as in ForTIFAI's code (2509.08972)."""


def entropy(counts: ArrayLike, *, corrected: bool = False) -> float:
    """Shannon entropy of a sample of tokens, in nats.

    -sum p log p with p the shares. This plug-in estimate is too small by about (K - 1) / (2 n) for
    K tokens that can occur; `corrected` adds that with the K that did occur (Miller 1955, Madow).
    What is left of the bias comes from tokens that were not seen.

    Args:
        counts: How often each token occurs, any shape, not all 0.
        corrected: Add (K - 1) / (2 n).

    Raises:
        ValueError: No counts, or negative ones.
    """
    c = _counts(counts)
    seen = c[c > 0]
    n = float(seen.sum())
    p = seen / n
    value = -float((p * np.log(p)).sum())
    return value + (len(seen) - 1) / (2 * n) if corrected else value


def kl_divergence(written: ArrayLike, real: ArrayLike, *, floor: float = FLOOR) -> float:
    """KL(written || real) of two samples of tokens, in nats, plug-in.

    sum p log(p / q) with the shares p of `written` and q of `real`, those under `floor` raised to
    it. Its bias depends on both sizes, see `miller_madow_kl` and `equal_size_kl`.

    Args:
        written: (V,) counts.
        real: (V,) counts.
        floor: The smallest share.

    Raises:
        ValueError: The shapes differ, or there are no or negative counts.
    """
    a, b = _both(written, real)
    p, q = np.maximum(a / a.sum(), floor), np.maximum(b / b.sum(), floor)
    return float((p * np.log(p / q)).sum())


def miller_madow_kl(written: ArrayLike, real: ArrayLike) -> float:
    """KL(written || real) with the first-order bias of both samples taken off, in nats.

        plug-in - (K - 1) / (2 n) - (sum_i p_i / q_i - 1) / (2 m)

    K tokens of n written, m real ones; p and q the shares. The first term is Miller's and Madow's,
    the second the same expansion in the real sample. It holds where real counts are not small
    (five or more); pool rare tokens before.

    Args:
        written: (V,) counts.
        real: (V,) counts, not 0 where something was written.

    Raises:
        ValueError: A token was written that the real sample lacks; or see `kl_divergence`.
    """
    a, b = _both(written, real)
    if (b[a > 0] == 0).any():
        raise ValueError(
            f"{int(((a > 0) & (b == 0)).sum())} tokens were written that the real sample lacks; "
            "pool rare tokens into one, or take equal_size_kl"
        )
    n, m = float(a.sum()), float(b.sum())
    p, q = a[a > 0] / n, b[a > 0] / m
    plug_in = float((p * np.log(p / q)).sum())
    return plug_in - (len(p) - 1) / (2 * n) - (float((p / q).sum()) - 1) / (2 * m)


@dataclasses.dataclass(frozen=True, slots=True)
class Divergence:
    """KL at equal sizes, with what two samples of one text would give.

    Attributes:
        value: Mean KL(written || real) over the draws, nats.
        null: Mean KL of two separate samples of the real text of the same size: the bias where
            the distributions are the same, and what the value has to exceed.
        null_high: The 95th percentile of those, over the draws.
        n: Tokens in each sample.
    """

    value: float
    null: float
    null_high: float
    n: int

    @property
    def excess(self) -> float:
        """What the value has over two samples of the real text. Never an overestimate by much."""
        return self.value - self.null


def equal_size_kl(
    written: NDArray[np.integer],
    real: NDArray[np.integer],
    vocab_size: int,
    *,
    n: int | None = None,
    block: int = 1,
    draws: int = 20,
    seed: int = 0,
) -> Divergence:
    """KL(written || real) of unigrams on samples of one size, and its noise floor.

    The plug-in KL of two samples of one distribution is about (K - 1) / n, and far more where
    tokens are unseen and the floor counts. So every KL here is of n tokens against n tokens, drawn
    without replacement: written against real, and real against other real ones. Numbers at equal
    n may be compared; only what exceeds `null_high` is a difference.

    Args:
        written: (w,) token ids.
        real: (r,) token ids.
        vocab_size: Ids lie in [0, vocab_size).
        n: Tokens a sample; None: as many as can be had, min(w, r // 2) in whole blocks.
        block: Tokens are drawn in stretches of so many. Neighbouring tokens are alike: with 1 the
            floor is that of shuffled text and too low for texts about different things.
        draws: Samples, over which the mean is taken.
        seed: Of the draws.

    Raises:
        ValueError: `n` is more than there is, or less than one block.
    """
    if min(block, draws) < 1:
        raise ValueError(f"block ({block}) and draws ({draws}) must be 1 or more")
    cut = [
        np.asarray(x).ravel()[: len(x) // block * block].reshape(-1, block) for x in (written, real)
    ]
    most = min(len(cut[0]), len(cut[1]) // 2)
    take = most if n is None else n // block
    if not 1 <= take <= most:
        raise ValueError(
            f"n is {n}; it must be {block} to {most * block}: at most what was written, and half "
            "of the real text"
        )
    rng = np.random.default_rng(seed)

    def count(blocks: NDArray[np.integer]) -> NDArray[np.integer]:
        return np.bincount(blocks.ravel(), minlength=vocab_size)

    values, nulls = [], []
    for _ in range(draws):
        mine = count(cut[0][rng.permutation(len(cut[0]))[:take]])
        order = rng.permutation(len(cut[1]))
        there, other = (count(cut[1][order[i * take : (i + 1) * take]]) for i in (0, 1))
        values.append(kl_divergence(mine, there))
        nulls.append(kl_divergence(other, there))
    return Divergence(
        value=math.fsum(values) / draws,
        null=math.fsum(nulls) / draws,
        null_high=float(np.quantile(nulls, 0.95)),
        n=take * block,
    )


def _counts(counts: ArrayLike) -> Floats:
    c = np.asarray(counts, dtype=np.float64).ravel()
    if not c.size or (c < 0).any() or not c.sum() > 0:
        raise ValueError("counts must be 0 or more and not all 0")
    return c


def _both(written: ArrayLike, real: ArrayLike) -> tuple[Floats, Floats]:
    a, b = _counts(written), _counts(real)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} and {len(b)} counts; both must be of the same tokens")
    return a, b
