import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from fortifai import stats
from fortifai.stats import TimeToFailure, time_to_failure


def test_crossings_worked_out_by_hand():
    # between 0.80 (generation 1) and 0.70 (generation 2), halfway to 0.75
    assert time_to_failure([0.9, 0.8, 0.7, 0.6], 0.75) == TimeToFailure(pytest.approx(1.5), False)
    # 200 lies a quarter of the way from 100 to 500
    up = time_to_failure([50, 100, 500], 200, "above")
    assert up == TimeToFailure(pytest.approx(1.25), False)


def test_the_papers_time_to_failure_of_cross_entropy():
    # 2509.08972, Table D2, LLaMA, KR on split 0: CE crosses 75 % between stages 1 and 2,
    # (77.9 - 75) / (77.9 - 73.7) = 0.690 of the way
    ce = [80.3, 77.9, 73.7, 71.3, 66.8, 64.3]
    assert time_to_failure(ce, 75).stage == pytest.approx(1 + 2.9 / 4.2)


def test_failed_at_once_never_failed_and_touching():
    assert time_to_failure([0.6, 0.9], 0.75) == TimeToFailure(0.0, False)
    assert time_to_failure([0.9, 0.8, 0.76], 0.75) == TimeToFailure(2.0, True)
    assert time_to_failure([0.9, 0.75, 0.75], 0.75) == TimeToFailure(2.0, True)
    assert time_to_failure([0.9, 0.75, 0.65], 0.75).stage == pytest.approx(1.0)


def test_only_the_first_crossing_counts():
    assert time_to_failure([0.9, 0.7, 0.9, 0.1], 0.8).stage == pytest.approx(0.5)


@pytest.mark.parametrize("values", [[], [0.9, math.nan]])
def test_impossible_curves(values):
    with pytest.raises(ValueError, match=r"NaN|without values"):
        time_to_failure(values, 0.75)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_a_stricter_level_fails_no_later(values, a, b):
    low, high = sorted((a, b))
    # 1e-9: interpolation divides by differences that may be tiny
    assert time_to_failure(values, high).stage <= time_to_failure(values, low).stage + 1e-9


def test_half_gain():
    assert stats.half_gain_level(1.0, 0.5) == 0.75
    times = stats.seed_times([[0.9, 0.7], [0.6, 0.5]], "half_gain", "below", chance=0.5)
    # levels 0.7 (touched, not crossed) and 0.55 (halfway from 0.6 to 0.5)
    assert times == [TimeToFailure(1.0, True), TimeToFailure(pytest.approx(0.5), False)]


def test_ratio_by_hand_and_its_bounds():
    arm = [[0.9, 0.85, 0.65], [0.9, 0.85, 0.65]]  # 1.5
    base = [[0.9, 0.6, 0.5], [0.9, 0.6, 0.5]]  # 0.5
    ratio = stats.ratio_to_baseline(arm, base, 0.75)
    assert ratio.value == pytest.approx(3.0)
    assert (ratio.low, ratio.high) == (pytest.approx(3.0), pytest.approx(3.0))
    assert ratio.bound == "none"
    assert ratio.over == "seeds"
    lasting = [[0.9, 0.9, 0.9]] * 2
    assert stats.ratio_to_baseline(lasting, base, 0.75).bound == "lower"
    assert stats.ratio_to_baseline(base, lasting, 0.75).bound == "upper"
    assert stats.ratio_to_baseline(lasting, lasting, 0.75).bound == "unknown"
    assert stats.ratio_to_baseline(base, [[0.5, 0.5, 0.5]] * 2, 0.75).value is None


def test_one_seed_without_questions_has_no_interval():
    ratio = stats.ratio_to_baseline([[0.9, 0.7]], [[0.8, 0.6]], 0.75)
    assert (ratio.low, ratio.high, ratio.over) == (None, None, "nothing")


def _answers(rng, seeds, curve, n, *, spread=0.0):
    """Right or wrong answers of n questions whose chance of a right one follows `curve`.

    `spread` is the standard deviation of what a seed adds to the whole curve.
    """
    hardness = rng.uniform(size=n)  # shared by seeds and generations
    noise = rng.normal(scale=0.15, size=(seeds, len(curve), n))
    shift = rng.normal(scale=spread, size=(seeds, 1, 1))
    return (hardness + noise < np.asarray(curve)[None, :, None] + shift).astype(float)


def test_the_interval_covers_the_truth():
    """95 % intervals of the ratio hold the true ratio in about 95 % of simulated experiments."""
    rng = np.random.default_rng(1)
    arm_curve, base_curve = [0.95, 0.85, 0.75, 0.65, 0.55], [0.95, 0.75, 0.55, 0.45, 0.4]

    def truth(curve):
        many = _answers(np.random.default_rng(7), 500, curve, 2000, spread=0.05).mean(-1)
        return np.mean([t.stage for t in stats.seed_times(many, 0.7, "below")])

    true, covered = truth(arm_curve) / truth(base_curve), 0
    for i in range(300):
        arm = _answers(rng, 8, arm_curve, 100, spread=0.05)
        base = _answers(rng, 8, base_curve, 100, spread=0.05)
        ratio = stats.ratio_to_baseline(arm, base, 0.7, n_boot=300, seed=i)
        covered += ratio.low <= true <= ratio.high
    # Expected 285 of 300, binomial standard error 4. The hierarchical bootstrap counts the noise
    # of a single answer at both levels and so errs to the safe side: up to 299.
    assert 273 <= covered <= 299


def test_the_same_arm_twice_has_ratio_one():
    x = _answers(np.random.default_rng(0), 3, [0.9, 0.8, 0.6, 0.5], 100)
    ratio = stats.ratio_to_baseline(x, x, 0.75)
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)


def test_draws_are_paired():
    """Arms that answer alike question by question have a narrower interval than shuffled ones."""
    rng = np.random.default_rng(3)
    base = _answers(rng, 2, [0.9, 0.8, 0.6, 0.5], 150)
    arm = base.copy()
    arm[..., :3] = 1 - arm[..., :3]
    widths = []
    for other in (arm, arm[..., rng.permutation(150)]):
        ratio = stats.ratio_to_baseline(other, base, 0.75)
        widths.append(ratio.high - ratio.low)
    assert widths[0] < 0.6 * widths[1]  # 0.4 as measured


def test_it_is_repeatable():
    rng = np.random.default_rng(5)
    a, b = (_answers(rng, 2, [0.9, 0.7, 0.5], 80) for _ in range(2))
    assert stats.ratio_to_baseline(a, b, 0.75) == stats.ratio_to_baseline(a, b, 0.75)


def test_mean_interval_against_scipy():
    from scipy import stats as reference

    x = [1.0, 2.0, 4.0]
    expected = reference.t.interval(0.95, 2, loc=np.mean(x), scale=reference.sem(x))
    assert stats.mean_interval(x) == pytest.approx(expected)
    assert stats.mean_interval([1.0]) is None


def test_paired_difference_null_and_planted():
    rng = np.random.default_rng(11)
    false_alarms = 0
    for i in range(200):
        a, b = (_answers(rng, 1, [0.7], 300)[:, 0] for _ in range(2))
        _, low, high = stats.paired_difference(a, b, n_boot=400, seed=i)
        false_alarms += not low <= 0 <= high
    # the questions of the two differ here: 5 % of 200 is 10 +- 3.1; four standard errors
    assert false_alarms <= 22
    a, b = _answers(rng, 5, [0.75], 1500)[:, 0], _answers(rng, 5, [0.65], 1500)[:, 0]
    _, low, _ = stats.paired_difference(a, b)
    assert low > 0


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="both must be"):
        stats.ratio_to_baseline([[0.9]], [[0.9, 0.8]], 0.75)
    with pytest.raises(ValueError, match="both must be"):
        stats.paired_difference([[1.0]], [[1.0, 0.0]])
    with pytest.raises(ValueError, match="chance"):
        stats.seed_times([[0.9]], "half_gain", "below")


# --- generations that are not measured one by one -----------------------------------------------


def test_time_to_failure_counts_true_generations():
    # crosses 0.5 half way between generations 10 and 30
    time = stats.time_to_failure([1.0, 0.6, 0.4, 0.1], 0.5, generations=[0, 10, 30, 35])
    assert time == stats.TimeToFailure(pytest.approx(20.0), False)
    never = stats.time_to_failure([1.0, 0.9], 0.5, generations=[0, 40])
    assert never == stats.TimeToFailure(40.0, True)
    at_once = stats.time_to_failure([0.4, 0.9], 0.5, generations=[0, 40])
    assert at_once == stats.TimeToFailure(0.0, False)


def test_the_ratio_is_of_true_generations():
    # the arm crosses at 30, the baseline at 5; counted in steps it would be 3 against 1
    arm = [[1.0, 1.0, 0.6, 0.4]] * 2
    base = [[1.0, 0.0, 0.0, 0.0]] * 2
    told = stats.ratio_to_baseline(arm, base, 0.5, generations=[0, 10, 20, 40])
    assert told.value == pytest.approx(30 / 5)
    assert (told.low, told.high) == (pytest.approx(6.0), pytest.approx(6.0))


# --- where two Gaussians cross ------------------------------------------------------------------


def test_the_crossing_of_two_known_gaussians():
    rng = np.random.default_rng(0)
    low, high = rng.normal(0.3, 0.08, 30_000), rng.normal(0.8, 0.05, 60_000)
    found = stats.gaussian_crossing(np.concatenate([high, low]))
    # from the densities, on a grid; EM finds the parameters of 90,000 draws to some thousandths
    x = np.linspace(0.3, 0.8, 200_001)
    gap = 1 / 3 * scipy_stats.norm(0.3, 0.08).pdf(x) - 2 / 3 * scipy_stats.norm(0.8, 0.05).pdf(x)
    assert found == pytest.approx(x[np.argmin(np.abs(gap))], abs=0.004)


def test_equal_variances_cross_in_the_middle():
    half = np.random.default_rng(1).normal(0, 0.05, 40_000)
    # mirrored, so that both halves have the same size, spread and distance from 0.5
    found = stats.gaussian_crossing(np.concatenate([0.2 + half, 0.8 - half]))
    assert found == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("values", [[], [0.5], [0.7] * 50])
def test_what_cannot_be_parted_has_no_crossing(values):
    assert stats.gaussian_crossing(values) is None
