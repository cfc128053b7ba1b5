"""The family `causal_lm` as the loop sees it: a language model bound to one arm's settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from fortifai.confidence import AnyWeight, Dynamic, Truncate
from fortifai.config import RegenerateConfig, TrainConfig
from fortifai.loop.progress import Progress
from fortifai.models.causal_lm import CausalLM

Tokens = NDArray[np.int32]
Select = Callable[[CausalLM], float]


@dataclasses.dataclass(frozen=True)
class CausalLMFamily:
    """Makes the language models of one arm.

    Attributes:
        base: Folder of the base model that all arms share.
        scratch: Makes the same architecture with random weights from a seed.
        weight: What each token counts.
        train: How a generation is trained.
        regenerate: How it rewrites.
        select: Score by which a checkpoint is chosen, or None for the last one.
        workdir: Where the trainer may write.
    """

    base: Path
    scratch: Callable[[int], CausalLM]
    weight: AnyWeight | Dynamic
    train: TrainConfig
    regenerate: RegenerateConfig
    select: Select | None
    workdir: Path

    @property
    def unit(self) -> int:
        """A training block: what stays together when a share is drawn."""
        return self.train.block

    def create(self, start: Literal["base", "scratch"], *, seeds: Sequence[int]) -> BoundLM:
        """The shared base model, or new random weights."""
        (seed,) = seeds
        lm = CausalLM.load(self.base) if start == "base" else self.scratch(seed)
        return BoundLM(lm, self)

    def load(self, folder: Path) -> BoundLM:
        """The model that an earlier generation saved."""
        return BoundLM(CausalLM.load(folder), self)


@dataclasses.dataclass(frozen=True)
class BoundLM:
    """A language model with its arm's settings: `fortifai.loop.recurse.Model`."""

    lm: CausalLM
    family: CausalLMFamily

    def fit(self, samples: Tokens, *, seeds: Sequence[int], progress: Progress) -> dict[str, Any]:
        """Train; see `CausalLM.fit`."""
        (seed,) = seeds
        weight = self._settled(samples)
        report = self.lm.fit(
            samples,
            weight,
            self.family.train,
            seed=seed,
            workdir=self.family.workdir,
            select=self.family.select,
            progress=progress,
        )
        out = dataclasses.asdict(report)
        del out["seconds"]  # what is written down must be the same when the run is repeated
        if isinstance(self.family.weight, Dynamic):
            out["threshold"] = cast(Truncate, weight).threshold
        return out

    def _settled(self, samples: Tokens) -> AnyWeight:
        """The weight; a dynamic one by the confidences that the model starts this fit with."""
        weight = self.family.weight
        if not isinstance(weight, Dynamic):
            return weight
        rows = samples[: weight.rows * self.family.train.block]
        return weight.settle(np.exp(self.lm.log_prob(rows)))

    def regenerate(self, samples: Tokens, *, seeds: Sequence[int], progress: Progress) -> Tokens:
        """Rewrite; see `CausalLM.regenerate`."""
        (seed,) = seeds
        return self.lm.regenerate(samples, self.family.regenerate, seed=seed, progress=progress)

    def log_prob(self, samples: Tokens) -> NDArray[np.float32]:
        """Log-probability of each token, nats."""
        return self.lm.log_prob(samples)

    def continuation_log_prob(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """Log-probability of continuations; see `CausalLM.continuation_log_prob`."""
        return self.lm.continuation_log_prob(pairs)

    def save(self, folder: Path) -> None:
        """Write the weights and the tokenizer."""
        self.lm.save(folder)


def from_config(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A model of this configuration with random fp32 weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def count_parameters(build: Callable[[], PreTrainedModel]) -> int:
    """Parameters of the model that `build` would make, without its memory."""
    with torch.device("meta"):
        return int(build().num_parameters())
