import numpy as np
import pytest

from fortifai import stats


def _table(seed=0, seeds=4, items=60):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(0, 0.2, (seeds, 1))
        + rng.normal(1, 0.7, (1, items))
        + rng.normal(0, 1, (seeds, items))
    )


def _mean(x):
    return x.mean(-1)


@pytest.mark.parametrize("over", ["seeds and questions", "questions", "seeds"])
def test_of_a_mean_it_is_the_closed_form(over):
    x = _table()
    x = x[:1] if over == "questions" else x.mean(1) if over == "seeds" else x
    found = stats.bootstrap_interval(_mean, x, items=over != "seeds", n_boot=20_000)
    exact = stats.mean_estimate(x)
    assert (found.value, found.over) == (pytest.approx(exact.value), over)
    # 20,000 draws fix a standard error to 0.5 %; the degrees of freedom move a little with it
    assert found.high - found.low == pytest.approx(exact.high - exact.low, rel=0.03)


def test_tables_share_every_draw():
    x = _table()
    same = stats.bootstrap_interval(lambda a, b: _mean(a) - _mean(b), x, x, items=True, n_boot=50)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    apart = stats.bootstrap_interval(
        lambda a, b: _mean(a) - _mean(b), x, _table(9), items=True, n_boot=500
    )
    assert apart.high - apart.low > 0.3


def test_percentiles_of_the_same_draws_would_cover_too_little():
    """Why it is not a percentile bootstrap: two seeds drawn with replacement spread too little."""
    rng = np.random.default_rng(4)
    percentile = student = 0
    for i in range(200):
        x = rng.normal(0, 1, 2)
        drawn = x[rng.integers(2, size=(400, 2))].mean(1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        percentile += low <= 0 <= high
        found = stats.bootstrap_interval(_mean, x, items=False, n_boot=400, seed=i)
        student += found.low <= 0 <= found.high
    assert percentile / 200 < 0.7  # at most 1/2 by theory: both seeds on one side of 0 miss it
    assert student / 200 >= 0.9  # 95 % and three binomial standard errors


def test_it_is_repeatable_and_many_draws_come_in_batches(monkeypatch):
    from fortifai.stats import bootstrap

    x = _table()
    one = stats.bootstrap_interval(_mean, x, items=True, n_boot=300)
    assert one == stats.bootstrap_interval(_mean, x, items=True, n_boot=300)
    monkeypatch.setattr(bootstrap, "_ENTRIES", 40)  # ten draws of four seeds at a time
    batched = stats.bootstrap_interval(_mean, x, items=True, n_boot=300)
    # other draws of the same kind: 300 fix a standard error to 4 %
    assert batched.high - batched.low == pytest.approx(one.high - one.low, rel=0.2)


@pytest.mark.parametrize(
    ("tables", "items", "words"),
    [
        ([], True, "must be"),
        ([[1.0, 2.0]], True, "must be"),
        ([np.ones((2, 3)), np.ones((2, 4))], True, "same seeds and items"),
        ([np.ones((2, 3)), np.ones((3, 3))], False, "same seeds and items"),
        ([[[1.0, np.inf]]], True, "not finite"),
    ],
)
def test_wrong_tables(tables, items, words):
    with pytest.raises(ValueError, match=words):
        stats.bootstrap_interval(lambda *x: x[0].mean(-1), *tables, items=items)


def test_a_statistic_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="not finite"):
        stats.bootstrap_interval(lambda m: np.nan * _mean(m), _table(), items=True, n_boot=10)
