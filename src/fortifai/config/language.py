"""The language model: its sizes, its training, and how it rewrites."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from fortifai.config.section import Section, Share
from fortifai.data.tokens import Bos


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
    """A causal language model: `base` (hub id or folder) or `scratch`, exactly one of them.

    `bos`: whether every sequence begins with the beginning-of-text token. ``auto``: where the
    model was trained so (`fortifai.data.tokens.special_tokens`); ``always``; ``never``.
    """

    kind: Literal["causal_lm"]
    base: str | None = None
    scratch: ScratchConfig | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    bos: Bos = "auto"

    @model_validator(mode="after")
    def _one_of(self) -> CausalLMConfig:
        if (self.base is None) == (self.scratch is None):
            raise ValueError(
                "family 'causal_lm' takes exactly one of base (a hub id or a folder) and scratch "
                "(sizes of a new model)"
            )
        return self


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


Epochs = Annotated[float, Field(gt=0), AfterValidator(_whole)]
"""A number of epochs; a whole one stays an int, as it is written."""


class TrainConfig(Section):
    """How a generation is trained. `epochs` may be a fraction: 0.5 reads half of the blocks.

    `label_smoothing`, `confidence_penalty`, `z_loss` and `gem_beta` are the terms of what a token
    loses, beside its weight (`fortifai.losses.rows`).
    """

    epochs: Epochs = 10
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
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    confidence_penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    z_loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    gem_beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
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


class PassagesConfig(Section):
    """The passages of the first split that are followed through all generations."""

    count: Annotated[int, Field(ge=0)] = 3
    tokens: PositiveInt = 96
