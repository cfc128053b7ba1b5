"""`ConfidenceTrainer` beside transformers' Trainer, on small real models."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BatchEncoding,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    default_data_collator,
)

from fortifai.errors import InputError
from fortifai.integrations.transformers import ConfidenceLoss, ConfidenceTrainer, LogKeptShare
from fortifai.models import scratch
from fortifai.weights import Focal, Keep, Truncate

from .tiny import VOCABULARY, batch_of, build, furthest, ragged, trained, trainer, weights_of

NAMES = ["llama", "gemma2", "gpt2", "opt", "qwen3", "mistral", "phi", "granite"]
# Weights after 4 steps that started from fp32 gradients whose sums ran in another order
ROUNDING = 3e-6
DATA = ragged(16)
# Trainer counts the first label of each row, which is no target, for models whose class is not
# called ...ForCausalLM: GPT-2. Beside Trainer they get rows where it is none that counts
COUNTED_ALIKE = ragged(16, first=False)

pytestmark = pytest.mark.filterwarnings(
    # PEFT 0.21 asks transformers 5.23 by a name that it gives up in version 6
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_the_same_as_on_logits(tmp_path: Path, name: str) -> None:
    weight = Truncate(0.05) if name in ("llama", "gpt2", "phi") else Focal(2.0)
    start = weights_of(build(name))
    on_logits, logs = trained(
        Trainer,
        tmp_path,
        build(name),
        COUNTED_ALIKE,
        more={"compute_loss_func": ConfidenceLoss(weight)},
    )
    ours, our_logs = trained(
        ConfidenceTrainer, tmp_path, build(name), COUNTED_ALIKE, more={"weight": weight}
    )
    assert furthest(ours, on_logits) < ROUNDING
    assert furthest(ours, start) > 1e-2
    assert [e["loss"] for e in our_logs] == pytest.approx([e["loss"] for e in logs], rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_keeping_all_is_the_trainers_own_cross_entropy(tmp_path: Path, name: str) -> None:
    own, _ = trained(Trainer, tmp_path, build(name), COUNTED_ALIKE)
    ours, cut = (
        trained(ConfidenceTrainer, tmp_path, build(name), COUNTED_ALIKE, more={"threshold": t})[0]
        for t in (1.0, 1 / VOCABULARY)
    )
    assert furthest(ours, own) < ROUNDING
    assert furthest(cut, own) > 1e-3


class NotTold(ConfidenceTrainer):
    """A mistake: each micro-batch divided by its own labels, and then by their number."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Any:
        return super().compute_loss(model, inputs) / 4


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_accumulation_changes_nothing(tmp_path: Path, name: str) -> None:
    more = {"gamma": 2.0}
    once, _ = trained(
        ConfidenceTrainer, tmp_path, build(name), DATA, more=more, per_device_train_batch_size=8
    )
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    four, _ = trained(ConfidenceTrainer, tmp_path, build(name), DATA, more=more, **parts)
    assert furthest(once, four) < ROUNDING
    wrong, _ = trained(NotTold, tmp_path, build(name), DATA, more=more, **parts)
    assert furthest(once, wrong) > 1e-3


class CountsAll(ConfidenceTrainer):
    """As on older versions of transformers, which counted the first labels of the rows, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loss_shifts_labels = False


def test_first_labels_are_not_counted_by_any_version(tmp_path: Path) -> None:
    data = [{**row, "labels": row["input_ids"].clone()} for row in DATA]
    collators = (default_data_collator, lambda rows: BatchEncoding(default_data_collator(rows)))
    results = [
        trained(cls, tmp_path, build(), data, more={"threshold": 0.05, "data_collator": collator})[
            0
        ]
        for cls in (ConfidenceTrainer, CountsAll)
        for collator in collators  # those of transformers give no dict
    ]
    assert all(furthest(results[0], other) == 0 for other in results[1:])


@pytest.mark.parametrize("labels", ["shift_labels alone", "both"])
def test_labels_that_stand_in_place_are_counted_too(tmp_path: Path, labels: str) -> None:
    def shifted(rows: Any) -> Any:
        batch = default_data_collator(rows)
        batch["shift_labels"] = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
        if labels != "both":
            del batch["labels"]
        return batch

    more = {"gamma": 2.0}
    expected, _ = trained(
        ConfidenceTrainer, tmp_path, build(), DATA, more=more, per_device_train_batch_size=8
    )
    found, _ = trained(
        ConfidenceTrainer, tmp_path, build(), DATA, more={**more, "data_collator": shifted},
        per_device_train_batch_size=2, gradient_accumulation_steps=4,
    )  # fmt: skip
    assert furthest(found, expected) < ROUNDING


def test_divided_by_the_weights_and_steps_where_nothing_counts(tmp_path: Path) -> None:
    """One step by the sum of weights, by hand; and one of labels that are all ignored."""
    rows, threshold = DATA[:8], 1 / VOCABULARY
    batch = batch_of(rows)
    model = build().double()
    nll = F.cross_entropy(
        model(input_ids=batch["input_ids"]).logits[:, :-1].transpose(1, 2),
        batch["labels"][:, 1:],
        reduction="none",
    )
    kept = (torch.exp(-nll) <= threshold) & (batch["labels"][:, 1:] != -100)
    expected = (nll[kept].sum() / kept.sum()).item()
    _, logs = trained(
        ConfidenceTrainer, tmp_path, build(), rows,
        more={"threshold": threshold, "normalize": "kept"}, per_device_train_batch_size=8,
    )  # fmt: skip
    assert logs[0]["loss"] == pytest.approx(expected, rel=1e-5)  # fp32
    nothing = [{**row, "labels": torch.full_like(row["labels"], -100)} for row in rows]
    weights, logs = trained(ConfidenceTrainer, tmp_path, build(), nothing, more={"gamma": 1.0})
    assert furthest(weights, weights_of(build())) == 0
    assert logs[0]["loss"] == 0
    assert math.isnan(logs[0]["kept_share"])


def test_a_model_that_takes_no_number_of_labels(tmp_path: Path) -> None:
    """Trainer counts labels for our loss, not for the model's."""
    more = {"threshold": 0.05}
    results = []
    for takes in (True, False):
        model = build()
        model.accepts_loss_kwargs = takes
        parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
        results.append(trained(ConfidenceTrainer, tmp_path, model, DATA, more=more, **parts)[0])
    assert furthest(*results) == 0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_step_and_its_kept_share_by_hand(tmp_path: Path, name: str) -> None:
    """One step on all rows: the loss in fp64 from the model's logits, label by label."""
    rows, threshold = DATA[:8], 1 / VOCABULARY
    batch = batch_of(rows)
    with torch.no_grad():
        p = build(name)(input_ids=batch["input_ids"]).logits.double().softmax(-1)
    each = [
        p[i, t - 1, label].item()
        for i, row in enumerate(batch["labels"].tolist())
        for t, label in enumerate(row)
        if t > 0 and label != -100
    ]
    kept = [q for q in each if q <= threshold]
    assert 0 < len(kept) < len(each)
    run = trainer(
        ConfidenceTrainer,
        tmp_path,
        build(name),
        rows,
        more={"threshold": threshold},
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    run.train()
    (entry,) = [e for e in run.state.log_history if "loss" in e]
    expected = sum(-math.log(q) for q in kept) / len(each)
    assert entry["loss"] == pytest.approx(expected, rel=1e-5)  # fp32
    assert entry["kept_share"] == pytest.approx(len(kept) / len(each), abs=1e-12)
    assert run.confidence.pop_kept_share() == entry["kept_share"]  # two accounts


class Reporter(TrainerCallback):
    """As the reporting services, before all callbacks of users."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.seen.append(dict(logs))


def test_reporters_see_the_kept_share_of_each_stretch(tmp_path: Path) -> None:
    run = trainer(ConfidenceTrainer, tmp_path, build(), DATA, more={"threshold": 0.05})
    reporter = Reporter()
    run.callback_handler.callbacks.insert(0, reporter)
    run.train()
    shares = [logs["kept_share"] for logs in reporter.seen if "loss" in logs]
    assert len(shares) == 4
    assert len(set(shares)) > 1
    assert all(0 < share <= 1 for share in shares)
    assert "kept_share" not in reporter.seen[-1]  # the summary of the training


def test_the_callback_logs_the_same_for_a_loss_on_logits(tmp_path: Path) -> None:
    _, expected = trained(ConfidenceTrainer, tmp_path, build(), DATA, more={"threshold": 0.05})
    compute = ConfidenceLoss(threshold=0.05)
    more = {"compute_loss_func": compute, "callbacks": [LogKeptShare(compute)]}
    _, logs = trained(Trainer, tmp_path, build(), DATA, more=more)
    assert [e["kept_share"] for e in logs] == [e["kept_share"] for e in expected]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_evaluation_is_cross_entropy_whatever_the_weight(tmp_path: Path, name: str) -> None:
    """With and without logits; it trains on nothing, and its tokens are not counted."""
    results = {}
    for what, cls, more in [
        ("own", Trainer, {}),
        ("keep", ConfidenceTrainer, {"weight": Keep()}),
        ("cut", ConfidenceTrainer, {"threshold": 0.05}),
        (
            "cut, with logits",
            ConfidenceTrainer,
            {"threshold": 0.05, "compute_metrics": lambda p: {"shape": p.predictions.shape[2]}},
        ),
    ]:
        run = trainer(
            cls, tmp_path, build(name), DATA, more={**more, "eval_dataset": COUNTED_ALIKE[:6]}
        )
        results[what] = run.evaluate()
        if cls is ConfidenceTrainer:
            assert math.isnan(run.confidence.pop_kept_share())
    for what, metrics in results.items():
        # fp32
        assert metrics["eval_loss"] == pytest.approx(results["own"]["eval_loss"], rel=1e-6), what
    assert results["cut, with logits"]["eval_shape"] == VOCABULARY


def test_evaluation_without_metrics_makes_no_logits(tmp_path: Path, monkeypatch: Any) -> None:
    run = trainer(
        ConfidenceTrainer,
        tmp_path,
        build(),
        DATA,
        more={"threshold": 0.05, "eval_dataset": DATA[:6]},
    )
    made = []
    run.model.lm_head.register_forward_hook(lambda m, a, output: made.append(output.numel()))
    run.evaluate()
    assert made
    assert max(made) == 1
    metrics = run.predict(DATA[:6]).predictions
    assert metrics.shape == (6, 10, VOCABULARY)


def test_training_makes_no_logits(tmp_path: Path) -> None:
    model, made = build(), []
    run = trainer(ConfidenceTrainer, tmp_path, model, DATA, more={"threshold": 0.05})
    model.lm_head.register_forward_hook(lambda m, a, output: made.append(output.numel()))
    run.train()
    assert made == [1] * 4


def test_the_real_collator_and_tokenizer(tmp_path: Path) -> None:
    """Text, padded by transformers' own collator; one row at a time is the same as four."""
    texts = ["Ada was born in Rome.", "Bo painted ships.", "Cy was born in Oslo and sailed.", "Bo."]
    tokenizer = scratch.train_tokenizer(texts, 280)
    data = [tokenizer(text) for text in texts * 2]
    more = {
        "threshold": 0.9,
        "processing_class": tokenizer,
        "data_collator": DataCollatorForLanguageModeling(tokenizer, mlm=False),
    }
    results = []
    for rows in (1, 4):
        model = build(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
        settings = {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": 4 // rows,
        }
        results.append(trained(ConfidenceTrainer, tmp_path, model, data, more=more, **settings)[0])
    assert furthest(*results) < ROUNDING


@pytest.mark.parametrize("kind", ["frozen head", "lora", "frozen body"])
def test_what_is_frozen_stays_and_the_rest_learns_as_on_logits(tmp_path: Path, kind: str) -> None:
    def model() -> Any:
        new = build()
        if kind == "frozen head":
            new.lm_head.requires_grad_(False)
        elif kind == "frozen body":
            new.model.requires_grad_(False)
        else:
            torch.manual_seed(0)
            lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, task_type="CAUSAL_LM")
            new = peft.get_peft_model(new, lora)
        return new

    start = weights_of(model())
    weight = Truncate(0.05)
    on_logits, _ = trained(
        Trainer, tmp_path, model(), DATA, more={"compute_loss_func": ConfidenceLoss(weight)}
    )
    ours, _ = trained(ConfidenceTrainer, tmp_path, model(), DATA, more={"weight": weight})
    assert furthest(ours, on_logits) < ROUNDING
    moved = {k for k in ours if not torch.equal(ours[k], start[k])}
    assert moved
    learns = {
        "frozen head": lambda k: k != "lm_head.weight",
        "frozen body": lambda k: k == "lm_head.weight",
        "lora": lambda k: "lora_" in k,
    }[kind]
    assert all(map(learns, moved))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_in_bf16(tmp_path: Path, reentrant: bool) -> None:
    """What accelerate wraps the forward in for bf16 is around ours, in either trainer."""
    results = []
    for checkpointing in (False, True):
        settings: dict[str, Any] = {"bf16": True}
        if checkpointing:
            settings |= {
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
            }
        with pytest.warns(FutureWarning) if checkpointing else _nothing():  # renamed for version 6
            run = trainer(
                ConfidenceTrainer, tmp_path, build(), DATA, more={"gamma": 2.0}, **settings
            )
            run.train()
        results.append(weights_of(run.model))
        assert run.model.model.layers[0].mlp.down_proj.weight.dtype == torch.float32
    assert furthest(*results) < 1e-6  # the same operations, some of them twice


class _nothing:  # noqa: N801
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_bf16_is_near_fp32(tmp_path: Path) -> None:
    """8 bits: some 1/256 of what is learnt, and not as far as no learning."""
    more, start = {"gamma": 2.0}, weights_of(build())
    exact, _ = trained(ConfidenceTrainer, tmp_path, build(), DATA, more=more)
    half, _ = trained(ConfidenceTrainer, tmp_path, build(), DATA, more=more, bf16=True)
    assert 0 < furthest(half, exact) < 0.1 * furthest(exact, start)


def test_saved_and_resumed(tmp_path: Path) -> None:
    """Checkpoints hold the model as it is without us; half, a checkpoint and the rest are all."""
    more = {"threshold": 0.05}
    whole, _ = trained(ConfidenceTrainer, tmp_path / "a", build(), DATA, more=more, max_steps=4)
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trained(ConfidenceTrainer, tmp_path / "b", build(), DATA, more=more, **settings)
    again = type(build()).from_pretrained(tmp_path / "b" / "checkpoint-2")
    assert weights_of(again).keys() == whole.keys()
    run = trainer(ConfidenceTrainer, tmp_path / "b", build(), DATA, more=more, **settings)
    run.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert furthest(weights_of(run.model), whole) == 0


def test_a_model_made_by_the_trainer(tmp_path: Path) -> None:
    more: dict[str, Any] = {"model_init": lambda: build()}
    ours, _ = trained(
        ConfidenceTrainer, tmp_path, None, COUNTED_ALIKE, more={**more, "threshold": 0.05}
    )
    more["compute_loss_func"] = ConfidenceLoss(threshold=0.05)
    on_logits, _ = trained(Trainer, tmp_path, None, COUNTED_ALIKE, more=more)
    assert furthest(ours, on_logits) < ROUNDING


def test_what_it_refuses(tmp_path: Path) -> None:
    def refuses(sentence: str, model: Any = None, **more: Any) -> None:
        changes = more.pop("changes", {})
        with pytest.raises(InputError, match=sentence):
            trainer(ConfidenceTrainer, tmp_path, model or build(), DATA, more=more, **changes)

    refuses("0 of weight, threshold and gamma")
    refuses("2 of weight, threshold and gamma", threshold=0.9, gamma=1.0)
    refuses("did you mean 'kept'", threshold=0.9, normalize="keept")
    refuses(
        "leave compute_loss_func out", threshold=0.9, compute_loss_func=ConfidenceLoss(gamma=1.0)
    )
    refuses("label_smoothing_factor is 0.1", threshold=0.9, changes={"label_smoothing_factor": 0.1})
    router = build()
    router.config.output_router_logits = True
    refuses("router loss", router, threshold=0.9)


def test_what_cannot_be_had_here_is_refused(tmp_path: Path) -> None:
    """Several GPUs in one process, and rows that are split, where no such machine is needed."""
    from fortifai.integrations.arguments import check_arguments

    args = SimpleNamespace(label_smoothing_factor=0, n_gpu=2)
    with pytest.raises(InputError, match=r"sees 2 GPUs in one process.*torchrun"):
        check_arguments("ConfidenceTrainer", args, None)
    args.n_gpu = 1
    for kind in ("tp", "cp", "sp"):
        config = SimpleNamespace(**{f"{kind}_enabled": True})
        with pytest.raises(InputError, match=f"{kind}_size above 1"):
            check_arguments("T", args, SimpleNamespace(parallelism_config=config))


def test_batches_that_it_cannot_serve(tmp_path: Path) -> None:
    run = trainer(ConfidenceTrainer, tmp_path, build(), DATA, more={"threshold": 0.9})
    batch = batch_of(DATA[:2])
    with pytest.raises(InputError, match="no labels"):
        run.compute_loss(run.model, {"input_ids": batch["input_ids"]})
    with pytest.raises(InputError, match="outputs are asked for in training"):
        run.compute_loss(run.model, batch, return_outputs=True)
