"""The family `causal_lm` as the loop sees it: a language model bound to one arm's settings."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from fortifai.data.tokens import SpecialTokens, special_tokens
from fortifai.errors import Diverged
from fortifai.lab.budget import Spent
from fortifai.lab.domain import draw_share, even_edges
from fortifai.lab.progress import Progress
from fortifai.lab.seeds import derive
from fortifai.losses.rows import RowLoss
from fortifai.models.causal_lm import BOS_BEFORE, SETTINGS_FILE, CausalLM
from fortifai.models.hub import ADAPTER
from fortifai.models.loading import describe
from fortifai.models.lora import Adapter
from fortifai.models.options import RegenerateOptions, Sample, TrainOptions
from fortifai.models.parallel import Team
from fortifai.weights import AnyWeight, Calibrated, Keep, Truncate

OWN_TEXT = 64
"""Tokens that a model writes for a fitted threshold after as many, as for `fortifai threshold`."""

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
        special: The model's special tokens; where it reads bos, a training block begins with it.
        untrained: Whether the base model has random weights.
    """

    base: Path
    scratch: Callable[[int], CausalLM]
    weight: AnyWeight | Calibrated
    train: TrainOptions
    regenerate: RegenerateOptions
    select: Select | None
    workdir: Path
    special: SpecialTokens
    untrained: bool = False

    @property
    def _block(self) -> int:
        """Text of a training block."""
        return self.train.block - len(self.special.front)

    def share(self, samples: Tokens, between: tuple[float, float], seed: int) -> Tokens:
        """A random share of the training blocks; see `fortifai.lab.domain.Family`."""
        return draw_share(samples, between, self._block, seed)

    def edges(self, samples: Tokens, *, unit: str | None) -> NDArray[np.int64]:
        """Edges of training blocks, or of documents, each with the end-of-text token behind it."""
        if unit != "document":
            return even_edges(len(samples), self._block)
        ends = np.flatnonzero(samples == self.special.end) + 1
        return np.unique([0, *ends.tolist(), len(samples)]).astype(np.int64)

    def text(self, samples: Tokens) -> str:
        """What tokens say, without special tokens."""
        return str(self._tokenizer.decode(samples, skip_special_tokens=True))

    @functools.cached_property
    def _tokenizer(self) -> PreTrainedTokenizerFast:
        return saved_tokens(self.base)[0]

    def create(self, start: Literal["base", "scratch"], *, seed: int) -> BoundLM:
        """The shared base model, or new random weights."""
        if start == "scratch":
            return BoundLM(self.scratch(seed), self, untrained=True)
        return BoundLM(CausalLM.load(self.base), self, pristine=True, untrained=self.untrained)

    def load(self, folder: Path) -> BoundLM:
        """The model that an earlier generation saved."""
        carried = self.carries and (folder / ADAPTER).is_file()
        return BoundLM(CausalLM.load(folder), self, Adapter.load(folder) if carried else None)

    @property
    def team(self) -> Team | None:
        """The processes of `train.parallel`."""
        parallel = self.train.parallel
        return None if parallel is None else Team(parallel, self.workdir)

    @property
    def carries(self) -> bool:
        """Whether a generation trains on the adapter of the one before."""
        return self.train.lora is not None and self.train.lora.carry


@dataclasses.dataclass
class BoundLM:
    """A language model with its arm's settings: `fortifai.lab.loop.Model`.

    Attributes:
        lm: The model, adapters merged into it.
        family: The arm's settings.
        adapter: What the model is beyond the family's base, where that is an adapter alone.
        pristine: Whether it is the base itself.
        untrained: Whether its weights are random.
    """

    lm: CausalLM
    family: CausalLMFamily
    adapter: Adapter | None = None
    pristine: bool = False
    untrained: bool = False

    @property
    def spent(self) -> Spent:
        """Where its tokens are counted."""
        return self.lm.spent

    @spent.setter
    def spent(self, spent: Spent) -> None:
        self.lm.spent = spent

    def fit(self, samples: Tokens, *, seed: int, progress: Progress) -> dict[str, Any]:
        """Train; see `CausalLM.fit`."""
        self.lm.close_engine()
        weight = self._settled(samples, seed)
        carried = self.adapter if self.family.carries else None
        if carried is not None:
            # taking an adapter out of the weights again would leave its rounding in them
            spent = self.spent
            del self.lm
            self.lm = CausalLM.load(self.family.base)
            self.spent = spent
        report = self.lm.fit(
            samples,
            weight,
            self.family.train,
            seed=seed,
            workdir=self.family.workdir,
            select=self.family.select,
            progress=progress,
            adapter=carried,
        )
        self.adapter = report.adapter if self.pristine or carried is not None else None
        self.pristine = self.untrained = False
        out = dataclasses.asdict(dataclasses.replace(report, adapter=None))
        # what is written down must be the same when the run is repeated
        del out["adapter"], out["seconds"]
        if isinstance(self.family.weight, Calibrated):
            out["threshold"] = cast(Truncate, weight).threshold
        return out

    def weights(self) -> dict[str, torch.Tensor]:
        """The parameters themselves; once they are changed, no adapter says what they are."""
        self.adapter, self.pristine = None, False
        self.lm.close_engine()
        return dict(self.lm.model.named_parameters())

    def fit_plainly(self, samples: Tokens, epochs: int, *, seed: int, progress: Progress) -> None:
        """Train by cross entropy for so many epochs; the last checkpoint counts."""
        plain = RowLoss().terms | {"epochs": epochs, "checkpoint": "last"}
        self.lm.fit(
            samples,
            Keep(),
            self.family.train.model_copy(update=plain),
            seed=seed,
            workdir=self.family.workdir,
            select=None,
            progress=progress,
        )

    def _settled(self, samples: Tokens, seed: int) -> AnyWeight:
        """The weight; a calibrated one by the confidences of the model that starts this fit."""
        weight = self.family.weight
        if not isinstance(weight, Calibrated):
            return weight
        if weight.own and self.untrained:
            return Truncate(1.0)  # it has no text of its own yet to be sure of
        if weight.own:
            log_p = self._of_own_text(samples, weight.rows, seed)
        else:
            log_p = self.lm.log_prob(samples[: weight.rows * self.family.train.block])
        if not np.isfinite(log_p).all():
            raise Diverged("the model has diverged: its log-probabilities are not finite")
        return weight.calibrate(np.exp(log_p.astype(np.float64)))

    def _of_own_text(self, samples: Tokens, rows: int, seed: int) -> NDArray[np.float32]:
        """Log p of what the model writes by sampling after pieces of `samples`, evenly spread."""
        lm = self.lm
        size = min(OWN_TEXT, (lm.positions - len(lm.special.front)) // 2, len(samples))
        starts = np.linspace(0, len(samples) - size, min(rows, len(samples) // size)).astype(int)
        prompts = samples[starts[:, None] + np.arange(size)]
        own = lm.write(prompts, size, Sample(kind="sample"), seed=derive(seed, "threshold"))
        scored: NDArray[np.float32] = lm.window_log_prob(np.hstack([prompts, own]))[:, -size:]
        return scored

    def regenerate(self, samples: Tokens, *, seed: int, progress: Progress) -> Tokens:
        """Rewrite; see `CausalLM.regenerate`."""
        family = self.family
        return self.lm.regenerate(
            samples,
            family.regenerate,
            seed=seed,
            progress=progress,
            workdir=family.workdir,
            team=family.team,
        )

    def log_prob(self, samples: Tokens) -> NDArray[np.float32]:
        """Log-probability of each token, nats."""
        return self.lm.log_prob(samples)

    def candidates(self, samples: Tokens, count: int) -> NDArray[np.void]:
        """The likeliest tokens at each place of a text; see `CausalLM.candidates`."""
        return self.lm.candidates(samples, count)

    def document_log_prob(self, documents: Sequence[Tokens]) -> NDArray[np.float64]:
        """Mean log-probability of each document; see `CausalLM.document_log_prob`."""
        return self.lm.document_log_prob(documents)

    def continuation_log_prob(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """Log-probability of continuations; see `CausalLM.continuation_log_prob`."""
        return self.lm.continuation_log_prob(pairs)

    def save(self, folder: Path) -> None:
        """Write the weights and the tokenizer, or the adapter alone where that is enough."""
        self.lm.save(folder, None if self.adapter is None else (self.adapter, self.family.base))


def saved_tokens(folder: Path) -> tuple[PreTrainedTokenizerFast, SpecialTokens]:
    """The tokenizer and the special tokens of a model that `CausalLM.save` wrote."""
    tokenizer, config = describe(str(folder))
    saved = json.loads((folder / SETTINGS_FILE).read_text("utf-8"))
    return tokenizer, special_tokens(tokenizer, config, bos=saved.get("bos", BOS_BEFORE))


def from_config(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A model of this configuration with random fp32 weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def count_parameters(build: Callable[[], PreTrainedModel]) -> int:
    """Parameters of the model that `build` would make, without its memory."""
    with torch.device("meta"):
        return int(build().num_parameters())
