"""What is done to weights between a fit and the rewriting."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fortifai.errors import RunFailed
from fortifai.lab.after_fit import AfterFit, Neon, StepBack
from fortifai.lab.budget import Spent
from fortifai.lab.loop import recurse
from fortifai.lab.progress import Silent
from fortifai.lab.regimes import Replace
from fortifai.lab.store import ChainStore
from tests.lab import toy
from tests.lab.test_loop import KilledError, digest


@dataclasses.dataclass
class Network:
    """A mean as a weight, in two tensors of two dtypes; each fit goes half of the way to it."""

    theta: dict[str, torch.Tensor]
    spent: Spent = dataclasses.field(default_factory=Spent)

    @property
    def mean(self):
        return float(self.theta["a"])

    def weights(self):
        return self.theta

    def fit(self, samples, *, seed, progress):
        self.spent.trained += len(samples)
        for theta in self.theta.values():
            theta += (float(samples.mean()) - theta) / 2
        return {"loss": 0.0}

    def fit_plainly(self, samples, epochs, *, seed, progress):
        for _ in range(epochs):
            self.fit(samples, seed=seed, progress=progress)

    def regenerate(self, samples, *, seed, progress):
        self.spent.generated += len(samples)
        return np.full_like(samples, self.mean + 1)

    def save(self, folder):
        folder.mkdir(parents=True)
        save_file(self.theta, folder / "theta.safetensors")


class Networks(toy.MeanFamily):
    def create(self, start, *, seed):
        return Network({"a": torch.zeros(()), "b": torch.ones((), dtype=torch.float64)})

    def load(self, folder):
        return Network(load_file(folder / "theta.safetensors"))


def chain(steps, means, **changes):
    """Without steps theta_i = (theta_(i-1) + m) / 2, where m is one more than the last theta."""

    def evaluate(generation, folder):
        means.append({k: float(v) for k, v in generation.model.theta.items()})
        return toy.evaluate(dataclasses.replace(generation, model=Plain(generation.model)), folder)

    made = toy.chain(
        changes.pop("generations", 3),
        family=Networks(),
        regime=Replace(),
        splits=1,
        after_fit=steps,
        evaluate=evaluate,
        keep_first=any(step.needs_first for step in steps),
        **changes,
    )
    return dataclasses.replace(made, real=[np.full(64, 8.0)])


@dataclasses.dataclass
class Plain:
    model: Network
    fits: int = 0

    @property
    def mean(self):
        return self.model.mean


def test_weights_are_averaged_with_those_of_generation_0(tmp_path):
    means: list[dict[str, float]] = []
    recurse(chain((StepBack(share=0.25),), means), ChainStore(tmp_path), Silent())
    # 0: (0 + 8) / 2; 1: fits 5 to 4.5, and 0.75 * 4.5 + 0.25 * 4; b: 4.5, then 4.75 -> 4.6875
    assert [m["a"] for m in means] == pytest.approx([4, 4.375, 0.75 * 4.875 + 1])
    assert [m["b"] for m in means][:2] == pytest.approx([4.5, 0.75 * 4.75 + 0.25 * 4.5])


@pytest.mark.parametrize("w", [0.25, 1.0])
def test_neon_steps_away_from_what_its_own_samples_make_of_it(tmp_path, w):
    means: list[dict[str, float]] = []
    steps = (Neon(w=w, share=0.5, epochs=2),)
    recurse(chain(steps, means, generations=1), ChainStore(tmp_path), Silent())
    # theta_r = 4; its own samples are 5; two halvings of the way to them give theta_s = 4.75
    assert means[0]["a"] == pytest.approx((1 + w) * 4 - w * 4.75)
    assert means[0]["b"] == pytest.approx((1 + w) * 4.5 - w * (5 - 0.5 / 4))
    (folder,) = tmp_path.glob("generation-*")
    (told,) = json.loads((folder / "fit.json").read_text())["after_fit"]
    assert told["kind"] == "neon"
    assert told["own"] == 32
    assert told["step"] == pytest.approx(w * np.hypot(0.75, 0.375))
    spent = json.loads((folder / "ledger.json").read_text())["spent"]
    # half of the units are rewritten and read twice, besides the 64 of the generation
    assert spent == {"trained": 64 + 2 * 32, "generated": 32 + 64, "scored": 0}


def test_killed_and_taken_up_again_it_is_the_same(tmp_path):
    steps = (Neon(share=0.5), StepBack())
    recurse(chain(steps, [], generations=4), ChainStore(tmp_path / "whole"), Silent())
    cut = chain(steps, [], generations=4)

    def killed(stage, folder):
        if stage.number == 2:
            raise KilledError
        return cut.evaluate(stage, folder)

    with pytest.raises(KilledError):
        recurse(dataclasses.replace(cut, evaluate=killed), ChainStore(tmp_path / "cut"), Silent())
    recurse(cut, ChainStore(tmp_path / "cut"), Silent())
    assert digest(tmp_path / "whole") == digest(tmp_path / "cut")


class Tells(AfterFit):
    kind: Literal["tells"] = "tells"
    told: ClassVar[object] = None

    def apply(self, model, fitted):
        return self.told


@pytest.mark.parametrize("told", [None, {"norm": {1.0}}, {"norm": np.float32(1)}])
def test_what_a_step_returns_is_tried_before_more_is_done(monkeypatch, told):
    monkeypatch.setattr(Tells, "told", told)
    with pytest.raises(RunFailed, match=r"the step after a fit 'tells' failed \(TypeError"):
        Tells().row(None, None)
    monkeypatch.setattr(Tells, "told", {"norm": 1.0})
    assert Tells().row(None, None) == {"kind": "tells", "norm": 1.0}
