from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM

WORDS = ["Ada", "Bo", "Cy", "was", "born", "in", "Rome", "Oslo", "and", "painted", "ships", "."]


def prose(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words).tolist())


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return scratch.train_tokenizer([prose(0, 3000)], 300)


@pytest.fixture
def make(tokenizer: PreTrainedTokenizerFast) -> Callable[..., CausalLM]:
    """A tiny random LLaMA, 64 positions; `sharp` scales its logits to make it sure of itself."""

    def new(seed: int = 0, sharp: float = 1.0, positions: int = 64) -> CausalLM:
        model = scratch.build(
            "llama",
            hidden_size=32,
            layers=2,
            heads=4,
            kv_heads=2,
            vocab_size=len(tokenizer),
            max_positions=positions,
            tie_embeddings=False,
            seed=seed,
        )
        with torch.no_grad():
            model.lm_head.weight *= sharp
        return CausalLM(model, tokenizer, device="cpu")

    return new


@pytest.fixture
def lm(make: Callable[..., CausalLM]) -> CausalLM:
    # The initial weights give nearly uniform logits, where every argmax is a near tie; scaled, a
    # wrong context changes the choice.
    return make(seed=3, sharp=40.0)


@pytest.fixture
def stream(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """A stream of 217 tokens of which one is eos, at 100."""
    ids = np.random.default_rng(5).integers(1, len(tokenizer), 217).astype(np.int32)
    ids[100] = tokenizer.eos_token_id
    return ids
