"""The loss of an evaluation is the mean over its labels, however they fall into batches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from fortifai.integrations.hidden_states import HiddenStateLoss
from fortifai.integrations.transformers import (
    ConfidenceLoss,
    ConfidenceTrainer,
    EvalLossByToken,
    LogKeptShare,
)
from fortifai.integrations.trl import ConfidenceSFTTrainer
from fortifai.models import scratch
from fortifai.weights import Focal, Truncate

from .tiny import SETTINGS, VOCABULARY, batch_of, build, ragged, trainer

pytestmark = pytest.mark.filterwarnings(
    # transformers 5.23 renames this for version 6; TRL 1.16 uses the old names
    "ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning",
    # the logits that TRL makes for `compute_metrics`
    "ignore:`return_outputs=True`:FutureWarning",
)


def rows_of(*labelled: int, seed: int = 0, length: int = 24) -> list[dict[str, torch.Tensor]]:
    """One row for each number of labels that count; the first label of a row never does."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for count in labelled:
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
        labels = torch.full_like(ids, -100)
        labels[1 : 1 + count] = ids[1 : 1 + count]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


ROWS = rows_of(1, 23, 0, 9, 0, 17, 2)


def by_token(rows: Any, model: Any = None, weight: Any = None) -> float:
    """Sum of w(p) * -log p over the number of labels, label by label in fp64."""
    model = (model or build()).eval()
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            log_p = model(input_ids=row["input_ids"][None]).logits[0].double().log_softmax(-1)
        for place in range(1, len(row["labels"])):
            label = int(row["labels"][place])
            if label != -100:
                one = log_p[place - 1, label].item()
                kept = 1.0
                if isinstance(weight, Truncate):
                    kept = float(math.exp(one) <= weight.threshold)
                elif isinstance(weight, Focal):
                    kept = (1 - math.exp(one)) ** weight.gamma
                total -= kept * one
                count += 1
    return total / count


def shapes(prediction: Any) -> dict[str, float]:
    return {"classes": prediction.predictions.shape[-1]}


ROUNDING = 2e-6  # of fp32 losses, summed in fp64


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("metrics", [None, shapes], ids=["hidden states", "logits"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_whatever_the_batch_size(tmp_path: Path, name: str, metrics: Any, size: int) -> None:
    more = {"threshold": 0.05, "eval_dataset": ROWS, "compute_metrics": metrics}
    run = trainer(
        ConfidenceTrainer, tmp_path, build(name), ROWS, more=more,
        per_device_eval_batch_size=size, eval_accumulation_steps=2,
    )  # fmt: skip
    expected = by_token(ROWS, build(name))
    found = run.evaluate()
    assert found["eval_loss"] == pytest.approx(expected, rel=ROUNDING)
    assert run.state.log_history[-1]["eval_loss"] == found["eval_loss"]
    # the data can tell: the Trainer's own is another
    own = trainer(
        Trainer, tmp_path, build(name), ROWS, more={"eval_dataset": ROWS},
        per_device_eval_batch_size=size,
    ).evaluate()["eval_loss"]  # fmt: skip
    assert abs(own - expected) > 1e-3 * expected or size >= len(ROWS)
    predicted = run.predict(ROWS, metric_key_prefix="test")
    assert predicted.metrics["test_loss"] == pytest.approx(expected, rel=ROUNDING)


def test_rows_without_labels_change_nothing(tmp_path: Path) -> None:
    results = []
    for rows in (rows_of(4, 11), [*rows_of(4, 11), *rows_of(0, 0, 0, seed=1)]):
        run = trainer(
            ConfidenceTrainer, tmp_path, build(), ROWS,
            more={"gamma": 1.0, "eval_dataset": rows}, per_device_eval_batch_size=2,
        )  # fmt: skip
        results.append(run.evaluate()["eval_loss"])
    assert results[0] == results[1]  # zeros are added


@pytest.mark.parametrize("metrics", [None, shapes], ids=["hidden states", "logits"])
def test_an_evaluation_without_labels_says_so(tmp_path: Path, metrics: Any) -> None:
    data = {"some": ROWS, "none": rows_of(0, 0, 0)}
    run = trainer(
        ConfidenceTrainer, tmp_path, build(), ROWS,
        more={"gamma": 1.0, "eval_dataset": data, "compute_metrics": metrics},
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"eval_none_loss is NaN: no label of the evaluation set"):
        found = run.evaluate()
    assert math.isnan(found["eval_none_loss"])
    assert found["eval_some_loss"] == pytest.approx(by_token(ROWS), rel=ROUNDING)


def test_labels_that_stand_in_place(tmp_path: Path) -> None:
    def shifted(rows: Any) -> Any:
        batch = batch_of(rows)
        labels = batch.pop("labels")
        return {**batch, "shift_labels": torch.cat((labels[:, 1:], labels[:, :1]), dim=1)}

    run = trainer(
        ConfidenceTrainer, tmp_path, build(), ROWS,
        more={"gamma": 1.0, "eval_dataset": ROWS, "data_collator": shifted},
        per_device_eval_batch_size=2, remove_unused_columns=False,
    )  # fmt: skip
    assert run.evaluate()["eval_loss"] == pytest.approx(by_token(ROWS), rel=ROUNDING)


def test_by_row() -> None:
    """Sum and number of labels of each row, by a model in training mode, without gradient."""
    compute, batch = HiddenStateLoss(build(), Focal(2.0)), batch_of(ROWS)
    sums = compute.by_row(build_attached := build(), batch)
    assert sums.shape == (len(ROWS), 2)
    assert not sums.requires_grad
    assert sums[:, 1].tolist() == [1, 23, 0, 9, 0, 17, 2]
    for row, (total, count) in zip(ROWS, sums.tolist(), strict=True):
        mean = by_token([row], build_attached, Focal(2.0)) if count else 0.0
        assert total == pytest.approx(mean * count, rel=ROUNDING)
    assert math.isnan(compute.pop_kept_share())  # it counts for nothing


class Spy(TrainerCallback):
    """As the reporting services, before all callbacks of users."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.seen.append(dict(logs))


def test_while_training_and_the_best_checkpoint(tmp_path: Path) -> None:
    """Of two sets, at each epoch; the best one is that of the right loss, and is loaded."""
    data = {"a": ROWS, "b": rows_of(3, 20, seed=5)}
    run = trainer(
        ConfidenceTrainer, tmp_path, build(), rows_of(5, 9, 23, 14, seed=2),
        more={"threshold": 0.9, "eval_dataset": data},
        num_train_epochs=4, learning_rate=0.7, per_device_eval_batch_size=2,
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="eval_b_loss", greater_is_better=False,
    )  # fmt: skip
    spy = Spy()
    run.callback_handler.callbacks.insert(0, spy)
    run.train()
    for key, rows in data.items():
        logged = [e[f"eval_{key}_loss"] for e in spy.seen if f"eval_{key}_loss" in e]
        expected = []
        for epoch in range(1, 5):
            folder = tmp_path / f"checkpoint-{epoch}"
            expected.append(by_token(rows, type(run.model).from_pretrained(folder)))
        assert logged == pytest.approx(expected, rel=ROUNDING)
        if key == "b":
            assert run.state.best_metric == pytest.approx(min(expected), rel=ROUNDING)
            assert len(set(expected)) == 4
    assert by_token(data["b"], run.model) == pytest.approx(run.state.best_metric, rel=ROUNDING)


@pytest.mark.parametrize("normalize", ["valid", "kept"])
def test_a_loss_on_logits_in_trainer(tmp_path: Path, normalize: Any) -> None:
    """By its callback: in what is returned, in the logs, and for the best checkpoint."""
    weight = Truncate(0.05)
    compute = ConfidenceLoss(weight, normalize=normalize)
    more = {
        "compute_loss_func": compute,
        "callbacks": [EvalLossByToken(compute)],
        "eval_dataset": {"x": ROWS, "y": rows_of(2, 20)},
    }
    run = trainer(
        Trainer, tmp_path, build(), ROWS, more=more, per_device_eval_batch_size=2,
        eval_strategy="epoch", save_strategy="epoch", metric_for_best_model="x_loss",
    )  # fmt: skip
    share = 1.0
    if normalize == "kept":
        sums = HiddenStateLoss(model := build(), weight)
        sums(model, batch_of(ROWS))
        share = sums.pop_kept_share()
    found = run.evaluate()
    expected = by_token(ROWS, weight=weight) / share
    assert found["eval_x_loss"] == pytest.approx(expected, rel=ROUNDING)
    assert found["eval_y_loss"] == pytest.approx(
        found["eval_y_loss"] if normalize == "kept" else by_token(rows_of(2, 20), weight=weight),
        rel=ROUNDING,
    )
    logged = [e["eval_x_loss"] for e in run.state.log_history if "eval_x_loss" in e]
    assert logged == [found["eval_x_loss"]]
    assert run.predict(ROWS).metrics["test_loss"] == pytest.approx(expected, rel=ROUNDING)
    run.train()
    logged = [e["eval_x_loss"] for e in run.state.log_history if "eval_x_loss" in e]
    assert run.state.best_metric == logged[-1] != found["eval_x_loss"]
    with pytest.warns(UserWarning, match="eval_loss is NaN"):
        run.evaluate(rows_of(0, 0))


def test_services_that_come_behind_are_told_all(tmp_path: Path) -> None:
    """The kept share and the right loss reach what reports, if it stands behind."""
    compute, spy = ConfidenceLoss(threshold=0.05), Spy()
    callbacks = [LogKeptShare(compute), EvalLossByToken(compute), spy]
    run = trainer(
        Trainer, tmp_path, build(), ROWS,
        more={"compute_loss_func": compute, "callbacks": callbacks, "eval_dataset": ROWS},
        eval_strategy="epoch", per_device_eval_batch_size=2,
    )  # fmt: skip
    run.train()
    shares = [entry["kept_share"] for entry in spy.seen if "loss" in entry]
    assert len(shares) == 2
    assert 0 < min(shares) < 1
    (told,) = [entry["eval_loss"] for entry in spy.seen if "eval_loss" in entry]
    assert told == pytest.approx(by_token(ROWS, run.model, Truncate(0.05)), rel=ROUNDING)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return scratch.train_tokenizer(["Ada was born in Rome and painted ships."], 280)


WORDS = "Ada was born in Rome and painted ships ."
PAIRS = [("Ada", f" {WORDS} {WORDS} {WORDS}"), (WORDS, " ships"), (f"{WORDS} Ada", " Rome and")]


@pytest.mark.long
@pytest.mark.parametrize("metrics", [None, shapes], ids=["without logits", "logits"])
def test_in_trl(tmp_path: Path, tokenizer: Any, metrics: Any) -> None:
    """Loss, entropy and accuracy of one row at a time are those of all rows in one batch."""
    datasets.disable_progress_bars()
    prompts, completions = zip(*PAIRS, strict=True)
    data = datasets.Dataset.from_dict({"prompt": prompts, "completion": completions})
    special = {n: getattr(tokenizer, n) for n in ("pad_token_id", "eos_token_id")}

    def evaluated(cls: Any, size: int, **changes: Any) -> dict[str, float]:
        settings = {
            **SETTINGS, "bf16": False, "gradient_checkpointing": False, "max_length": 256,
            "per_device_eval_batch_size": size, **changes,
        }  # fmt: skip
        model = build(
            vocab_size=len(tokenizer), bos_token_id=None, max_position_embeddings=256, **special
        )
        run = cls(
            model, args=SFTConfig(output_dir=str(tmp_path), **settings), train_dataset=data,
            eval_dataset=data, processing_class=tokenizer, compute_metrics=metrics,
            **({"threshold": 0.01} if cls is ConfidenceSFTTrainer else {}),
        )  # fmt: skip
        found: dict[str, float] = run.evaluate()
        return found

    whole = evaluated(SFTTrainer, 3)
    apart = evaluated(SFTTrainer, 1)
    changes = [{}] if metrics else [{}, {"padding_free": True, "max_length": None}]
    for key in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
        for size in (1, 2, 3):
            for change in changes:
                found = evaluated(ConfidenceSFTTrainer, size, **change)[key]
                assert found == pytest.approx(whole[key], rel=1e-5)  # padded or not, fp32
    assert abs(apart["eval_loss"] - whole["eval_loss"]) > 1e-2


def test_half_precision_weights_are_warned_of(tmp_path: Path) -> None:
    """Where no float32 copies are kept; the steps that it speaks of do vanish."""
    settings = {"optim": "adamw_torch", "learning_rate": 1e-5}

    def train(model: Any, **more: Any) -> tuple[Any, float]:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        run = trainer(
            ConfidenceTrainer, tmp_path, model, ragged(16), more={"gamma": 1.0, **more}, **settings
        )
        run.train()
        after = run.model.state_dict()
        moved = sum(int((after[k] != v).sum()) for k, v in before.items())
        return run, moved / sum(v.numel() for v in before.values())

    half = build().to(torch.bfloat16)
    with pytest.warns(UserWarning, match=r"tensors are bfloat16, of which AdamW keeps no float32"):
        _, moved = train(half)
    _, moved_in_float32 = train(build())  # without a warning, which is an error here
    assert moved < 0.5 * moved_in_float32
    frozen = build().to(torch.bfloat16)
    frozen.requires_grad_(False)
    frozen.lm_head.float().requires_grad_(True)
    frozen.lm_head.register_forward_pre_hook(lambda _, args: (args[0].float(),))
    own = torch.optim.SGD(frozen.lm_head.parameters(), lr=0.1)
    train(frozen, optimizers=(own, None))

    class Careful(torch.optim.SGD):
        """Of another package, which may keep copies."""

    other = build().to(torch.bfloat16)
    train(other, optimizers=(Careful(other.parameters(), lr=0.1), None))
