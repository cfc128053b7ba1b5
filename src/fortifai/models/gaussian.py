"""The family `gaussian`: one Gaussian of any dimension, closed form, all seeds at once.

ForTIFAI (2509.08972), section 2.2 and appendix C. Points have shape (n, seeds, d), float64: every
seed is a chain of its own with random numbers of its own, so that a seed gives the same bytes
alone as among others. Sums over points are NumPy's einsum, not BLAS, whose threads would fight
with ours and change the order of the sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from fortifai.confidence import Weight, keeps_all
from fortifai.config import AdditiveNoise, GaussianConfig, NoNoise
from fortifai.data.points import Mixture
from fortifai.errors import InputError
from fortifai.loop.ended import Ended
from fortifai.loop.progress import Progress

Floats = NDArray[np.float64]

LARGEST, SMALLEST = 1e150, 1e-150
"""Variances beyond these have diverged or vanished: their squares leave the range of float64."""

_WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class GaussianFamily:
    """Makes the Gaussians of one arm.

    Attributes:
        config: Estimator, noise and sampling bias.
        weight: What each point counts, by its density under the model that is there already.
    """

    config: GaussianConfig
    weight: Weight

    @property
    def unit(self) -> int:
        """One point."""
        return 1

    def create(self, start: Literal["base", "scratch"], *, seeds: Sequence[int]) -> Gaussian:
        """A Gaussian that has seen nothing; its first fit keeps every point."""
        return Gaussian(self)

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
        self.family = family
        self.mean, self.covariance = mean, covariance

    def fit(self, samples: Floats, *, seeds: Sequence[int], progress: Progress) -> dict[str, Any]:
        """Weighted maximum likelihood in closed form.

        mu = sum w x / sum w and Sigma = sum w (x - mu)(x - mu)^T / sum w; `unbiased` divides by
        sum w - sum w^2 / sum w instead, which is m - 1 for m points of weight 1. A point's weight
        comes from its density under the draws of the last fit, relative to the peak:
        log p - log p(mean) = -r^2 / 2 with r its Mahalanobis distance; so truncation at
        exp(-a^2 / 2) keeps |x - mu| >= a sigma (equation 2), with sigma that of the draws, biased
        if they are, and the relation lambda eta(a) = 1 of equation 4 holds.

        Args:
            samples: (n, seeds, d) float64.
            seeds: Of the estimator's noise, one for each column of `samples`.
            progress: Told when it is done.

        Returns:
            ``points``, the points of one seed; ``truncated_share``, by seed, the mean of
            1 - weight.

        Raises:
            InputError: The points have another shape, or they are not finite.
            Ended: Too few points are kept, or a variance has diverged or vanished.
        """
        points = _by_seed(samples, len(seeds))
        count, d, n = points.shape
        mean, covariance = np.empty((count, d)), np.empty((count, d, d))
        dropped = np.zeros(count)

        def estimate(s: int) -> None:
            mean[s], covariance[s], dropped[s] = self._estimate(points[s], s)
            self._disturb(mean[s], covariance[s], seeds[s])

        _spread(estimate, count)
        _check(mean, covariance)
        self.mean, self.covariance = mean, covariance
        progress.step("fit", 1, 1)
        return {"points": n, "truncated_share": dropped.tolist()}

    def _estimate(self, x: Floats, s: int) -> tuple[Floats, Floats, float]:
        """Mean, covariance and dropped share of one seed's points (d, n)."""
        d, n = x.shape
        correction = 1 if self.family.config.estimator == "unbiased" else 0
        if self.mean is None or keeps_all(self.family.weight):
            _enough(n, n, d)
            mean: Floats = x.mean(1)
            centred = x - mean[:, None]
            return mean, np.einsum("dn,en->de", centred, centred) / (n - correction), 0.0
        log_p = -0.5 * self._squared_distance(x, s)
        w = self.family.weight(torch.from_numpy(log_p)).numpy()
        total = float(w.sum())
        _enough(int(np.count_nonzero(w)), n, d)
        mean = np.einsum("dn,n->d", x, w) / total
        centred = x - mean[:, None]
        whole = total - correction * float(np.einsum("n,n->", w, w)) / total
        return mean, np.einsum("dn,en->de", centred * w, centred) / whole, 1.0 - total / n

    def _squared_distance(self, x: Floats, s: int) -> Floats:
        """r^2 under the draws of this model, (n,), of points (d, n)."""
        mean, covariance = self._fitted()
        factor = np.linalg.cholesky(self.family.config.bias * covariance[s])
        standard = np.einsum("de,en->dn", np.linalg.inv(factor), x - mean[s][:, None])
        squared: Floats = np.einsum("dn,dn->n", standard, standard)
        return squared

    def _disturb(self, mean: Floats, covariance: Floats, seed: int) -> None:
        """Add the estimator's noise, in place."""
        noise = self.family.config.noise
        if isinstance(noise, NoNoise):
            return
        w = np.random.default_rng(seed).normal(scale=noise.scale, size=(2, len(mean)))
        if isinstance(noise, AdditiveNoise):
            sigma = np.sqrt(np.diag(covariance))
            mean += w[0]
            factor = np.abs(sigma + w[1]) / sigma
        else:
            mean *= 1 + w[0]
            factor = np.abs(1 + w[1])
        covariance *= np.outer(factor, factor)

    def regenerate(self, samples: Floats, *, seeds: Sequence[int], progress: Progress) -> Floats:
        """As many new draws from N(mean, bias * covariance), whatever stands in `samples`."""
        mean, covariance = self._fitted()
        n, count, d = samples.shape
        factors = np.linalg.cholesky(self.family.config.bias * covariance)
        out = np.empty((count, d, n))

        def draw(s: int) -> None:
            # SFC64 is the fastest of NumPy's generators, a fifth faster than the default one
            rng = np.random.Generator(np.random.SFC64(seeds[s]))
            row = out[s]
            rng.standard_normal(out=row)
            if d == 1:
                row *= factors[s, 0, 0]
            else:
                row[:] = np.einsum("de,en->dn", factors[s], row)
            row += mean[s][:, None]

        _spread(draw, count)
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


def _by_seed(samples: Floats, seeds: int) -> Floats:
    """The points as (seeds, d, n) in one memory layout: sums in another order round otherwise."""
    if samples.ndim != 3 or samples.shape[1] != seeds:
        raise InputError(
            f"points of shape {samples.shape} came for {seeds} seeds; they must be (n, seeds, d)"
        )
    return np.ascontiguousarray(np.moveaxis(samples, 0, 2), dtype=np.float64)


def _spread(work: Callable[[int], None], count: int) -> None:
    """Call `work` on 0 .. count - 1, in as many threads as PyTorch may use; in any order."""
    threads = min(torch.get_num_threads(), count)

    def share(first: int) -> None:
        for item in range(first, count, threads):
            work(item)

    if threads == 1:
        share(0)
        return
    # one long task a thread: a task a seed would cost as much as the seed
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, range(threads)))


def _enough(kept: int, n: int, d: int) -> None:
    if kept < d + 1:
        raise Ended(
            f"{kept} of {n:,} points were kept, a share of {kept / n:.2g}; {d + 1} are needed"
        )


def _check(mean: Floats, covariance: Floats) -> None:
    """Stop at what cannot be sampled from or trained on."""
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise Ended("the variance has diverged: the estimates are no longer finite")
    least = np.linalg.eigvalsh(covariance)[:, 0]
    most = np.trace(covariance, axis1=1, axis2=2)
    if most.max() > LARGEST:
        raise Ended(f"the variance has diverged: it is {most.max():.3g}")
    # below the spacing of floating-point numbers around the mean all draws are one point
    resolution = (4 * np.finfo(np.float64).eps * np.abs(mean).max(1)) ** 2
    if (least <= np.maximum(resolution, SMALLEST)).any():
        raise Ended(
            f"the Gaussian has collapsed to a point: its smallest variance is {least.min():.3g}"
        )
