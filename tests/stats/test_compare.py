import itertools
import math

import numpy as np
import pytest
from scipy import stats as reference

from fortifai import stats


def _answers(only_arm, only_base, both=3, none=2):
    arm = [1] * only_arm + [0] * only_base + [1] * both + [0] * none
    base = [0] * only_arm + [1] * only_base + [1] * both + [0] * none
    return np.array(arm), np.array(base)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 1), (6, 6), (3, 17), (40, 25)])
def test_mcnemar_against_scipy_and_by_counting(b, c):
    found = stats.mcnemar(*_answers(b, c))
    assert (found.arm_only, found.baseline_only) == (b, c)
    if b + c == 0:
        assert (found.exact, found.mid) == (1.0, 1.0)
        return
    assert found.exact == pytest.approx(reference.binomtest(b, b + c).pvalue)
    # every table at least as uneven, equally uneven ones with half of their weight
    n = b + c
    weight = {k: math.comb(n, k) / 2**n for k in range(n + 1)}
    mid = sum(
        w * (0.5 if abs(2 * k - n) == abs(b - c) else 1.0)
        for k, w in weight.items()
        if abs(2 * k - n) >= abs(b - c)
    )
    assert found.mid == pytest.approx(mid)


def test_mcnemar_takes_right_and_wrong_alone():
    with pytest.raises(ValueError, match="0 or 1"):
        stats.mcnemar([0.5, 1], [0, 1])
    with pytest.raises(ValueError, match="both must be"):
        stats.mcnemar([[1, 0]], [[0, 1]])


def test_mcnemar_errs_at_most_one_time_in_twenty():
    rng = np.random.default_rng(0)
    p = [
        stats.mcnemar(*(rng.random((2, 200)) < rng.uniform(0.3, 0.9, 200)).astype(int))
        for _ in range(2000)
    ]
    # binomial standard error of 5 % of 2,000: 0.5 points
    assert np.mean([x.exact < 0.05 for x in p]) <= 0.05
    assert 0.03 <= np.mean([x.mid < 0.05 for x in p]) <= 0.06


def test_permutation_by_hand_enumeration():
    arm = np.array([[1.0, 1, 0, 1, 1], [1, 1, 1, 0, 1]])
    base = np.array([[0.0, 1, 1, 0, 0], [0, 0, 1, 0, 1]])
    gaps = (arm - base).sum(0)
    seen = abs(gaps.sum())
    hits = [
        abs(np.dot(signs, gaps)) >= seen - 1e-9 for signs in itertools.product((1, -1), repeat=5)
    ]
    assert stats.permutation_test(arm, base) == pytest.approx(np.mean(hits))


def test_permutation_of_many_questions_agrees_with_the_sign_test():
    # one seed, gaps of 1 and -1: the exchange is a coin for each, so it is McNemar's exact test
    arm, base = _answers(40, 22)
    exact = stats.mcnemar(arm, base).exact
    drawn = stats.permutation_test(arm[None], base[None], n_draws=20_000)
    # binomial standard error of p = 0.03 in 20,000 draws: 0.0012; three of them
    assert drawn == pytest.approx(exact, abs=0.0036)
    assert drawn == stats.permutation_test(arm[None], base[None], n_draws=20_000)
    assert stats.permutation_test(arm[None], arm[None]) == 1.0


def test_a_permutation_p_is_never_zero():
    arm, base = np.ones((2, 100)), np.zeros((2, 100))
    assert stats.permutation_test(arm, base, n_draws=999) == pytest.approx(1 / 1000)


def test_holm_by_hand():
    # sorted 0.01 0.02 0.03 0.04: times 4, 3, 2, 1 is 0.04 0.06 0.06 0.04, made rising
    assert stats.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []
    with pytest.raises(ValueError, match="lie in"):
        stats.holm([0.5, 1.5])


def test_holm_keeps_the_error_of_a_family():
    rng = np.random.default_rng(1)
    # four equal arms against one baseline: the p-values share the baseline's noise
    z = rng.normal(size=(4000, 4)) + rng.normal(size=(4000, 1))
    p = 2 * reference.norm.sf(np.abs(z) / np.sqrt(2))
    wrong = np.mean([min(stats.holm(row)) < 0.05 for row in p])
    # uncorrected 15 %; two binomial standard errors (0.34 points)
    assert wrong <= 0.057
    assert np.mean(p.min(1) < 0.05) > 0.1
