import math

import numpy as np
import pytest
from scipy import stats as reference

from fortifai import stats
from fortifai.stats import mean_estimate, paired_difference


def _pair(rng, seeds, n, *, effect=0.0, seed_noise=0.02, own=0.2):
    """Answers of two arms to the same n questions.

    Each arm and seed is better or worse by `seed_noise`, each arm at each question by `own`.
    """
    ease = np.clip(0.6 + rng.normal(0, 0.2, n), 0.05, 0.95)
    gap = rng.normal(0, own, n) / 2
    return [
        (rng.random((seeds, n)) < ease + sign * (gap + effect / 2) + shift).astype(float)
        for sign, shift in zip((1, -1), rng.normal(0, seed_noise, (2, seeds, 1)), strict=True)
    ]


def test_mean_interval_against_scipy():
    x = [1.0, 2.0, 4.0]
    expected = reference.t.interval(0.95, 2, loc=np.mean(x), scale=reference.sem(x))
    assert stats.mean_interval(x) == pytest.approx(expected)
    assert stats.mean_interval([1.0]) is None


@pytest.mark.parametrize(
    ("seeds", "least", "most"), [(2, 0.945, 0.97), (3, 0.945, 0.965), (4, 0.949, 0.965)]
)
def test_coverage_by_integration_whatever_the_share_of_the_seeds(seeds, least, most):
    """Between a seeds' variance of few degrees of freedom and a known variance of questions.

    The estimate is normal with variance rho + (1 - rho), the first part estimated by chi-square:
    for each quantile of that, the normal distribution says how often the interval holds the truth.
    """
    quantiles = (np.arange(4000) + 0.5) / 4000
    estimated = reference.chi2.ppf(quantiles, seeds - 1) / (seeds - 1)
    for rho in [0.0, 0.01, 0.03, *np.linspace(0.05, 0.95, 19), 0.98, 1.0]:
        spread = stats.Spread(rho * estimated, np.full(4000, 1 - rho), np.zeros(4000), seeds, 10**9)
        variance, df = spread.total()
        half = reference.t.ppf(0.975, df) * np.sqrt(variance)
        covered = np.mean(2 * reference.norm.cdf(half) - 1)
        # 0.0003: the largest hundredth of a thousandth of chi-square is cut off by the grid
        assert least - 0.0003 <= covered <= most, rho


def test_one_seed_is_scipys_t_test_over_questions():
    d = np.random.default_rng(0).normal(0.1, 1, 40)
    found, there = mean_estimate(d[None]), reference.ttest_1samp(d, 0)
    assert found.over == "questions"
    assert found.p == pytest.approx(there.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(there.confidence_interval(0.95)))


@pytest.mark.parametrize(("over", "axis"), [("seeds", 1), ("questions", 0)])
def test_what_is_held_fixed_is_averaged_first(over, axis):
    table = np.random.default_rng(1).normal(0.3, 1, (4, 30))
    found = mean_estimate(table, over=over)
    there = reference.ttest_1samp(table.mean(axis), 0)
    assert (found.p, found.over) == (pytest.approx(there.pvalue), over)


def test_the_parts_are_those_of_the_analysis_of_variance():
    """Sums of squares by loops, as the textbook has them, on a small uneven table."""
    x = np.array([[1.0, 2.0, 6.0], [0.0, 3.0, 1.0]])
    grand, rows, columns = x.mean(), x.mean(1), x.mean(0)
    seeds = sum(3 * (rows[s] - grand) ** 2 for s in range(2)) / 1
    items = sum(2 * (columns[q] - grand) ** 2 for q in range(3)) / 2
    rest = sum((x[s, q] - rows[s] - columns[q] + grand) ** 2 for s in range(2) for q in range(3))
    spread = stats.spread_of_mean(x)
    assert float(spread.seeds) == pytest.approx(seeds / 6)
    assert float(spread.items) == pytest.approx(items / 6)
    assert float(spread.both) == pytest.approx(rest / 2 / 6)


def test_the_variance_of_the_mean_is_unbiased():
    """The three parts together estimate the true variance of the mean, known from the model."""
    rng = np.random.default_rng(2)
    n, s, q = 4000, 3, 20
    x = rng.normal(0, 0.3, (s, n, 1)) + rng.normal(0, 1.0, (1, n, q)) + rng.normal(0, 2, (s, n, q))
    spread = stats.spread_of_mean(x)
    found = (spread.seeds + spread.items - spread.both).mean()
    # standard error of the mean of 4,000 estimates, each off by about 60 % of itself: 1 %
    assert found == pytest.approx(0.09 / s + 1 / q + 4 / (s * q), rel=0.04)


@pytest.mark.long
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize(("n", "seed_noise", "own"), [(60, 0.0, 0.0), (300, 0.02, 0.2)])
def test_the_same_arm_twice_is_called_different_one_time_in_twenty(seeds, n, seed_noise, own):
    """The null experiment: intervals of a difference of 0 leave 0 out in 3 to 7 % of the cases."""
    rng = np.random.default_rng([seeds, n])
    sims = 1500
    wrong = 0
    for _ in range(sims):
        arm, base = _pair(rng, seeds, n, seed_noise=seed_noise if seeds > 1 else 0.0, own=own)
        found = paired_difference(arm, base)
        wrong += found.sure
        assert found.sure == (found.p < 0.05)
    # by integration 3.1 to 5.5 %; three binomial standard errors (0.56 points) to either side
    assert 0.014 <= wrong / sims <= 0.072


def test_the_whole_null_experiment_errs_at_most_once_in_twenty():
    """All settings of the null together, seeds that differ from each other among them."""
    rng = np.random.default_rng(8)
    sims, wrong = 4000, 0
    for i in range(sims):
        arm, base = _pair(rng, (3, 5)[i % 2], (80, 200)[i // 2 % 2], seed_noise=0.02)
        wrong += paired_difference(arm, base).p < 0.05
    # at most 5 %, and two binomial standard errors (0.34 points) for the simulation
    assert wrong / sims <= 0.05 + 2 * 0.0034


def test_a_planted_effect_of_five_points_is_found():
    rng = np.random.default_rng(4)
    found = [paired_difference(*_pair(rng, 5, 1500, effect=0.05)) for _ in range(200)]
    # seeds that differ by 2 points: standard error of the difference 1.5 points, so that one with
    # t of 4 degrees (2.8) would find it in 7 of 10; the same effect with seeds alike, in nearly all
    assert np.mean([f.sure and f.value > 0 for f in found]) > 0.6
    alike = [
        paired_difference(*_pair(rng, 5, 1500, effect=0.05, seed_noise=0.01)) for _ in range(200)
    ]
    # 90 % wanted; measured 98 %; binomial standard error 1 point
    assert np.mean([f.sure and f.value > 0 for f in alike]) >= 0.9


def test_questions_as_if_independent_of_seeds_would_err():
    """The test above can fail: one long list of answers is called different far too often."""
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(300):
        arm, base = _pair(rng, 3, 300, seed_noise=0.03)
        wrong += reference.ttest_1samp((arm - base).ravel(), 0).pvalue < 0.05
    assert wrong / 300 > 0.15


def test_more_seeds_and_more_questions_narrow_the_interval():
    rng = np.random.default_rng(6)

    def width(seeds, n):
        found = [paired_difference(*_pair(rng, seeds, n)) for _ in range(60)]
        return np.median([f.high - f.low for f in found])

    # two seeds leave one degree of freedom (12.7 standard errors), three leave two (4.3)
    assert width(2, 200) > 2 * width(3, 200)
    assert width(3, 200) > width(8, 200) > width(8, 800)


def test_nothing_to_judge_by():
    assert mean_estimate([0.5]).over == "nothing"
    assert mean_estimate([[0.5]]).p is None
    assert not mean_estimate([0.5]).sure
    same = paired_difference(np.ones((2, 4)), np.ones((2, 4)))
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("table", "over", "words"),
    [
        ([[[1.0]]], None, "must be"),
        ([], None, "must be"),
        ([[1.0, math.nan]], None, "not finite"),
        ([[1.0, 0.0]], "seeds", "was asked of"),
        ([[1.0, 0.0]], "seeds and questions", "was asked of"),
    ],
)
def test_wrong_tables(table, over, words):
    with pytest.raises(ValueError, match=words):
        mean_estimate(table, over=over)


def test_shapes_of_a_difference_are_checked():
    with pytest.raises(ValueError, match="both must be"):
        paired_difference([[1.0]], [[1.0, 0.0]])


def test_quantiles_against_mpmath():
    import mpmath

    for df in (1.0, 1.7, 4.0, 33.3, 1e9):
        x = float(stats.quantile(0.975, df))
        tail = mpmath.betainc(df / 2, 0.5, 0, df / (df + x * x), regularized=True) / 2
        # 1e-7 of the tail: scipy inverts to about 1e-9, the largest df costs mpmath some digits
        assert float(tail) == pytest.approx(0.025, rel=1e-6)
