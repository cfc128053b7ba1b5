"""Measures of points in space and of Gaussian mixtures: plain functions on arrays.

`points` are one sample (n, d), or a stack of samples (S, n, d), one for each seed; measures of
points give one number for each seed, (S,) float64, and a single sample counts as a stack of one.
All is computed in float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_triangular

from fortifai.errors import InputError

if TYPE_CHECKING:
    from fortifai.points.sources import Mixture

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_DIRECTIONS_SEED = 0


# --- moments ----------------------------------------------------------------------------------


def standard_error(values: ArrayLike) -> float:
    """Standard error of a mean: the sample standard deviation (n - 1) over sqrt(n).

    Infinite where a value is, as a `mixture_l2` of collapsed Gaussians may be.

    Args:
        values: (n,) independent values, at least two.

    Raises:
        InputError: Fewer than two values, more than one axis, or NaN.
    """
    x = _numbers("values", values)
    if x.ndim != 1 or len(x) < 2:
        raise InputError(
            f"values have shape {x.shape}; a standard error needs one axis with two or more, give "
            "more values"
        )
    if np.isnan(x).any():
        raise InputError("values have NaN; a standard error needs numbers, leave NaN out")
    if np.isinf(x).any():
        return math.inf
    # squares of what is far from 1 would leave the range of floats
    scale = float(np.abs(x).max()) or 1.0
    return float((x / scale).std(ddof=1) / math.sqrt(len(x))) * scale


# --- distance of samples ----------------------------------------------------------------------


def wasserstein(points: ArrayLike, reference: ArrayLike, *, directions: int = 64) -> Floats:
    """Wasserstein-1 distance from a reference sample; sliced in more than one dimension.

    In one dimension the integral over q in [0, 1] of |F^-1(q) - G^-1(q)|, exact for any two sizes.
    In more, its mean over the projections on unit vectors: the sliced distance of Bonneel et al.
    (2015), whose vectors are drawn from one constant seed, so that all generations and runs are
    seen from the same sides. It is smaller than the distance itself: a shift by v gives
    |v| Gamma(d / 2) / (sqrt(pi) Gamma((d + 1) / 2)) with many directions. Even between two samples
    of one distribution it is above 0, and the more so the smaller they are: compare at equal sizes.

    Args:
        points: (n, d) or (S, n, d).
        reference: (m, d); m need not be n.
        directions: Number of unit vectors; not used where d is 1.

    Returns:
        (S,) float64, in the unit of the points.

    Raises:
        InputError: Shapes that do not fit, no points, values that are not finite, or fewer than
            one direction.
    """
    stack = np.ascontiguousarray(_stack("points", points))
    _, n, d = stack.shape
    other = _stack("reference", reference)
    if len(other) != 1 or other.shape[2] != d:
        raise InputError(
            f"reference has shape {np.shape(reference)}; points have {d} dimensions, give (m, {d})"
        )
    if directions < 1:
        raise InputError(f"directions is {directions}; give at least 1")
    pieces = _pieces(n, other.shape[1])
    vectors = np.ones((1, 1)) if d == 1 else _unit_vectors(directions, d)
    total = np.zeros(len(stack))
    for vector in vectors:
        total += _wasserstein_1d(stack @ vector, other[0] @ vector, pieces)
    return total / len(vectors)


def _unit_vectors(count: int, d: int) -> Floats:
    normal = np.random.default_rng(_DIRECTIONS_SEED).standard_normal((count, d))
    vectors: Floats = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    return vectors


def _pieces(n: int, m: int) -> tuple[Indices, Indices, Floats]:
    """Where both quantile functions are constant: indices into either sample, and the widths.

    Ends are counted in units of 1 / (n m), as integers: in floats, equal ends would differ by
    rounding and an index could fall on the wrong side.
    """
    ends = np.union1d(
        np.arange(1, n + 1, dtype=np.int64) * m, np.arange(1, m + 1, dtype=np.int64) * n
    )
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])
    return starts // m, starts // n, (ends - starts) / (n * m)


def _wasserstein_1d(x: Floats, y: Floats, pieces: tuple[Indices, Indices, Floats]) -> Floats:
    """Between each row of x (S, n) and y (m,): (S,)."""
    x, y = np.sort(x, axis=1), np.sort(y)
    if x.shape[1] == len(y):
        same: Floats = np.abs(x - y).mean(axis=1)
        return same
    first, second, width = pieces
    distance: Floats = np.abs(x[:, first] - y[second]) @ width
    return distance


# --- tails ------------------------------------------------------------------------------------


def tail_mass(points: ArrayLike, mean: ArrayLike, covariance: ArrayLike, sigmas: float) -> Floats:
    """Share of points further than `sigmas` from the mean of a Gaussian, by Mahalanobis distance.

    The share of x with (x - mean)^T covariance^-1 (x - mean) > sigmas^2. With the Gaussian of
    generation 0 it tells whether later ones still reach its tails; the Gaussian itself has
    P(chi^2 with d degrees > sigmas^2) there.

    Args:
        points: (n, d) or (S, n, d).
        mean: (d,).
        covariance: (d, d), positive definite.
        sigmas: Distance in standard deviations, 0 or more.

    Returns:
        (S,) float64, shares in [0, 1].

    Raises:
        InputError: Shapes that do not fit, no points, values that are not finite, a covariance
            that is not positive definite, or `sigmas` below 0.
    """
    stack = _stack("points", points)
    count, n, d = stack.shape
    centre = _finite("mean", mean, (d,))
    factor = _cholesky("covariance", _symmetric("covariance", covariance, (d, d)))
    if not 0 <= sigmas < math.inf:  # false for NaN, too
        raise InputError(f"sigmas is {sigmas}; give a finite number of at least 0")
    standard = solve_triangular(factor, (stack.reshape(-1, d) - centre).T, lower=True)
    beyond = np.einsum("dn,dn->n", standard, standard) > sigmas**2
    share: Floats = beyond.reshape(count, n).mean(axis=1)
    return share


def is_singular(covariances: Floats) -> NDArray[np.bool_]:
    """Whether float64 cannot tell covariances from singular ones.

    The smallest eigenvalue of the correlations is at most 4 d (d + 1) eps: above d (d + 1) eps the
    Cholesky factor exists whatever is rounded (Higham, Accuracy and Stability of Numerical
    Algorithms, theorem 10.7), and so do those of multiples and of sums of such covariances.

    Args:
        covariances: (k, d, d), finite; a variance of 0 makes one singular.

    Returns:
        (k,).
    """
    d = covariances.shape[-1]
    variance = np.diagonal(covariances, axis1=1, axis2=2)
    none = (variance <= 0).any(axis=1)
    scale = np.sqrt(np.where(variance > 0, variance, 1.0))
    correlations = covariances / scale[:, :, None] / scale[:, None, :]
    least = np.linalg.eigvalsh(correlations)[:, 0]
    singular: NDArray[np.bool_] = none | (least <= 4 * d * (d + 1) * np.finfo(np.float64).eps)
    return singular


def is_symmetric(covariances: Floats) -> bool:
    """Whether matrices (..., d, d) are symmetric, to 1e-6 of the largest entry.

    That is room for sums in float32; what is off by more is no covariance, or one lost in rounding.
    """
    off = np.abs(covariances - np.swapaxes(covariances, -1, -2))
    return not covariances.size or bool(off.max() <= 1e-6 * np.abs(covariances).max())


# --- mixtures ---------------------------------------------------------------------------------


def mixture_l2(a: Mixture, b: Mixture) -> float:
    """L2 distance of two Gaussian mixtures p and q, in closed form: sqrt(integral (p - q)^2).

    The integral of a product of two Gaussians is N(mu_i; mu_j, S_i + S_j), so that the square is
    the sum over all pairs of components of both, weights of q taken negative. The terms cancel
    where p and q are nearly equal: below about 1e-8 of the norm of p it is rounding.

    Args:
        a: Weights (k,), means (k, d) and covariances (k, d, d).
        b: The same, with any number of components.

    Returns:
        The distance, in units of 1 / sqrt(volume): it depends on the scale of the space. Infinite
        where a density is too high for float64.

    Raises:
        InputError: Shapes that do not fit, values that are not finite, weights that are negative
            or do not sum to 1, or a covariance that is not positive definite.
    """
    parts = [_mixture(name, mixture) for name, mixture in (("a", a), ("b", b))]
    one, other = (means.shape[1] for _, means, _ in parts)
    if one != other:
        raise InputError(f"a has {one} dimensions and b has {other}; give mixtures of one space")
    signed = np.concatenate([parts[0][0], -parts[1][0]])
    means, covariances = (np.concatenate([p[i] for p in parts]) for i in (1, 2))
    factors, logs = [], []
    for i in range(len(signed)):
        twice = np.full(len(signed) - i, 2.0)  # pairs in either order
        twice[0] = 1.0
        factors.append(twice * signed[i] * signed[i:])
        logs.append(_log_overlaps(means[i:], covariances[i:]))
    log_overlap = np.concatenate(logs)
    # the largest is taken out, or narrow components in many dimensions would overflow
    top = float(log_overlap.max())
    # exact summation: the same terms of other sign cancel in whatever order components stand
    square = math.fsum(np.concatenate(factors) * np.exp(log_overlap - top))
    if square <= 0:  # rounding may leave a tiny negative number
        return 0.0
    with np.errstate(over="ignore"):
        return math.sqrt(square) * float(np.exp(top / 2))


def components_kept(
    weights: ArrayLike,
    covariances: ArrayLike,
    *,
    reference_covariance: ArrayLike,
    share: float = 0.01,
    spread: float = 1e-6,
) -> int:
    """How many components of a mixture still have weight and spread.

    A component is kept if its weight is at least `share` and the smallest eigenvalue of its
    covariance is above `spread` times the largest eigenvalue of the reference covariance. The first
    fails where a mode has died out, the second where it has shrunk to a point or into a plane.

    Args:
        weights: (k,), which sum to 1.
        covariances: (k, d, d), symmetric; they may be singular.
        reference_covariance: (d, d), of the real distribution as a whole.
        share: Least weight, in [0, 1].
        spread: Least variance in any direction, 0 or more, as a share of the reference's largest.

    Raises:
        InputError: Shapes that do not fit, values that are not finite, weights that are negative
            or do not sum to 1, or a number outside its range.
    """
    if not 0 <= share <= 1:
        raise InputError(f"share is {share}; a weight lies in [0, 1], give a number from there")
    if not 0 <= spread < math.inf:
        raise InputError(f"spread is {spread}; give a finite number of at least 0")
    weight = _weights("weights", weights)
    reference = _finite("reference_covariance", reference_covariance)
    d = len(reference) if reference.ndim else 1
    largest = np.linalg.eigvalsh(_symmetric("reference_covariance", reference, (d, d)))[-1]
    own = _symmetric("covariances", covariances, (len(weight), d, d))
    smallest = np.linalg.eigvalsh(own)[:, 0]
    return int(np.count_nonzero((weight >= share) & (smallest > spread * largest)))


def _mixture(name: str, mixture: Mixture) -> tuple[Floats, Floats, Floats]:
    """Weights, means and covariances of the components that have any weight."""
    weights = _weights(f"weights of {name}", mixture.weights)
    means = _finite(f"means of {name}", mixture.means)
    k, d = len(weights), means.shape[1] if means.ndim == 2 else 1
    means = _finite(f"means of {name}", means, (k, d))
    covariances = _symmetric(f"covariances of {name}", mixture.covariances, (k, d, d))
    _cholesky(f"a covariance of {name}", covariances)
    some = weights > 0
    return weights[some], means[some], covariances[some]


def _log_overlaps(means: Floats, covariances: Floats) -> Floats:
    """Log N(mu_0; mu_j, S_0 + S_j) of the first component with each, (k,)."""
    factors = _cholesky("the sum of two covariances", covariances[0] + covariances)
    standard = np.linalg.solve(factors, (means - means[0])[..., None])[..., 0]
    log_root_det = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
    constant = means.shape[1] / 2 * math.log(2 * math.pi)
    log_overlap: Floats = -0.5 * (standard**2).sum(axis=1) - log_root_det - constant
    return log_overlap


# --- checks -----------------------------------------------------------------------------------


def _numbers(name: str, values: ArrayLike) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} cannot be read as an array of numbers; give numbers") from error


def _finite(name: str, values: ArrayLike, shape: tuple[int, ...] | None = None) -> Floats:
    x = _numbers(name, values)
    if shape is not None and x.shape != shape:
        raise InputError(f"{name} has shape {x.shape}; the others ask for {shape}, give that")
    if not np.isfinite(x).all():
        raise InputError(f"{name} has NaN or infinite values; all must be finite, leave them out")
    return x


def _stack(name: str, values: ArrayLike) -> Floats:
    x = _finite(name, values)
    if x.ndim not in (2, 3) or not x.size:
        raise InputError(
            f"{name} has shape {x.shape}; give (n, d), or (S, n, d) for S seeds, none of them 0"
        )
    return x if x.ndim == 3 else x[None]


def _weights(name: str, values: ArrayLike) -> Floats:
    x = _finite(name, values)
    # 1e-6 is room for weights that were kept in float32
    if x.ndim != 1 or not len(x) or (x < 0).any() or abs(x.sum() - 1) > 1e-6:
        raise InputError(
            f"{name} have shape {x.shape} and sum {x.sum():g}; give one share for each component, "
            "none negative, of sum 1"
        )
    return x


def _symmetric(name: str, values: ArrayLike, shape: tuple[int, ...]) -> Floats:
    x = _finite(name, values, shape)
    if not is_symmetric(x):
        raise InputError(f"{name} must be symmetric and is not; give (C + C^T) / 2")
    return x


def _cholesky(name: str, covariances: Floats) -> Floats:
    try:
        return np.asarray(np.linalg.cholesky(covariances), dtype=np.float64)
    except np.linalg.LinAlgError as error:
        raise InputError(
            f"{name} is not positive definite, so there is no density; add a small multiple of the "
            "identity"
        ) from error
