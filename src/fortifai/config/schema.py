"""What an experiment's YAML may say: every key with its type, range and default."""

from __future__ import annotations

import functools
from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from fortifai.confidence import Focal, Keep, Truncate, Weight
from fortifai.config.corpora import CorpusConfig, QuestionsConfig, SplitsConfig
from fortifai.config.section import Section, Share
from fortifai.loop import regimes

# --- the confidence weights -------------------------------------------------------------------


class KeepConfig(Section):
    """Cross entropy: every token counts fully."""

    kind: Literal["keep"] = "keep"

    def build(self) -> Weight:
        """The weight object."""
        return Keep()


class TruncateConfig(Section):
    """Truncated cross entropy: tokens with p > threshold count nothing."""

    kind: Literal["truncate"]
    threshold: Share = 0.9

    def build(self) -> Weight:
        """The weight object."""
        return Truncate(self.threshold)


class FocalConfig(Section):
    """Focal loss: weight (1 - p)^gamma."""

    kind: Literal["focal"]
    gamma: Annotated[float, Field(ge=0)] = 2.0
    detach_weight: bool = False

    def build(self) -> Weight:
        """The weight object."""
        return Focal(self.gamma, detach_weight=self.detach_weight)


WeightConfig = Annotated[KeepConfig | TruncateConfig | FocalConfig, Field(discriminator="kind")]


# --- regimes ----------------------------------------------------------------------------------


class FortifaiRegime(Section):
    """Algorithm 1 of ForTIFAI: every old split rewritten once more, one new clean split."""

    kind: Literal["fortifai"] = "fortifai"

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        return regimes.fortifai


class ReplaceRegime(Section):
    """Each generation trains on the last generation's rewriting alone."""

    kind: Literal["replace"]

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        return regimes.replace


class AccumulateRegime(Section):
    """Each generation trains on the real data and all rewritings so far."""

    kind: Literal["accumulate"]

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        return regimes.accumulate


class AccumulateSubsampleRegime(Section):
    """As accumulate, drawn down to the size of the real data."""

    kind: Literal["accumulate-subsample"]

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        return regimes.accumulate_subsample


class MixRegime(Section):
    """A fixed share of synthetic data, or synthetic data and a share of the original on top.

    Exactly one of: `alpha`, the share of each training set that is rewritten, the rest real
    (2509.04796); `keep_original`, the share of the original added to the whole rewriting
    (2305.17493).
    """

    kind: Literal["mix"]
    alpha: Share | None = None
    keep_original: Share | None = None

    @model_validator(mode="after")
    def _one_of(self) -> MixRegime:
        if (self.alpha is None) == (self.keep_original is None):
            raise ValueError("regime 'mix' takes exactly one of alpha and keep_original")
        return self

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        if self.alpha is not None:
            return functools.partial(regimes.mix_alpha, alpha=self.alpha)
        assert self.keep_original is not None
        return functools.partial(regimes.mix_keep_original, keep_original=self.keep_original)


RegimeConfig = Annotated[
    FortifaiRegime | ReplaceRegime | AccumulateRegime | AccumulateSubsampleRegime | MixRegime,
    Field(discriminator="kind"),
]


# --- the language model -----------------------------------------------------------------------


class PretrainConfig(Section):
    """Training before generation 0 on text outside the splits, once for all arms and seeds."""

    epochs: PositiveInt = 3
    learning_rate: PositiveFloat = 1e-3
    batch_size: PositiveInt = 16
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    warmup_share: Share = 0.05


class ScratchConfig(Section):
    """A model made from sizes, with a BPE tokenizer trained on the clean corpus."""

    architecture: Literal["llama", "gemma"] = "llama"
    hidden_size: PositiveInt = 256
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    kv_heads: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    vocab_size: Annotated[int, Field(ge=300)] = 4096
    max_positions: PositiveInt | None = None
    tie_embeddings: bool = True
    pretrain: PretrainConfig | None = None

    @model_validator(mode="after")
    def _divisible(self) -> ScratchConfig:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by heads {self.heads}"
            )
        if (self.hidden_size // self.heads) % 2:
            raise ValueError(
                f"hidden_size / heads is {self.hidden_size // self.heads}: rotary positions need "
                "an even number"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}")
        return self


class CausalLMConfig(Section):
    """A causal language model: `base` (hub id or folder) or `scratch`, exactly one of them."""

    kind: Literal["causal_lm"]
    base: str | None = None
    scratch: ScratchConfig | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _one_of(self) -> CausalLMConfig:
        if (self.base is None) == (self.scratch is None):
            raise ValueError(
                "family 'causal_lm' takes exactly one of base (a hub id or a folder) and scratch "
                "(sizes of a new model)"
            )
        return self


class TrainConfig(Section):
    """How a generation is trained."""

    epochs: PositiveInt = 10
    learning_rate: PositiveFloat = 2e-5
    batch_size: PositiveInt = 64
    gradient_accumulation: PositiveInt = 1
    block: Annotated[int, Field(ge=2)] = 128
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_share: Share = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    normalize: Literal["valid", "kept"] = "valid"
    checkpoint: Literal["last", "best_held_out", "best_kr"] = "last"
    report_to: tuple[str, ...] = ()


class Greedy(Section):
    """The most probable token each time."""

    kind: Literal["greedy"] = "greedy"


class Beam(Section):
    """Beam search; the defaults are those of ForTIFAI's code."""

    kind: Literal["beam"]
    beams: Annotated[int, Field(ge=2)] = 5
    repetition_penalty: PositiveFloat = 3.0
    length_penalty: float = 1.0


class Sample(Section):
    """Random sampling."""

    kind: Literal["sample"]
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0


DecodingConfig = Annotated[Greedy | Beam | Sample, Field(discriminator="kind")]


class RegenerateConfig(Section):
    """How a generation rewrites the corpus.

    `blocks`: every `new_tokens` tokens are rewritten from the `context` tokens before them.
    `documents`: the first `keep` tokens of each document stay, the rest is written anew.
    """

    mode: Literal["blocks", "documents"] = "blocks"
    context: PositiveInt = 512
    new_tokens: PositiveInt = 32
    keep: PositiveInt = 64
    batch_size: PositiveInt | None = None
    decoding: DecodingConfig = Greedy()


# --- measures ---------------------------------------------------------------------------------


class FailureLevel(Section):
    """A level whose crossing counts as failure; see `fortifai.stats.time_to_failure`."""

    measure: str
    on: str = "split-0"
    level: float | Literal["half_gain"]
    direction: Literal["below", "above"] = "below"


class PassagesConfig(Section):
    """The passages of the first split that are followed through all generations."""

    count: Annotated[int, Field(ge=0)] = 3
    tokens: PositiveInt = 96


DEFAULT_LEVELS = (
    FailureLevel(measure="kr.mean", level=0.75),
    FailureLevel(measure="kr.mean", level="half_gain"),
)


class ArmConfig(Section):
    """One arm, whole: everything that may differ between arms."""

    weight: WeightConfig = KeepConfig()
    regime: RegimeConfig = FortifaiRegime()
    start: Literal["previous", "base", "scratch"] = "previous"
    family: CausalLMConfig
    train: TrainConfig = TrainConfig()
    regenerate: RegenerateConfig = RegenerateConfig()


class ExperimentConfig(Section):
    """The whole experiment, resolved: each arm stands by itself."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    generations: PositiveInt = 6
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    threads: PositiveInt = 1
    keep: Literal["last", "all"] = "last"
    baseline: str
    corpus: CorpusConfig
    splits: SplitsConfig = SplitsConfig()
    questions: QuestionsConfig = QuestionsConfig()
    passages: PassagesConfig = PassagesConfig()
    time_to_failure: tuple[FailureLevel, ...] = DEFAULT_LEVELS
    arms: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], ArmConfig],
        Field(min_length=1),
    ]

    @model_validator(mode="after")
    def _whole(self) -> ExperimentConfig:
        if self.baseline not in self.arms:
            raise ValueError(
                f"baseline {self.baseline!r} is not an arm; the arms are {', '.join(self.arms)}"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} names a seed twice")
        for name, arm in self.arms.items():
            self._check_arm(name, arm)
        return self

    def _check_arm(self, name: str, arm: ArmConfig) -> None:
        if arm.family != self.family:
            raise ValueError(f"arm {name!r}: all arms of one experiment share one family")
        if isinstance(arm.regime, FortifaiRegime) and self.split_count != self.generations:
            raise ValueError(
                f"arm {name!r}: regime 'fortifai' adds one clean split a generation, so "
                f"splits.count ({self.split_count}) must equal generations ({self.generations})"
            )
        limit = arm.family.scratch.max_positions if arm.family.scratch else None
        wanted = arm.regenerate.context + arm.regenerate.new_tokens
        if limit is not None and arm.regenerate.mode == "blocks" and wanted > limit:
            raise ValueError(
                f"arm {name!r}: context {arm.regenerate.context} + new_tokens "
                f"{arm.regenerate.new_tokens} is {wanted}, longer than the model's "
                f"max_positions {limit}"
            )
        if limit is not None and arm.train.block > limit:
            raise ValueError(
                f"arm {name!r}: block {arm.train.block} is longer than the model's "
                f"max_positions {limit}"
            )

    @property
    def split_count(self) -> int:
        """Number of splits the corpus is cut into."""
        if self.splits.count is not None:
            return self.splits.count
        grows = any(isinstance(arm.regime, FortifaiRegime) for arm in self.arms.values())
        return self.generations if grows else 1

    @property
    def family(self) -> CausalLMConfig:
        """The family that all arms share."""
        return next(iter(self.arms.values())).family

    @property
    def positions(self) -> int:
        """Positions a scratch model needs: the longest block or context of any arm."""
        return max(
            max(arm.train.block, arm.regenerate.context + arm.regenerate.new_tokens)
            for arm in self.arms.values()
        )
