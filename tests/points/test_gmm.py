"""The mixture against scikit-learn, its own definition, and wrong input."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.mixture import GaussianMixture

from fortifai.errors import Diverged, InputError
from fortifai.lab.progress import Silent
from fortifai.points.distances import mixture_l2
from fortifai.points.gmm import GMM, GMMFamily, GMMOptions
from fortifai.points.sources import Mixture
from fortifai.weights import Focal, Keep, TruncateQuantile


def make(weight=None, **changes) -> GMM:
    family = GMMFamily(GMMOptions(kind="gmm", **changes), weight or Keep())
    return family.create("base", seed=0)


def fit(model, x, seed=0):
    return model.fit(x, seed=seed, progress=Silent())


def two(n=600, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(0, 1, (n // 2, 2)), rng.normal(5, 0.7, (n // 2, 2))])


@pytest.mark.parametrize("kind", ["full", "diag", "tied"])
@pytest.mark.parametrize("components", [2, 3])  # 2 is also the number of dimensions
def test_fit_and_density_are_scikit_learns(kind, components):
    x = two()
    model = make(covariance=kind, components=components)
    fit(model, x, seed=3)
    theirs = GaussianMixture(
        components, covariance_type=kind, tol=1e-5, max_iter=2000, random_state=3
    ).fit(x)
    np.testing.assert_allclose(model.mixture.means, theirs.means_, rtol=1e-12)
    np.testing.assert_allclose(model.mixture.weights, theirs.weights_, rtol=1e-12)
    np.testing.assert_allclose(model.log_prob(x), theirs.score_samples(x), rtol=1e-9)


@pytest.mark.parametrize("kind", ["full", "diag", "tied"])
def test_a_warm_start_begins_at_the_last_mixture(kind):
    x = two()
    model = make(covariance=kind, max_iterations=2000)
    first = fit(model, x)
    again = fit(model, x)
    # EM at its own fixed point needs one or two steps; a fresh start needed more
    assert again["iterations"] <= 2 < first["iterations"] + 2
    fresh = make(covariance=kind, warm_start=False)
    fit(fresh, x)
    components = fresh.mixture.means.copy()
    fit(fresh, x)
    np.testing.assert_array_equal(fresh.mixture.means, components)  # from k-means again


def test_algorithm_2_drops_the_points_above_the_percentile():
    x, y = two(), two(seed=1)
    model = make(TruncateQuantile(0.8))
    assert fit(model, x)["truncated_share"] == 0.0  # there is no model yet to be sure
    log_p = model.log_prob(y)
    plain = make()
    plain.mixture = model.mixture
    report = fit(model, y)
    fit(plain, y[log_p <= np.percentile(log_p, 80)])
    assert report["truncated_share"] == pytest.approx(0.2, abs=1 / 600)
    np.testing.assert_array_equal(model.mixture.means, plain.mixture.means)


def test_draws_follow_the_mixture_and_are_shuffled():
    model = make()
    fit(model, two())
    drawn = model.regenerate(np.zeros((40_000, 2)), seed=9, progress=Silent())
    far = (drawn.sum(1) > 5.5).astype(float)
    weight = model.mixture.weights[model.mixture.means.sum(1) > 5.5].sum()
    # binomial standard error 0.0025, and a thousandth of overlap
    assert far.mean() == pytest.approx(weight, abs=0.012)
    # shuffled: neighbours are of one component as often as chance has it; sorted draws give 1
    same = (far[1:] == far[:-1]).mean()
    assert same == pytest.approx(weight**2 + (1 - weight) ** 2, abs=0.015)
    for k, (mean, covariance) in enumerate(
        zip(model.mixture.means, model.mixture.covariances, strict=True)
    ):
        own = drawn[far == (mean.sum() > 5.5)]
        standard = np.linalg.solve(np.linalg.cholesky(covariance), (own - mean).T)
        assert stats.kstest(standard[0], "norm").statistic < 0.02, k


def test_draws_of_two_generations_never_repeat():
    model = make()
    fit(model, two())
    one, other = (
        model.regenerate(np.zeros((500, 2)), seed=seed, progress=Silent()) for seed in (1, 2)
    )
    assert not np.isin(one[:, 0], other[:, 0]).any()


def test_what_cannot_go_on_ends():
    with pytest.raises(Diverged, match=r"1 of 1 points were kept.*3 are needed"):
        fit(make(components=3), np.zeros((1, 2)))
    with pytest.raises(Diverged, match="singular"):
        fit(make(reg_covar=0.0), np.repeat([[0.0, 0.0], [1.0, 1.0]], 20, axis=0))


LINE = np.stack([np.arange(50.0), 2 * np.arange(50.0)], axis=1)
JITTER = np.random.default_rng(0).normal(size=(50, 2))


@pytest.mark.parametrize("kind", ["full", "diag", "tied"])
@pytest.mark.parametrize(
    ("x", "diag_ends"),
    [
        (LINE, False),  # along the axes there is spread
        (LINE + 1e-8 * JITTER, False),
        (np.full((50, 2), 3.0), True),
        (1e-200 * JITTER, True),
        (1e120 * JITTER, True),
        (1e200 * JITTER, True),
    ],
)
def test_wherever_the_linear_algebra_gives_up_the_chain_ends(kind, x, diag_ends):
    """Without a floor under the covariances; every warning is an error here."""
    model = make(covariance=kind, reg_covar=0.0, components=2)
    if kind == "diag" and not diag_ends:
        fit(model, x)
        assert np.isfinite(model.log_prob(x)).all()
        return
    with pytest.raises(Diverged):
        fit(model, x)
    assert model.mixture is None


@pytest.mark.parametrize("kind", ["full", "diag", "tied"])
def test_what_a_fit_leaves_can_be_drawn_from_measured_and_fitted_again(kind):
    """From a few points mixtures collapse within some generations, by all roads there are."""
    for seed in range(4):
        x = np.random.default_rng(seed).normal(size=(8, 2))
        model = make(covariance=kind, reg_covar=0.0, components=2)
        with pytest.raises(Diverged, match="singular"):
            collapse(model, x)


def collapse(model, x):
    for generation in range(500):
        fit(model, x, seed=generation)
        x = model.regenerate(x, seed=generation, progress=Silent())
        assert np.isfinite(model.log_prob(np.ones((3, 2)))).all()
        assert mixture_l2(model.mixture, model.mixture) == 0.0


def test_a_singular_mixture_that_was_kept_ends_its_chain_too():
    """One that an earlier version committed, when less was asked of it."""
    model = make(TruncateQuantile(0.8), reg_covar=0.0)
    model.mixture = Mixture(np.ones(1), np.zeros((1, 2)), np.ones((1, 2, 2)))
    for use in (
        lambda: fit(model, two()),
        lambda: model.log_prob(two()),
        lambda: model.regenerate(two(), seed=0, progress=Silent()),
    ):
        with pytest.raises(Diverged, match="singular"):
            use()


def test_wrong_input_is_told():
    with pytest.raises(InputError, match=r"\(n, d\) and finite"):
        fit(make(), np.array([[0.0, np.nan], [1.0, 2.0]]))
    model = make(Focal(2.0))
    fit(model, two())
    with pytest.raises(InputError, match="must be 0 or 1; use keep or truncate_quantile"):
        fit(model, two())
    with pytest.raises(InputError, match="not fitted yet"):
        make().log_prob(two())
