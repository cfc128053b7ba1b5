"""A cache with room reads as a model without any does, and copies nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from fortifai.models import kv_cache
from fortifai.models.shared_prefix import cache_name

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 40,
    "max_position_embeddings": 64,
}
PROMPT, MORE = 7, 12


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).double().eval()


def gemma(window: int) -> Any:
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"] * 2
    config = Gemma3TextConfig(**SIZES, sliding_window=window, layer_types=kinds)
    return Gemma3ForCausalLM(config).double().eval()


@torch.inference_mode()
def read(model: Any, ids: Tensor, room: int) -> tuple[Tensor, list[list[int]], Any]:
    """Logits after each token behind the prompt, where each layer's keys lay, and the cache."""
    name, logits, places = cache_name(model), [], []
    answer = model(input_ids=ids[:, :PROMPT], use_cache=True)
    past = kv_cache.with_room(answer[name], room)
    for i in range(PROMPT, ids.shape[1]):
        answer = model(input_ids=ids[:, i : i + 1], use_cache=True, **{name: past})
        past = answer[name]
        logits.append(answer.logits[:, -1])
        places.append([layer.keys.data_ptr() for layer in past.layers])
    return torch.stack(logits, 1), places, past


@pytest.mark.parametrize(
    ("model", "moves"),
    [
        (llama(), [False, False, False, False]),
        (gemma(PROMPT + MORE + 1), [False, False, False, False]),
        # its windows slide, so these layers stay transformers' own, which move
        (gemma(PROMPT + MORE), [True, False, True, False]),
        (gemma(4), [True, False, True, False]),
    ],
    ids=["llama", "window-not-reached", "window-reached", "window-of-4"],
)
def test_it_reads_what_is_read_without_a_cache(model, moves):
    ids = torch.randint(0, 40, (3, PROMPT + MORE), generator=torch.Generator().manual_seed(1))
    logits, places, past = read(model, ids, MORE)
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits[:, PROMPT:]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)  # rounding of float64
    assert [len(set(layer)) > 1 for layer in zip(*places, strict=True)] == moves
    stock = {DynamicLayer, DynamicSlidingWindowLayer}
    assert [type(layer) in stock for layer in past.layers] == moves
    assert past.get_seq_length() == PROMPT + MORE


def test_more_than_there_is_room_for_is_an_error():
    ids = torch.zeros((1, PROMPT + 3), dtype=torch.long)
    with pytest.raises(RuntimeError):
        read(llama(), ids, 2)


def test_what_is_no_cache_of_transformers_stays_as_it_is():
    state = (torch.zeros(2),)
    assert kv_cache.with_room(state, 5) is state
    assert kv_cache.with_room(None, 5) is None
