import math

import numpy as np
import pytest
from scipy.stats import entropy as reference

from fortifai import stats

P = np.array([0.5, 0.2, 0.2, 0.05, 0.05])
Q = np.array([0.3, 0.3, 0.2, 0.1, 0.1])
KL = float(reference(P, Q))


def test_plug_ins_against_scipy():
    a, b = np.array([5, 3, 2, 0]), np.array([1, 4, 4, 1])
    assert stats.entropy(a) == pytest.approx(reference(a))
    assert stats.kl_divergence(a, b, floor=0.0 + 1e-300) == pytest.approx(reference(a, b))
    # one token unseen in the real text: 0.5 log(0.5 / 1e-10), and the floor's own term
    floored = stats.kl_divergence([1, 1], [2, 0])
    assert floored == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5 / 1e-10))


def test_millers_and_madows_correction_takes_the_bias_off():
    rng = np.random.default_rng(0)
    counts = rng.multinomial(60, P, size=4000)
    truth = float(reference(P))
    plain = np.mean([stats.entropy(c) for c in counts]) - truth
    corrected = np.mean([stats.entropy(c, corrected=True) for c in counts]) - truth
    # by theory -(5 - 1) / 120 = -0.033 to first order; the standard error here is 0.001
    assert plain == pytest.approx(-4 / 120, abs=0.004)
    assert abs(corrected) < 0.004


def test_the_kl_correction_takes_the_bias_of_both_samples_off():
    rng = np.random.default_rng(1)
    written, real = rng.multinomial(200, P, size=4000), rng.multinomial(200, Q, size=4000)
    plain = np.mean([stats.kl_divergence(a, b) for a, b in zip(written, real, strict=True)]) - KL
    fair = np.mean([stats.miller_madow_kl(a, b) for a, b in zip(written, real, strict=True)]) - KL
    # by theory 4 / 400 + (sum p / q - 1) / 400 = 0.018; standard error 0.0015
    assert plain == pytest.approx(4 / 400 + ((P / Q).sum() - 1) / 400, abs=0.005)
    assert abs(fair) < 0.0045


def test_tokens_that_the_real_text_lacks_have_no_expansion():
    with pytest.raises(ValueError, match="1 tokens were written that the real sample lacks"):
        stats.miller_madow_kl([1, 1], [2, 0])


def test_equal_sizes_have_a_floor_and_a_difference_exceeds_it():
    rng = np.random.default_rng(2)
    vocabulary = 50
    zipf = 1 / np.arange(1, vocabulary + 1)
    real = rng.choice(vocabulary, 40_000, p=zipf / zipf.sum())
    same = rng.choice(vocabulary, 20_000, p=zipf / zipf.sum())
    steep = zipf**1.3
    other = rng.choice(vocabulary, 20_000, p=steep / steep.sum())
    none = stats.equal_size_kl(same, real, vocabulary)
    # both are of the same distribution: about (K - 1) / n; draws of one text overlap, so 30 %
    assert none.n == 20_000
    assert none.null == pytest.approx(49 / 20_000, rel=0.3)
    assert abs(none.excess) < 49 / 20_000
    some = stats.equal_size_kl(other, real, vocabulary)
    assert some.value > some.null_high
    assert some.excess == pytest.approx(float(reference(steep, zipf)), rel=0.1)
    assert some == stats.equal_size_kl(other, real, vocabulary)


def test_smaller_samples_have_a_larger_floor_and_blocks_a_larger_one_still():
    rng = np.random.default_rng(3)
    # every block of 50 tokens is about one of 20 subjects
    subjects = rng.integers(20, size=400)
    real = (subjects[:, None] * 10 + rng.integers(10, size=(400, 50))).ravel()
    small = stats.equal_size_kl(real, real, 200, n=1000)
    large = stats.equal_size_kl(real, real, 200, n=5000)
    blocks = stats.equal_size_kl(real, real, 200, n=5000, block=50)
    assert small.null > large.null
    assert blocks.null > 2 * large.null


def test_the_measure_of_runs_is_the_same_number():
    from fortifai.evals.divergence import unigram_kl

    rng = np.random.default_rng(4)
    a, b = rng.integers(30, size=500), rng.integers(25, size=500)
    counts = [np.bincount(x, minlength=30) for x in (a, b)]
    measured = unigram_kl(a, b, 30, on="rewritten", seed=0).value
    assert measured == pytest.approx(stats.kl_divergence(*counts))


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.entropy([]),
        lambda: stats.entropy([0, 0]),
        lambda: stats.entropy([-1, 2]),
        lambda: stats.kl_divergence([1, 2], [1, 2, 3]),
        lambda: stats.equal_size_kl(np.arange(10), np.arange(10), 10, n=6),
        lambda: stats.equal_size_kl(np.arange(10), np.arange(10), 10, block=0),
    ],
)
def test_wrong_counts(call):
    with pytest.raises(ValueError, match=r"counts|at most|must be"):
        call()
