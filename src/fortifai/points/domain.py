"""Experiments on points: a Gaussian or a mixture, fitted again and again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from fortifai import machine
from fortifai.errors import InputError, blaming
from fortifai.lab.domain import Family, fingerprint
from fortifai.lab.history import commits
from fortifai.lab.measures import Generation, Score
from fortifai.lab.progress import Progress
from fortifai.lab.regimes import Replace
from fortifai.lab.seeds import derive
from fortifai.lab.store import write_json
from fortifai.points import measures, theory
from fortifai.points.distances import is_singular
from fortifai.points.gaussian import GaussianOptions, NoNoise
from fortifai.points.sources import (
    GaussianPoints,
    Mixture,
    PointFiles,
    check_points,
    read_points,
)
from fortifai.points.spec import PointsArm, PointsExperiment
from fortifai.weights import TruncateQuantile, TruncateTails, Weight, keeps_all

Floats = NDArray[np.float64]

DRAWS = 1000
"""Points of each split where a source that draws is not told how many."""
HELD_OUT_SEED = 1
"""Root of the held-out draws and of the order of files: the same for all seeds of a run."""
PREDICTION = "prediction.json"


@dataclasses.dataclass(frozen=True)
class PointsDomain:
    """Points, drawn or read and checked: a `fortifai.lab.domain.Domain`.

    Attributes:
        config: The experiment.
        real: Splits of shape (n, S, d) float64, S the number of seeds, or 1 where all seeds have
            the same points.
        held_out: (m, d) float64.
        mean: (d,) of the real distribution: its own where it is known, else of all real points.
        covariance: (d, d) of the same.
        truth: The real distribution where it is a known mixture.
    """

    config: PointsExperiment
    real: tuple[Floats, ...]
    held_out: Floats
    mean: Floats
    covariance: Floats
    truth: Mixture | None
    notes: tuple[str, ...] = ()

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
            if not arm.weight.keeps_all
        }
        facts: tuple[tuple[str, str], ...] = (
            ("splits", f"{len(self.real)} of {len(self.real[0]):,} points in {d} dimensions"),
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

    def save(self, folder: Path, progress: Progress, *, before: Path | None = None) -> None:
        """Write the points, their moments, and what theory predicts."""
        arrays = {f"split-{k}": values for k, values in enumerate(self.real)}
        arrays |= {"held-out": self.held_out, "mean": self.mean, "covariance": self.covariance}
        if self.truth is not None:
            arrays |= {f"truth-{k}": v for k, v in dataclasses.asdict(self.truth).items()}
        arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
        save_file(arrays, folder / "points.safetensors")
        write_json(folder / PREDICTION, predictions(self))

    def chain(self, arm: str, seed: Any, folder: Path) -> tuple[Family[Any], Sequence[Floats]]:
        """The density of one arm, and the points of its seeds."""
        settings = self.config.arms[arm]
        if not keeps_all(settings.weight):
            import torch  # noqa: F401 - before the chain limits the threads of what is loaded
        seeds = seed if isinstance(seed, tuple) else (seed,)
        columns = [self.config.seeds.index(one) for one in seeds]
        real = tuple(_columns(values, columns) for values in self.real)
        family = settings.family.make(settings.weight)
        return family, real if settings.family.all_seeds else tuple(v[:, 0] for v in real)

    def evaluate(self, generation: Generation[Any, Any], folder: Path) -> list[Score]:
        """All scores; pictures are of the first seed."""
        scores = [score for measure in self.config.taken() for score in measure(generation)]
        write_json(folder / "picture.json", measures.picture(generation))
        return scores


def _columns(values: Floats, columns: Sequence[int]) -> Floats:
    if values.shape[1] == 1:
        return np.repeat(values, len(columns), axis=1)
    return np.ascontiguousarray(values[:, columns])


def kept_share(weight: Weight, dimension: int) -> float:
    """The share of Gaussian points of this dimension that a weight keeps, where it is known."""
    if isinstance(weight, TruncateTails):
        return theory.kept_share(weight.a, dimension)
    if isinstance(weight, TruncateQuantile):
        return weight.quantile
    return 1.0


# --- reading ----------------------------------------------------------------------------------


def read(config: PointsExperiment, root: Path) -> PointsDomain:
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
            [_draw(source, size, derive(seed, "points", k)) for seed in config.seeds]
            for k in range(count)
        ]
        real = tuple(np.stack(drawn, axis=1) for drawn in by_seed)
        held_out = _draw(source, config.corpus.held_out, derive(HELD_OUT_SEED, "held-out"))
    pooled = np.concatenate([values.reshape(-1, values.shape[2]) for values in real])
    check_points(pooled, "the points")
    truth = None if isinstance(source, PointFiles) else source.truth()
    mean, covariance = truth.moments() if truth else (pooled.mean(0), np.cov(pooled.T, ddof=0))
    covariance = np.atleast_2d(covariance)
    if is_singular(covariance[None])[0]:
        raise InputError(
            "the points have too little spread in some direction beside the others for a "
            "covariance in float64; leave a column out, or add noise"
        )
    data = PointsDomain(config, real, held_out, mean, covariance, truth)
    for name, arm in config.arms.items():
        _check_arm(name, arm, data)
    return data


def _draw(source: Any, count: int, seed: int) -> Floats:
    """So many points of a source, (count, d)."""
    with blaming(f"the corpus {source.kind!r}", source):
        found = np.asarray(source.draw(count, seed), dtype=np.float64)
    if found.ndim != 2 or len(found) != count:
        raise InputError(
            f"the corpus {source.kind!r} drew an array of shape {found.shape} for {count:,} points;"
            " return one of (points, dimensions)"
        )
    return found


def _check_memory(config: PointsExperiment, size: int) -> None:
    points_ = size * config.split_count * len(config.seeds) + config.corpus.held_out
    need = 8 * getattr(config.corpus.source, "dimension", 2) * points_
    free = machine.free_memory()
    if need > free:
        raise InputError(
            f"{config.split_count:,} splits of {size:,} points for {len(config.seeds):,} seeds "
            f"need {need / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of memory are free; ask for fewer"
        )


def _from_files(
    config: PointsExperiment, source: PointFiles, root: Path
) -> tuple[tuple[Floats, ...], Floats]:
    found = read_points(source.files, root)
    check_points(found, ", ".join(source.files))
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


def _check_arm(name: str, arm: PointsArm, data: PointsDomain) -> None:
    d, n = len(data.mean), len(data.real[0])
    needed, what = arm.family.needs(d)
    share = kept_share(arm.weight, d)
    if n < needed:
        raise InputError(
            f"arm {name!r}: a split has {n:,} points and {what}; give more points (corpus.samples) "
            "or fewer components"
        )
    if n * share < needed:
        key = "quantile" if isinstance(arm.weight, TruncateQuantile) else "a"
        raise InputError(
            f"arm {name!r}: weight.{key} would keep a share of {share:.2g}, "
            f"{n * share:.2g} of {n:,} points, and {what}; keep more (a larger quantile, a "
            "smaller a)"
        )


# --- what theory predicts ---------------------------------------------------------------------


def predictions(data: PointsDomain) -> dict[str, Any]:
    """Expected variance ratio by committed generation, and the interval of one seed.

    For arms of a Gaussian on Gaussian points whose training sets are replaced whole, one split;
    for others theory is silent. See `fortifai.points.theory`.
    """
    config, out = data.config, {}
    if not isinstance(config.corpus.source, GaussianPoints) or config.split_count != 1:
        return {}
    for name, arm in config.arms.items():
        if not isinstance(arm.regime, Replace) or not isinstance(arm.family, GaussianOptions):
            continue
        recursion = _recursion(arm, data)
        shown = commits(config.generations - 1, config.eval_every)
        row = {
            "generation": shown,
            "mean": theory.expected_variance(recursion, config.generations)[shown].tolist(),
        }
        if recursion.noise != "additive":  # for which there is no closed form
            low, high = theory.variance_interval(recursion, config.generations)
            row |= {"low": low[shown].tolist(), "high": high[shown].tolist()}
        out[name] = row
    return out


def _recursion(arm: PointsArm, data: PointsDomain) -> theory.Recursion:
    family, d = arm.family, len(data.mean)
    assert isinstance(family, GaussianOptions)
    scale = 0.0
    if not isinstance(family.noise, NoNoise):
        scale = family.noise.scale
        if family.noise.kind == "additive":  # theory counts in real standard deviations
            scale /= float(np.sqrt(data.covariance[0, 0]))
    return theory.Recursion(
        points=len(data.real[0]),
        bias=family.bias,
        threshold=theory.threshold_of_share(kept_share(arm.weight, d), d),
        dimension=d,
        estimator=family.estimator,
        noise=family.noise.kind,
        noise_scale=scale,
    )


def load(config: PointsExperiment, folder: Path) -> PointsDomain:
    """Read back what `PointsDomain.save` wrote."""
    found = load_file(folder / "points.safetensors")
    count = sum(name.startswith("split-") for name in found)
    truth = None
    if "truth-weights" in found:
        truth = Mixture(*(found[f"truth-{f}"] for f in ("weights", "means", "covariances")))
    real = tuple(found[f"split-{k}"] for k in range(count))
    moments = (found["mean"], found["covariance"])
    return PointsDomain(config, real, found["held-out"], *moments, truth)
