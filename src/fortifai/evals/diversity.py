"""How diverse a text is beside another one, with intervals and a noise floor.

Texts are given as windows: rows of token ids of one length. A window is what is drawn when a text
is sampled, so intervals and floors resample windows, never single tokens, which are not
independent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

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


# --- types and their frequencies --------------------------------------------------------------


def _counts(windows: Ids) -> sparse.csr_matrix:
    """(windows, types) counts of the types that occur."""
    rows, length = windows.shape
    types, columns = np.unique(windows, return_inverse=True)
    where = np.repeat(np.arange(rows), length)
    ones = np.ones(rows * length)
    matrix = sparse.csr_matrix((ones, (where, columns.ravel())), shape=(rows, len(types)))
    matrix.sum_duplicates()
    return matrix


@dataclasses.dataclass(frozen=True, slots=True)
class Statistic:
    """A number of how often each type occurs, by sums over types.

    Attributes:
        terms: From counts, of any shape, what is summed over types: one array or several; 0 at 0.
        value: From those sums and the number of tokens, the statistic.
    """

    terms: Callable[[Floats], tuple[Floats, ...]]
    value: Callable[[Sequence[Floats], Floats], Floats]

    def of(self, counts: Floats) -> Floats:
        """Of each row of counts (..., types)."""
        return self.value([term.sum(-1) for term in self.terms(counts)], counts.sum(-1))

    def without(self, matrix: sparse.csr_matrix, own: sparse.csr_matrix) -> Floats:
        """Of the sum of `matrix` without each row of `own`: (rows of own,)."""
        total = _dense(matrix)[0]
        before = total[own.indices]
        sums = []
        whole = self.terms(total)
        for term, old, new in zip(
            whole, self.terms(before), self.terms(before - own.data), strict=True
        ):
            change = sparse.csr_matrix((old - new, own.indices, own.indptr), shape=own.shape)
            sums.append(term.sum() - np.asarray(change.sum(1)).ravel())
        return self.value(sums, total.sum() - np.asarray(own.sum(1)).ravel())


ENTROPY = Statistic(lambda c: (special.xlogy(c, c),), lambda s, n: np.log(n) - s[0] / n)
"""Plug-in entropy -sum p log p, nats; too small by about (types - 1) / (2 tokens)."""

DUPLICATION = Statistic(lambda c: (_some(c),), lambda s, n: 1 - s[0] / n)
"""Share of the tokens whose type has been seen: 1 - types / tokens. Of 3-grams, 1 - distinct-3
(1510.03055): a text that says the same thing everywhere shows here."""

DISTINCT = Statistic(DUPLICATION.terms, lambda s, n: s[0] / n)
"""Types over tokens: distinct-n (1510.03055) of n-grams; of words, the size of the vocabulary."""

GROWTH = Statistic(lambda c: ((c == 1).astype(np.float64),), lambda s, n: s[0] / n)
"""Types that occur once over tokens: how likely the next word is new (Good 1953), the slope at
which the vocabulary grows."""

ZIPF = Statistic(
    lambda c: (np.log(2 * np.maximum(c, 0.5)) * _some(c), _some(c)), lambda s, n: s[0] / s[1]
)
"""Zipf exponent: the mean of log(2 c) over types, c how often each occurs. Where a type occurs c
times or more with probability (2 c)^(-1/s), its maximum likelihood estimate (0706.1062, 3.7)."""


def _some(counts: Floats) -> Floats:
    return (counts > 0).astype(np.float64)


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


def compared(
    own: Ids, reference: Ids, more: Ids, statistic: Statistic, *, n: int = 1, seed: int
) -> Comparison:
    """A statistic of the types of a text and of a reference.

    Both have the same number of tokens, so that what depends on it cancels in the difference, but
    for the types that one of them lacks. The interval is the jackknife's over windows.

    Args:
        own: (w, t) token ids.
        reference: (w, t) token ids.
        more: (w, t) further windows of the reference, for the noise floor.
        statistic: Such as `ENTROPY`.
        n: Types are n-grams within windows.
        seed: Of the random halves.

    Raises:
        InputError: Shapes that differ, or fewer than 16 windows.
    """
    _check(own, reference, more)
    own, reference, more = _grams((own, reference, more), n)
    value, other, difference = differences(own, reference, statistic)
    halves = _halves(reference, more, lambda a, b: statistic.of(a) - statistic.of(b), seed)
    return Comparison(value, other, difference, float(np.quantile(np.abs(halves), 0.95)))


def differences(
    own: Ids, reference: Ids, statistic: Statistic = ENTROPY
) -> tuple[float, float, Interval]:
    """A statistic of two texts of one size, and their difference, as in `compared`."""
    counts = [_counts(windows) for windows in (own, reference)]
    value = [float(statistic.of(_dense(each))[0]) for each in counts]
    without = [statistic.without(each, each) for each in counts]
    # window i of the text may continue what window i of the reference continues: they go together
    difference = jackknife(value[0] - value[1], without[0] - without[1])
    return value[0], value[1], difference


def _grams(texts: Sequence[Ids], n: int) -> Sequence[Ids]:
    """A number for each n-gram, the same in all texts."""
    if n == 1:
        return texts
    whole = np.concatenate(texts)
    types, flat = np.unique(whole, return_inverse=True)
    ids = words = flat.reshape(whole.shape)
    for k in range(1, n):
        # of a run one shorter and the word behind it: products of numbers of types, below 2^63
        pairs = ids[:, :-1] * len(types) + words[:, k:]
        _, flat = np.unique(pairs, return_inverse=True)
        ids = flat.reshape(pairs.shape)
    return np.split(ids, np.cumsum([len(text) for text in texts])[:-1])


def divergence(own: Ids, reference: Ids, more: Ids, *, seed: int) -> Comparison:
    """Jensen-Shannon divergence of unigram distributions, in nats, in [0, log 2].

    H((p + q) / 2) - (H(p) + H(q)) / 2. Unlike Kullback and Leibler's it is finite where a token
    is missing on one side. Two samples of one text diverge, too, by about
    (types - 1) / (8 tokens) and more: `reference` is the median of that between random halves of
    the reference, `difference` what there is beyond it.

    Args:
        own: As in `compared`.
        reference: As in `compared`.
        more: As in `compared`.
        seed: As in `compared`.

    Raises:
        InputError: As in `compared`.
    """
    _check(own, reference, more)
    w = len(own)
    counts = _counts(np.concatenate([own, reference]))
    a, b = counts[:w], counts[w:]
    value = float(_jensen_shannon(_dense(a), _dense(b))[0])
    without = ENTROPY.without(a + b, (a + b).tocsr()) - 0.5 * (
        ENTROPY.without(a, a) + ENTROPY.without(b, b)
    )
    halves = _halves(reference, more, _jensen_shannon, seed)
    usual = float(np.median(halves))
    found = jackknife(value - usual, without - usual)
    return Comparison(value, usual, found, float(np.quantile(np.abs(halves - usual), 0.95)))


def tail(own: Ids, reference: Ids, more: Ids, *, seed: int) -> Comparison:
    """Share of a text's tokens that are rare in the reference.

    Rare are the types outside the smallest set that makes up 80 % of the tokens of
    `more`, a sample of the reference that is not compared; a type that does not occur there is
    rare. What collapses loses these first (2305.17493, section 3).

    Args:
        own: As in `compared`.
        reference: As in `compared`.
        more: As in `compared`.
        seed: As in `compared`.

    Raises:
        InputError: As in `compared`.
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
    found: Floats = ENTROPY.of(a + b) - 0.5 * (ENTROPY.of(a) + ENTROPY.of(b))
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
    by_type = counts.T.tocsr()
    found = []
    for chosen in np.array_split(_choices(counts.shape[0], seed), 20):  # bounds the memory
        # rows in one piece, so that sums over types round as those of one row do
        half = np.ascontiguousarray((by_type @ chosen.T.astype(np.float64)).T)
        found.append(statistic(half, total - half))
    return np.concatenate(found)


def _check(own: Ids, reference: Ids, more: Ids) -> None:
    shapes = {np.shape(x) for x in (own, reference, more)}
    if len(shapes) != 1 or np.ndim(own) != 2 or len(own) < MIN_WINDOWS:
        raise InputError(
            f"windows have shapes {', '.join(map(str, sorted(shapes)))}; give texts of one size, "
            f"(windows, tokens), with at least {MIN_WINDOWS} windows"
        )
