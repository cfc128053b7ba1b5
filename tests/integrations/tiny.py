"""Tiny models of many architectures, ragged data, and one way to train; for all trainers' tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

VOCABULARY = 37
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
USUAL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    **TOKENS,
}
GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    **{f"{part}_pdrop": 0.0 for part in ("resid", "embd", "attn")},
    **TOKENS,
}
OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "dropout": 0.0,
    **TOKENS,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", USUAL),
    "smollm": ("LlamaConfig", {**USUAL, "tie_word_embeddings": True}),
    # logits far above the cap, or nobody would see that it was left out
    "gemma2": ("Gemma2Config", {**USUAL, "head_dim": 8, "final_logit_softcapping": 0.5}),
    "gemma3": ("Gemma3TextConfig", {**USUAL, "head_dim": 8}),
    "qwen2": ("Qwen2Config", USUAL),
    "qwen3": ("Qwen3Config", {**USUAL, "head_dim": 8}),
    "mistral": ("MistralConfig", USUAL),
    "phi": ("PhiConfig", USUAL),  # its output layer has a bias
    "gpt2": ("GPT2Config", GPT),
    # hidden states are projected before the output layer
    "opt": ("OPTConfig", {**OPT, "word_embed_proj_dim": 8}),
    "granite": ("GraniteConfig", {**USUAL, "logits_scaling": 0.3}),
    "cohere": ("CohereConfig", {**USUAL, "logit_scale": 3.0}),
}


def build(name: str = "llama", **changes: Any) -> PreTrainedModel:
    """The same model each time, sure enough of itself that every part of it shows."""
    kind, settings = CONFIGS[name]
    settings = {**settings, **changes}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, kind)(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.get_output_embeddings().weight *= 3
    return model


def ragged(
    rows: int, seed: int = 0, length: int = 10, *, first: bool = True
) -> list[dict[str, torch.Tensor]]:
    """Rows of which the last 0 to 8 and the first 0 to 2 (not `first`: 1 to 2) are not learnt."""
    rng = np.random.default_rng(seed)
    data = []
    for _ in range(rows):
        ids = torch.from_numpy(rng.integers(3, VOCABULARY, length))
        labels = ids.clone()
        labels[length - int(rng.integers(0, length - 1)) :] = -100
        labels[: int(rng.integers(0, 3))] = -100
        if not first:
            labels[0] = -100
        data.append({"input_ids": ids, "labels": labels})
    return data


def batch_of(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {k: torch.stack([row[k] for row in rows]) for k in rows[0]}


SETTINGS: dict[str, Any] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.1,
    "optim": "sgd",  # a step in proportion to the gradient: Adam would hide a wrong divisor
    "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}


def trainer(
    cls: type[Trainer], folder: Path, model: Any, data: Any, /, *, more: Any = None, **changes: Any
) -> Any:
    """A trainer of `cls` with its own arguments `more`, and the changes to SETTINGS."""
    args = TrainingArguments(output_dir=str(folder), **{**SETTINGS, **changes})
    return cls(model=model, args=args, train_dataset=data, **(more or {}))


def trained(
    cls: type[Trainer], folder: Path, model: Any, data: Any, /, **changes: Any
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The weights after training, and what was logged with each loss."""
    run = trainer(cls, folder, model, data, **changes)
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    return weights_of(run.model), logs


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def furthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    return max((one[k].float() - two[k].float()).abs().max().item() for k in one)
