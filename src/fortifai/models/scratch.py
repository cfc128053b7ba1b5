"""A language model made from nothing: a byte-level BPE tokenizer and a model of given sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NotRequired, TypedDict, Unpack

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from fortifai.errors import InputError, nearest

EOS = "<eos>"
ARCHITECTURES = ("llama", "gemma")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer whose only special token, ``<eos>``, has id 0.

    Bytes are the alphabet, so every text can be encoded and decodes to itself; ``<eos>`` written
    out in a text is read as ordinary characters, never as the end of a document. ``<eos>`` is
    also the bos and the pad token.

    Args:
        texts: The clean corpus, a document at a time.
        vocab_size: Size asked for, at least 257 (256 bytes and ``<eos>``). A small corpus may
            give fewer tokens: build the model with ``len(tokenizer)``.

    Raises:
        InputError: `vocab_size` is below 257.
    """
    if vocab_size < 257:
        raise InputError(
            f"vocab_size is {vocab_size}; a byte-level tokenizer needs at least 257 tokens "
            "(256 bytes and the end of text), so raise it"
        )
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


class Sizes(TypedDict):
    """The sizes of a model.

    Attributes:
        hidden_size: Width of the residual stream.
        layers: Number of blocks.
        heads: Attention heads; divides `hidden_size`.
        kv_heads: Key and value heads; None, or left out, for as many as `heads`.
        intermediate_size: Width inside the feed-forward layer; None, or left out, for LLaMA's own
            rule, 8/3 of `hidden_size`, rounded up to a multiple of 32.
        vocab_size: ``len(tokenizer)``.
        max_positions: Longest sequence the model reads.
        tie_embeddings: Share the input and output embeddings, which is the default.
    """

    hidden_size: int
    layers: int
    heads: int
    kv_heads: NotRequired[int | None]
    intermediate_size: NotRequired[int | None]
    vocab_size: int
    max_positions: int
    tie_embeddings: NotRequired[bool]


def build(
    architecture: Literal["llama", "gemma"], *, seed: int, **sizes: Unpack[Sizes]
) -> PreTrainedModel:
    """A new model with random fp32 weights, the same for the same seed.

    Args:
        architecture: ``llama`` or ``gemma`` (Gemma 3, text only).
        seed: Of the weights; the global random state is left as it was.
        sizes: Its sizes.

    Raises:
        InputError: Unknown architecture.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"architecture is {architecture!r}{nearest(architecture, ARCHITECTURES)}; allowed "
            f"are {', '.join(ARCHITECTURES)}"
        )
    width, heads, longest = sizes["hidden_size"], sizes["heads"], sizes["max_positions"]
    settings = {
        "hidden_size": width,
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": sizes.get("kv_heads") or heads,
        "head_dim": width // heads,
        "intermediate_size": sizes.get("intermediate_size") or -(-width * 8 // (3 * 32)) * 32,
        "vocab_size": sizes["vocab_size"],
        "max_position_embeddings": longest,
        "tie_word_embeddings": sizes.get("tie_embeddings", True),
        "bos_token_id": 0,
        "eos_token_id": 0,
        # A pad id would freeze that row of the embedding, and <eos> must be learnt.
        "pad_token_id": None,
    }
    config: PreTrainedConfig
    if architecture == "llama":
        config = LlamaConfig(**settings)
    else:
        config = Gemma3TextConfig(
            **settings, sliding_window=longest, query_pre_attn_scalar=width // heads
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
