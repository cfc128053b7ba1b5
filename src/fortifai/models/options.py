"""The settings of a language model: its sizes, its training, and how it rewrites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from fortifai.data.tokens import Bos
from fortifai.losses.rows import RowLoss
from fortifai.options import Options, Share


class PretrainOptions(Options):
    """Training before generation 0 on text outside the splits, once for each base model."""

    epochs: PositiveInt = 3
    learning_rate: PositiveFloat = 1e-3
    batch_size: PositiveInt = 16
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    warmup_share: Share = 0.05


class ScratchOptions(Options):
    """A model made from sizes, with a BPE tokenizer trained on the clean corpus.

    `base_each_seed`: every seed begins with a base model of its own, drawn and pretrained from that
    seed; otherwise all share the first one's, and seeds differ in what follows alone.
    """

    architecture: Literal["llama", "gemma"] = "llama"
    hidden_size: PositiveInt = 256
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    kv_heads: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    vocab_size: Annotated[int, Field(ge=300)] = 4096
    max_positions: PositiveInt | None = None
    tie_embeddings: bool = True
    pretrain: PretrainOptions | None = None
    base_each_seed: bool = False

    @model_validator(mode="after")
    def _divisible(self) -> ScratchOptions:
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


class CausalLMOptions(Options):
    """A causal language model: `base` (hub id or folder) or `scratch`, exactly one of them.

    `bos`: whether every sequence begins with the beginning-of-text token. ``auto``: where the
    model was trained so (`fortifai.data.tokens.special_tokens`); ``always``; ``never``.
    """

    kind: Literal["causal_lm"] = "causal_lm"
    base: str | None = None
    scratch: ScratchOptions | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    bos: Bos = "auto"

    @model_validator(mode="after")
    def _one_of(self) -> CausalLMOptions:
        if (self.base is None) == (self.scratch is None):
            raise ValueError(
                "family 'causal_lm' takes exactly one of base (a hub id or a folder) and scratch "
                "(sizes of a new model)"
            )
        return self

    @property
    def untrained(self) -> bool:
        """Whether the base model has random weights."""
        return self.scratch is not None and self.scratch.pretrain is None

    @field_validator("dtype")
    @classmethod
    def _trains(cls, dtype: str) -> str:
        if dtype == "bfloat16":
            raise ValueError(
                "weights in bfloat16 do not train, since most steps of AdamW round to nothing; "
                "leave dtype at float32, and set train.precision to bf16 for the speed"
            )
        return dtype


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


Epochs = Annotated[float, Field(gt=0), AfterValidator(_whole)]
"""A number of epochs; a whole one stays an int, as it is written."""


class LoraOptions(Options):
    """Adapters of rank `r` on the linear layers, trained instead of the weights themselves.

    `targets`: last parts of layers' names. `modules_to_save`: modules trained whole. `carry`: the
    next generation trains the adapter on; otherwise it is merged, and the next begins a new one.
    """

    r: PositiveInt = 16
    alpha: PositiveFloat = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    modules_to_save: tuple[str, ...] = ()
    carry: bool = False


class ParallelOptions(Options):
    """Processes of one machine that fit and rewrite together, each with an accelerator if any.

    `ddp`: every process holds all of the model and of the optimizer's state. `fsdp`: each holds its
    share of weights, gradients and state (FSDP2), and for rewriting all of the weights.
    """

    kind: Literal["ddp", "fsdp"]
    processes: PositiveInt


# mypy does not know that sections are frozen
class TrainOptions(Options, RowLoss):  # type: ignore[misc]
    """How a generation is trained, and the terms of what a token loses beside its weight.

    `epochs` may be a fraction: 0.5 reads half of the blocks. `compile`: the layers run compiled by
    `torch.compile`.
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
    compile: bool = False
    normalize: Literal["valid", "kept"] = "valid"
    checkpoint: Literal["last", "best_held_out", "best_kr"] = "last"
    report_to: tuple[str, ...] = ()
    lora: LoraOptions | None = None
    parallel: ParallelOptions | None = None

    @model_validator(mode="after")
    def _check_terms(self) -> TrainOptions:
        self.__post_init__()
        return self

    @model_validator(mode="after")
    def _compiles(self) -> TrainOptions:
        if self.compile and self.lora is not None:
            raise ValueError(
                "compile makes one graph of the layers, and those of lora compute gradients of "
                "their own, which break it into pieces; leave one of them out"
            )
        if self.compile and self.parallel is not None:
            raise ValueError(
                "compile is for fits in one process, and parallel cuts the model or its gradients "
                "between processes; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _fits_processes(self) -> TrainOptions:
        if self.parallel is None:
            return self
        if self.lora is not None:
            raise ValueError(
                "lora trains in one process; leave parallel out, or lora, to train all weights"
            )
        if self.checkpoint != "last":
            raise ValueError(
                f"checkpoint is {self.checkpoint!r}, and processes that train together keep the "
                "last; set checkpoint to last, or leave parallel out"
            )
        if self.batch_size < self.parallel.processes:
            raise ValueError(
                f"batch_size is {self.batch_size} for {self.parallel.processes} processes, some of "
                "which would have no row; raise batch_size, or lower parallel.processes"
            )
        return self


class Greedy(Options):
    """The most probable token each time."""

    kind: Literal["greedy"] = "greedy"


class Beam(Options):
    """Beam search; the defaults are those of ForTIFAI's code."""

    kind: Literal["beam"]
    beams: Annotated[int, Field(ge=2)] = 5
    repetition_penalty: PositiveFloat = 3.0
    length_penalty: float = 1.0


class Sample(Options):
    """Random sampling, from the tokens that all of its cuts leave; see `generation.sample`.

    `top_p`, `top_k` (0: all), `min_p`: at least that share of the likeliest token's probability
    (2407.01082, whose authors use 0.05 to 0.1). `top_n_sigma`: within so many standard deviations
    of all logits below the highest one (2411.07641, whose authors use 1); None: no such cut.
    """

    kind: Literal["sample"]
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Share = 0.0
    top_n_sigma: PositiveFloat | None = None


def _unknown_to_vllm(decoding: Greedy | Beam | Sample) -> str:
    """What of a decoding vLLM does not have, or does otherwise; nothing if it has all of it."""
    if isinstance(decoding, Beam):
        # its beam search (0.32) takes no penalty, and no tokens that are never to be written
        return "engine vllm has no beam search with a repetition penalty, which decoding beam is"
    if isinstance(decoding, Greedy):
        return ""
    if decoding.top_n_sigma is not None:
        return f"engine vllm has no top_n_sigma, and decoding.top_n_sigma is {decoding.top_n_sigma}"
    if not 0.01 <= decoding.temperature <= 2:
        return (
            f"engine vllm takes temperatures from 0.01 to 2, and decoding.temperature is "
            f"{decoding.temperature}"
        )
    if decoding.min_p and decoding.top_p < 1:
        return (
            f"engine vllm cuts by min_p before top_p, not behind it, and decoding has min_p "
            f"{decoding.min_p} and top_p {decoding.top_p}"
        )
    return ""


DecodingConfig = Annotated[Greedy | Beam | Sample, Field(discriminator="kind")]


class Span(Options):
    """A context of `at_least` tokens, and of all before them in a chunk of `at_most`.

    The text is read once, in chunks of `at_most` tokens, each of which begins with the last
    `at_least` tokens of the one before it.
    """

    at_least: PositiveInt
    at_most: PositiveInt


def _context(value: Any) -> Any:
    """A context as it is kept: ``{exactly: N}`` is N, anything else a `Span`."""
    ways = "give a number of tokens N or {exactly: N}, or {at_least: N, at_most: M}"
    if isinstance(value, Span):
        return value
    given = dict(value) if isinstance(value, Mapping) else {"exactly": value}
    if given.keys() not in ({"exactly"}, {"at_least", "at_most"}):
        raise ValueError(f"a context names {', '.join(map(str, given)) or 'nothing'}; {ways}")
    for name, tokens in given.items():
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise ValueError(f"{name} is {tokens!r} and must be a number of tokens from 1; {ways}")
    if "exactly" in given:
        return given["exactly"]
    if given["at_least"] > given["at_most"]:
        raise ValueError(
            f"at_least {given['at_least']} is more than at_most {given['at_most']}; {ways}"
        )
    return Span(**given)


ContextConfig = Annotated[int | Span, BeforeValidator(_context)]
"""Tokens that a block is written from: a number of them (also ``{exactly: N}``), or a `Span`."""


class RegenerateOptions(Options):
    """How a generation rewrites the corpus.

    `blocks`: every `new_tokens` tokens are rewritten from the `context` before them. `documents`:
    the first `keep` tokens of each document stay, the rest is written anew. `batch_size`: blocks or
    documents that are written at a time; None for what memory holds. `engine`: what writes;
    `vllm` is `fortifai[vllm]`.
    """

    mode: Literal["blocks", "documents"] = "blocks"
    context: ContextConfig = 512
    new_tokens: PositiveInt = 32
    keep: PositiveInt = 64
    batch_size: PositiveInt | None = None
    decoding: DecodingConfig = Greedy()
    engine: Literal["transformers", "vllm"] = "transformers"

    @model_validator(mode="after")
    def _known_to_vllm(self) -> RegenerateOptions:
        fault = self.engine == "vllm" and _unknown_to_vllm(self.decoding)
        if fault:
            raise ValueError(f"{fault}; change decoding, or set engine to transformers")
        return self

    @model_validator(mode="after")
    def _room(self) -> RegenerateOptions:
        if isinstance(self.context, Span) and self.mode == "blocks" and not self.blocks:
            raise ValueError(
                f"context.at_most {self.context.at_most} is shorter than at_least "
                f"{self.context.at_least} + new_tokens {self.new_tokens}, so no block would be "
                "written; make at_most longer or the others shorter"
            )
        return self

    @property
    def first(self) -> int:
        """Tokens at the beginning of a text that no block rewrites."""
        return self.context.at_least if isinstance(self.context, Span) else self.context

    @property
    def longest(self) -> int:
        """Most tokens that a model reads for a block, the block among them."""
        if isinstance(self.context, Span):
            return self.context.at_most
        return self.context + self.new_tokens

    @property
    def blocks(self) -> int:
        """Blocks that are written from one chunk."""
        return (self.longest - self.first) // self.new_tokens

    @property
    def told(self) -> str:
        """The sum that must fit a model's positions, in messages."""
        if isinstance(self.context, Span):
            return f"context.at_most {self.context.at_most}"
        return f"context {self.context} + new_tokens {self.new_tokens}"
