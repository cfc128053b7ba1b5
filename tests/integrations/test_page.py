"""The loops of the page about trainers, as they stand there: 4 micro-batches of 1 are 1 of 4."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from fortifai import truncated_cross_entropy
from fortifai.integrations.hidden_states import HiddenStateLoss
from fortifai.integrations.transformers import ConfidenceTrainer

from .page import PAGE, examples
from .test_lightning import flat, off
from .tiny import batch_of, build, furthest, ragged, weights_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .*dataloader.* does not have many workers",
    # Lightning 2.6 uses what torch 2.13 renamed
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
    "ignore:.*tensorboard.*:UserWarning",
)
ROWS = ragged(6)  # the second step has two of them
THRESHOLD = 0.9


def one(rows: Any) -> list[dict[str, torch.Tensor]]:
    return [batch_of([row]) for row in rows]


def in_whole_batches(rows: Any = ROWS) -> dict[str, torch.Tensor]:
    """SGD, so that a wrong divisor shows."""
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for start in range(0, len(rows), 4):
        compute = HiddenStateLoss(model, threshold=THRESHOLD)
        compute(model, batch_of(rows[start : start + 4])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights_of(model)


def run(code: str, **names: Any) -> dict[str, Any]:
    exec(compile(code, PAGE.name, "exec"), names)
    return names


ROUNDING = 3e-6  # weights after two steps of fp32 gradients, summed in another order


def test_plain_pytorch() -> None:
    (code,) = examples("Plain PyTorch")
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run(code, model=model, optimizer=optimizer, steps=[one(ROWS[:4]), one(ROWS[4:])])
    assert furthest(weights_of(model), in_whole_batches()) < ROUNDING
    wrong = build()
    optimizer = torch.optim.SGD(wrong.parameters(), lr=0.1)
    alone = code.replace("compute(model, batch, n)", "(compute(model, batch) / len(step))")
    assert alone != code
    run(alone, model=wrong, optimizer=optimizer, steps=[one(ROWS[:4]), one(ROWS[4:])])
    assert furthest(weights_of(wrong), in_whole_batches()) > 1e-3


@pytest.fixture
def fresh() -> Any:
    """accelerate keeps its settings for the process."""
    singletons = (AcceleratorState, GradientState, PartialState)
    for state in singletons:
        state._reset_state()
    yield
    for state in singletons:
        state._reset_state()


def test_accelerate(fresh: Any) -> None:
    (code,) = examples("accelerate")
    model = build()
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": DataLoader(ROWS, batch_size=1, collate_fn=batch_of),
    }
    run(code.replace("Accelerator()", "Accelerator(cpu=True)"), **names)
    assert furthest(weights_of(model), in_whole_batches()) < ROUNDING


def test_accelerate_that_counts_the_steps_itself(fresh: Any) -> None:
    """What the page says of `gradient_accumulation_steps`."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model = build()
    compute = HiddenStateLoss(model, threshold=THRESHOLD)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped, stepper = accelerator.prepare(model, optimizer)
    n = sum(int((row["labels"][1:] != -100).sum()) for row in ROWS[:4])
    for batch in one(ROWS[:4]):
        with accelerator.accumulate(wrapped):
            value = compute(wrapped, batch, n) * accelerator.gradient_accumulation_steps
            accelerator.backward(value)
            stepper.step()
            stepper.zero_grad()
    assert furthest(weights_of(model), in_whole_batches(ROWS[:4])) < ROUNDING


def test_lightning(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    module_code, fit_code = examples("Lightning")
    names = run(module_code, torch=torch)
    found: list[torch.Tensor] = []

    class Noted(names["Module"]):  # type: ignore[misc]  # made by the page
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            assert isinstance(optimizer, torch.optim.AdamW)
            found.append(flat(self.model).clone())

        def configure_optimizers(self) -> Any:
            super().configure_optimizers()
            return torch.optim.AdamW(self.parameters(), lr=0.0, weight_decay=0.0)

    names |= {
        "Module": Noted,
        "model": build(),
        "train_loader": DataLoader(one(ROWS), batch_size=None),
        "val_loader": DataLoader([batch_of(ROWS[:1]), *one(ROWS[1:3])], batch_size=None),
    }
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    names["Trainer"] = functools.partial(names["Trainer"], **quiet)
    names = run(fit_code, **names)
    model = build()
    for rows, one_step in zip((ROWS[:4], ROWS[4:]), found, strict=True):
        HiddenStateLoss(model, threshold=THRESHOLD)(model, batch_of(rows)).backward()
        assert off(one_step, flat(model)) < 1e-5
        model.zero_grad()
    whole = HiddenStateLoss(model, threshold=1.0)(model, batch_of(ROWS[:3])).item()
    assert names["trainer"].callback_metrics["val_loss"].item() == pytest.approx(whole, rel=1e-6)
    assert 0 < names["trainer"].callback_metrics["kept_share"] <= 1


def test_weights_from_the_data(tmp_path: Path) -> None:
    (code,) = examples("Weights from the data")
    listed = [{k: v.tolist() for k, v in row.items()} for row in ROWS[:4]]
    data = datasets.Dataset.from_list([{**r, "human": i % 2 == 0} for i, r in enumerate(listed)])
    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, use_cpu=True, report_to="none",
        optim="sgd", max_grad_norm=0.0, lr_scheduler_type="constant", learning_rate=0.1,
        num_train_epochs=1, disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    model, by_hand = build(), build()
    names = run(code, data=data, model=model, args=args, ConfidenceTrainer=ConfidenceTrainer)
    names["trainer"].train()
    logits = by_hand(input_ids=batch_of(ROWS[:4])["input_ids"]).logits[:, :-1].transpose(1, 2)
    labels = batch_of(ROWS[:4])["labels"][:, 1:]
    weights = torch.tensor([1.0, 0.3, 1.0, 0.3])[:, None] * (labels != -100)
    losses = truncated_cross_entropy(logits, labels, threshold=THRESHOLD, reduction="none")
    ((losses * weights).sum() / weights.sum()).backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter -= 0.1 * parameter.grad
    assert furthest(weights_of(model), weights_of(by_hand)) < ROUNDING


def test_all_of_it_is_there() -> None:
    headings = {
        "Plain PyTorch": 1,
        "Weights from the data": 1,
        "DDP, FSDP2": 1,
        "accelerate": 1,
        "Lightning": 2,
    }
    assert {h: len(examples(h)) for h in headings} == headings
