"""A family small enough to check by hand: a model is the mean of what it was trained on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from fortifai.lab import regimes
from fortifai.lab.budget import Spent
from fortifai.lab.domain import draw_share, even_edges
from fortifai.lab.loop import Chain
from fortifai.lab.measures import Score


@dataclasses.dataclass
class MeanModel:
    mean: float
    fits: int = 0
    spent: Spent = dataclasses.field(default_factory=Spent)

    def fit(self, samples, *, seed, progress):
        self.spent.trained += len(samples)
        self.mean = float(samples.mean()) + self.mean / 1000  # depends on where it started
        self.fits += 1
        progress.step("train", 1, 1)
        return {"loss": 0.0, "seeds": [seed]}

    def regenerate(self, samples, *, seed, progress):
        self.spent.generated += len(samples)
        noise = np.random.default_rng(seed).normal(size=samples.shape)
        return (self.mean + noise).astype(samples.dtype)

    def log_prob(self, samples):
        self.spent.scored += len(samples)
        return -((samples - self.mean) ** 2).astype(np.float32)

    def save(self, folder: Path):
        folder.mkdir(parents=True)
        (folder / "mean.json").write_text(json.dumps([self.mean, self.fits]))


class MeanFamily:
    def create(self, start, *, seed):
        return MeanModel(0.0 if start == "base" else seed / 2**32)

    def share(self, samples, between, seed):
        return draw_share(samples, between, 4, seed)

    def edges(self, samples, *, unit):
        return even_edges(len(samples), 4)

    def load(self, folder):
        return MeanModel(*json.loads((folder / "mean.json").read_text()))


def evaluate(stage, folder):
    (folder / "extra.txt").write_text(f"{stage.model.mean!r}\n")
    return [
        Score("mean", stage.model.mean, "train", 1),
        Score("fits", stage.model.fits, "train", 1),
    ]


FORTIFAI = regimes.Fortifai()


def chain(generations=4, *, init_from="previous", regime=FORTIFAI, save_weights="last", **changes):
    rng = np.random.default_rng(0)
    real = [rng.normal(size=64) for _ in range(changes.get("splits", generations))]
    return Chain(
        family=changes.get("family", MeanFamily()),
        regime=regime,
        cures=changes.get("cures", ()),
        after_fit=changes.get("after_fit", ()),
        init_from=init_from,
        generations=generations,
        seed=changes.get("seed", 0),
        real=real,
        evaluate=changes.get("evaluate", evaluate),
        eval_every=changes.get("eval_every", 1),
        save_weights=save_weights,
        save_samples=changes.get("save_samples", "all"),
        keep_first=changes.get("keep_first", False),
    )
