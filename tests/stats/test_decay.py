import math

import numpy as np
import pytest
from scipy.optimize import curve_fit

from fortifai import stats
from fortifai.stats.decay import fit_rate


def _answers(rng, rate, seeds, n, *, chance=0.25, gain=0.5, generations=8):
    """Answers whose share decays from chance + gain to chance; questions differ in their gain."""
    left = np.exp(-rate * np.arange(generations))[None, :, None]
    p = chance + gain * left + left * rng.normal(0, 0.1, n)
    return (rng.random((seeds, generations, n)) < p).astype(float)


def test_an_exact_decay_is_read_off():
    for rate in (0.03, 0.4, 2.0, -0.1):
        curve = 0.25 + 0.5 * np.exp(-rate * np.arange(6))
        found = stats.decay_rate(np.stack([curve] * 2), 0.25)
        # the golden section stops at 2e-7 of a cell of the grid, a cell being at most 0.3
        assert found.value == pytest.approx(rate, abs=1e-6)
        assert found.high - found.low < 1e-5


def test_noisy_fits_agree_with_scipys_least_squares():
    rng = np.random.default_rng(0)
    at = np.array([0, 1, 2, 4, 8, 9])
    for _ in range(20):
        k, size = rng.uniform(0.05, 1.0), rng.uniform(0.2, 0.6)
        y = size * np.exp(-k * at) + rng.normal(0, 0.02, len(at))
        (_, expected), _ = curve_fit(lambda x, a, k: a * np.exp(-k * x), at, y, p0=(size, k))
        # both stop where the sum of squares is flat to double precision: about 1e-8 in k, and
        # curve_fit's own tolerance is 1e-8 of the sum
        assert fit_rate(y[None], at)[0] == pytest.approx(expected, rel=1e-4)


def test_true_generations_count():
    at = [0, 5, 10, 20]
    curve = np.exp(-0.1 * np.array(at))
    assert stats.decay_rate([curve] * 2, generations=at).value == pytest.approx(0.1, abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_intervals_cover_the_rate_and_the_ratio(seeds):
    rng = np.random.default_rng(seeds)
    sims, rate, ratio = 200, 0, 0
    for i in range(sims):
        fast, slow = _answers(rng, 0.4, seeds, 300), _answers(rng, 0.1, seeds, 300)
        one = stats.decay_rate(fast, 0.25, n_boot=100, seed=i)
        rate += one.low <= 0.4 <= one.high
        two = stats.decay_ratio(slow, fast, 0.25, n_boot=100, seed=i)
        high = math.inf if two.high is None else two.high
        ratio += (-math.inf if two.low is None else two.low) <= 4 <= high
    # 93 to 97 %, and three binomial standard errors of 200 (1.6 points) for the simulation
    for hits in (rate, ratio):
        assert 0.88 <= hits / sims <= 1.0


def test_an_arm_that_may_not_decay_leaves_the_ratio_open():
    rng = np.random.default_rng(7)
    found = stats.decay_ratio(
        _answers(rng, 0.0, 3, 200), _answers(rng, 0.4, 3, 200), 0.25, n_boot=200
    )
    assert found.high is None or found.low is None


def test_what_cannot_be_fitted_is_said():
    with pytest.raises(ValueError, match="under its chance level"):
        stats.decay_rate([[0.2, 0.2, 0.2]], 0.25)
    with pytest.raises(ValueError, match="three generations"):
        stats.decay_rate([[0.5, 0.4]])
    with pytest.raises(ValueError, match="rising generations"):
        stats.decay_rate([[0.5, 0.4, 0.3]], generations=[0, 2, 1])
    with pytest.raises(ValueError, match="equal shapes"):
        stats.decay_ratio([[0.5, 0.4, 0.3]], [[0.5, 0.4, 0.3]] * 2)
