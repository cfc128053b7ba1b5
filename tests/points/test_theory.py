import dataclasses
import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from fortifai.errors import InputError
from fortifai.points import theory
from fortifai.points.theory import (
    Recursion,
    expected_variance,
    kept_share,
    stable_threshold,
    threshold_of_share,
    variance_amplification,
    variance_interval,
)

DISTANCES = [0.0, 1e-9, 1e-3, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 38.0, 100.0, 1e4, 1e6]
Z95 = 1.959963984540054  # normal quantile of a 95 % interval's upper end


def chains(seed, r, generations, seeds):
    """The loop as the words say it: (seeds, generations) variances, in one dimension."""
    rng = np.random.default_rng(seed)
    mu, sigma = np.full(seeds, 3.0), np.full(seeds, 2.0)
    found = []
    for t in range(generations):
        bias, a = (1.0, 0.0) if t == 0 else (r.bias, r.threshold)
        width = np.sqrt(bias) * sigma
        x = rng.normal(mu[:, None], width[:, None], (seeds, r.points))
        kept = np.abs(x - mu[:, None]) >= a * width[:, None]
        m = kept.sum(1)
        mu = (x * kept).sum(1) / m
        squares = (kept * (x - mu[:, None]) ** 2).sum(1)
        sigma = np.sqrt(squares / (m if r.estimator == "mle" else m - 1))
        if r.noise == "multiplicative":
            mu = mu * rng.normal(1, r.noise_scale, seeds)
            sigma = np.abs(sigma * rng.normal(1, r.noise_scale, seeds))
        if r.noise == "additive":  # 2.0 is the real sigma
            mu = mu + rng.normal(0, 2.0 * r.noise_scale, seeds)
            sigma = np.abs(sigma + rng.normal(0, 2.0 * r.noise_scale, seeds))
        found.append(sigma**2 / 2.0**2)
    return np.stack(found, axis=1)


def chains_in_space(seed, r, generations, seeds):
    """The same in d dimensions, with a full covariance: (seeds, generations) of trace / d."""
    rng = np.random.default_rng(seed)
    d = r.dimension
    mu, cov = np.zeros((seeds, d)), np.broadcast_to(np.eye(d), (seeds, d, d))
    found = []
    for t in range(generations):
        bias, a = (1.0, 0.0) if t == 0 else (r.bias, r.threshold)
        root = np.linalg.cholesky(bias * cov)
        y = rng.standard_normal((seeds, r.points, d)) @ np.swapaxes(root, 1, 2)
        distance = np.einsum("sni,sij,snj->sn", y, np.linalg.inv(bias * cov), y)
        kept = distance >= a * a
        m = kept.sum(1)
        x = (y + mu[:, None]) * kept[..., None]
        mu = x.sum(1) / m[:, None]
        off = (x - mu[:, None]) * kept[..., None]
        divisor = m if r.estimator == "mle" else m - 1
        cov = np.swapaxes(off, 1, 2) @ off / divisor[:, None, None]
        if r.noise == "multiplicative":
            factor = rng.normal(1, r.noise_scale, (seeds, d))  # each axis has its own
            cov = cov * factor[:, :, None] * factor[:, None, :]
        if r.noise == "additive":
            sigma = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
            factor = np.abs(sigma + rng.normal(0, r.noise_scale, (seeds, d))) / sigma
            cov = cov * factor[:, :, None] * factor[:, None, :]
        found.append(np.trace(cov, axis1=1, axis2=2) / d)
    return np.stack(found, axis=1)


def of_the_lognormal(r, generations, seeds):
    """Mean and variance of the average, read off the 95 % interval."""
    low, high = variance_interval(r, generations, seeds=seeds)
    spread = np.log(high / low) / (2 * Z95)
    mean = np.sqrt(low * high) * np.exp(spread**2 / 2)
    return mean, mean**2 * np.expm1(spread**2)


def inverse_count(n, share, least=1):
    """E[1/m | m >= least] of a binomial m, in 50 digits."""
    with mpmath.workdps(50):
        s = mpmath.mpf(share)
        weight, total, result = (1 - s) ** n, mpmath.mpf(0), mpmath.mpf(0)
        for m in range(n + 1):
            if m >= least:
                total += weight
                result += weight / m
            weight = weight * (n - m) / (m + 1) * s / (1 - s)
        return float(result / total)


# --- the tails --------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("dimension", [1, 2, 5])
@pytest.mark.parametrize("a", DISTANCES)
def test_amplification_is_the_second_moment_of_the_tails(a, dimension):
    with mpmath.workdps(30):
        rate = 1 + mpmath.mpf(a)  # the density falls by e over 1 / a

        def radial(power):
            def integrand(u):
                r = a + u / rate
                return r**power * mpmath.exp(-(r - a) * (r + a) / 2)

            return mpmath.quad(integrand, [0, 1, 4, 10, 20, 40, 80, 200])

        wanted = radial(dimension + 1) / radial(dimension - 1) / dimension
        error = abs(mpmath.mpf(variance_amplification(a, dimension)) / wanted - 1)
    # some 10 operations of 1.1e-16 each, none of which amplifies the errors before it
    assert error < 2e-15


def test_amplification_in_closed_form():
    # 1 + a phi(a) / (1 - Phi(a)) where nothing cancels or underflows yet; in the plane 1 + a^2 / 2
    for a in (0.3, 1.0, 2.5):
        wanted = 1 + a * stats.norm.pdf(a) / stats.norm.sf(a)
        # 1e-14: SciPy's sf has some units in the last place
        assert variance_amplification(a) == pytest.approx(wanted, rel=1e-14)
        assert variance_amplification(a, 2) == pytest.approx(1 + a * a / 2, rel=1e-15)
    assert variance_amplification(0.0) == variance_amplification(0, 7) == 1.0


@pytest.mark.parametrize("dimension", [1, 2, 5])
@pytest.mark.parametrize("a", [0.0, 1e-9, 0.1, 1.0, 3.0, 10.0, 30.0])
def test_kept_share(a, dimension):
    with mpmath.workdps(50):
        half = mpmath.mpf(dimension) / 2
        wanted = mpmath.gammainc(half, mpmath.mpf(a) ** 2 / 2, regularized=True)
        error = abs(mpmath.mpf(kept_share(a, dimension)) / wanted - 1)
    # the exponent a^2 / 2 = 450 carries 450 half units in the last place into the result
    assert error < 2e-13
    if dimension == 1:
        assert kept_share(a) == pytest.approx(2 * stats.norm.sf(a), rel=1e-12)


@pytest.mark.parametrize("dimension", [1, 2, 5, 50])
@pytest.mark.parametrize("share", [1e-300, 1e-20, 0.01, 0.2, 0.5, 0.8, 0.999, 1.0])
def test_threshold_of_share_is_the_inverse(share, dimension):
    a = threshold_of_share(share, dimension)
    assert math.copysign(1, a) == 1
    # near share 1e-300, a rounding of a^2 / 2 = 690 moves the share by 690 units in the last place
    assert kept_share(a, dimension) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("dimension", [1, 3])
@pytest.mark.parametrize("q", [0.1, 0.8])
def test_dropping_the_densest_keeps_the_tails(q, dimension):
    n = 400_000
    x = np.random.default_rng(5).standard_normal((n, dimension))
    density = np.exp(-(x**2).sum(1) / 2)
    kept = x[density <= np.quantile(density, q)]
    a = threshold_of_share(q, dimension)
    # 4 standard errors of the quantile: sqrt(q (1 - q) / n) over the density of the distance
    slack = 4 * math.sqrt(q * (1 - q) / n) / stats.chi.pdf(a, dimension)
    assert np.linalg.norm(kept, axis=1).min() == pytest.approx(a, abs=slack)


@pytest.mark.parametrize("dimension", [1, 2, 5])
@pytest.mark.parametrize(
    "bias", [1e-300, 1e-6, 0.1, 0.25, 0.5, 0.7, 0.9, 0.99, 1 - 1e-9, 1 - 2**-53]
)
def test_stable_threshold(bias, dimension):
    a = stable_threshold(bias, dimension)
    assert a > 0
    assert abs(bias * variance_amplification(a, dimension) - 1) <= 1e-10
    if dimension == 2:
        # in the plane eta = 1 + a^2 / 2; 1e-14: a handful of roundings
        assert a == pytest.approx(math.sqrt(2 * (1 - bias) / bias), rel=1e-14)


def test_no_bias_needs_no_truncation():
    assert stable_threshold(1) == stable_threshold(1.0, 5) == 0.0


# --- the expected variance --------------------------------------------------------------------


def test_keeping_all_in_closed_form():
    # (1 - 1/n)^(t+1) lambda^t
    t = np.arange(30)
    np.testing.assert_allclose(
        expected_variance(Recursion(20, bias=0.8), 30), 0.95 ** (t + 1) * 0.8**t, rtol=1e-13
    )
    np.testing.assert_allclose(
        expected_variance(Recursion(20, bias=0.8, estimator="unbiased"), 30), 0.8**t, rtol=1e-13
    )
    noisy = Recursion(20, noise="multiplicative", noise_scale=0.1)
    np.testing.assert_allclose(expected_variance(noisy, 30), (0.95 * 1.01) ** (t + 1), rtol=1e-13)
    # additive noise has a fixed point: r v + s^2 = v
    shaken = Recursion(20, bias=0.5, noise="additive", noise_scale=0.3)
    assert expected_variance(shaken, 200)[-1] == pytest.approx(0.09 / (1 - 0.95 * 0.5), rel=1e-13)
    assert expected_variance(shaken, 1)[0] == pytest.approx(0.95 + 0.09, rel=1e-15)


@pytest.mark.parametrize(
    ("n", "a"), [(2, 0.3), (8, 1.0), (50, 0.13), (50, 2.0), (1000, 0.05), (30_000, 0.7)]
)
def test_factor_against_an_exact_sum(n, a):
    for dimension in (1, 2) if n > 2 else (1,):
        r = Recursion(n, threshold=a, dimension=dimension)
        v = expected_variance(r, 3)
        wanted = variance_amplification(a, dimension) * (
            1 - inverse_count(n, kept_share(a, dimension))
        )
        # quotients of values with some roundings of 1e-16
        np.testing.assert_allclose(v[1:] / v[:-1], wanted, rtol=3e-15)


@pytest.mark.parametrize("n", [10**7, 10**12, 10**15])
def test_factor_of_very_many_points(n):
    a = 0.9
    share = kept_share(a)
    mean, dropped = n * share, 1 - share
    # E[1/m] = (1 + q/M + O(1/M^2)) / M, whose rest is below 1e-20 here
    wanted = (1 + dropped / mean) / mean
    v = expected_variance(Recursion(n, threshold=a), 2)
    # what 1 - E[1/m] can resolve of it next to 1
    assert 1 - v[1] / v[0] / variance_amplification(a) == pytest.approx(wanted, abs=5e-16)


CASES = [
    Recursion(50),
    Recursion(50, estimator="unbiased", bias=0.9),
    Recursion(50, bias=0.9, threshold=stable_threshold(0.9)),
    Recursion(50, bias=0.6, threshold=1.0, estimator="unbiased"),
    Recursion(50, threshold=1.0),
    Recursion(50, noise="multiplicative", noise_scale=0.1),
    Recursion(50, bias=0.7, threshold=0.5, noise="multiplicative", noise_scale=0.3),
    Recursion(50, noise="additive", noise_scale=0.2),
    Recursion(50, bias=0.7, threshold=0.5, noise="additive", noise_scale=1.0),
]


@pytest.mark.parametrize("r", CASES, ids=str)
def test_expectation_of_simulated_chains(r):
    seeds, generations = 4000, 8
    found = chains(11, r, generations, seeds)
    # 4 standard errors: 1 in 16,000 that a right value fails; the seed is fixed
    error = found.std(0, ddof=1) / math.sqrt(seeds)
    off = (found.mean(0) - expected_variance(r, generations)) / error
    assert np.abs(off).max() < 4
    # two hundred seeds alone, too
    few = found[:200]
    off = (few.mean(0) - expected_variance(r, generations)) / (few.std(0, ddof=1) / math.sqrt(200))
    assert np.abs(off).max() < 4


SPACES = [
    Recursion(15, dimension=2),
    Recursion(30, dimension=3, bias=0.8, threshold=1.2, estimator="unbiased"),
    Recursion(40, dimension=2, threshold=1.5, noise="multiplicative", noise_scale=0.2),
    Recursion(20, dimension=3, estimator="unbiased", noise="multiplicative", noise_scale=0.15),
]


@pytest.mark.parametrize("r", SPACES, ids=str)
def test_expectation_and_variance_in_more_dimensions(r):
    seeds, generations = 20_000, 4
    found = chains_in_space(12, r, generations, seeds)
    mean, variance = of_the_lognormal(r, generations, 100)
    np.testing.assert_allclose(mean, expected_variance(r, generations), rtol=1e-12)
    # 4 standard errors, as above
    error = found.std(0) / math.sqrt(seeds)
    assert (np.abs(found.mean(0) - mean) < 4 * error).all()
    squares = (found - mean) ** 2
    error = squares.std(0) / math.sqrt(seeds)
    assert (np.abs(squares.mean(0) - 100 * variance) < 4 * error).all()


def test_additive_noise_in_more_dimensions():
    r = Recursion(30, bias=0.7, threshold=0.8, dimension=2, noise="additive", noise_scale=0.4)
    found = chains_in_space(19, r, 5, 10_000)
    # 4 standard errors
    error = found.std(0) / math.sqrt(len(found))
    assert (np.abs(found.mean(0) - expected_variance(r, 5)) < 4 * error).all()


def test_only_the_own_mean_costs_variance():
    # so few points that none may be kept, and E[1/m] is far from 1 / E[m]
    n, a, trials = 8, 1.0, 200_000
    x = np.random.default_rng(13).standard_normal((trials, n))
    kept = np.abs(x) >= a
    m = kept.sum(1)
    x, kept, m = x[m > 0], kept[m > 0], m[m > 0]
    assert len(m) < trials
    own = (x * kept).sum(1) / m
    about_known = (kept * x**2).sum(1) / m
    about_own = (kept * (x - own[:, None]) ** 2).sum(1) / m
    eta = variance_amplification(a)
    by_own = expected_variance(Recursion(n, threshold=a), 2)
    for found, wanted in ((about_known, eta), (about_own, by_own[1] / by_own[0])):
        # 4 standard errors
        assert found.mean() == pytest.approx(wanted, abs=4 * found.std() / math.sqrt(len(m)))
    # the second moments of generations multiply, so that of one fit is a quotient
    mean, variance = of_the_lognormal(Recursion(n, threshold=a), 2, 100)
    second = (100 * variance + mean**2)[1] / (100 * variance + mean**2)[0]
    squares = about_own**2
    assert squares.mean() == pytest.approx(second, abs=4 * squares.std() / math.sqrt(len(m)))
    by_m = expected_variance(Recursion(n, threshold=a, estimator="unbiased"), 2)
    assert by_m[1] / by_m[0] == pytest.approx(eta, rel=1e-14)


@pytest.mark.parametrize(
    ("bias", "n", "seeds", "estimator"), [(0.9, 10_000, 10, "mle"), (0.5, 1000, 40, "unbiased")]
)
def test_the_stable_threshold_holds_the_variance(bias, n, seeds, estimator):
    generations = 150
    stable = stable_threshold(bias)
    ends = {}
    for times in (0.9, 1.0, 1.1):
        r = Recursion(n, bias=bias, threshold=times * stable, estimator=estimator)
        v = chains(14, r, generations, seeds).mean(0)
        low, high = variance_interval(r, generations, seeds=seeds, level=0.9999)
        assert low[75] < v[75] < high[75]
        assert low[-1] < v[-1] < high[-1]
        # the noise of the factor: half the width of the final interval, a generation
        slack = math.log(high[-1] / low[-1]) / 2 / (generations - 1)
        factor = math.log(bias * variance_amplification(times * stable))
        if estimator == "mle":
            factor += math.log(1 - inverse_count(n, kept_share(times * stable)))
        assert math.log(v[-1] / v[0]) / (generations - 1) == pytest.approx(factor, abs=slack)
        ends[times] = v[-1]
    # 10 % of a move the factor by 1 % (bias 0.9) or more: 1.0095^149 = 4.1, and the inverse; at the
    # stable threshold `mle` loses 149 / 9000, and the average's deviation is 0.1 or less
    assert ends[0.9] < 1 / 3 < 0.7 < ends[1.0] < 1.4 < 3 < ends[1.1]


def test_divergence_ends_at_infinity():
    v = expected_variance(Recursion(1000, threshold=3.0, estimator="unbiased"), 400)
    assert v[-1] == math.inf
    assert (np.diff(v[:200]) > 0).all()


# --- the interval -----------------------------------------------------------------------------

ALONE = [
    Recursion(50),
    Recursion(50, bias=0.9, threshold=stable_threshold(0.9), estimator="unbiased"),
    Recursion(100, bias=0.6, threshold=1.0),
    Recursion(100, noise="multiplicative", noise_scale=0.1),
    Recursion(50, bias=0.8, threshold=0.5, noise="multiplicative", noise_scale=0.2),
]


@pytest.mark.parametrize("r", ALONE, ids=str)
def test_single_chains(r):
    seeds, generations = 2000, 60
    found = chains(15, r, generations, seeds)
    low, high = variance_interval(r, generations)
    for t in (0, 1, 5, 20, 59):
        outside = [np.sum(found[:, t] < low[t]), np.sum(found[:, t] > high[t])]
        # 4 standard deviations of the binomial, and a hundredth for the lognormal shape
        slack = 4 * math.sqrt(seeds * 0.025 * 0.975) + 0.01 * seeds
        assert outside == pytest.approx([0.025 * seeds] * 2, abs=slack)
        assert sum(outside) == pytest.approx(
            0.05 * seeds, abs=4 * math.sqrt(seeds * 0.05 * 0.95) + 0.01 * seeds
        )


@pytest.mark.parametrize("r", ALONE, ids=str)
def test_mean_and_spread_of_the_log(r):
    seeds, generations = 4000, 40
    logs = np.log(chains(16, r, generations, seeds))
    low, high = variance_interval(r, generations)
    centre, spread = np.log(low * high) / 2, np.log(high / low) / (2 * Z95)
    t = np.arange(generations)
    # 4 standard errors; the delta method is off by some 4 / m^2 a generation, where it is used
    kept = r.points * kept_share(r.threshold)
    rest = 4 * t / kept**2 if r.threshold else 0 * t
    assert (np.abs(logs.mean(0) - centre) < 4 * spread / math.sqrt(seeds) + rest).all()
    variance_error = ((logs - logs.mean(0)) ** 2).std(0) / math.sqrt(seeds)
    assert (np.abs(logs.var(0) - spread**2) < 4 * variance_error + rest).all()


@pytest.mark.parametrize("n", [2, 5, 50])
@pytest.mark.parametrize("estimator", ["mle", "unbiased"])
def test_the_log_of_a_fit_that_keeps_all_against_an_integral(n, estimator):
    freedom = n - 1
    with mpmath.workdps(30):

        def moment(power):  # of y = log chi2, whose density is below 1e-30 outside the ends
            def integrand(y):
                return y**power * mpmath.exp(y * freedom / 2 - mpmath.exp(y) / 2)

            return mpmath.quad(integrand, [-150, -60, -20, -5, 0, 2, 4, 6])

        total = moment(0)
        mean = float(moment(1) / total) - math.log(n if estimator == "mle" else freedom)
        variance = float(moment(2) / total - (moment(1) / total) ** 2)
    low, high = variance_interval(Recursion(n, estimator=estimator, bias=0.5), 7)
    t = np.arange(7)
    # a handful of roundings, and those of the logs taken here
    wanted = (t + 1) * mean + t * math.log(0.5)
    np.testing.assert_allclose(np.log(low * high) / 2, wanted, rtol=1e-12, atol=1e-13)
    spread = np.log(high / low) / (2 * Z95)
    np.testing.assert_allclose(spread**2, (t + 1) * variance, rtol=1e-12)


@pytest.mark.parametrize("noise", [1e-20, 1e-6, 0.05, 0.0501, 0.2, 1.0, 30.0])
def test_the_noise_of_one_chain_against_an_integral(noise):
    n = 10**12  # whose own share in the interval is 1e-12
    low, high = variance_interval(Recursion(n, noise="multiplicative", noise_scale=noise), 1)
    with mpmath.workdps(30):
        pole = max(-1 / mpmath.mpf(noise), -mpmath.mpf(25))
        ends = sorted({-25, pole, min(2 * pole, -1), pole / 2, 0, 5, 25})

        def moment(power):
            return mpmath.quad(
                lambda z: (
                    (2 * mpmath.log(abs(1 + noise * z))) ** power * mpmath.npdf(z)
                    if 1 + noise * z
                    else 0
                ),
                [e for e in ends if e >= -25],
            )

        mean = float(moment(1))
        variance = float(moment(2) - moment(1) ** 2)
    # 2e-12: the log of chi2 / n itself; 1e-7: that of the reference at its singular end
    assert math.log(low[0] * high[0]) / 2 == pytest.approx(mean, rel=1e-7, abs=1e-11)
    found = (math.log(high[0] / low[0]) / (2 * Z95)) ** 2
    assert found == pytest.approx(variance + 2e-12, rel=1e-7, abs=1e-16)


@pytest.mark.parametrize(
    "r",
    [Recursion(50), Recursion(50, bias=0.9, threshold=stable_threshold(0.9)), *ALONE[2:]],
    ids=str,
)
def test_mean_of_two_hundred_seeds(r):
    generations, groups = 10, 60
    found = chains(17, r, generations, 200 * groups).reshape(groups, 200, generations).mean(1)
    low, high = variance_interval(r, generations, seeds=200)
    outside = ((found < low) | (found > high)).sum(0)
    # 60 groups with 5 % each: more than 11 are outside in 1 of 10,000 cases, none in 5 of 100
    assert outside.max() <= 11
    assert outside.sum() > 0


@pytest.mark.parametrize("seeds", [2, 7, 200])
@pytest.mark.parametrize("estimator", ["mle", "unbiased"])
def test_moments_of_the_mean_in_closed_form(seeds, estimator):
    n, generations = 40, 60
    t = np.arange(generations)
    # chi2_{n-1} / c has the mean (n-1)/c and the square (n^2-1)/c^2; noise z has E[z^2], E[z^4]
    c = n if estimator == "mle" else n - 1
    first = ((n - 1) / c * 1.04) ** (t + 1)
    second = ((n * n - 1) / c**2 * (1 + 6 * 0.04 + 3 * 0.04**2)) ** (t + 1)
    r = Recursion(n, estimator=estimator, noise="multiplicative", noise_scale=0.2)
    mean, variance = of_the_lognormal(r, generations, seeds)
    # sums of 60 logs
    np.testing.assert_allclose(mean, first, rtol=1e-11)
    np.testing.assert_allclose(variance, (second - first**2) / seeds, rtol=1e-11)


def test_intervals_nest_and_shrink():
    r = Recursion(60, threshold=0.3, bias=0.9)
    wide = variance_interval(r, 20, level=0.99)
    narrow = variance_interval(r, 20, level=0.5)
    many = variance_interval(r, 20, seeds=10_000)
    expected = expected_variance(r, 20)
    assert (wide[0] < narrow[0]).all()
    assert (narrow[1] < wide[1]).all()
    assert (expected * 0.9 < many[0]).all()
    assert (many[0] < expected).all()
    assert (expected < many[1]).all()
    assert (many[1] < expected * 1.1).all()
    assert many[0].shape == many[1].shape == (20,)
    assert many[0].dtype == many[1].dtype == np.float64


def test_very_many_points_keep_their_digits():
    n = 10**12
    for seeds in (1, 200):
        low, high = variance_interval(Recursion(n), 1, seeds=seeds)
        # what is left of 16 digits in a difference of 1e-7
        assert (high - low)[0] == pytest.approx(2 * Z95 * math.sqrt(2 / n / seeds), rel=1e-6)


def test_moments_too_large_for_float64():
    for r in (Recursion(5, bias=0.5), Recursion(9, dimension=2), Recursion(40, threshold=1.5)):
        for seeds in (1, 200):
            low, high = variance_interval(r, 5000, seeds=seeds)
            assert (low <= high).all()  # false for NaN, too
            assert (low[:100] < high[:100]).all()


# --- wrong input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: variance_amplification(-0.1), r"a is -0\.1; .* from 0"),
        (lambda: variance_amplification(math.nan), r"a is nan"),
        (lambda: variance_amplification(math.inf), r"a is inf"),
        (lambda: variance_amplification("1"), r"a is '1'; it must be a number"),
        (lambda: variance_amplification(True), r"a is True"),
        (lambda: variance_amplification(1.0, 0), r"dimension is 0; it must be a whole number"),
        (lambda: variance_amplification(1.0, 1.5), r"dimension is 1\.5"),
        (lambda: kept_share(-1.0), r"a is -1\.0"),
        (lambda: kept_share(1.0, -2), r"dimension is -2"),
        (lambda: threshold_of_share(0.0), r"share is 0\.0; .* in \(0, 1\]"),
        (lambda: threshold_of_share(1.1), r"share is 1\.1"),
        (lambda: threshold_of_share(math.nan, 2), r"share is nan"),
        (lambda: threshold_of_share(0.5, 0), r"dimension is 0"),
        (lambda: stable_threshold(0.0), r"bias is 0\.0; .* in \(0, 1\]"),
        (lambda: stable_threshold(1.01), r"bias is 1\.01"),
        (lambda: stable_threshold(0.5, 0), r"dimension is 0"),
        (lambda: Recursion(1), r"points is 1; it must be a whole number from 2"),
        (lambda: Recursion(50.0), r"points is 50\.0"),
        (lambda: Recursion(50, bias=0), r"bias is 0"),
        (lambda: Recursion(50, threshold=-1), r"threshold is -1"),
        (lambda: Recursion(50, dimension=0), r"dimension is 0"),
        (lambda: Recursion(50, estimator="map"), r"estimator is 'map'.*'mle' or 'unbiased'"),
        (lambda: Recursion(50, noise="pink"), r"noise is 'pink'.*'multiplicative' or 'additive'"),
        (lambda: Recursion(50, noise="additive", noise_scale=-1), r"noise_scale is -1"),
        (lambda: Recursion(50, noise="additive"), r"'additive' and noise_scale 0\.0; give a scale"),
        (lambda: Recursion(50, noise_scale=0.1), r"'none' and noise_scale 0\.1; give a scale"),
        (lambda: Recursion(50, threshold=3.0), r"keeps 0\.13 of 50 points.*lower it or raise"),
        (lambda: Recursion(5, dimension=6), r"keeps 5 of 5 points.*dimension, 6"),
        (lambda: expected_variance(Recursion(50), 0), r"generations is 0"),
        (lambda: variance_interval(Recursion(50), 1.0), r"generations is 1\.0"),
        (lambda: variance_interval(Recursion(50), 1, seeds=0), r"seeds is 0"),
        (lambda: variance_interval(Recursion(50), 1, level=1.0), r"level is 1\.0; .* in \(0, 1\)"),
        (lambda: variance_interval(Recursion(50), 1, level=0.0), r"level is 0\.0"),
        (
            lambda: variance_interval(Recursion(50, noise="additive", noise_scale=1.0), 3),
            r"'additive'.*no closed form; simulate",
        ),
    ],
)
def test_wrong_input(call, parts):
    with pytest.raises(InputError, match=parts):
        call()


def test_numpy_numbers_are_numbers():
    r = Recursion(np.int64(50), bias=np.float64(0.9), threshold=np.float32(0.5))
    assert expected_variance(r, np.int64(3)).shape == (3,)
    assert theory.kept_share(np.float64(1.0)) == kept_share(1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        r.points = 3
