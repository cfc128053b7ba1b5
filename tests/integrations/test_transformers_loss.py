"""The loss in the real Trainer, on a small real model."""

import math

import pytest
import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from fortifai import truncated_cross_entropy
from fortifai.confidence import Focal, Keep, Truncate
from fortifai.errors import InputError
from fortifai.integrations.transformers import ConfidenceLoss, loss


class Ragged(Dataset):
    """Rows of unequal numbers of labels: what makes a mean of means wrong."""

    def __init__(self, rows=16, length=12, vocab=30):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(1, vocab, (rows, length), generator=generator)
        self.labels = self.ids.clone()
        for i in range(rows):
            self.labels[i, length - (i * 3) % (length - 2) :] = -100

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


def model():
    set_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            vocab_size=30, max_position_embeddings=16,
        )
    )  # fmt: skip


def train(folder, function, *, batch=4, accumulate=1, steps=4):
    """Losses by step and final weights of a real Trainer."""
    trainer = Trainer(
        model(),
        TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=batch, max_steps=steps,
            gradient_accumulation_steps=accumulate, learning_rate=1e-2, logging_steps=1,
            report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, seed=0,
            optim="sgd", lr_scheduler_type="constant",
        ),
        train_dataset=Ragged(),
        compute_loss_func=function,
    )  # fmt: skip
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return losses, weights


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_keeping_everything_is_the_trainers_own_loss(tmp_path):
    own, own_weights = train(tmp_path, None)
    ours, our_weights = train(tmp_path, loss(threshold=1.0))
    # the same sum over the same labels and the same divisor: the trainer's log rounds to 4 digits
    assert ours == pytest.approx(own, abs=1e-4)
    # float32 rounding of four steps at learning rate 1e-2
    assert torch.allclose(own_weights, our_weights, atol=1e-6)


@pytest.mark.parametrize("weight", [Keep(), Truncate(0.035), Focal(2.0)], ids=str)
def test_gradient_accumulation_changes_nothing(tmp_path, weight):
    _, whole = train(tmp_path, loss(weight), batch=8, accumulate=1)
    _, parts = train(tmp_path, loss(weight), batch=2, accumulate=4)
    assert torch.allclose(whole, parts, atol=1e-6)  # float32 rounding, other order of sums


def test_truncation_changes_the_training(tmp_path):
    _, kept = train(tmp_path, loss(threshold=1.0))
    _, truncated = train(tmp_path, loss(threshold=0.03))
    assert not torch.allclose(kept, truncated, atol=1e-6)


def test_shift_mask_and_divisor_by_hand():
    torch.manual_seed(1)
    logits = torch.randn(2, 5, 7)
    labels = torch.randint(0, 7, (2, 5))
    labels[1, 3:] = -100
    function = loss(threshold=0.3)
    got = function({"logits": logits}, labels)
    expected = truncated_cross_entropy(
        logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1), threshold=0.3
    )
    assert torch.allclose(got, expected)
    given = function((logits,), labels, num_items_in_batch=12)
    assert torch.allclose(given, expected * 6 / 12)  # 4 + 2 labels count here
    kept = loss(threshold=0.3, normalize="kept")({"logits": logits}, labels)
    expected = truncated_cross_entropy(
        logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1), threshold=0.3, normalize="kept"
    )
    assert torch.allclose(kept, expected)


def test_the_kept_share_since_the_last_look():
    logits = torch.log(torch.tensor([[[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]]])).requires_grad_()
    function = loss(threshold=0.5)
    assert math.isnan(function.pop_kept_share())
    function({"logits": logits}, torch.tensor([[1, 0, 1]]))  # p = 0.9 dropped, 0.6 dropped
    function({"logits": logits}, torch.tensor([[1, 1, 0]]))  # p = 0.1 and 0.4 kept
    assert function.pop_kept_share() == 0.5
    assert math.isnan(function.pop_kept_share())


@pytest.mark.parametrize("given", [{}, {"threshold": 0.9, "gamma": 2.0}])
def test_exactly_one_of_the_three(given):
    with pytest.raises(InputError, match="give exactly one"):
        loss(**given)


def test_what_the_trainer_may_hand_over_wrongly():
    function = ConfidenceLoss(Keep())
    with pytest.raises(InputError, match="labels"):
        function({"logits": torch.zeros(1, 2, 3)}, None)
    with pytest.raises(InputError, match="logits"):
        function({"hidden": torch.zeros(1, 2, 3)}, torch.zeros(1, 2, dtype=torch.long))
