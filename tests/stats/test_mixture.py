import numpy as np
import pytest
from scipy import stats as scipy_stats

from fortifai import stats


def test_the_crossing_of_two_known_gaussians():
    rng = np.random.default_rng(0)
    low, high = rng.normal(0.3, 0.08, 30_000), rng.normal(0.8, 0.05, 60_000)
    found = stats.gaussian_crossing(np.concatenate([high, low]))
    # from the densities, on a grid; EM finds the parameters of 90,000 draws to some thousandths
    x = np.linspace(0.3, 0.8, 200_001)
    gap = 1 / 3 * scipy_stats.norm(0.3, 0.08).pdf(x) - 2 / 3 * scipy_stats.norm(0.8, 0.05).pdf(x)
    assert found == pytest.approx(x[np.argmin(np.abs(gap))], abs=0.004)


def test_the_crossing_of_two_that_overlap():
    """EM creeps here: at a tolerance of 1e-4 it stops at 1.87."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 30_000), rng.normal(4, 2, 10_000)])
    # where 0.75 N(0, 1) and 0.25 N(4, 2) cross, by hand from the quadratic:
    # 3 x^2 / 8 + x - 2 - log 6 = 0
    known = (-1 + np.sqrt(1 + 1.5 * (2 + np.log(6)))) / 0.75
    # over 20 seeds the draws alone spread the crossing by 0.035 (standard deviation)
    assert stats.gaussian_crossing(values) == pytest.approx(known, abs=0.1)


def test_equal_variances_cross_in_the_middle():
    half = np.random.default_rng(1).normal(0, 0.05, 40_000)
    # mirrored, so that both halves have the same size, spread and distance from 0.5
    found = stats.gaussian_crossing(np.concatenate([0.2 + half, 0.8 - half]))
    assert found == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("values", [[], [0.5], [0.7] * 50])
def test_what_cannot_be_parted_has_no_crossing(values):
    assert stats.gaussian_crossing(values) is None
