from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fortifai.errors import InputError
from fortifai.models import scratch

from .conftest import prose

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 4,
    "vocab_size": 300,
    "max_positions": 48,
}


def test_tokenizer_decodes_to_any_text(tokenizer):
    text = 'Zürich 大阪 \U0001f600\n\n = Title = \n  two  spaces , "quoted" \t.'
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_eos_written_in_a_text_does_not_end_a_document(tokenizer):
    ids = tokenizer("before <eos> after").input_ids
    assert tokenizer.eos_token_id == 0
    assert 0 not in ids
    assert tokenizer.decode(ids) == "before <eos> after"


def test_eos_is_bos_and_pad_too(tokenizer):
    assert tokenizer.bos_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id


def test_tokenizer_is_the_same_each_time():
    one, two = (scratch.train_tokenizer([prose(1, 2000)], 290) for _ in range(2))
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()


def test_tokenizer_gives_offsets(tokenizer):
    text = "Ada was born in Rome"
    answer = tokenizer(text, return_offsets_mapping=True)
    assert "".join(text[a:b] for a, b in answer["offset_mapping"]) == text


def test_a_vocabulary_smaller_than_bytes_is_refused():
    with pytest.raises(InputError, match="at least 257"):
        scratch.train_tokenizer(["text"], 256)


@pytest.mark.parametrize("architecture", scratch.ARCHITECTURES)
def test_sizes_are_those_asked_for(architecture):
    model = scratch.build(
        architecture, **SIZES, kv_heads=2, intermediate_size=64, tie_embeddings=False, seed=0
    )
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 2, 4)
    assert (config.num_key_value_heads, config.intermediate_size) == (2, 64)
    assert (config.vocab_size, config.max_position_embeddings) == (300, 48)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("architecture", scratch.ARCHITECTURES)
def test_weights_follow_the_seed_and_leave_the_global_generator(architecture):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (
        scratch.build(architecture, **SIZES, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("architecture", scratch.ARCHITECTURES)
def test_eos_can_be_learnt(architecture):
    # A pad token in the configuration would leave eos without a gradient as an input.
    model = scratch.build(architecture, **SIZES, tie_embeddings=False, seed=0)
    model(input_ids=torch.zeros(1, 5, dtype=torch.long)).logits.square().sum().backward()
    assert model.get_input_embeddings().weight.grad[0].abs().sum() > 0


def test_tied_embeddings_share_one_tensor():
    model = scratch.build("llama", **SIZES, seed=0)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_misspelt_architecture_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'llama'"):
        scratch.build("lama", **SIZES, seed=0)  # type: ignore[arg-type]


def test_real_text_goes_through_the_tokenizer_unchanged():
    path = Path(__file__).parents[2] / "../shared/data/wikitext2/wiki.test.raw"
    if not path.is_file():
        pytest.skip("needs shared/data/wikitext2/wiki.test.raw beside the project")
    text = path.read_text(encoding="utf-8")[:60_000]
    made = scratch.train_tokenizer(text.splitlines(keepends=True), 1000)
    ids = np.array(made(text).input_ids)
    assert len(made) == 1000
    assert ids.max() < 1000
    assert made.decode(ids) == text
