"""How diverse a text is beside another one, with intervals and a noise floor.

Texts are given as windows: rows of token ids of one length. A window is what is drawn when a text
is sampled, so intervals and floors resample windows, never single tokens, which are not
independent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

from fortifai.errors import InputError
from fortifai.stats.sample import Interval, jackknife, sample_mean

Ids = NDArray[np.integer]
Floats = NDArray[np.float64]

MIN_WINDOWS = 16
"""Fewest windows of which a standard error is worth anything."""


# --- repetition -------------------------------------------------------------------------------


def repetition(windows: Ids, n: int = 4) -> Floats:
    """Share of the n-grams of each window that stand in it before: 1 - different / all.

    seq-rep-n of Welleck et al. (1908.04319), by window.

    Args:
        windows: (w, t) token ids, t at least n.
        n: Length of the n-grams.

    Returns:
        (w,) float64 in [0, 1).
    """
    grams = np.lib.stride_tricks.sliding_window_view(np.asarray(windows), n, axis=1)
    different = [len(np.unique(row, axis=0)) for row in grams]
    found: Floats = 1 - np.array(different, dtype=np.float64) / grams.shape[1]
    return found


# --- words and their frequencies --------------------------------------------------------------


def _counts(windows: Ids) -> sparse.csr_matrix:
    """(windows, types) counts of the types that occur."""
    rows, length = windows.shape
    types, columns = np.unique(windows, return_inverse=True)
    where = np.repeat(np.arange(rows), length)
    ones = np.ones(rows * length)
    matrix = sparse.csr_matrix((ones, (where, columns.ravel())), shape=(rows, len(types)))
    matrix.sum_duplicates()
    return matrix


def _entropies(counts: Floats) -> Floats:
    """Plug-in entropy in nats of each row of counts (..., types)."""
    total = counts.sum(-1)
    found: Floats = np.log(total) - special.xlogy(counts, counts).sum(-1) / total
    return found


def _entropies_without(matrix: sparse.csr_matrix, own: sparse.csr_matrix) -> Floats:
    """Entropy of the sum of `matrix` without each row of `own`: (rows of own,)."""
    total = np.asarray(matrix.sum(0), dtype=np.float64).ravel()
    whole = special.xlogy(total, total).sum()
    before = total[own.indices]
    after = before - own.data
    change = sparse.csr_matrix(
        (special.xlogy(before, before) - special.xlogy(after, after), own.indices, own.indptr),
        shape=own.shape,
    )
    lost = np.asarray(change.sum(1)).ravel()
    size = total.sum() - np.asarray(own.sum(1)).ravel()
    found: Floats = np.log(size) - (whole - lost) / size
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """A text beside a reference of the same size.

    Attributes:
        own: The statistic of the text; for a divergence the number itself.
        reference: That of the reference; for a divergence what two samples of the reference have.
        difference: own - reference, with its interval.
        floor: 95th percentile of the absolute difference between random halves of the reference,
            each of the size of the text: what sampling alone does.
    """

    own: float
    reference: float
    difference: Interval
    floor: float


def entropy(own: Ids, reference: Ids, more: Ids, *, seed: int) -> Comparison:
    """Entropy of the unigram distribution, in nats, of a text and of a reference.

    The plug-in estimate -sum p log p, which is too small by about (types - 1) / (2 tokens): so
    both have the same number of tokens and the error cancels in the difference, but for the types
    that one of them lacks. The interval is the jackknife's over windows.

    Args:
        own: (w, t) token ids.
        reference: (w, t) token ids.
        more: (w, t) further windows of the reference, for the noise floor.
        seed: Of the random halves.

    Raises:
        InputError: Shapes that differ, or fewer than 16 windows.
    """
    _check(own, reference, more)
    value, other, difference = entropies(own, reference)
    floor = _floor(reference, more, lambda a, b: _entropies(a) - _entropies(b), seed)
    return Comparison(value, other, difference, floor)


def entropies(own: Ids, reference: Ids) -> tuple[float, float, Interval]:
    """Unigram entropies of two texts of one size, and their difference, as in `entropy`."""
    counts = [_counts(windows) for windows in (own, reference)]
    value = [float(_entropies(_dense(each))[0]) for each in counts]
    without = [_entropies_without(each, each) for each in counts]
    # window i of the text continues what window i of the reference continues: they go together
    difference = jackknife(value[0] - value[1], without[0] - without[1])
    return value[0], value[1], difference


def divergence(own: Ids, reference: Ids, more: Ids, *, seed: int) -> Comparison:
    """Jensen-Shannon divergence of unigram distributions, in nats, in [0, log 2].

    H((p + q) / 2) - (H(p) + H(q)) / 2. Unlike Kullback and Leibler's it is finite where a token
    is missing on one side. Two samples of one text diverge, too, by about
    (types - 1) / (8 tokens) and more: `reference` is the median of that between random halves of
    the reference, `difference` what there is beyond it.

    Arguments and errors as of `entropy`.
    """
    _check(own, reference, more)
    w = len(own)
    counts = _counts(np.concatenate([own, reference]))
    a, b = counts[:w], counts[w:]
    value = float(_jensen_shannon(_dense(a), _dense(b))[0])
    without = _entropies_without(a + b, (a + b).tocsr()) - 0.5 * (
        _entropies_without(a, a) + _entropies_without(b, b)
    )
    halves = _halves(reference, more, _jensen_shannon, seed)
    usual = float(np.median(halves))
    found = jackknife(value - usual, without - usual)
    return Comparison(value, usual, found, float(np.quantile(np.abs(halves - usual), 0.95)))


def duplication(own: Ids, reference: Ids, more: Ids, *, seed: int) -> Comparison:
    """Share of a text's 3-grams that stand in it more than once: 1 - distinct-3 (1510.03055).

    Within windows and between them: a text that says the same thing everywhere shows here, one
    that stutters in `repetition`, too.

    Arguments and errors as of `entropy`; t at least 3.
    """
    _check(own, reference, more)
    w = len(own)
    grams = np.lib.stride_tricks.sliding_window_view(
        np.concatenate([own, reference, more]), 3, axis=1
    )
    _, flat = np.unique(grams.reshape(-1, 3), axis=0, return_inverse=True)
    ids = flat.reshape(grams.shape[:2])
    value, without = [], []
    for part in (ids[:w], ids[w : 2 * w]):
        matrix = _counts(part)
        total = _dense(matrix)
        value.append(float(_shares_again(total)[0]))
        # types that only this window has are gone without it
        alone = matrix.copy()
        alone.data = (total[0][matrix.indices] == matrix.data).astype(np.float64)
        gone = np.asarray(alone.sum(1)).ravel()
        size = total.sum() - np.asarray(matrix.sum(1)).ravel()
        without.append(1 - (np.count_nonzero(total) - gone) / size)
    difference = jackknife(value[0] - value[1], without[0] - without[1])
    floor = _floor(
        ids[w : 2 * w], ids[2 * w :], lambda a, b: _shares_again(a) - _shares_again(b), seed
    )
    return Comparison(value[0], value[1], difference, floor)


def _shares_again(counts: Floats) -> Floats:
    found: Floats = 1 - np.count_nonzero(counts, axis=-1) / counts.sum(-1)
    return found


def tail(own: Ids, reference: Ids, more: Ids, *, seed: int) -> Comparison:
    """Share of a text's tokens that are rare in the reference.

    Rare are the types outside the smallest set that makes up 80 % of the tokens of
    `more`, a sample of the reference that is not compared; a type that does not occur there is
    rare. What collapses loses these first (2305.17493, section 3).

    Arguments and errors as of `entropy`.
    """
    _check(own, reference, more)

    def shares(windows: Ids, sample: Ids) -> Floats:
        types, counts = np.unique(sample, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        enough = int(np.searchsorted(np.cumsum(counts[order]), 0.8 * counts.sum())) + 1
        common = types[order[:enough]]
        found: Floats = 1 - np.isin(windows, common).mean(axis=1)
        return found

    a, b = shares(own, more), shares(reference, more)
    # the floor needs a third sample to say what is rare, so the halves lend theirs to each other
    both = np.concatenate([reference, more])
    rng = np.random.default_rng(seed)
    gaps = []
    for _ in range(100):
        order = rng.permutation(len(both))
        one, other, third = np.array_split(both[order], 3)
        same = min(len(one), len(other))
        gap = shares(one[:same], third).mean() - shares(other[:same], third).mean()
        # thirds are smaller than the text, and noise falls with the root of the size
        gaps.append(gap * np.sqrt(same / len(own)))
    floor = float(np.quantile(np.abs(gaps), 0.95))
    return Comparison(float(a.mean()), float(b.mean()), sample_mean(a - b), floor)


def means(own: Floats, reference: Floats, more: Floats, *, seed: int) -> Comparison:
    """A mean over windows, paired: own - reference, window by window.

    Args:
        own: (w,) one number for each window.
        reference: (w,) the same of the reference.
        more: (w,) of further windows of the reference, for the noise floor.
        seed: Of the random halves.
    """
    both = np.concatenate([reference, more])
    choice = _choices(len(both), seed)
    gaps = (choice * both).sum(1) / choice.sum(1) - (~choice * both).sum(1) / (~choice).sum(1)
    floor = float(np.quantile(np.abs(gaps), 0.95))
    difference = sample_mean(own - reference)
    return Comparison(float(own.mean()), float(reference.mean()), difference, floor)


def _jensen_shannon(a: Floats, b: Floats) -> Floats:
    """Of each pair of rows of counts (..., types) with equal totals."""
    found: Floats = _entropies(a + b) - 0.5 * (_entropies(a) + _entropies(b))
    return found


def _dense(matrix: sparse.csr_matrix) -> Floats:
    """Counts of all rows together, (1, types)."""
    return np.asarray(matrix.sum(0), dtype=np.float64).reshape(1, -1)


def _choices(windows: int, seed: int) -> NDArray[np.bool_]:
    """200 random halves of so many windows: (200, windows)."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros((200, windows), dtype=bool)
    chosen[:, : windows // 2] = True
    halves: NDArray[np.bool_] = rng.permuted(chosen, axis=1)
    return halves


def _halves(
    reference: Ids, more: Ids, statistic: Callable[[Floats, Floats], Floats], seed: int
) -> Floats:
    """A statistic of counts between random halves of all windows of the reference."""
    counts = _counts(np.concatenate([reference, more]))
    total = _dense(counts)
    found = []
    for chosen in np.array_split(_choices(counts.shape[0], seed), 20):  # bounds the memory
        half = (sparse.csr_matrix(chosen.astype(np.float64)) @ counts).toarray()
        found.append(statistic(half, total - half))
    return np.concatenate(found)


def _floor(
    reference: Ids, more: Ids, statistic: Callable[[Floats, Floats], Floats], seed: int
) -> float:
    return float(np.quantile(np.abs(_halves(reference, more, statistic, seed)), 0.95))


def _check(own: Ids, reference: Ids, more: Ids) -> None:
    shapes = {np.shape(x) for x in (own, reference, more)}
    if len(shapes) != 1 or np.ndim(own) != 2 or len(own) < MIN_WINDOWS:
        raise InputError(
            f"windows have shapes {', '.join(map(str, sorted(shapes)))}; give texts of one size, "
            f"(windows, tokens), with at least {MIN_WINDOWS} windows"
        )
