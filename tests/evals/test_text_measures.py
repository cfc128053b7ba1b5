import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from fortifai.evals import confidence, divergence, fluency, passages, perplexity
from fortifai.text import measures


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    score = perplexity.perplexity(np.full(1000, -math.log(50)), "x")
    assert score.value == pytest.approx(50)
    assert score.stderr == pytest.approx(0, abs=1e-9)
    assert score.n == 1000


def test_perplexity_by_hand():
    # p = 1/2 and 1/8: the geometric mean is 1/4
    assert perplexity.perplexity(np.log([0.5, 0.125]), "x").value == pytest.approx(4)
    assert perplexity.perplexity(np.log([0.5, 0.125]), "x").stderr is None


def test_perplexity_stderr_sees_that_neighbours_are_alike():
    """Blocks of equal tokens carry as little as one token each: the error must say so."""
    rng = np.random.default_rng(0)
    means, told = [], []
    for _ in range(400):
        log_p = np.repeat(rng.normal(-3, 1, size=32), perplexity.BLOCK)
        score = perplexity.perplexity(log_p, "x")
        means.append(math.log(score.value))
        told.append(score.stderr / score.value)
    # a standard deviation estimated from 400 draws is known to 3.5 %; four times that
    assert np.mean(told) == pytest.approx(np.std(means), rel=0.14)


def test_perplexity_of_the_impossible_is_finite_in_json():
    assert math.isfinite(perplexity.perplexity(np.array([-np.inf, -1.0]), "x").value)


def test_confidence_and_its_histogram():
    log_p = np.log([0.0501, 0.0999, 0.96, 1.0])
    assert confidence.confidence(log_p, "x").value == pytest.approx((0.0501 + 0.0999 + 1.96) / 4)
    counts = confidence.histogram(log_p)
    assert counts[1] == 2
    assert counts[19] == 2
    assert counts.sum() == 4
    assert confidence.histogram(np.array([-np.inf, 1e-7]))[[0, 19]].tolist() == [1, 1]


def test_kl_against_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 20, 5000), rng.choice(20, 5000, p=np.arange(1, 21) / 210)
    p, q = np.bincount(a, minlength=20) / 5000, np.bincount(b, minlength=20) / 5000
    got = divergence.unigram_kl(a, b, 20, on="x", seed=0)
    assert got.value == pytest.approx(reference.entropy(p, q), abs=1e-9)


def test_kl_uses_the_floor_and_its_direction():
    # the rewritten text is all token 0, the real half 0 and half 1: log 2; the other way around
    # half the mass falls where there is only the floor: (log(0.5 / 1) + log(0.5 / 1e-10)) / 2
    a, b = np.zeros(100, int), np.tile([0, 1], 50)
    forth = divergence.unigram_kl(a, b, 2, on="x", seed=0).value
    back = divergence.unigram_kl(b, a, 2, on="x", seed=0).value
    assert forth == pytest.approx(math.log(2), abs=1e-7)
    assert back == pytest.approx((math.log(0.5) + math.log(0.5e10)) / 2)


def test_equal_sizes_make_kl_comparable():
    """The plug-in estimate of two samples of one distribution depends on the smaller size."""
    rng = np.random.default_rng(0)
    real = rng.integers(0, 10, 200_000)
    small = rng.integers(0, 10, 500)
    unequal = divergence.unigram_kl_paper(small, real, 10, on="x").value
    equal = divergence.unigram_kl(small, real, 10, on="x", seed=1)
    assert equal.n == 500
    # theory: (V - 1) / (2 n) for one finite sample, twice that for two
    draws = [
        divergence.unigram_kl(rng.integers(0, 10, 500), real, 10, on="x", seed=i).value
        for i in range(400)
    ]
    # chi-square with 9 degrees of freedom: the mean of 400 has a relative error of 2.4 %; 4 times
    assert np.mean(draws) == pytest.approx(9 / 500, rel=0.1)
    assert unequal < np.mean(draws)


def test_distinct_by_hand():
    tokens = np.array([1, 2, 1, 2, 3])
    assert fluency.distinct(tokens, 1) == 3 / 5
    assert fluency.distinct(tokens, 2) == 3 / 4
    assert fluency.distinct(tokens, 3) == 1.0
    assert math.isnan(fluency.distinct(tokens, 6))


@given(st.lists(st.integers(0, 5), min_size=3, max_size=60))
def test_distinct_and_entropy_against_plain_python(tokens):
    array = np.array(tokens)
    for n in (1, 2, 3):
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        assert fluency.distinct(array, n) == len(set(grams)) / len(grams)
    share = np.unique(array, return_counts=True)[1] / len(array)
    assert fluency.unigram_entropy(array, "x").value == pytest.approx(reference.entropy(share))


def test_distinct_is_told_as_far_as_a_text_is_long_enough():
    found = [(s.measure, s.value, s.n) for s in fluency.distinct_scores(np.array([4, 4, 4]), "x")]
    assert found == [("distinct.1", 1 / 3, 3), ("distinct.2", 1 / 2, 2), ("distinct.3", 1.0, 1)]
    short = fluency.distinct_scores(np.array([4, 5]), "x")
    assert [s.measure for s in short] == ["distinct.1", "distinct.2"]


@given(st.integers(0, 3000), st.integers(0, 400), st.integers(0, 6), st.integers(1, 200))
def test_passages_lie_in_what_is_rewritten_and_do_not_overlap(size, context, count, length):
    starts = passages.choose(size, context, count, length)
    assert len(starts) <= count
    assert all(context <= s and s + length <= size for s in starts)
    assert all(b - a >= length for a, b in itertools.pairwise(starts))
    if size - context >= count * length:
        assert len(starts) == count


def test_a_passage_marks_what_changed():
    row = passages.compare(np.array([1, 2, 3]), np.array([1, 9, 3]), lambda ids: f"<{ids}>")
    assert row == {
        "text": "<[1, 9, 3]>",
        "tokens": ["<[1]>", "<[9]>", "<[3]>"],
        "changed": [False, True, False],
    }


@pytest.mark.parametrize(
    ("measure", "unit", "direction"),
    [
        (measures.kr, "share of questions", "higher"),
        (measures.perplexity, "perplexity", "lower"),
        (measures.entropy, "nats", "higher"),
        (measures.distinct, "share", "higher"),
        (measures.repetition, "share of 4-grams", "lower"),
        (measures.kl, "nats", "lower"),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_each_measure_says_in_what_and_which_way_is_better(measure, unit, direction):
    assert (measure.unit, measure.direction) == (unit, direction)
