"""Experiments on points: a Gaussian or a mixture, fitted again and again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from fortifai import theory
from fortifai.config import (
    Blobs,
    Circles,
    GaussianConfig,
    GaussianPoints,
    GMMConfig,
    Moons,
    NoNoise,
    PointFiles,
    PointsArm,
    PointsExperiment,
    ReplaceRegime,
    TruncateQuantileConfig,
    TwoGaussians,
    kept_share,
)
from fortifai.data import points
from fortifai.data.points import Mixture
from fortifai.errors import InputError
from fortifai.evals import points_view
from fortifai.evals.points import is_singular
from fortifai.evals.score import Score
from fortifai.evals.view import Stage
from fortifai.loop.progress import Progress
from fortifai.loop.seeds import derive
from fortifai.loop.store import write_json
from fortifai.models.gaussian import GaussianFamily
from fortifai.models.gmm import GMMFamily
from fortifai.setups.setup import Ground, fingerprint

Floats = NDArray[np.float64]

DRAWS = 1000
"""Points of each split where a source that draws is not told how many."""
HELD_OUT_SEED = 1
"""Root of the held-out draws and of the order of files: the same for all seeds of a run."""
PREDICTION = "prediction.json"


@dataclasses.dataclass(frozen=True)
class PointsInputs:
    """Everything drawn or read and checked, in memory: `fortifai.setups.Inputs`.

    Attributes:
        config: The experiment.
        real: Splits of shape (n, S, d) float64, S the number of seeds, or 1 where all seeds have
            the same points.
        held_out: (m, d) float64.
        mean: (d,) of the real distribution.
        covariance: (d, d) of the real distribution.
        truth: The real distribution where it is a known mixture.
        notes: What a user should know.
    """

    config: PointsExperiment
    real: tuple[Floats, ...]
    held_out: Floats
    mean: Floats
    covariance: Floats
    truth: Mixture | None
    notes: tuple[str, ...]

    @property
    def unit(self) -> str:
        """Points."""
        return "points"

    @property
    def splits(self) -> int:
        """How many splits there are."""
        return len(self.real)

    @property
    def split_size(self) -> int:
        """Points of one split."""
        return len(self.real[0])

    @property
    def sample_bytes(self) -> int:
        """Eight bytes a coordinate."""
        return 8 * len(self.mean)

    @property
    def model_bytes(self) -> int:
        """A few parameters."""
        d = len(self.mean)
        return int(8 * (d * d + d + 1) * max(self.real[0].shape[1], 8))

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Sizes of the data, and the share that each arm keeps."""
        d = len(self.mean)
        kept = {
            name: kept_share(arm.weight, d)
            for name, arm in self.config.arms.items()
            if arm.weight.kind != "keep"
        }
        facts: tuple[tuple[str, str], ...] = (
            ("splits", f"{len(self.real)} of {self.split_size:,} points in {d} dimensions"),
            ("held out", f"{len(self.held_out):,} points"),
        )
        if kept:
            told = ", ".join(f"{name} {share:.1%}" for name, share in kept.items())
            facts += (("kept", f"about {told} (of Gaussian points)"),)
        return facts

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all points."""
        return fingerprint((*self.real, self.held_out))

    def foundation(self, splits: int) -> str:
        """SHA-256 of the first splits."""
        return fingerprint(self.real[:splits])

    def effort(self, arm: str, samples: int) -> tuple[int, int]:
        """Every point is read once, and there are no steps."""
        return samples, 0

    def write(self, folder: Path, progress: Progress, *, before: Path | None = None) -> None:
        """Write the points, their moments, and what theory predicts."""
        arrays = {f"split-{k}": values for k, values in enumerate(self.real)}
        arrays |= {"held-out": self.held_out, "mean": self.mean, "covariance": self.covariance}
        if self.truth is not None:
            arrays |= {f"truth-{k}": v for k, v in dataclasses.asdict(self.truth).items()}
        arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
        save_file(arrays, folder / "points.safetensors")
        write_json(folder / PREDICTION, predictions(self))


@dataclasses.dataclass(frozen=True)
class PointsShared:
    """What `PointsInputs.write` wrote: `fortifai.setups.Shared`."""

    config: PointsExperiment
    real: tuple[Floats, ...]
    material: points_view.Material

    def ground(self, arm: str, seeds: tuple[int, ...], folder: Path) -> Ground:
        """The density of one arm, its points, and the measures."""
        settings = self.config.arms[arm]
        weight = settings.weight.build()
        columns = [self.config.seeds.index(seed) for seed in seeds]
        evaluate = functools.partial(_evaluate, material=self.material)
        if isinstance(settings.family, GaussianConfig):
            real = tuple(_columns(values, columns) for values in self.real)
            return Ground(GaussianFamily(settings.family, weight), real, evaluate)
        real = tuple(_columns(values, columns)[:, 0] for values in self.real)
        return Ground(GMMFamily(settings.family, weight), real, evaluate)


def _columns(values: Floats, columns: Sequence[int]) -> Floats:
    if values.shape[1] == 1:
        return np.repeat(values, len(columns), axis=1)
    return np.ascontiguousarray(values[:, columns])


def _evaluate(stage: Stage[Any], folder: Path, *, material: points_view.Material) -> list[Score]:
    view = points_view.PointsView(stage, material)
    scores = [score for measure in points_view.MEASURES for score in measure(view)]
    write_json(folder / "picture.json", points_view.picture(view))
    return scores


# --- reading ----------------------------------------------------------------------------------


def read(config: PointsExperiment, root: Path) -> PointsInputs:
    """Draw or read the points, and check them against what the arms ask for.

    Raises:
        InputError: Anything about them is wrong.
    """
    source, count = config.corpus.source, config.split_count
    if isinstance(source, PointFiles):
        real, held_out = _from_files(config, source, root)
    else:
        size = config.corpus.samples or DRAWS
        _check_memory(config, size)
        by_seed = [
            [_draw(config, size, derive(seed, "points", k)) for seed in config.seeds]
            for k in range(count)
        ]
        real = tuple(np.stack(drawn, axis=1) for drawn in by_seed)
        held_out = _draw(config, config.corpus.held_out, derive(HELD_OUT_SEED, "held-out"))
    pooled = np.concatenate([values.reshape(-1, values.shape[2]) for values in real])
    points.check_points(pooled, "the points")
    truth = _truth(config)
    mean, covariance = _moments(truth) if truth else (pooled.mean(0), np.cov(pooled.T, ddof=0))
    covariance = np.atleast_2d(covariance)
    if is_singular(covariance[None])[0]:
        raise InputError(
            "the points have too little spread in some direction beside the others for a "
            "covariance in float64; leave a column out, or add noise"
        )
    data = PointsInputs(config, real, held_out, mean, covariance, truth, ())
    for name, arm in config.arms.items():
        _check_arm(name, arm, data)
    return data


def _check_memory(config: PointsExperiment, size: int) -> None:
    points_ = size * config.split_count * len(config.seeds) + config.corpus.held_out
    need = 8 * getattr(config.corpus.source, "dimension", 2) * points_
    free = psutil.virtual_memory().available
    if need > free:
        raise InputError(
            f"{config.split_count:,} splits of {size:,} points for {len(config.seeds):,} seeds "
            f"need {need / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of memory are free; ask for fewer"
        )


def _from_files(
    config: PointsExperiment, source: PointFiles, root: Path
) -> tuple[tuple[Floats, ...], Floats]:
    found = points.read_points(source.files, root)
    points.check_points(found, ", ".join(source.files))
    # files are often sorted; splits and held-out points must be alike
    order = np.random.default_rng(derive(HELD_OUT_SEED, "order")).permutation(len(found))
    held_out, rest = np.split(found[order], [config.corpus.held_out])
    count = config.split_count
    size = config.corpus.samples or len(rest) // count
    if size < 1 or size * count > len(rest):
        raise InputError(
            f"{', '.join(source.files)} has {len(found):,} points, too few for {count} splits of "
            f"{max(size, 1):,} and {config.corpus.held_out:,} held out; give more points, or set "
            "corpus.samples and corpus.held_out lower"
        )
    return tuple(rest[k * size : (k + 1) * size, None] for k in range(count)), held_out


def _draw(config: PointsExperiment, n: int, seed: int) -> Floats:
    source = config.corpus.source
    if isinstance(source, GaussianPoints):
        return points.gaussian(
            n, dimension=source.dimension, mean=source.mean, scale=source.scale, seed=seed
        )
    if isinstance(source, TwoGaussians):
        return points.two_gaussians(n, distance=source.distance, seed=seed)
    if isinstance(source, Blobs):
        return points.blobs(
            n, centers=source.centers, dimension=source.dimension, spread=source.spread, seed=seed
        )
    if isinstance(source, Moons):
        return points.moons(n, noise=source.noise, seed=seed)
    assert isinstance(source, Circles)
    return points.circles(n, noise=source.noise, factor=source.factor, seed=seed)


def _truth(config: PointsExperiment) -> Mixture | None:
    source = config.corpus.source
    if isinstance(source, GaussianPoints):
        d = source.dimension
        covariance = source.scale**2 * np.eye(d)
        return Mixture(np.ones(1), np.full((1, d), source.mean), covariance[None])
    if isinstance(source, TwoGaussians):
        return points.two_gaussians_mixture(source.distance)
    if isinstance(source, Blobs):
        k, d = source.centers, source.dimension
        covariances = np.repeat(source.spread**2 * np.eye(d)[None], k, axis=0)
        return Mixture(np.full(k, 1 / k), points.blob_centers(k, d), covariances)
    return None


def _moments(mixture: Mixture) -> tuple[Floats, Floats]:
    mean = mixture.weights @ mixture.means
    around = mixture.means - mean
    within = np.einsum("k,kde->de", mixture.weights, mixture.covariances)
    return mean, within + np.einsum("k,kd,ke->de", mixture.weights, around, around)


def _check_arm(name: str, arm: PointsArm, data: PointsInputs) -> None:
    d, n = len(data.mean), data.split_size
    needed, what = d + 1, f"a Gaussian in {d} dimensions needs {d + 1}"
    if isinstance(arm.family, GMMConfig):
        needed = max(arm.family.components, 2)
        what = f"a mixture of {arm.family.components} components needs {needed}"
    share = kept_share(arm.weight, d)
    if n < needed:
        raise InputError(
            f"arm {name!r}: a split has {n:,} points and {what}; give more points (corpus.samples) "
            "or fewer components"
        )
    if n * share < needed:
        key = "quantile" if isinstance(arm.weight, TruncateQuantileConfig) else "a"
        raise InputError(
            f"arm {name!r}: weight.{key} would keep a share of {share:.2g}, "
            f"{n * share:.2g} of {n:,} points, and {what}; keep more (a larger quantile, a "
            "smaller a)"
        )


# --- what theory predicts ---------------------------------------------------------------------


def predictions(data: PointsInputs) -> dict[str, Any]:
    """Expected variance ratio by committed generation, and the interval of one seed.

    For arms of a Gaussian on Gaussian points whose training sets are replaced whole, one split;
    for others theory is silent. See `fortifai.theory`.
    """
    config, out = data.config, {}
    if not isinstance(config.corpus.source, GaussianPoints) or config.split_count != 1:
        return {}
    for name, arm in config.arms.items():
        if not isinstance(arm.regime, ReplaceRegime) or not isinstance(arm.family, GaussianConfig):
            continue
        recursion = _recursion(arm, data)
        shown = sorted({0, config.generations - 1, *range(0, config.generations, config.every)})
        row = {
            "generation": shown,
            "mean": theory.expected_variance(recursion, config.generations)[shown].tolist(),
        }
        if recursion.noise != "additive":  # for which there is no closed form
            low, high = theory.variance_interval(recursion, config.generations)
            row |= {"low": low[shown].tolist(), "high": high[shown].tolist()}
        out[name] = row
    return out


def _recursion(arm: PointsArm, data: PointsInputs) -> theory.Recursion:
    family, d = arm.family, len(data.mean)
    assert isinstance(family, GaussianConfig)
    scale = 0.0
    if not isinstance(family.noise, NoNoise):
        scale = family.noise.scale
        if family.noise.kind == "additive":  # theory counts in real standard deviations
            scale /= float(np.sqrt(data.covariance[0, 0]))
    return theory.Recursion(
        points=data.split_size,
        bias=family.bias,
        threshold=theory.threshold_of_share(kept_share(arm.weight, d), d),
        dimension=d,
        estimator=family.estimator,
        noise=family.noise.kind,
        noise_scale=scale,
    )


def load(config: PointsExperiment, folder: Path) -> PointsShared:
    """Read back what `PointsInputs.write` wrote."""
    found = load_file(folder / "points.safetensors")
    count = sum(name.startswith("split-") for name in found)
    truth = None
    if "truth-weights" in found:
        truth = Mixture(*(found[f"truth-{f}"] for f in ("weights", "means", "covariances")))
    vectorised = all(isinstance(a.family, GaussianConfig) for a in config.arms.values())
    material = points_view.Material(
        found["held-out"], found["mean"], found["covariance"], truth, vectorised
    )
    return PointsShared(config, tuple(found[f"split-{k}"] for k in range(count)), material)
