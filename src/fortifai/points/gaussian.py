"""The family `gaussian`: one Gaussian of any dimension, closed form, all seeds at once.

ForTIFAI (2509.08972), section 2.2 and appendix C. Points have shape (n, seeds, d), float64: every
seed is a chain of its own with random numbers of its own, so that a seed gives the same bytes
alone as among others. Sums over points are NumPy's einsum, not BLAS, whose threads would fight
with ours and change the order of the sums.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file, save_file

from fortifai.errors import Diverged, InputError
from fortifai.lab.budget import Spent
from fortifai.lab.domain import draw_share, even_edges
from fortifai.lab.progress import Progress
from fortifai.machine import threads
from fortifai.options import Options
from fortifai.points.distances import is_singular, is_symmetric
from fortifai.points.sources import Mixture
from fortifai.weights import Weight, keeps_all

Floats = NDArray[np.float64]

LARGEST, SMALLEST = 1e150, 1e-150
"""Variances beyond these have diverged or vanished: their squares leave the range of float64."""

BLOCK = 2**21
"""Bytes of points that are worked on at once: they stay in the last cache, and not in the first
ones, because threads that return to Python more often wait for each other longer than that saves.
"""

_WEIGHTS = "model.safetensors"


class NoNoise(Options):
    """The estimates as they are."""

    kind: Literal["none"] = "none"


class MultiplicativeNoise(Options):
    """Mean and standard deviation each times its own N(1, scale^2): ForTIFAI's code for Fig. C4."""

    kind: Literal["multiplicative"] = "multiplicative"
    scale: Annotated[float, Field(gt=0)] = 0.1


class AdditiveNoise(Options):
    """Mean and standard deviation each plus its own N(0, scale^2): ForTIFAI's appendix C.

    A standard deviation that comes out negative is taken without its sign.
    """

    kind: Literal["additive"] = "additive"
    scale: Annotated[float, Field(gt=0)] = 1.0


NoiseConfig = Annotated[NoNoise | MultiplicativeNoise | AdditiveNoise, Field(discriminator="kind")]


class GaussianOptions(Options):
    """One Gaussian of any dimension, fitted in closed form; all seeds of an arm at once.

    `estimator`: `mle` divides the squares by the (weighted) number of points, `unbiased` by one
    less. `bias`: lambda, the draws of a generation have lambda times the variance of the fit.
    """

    kind: Literal["gaussian"] = "gaussian"
    estimator: Literal["mle", "unbiased"] = "mle"
    noise: NoiseConfig = NoNoise()
    bias: Annotated[float, Field(gt=0, le=1)] = 1.0
    all_seeds: ClassVar[bool] = True

    def make(self, weight: Weight) -> GaussianFamily:
        """The family of an arm."""
        return GaussianFamily(self, weight)

    def needs(self, dimension: int) -> tuple[int, str]:
        """The fewest points of a split, and why."""
        least = dimension + 1
        return least, f"a Gaussian in {dimension} dimensions needs {least}"


@dataclasses.dataclass(frozen=True)
class GaussianFamily:
    """Makes the Gaussians of one arm.

    Attributes:
        config: Estimator, noise and sampling bias.
        weight: What each point counts, by its density under the model that is there already.
    """

    config: GaussianOptions
    weight: Weight

    def create(self, start: Literal["base", "scratch"], *, seed: Sequence[int]) -> Gaussian:
        """A Gaussian that has seen nothing; its first fit keeps every point."""
        return Gaussian(self)

    def share(self, samples: Floats, between: tuple[float, float], seed: Sequence[int]) -> Floats:
        """See `fortifai.lab.domain.Family`; each seed draws its own points."""
        drawn = [draw_share(samples[:, i], between, 1, one) for i, one in enumerate(seed)]
        return np.stack(drawn, axis=1)

    def edges(self, samples: Floats, *, unit: str | None) -> NDArray[np.int64]:
        """Each point is a unit."""
        return even_edges(len(samples), 1)

    def load(self, folder: Path) -> Gaussian:
        """The Gaussian that an earlier generation saved."""
        found = load_file(folder / _WEIGHTS)
        return Gaussian(self, found["mean"], found["covariance"])


class Gaussian:
    """N(mean, covariance), one for each seed.

    Attributes:
        mean: (seeds, d) float64, or None before the first fit.
        covariance: (seeds, d, d) float64, or None before the first fit.
    """

    def __init__(
        self,
        family: GaussianFamily,
        mean: Floats | None = None,
        covariance: Floats | None = None,
    ) -> None:
        self.family, self.spent = family, Spent()
        self.mean, self.covariance = mean, covariance

    def fit(self, samples: Floats, *, seed: Sequence[int], progress: Progress) -> dict[str, Any]:
        """Weighted maximum likelihood in closed form.

        mu = sum w x / sum w and Sigma = sum w (x - mu)(x - mu)^T / sum w; `unbiased` divides by
        sum w - sum w^2 / sum w instead, which is m - 1 for m points of weight 1. A point's weight
        comes from its density under the draws of the last fit, relative to the peak:
        log p - log p(mean) = -r^2 / 2 with r its Mahalanobis distance; so truncation at
        exp(-a^2 / 2) keeps |x - mu| >= a sigma (equation 2), with sigma that of the draws, biased
        if they are, and the relation lambda eta(a) = 1 of equation 4 holds.

        Args:
            samples: (n, seeds, d) float64.
            seed: Those of the estimator's noise, one for each column of `samples`.
            progress: Told when it is done.

        Returns:
            ``points``, the points of one seed; ``truncated_share``, by seed, the mean of
            1 - weight.

        Raises:
            InputError: The points have another shape, or they are not finite.
            Diverged: Too few points are kept, or a variance has diverged or vanished.
        """
        points = _by_seed(samples, len(seed))
        count, d, n = points.shape
        mean, covariance = np.empty((count, d)), np.empty((count, d, d))
        dropped = np.zeros(count)

        # what overflows is told by the check; the setting is each thread's own
        @np.errstate(over="ignore", invalid="ignore", divide="ignore")
        def estimate(block: slice) -> None:
            if self.mean is None or keeps_all(self.family.weight):
                _enough(n, n, d)
                mean[block], covariance[block] = self._unweighted(points[block])
            else:
                for s in range(block.start, block.stop):
                    mean[s], covariance[s], dropped[s] = self._weighted(points[s], s)

        _spread(estimate, points)
        collapsed = "the Gaussian has collapsed to a point"
        check_covariances(mean, covariance, collapsed)
        noise = self.family.config.noise
        if not isinstance(noise, NoNoise):
            for s in range(count):
                _disturb(noise, mean[s], covariance[s], seed[s])
            check_covariances(mean, covariance, collapsed)
        self.spent.scored += 0 if self.mean is None or keeps_all(self.family.weight) else n
        self.spent.trained += n
        self.mean, self.covariance = mean, covariance
        progress.step("fit", 1, 1)
        return {"points": n, "truncated_share": dropped.tolist()}

    @property
    def _correction(self) -> int:
        return 1 if self.family.config.estimator == "unbiased" else 0

    def _unweighted(self, x: Floats) -> tuple[Floats, Floats]:
        """Means (s, d) and covariances (s, d, d) of the points (s, d, n) of some seeds."""
        n = x.shape[2]
        mean: Floats = np.add.reduce(x, axis=2) / n
        centred = x - mean[:, :, None]
        return mean, _products(centred, centred) / (n - self._correction)

    def _weighted(self, x: Floats, s: int) -> tuple[Floats, Floats, float]:
        """Mean, covariance and dropped share of one seed's points (d, n)."""
        d, n = x.shape
        log_p = -0.5 * self._squared_distance(x, s)
        w = weigh(self.family.weight, log_p)
        total = float(w.sum())
        _enough(int(np.count_nonzero(w)), n, d)
        mean = np.einsum("dn,n->d", x, w) / total
        centred = x - mean[:, None]
        whole = total - self._correction * float(np.einsum("n,n->", w, w)) / total
        return mean, _products((centred * w)[None], centred[None])[0] / whole, 1.0 - total / n

    def _squared_distance(self, x: Floats, s: int) -> Floats:
        """r^2 under the draws of this model, (n,), of points (d, n)."""
        mean, covariance = self._fitted()
        factor = factors(self.family.config.bias * covariance[s])
        standard = np.einsum("de,en->dn", np.linalg.inv(factor), x - mean[s][:, None])
        squared: Floats = np.einsum("dn,dn->n", standard, standard)
        return squared

    def regenerate(self, samples: Floats, *, seed: Sequence[int], progress: Progress) -> Floats:
        """As many new draws from N(mean, bias * covariance), whatever stands in `samples`."""
        mean, covariance = self._fitted()
        n, count, d = samples.shape
        scales = factors(self.family.config.bias * covariance)
        out, states = np.empty((count, d, n)), _states(seed)

        def draw(block: slice) -> None:
            drawn, rng = out[block], _Normals()
            for row, words in zip(drawn, states[block], strict=True):
                rng.fill(row, words)
            if d == 1:
                drawn *= scales[block]
            else:
                drawn[:] = np.einsum("sde,sen->sdn", scales[block], drawn)
            drawn += mean[block, :, None]

        _spread(draw, out)
        self.spent.generated += n
        progress.step("draw", 1, 1)
        return np.moveaxis(out, 2, 0)

    def log_prob(self, samples: Floats) -> Floats:
        """Log-density of each point in nats, (n, seeds) float64, under N(mean, covariance)."""
        mean, covariance = self._fitted()
        points = _by_seed(samples, len(mean))
        count, d, n = points.shape
        out = np.empty((count, n))
        constant = d * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1]
        for s in range(count):
            # the distance is that of the draws, whose covariance has the bias in it
            squared = self.family.config.bias * self._squared_distance(points[s], s)
            out[s] = -0.5 * (squared + constant[s])
        self.spent.scored += n
        return out.T

    @property
    def mixtures(self) -> list[Mixture]:
        """The Gaussian of each seed as a mixture of one component."""
        mean, covariance = self._fitted()
        one = np.ones(1)
        return [Mixture(one, m[None], c[None]) for m, c in zip(mean, covariance, strict=True)]

    def save(self, folder: Path) -> None:
        """Write mean and covariance into a new folder."""
        mean, covariance = self._fitted()
        folder.mkdir(parents=True)
        save_file({"mean": mean, "covariance": covariance}, folder / _WEIGHTS)

    def _fitted(self) -> tuple[Floats, Floats]:
        if self.mean is None or self.covariance is None:
            raise InputError("the Gaussian was not fitted yet; call fit first")
        return self.mean, self.covariance


def _disturb(
    noise: AdditiveNoise | MultiplicativeNoise, mean: Floats, covariance: Floats, seed: int
) -> None:
    """Add the estimator's noise to the estimates of one seed, in place."""
    w = np.random.default_rng(seed).normal(scale=noise.scale, size=(2, len(mean)))
    if isinstance(noise, AdditiveNoise):
        sigma = np.sqrt(np.diag(covariance))
        mean += w[0]
        factor = np.abs(sigma + w[1]) / sigma
    else:
        mean *= 1 + w[0]
        factor = np.abs(1 + w[1])
    covariance *= np.outer(factor, factor)


class _Normals:
    """Standard normal numbers from one seed after another.

    SFC64 is the fastest of NumPy's generators, a fifth faster than the default one; to set its
    state takes a fraction of the time of making a new one, which would be a tenth of a draw.
    """

    def __init__(self) -> None:
        self._bits = np.random.SFC64(0)
        self._generator = np.random.Generator(self._bits)
        self._state: Any = self._bits.state

    def fill(self, row: Floats, words: NDArray[np.uint64]) -> None:
        """Overwrite `row` with the numbers that follow a state, from `_states`."""
        self._state["state"]["state"] = words
        self._bits.state = self._state
        self._generator.standard_normal(out=row)


def _states(seeds: Sequence[int]) -> NDArray[np.uint64]:
    """A state of SFC64 for each seed, (seeds, 4): three words of SHA-256, and a counter at 1."""
    digests = b"".join(hashlib.sha256(b"%d" % seed).digest() for seed in seeds)
    words = np.frombuffer(digests, dtype="<u8").reshape(-1, 4).astype(np.uint64)
    words[:, 3] = 1
    return words


def _by_seed(samples: Floats, seeds: int) -> Floats:
    """The points as (seeds, d, n) in one memory layout: sums in another order round otherwise."""
    if samples.ndim != 3 or samples.shape[1] != seeds:
        raise InputError(
            f"points of shape {samples.shape} came for {seeds} seeds; they must be (n, seeds, d)"
        )
    return np.ascontiguousarray(np.moveaxis(samples, 0, 2), dtype=np.float64)


def _spread(work: Callable[[slice], None], points: Floats) -> None:
    """Call `work` on blocks of seeds of points (seeds, d, n), in the threads of `use_threads`.

    A block is one call for many seeds; see `BLOCK` for its size.
    """
    count = len(points)
    size = max(1, min(BLOCK // max(1, points[0].nbytes), -(-count // threads())))
    blocks = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    pool = min(threads(), len(blocks))

    def share(first: int) -> None:
        for block in blocks[first::pool]:
            work(block)

    if pool == 1:
        share(0)
        return
    list(_pool(pool).map(share, range(pool)))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: starting them anew in every generation costs a tenth of its time."""
    return ThreadPoolExecutor(threads)


def _products(a: Floats, b: Floats) -> Floats:
    """Inner products over points of a and b, (s, d, n) each, as (s, d, d)."""
    d = a.shape[1]
    out = np.empty((len(a), d, d))
    for i in range(d):  # pair by pair: einsum is three times as fast on rows as on matrices
        for j in range(d):
            out[:, i, j] = np.einsum("sn,sn->s", a[:, i], b[:, j])
    return out


def weigh(weight: Weight, log_p: Floats) -> Floats:
    """The weights of log-densities, any shape."""
    import torch  # here: it takes longer to load than most fits that keep every point

    weights: Floats = weight(torch.from_numpy(log_p)).numpy()
    return weights


def _enough(kept: int, n: int, d: int) -> None:
    if kept < d + 1:
        raise Diverged(
            f"{kept} of {n:,} points were kept, a share of {kept / n:.2g}; {d + 1} are needed"
        )


def check_covariances(mean: Floats, covariance: Floats, collapsed: str) -> None:
    """Stop at Gaussians that cannot be sampled from, trained on or measured.

    Args:
        mean: (k, d).
        covariance: (k, d, d).
        collapsed: What has happened where a covariance is singular, for the message.

    Raises:
        Diverged: A value is not finite, a variance is beyond `LARGEST`, or a covariance is no
            longer positive definite in float64: its smallest eigenvalue is below `SMALLEST`, or
            below what numbers around the mean can tell apart, it `is_singular`, or so near to
            rounding that it is no longer symmetric.
    """
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise Diverged("the variance has diverged: the estimates are no longer finite")
    with np.errstate(over="ignore"):
        most = np.trace(covariance, axis1=1, axis2=2)
        # below the spacing of floating-point numbers around the mean all draws are one point
        resolution = (4 * np.finfo(np.float64).eps * np.abs(mean).max(1)) ** 2
    if most.max() > LARGEST:
        raise Diverged(f"the variance has diverged: it is {most.max():.3g}")
    least = np.linalg.eigvalsh(covariance)[:, 0]
    small = least <= np.maximum(resolution, SMALLEST)
    if small.any() or is_singular(covariance).any() or not is_symmetric(covariance):
        raise Diverged(f"{collapsed}: its smallest variance is {least.min():.3g}")


def factors(covariance: Floats) -> Floats:
    """Cholesky factors of covariances.

    Raises:
        Diverged: One has none.
    """
    try:
        return np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
    except np.linalg.LinAlgError as error:
        raise Diverged("a covariance has become singular: it has no Cholesky factor") from error
