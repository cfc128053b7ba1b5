from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from fortifai.errors import InputError
from fortifai.points import distances as measures
from fortifai.points.distances import (
    components_kept,
    mixture_l2,
    standard_error,
    tail_mass,
    wasserstein,
)

Floats = NDArray[np.float64]

# room for rounding of sums of at most some thousand terms of order one
EXACT = 1e-12


@dataclasses.dataclass(frozen=True)
class Mixture:
    weights: Floats
    means: Floats
    covariances: Floats

    def permuted(self, order: list[int]) -> Mixture:
        return Mixture(self.weights[order], self.means[order], self.covariances[order])

    def density(self, x: Floats) -> Floats:
        return sum(
            w * stats.multivariate_normal(m, c).pdf(x)
            for w, m, c in zip(self.weights, self.means, self.covariances, strict=True)
        )


def mixture(k: int, d: int, seed: int) -> Mixture:
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(k, d, d))
    covariances = roots @ roots.transpose(0, 2, 1) + 0.3 * np.eye(d)
    return Mixture(rng.dirichlet(np.full(k, 3.0)), 2 * rng.normal(size=(k, d)), covariances)


def normal(mean: float | list[float], variance: float | list[float]) -> Mixture:
    means, variances = np.atleast_1d(mean), np.atleast_1d(variance)
    return Mixture(np.ones(1), means[None].astype(float), np.diag(variances)[None].astype(float))


def stack(seeds: int = 3, n: int = 50, d: int = 2) -> Floats:
    scale, shift = np.arange(1, d + 1), np.arange(d)
    return np.random.default_rng(7).normal(size=(seeds, n, d)) * scale + shift


# --- stacks and means -------------------------------------------------------------------------


def test_a_stack_is_measured_seed_by_seed():
    points, other = stack() * np.arange(1, 4)[:, None, None], stack(1, 31)[0]
    for measure in (
        lambda x: wasserstein(x, other),
        lambda x: wasserstein(x[..., :1], other[:, :1]),
        lambda x: tail_mass(x, [0, 1], [[1, 0.5], [0.5, 4]], 1),
    ):
        together = measure(points)
        assert together.shape == (3,)
        assert together.dtype == np.float64
        assert len(set(together)) == 3
        alone = [measure(x) for x in points]
        assert all(x.shape == (1,) for x in alone)
        np.testing.assert_allclose(together, np.concatenate(alone), rtol=EXACT)


def test_float32_points_are_measured_in_float64():
    # around 1000 a distance in float32 has three digits at best
    points = (1000 + 1e-2 * stack(1, 200)).astype(np.float32)
    other = (1000 + 1e-2 * stack(1, 300)[0]).astype(np.float32)
    exact = wasserstein(points.astype(np.float64), other.astype(np.float64))
    np.testing.assert_array_equal(wasserstein(points, other), exact)


def test_standard_error_of_a_mean():
    # deviations -3 -1 1 3: variance 20 / 3, over 4
    assert standard_error([1, 3, 5, 7]) == pytest.approx(math.sqrt(20 / 12), rel=EXACT)
    means = np.random.default_rng(0).normal(5, 2, size=(4000, 25)).mean(axis=1)
    errors = [standard_error(x) for x in np.random.default_rng(1).normal(5, 2, size=(4000, 25))]
    # the spread of 4,000 means is known to 1 / sqrt(8000) = 1.1 %, four times that
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(means.std(), rel=0.045)


def test_standard_error_of_values_near_the_ends_of_floats():
    for scale in (1e-200, 1e200):
        error = standard_error(scale * np.array([1, 3, 5, 7]))
        assert error / scale == pytest.approx(math.sqrt(20 / 12), rel=EXACT)
    assert standard_error([0, 0, 0]) == 0
    assert standard_error([1, math.inf]) == math.inf


# --- Wasserstein ------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=12),
    st.lists(st.floats(-100, 100), min_size=1, max_size=12),
)
@settings(max_examples=200, deadline=None)
def test_wasserstein_is_scipys_in_one_dimension(a: list[float], b: list[float]):
    ours = wasserstein(np.array(a)[:, None], np.array(b)[:, None])
    # scipy integrates over values instead of quantiles: it rounds elsewhere, at the scale of 100
    assert ours[0] == pytest.approx(stats.wasserstein_distance(a, b), rel=1e-9, abs=1e-10)


@pytest.mark.parametrize(("n", "m"), [(500, 500), (500, 1000), (997, 360), (1, 77), (77, 1)])
def test_wasserstein_is_scipys_on_larger_samples(n: int, m: int):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, n, 1)), rng.exponential(size=(m, 1))
    expected = [stats.wasserstein_distance(s[:, 0], y[:, 0]) for s in x]
    np.testing.assert_allclose(wasserstein(x, y), expected, rtol=1e-11)


def test_wasserstein_of_shifted_gaussians_is_the_shift():
    rng = np.random.default_rng(4)
    x, y = 1.5 + rng.normal(size=(1, 40_000, 1)), rng.normal(size=(30_000, 1))
    # a shift dominates, so the distance is the difference of means: sd sqrt(1/40000 + 1/30000) =
    # 0.0076, four times that
    assert wasserstein(x, y)[0] == pytest.approx(1.5, abs=0.031)


@pytest.mark.parametrize("d", [2, 3, 10])
def test_sliced_wasserstein_of_a_shift(d: int):
    points, v = stack(1, 200, d), np.linspace(1, 2, d)
    length = np.linalg.norm(v)
    expected = length * math.gamma(d / 2) / (math.sqrt(math.pi) * math.gamma((d + 1) / 2))
    # |<v, u>| over random unit vectors has mean square |v|^2 / d
    sd = math.sqrt(length**2 / d - expected**2)
    for directions in (64, 4096):
        value = wasserstein(points + v, points[0], directions=directions)
        assert value[0] == pytest.approx(expected, abs=4 * sd / math.sqrt(directions))


@pytest.mark.parametrize("m", [40, 33])
def test_sliced_wasserstein_is_the_mean_over_projections(m: int):
    x, y = stack(1, 40, 3), 2 * stack(1, m, 3)[0] + 1
    vectors = measures._unit_vectors(8, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=EXACT)
    expected = np.mean([stats.wasserstein_distance(x[0] @ u, y @ u) for u in vectors])
    np.testing.assert_allclose(wasserstein(x, y, directions=8), [expected], rtol=1e-10)


def test_wasserstein_of_a_sample_with_itself_is_0_whatever_the_order():
    points = stack(1, 30, 3)
    order = np.random.default_rng(0).permutation(30)
    np.testing.assert_allclose(wasserstein(points, points[0][order]), 0, atol=EXACT)
    # twice the same points: the same distribution in another size
    np.testing.assert_allclose(wasserstein(np.tile(points, (1, 2, 1)), points[0]), 0, atol=EXACT)


# --- tails ------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 4])
@pytest.mark.parametrize("sigmas", [1, 2, 3])
def test_tail_mass_of_the_gaussian_itself(d: int, sigmas: int):
    truth = mixture(1, d, seed=d)
    n = 100_000
    noise = np.random.default_rng(d).normal(size=(1, n, d))
    points = truth.means[0] + noise @ np.linalg.cholesky(truth.covariances[0]).T
    p = stats.chi2.sf(sigmas**2, d)
    share = tail_mass(points, truth.means[0], truth.covariances[0], sigmas)
    # four binomial standard deviations
    assert share[0] == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))


def test_tail_mass_by_brute_force():
    truth, points = mixture(1, 3, seed=1), 2 * stack(2, 300, 3)
    mean, covariance = truth.means[0], truth.covariances[0]
    inverse = np.linalg.inv(covariance)
    beyond = [[(x - mean) @ inverse @ (x - mean) > 5**2 for x in one] for one in points]
    expected = np.mean(beyond, axis=1)
    np.testing.assert_array_equal(tail_mass(points, mean, covariance, 5), expected)
    assert ((expected > 0.1) & (expected < 0.9)).all()


def test_tail_mass_counts_only_what_lies_beyond():
    points = np.array([[-2.0], [-1.0], [0.0], [2.0], [2.5]])
    np.testing.assert_array_equal(tail_mass(points, [0], [[1]], 2), [0.2])


# --- mixtures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "m"), [(1, 1), (2, 3), (5, 1)])
@pytest.mark.parametrize("d", [1, 2])
def test_l2_distance_by_integration_on_a_grid(k: int, m: int, d: int):
    a, b = mixture(k, d, seed=10 + k), mixture(m, d, seed=20 + m)
    # a step of a fifth of the least standard deviation, sqrt(0.3): of a smooth function that
    # vanishes at both ends the sum of a grid is exact to far below the tolerance
    line = np.arange(-20, 20, 0.1)
    grid = np.stack(np.meshgrid(*[line] * d, indexing="ij"), axis=-1)
    square = ((a.density(grid) - b.density(grid)) ** 2).sum() * 0.1**d
    assert mixture_l2(a, b) == pytest.approx(math.sqrt(square), rel=1e-9)
    assert mixture_l2(b, a) == pytest.approx(mixture_l2(a, b), rel=EXACT)


@pytest.mark.parametrize("d", [1, 3, 60])
def test_l2_distance_of_equal_mixtures_is_0_in_any_order(d: int):
    a = mixture(4, d, seed=5)
    other = mixture(4, d, seed=6)
    # the root of rounding, relative to the distance of mixtures that differ
    tolerance = 1e-7 * mixture_l2(a, other)
    assert tolerance > 0
    assert mixture_l2(a, a.permuted([2, 0, 3, 1])) <= tolerance
    # a component of weight 0, and one in two halves, change nothing
    halves = Mixture(
        np.concatenate([a.weights[:3], a.weights[3:] / 2, a.weights[3:] / 2, [0.0]]),
        np.concatenate([a.means, a.means[3:], other.means[:1]]),
        np.concatenate([a.covariances, a.covariances[3:], other.covariances[:1]]),
    )
    assert mixture_l2(a, halves) <= tolerance


def test_l2_distance_of_two_normals_in_closed_form():
    # int N(x; 0, s)^2 = 1 / sqrt(4 pi s); the cross term is N(3; 0, 1 + 4)
    own = 1 / math.sqrt(4 * math.pi) + 1 / math.sqrt(16 * math.pi)
    cross = math.exp(-9 / 10) / math.sqrt(10 * math.pi)
    distance = mixture_l2(normal(0, 1), normal(3, 4))
    assert distance == pytest.approx(math.sqrt(own - 2 * cross), rel=EXACT)


def test_l2_distance_of_small_changes():
    # to first order in the shift h: h^2 int N'^2 = h^2 / (4 sqrt(pi)), less a share of order h^2;
    # 1e-16 of rounding in a square of 1e-9 leaves seven digits
    h = 1e-4
    expected = h / math.sqrt(4 * math.sqrt(math.pi))
    assert mixture_l2(normal(0, 1), normal(h, 1)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("variance", [1e-8, 1e8])
def test_l2_distance_where_densities_leave_the_range_of_floats(variance: float):
    d = 80
    # far apart: the square is the sum of both norms, each (4 pi s)^(-d / 2), some 1e+-280
    far = 1e3 * math.sqrt(variance)
    distance = mixture_l2(normal([0.0] * d, [variance] * d), normal([far] * d, [variance] * d))
    log = 0.5 * (math.log(2) - d / 2 * math.log(4 * math.pi * variance))
    assert math.log(distance) == pytest.approx(log, rel=1e-12)


def test_l2_distance_leaves_out_a_narrow_component_without_weight():
    # its overlap with itself, some 1e700, would push all others out of the range of floats
    d = 80
    a, b = normal([0.0] * d, [1.0] * d), normal([1.0] * d, [1.0] * d)
    narrow = Mixture(
        np.array([1.0, 0.0]),
        np.repeat(a.means, 2, axis=0),
        np.stack([np.eye(d), 1e-20 * np.eye(d)]),
    )
    assert mixture_l2(narrow, b) == pytest.approx(mixture_l2(a, b), rel=EXACT, abs=0)


def test_l2_distance_is_infinite_beyond_floats_without_a_warning():
    # (4 pi 1e-40)^(-20) is 1e778, its root 1e389
    d = 40
    a, b = normal([0.0] * d, [1e-40] * d), normal([1.0] * d, [1e-40] * d)
    assert mixture_l2(a, b) == math.inf


def kept(weights: list[float], smallest: list[float], **settings: float) -> int:
    covariances = [np.diag([1.0, s]) for s in smallest]
    reference = np.diag([4.0, 1.0])
    return components_kept(weights, covariances, reference_covariance=reference, **settings)


def test_components_kept_need_weight_and_spread():
    assert kept([0.5, 0.25, 0.25], [1, 1, 1]) == 3
    assert kept([0.98, 0.01, 0.01], [1, 1, 1]) == 3  # at least a share of 0.01
    assert kept([0.985, 0.01, 0.005], [1, 1, 1]) == 2
    assert kept([0.75, 0.2, 0.05], [1, 1, 1], share=0.1) == 2
    # 1e-6 of the largest eigenvalue, 4
    assert kept([0.5, 0.25, 0.25], [1, 4.1e-6, 3.9e-6]) == 2
    assert kept([0.5, 0.25, 0.25], [1, 0, 0.5], spread=0.1) == 2
    assert kept([0.5, 0.5], [1, 0], spread=0) == 1
    # one component that fails both is lost once
    assert kept([0.995, 0.005], [1, 0]) == 1


def test_spread_of_a_component_is_that_of_its_narrowest_direction():
    # rotated by 45 degrees: both variances are 1/2, yet it is a line
    line = np.array([[0.5, 0.5], [0.5, 0.5]])
    round_ = 0.5 * np.eye(2)
    for covariance, count in ((line, 0), (round_, 1)):
        assert components_kept([1], [covariance], reference_covariance=np.eye(2)) == count


# --- wrong input ------------------------------------------------------------------------------

X = np.zeros((4, 2))
EYE = np.eye(2)
NAN = np.full((4, 2), math.nan)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: wasserstein(np.zeros((0, 2)), X), r"points has shape \(0, 2\)"),
        (lambda: wasserstein(np.zeros(4), X), r"points has shape \(4,\)"),
        (lambda: wasserstein(NAN, X), "points has NaN"),
        (lambda: wasserstein([["a", "b"]], X), "numbers"),
        (lambda: standard_error([1]), "two or more"),
        (lambda: standard_error(X), "one axis"),
        (lambda: standard_error([1, math.nan]), "NaN"),
        (lambda: wasserstein(X, np.zeros((4, 3))), r"give \(m, 2\)"),
        (lambda: wasserstein(X, np.zeros((2, 4, 2))), r"give \(m, 2\)"),
        (lambda: wasserstein(X, np.zeros((0, 2))), "reference has shape"),
        (lambda: wasserstein(X, NAN), "reference has NaN"),
        (lambda: wasserstein(X, X, directions=0), "directions is 0"),
        (lambda: tail_mass(X, [0, 0], [[1, 0], [0, 0]], 2), "positive definite"),
        (lambda: tail_mass(X, [0, 0], [[1, 0.5], [0, 1]], 2), "symmetric"),
        (lambda: tail_mass(X, [0, 0], [[1]], 2), "covariance has shape"),
        (lambda: tail_mass(X, [0, 0], EYE, -1), "sigmas is -1"),
        (lambda: tail_mass(X, [0, 0], EYE, math.nan), "sigmas is nan"),
        (lambda: mixture_l2(normal(0, 1), normal([0, 0], [1, 1])), "1 dimensions and b has 2"),
        (lambda: mixture_l2(normal(0, 1), normal(0, 0)), "covariance of b is not positive"),
        (lambda: mixture_l2(normal(0, 1), normal(math.nan, 1)), "means of b has NaN"),
        (lambda: mixture_l2(Mixture(np.ones(2), X[:2], EYE[None]), normal(0, 1)), "sum 2"),
        (
            lambda: mixture_l2(Mixture(np.array([2.0, -1]), X[:2], EYE[None]), normal(0, 1)),
            "none negative",
        ),
        (
            lambda: mixture_l2(Mixture(np.ones(1), X[:2], EYE[None]), normal([0, 0], [1, 1])),
            r"means of a has shape \(2, 2\)",
        ),
        (
            lambda: mixture_l2(Mixture(np.ones(1), X[:1], EYE), normal([0, 0], [1, 1])),
            r"covariances of a has shape \(2, 2\)",
        ),
        (lambda: kept([0.5, 0.5], [1]), "covariances has shape"),
        (lambda: kept([], []), "sum 0"),
        (lambda: kept([1], [1], share=2), "share is 2"),
        (lambda: kept([1], [1], spread=-1), "spread is -1"),
        (
            lambda: components_kept([1], [EYE], reference_covariance=np.ones((2, 3))),
            "reference_covariance has shape",
        ),
    ],
)
def test_wrong_input_is_told(call, said):
    with pytest.raises(InputError, match=said):
        call()


@pytest.mark.parametrize("d", [1, 2, 5])
def test_singular_is_where_cholesky_may_fail(d):
    """Whatever the scales of the axes are: correlations decide."""
    rng = np.random.default_rng(d)
    scale = 10.0 ** rng.integers(-60, 60, size=d)
    base = rng.normal(size=(d, 3 * d))
    good = base @ base.T * np.outer(scale, scale)
    assert measures.is_singular(np.stack([good, 1e-80 * good])).tolist() == [False, False]
    flat = base.copy()
    flat[-1] = flat[0] if d > 1 else 0.0
    singular = flat @ flat.T * np.outer(scale, scale)
    zero = good.copy()
    zero[0] = zero[:, 0] = 0.0
    assert measures.is_singular(np.stack([singular, good, zero])).tolist() == [True, False, True]


def test_what_is_not_singular_can_be_scaled_and_added():
    """Correlations ever nearer to 1: until `is_singular` says so, all factors exist."""
    low, count = 1.0, 0
    for exponent in np.linspace(-12, -16, 200):
        rho = 1 - 10**exponent
        c = np.array([[1.0, rho], [rho, 1.0]]) * np.outer([1.0, 1e-30], [1.0, 1e-30])
        if not measures.is_singular(c[None])[0]:
            low, count = 10**exponent, count + 1
            for other in (0.9 * c, c / 3, c + 0.1 * c, c + np.diag([1e-40, 0])):
                np.linalg.cholesky(other)
    # eps is 2.2e-16; the smaller eigenvalue is 1 - rho
    assert 4e-15 < low < 8e-15
    assert count > 50


def test_symmetric_is_to_what_float32_loses():
    c = np.eye(2)[None].repeat(2, axis=0)
    c[1, 0, 1] = 1e-7
    assert measures.is_symmetric(c)
    c[1, 0, 1] = 1e-5
    assert not measures.is_symmetric(c)
    assert measures.is_symmetric(np.zeros((0, 2, 2)))
