import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    curves = [0.9, 0.7], [0.6, 0.5], [1.0, 0.5]
    times = [stats.time_to_failure(x, "half_gain", chance=0.5) for x in curves]
    # levels 0.7 (touched, not crossed), 0.55 and 0.75 (halfway from 0.6 and from 1.0 to 0.5)
    half = TimeToFailure(pytest.approx(0.5), False)
    assert times == [TimeToFailure(1.0, True), half, half]


def test_a_multiple_of_the_first_value():
    three = stats.TimesFirst(3.0)
    # 3 x 40 = 120 lies a tenth of the way from 100 to 300; each curve has its own level
    assert time_to_failure([40, 100, 300], three, "above").stage == pytest.approx(1.1)
    assert time_to_failure([30, 100, 300], three, "above").stage == pytest.approx(60 / 70)
    curves = [[40, 100, 300], [30, 100, 300]]
    ratio = stats.ratio_to_baseline(curves[:1], curves[1:], three, "above")
    assert ratio.value == pytest.approx(1.1 / (60 / 70))


@given(st.integers(0, 2**32 - 1))
def test_the_p_value_agrees_with_the_interval(seed):
    """Under 0.05 exactly where the interval leaves 1 out; and it is the paired t-test of times."""
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(seed)
    curves = [np.linspace(1, rng.uniform(0, 0.2, 5), 6).T for _ in range(2)]
    curves[0] += rng.uniform(0, 0.3)
    found = stats.ratio_to_baseline(*curves, 0.5)
    outside = (found.low or 0) > 1 or (found.high is not None and found.high < 1)
    assert (found.p < 0.05) == outside
    times = [[time_to_failure(c, 0.5).stage for c in arm] for arm in curves]
    assert found.p == pytest.approx(ttest_rel(*times).pvalue, rel=1e-6)


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


@pytest.mark.long
def test_the_interval_covers_the_truth():
    """95 % intervals of the ratio hold the true ratio in about 95 % of simulated experiments."""
    rng = np.random.default_rng(1)
    arm_curve, base_curve = [0.95, 0.85, 0.75, 0.65, 0.55], [0.95, 0.75, 0.55, 0.45, 0.4]

    def truth(curve):
        many = _answers(np.random.default_rng(7), 500, curve, 2000, spread=0.05).mean(-1)
        return np.mean([t.stage for t in (stats.time_to_failure(x, 0.7) for x in many)])

    true, covered = truth(arm_curve) / truth(base_curve), 0
    for i in range(400):
        arm = _answers(rng, 5, arm_curve, 100, spread=0.05)
        base = _answers(rng, 5, base_curve, 100, spread=0.05)
        ratio = stats.ratio_to_baseline(arm, base, 0.7, n_boot=200, seed=i)
        covered += ratio.low <= true <= (math.inf if ratio.high is None else ratio.high)
    # 93 to 97 % of 400 are 372 to 388; two binomial standard errors (4.4) to either side
    assert 363 <= covered <= 397


def test_the_same_arm_twice_has_ratio_one():
    x = _answers(np.random.default_rng(0), 3, [0.9, 0.8, 0.6, 0.5], 100)
    ratio = stats.ratio_to_baseline(x, x, 0.75)
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)


def test_draws_are_paired():
    """Arms that answer alike question by question have a narrower interval than shuffled ones."""
    rng = np.random.default_rng(3)
    base = _answers(rng, 1, [0.9, 0.8, 0.6, 0.5], 150)
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


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="both must be"):
        stats.ratio_to_baseline([[0.9]], [[0.9, 0.8]], 0.75)
    with pytest.raises(ValueError, match="chance"):
        stats.time_to_failure([0.9], "half_gain")


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


def test_a_curve_without_end_has_a_time():
    # a perplexity that overflows fails at once after the last finite value
    assert time_to_failure([100, math.inf], 200, "above") == TimeToFailure(0.0, False)
    assert time_to_failure([math.inf, 1.0], 5.0, "below") == TimeToFailure(1.0, False)


def test_the_ratio_of_values_without_questions_is_fiellers():
    """Against Fieller's closed form with Student's t, for five seeds of times by hand."""
    from scipy import stats as reference

    times = np.array([[3.0, 1.0], [4.0, 1.4], [3.5, 1.5], [4.4, 1.6], [3.9, 1.3]])
    # a curve of 1 that falls to -1 over generation t to t + 1 crosses 0 at t + 1/2: straight lines
    curves = [
        [np.interp(np.arange(9), [t - 0.5, t + 0.5], [1.0, -1.0]) for t in times[:, side]]
        for side in (0, 1)
    ]
    read = [[stats.time_to_failure(x, 0.0).stage for x in c] for c in curves]
    a, b = (np.mean(r) for r in read)
    (vaa, vab), (_, vbb) = np.cov(read) / 5
    t2 = reference.t.ppf(0.975, 4) ** 2
    low, high = sorted(np.roots([b**2 - t2 * vbb, -2 * (a * b - t2 * vab), a**2 - t2 * vaa]))
    ratio = stats.ratio_to_baseline(*curves, 0.0)
    assert ratio.value == pytest.approx(a / b)
    # 1e-9: found by bracketing to 1e-14 in the angle
    assert (ratio.low, ratio.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_a_baseline_that_may_fail_at_once_leaves_the_ratio_open():
    arm = [[1.0, 0.9, -1.0]] * 3
    base = [[0.01, -1.0, -1.0], [1.0, -1.0, -1.0], [0.02, -1.0, -1.0]]
    ratio = stats.ratio_to_baseline(arm, base, 0.0)
    assert ratio.low is not None
    assert 0 < ratio.low < ratio.value
    assert ratio.high is None
