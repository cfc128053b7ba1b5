"""What theory says of a Gaussian that is retrained on its own draws, with and without truncation.

Generation 0 fits n real points of N(mu, sigma^2 I_d) and keeps them all. Each later generation
fits n draws of the one before. The draws have `bias` times the fitted covariance, and only those
in the tails are kept: at a Mahalanobis distance of `threshold` or more from the model's mean, in
units of the draws. With m of n points kept, and a = threshold,

    share kept      s   = P(chi2_d >= a^2)
    amplification   eta = P(chi2_{d+2} >= a^2) / P(chi2_d >= a^2)
    one generation  E[sigma_{t+1}^2 | sigma_t^2] = bias * eta * (1 - E[1/m]) * sigma_t^2

The last factor is the loss of fitting about the kept points' own mean; dividing by m - 1 (estimator
``unbiased``) undoes it. In one dimension eta = 1 + a phi(a) / (1 - Phi(a)), which is ForTIFAI
(2509.08972), eq. 3. All variances here are in units of the real one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fortifai.errors import InputError

Floats = NDArray[np.float64]
Estimator = Literal["mle", "unbiased"]
Noise = Literal["none", "multiplicative", "additive"]

_FARTHEST = 1e153  # the square of a distance must not overflow
_LEAST = 1e-300  # nor the inverse of a bias; below it, shares and confidences lose their digits
_MOST_POINTS = 10**15  # counts must be exact in float64
_MOST_AXES = 10**5  # eta is a recurrence over them


def _real(name: str, value: Any, low: float, high: float, allowed: str) -> float:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # a NumPy number of less precision would carry it into the result
    real = float(value) if isinstance(value, np.floating) else value
    if not (number and low <= real <= high):  # false for NaN, too
        raise InputError(f"{name} is {value!r}; it must be a number {allowed}")
    return float(real)


def _part(name: str, value: float) -> float:
    return _real(name, value, _LEAST, 1, f"in (0, 1], and at least {_LEAST:.0e}")


def _distance(name: str, value: float) -> float:
    return _real(name, value, 0, _FARTHEST, f"from 0 to {_FARTHEST:.0e}")


def _whole(name: str, value: Any, least: int, most: int) -> int:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (whole and least <= value <= most):
        raise InputError(
            f"{name} is {value!r}; it must be a whole number from {least} to {most:.0e}"
        )
    return int(value)


def _excess(a: float, dimension: int) -> float:
    """The part of eta above 1: z^h e^-z / (h Gamma(h, z)) with z = a^2 / 2, h = d / 2.

    R_h = z^h e^-z / Gamma(h, z) starts from R_{1/2} or R_1 = z, and Gamma(h + 1, z) =
    h Gamma(h, z) + z^h e^-z makes it R_{h+1} = z R_h / (R_h + h). No term cancels another, so it
    is right to rounding where the shares themselves underflow.
    """
    z = a * a / 2
    root = a / math.sqrt(2)
    half, ratio = 1.0, z
    if dimension % 2:
        half, ratio = 0.5, root / (math.sqrt(math.pi) * float(special.erfcx(root)))
    while half < dimension / 2:
        # z times a number below 1, so that it does not overflow
        ratio = z * (ratio / (ratio + half))
        half += 1
    return ratio / half


def variance_amplification(a: float, dimension: int = 1) -> float:
    """How much larger the variance of the tails is than that of all: eta(a).

    eta = E[x^2 | |x| >= a] of a standard normal x; in d dimensions E[|x|^2 | |x| >= a] / d. It is
    1 at a = 0, grows as a^2 / d and is exact to rounding for every a.
    ForTIFAI (2509.08972), eq. 3: eta = 1 + a phi(a) / (1 - Phi(a)).

    Args:
        a: Distance from the mean in standard deviations, 0 or more.
        dimension: d, 1 or more.

    Raises:
        InputError: `a` is no number of 0 or more, or `dimension` no whole number of 1 or more.
    """
    return 1 + _excess(_distance("a", a), _whole("dimension", dimension, 1, _MOST_AXES))


def kept_share(a: float, dimension: int = 1) -> float:
    """The share of Gaussian points in the tails: P(|x| >= a) = P(chi2_d >= a^2).

    In one dimension 2 (1 - Phi(a)). It underflows to 0 from a = 38.6 on.

    Args:
        a: Mahalanobis distance from the mean, 0 or more.
        dimension: d, 1 or more.

    Raises:
        InputError: `a` is no number of 0 or more, or `dimension` no whole number of 1 or more.
    """
    a, dimension = _distance("a", a), _whole("dimension", dimension, 1, _MOST_AXES)
    if dimension == 1:
        return float(special.erfc(a / math.sqrt(2)))
    return float(special.gammaincc(dimension / 2, a * a / 2))


def threshold_of_share(share: float, dimension: int = 1) -> float:
    """The distance beyond which this share of Gaussian points lies; inverse of `kept_share`.

    A rule that drops the points whose density lies above its q-th quantile keeps the share q that
    is least dense. Those are the tails, so its threshold is ``threshold_of_share(q)``.

    Args:
        share: In (0, 1].
        dimension: d, 1 or more.

    Raises:
        InputError: `share` does not lie in (0, 1], or `dimension` is no whole number of 1 or more.
    """
    share, dimension = _part("share", share), _whole("dimension", dimension, 1, _MOST_AXES)
    if dimension == 1:
        return math.sqrt(2) * abs(float(special.erfcinv(share)))  # abs: of -0.0
    return math.sqrt(2 * float(special.gammainccinv(dimension / 2, share)))


def stable_threshold(bias: float, dimension: int = 1) -> float:
    """The distance a at which truncation makes up for the bias: bias * eta(a) = 1, within 1e-10.

    Below it the expected variance shrinks, above it grows; ForTIFAI (2509.08972), eq. 3. The
    factor 1 - E[1/m] of estimating the mean as well is left out: it goes to 1 with n.

    Args:
        bias: lambda, the variance of the draws over that of the fit, in (0, 1].
        dimension: d, 1 or more.

    Returns:
        a; 0.0 for a bias of 1.

    Raises:
        InputError: `bias` does not lie in (0, 1], or `dimension` is no whole number of 1 or more.
    """
    from scipy import optimize  # here: it takes a third of a second to import

    bias, dimension = _part("bias", bias), _whole("dimension", dimension, 1, _MOST_AXES)
    wanted = (1 - bias) / bias
    if wanted == 0:
        return 0.0
    # eta > a^2 / d, since every point kept lies at a or beyond; 1.01 outdoes rounding
    farthest = 1.01 * math.sqrt(dimension / bias)
    exact = {"xtol": 1e-300, "rtol": 1e-15, "maxiter": 1000}
    return float(optimize.brentq(lambda a: _excess(a, dimension) - wanted, 0.0, farthest, **exact))


@dataclasses.dataclass(frozen=True, slots=True)
class Recursion:
    """A Gaussian retrained on its own draws.

    Attributes:
        points: n, real points of generation 0 and draws of each later one, before truncation.
        bias: lambda in (0, 1]: the variance of the draws over that of the fit.
        threshold: a, 0 or more: draws nearer to the model's mean are dropped, in units of the
            draws' standard deviation, sqrt(lambda) sigma_t. 0 keeps all.
        dimension: d. The model has a mean and a full covariance; points kept must be so many more
            than dimensions that it is never singular.
        estimator: ``mle`` divides by the number m of points kept, ``unbiased`` by m - 1; both
            about the kept points' own mean.
        noise: What each fit's estimates go through, that of generation 0 too. ``multiplicative``:
            sigma and mu each times its own N(1, s^2), as in ForTIFAI's code (s = 0.1).
            ``additive``: sigma -> |sigma + w| and mu + w' with w, w' ~ N(0, s^2), as in the text of
            its appendix C. In d dimensions each axis has its own factor or w, and the correlations
            stay. The mean's noise never matters to the variance.
        noise_scale: s; for ``additive`` in units of the real sigma.

    Raises:
        InputError: A value outside what is said above, a noise without a scale or a scale without
            a noise, or a threshold that leaves fewer points on average than dimensions.
    """

    points: int
    bias: float = 1.0
    threshold: float = 0.0
    dimension: int = 1
    estimator: Estimator = "mle"
    noise: Noise = "none"
    noise_scale: float = 0.0

    def __post_init__(self) -> None:
        checked = {
            "points": _whole("points", self.points, 2, _MOST_POINTS),
            "bias": _part("bias", self.bias),
            "threshold": _distance("threshold", self.threshold),
            "dimension": _whole("dimension", self.dimension, 1, _MOST_AXES),
            "noise_scale": _real("noise_scale", self.noise_scale, 0, 1e6, "from 0 to 1e6"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # as Python's own, whose precision is full
        for name, kinds in (("estimator", Estimator), ("noise", Noise)):
            if getattr(self, name) not in (allowed := get_args(kinds)):
                said = " or ".join(map(repr, allowed))
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be {said}")
        if (self.noise == "none") != (self.noise_scale == 0):
            raise InputError(
                f"noise is {self.noise!r} and noise_scale {self.noise_scale}; give a scale above 0 "
                "with a noise, and 0 without"
            )
        kept = self.points * kept_share(self.threshold, self.dimension)
        if kept < self.dimension:
            raise InputError(
                f"threshold {self.threshold} keeps {kept:.2g} of {self.points} points on average, "
                f"fewer than the dimension, {self.dimension}; lower it or raise points"
            )


def _kept_counts(points: int, share: float, least: int) -> tuple[Floats, Floats]:
    """Numbers of points kept and their probabilities, given that at least `least` are.

    Binomial(points, share), cut 12 standard deviations and 50 points from its mean, beyond which
    less than 1e-30 lies. Where it is wide and smooth, every k-th count stands for k of them: with
    16 or more steps to a standard deviation the trapezoidal rule is exact to rounding.
    """
    from scipy import stats  # here: it takes half a second to import

    if share == 1:
        return np.array([float(points)]), np.ones(1)
    mean, spread = points * share, math.sqrt(points * share * (1 - share))
    reach = 12 * spread + 50
    step = max(1, int(spread / 16))
    counts = np.arange(max(least, int(mean - reach)), min(points, int(mean + reach)) + 1, step)
    weights = stats.binom.pmf(counts, points, share)
    return counts.astype(np.float64), weights / weights.sum()


@dataclasses.dataclass(frozen=True, slots=True)
class _Fit:
    """Moments of a fit's covariance S, given the covariance C of the points that it may keep.

    E[S] = mean C. With T the trace, Q the trace of the square and the unit mean^2,
    E[T(S)^2] = (1 + own) T(C)^2 + 2 cross Q(C), E[Q(S)] = (1 + own + cross) Q(C) + cross T(C)^2
    and E[S_jj^2] = (1 + own + 2 cross) C_jj^2.
    """

    mean: float
    own: float
    cross: float


def _fit(recursion: Recursion, threshold: float) -> _Fit:
    """The exact moments of a sample covariance, averaged over the number m of points kept.

    The tails of a Gaussian are elliptical, with centred fourth moments
    kappa (C_ij C_kl + C_ik C_jl + C_il C_jk), kappa = eta_{d+2} / eta_d. The unbiased S then has
    E[S_ij S_kl] = (1 + (kappa - 1)/m) C_ij C_kl
                 + (kappa/m + 1/(m (m - 1))) (C_ik C_jl + C_il C_jk).
    """
    d = recursion.dimension
    mle = recursion.estimator == "mle"
    m, p = _kept_counts(recursion.points, kept_share(threshold, d), 1 if mle else 2)
    kappa = (1 + _excess(threshold, d + 2)) / (1 + _excess(threshold, d))
    factor = 1 - 1 / m if mle else np.ones_like(m)
    mean = 1 - float(p @ (1 / m)) if mle else 1.0
    own = (factor - mean) ** 2 + factor**2 * (kappa - 1) / m
    # the last summand is factor^2 / (m (m - 1)), without 0/0 at m = 1
    cross = factor**2 * kappa / m + ((m - 1) / m**3 if mle else 1 / (m * (m - 1)))
    return _Fit(mean, float(p @ own) / mean**2, float(p @ cross) / mean**2)


def _noise_moments(recursion: Recursion) -> tuple[float, float]:
    """Mean of z^2 and its variance over the squared mean, z ~ N(1, s^2) the factor of sigma."""
    s2 = recursion.noise_scale**2 if recursion.noise == "multiplicative" else 0.0
    return 1 + s2, (4 * s2 + 2 * s2**2) / (1 + s2) ** 2


def expected_variance(recursion: Recursion, generations: int) -> Floats:
    """Expected variance of each generation's model, per dimension and in units of the real one.

    E[sigma_0^2] = 1 - 1/n, and with m the number kept of n
    E[sigma_{t+1}^2] = bias * eta(a) * (1 - E[1/m]) * E[sigma_t^2]. ``unbiased`` has no factors of
    1 - 1/n and 1 - E[1/m]. ``multiplicative`` noise adds the factor 1 + s^2 to each generation,
    that of number 0 too, ``additive`` the summand s^2.

    It is exact, given that each generation keeps at least one point (``unbiased``: two): E[1/m] is
    summed over the Binomial(n, s) without 0, to rounding.

    Args:
        recursion: What is repeated.
        generations: How many, 1 or more.

    Returns:
        float64, (generations,); inf where it exceeds the range of float64.

    Raises:
        InputError: `generations` is no whole number of 1 or more.
    """
    generations = _whole("generations", generations, 1, _MOST_POINTS)
    noise, _ = _noise_moments(recursion)
    summand = recursion.noise_scale**2 if recursion.noise == "additive" else 0.0
    eta = variance_amplification(recursion.threshold, recursion.dimension)
    later = recursion.bias * eta * _fit(recursion, recursion.threshold).mean * noise
    value = _fit(recursion, 0.0).mean * noise + summand
    steps = itertools.repeat(summand, generations - 1)
    values = itertools.accumulate(
        steps, lambda before, added: later * before + added, initial=value
    )
    return np.fromiter(values, np.float64, generations)


def variance_interval(
    recursion: Recursion, generations: int, *, seeds: int = 1, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Interval of the models' variance, averaged over independent chains, at each generation.

    In d dimensions the variance is the trace of the covariance over d.

    One chain in one dimension: log sigma_t^2 is a sum of independent terms, one of the fit and one
    of the noise in each generation, and is taken as normal. A term's mean and variance are exact
    for a fit that keeps all (digamma and trigamma of (n - 1) / 2) and for the noise (an integral).
    Those of a truncated fit follow from the exact mean and variance of its sigma^2 by the delta
    method, with errors of the order 1/m^2.

    Otherwise: a lognormal with the exact mean and variance of the chains' average (Fenton and
    Wilkinson's approximation). Where the log of one chain has a standard deviation of up to 1, the
    level holds within a hundredth; where it has more, the lower end lies too low (by a factor of 55
    at a deviation of 3 and 200 seeds) and the interval covers more than `level`.

    Args:
        recursion: What is repeated.
        generations: How many, 1 or more.
        seeds: Chains that are averaged, 1 or more.
        level: Probability of the interval, in (0, 1), with as much left out below as above.

    Returns:
        Lower and upper ends, float64, (generations,) each, in units of the real variance.

    Raises:
        InputError: `generations` or `seeds` is no whole number of 1 or more, `level` does not lie
            in (0, 1), or the noise is ``additive``, which has no closed form.
    """
    generations = _whole("generations", generations, 1, _MOST_POINTS)
    seeds = _whole("seeds", seeds, 1, _MOST_POINTS)
    level = _real("level", level, math.ulp(0.0), 1 - 2**-53, "in (0, 1)")
    if recursion.noise == "additive":
        raise InputError(
            "noise is 'additive', for which the interval has no closed form; simulate the chains, "
            "or use expected_variance alone"
        )
    if seeds == 1 and recursion.dimension == 1:
        centre, variance = _log_moments(recursion, generations)
    else:
        centre, variance = _matched_lognormal(recursion, generations, seeds)
    width = float(special.ndtri((1 + level) / 2)) * np.sqrt(variance)
    with np.errstate(over="ignore"):
        return np.exp(centre - width), np.exp(centre + width)


def _matched_lognormal(recursion: Recursion, generations: int, seeds: int) -> tuple[Floats, Floats]:
    """Mean and variance of the log of a lognormal with the average's exact mean and variance."""
    noise, noise_variance = _noise_moments(recursion)
    fits = (_fit(recursion, 0.0), _fit(recursion, recursion.threshold))
    eta = variance_amplification(recursion.threshold, recursion.dimension)
    gain = math.log(recursion.bias * eta)
    # log E[T], log E[T^2] / E[T]^2, and E[Q] and E[sum of S_jj^2] over E[T^2]; the moments overflow
    log_mean, log_ratio, q, p = -gain, 0.0, 1 / recursion.dimension, 1 / recursion.dimension
    means, ratios = np.empty(generations), np.empty(generations)
    for t in range(generations):
        fit = fits[min(t, 1)]
        # noise multiplies S_jk by z_j z_k, whose squares correlate on the diagonal alone
        p *= 1 + fit.own + 2 * fit.cross
        growth = fit.own + 2 * fit.cross * q + noise_variance * p
        q = ((1 + fit.own + fit.cross) * q + fit.cross + noise_variance * p) / (1 + growth)
        p *= (1 + noise_variance) / (1 + growth)
        log_mean += gain + math.log(fit.mean * noise)
        log_ratio += math.log1p(growth)
        means[t], ratios[t] = log_mean, log_ratio
    # log(1 + (E[T^2] / E[T]^2 - 1) / seeds); from 500 on the ones are lost in rounding
    averaged = np.log1p(np.expm1(np.minimum(ratios, 500)) / seeds)
    variance: Floats = np.where(ratios < 500, averaged, ratios - math.log(seeds))
    return means - variance / 2, variance


def _log_moments(recursion: Recursion, generations: int) -> tuple[Floats, Floats]:
    """Mean and variance of log sigma_t^2 of one chain in one dimension."""
    noise_mean, noise_variance = _log_noise(recursion)
    gain = math.log(recursion.bias * variance_amplification(recursion.threshold))
    first, later = _log_fit(recursion, 0.0), _log_fit(recursion, recursion.threshold)
    t = np.arange(generations, dtype=np.float64)
    mean = first[0] + noise_mean + t * (later[0] + gain + noise_mean)
    return mean, first[1] + noise_variance + t * (later[1] + noise_variance)


def _log_fit(recursion: Recursion, threshold: float) -> tuple[float, float]:
    """Mean and variance of the log of one fit's variance, in units of that of its points."""
    if threshold == 0:
        freedom = recursion.points - 1
        divisor = recursion.points if recursion.estimator == "mle" else freedom
        log_chi2 = float(special.digamma(freedom / 2)) + math.log(2)
        return log_chi2 - math.log(divisor), float(special.polygamma(1, freedom / 2))
    fit = _fit(recursion, threshold)
    variance = math.log1p(fit.own + 2 * fit.cross)
    return math.log(fit.mean) - variance / 2, variance


def _log_noise(recursion: Recursion) -> tuple[float, float]:
    """Mean and variance of 2 log|1 + s z|, z ~ N(0, 1), the log of the factor of sigma^2."""
    from scipy import integrate  # here: it takes a third of a second to import

    if recursion.noise == "none":
        return 0.0, 0.0
    s = recursion.noise_scale
    unit = min(s, 1.0)  # of what is integrated, so that the absolute tolerance suits a small s

    def log_factor(z: float) -> float:
        x = s * z
        if x > -0.5:
            return 2 * math.log1p(x) / unit
        return 2 * math.log(abs(1 + x)) / unit if x != -1 else 0.0

    def moment(power: int) -> float:
        # beyond 20 standard deviations lies less than 1e-88; quad never looks at the pole itself
        pole = [-1 / s] if s > 0.05 else None
        total, _ = integrate.quad(
            lambda z: log_factor(z) ** power * math.exp(-z * z / 2), -20.0, 20.0, points=pole
        )
        return float(total) / math.sqrt(2 * math.pi)

    mean = moment(1)
    return mean * unit, (moment(2) - mean**2) * unit**2
