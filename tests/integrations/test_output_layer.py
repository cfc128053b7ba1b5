"""Which layer gives the logits, what is done to them, and what stands in for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

from fortifai.errors import InputError
from fortifai.integrations.output_layer import LogitTransform, PatchedHead, measured, output_layer

from .tiny import build

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def test_what_is_done_to_logits_is_found():
    plain = build()
    assert measured(plain, plain.forward) == LogitTransform(1.0, None)
    capped = Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=7.0))
    found = measured(capped, capped.forward)
    assert found.scale == 1
    assert found.cap == pytest.approx(7.0, rel=1e-6)  # float32
    scaled = GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0))
    found = measured(scaled, scaled.forward)
    assert found == LogitTransform(pytest.approx(0.25, rel=1e-6), None)
    x = torch.tensor([0.5, -30.0])
    torch.testing.assert_close(LogitTransform(0.25, 2.0)(x), 2 * torch.tanh(0.25 * x / 2))


def test_the_layer_is_patched_for_a_while_and_trying_leaves_no_trace():
    model = build().train()
    layer = output_layer(model)
    assert layer.linear.weight is model.get_output_embeddings().weight
    assert layer.classes == model.config.vocab_size
    state = torch.get_rng_state()
    measured(model, model.forward)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    with PatchedHead(layer, lambda _, hidden: hidden.new_zeros(1)) as patched:
        assert model.lm_head(torch.ones(2, model.config.hidden_size)).shape == (1,)
        assert patched.calls == 1
    assert "forward" not in model.lm_head.__dict__
    assert model.lm_head(torch.ones(2, model.config.hidden_size)).shape == (2, layer.classes)


class Own(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


def test_what_is_no_plain_layer_is_refused():
    with pytest.raises(InputError, match="Linear has no output layer"):
        output_layer(nn.Linear(2, 2))
    model = build()
    model.lm_head = Own(model.config.hidden_size, model.config.vocab_size, bias=False)
    with pytest.raises(InputError, match=r"not a plain torch\.nn\.Linear"):
        output_layer(model)


def test_a_model_that_does_more_to_its_logits_is_refused():
    model = build()
    forward = model.forward

    def more(**inputs):
        output = forward(**inputs)
        output.logits = output.logits + 1
        return output

    with pytest.raises(InputError, match="does more to the logits of its output layer"):
        measured(model, more)
