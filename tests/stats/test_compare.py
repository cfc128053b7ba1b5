import numpy as np
import pytest
from scipy import stats as reference

from fortifai import stats


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
