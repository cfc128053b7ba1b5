"""Diversity of texts against SciPy, brute force, and texts whose truth is known."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy

from fortifai.errors import InputError
from fortifai.evals import diversity
from fortifai.stats import jackknife, sample_mean

TYPES = 400


def zipf(power=1.0):
    p = 1 / np.arange(1, TYPES + 1) ** power
    return p / p.sum()


def windows(rng, n, power=1.0, size=32):
    return rng.choice(TYPES, size=(n, size), p=zipf(power))


@pytest.fixture
def texts():
    rng = np.random.default_rng(0)
    return windows(rng, 40, 1.4), windows(rng, 40), windows(rng, 40)


def frequencies(x):
    return np.bincount(x.ravel(), minlength=TYPES) / x.size


def test_entropy_and_divergence_are_scipys(texts):
    own, reference, more = texts
    found = diversity.compared(own, reference, more, diversity.ENTROPY, seed=0)
    # the same sum in another order: rounding of some hundred terms
    assert found.own == pytest.approx(scipy_entropy(frequencies(own)), rel=1e-12)
    assert found.reference == pytest.approx(scipy_entropy(frequencies(reference)), rel=1e-12)
    assert found.difference.value == pytest.approx(found.own - found.reference, rel=1e-12)
    known = jensenshannon(frequencies(own), frequencies(reference)) ** 2
    assert diversity.divergence(own, reference, more, seed=0).own == pytest.approx(known, rel=1e-10)


def test_the_jackknife_leaves_out_one_window_after_another(texts):
    own, reference, more = texts

    def without(i):
        a, b = (scipy_entropy(frequencies(np.delete(x, i, 0))) for x in (own, reference))
        return a - b

    left = np.array([without(i) for i in range(len(own))])
    known = jackknife(0.0, left)
    found = diversity.compared(own, reference, more, diversity.ENTROPY, seed=0).difference
    assert found.high - found.low == pytest.approx(known.high - known.low, rel=1e-9)  # rounding


def test_duplication_counts_every_gram_by_itself(texts):
    own, reference, more = texts
    grams = [tuple(row[i : i + 3]) for row in own for i in range(len(row) - 2)]
    found = diversity.compared(own, reference, more, diversity.DUPLICATION, n=3, seed=0)
    assert found.own == pytest.approx(1 - len(set(grams)) / len(grams), abs=1e-12)  # rounding

    def without(windows, i):
        left = [tuple(r[j : j + 3]) for r in np.delete(windows, i, 0) for j in range(len(r) - 2)]
        return 1 - len(set(left)) / len(left)

    gaps = np.array([without(own, i) - without(reference, i) for i in range(len(own))])
    known = jackknife(0.0, gaps)
    width = found.difference.high - found.difference.low
    assert width == pytest.approx(known.high - known.low, rel=1e-9)  # rounding


def test_the_jackknife_of_a_mean_is_the_standard_error():
    x = np.random.default_rng(1).normal(size=30)
    left = np.array([np.delete(x, i).mean() for i in range(30)])
    found, known = jackknife(x.mean(), left), sample_mean(x)
    # equal by algebra
    assert (found.low, found.high) == pytest.approx((known.low, known.high), rel=1e-9)


def test_repetition_by_hand():
    rows = np.array([[1, 2, 3, 4, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8], [9] * 8])
    # five 4-grams each: of the first 1234 comes again, of the last all are one
    assert diversity.repetition(rows).tolist() == pytest.approx([1 / 5, 0, 4 / 5])


def test_tail_counts_what_is_rare_in_the_further_windows():
    common, rare = np.zeros((16, 20), dtype=int), np.ones((16, 20), dtype=int)
    mixed = np.where(np.arange(20) < 17, common, rare)  # 85 % common: more than the head
    found = diversity.tail(common, mixed, mixed, seed=0)
    assert (found.own, found.reference) == pytest.approx((0.0, 0.15))
    assert diversity.tail(rare, mixed, mixed, seed=0).own == 1


def test_rare_is_what_lies_outside_four_fifths():
    """Four types with 60, 25, 10 and 5 % of the tokens: the first two reach four fifths."""
    row = np.repeat([0, 1, 2, 3], [12, 5, 2, 1])
    rows = np.tile(row, (16, 1))
    assert diversity.tail(rows, rows, rows, seed=0).own == pytest.approx(0.15)


def test_intervals_cover_and_floors_hold_under_the_null():
    """Texts from one distribution: 95 % intervals hold 0, and floors hold 95 % of differences."""
    rng = np.random.default_rng(2)
    covered, inside = [], []
    for _ in range(80):
        own, reference, more = (windows(rng, 32) for _ in range(3))
        for statistic, n in ((diversity.ENTROPY, 1), (diversity.DUPLICATION, 3)):
            seed = int(rng.integers(2**31))
            found = diversity.compared(own, reference, more, statistic, n=n, seed=seed)
            covered.append(found.difference.low <= 0 <= found.difference.high)
            inside.append(abs(found.difference.value) <= found.floor)
    # 160 trials, half of them on the same texts: 3 standard errors are some 6 points. A floor is
    # of halves of two texts that know each other, whose differences are as wide as of strangers.
    assert np.mean(covered) > 0.89
    assert np.mean(inside) > 0.87


def entropy(own, reference, more, seed):
    return diversity.compared(own, reference, more, diversity.ENTROPY, seed=seed)


@pytest.mark.parametrize("measure", [entropy, diversity.tail])
def test_a_narrower_text_lies_beyond_its_interval_and_floor(measure, texts):
    found = measure(*texts, seed=0)
    assert found.difference.high < -found.floor


@pytest.mark.parametrize("shape", [(15, 32), (16, 31)])
def test_wrong_sizes_are_refused(shape):
    rng = np.random.default_rng(0)
    own = rng.integers(9, size=shape)
    with pytest.raises(InputError, match="at least 16 windows"):
        entropy(own, rng.integers(9, size=(16, 32)), own, seed=0)


@pytest.mark.parametrize(
    ("statistic", "known"),
    [
        (diversity.DISTINCT, lambda c: np.count_nonzero(c) / c.sum()),
        (diversity.GROWTH, lambda c: (c == 1).sum() / c.sum()),
        (diversity.ZIPF, lambda c: np.log(2 * c[c > 0]).mean()),
    ],
)
def test_statistics_of_types_and_their_jackknife_by_hand(statistic, known, texts):
    own, reference, more = texts

    def of(x):
        return known(np.bincount(x.ravel(), minlength=TYPES))

    found = diversity.compared(own, reference, more, statistic, seed=0)
    # sums in another order: rounding
    assert (found.own, found.reference) == pytest.approx((of(own), of(reference)), rel=1e-12)
    left = [of(np.delete(own, i, 0)) - of(np.delete(reference, i, 0)) for i in range(len(own))]
    wanted = jackknife(0.0, np.array(left))
    width = found.difference.high - found.difference.low
    assert width == pytest.approx(wanted.high - wanted.low, rel=1e-9)  # rounding


def test_the_zipf_exponent_of_a_power_law_is_its_own():
    rng = np.random.default_rng(0)
    u = rng.random(200_000)
    counts = np.floor(0.5 * u**-0.9 + 0.5)  # P(c or more) = (2 c - 1)^(-1 / 0.9)
    counts = counts[counts >= 6] / 6 / 2  # above the least, where whole numbers are a continuum
    # standard error 0.9 / sqrt(n) is below 0.01; the rest is that counts are whole
    assert diversity.ZIPF.of(counts) == pytest.approx(0.9, abs=0.1)
