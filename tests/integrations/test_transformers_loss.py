"""The loss inside the real Trainer, on a tiny LLaMA."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.modeling_outputs import CausalLMOutput, Seq2SeqLMOutput

from fortifai.errors import InputError
from fortifai.integrations.transformers import ConfidenceLoss
from fortifai.weights import Focal, Keep, Truncate

VOCABULARY = 13


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
        )
    )


def ragged(rows: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Rows of 10 tokens, of which the last 0 to 8 and the first 0 to 2 are not to be learnt."""
    rng = np.random.default_rng(seed)
    data = []
    for _ in range(rows):
        ids = torch.from_numpy(rng.integers(0, VOCABULARY, 10))
        labels = ids.clone()
        labels[10 - int(rng.integers(0, 9)) :] = -100
        labels[: int(rng.integers(0, 3))] = -100
        data.append({"input_ids": ids, "labels": labels})
    return data


def train(
    folder: Path, data: list[dict[str, torch.Tensor]], compute: Any, **changes: Any
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The weights after training, and the losses that Trainer logged."""
    settings: dict[str, Any] = {
        "num_train_epochs": 2,
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
        **changes,
    }
    model = tiny()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=data,
        eval_dataset=data[:4],
        compute_loss_func=compute,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {k: v.clone() for k, v in model.state_dict().items()}, losses


def furthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max((one[k] - two[k]).abs().max().item() for k in one)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_keeping_all_is_the_trainers_own_loss(tmp_path, accumulation) -> None:
    """The same operations in the same order, so the same weights: no tolerance."""
    data = ragged(16)
    options = {"gradient_accumulation_steps": accumulation}
    own, own_losses = train(tmp_path, data, None, **options)
    ours, losses = train(tmp_path, data, ConfidenceLoss(threshold=1.0), **options)
    assert losses == own_losses
    assert furthest(own, ours) == 0
    cut, _ = train(tmp_path, data, ConfidenceLoss(threshold=0.08), **options)
    assert furthest(own, cut) > 1e-3


class NotTold(ConfidenceLoss):
    """A mistake: each micro-batch divided by its own labels."""

    def __call__(self, outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        return super().__call__(outputs, labels) / 4


@pytest.mark.parametrize("weight", [Truncate(0.08), Focal(2.0)], ids=repr)
def test_accumulation_changes_nothing(tmp_path, weight) -> None:
    """8 rows at once or 2 at a time: sums in another order, some 1e-7 a step of 4 steps."""
    data = ragged(16)
    whole = {"per_device_train_batch_size": 8}
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    once, once_losses = train(tmp_path, data, ConfidenceLoss(weight), **whole)
    four, four_losses = train(tmp_path, data, ConfidenceLoss(weight), **parts)
    assert four_losses == pytest.approx(once_losses, abs=1e-5)
    assert furthest(once, four) < 1e-6
    wrong, _ = train(tmp_path, data, NotTold(weight), **parts)
    assert furthest(once, wrong) > 1e-4


def by_hand(model: LlamaForCausalLM, data: list[dict[str, torch.Tensor]], threshold: float):
    """Losses of the labels that count, one a label, in fp64 and in probabilities."""
    each = []
    with torch.no_grad():
        for row in data:
            logits = model(input_ids=row["input_ids"][None]).logits[0].double().numpy()
            for position, label in enumerate(row["labels"].tolist()[1:]):
                if label == -100:
                    continue
                p = np.exp(logits[position]) / np.exp(logits[position]).sum()
                each.append(-math.log(p[label]) if p[label] <= threshold else 0.0)
    return np.array(each)


@pytest.mark.parametrize("batch", [{}, {"per_device_train_batch_size": 4}])
def test_first_step_and_kept_share_by_hand(tmp_path, batch) -> None:
    data, threshold = ragged(8), 1 / VOCABULARY
    expected = by_hand(tiny(), data, threshold)
    assert 0 < (expected > 0).mean() < 1
    compute = ConfidenceLoss(threshold=threshold)
    accumulation = 8 // batch.get("per_device_train_batch_size", 8)
    _, losses = train(
        tmp_path,
        data,
        compute,
        num_train_epochs=1,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    assert losses == pytest.approx([expected.mean()], abs=1e-5)  # fp32
    assert compute.pop_kept_share() == pytest.approx((expected > 0).mean(), abs=1e-12)
    assert math.isnan(compute.pop_kept_share())  # popped: nothing since


def test_evaluation_does_not_count_as_training(tmp_path) -> None:
    shares = []
    for strategy in ("no", "epoch"):
        compute = ConfidenceLoss(threshold=1 / VOCABULARY)
        train(tmp_path, ragged(8), compute, eval_strategy=strategy)
        shares.append(compute.pop_kept_share())
    assert shares[0] == shares[1]


def batch() -> tuple[CausalLMOutput, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 6, VOCABULARY, generator=generator)
    labels = torch.randint(0, VOCABULARY, (2, 6), generator=generator)
    labels[1, 3:] = -100
    return CausalLMOutput(logits=logits), labels


def test_divisors() -> None:
    """7 labels count: 5 of the first row, 2 of the second; the first of each has no past."""
    outputs, labels = batch()
    nll = torch.cat(
        [
            F.cross_entropy(outputs.logits[0, :5], labels[0, 1:], reduction="none"),
            F.cross_entropy(outputs.logits[1, :2], labels[1, 1:3], reduction="none"),
        ]
    )
    compute = ConfidenceLoss(Keep())
    total = nll.sum().item()
    assert compute(outputs, labels).item() == pytest.approx(total / 7)
    for items in (28, torch.tensor(28)):
        assert compute(outputs, labels, num_items_in_batch=items).item() == pytest.approx(
            total / 28
        )
    assert ConfidenceLoss(gamma=0.0)((outputs.logits,), labels).item() == pytest.approx(total / 7)
    threshold = math.exp(-nll.median().item() - 1e-4)
    kept = nll[nll > nll.median()]
    by_kept = ConfidenceLoss(threshold=threshold, normalize="kept")
    assert by_kept(outputs, labels).item() == pytest.approx(kept.mean().item())
    assert by_kept(outputs, labels, num_items_in_batch=28).item() == pytest.approx(
        kept.mean().item() * 7 / 28
    )
    assert by_kept.pop_kept_share() == pytest.approx(len(kept) / 7)


@pytest.mark.parametrize("normalize", ["valid", "kept"])
@pytest.mark.parametrize("items", [None, 0, torch.tensor(0)], ids=str)
def test_no_label_that_counts(items, normalize) -> None:
    outputs, labels = batch()
    compute = ConfidenceLoss(threshold=0.9, normalize=normalize)
    assert compute(outputs, torch.full_like(labels, -100), num_items_in_batch=items) == 0
    assert math.isnan(compute.pop_kept_share())


def test_another_ignore_index() -> None:
    outputs, labels = batch()
    other = torch.where(labels == -100, 0, labels.clamp(min=1))
    usual = torch.where(labels == -100, -100, labels.clamp(min=1))
    assert ConfidenceLoss(Focal(), ignore_index=0)(outputs, other) == ConfidenceLoss(Focal())(
        outputs, usual
    )


@pytest.mark.parametrize("normalize", ["valid", "kept"])
def test_steps_do_not_wait_for_the_device(normalize) -> None:
    """Tensors without data cannot be looked at; only the popping does."""
    compute = ConfidenceLoss(threshold=0.9, normalize=normalize)
    outputs = CausalLMOutput(logits=torch.empty(2, 6, 5, device="meta", requires_grad=True))
    labels = torch.empty(2, 6, dtype=torch.int64, device="meta")
    for items in (None, torch.empty((), dtype=torch.int64, device="meta")):
        compute(outputs, labels, num_items_in_batch=items).backward()
    with pytest.raises(RuntimeError, match="meta"):
        compute.pop_kept_share()


def test_bad_settings() -> None:
    with pytest.raises(InputError, match="0 of weight, threshold and gamma"):
        ConfidenceLoss()
    with pytest.raises(InputError, match="2 of weight, threshold and gamma"):
        ConfidenceLoss(threshold=0.9, gamma=2.0)
    with pytest.raises(InputError, match=r"threshold is 1\.5"):
        ConfidenceLoss(threshold=1.5)
    with pytest.raises(InputError, match=r"weight is 0\.9"):
        ConfidenceLoss(0.9)
    with pytest.raises(InputError, match="did you mean 'kept'"):
        ConfidenceLoss(threshold=0.9, normalize="keept")


def test_batches_that_it_cannot_serve() -> None:
    outputs, labels = batch()
    compute = ConfidenceLoss(threshold=0.9)
    with pytest.raises(InputError, match="no labels"):
        compute(outputs, None)
    for logits in (None, (outputs.logits,)):
        with pytest.raises(InputError, match=r"logits are of type (NoneType|tuple); they must be"):
            compute({"logits": logits}, labels)
    with pytest.raises(InputError, match="logits are of type tuple"):
        compute((), labels)
    with pytest.raises(InputError, match=r"logits are \(6, 13\) and labels \(6,\)"):
        compute({"logits": outputs.logits[0]}, labels[0])  # classes of whole rows
    wrong = labels.clone()
    wrong[1, 4] = 99
    with pytest.raises(InputError, match=r"labels\[1, 4\] is 99"):
        compute(outputs, wrong)
    with pytest.raises(InputError, match=r"\(2, 6, 13\) and labels \(2, 5\)"):
        compute(outputs, labels[:, 1:])
    with pytest.raises(InputError, match="encoder-decoder"):
        compute(
            Seq2SeqLMOutput(logits=outputs.logits, encoder_last_hidden_state=outputs.logits), labels
        )
    with pytest.raises(InputError, match="no logits, only last_hidden_state"):
        compute({"last_hidden_state": outputs.logits}, labels)
