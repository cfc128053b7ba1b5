"""The measures of a density's generation, on a `Generation` of `PointsDomain`.

To add one, write a function with its metadata and name it in `MEASURES`. The functions on arrays
are in `fortifai.points.distances`. Everything is by seed, (S, ...).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from fortifai.lab.measures import Generation, Headline, Line, Measure, Score, measure, once
from fortifai.points import distances
from fortifai.points.sources import Mixture

if TYPE_CHECKING:
    from typing import Protocol

    from fortifai.lab.domain import Model
    from fortifai.points.domain import PointsDomain

    class Density(Model, Protocol):
        """A model of a family of points."""

        @property
        def mixtures(self) -> Sequence[Mixture]:
            """One for each seed."""

    PointsGeneration = Generation[Density, PointsDomain]

Floats = NDArray[np.float64]

ORIGIN = "origin.safetensors"
"""The mixture of generation 0, where no true one is known."""
SHOWN_POINTS = 400
"""Points of each generation that are kept for the report's pictures."""


@once
def rewritten(generation: PointsGeneration) -> Floats:
    """(S, n, d): all that this generation wrote."""
    written = [generation.rewritten[k] for k in sorted(generation.rewritten)]
    return _by_seed(np.concatenate(written))


def _by_seed(samples: Floats) -> Floats:
    return np.moveaxis(samples, 1, 0) if samples.ndim == 3 else samples[None]


@once
def moments(generation: PointsGeneration) -> tuple[Floats, Floats]:
    """Mean (S, d) and covariance (S, d, d) of each seed's density."""
    mixtures = generation.model.mixtures
    weights = np.stack([m.weights / m.weights.sum() for m in mixtures])
    means = np.stack([m.means for m in mixtures])
    covariances = np.stack([m.covariances for m in mixtures])
    mean = np.einsum("sk,skd->sd", weights, means)
    around = means - mean[:, None]
    within = np.einsum("sk,skde->sde", weights, covariances)
    return mean, within + np.einsum("sk,skd,ske->sde", weights, around, around)


@once
def origin(generation: PointsGeneration) -> Sequence[Mixture]:
    """What mixtures are compared with: the truth, or each seed's generation 0."""
    mixtures, truth = generation.model.mixtures, generation.domain.truth
    if truth is not None:
        return [truth] * len(mixtures)
    path, fields = generation.origin / ORIGIN, ("weights", "means", "covariances")
    if generation.number == 0:
        save_file({f: np.stack([getattr(m, f) for m in mixtures]) for f in fields}, path)
    found = load_file(path)
    return [Mixture(*parts) for parts in zip(*(found[f] for f in fields), strict=True)]


def _scores(
    generation: PointsGeneration,
    name: str,
    values: Floats,
    on: str,
    n: int,
    stderr: float | None = None,
) -> Iterator[Score]:
    """A score for each of (S,) values; where a chain has several seeds, each says its own."""
    config = generation.domain.config
    if not config.together:
        yield Score(name, float(values[0]), on, n, stderr)
        return
    for seed, value in zip(config.seeds, values, strict=True):
        yield Score(name, float(value), on, n, seed=seed)


def _size(generation: PointsGeneration) -> int:
    return int(generation.fit["points"])


@measure(
    "variance.ratio",
    title="Variance of the fitted density",
    panel="Moments",
    unit="over that of the real one",
    log=True,
    headlines=[Headline("variance", "variance.ratio", "model", ".4g")],
)
def variance(generation: PointsGeneration) -> Iterator[Score]:
    """Over that of the real distribution, mean over dimensions; 1: nothing is lost."""
    real = np.diag(generation.domain.covariance)
    ratios = (np.diagonal(moments(generation)[1], axis1=1, axis2=2) / real).mean(1)
    yield from _scores(generation, "variance.ratio", ratios, "model", _size(generation))


@measure(
    "mean.drift",
    title="Drift of the mean",
    panel="Tails and centre",
    unit="real standard deviations",
    direction="lower",
    caption="Distance of the fitted mean from the real one.",
)
def drift(generation: PointsGeneration) -> Iterator[Score]:
    """Distance of the fitted mean from the real one, in real standard deviations.

    |D^-1 (mean - real mean)| / sqrt(d), with D the real standard deviations.
    """
    domain = generation.domain
    scale = np.sqrt(np.diag(domain.covariance))
    standard = (moments(generation)[0] - domain.mean) / scale
    distance = np.sqrt((standard**2).mean(1))
    yield from _scores(generation, "mean.drift", distance, "model", _size(generation))


@measure(
    "wasserstein",
    title="Wasserstein-1 distance",
    panel="Distance from the real distribution",
    unit="to held-out points",
    direction="lower",
    headlines=[Headline("Wasserstein-1", "wasserstein", "rewritten", ".3g")],
)
def wasserstein(generation: PointsGeneration) -> Iterator[Score]:
    """Between what was generated and held-out real points; sliced in more than one dimension."""
    x = rewritten(generation)
    values = distances.wasserstein(x, generation.domain.held_out)
    yield from _scores(generation, "wasserstein", values, "rewritten", x.shape[1])


@measure(
    "tail",
    title="Points in the tails",
    panel="Tails and centre",
    unit="share of the draws",
    real=True,
    lines=[
        Line("Beyond 2 sigma", "tail.2sigma", "rewritten", "real"),
        Line("Beyond 3 sigma", "tail.3sigma", "rewritten", "real"),
    ],
    headlines=[Headline("tail 3 sigma", "tail.3sigma", "rewritten", ".2%")],
)
def tails(generation: PointsGeneration) -> Iterator[Score]:
    """Share of what was generated beyond 2 and 3 sigma, in real Mahalanobis distances."""
    domain, x = generation.domain, rewritten(generation)
    n, d = x.shape[1:]
    for sigmas in (2, 3):
        mass = distances.tail_mass(x, domain.mean, domain.covariance, sigmas)
        share, name = float(mass[0]), f"tail.{sigmas}sigma"
        error = math.sqrt(share * (1 - share) / n)
        yield from _scores(generation, name, mass, "rewritten", n, error)
        if generation.number == 0:
            real = _by_seed(np.concatenate(list(generation.real))).reshape(1, -1, d)
            own = distances.tail_mass(real, domain.mean, domain.covariance, sigmas)
            yield Score(name, float(own[0]), "real", real.shape[1])


@measure(
    "components.kept",
    title="Components that are left",
    panel="Distance from the real distribution",
    unit="of the mixture",
    direction="higher",
    headlines=[Headline("components", "components.kept", "model", ".3g")],
)
def components(generation: PointsGeneration) -> Iterator[Score]:
    """Those of a mixture that still have weight and spread."""
    mixtures, covariance = generation.model.mixtures, generation.domain.covariance
    count = len(mixtures[0].weights)
    if count == 1:
        return
    kept = [
        distances.components_kept(m.weights, m.covariances, reference_covariance=covariance)
        for m in mixtures
    ]
    yield from _scores(generation, "components.kept", np.array(kept, float), "model", count)


@measure(
    "l2",
    title="L2 distance of densities",
    panel="Distance from the real distribution",
    unit="closed form",
    direction="lower",
)
def mixture_distances(generation: PointsGeneration) -> Iterator[Score]:
    """Between the fitted and the true density, or generation 0's where no true one is known."""
    pairs = zip(generation.model.mixtures, origin(generation), strict=True)
    values = np.array([distances.mixture_l2(a, b) for a, b in pairs])
    yield from _scores(generation, "l2", values, "model", _size(generation))


@measure(
    "log_likelihood",
    title="Held-out points",
    panel="Distance from the real distribution",
    unit="log-density, nats",
    direction="higher",
)
def likelihood(generation: PointsGeneration) -> Iterator[Score]:
    """Mean log-density of held-out real points."""
    held_out, count = generation.domain.held_out, len(generation.model.mixtures)
    if generation.real[0].ndim == 3:
        stack = np.broadcast_to(held_out[:, None], (len(held_out), count, held_out.shape[1]))
        log_p = generation.model.log_prob(stack).T
    else:
        log_p = generation.model.log_prob(held_out)[None]
    error = distances.standard_error(log_p[0])
    values = log_p.mean(1)
    yield from _scores(generation, "log_likelihood", values, "held-out", len(held_out), error)


@measure(
    "train.truncated_share",
    title="Truncated share",
    panel="Training",
    unit="share of points",
    headlines=[Headline("truncated", "train.truncated_share", "train", ".0%")],
)
def training(generation: PointsGeneration) -> Iterator[Score]:
    """1 minus the mean weight of a point in training: the share truncated, 0 where all are kept."""
    shares = np.atleast_1d(np.asarray(generation.fit["truncated_share"], dtype=np.float64))
    yield from _scores(generation, "train.truncated_share", shares, "train", _size(generation))


MEASURES: tuple[Measure, ...] = (
    *(variance, wasserstein, mixture_distances, components, likelihood, tails, drift, training),
)
"""In the order in which the report draws them."""


def picture(generation: PointsGeneration) -> dict[str, Any]:
    """What the report draws of a generation: some points, or a histogram, of the first seed.

    In one dimension: counts in equal bins over five real standard deviations on either side, what
    lies outside in the outermost ones. In more: points and components in the first two
    dimensions.
    """
    domain = generation.domain
    centre, scale = domain.mean, np.sqrt(np.diag(domain.covariance))
    groups = {"rewritten": rewritten(generation)[0]}
    if generation.number == 0:
        groups["real"] = _by_seed(np.concatenate(list(generation.real)))[0]
    if len(centre) == 1:
        n = len(groups["rewritten"])
        bins = 80 if n >= 5000 else 40 if n > 500 else 20
        edges = centre[0] + scale[0] * np.linspace(-5, 5, bins + 1)
        return {
            "edges": edges.tolist(),
            "counts": {
                name: np.histogram(np.clip(x[:, 0], edges[0], edges[-1]), bins=edges)[0].tolist()
                for name, x in groups.items()
            },
        }
    mixture = generation.model.mixtures[0]
    return {
        "points": {name: np.round(x[:SHOWN_POINTS, :2], 4).tolist() for name, x in groups.items()},
        "components": [
            {"weight": float(w), "mean": m[:2].tolist(), "covariance": c[:2, :2].tolist()}
            for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
        ],
    }
