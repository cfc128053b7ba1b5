"""Adapters at and around the output layer, against what PEFT's own forward makes of them."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fortifai import weighted_cross_entropy
from fortifai.errors import InputError
from fortifai.integrations.hidden_states import HiddenStateLoss
from fortifai.weights import AnyWeight, Focal, Keep, Truncate

from .tiny import VOCABULARY, batch_of, build, furthest, ragged

pytestmark = pytest.mark.filterwarnings(
    # PEFT 0.21 asks transformers 5.23 by a name that it gives up in version 6
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
BATCH = batch_of(ragged(4))
BATCH["input_ids"][:, 1:4] = torch.tensor([5, 6, 5])  # tokens that have rows of their own
BATCH["labels"][:, 3:6] = torch.tensor([6, 20, 5])
LORA: dict[str, Any] = {"r": 2, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
TIED = {"ensure_weight_tying": True}
SERVED: dict[str, tuple[str, Any]] = {
    "tokens, tied": ("smollm", peft.LoraConfig(**LORA, trainable_token_indices=[5, 6])),
    "tokens, head apart": ("llama", peft.LoraConfig(**LORA, trainable_token_indices=[5, 6])),
    "tokens of the head": (
        "llama",
        peft.LoraConfig(**LORA, trainable_token_indices={"lm_head": [5], "embed_tokens": [6, 7]}),
    ),
    "tokens, scaled and capped": (
        "gemma2",
        peft.LoraConfig(**LORA, trainable_token_indices=[5, 6]),
    ),
    "tokens alone": ("smollm", peft.TrainableTokensConfig(token_indices=[5, 6])),
    "tokens alone, of the head": (
        "llama",
        peft.TrainableTokensConfig(token_indices=[5, 6], target_modules=["lm_head"]),
    ),
    "a copy of the head": ("llama", peft.LoraConfig(**LORA, modules_to_save=["lm_head"])),
    "a copy of a tied head": ("smollm", peft.LoraConfig(**LORA, modules_to_save=["lm_head"])),
    "a copy of tied embeddings": (
        "smollm",
        peft.LoraConfig(**LORA, modules_to_save=["embed_tokens"]),
    ),
    "copies of both": (
        "smollm",
        peft.LoraConfig(**LORA, modules_to_save=["embed_tokens", "lm_head"]),
    ),
    "copies that stay tied": (
        "smollm",
        peft.LoraConfig(**LORA, modules_to_save=["embed_tokens"], **TIED),
    ),
    "copies that stay tied, by the head": (
        "smollm",
        peft.LoraConfig(**LORA, modules_to_save=["lm_head"], **TIED),
    ),
    "a bias": ("phi", peft.LoraConfig(**LORA, bias="all")),
}


def adapted(name: str, config: Any) -> Any:
    """With every trained weight away from where it began, as after some training."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that saving tied weights apart is not done here
        model = peft.get_peft_model(build(name), copy.deepcopy(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def on_logits(model: Any, weight: AnyWeight) -> torch.Tensor:
    logits = model(input_ids=BATCH["input_ids"]).logits[:, :-1]
    labels = BATCH["labels"][:, 1:]
    return weighted_cross_entropy(logits.mT, labels, weight=weight)


@pytest.mark.parametrize("name", SERVED)
def test_loss_and_gradients_are_those_of_the_logits(name: str) -> None:
    model = adapted(*SERVED[name])
    for weight in (Keep(), Truncate(0.05), Focal(2.0)):
        expected = on_logits(model, weight)
        expected.backward()
        theirs = gradients(model)
        found = HiddenStateLoss(model, weight)(model, BATCH)
        found.backward()
        ours = gradients(model)
        assert found.item() == pytest.approx(expected.item(), rel=2e-6)  # fp32
        assert furthest(ours, theirs) < 2e-6
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        assert sorted(ours) == sorted(n for n in trained if n in theirs)
        assert ours
        if "tokens" in name:
            assert any("trainable_tokens_delta" in n and g.any() for n, g in ours.items())


@pytest.mark.parametrize("name", [n for n in SERVED if n != "a bias"])  # which PEFT leaves on
def test_without_the_adapter_and_with_it_again(name: str) -> None:
    """The layer is looked for at each call: `disable_adapter` is the base model's loss."""
    model = adapted(*SERVED[name])
    compute = HiddenStateLoss(model, Keep())
    values = []
    for context in (model.disable_adapter, torch.no_grad, model.disable_adapter):
        with context():
            expected = on_logits(model, Keep()).item()
            values.append(compute(model, BATCH).item())
        assert values[-1] == pytest.approx(expected, rel=2e-6)
    assert values[0] == values[2]
    assert abs(values[0] - values[1]) > 1e-4


@pytest.mark.parametrize("name", ["tokens, tied", "tokens, head apart", "tokens of the head"])
def test_merged_and_taken_apart(name: str) -> None:
    model = adapted(*SERVED[name])
    compute = HiddenStateLoss(model, Keep())
    apart = compute(model, BATCH).item()
    model.merge_adapter()
    assert compute(model, BATCH).item() == pytest.approx(apart, rel=2e-6)
    with model.disable_adapter():
        expected = on_logits(model, Keep()).item()
        assert compute(model, BATCH).item() == pytest.approx(expected, rel=2e-6)


def test_another_adapter_without_a_copy() -> None:
    """The active one has none: the model's own layer counts."""
    model = adapted(*SERVED["a copy of the head"])
    model.add_adapter("plain", peft.LoraConfig(**LORA, init_lora_weights=False))
    compute = HiddenStateLoss(model, Keep())
    values = []
    for adapter in ("default", "plain"):
        model.set_adapter(adapter)
        expected = on_logits(model, Keep()).item()
        values.append(compute(model, BATCH).item())
        assert values[-1] == pytest.approx(expected, rel=2e-6)
    assert abs(values[0] - values[1]) > 1e-3


def test_adapters_that_are_refused() -> None:
    def refuses(name: str, config: Any, sentence: str) -> None:
        with pytest.raises(InputError, match=sentence):
            HiddenStateLoss(adapted(name, config), threshold=0.9)

    head = {**LORA, "target_modules": ["q_proj", "lm_head"]}
    for name in ("llama", "smollm"):
        refuses(name, peft.LoraConfig(**head), r"lora.*with LoRA leave it out of target_modules")
    tokens = peft.LoraConfig(**LORA, trainable_token_indices={"lm_head": [5]})
    refuses("phi", tokens, "has a bias, which PEFT leaves out for trainable_token_indices")


def test_peft_leaves_the_bias_out() -> None:
    """Why it is refused: else the loss would be that of a model that nobody meant."""
    config = peft.LoraConfig(**LORA, trainable_token_indices={"lm_head": [5]})
    model = adapted("phi", config)
    hidden = torch.randn(1, 1, 16)
    layer = model.get_base_model().lm_head
    plain = F.linear(hidden, layer.weight, layer.token_adapter.base_layer.bias)
    assert plain.shape[-1] == VOCABULARY
    assert not torch.allclose(layer(hidden), plain)
