"""The data's weights and terms of row losses in trainers, against formulas and equal runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import DataCollatorWithFlattening, Trainer

from fortifai.errors import InputError
from fortifai.integrations.data_weights import WithWeights
from fortifai.integrations.hidden_states import HiddenStateLoss
from fortifai.integrations.transformers import ConfidenceLoss, ConfidenceTrainer
from fortifai.weights import Focal, Keep

from .tiny import batch_of, build, furthest, ragged, trained, trainer

ROUNDING = 3e-6  # fp32, sums in another order, over 3 steps


def weighed(rows: list[dict[str, Any]], kind: str = "token", seed: int = 0) -> list[dict[str, Any]]:
    """The rows with weights from 0 to 3, some of them 0."""
    rng = np.random.default_rng(seed)
    out = []
    for row in rows:
        size = len(row["labels"]) if kind == "token" else ()
        weights = rng.choice([0.0, 0.25, 1.0, 3.0], size=size)
        out.append({**row, "loss_weights": weights.tolist()})
    return out


def by_hand(model: Any, batch: dict[str, torch.Tensor], normalize: str, gamma: float) -> Any:
    """Focal loss with the data's weights, from logits."""
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    labels, weights = batch["labels"][:, 1:], batch["loss_weights"]
    weights = weights[:, None].expand(batch["labels"].shape) if weights.dim() == 1 else weights
    weights = torch.where(labels == -100, 0.0, weights[:, 1:])
    nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    confident = (1 - torch.exp(-nll)) ** gamma
    divisor = {
        "valid": (labels != -100).sum(),
        "weight_sum": weights.sum(),
        "kept": (weights * confident).sum(),
    }[normalize]
    return (weights * confident * nll).sum() / divisor


@pytest.mark.parametrize("normalize", ["valid", "weight_sum", "kept"])
@pytest.mark.parametrize("kind", ["token", "sample"])
def test_the_loss_is_the_formula(kind: str, normalize: Any) -> None:
    model = build("gpt2")  # whose forward takes no keyword that it does not know
    rows = weighed(ragged(5), kind)
    batch = batch_of(
        [{k: torch.tensor(v) if k == "loss_weights" else v for k, v in row.items()} for row in rows]
    )
    expected = by_hand(model, batch, normalize, 2.0)
    gradient = torch.autograd.grad(expected, list(model.parameters()))
    compute = HiddenStateLoss(model, Focal(2.0), normalize=normalize)
    found = compute(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    for a, b in zip(torch.autograd.grad(found, list(model.parameters())), gradient, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    labels, weights = batch["labels"][:, 1:], batch["loss_weights"]
    weights = weights[:, None].expand_as(batch["labels"]) if kind == "sample" else weights
    of_data = weights[:, 1:][labels != -100].sum()
    assert 0 < compute.pop_kept_share() < 1 <= of_data
    # shifted already, they stand one to the left with their labels
    moved = {
        "input_ids": batch["input_ids"],
        "shift_labels": F.pad(labels, (0, 1), value=-100),
        "loss_weights": F.pad(weights[:, 1:], (0, 1)),
    }
    torch.testing.assert_close(compute(model, moved), expected, rtol=1e-5, atol=0)
    plain = {k: v for k, v in batch.items() if k != "loss_weights"}
    assert torch.equal(compute.by_row(model, batch), compute.by_row(model, plain))


@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.long), 3])
@pytest.mark.parametrize("form", ["list", pytest.param("datasets", marks=pytest.mark.long)])
def test_weights_of_one_and_none_are_labels_that_count_or_not(
    tmp_path: Path, form: str, steps: int
) -> None:
    """Over the sum of weights, of all micro-batches of a step."""
    rows = ragged(12)
    kept = [torch.rand(len(row["labels"]), generator=torch.Generator().manual_seed(i)) < 0.6
            for i, row in enumerate(rows)]  # fmt: skip
    masked = [
        {**row, "labels": torch.where(keep, row["labels"], -100)}
        for row, keep in zip(rows, kept, strict=True)
    ]
    weights = [{**row, "loss_weights": 0.5 * keep} for row, keep in zip(rows, kept, strict=True)]
    if form == "datasets":
        listed = [{k: v.tolist() for k, v in row.items()} for row in weights]
        weights = datasets.Dataset.from_list(listed)
    more = {"weight": Keep(), "normalize": "weight_sum"}
    changes = {"gradient_accumulation_steps": steps}
    ours, logs = trained(ConfidenceTrainer, tmp_path, build(), weights, more=more, **changes)
    theirs, own = trained(
        ConfidenceTrainer, tmp_path, build(), masked, more={"weight": Keep()}, **changes
    )
    assert furthest(ours, theirs) < ROUNDING
    unweighted, _ = trained(ConfidenceTrainer, tmp_path, build(), rows, more=more, **changes)
    assert furthest(ours, unweighted) > 1e-3
    for one, two in zip(logs, own, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["kept_share"] == two["kept_share"] == 1
    # over the labels all the same: half the step for the weights of half
    valid = {"weight": Keep(), "normalize": "valid"}
    halves = [{**row, "loss_weights": 0.5} for row in rows]
    found, _ = trained(ConfidenceTrainer, tmp_path, build(), halves, more=valid, **changes)
    expected, _ = trained(
        ConfidenceTrainer, tmp_path, build(), rows, more=valid, learning_rate=0.05, **changes
    )
    assert furthest(found, expected) < ROUNDING


def test_evaluation_does_not_weigh(tmp_path: Path) -> None:
    rows = ragged(8)
    for name in ("llama", "gpt2"):
        run = trainer(ConfidenceTrainer, tmp_path, build(name), rows, more={"threshold": 0.1})
        assert run.evaluate(weighed(rows))["eval_loss"] == run.evaluate(rows)["eval_loss"]
        assert run.predict(weighed(rows)).predictions.shape[:2] == (8, 10)


@pytest.mark.parametrize("on", ["hidden states", "logits"])
def test_label_smoothing_is_that_of_trainer(tmp_path: Path, on: str) -> None:
    theirs, _ = trained(Trainer, tmp_path, build(), ragged(12), label_smoothing_factor=0.2)
    if on == "logits":
        ours, _ = trained(
            Trainer, tmp_path, build(), ragged(12),
            more={"compute_loss_func": ConfidenceLoss(Keep(), label_smoothing=0.2)},
        )  # fmt: skip
    else:
        more = {"weight": Keep(), "label_smoothing": 0.2}
        ours, _ = trained(ConfidenceTrainer, tmp_path, build(), ragged(12), more=more)
    assert furthest(ours, theirs) < ROUNDING
    plain, _ = trained(ConfidenceTrainer, tmp_path, build(), ragged(12), more={"weight": Keep()})
    assert furthest(ours, plain) > 1e-3


@pytest.mark.parametrize("name", ["confidence_penalty", "z_loss", "gem_beta"])
def test_terms_reach_the_model(name: str) -> None:
    """The same on hidden states and on the model's logits, scaled and capped by it."""
    for kind in ("gemma2", "granite"):
        model, batch = build(kind), batch_of(ragged(4))
        terms: Any = {name: 0.5}
        found = HiddenStateLoss(model, Focal(1.0), **terms)(model, batch)
        outputs = model(input_ids=batch["input_ids"])
        expected = ConfidenceLoss(Focal(1.0), **terms)(outputs, batch["labels"])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
        plain = HiddenStateLoss(model, Focal(1.0))(model, batch)
        assert not torch.isclose(found, plain, rtol=1e-2)


def stack(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pads on the left to ten."""
    assert all("loss_weights" not in e for e in examples)
    ids = [F.pad(torch.tensor(e["input_ids"]), (10 - len(e["input_ids"]), 0)) for e in examples]
    batch = torch.stack(ids)
    return {"input_ids": batch, "attention_mask": (batch != 0).long(), "labels": batch}


def test_weights_follow_what_a_collator_does() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "loss_weights": [0.0, 1.0, 2.0]},
        {"input_ids": [5, 6], "loss_weights": 0.5},
    ]
    left = WithWeights(stack)(rows)["loss_weights"]
    assert left.tolist() == [[0.0] * 7 + [0.0, 1.0, 2.0], [0.0] * 8 + [0.5, 0.5]]
    flat = WithWeights(DataCollatorWithFlattening(return_tensors="pt"))(rows)["loss_weights"]
    assert flat.tolist() == [[0.0, 1.0, 2.0, 0.5, 0.5]]

    def padded(examples: Any) -> Any:
        batch = stack(examples)
        return {"input_ids": batch["input_ids"], "labels": batch["labels"].roll(3, 1)}

    right = WithWeights(padded)(rows)["loss_weights"]
    assert right[0].tolist() == [0.0, 1.0, 2.0] + [0.0] * 7
    with pytest.raises(InputError, match="made 2 labels of a row with 3 loss_weights"):
        WithWeights(lambda _: {"labels": torch.zeros(2, 2)})(rows)
    with pytest.raises(InputError, match="no labels to lay them beside"):
        WithWeights(lambda _: {"input_ids": torch.zeros(2, 2)})(rows)
    pixels = [{"pixels": 1, "loss_weights": 2.0}, {"pixels": 2, "loss_weights": 1.0}]
    of_rows = WithWeights(lambda _: {"labels": torch.zeros(2, 3)})(pixels)["loss_weights"]
    assert of_rows.tolist() == [[2.0] * 3, [1.0] * 3]


GOOD = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
BAD: dict[str, tuple[Any, str]] = {
    "negative": ([1.0, -0.5, 1.0], r"loss_weights of row 1\[1\] is -0.5; weights must be finite"),
    "one negative": (-1.0, "loss_weights of row 1 is -1.0; weights must be finite and 0 or more"),
    "nan": ([1.0, 1.0, math.nan], r"loss_weights of row 1\[2\] is nan"),
    "inf": (math.inf, "loss_weights of row 1 is inf"),
    "longer": ([1.0] * 4, r"of row 1 is \(4,\) and its labels are 3; give one weight"),
    "empty": ([], r"of row 1 is \(0,\) and its labels are 3"),
    "missing": (None, "row 1 has no loss_weights, and others have; give every row a weight"),
    "hole": ([1.0, None, 1.0], "loss_weights of row 1 is .*give a number, or one for each"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["list", "datasets"])
@pytest.mark.parametrize("name", BAD)
def test_bad_weights_are_told_before_training(tmp_path: Path, name: str, form: str) -> None:
    wrong, message = BAD[name]
    rest = 1.0 if isinstance(wrong, float) or wrong is None else [1.0] * 3
    data: Any = [{**GOOD, "loss_weights": rest}, {**GOOD, "loss_weights": wrong}]
    if form == "datasets":
        data = datasets.Dataset.from_list(data)
    elif wrong is None:
        del data[1]["loss_weights"]
    with pytest.raises(InputError, match=message):
        trainer(ConfidenceTrainer, tmp_path, build(), data, more={"threshold": 0.9})
    with pytest.raises(InputError, match=message.replace("row 1", "row 1 of a batch")):
        WithWeights(stack)(list(data))


def test_bad_weights_of_a_batch() -> None:
    model, batch = build(), batch_of(ragged(4))
    compute = HiddenStateLoss(model, threshold=0.9)
    good = torch.ones(4, 10)
    for wrong, message in (
        (good[:, :9], r"loss_weights is \(4, 9\) and labels \(4, 10\); give one weight for each"),
        (good[:3, 0], r"loss_weights is \(3,\)"),
        (-good, r"loss_weights\[0, 0\] is -1.0"),
        (good / 0, r"loss_weights\[0, 0\] is inf"),
        ([1.0] * 4, "loss_weights is of type list"),
    ):
        with pytest.raises(InputError, match=message):
            compute(model, {**batch, "loss_weights": wrong})


def test_bad_terms(tmp_path: Path) -> None:
    for make in (
        lambda **k: ConfidenceTrainer("no model", threshold=0.9, **k),
        lambda **k: HiddenStateLoss(build(), threshold=0.9, **k),
        lambda **k: ConfidenceLoss(threshold=0.9, **k),
    ):
        with pytest.raises(InputError, match="gem_beta is 0; it must be a number in"):
            make(gem_beta=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'treshold'"):
        HiddenStateLoss(build(), threshold=0.9, treshold=0.9)  # type: ignore[call-arg]
    args = {"label_smoothing_factor": 0.1}
    with pytest.raises(InputError, match=r"give ConfidenceTrainer label_smoothing=0.1"):
        trainer(ConfidenceTrainer, tmp_path, build(), ragged(4), more={"threshold": 0.9}, **args)
