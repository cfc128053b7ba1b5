"""The measures of a density's generation: one view, computed once, for all of them.

To add a measure: write a function from `PointsView` to a list of scores, and name it in
`MEASURES`. The functions on arrays are in `fortifai.evals.points`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from fortifai.data.points import Mixture
from fortifai.evals import points
from fortifai.evals.score import Direction, Score
from fortifai.evals.view import Stage

Floats = NDArray[np.float64]

ORIGIN = "origin.safetensors"
"""The mixture of generation 0, where no true one is known."""
SHOWN = 400
"""Points of each generation that are kept for the report's pictures."""


@dataclasses.dataclass(frozen=True)
class Material:
    """What the measures of all generations share.

    Attributes:
        held_out: (m, d) real points that no generation trains on.
        mean: (d,) of the real distribution: its own where it is known, else of all real points.
        covariance: (d, d) of the same.
        truth: The real distribution where it is a known mixture.
        vectorised: The samples have a second axis, the seed.
    """

    held_out: Floats
    mean: Floats
    covariance: Floats
    truth: Mixture | None
    vectorised: bool


class PointsView:
    """A finished generation; everything is by seed, (S, ...)."""

    def __init__(self, stage: Stage[Any], material: Material) -> None:
        self.stage, self.material = stage, material

    @functools.cached_property
    def rewritten(self) -> Floats:
        """(S, n, d): all that this generation wrote."""
        written = [self.stage.rewritten[k] for k in sorted(self.stage.rewritten)]
        return self._by_seed(np.concatenate(written))

    def _by_seed(self, samples: Floats) -> Floats:
        return np.moveaxis(samples, 1, 0) if self.material.vectorised else samples[None]

    @functools.cached_property
    def mixtures(self) -> Sequence[Mixture]:
        """The fitted density of each seed."""
        mixtures: Sequence[Mixture] = self.stage.model.mixtures
        return mixtures

    @functools.cached_property
    def moments(self) -> tuple[Floats, Floats]:
        """Mean (S, d) and covariance (S, d, d) of each seed's density."""
        weights = np.stack([m.weights / m.weights.sum() for m in self.mixtures])
        means = np.stack([m.means for m in self.mixtures])
        covariances = np.stack([m.covariances for m in self.mixtures])
        mean = np.einsum("sk,skd->sd", weights, means)
        around = means - mean[:, None]
        within = np.einsum("sk,skde->sde", weights, covariances)
        return mean, within + np.einsum("sk,skd,ske->sde", weights, around, around)

    @functools.cached_property
    def origin(self) -> Sequence[Mixture]:
        """What mixtures are compared with: the truth, or each seed's generation 0."""
        if self.material.truth is not None:
            return [self.material.truth] * len(self.mixtures)
        path = self.stage.origin / ORIGIN
        if self.stage.generation == 0:
            stacked = {
                field: np.stack([getattr(m, field) for m in self.mixtures])
                for field in ("weights", "means", "covariances")
            }
            save_file(stacked, path)
        found = load_file(path)
        return [
            Mixture(*parts)
            for parts in zip(found["weights"], found["means"], found["covariances"], strict=True)
        ]

    def score(
        self,
        measure: str,
        values: Floats,
        on: str,
        n: int,
        *,
        unit: str,
        direction: Direction = "none",
        chance: float | None = None,
        stderr: float | None = None,
    ) -> Score:
        """A score of (S,) values: their mean, and each of them where a chain has several seeds."""
        if not self.material.vectorised:
            return Score(measure, float(values[0]), on, n, stderr, unit, chance, direction)
        error = points.standard_error(values) if len(values) > 1 else None
        by_seed = tuple(float(v) for v in values)
        mean = float(np.mean(values))
        return Score(measure, mean, on, n, error, unit, chance, direction, by_seed)


def variance(view: PointsView) -> list[Score]:
    """Variance of the fitted density over that of the real one, mean over dimensions."""
    real = np.diag(view.material.covariance)
    ratios = (np.diagonal(view.moments[1], axis1=1, axis2=2) / real).mean(1)
    return [view.score("variance.ratio", ratios, "model", _size(view), unit="ratio")]


def drift(view: PointsView) -> list[Score]:
    """Distance of the fitted mean from the real one, in real standard deviations.

    |D^-1 (mean - real mean)| / sqrt(d), with D the real standard deviations.
    """
    scale = np.sqrt(np.diag(view.material.covariance))
    standard = (view.moments[0] - view.material.mean) / scale
    distance = np.sqrt((standard**2).mean(1))
    return [
        view.score("mean.drift", distance, "model", _size(view), unit="sigma", direction="lower")
    ]


def distances(view: PointsView) -> list[Score]:
    """Wasserstein-1 between what was written and held-out real points; sliced if d > 1."""
    values = points.wasserstein(view.rewritten, view.material.held_out)
    return [
        view.score(
            "wasserstein", values, "rewritten", view.rewritten.shape[1], unit="", direction="lower"
        )
    ]


def tails(view: PointsView) -> list[Score]:
    """Share of what was written beyond 2 and 3 sigma of the real distribution."""
    material, d = view.material, view.rewritten.shape[2]
    out = []
    for sigmas in (2, 3):
        mass = points.tail_mass(view.rewritten, material.mean, material.covariance, sigmas)
        n = view.rewritten.shape[1]
        share = float(mass[0])
        out.append(
            view.score(
                f"tail.{sigmas}sigma",
                mass,
                "rewritten",
                n,
                unit="share",
                stderr=math.sqrt(share * (1 - share) / n),
            )
        )
        if view.stage.generation == 0:
            real = view._by_seed(np.concatenate(list(view.stage.real))).reshape(-1, d)
            own = points.tail_mass(real[None], material.mean, material.covariance, sigmas)
            out.append(Score(f"tail.{sigmas}sigma", float(own[0]), "real", len(real), unit="share"))
    return out


def components(view: PointsView) -> list[Score]:
    """Components that still have weight and spread; of mixtures of several only."""
    if len(view.mixtures[0].weights) == 1:
        return []
    kept = [
        points.components_kept(
            m.weights, m.covariances, reference_covariance=view.material.covariance
        )
        for m in view.mixtures
    ]
    values = np.array(kept, dtype=np.float64)
    return [
        view.score(
            "components.kept", values, "model", len(view.mixtures[0].weights), unit="components"
        )
    ]


def mixture_distances(view: PointsView) -> list[Score]:
    """Closed-form L2 distance to the true density, or to generation 0 where none is known."""
    values = np.array(
        [points.mixture_l2(a, b) for a, b in zip(view.mixtures, view.origin, strict=True)]
    )
    return [view.score("l2", values, "model", _size(view), unit="", direction="lower")]


def likelihood(view: PointsView) -> list[Score]:
    """Mean log-density of held-out real points, in nats."""
    held_out = view.material.held_out
    if view.material.vectorised:
        count = len(view.mixtures)
        stack = np.broadcast_to(held_out[:, None], (len(held_out), count, held_out.shape[1]))
        log_p = view.stage.model.log_prob(stack).T
    else:
        log_p = view.stage.model.log_prob(held_out)[None]
    error = points.standard_error(log_p[0])
    return [
        view.score(
            "log_likelihood",
            log_p.mean(1),
            "held-out",
            len(held_out),
            unit="nats",
            direction="higher",
            stderr=error,
        )
    ]


def training(view: PointsView) -> list[Score]:
    """Share of points that training left out."""
    fit = view.stage.fit
    shares = np.atleast_1d(np.asarray(fit["truncated_share"], dtype=np.float64))
    return [view.score("train.truncated_share", shares, "train", int(fit["points"]), unit="share")]


MEASURES: tuple[Callable[[PointsView], list[Score]], ...] = (
    variance,
    drift,
    distances,
    tails,
    components,
    mixture_distances,
    likelihood,
    training,
)


def _size(view: PointsView) -> int:
    return int(view.stage.fit["points"])


def picture(view: PointsView) -> dict[str, Any]:
    """What the report draws of a generation: some points, or a histogram, of the first seed.

    In one dimension: counts in equal bins over five real standard deviations on either side, what
    lies outside in the outermost ones. In more: points and components in the first two
    dimensions.
    """
    material = view.material
    centre, scale = material.mean, np.sqrt(np.diag(material.covariance))
    groups = {"rewritten": view.rewritten[0]}
    if view.stage.generation == 0:
        groups["real"] = view._by_seed(np.concatenate(list(view.stage.real)))[0]
    if len(centre) == 1:
        bins = (
            80 if len(groups["rewritten"]) >= 5000 else 40 if len(groups["rewritten"]) > 500 else 20
        )
        edges = centre[0] + scale[0] * np.linspace(-5, 5, bins + 1)
        return {
            "edges": edges.tolist(),
            "counts": {
                name: np.histogram(np.clip(x[:, 0], edges[0], edges[-1]), bins=edges)[0].tolist()
                for name, x in groups.items()
            },
        }
    mixture = view.mixtures[0]
    return {
        "points": {name: np.round(x[:SHOWN, :2], 4).tolist() for name, x in groups.items()},
        "components": [
            {"weight": float(w), "mean": m[:2].tolist(), "covariance": c[:2, :2].tolist()}
            for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
        ],
    }
