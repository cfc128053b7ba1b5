import math

import numpy as np
import pytest
from scipy.stats import entropy as reference

from fortifai import stats


def test_against_scipys_of_all_statistics():
    a, b = np.array([5, 3, 2, 0]), np.array([1, 4, 4, 1])
    assert stats.entropy(a) == pytest.approx(reference(a))
    assert stats.kl_divergence(a, b, floor=0.0 + 1e-300) == pytest.approx(reference(a, b))
    # one token unseen in the real text: 0.5 log(0.5 / 1e-10), and the floor's own term
    floored = stats.kl_divergence([1, 1], [2, 0])
    assert floored == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5 / 1e-10))


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
    ],
)
def test_wrong_counts(call):
    with pytest.raises(ValueError, match="counts"):
        call()
