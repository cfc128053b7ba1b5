"""`ConfidenceSFTTrainer` beside TRL's SFTTrainer: packing, masks of prompts, adapters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import peft
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from fortifai.errors import InputError
from fortifai.integrations.trl import ConfidenceSFTTrainer
from fortifai.models import scratch
from fortifai.weights import DFT

from .tiny import SETTINGS, build, furthest, weights_of

pytestmark = pytest.mark.filterwarnings(
    # transformers 5.23 renames this for version 6; PEFT 0.21 and TRL 1.16 use the old names
    "ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning",
    # TRL 1.16 has it still
    "ignore:The `'keep_end'` truncation mode:FutureWarning",
)
ROUNDING = 3e-6  # fp32, sums in another order, over 3 steps
WORDS = ["Ada", "Bo", "Cy", "was", "born", "in", "Rome", "Oslo", "and", "painted", "ships", "."]
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, int(n))) for n in RNG.integers(4, 14, 12)]


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return scratch.train_tokenizer(TEXTS, 280)


def data(kind: str = "text") -> datasets.Dataset:
    if kind != "prompt":
        return datasets.Dataset.from_dict({"text": TEXTS})
    halves = [(t.split()[:2], t.split()[2:]) for t in TEXTS]
    return datasets.Dataset.from_dict(
        {
            "prompt": [" ".join(one) for one, _ in halves],
            "completion": [" " + " ".join(two) for _, two in halves],
        }
    )


@pytest.fixture
def sft(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Any:
    def make(
        cls: type,
        kind: str = "text",
        /,
        adapter: Any = None,
        more: Any = None,
        train: Any = None,
        **changes: Any,
    ) -> Any:
        settings = {
            **SETTINGS,
            "max_length": 64,
            "bf16": False,
            "gradient_checkpointing": False,
            **changes,
        }
        special = {n: getattr(tokenizer, n) for n in ("pad_token_id", "eos_token_id")}
        torch.manual_seed(0)
        return cls(
            build(vocab_size=len(tokenizer), bos_token_id=None, **special),
            args=SFTConfig(output_dir=str(tmp_path), **settings),
            train_dataset=data(kind) if train is None else train,
            eval_dataset=data(kind).select(range(4)),
            processing_class=tokenizer,
            peft_config=adapter,
            **(more or {}),
        )

    return make


def after(run: Any) -> dict[str, torch.Tensor]:
    run.train()
    return weights_of(run.model)


PACKED = {"packing": True, "per_device_train_batch_size": 2}
LORA = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, task_type="CAUSAL_LM")


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "changes", "adapter"),
    [
        ("text", {}, None),
        ("prompt", {}, None),
        ("prompt", {"completion_only_loss": False}, None),
        ("text", PACKED, None),
        ("text", {"gradient_accumulation_steps": 3}, LORA),
    ],
    ids=["text", "completion only", "prompt and completion", "packed", "lora"],
)
def test_keeping_all_is_their_own_loss(sft: Any, kind: str, changes: Any, adapter: Any) -> None:
    """TRL scores in tiles of its own; logs of both stand beside each other."""
    theirs, ours, cut = (
        sft(cls, kind, adapter=adapter, more=more, **changes)
        for cls, more in [
            (SFTTrainer, None),
            (ConfidenceSFTTrainer, {"threshold": 1.0}),
            (ConfidenceSFTTrainer, {"threshold": 1e-3}),
        ]
    )
    expected = after(theirs)
    assert furthest(after(ours), expected) < ROUNDING
    assert furthest(after(cut), expected) > 1e-4  # it is our loss that ran
    for entry, own in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        if "loss" in entry:
            assert entry["loss"] == pytest.approx(own["loss"], rel=1e-5)
            assert entry["num_tokens"] == own["num_tokens"]
            assert entry["kept_share"] == 1
            for name in ("entropy", "mean_token_accuracy"):
                assert entry[name] == pytest.approx(own[name], rel=1e-5)
    shares = [e["kept_share"] for e in cut.state.log_history if "loss" in e]
    assert 0 < min(shares) < 1


def test_their_dft_is_ours(sft: Any) -> None:
    """The weight p without gradient, in both (2508.05629)."""
    theirs = after(sft(SFTTrainer, loss_type="dft"))
    assert furthest(after(sft(ConfidenceSFTTrainer, more={"weight": DFT()})), theirs) < ROUNDING


def test_packed_is_unpacked(sft: Any) -> None:
    """All rows in one step, in packs or one to a row."""
    more, runs = {"threshold": 1e-3}, []
    for changes in (
        {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"per_device_train_batch_size": 12},
        {"per_device_train_batch_size": 12, "padding_free": True, "max_length": None},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
    ):
        run = sft(ConfidenceSFTTrainer, more=more, **changes)
        assert len(run.train_dataset) < 8 or "packing" not in changes
        runs.append(after(run))
        assert run.state.global_step == 1
    for other in runs[1:]:
        assert furthest(runs[0], other) < ROUNDING


def test_evaluation_is_their_own(sft: Any) -> None:
    theirs = sft(SFTTrainer).evaluate()
    ours = sft(ConfidenceSFTTrainer, more={"threshold": 1e-3}).evaluate()
    for name in ("eval_loss", "eval_mean_token_accuracy", "eval_entropy"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-6)  # added up in fp64


def test_what_it_refuses(sft: Any) -> None:
    with pytest.raises(InputError, match="0 of weight, threshold and gamma"):
        sft(ConfidenceSFTTrainer)
    with pytest.raises(InputError, match="loss_type is 'dft'"):
        sft(ConfidenceSFTTrainer, more={"threshold": 0.9}, loss_type="dft")
    with pytest.raises(InputError, match="leave compute_loss_func out"):
        sft(ConfidenceSFTTrainer, more={"threshold": 0.9, "compute_loss_func": print})


def some(kind: str, keep: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The data with weights for each sample, or each token of it; and the data that are kept."""
    whole = data(kind)
    if kind == "tokens":
        ids = [tokenizer(text)["input_ids"] for text in TEXTS]
        whole = datasets.Dataset.from_dict({"input_ids": ids})
        weights: Any = [[2.0 * bool(k)] * len(i) for k, i in zip(keep, ids, strict=True)]
    else:
        weights = [2.0 * bool(k) for k in keep]
    return whole.add_column("loss_weights", weights), whole.select(np.flatnonzero(keep))


BATCHES = {
    "padded": {"per_device_train_batch_size": 12},
    "packed": {"packing": True, "per_device_train_batch_size": 8},
    "padding-free": {"padding_free": True, "max_length": None, "per_device_train_batch_size": 12},
    "cut": {"max_length": 6, "per_device_train_batch_size": 12},
    "cut at the start": {
        "max_length": 6,
        "truncation_mode": "keep_end",
        "per_device_train_batch_size": 12,
    },
    "accumulated": {"shuffle_dataset": True, "gradient_accumulation_steps": 3},
}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["text", "prompt", "tokens"])
@pytest.mark.parametrize("batches", BATCHES)
def test_samples_of_weight_zero_are_not_there(
    sft: Any, tokenizer: PreTrainedTokenizerFast, kind: str, batches: str
) -> None:
    """Over the sum of weights, in one step: others' weights of 2 are weights of 1."""
    changes: dict[str, Any] = BATCHES[batches]
    keep = np.arange(12) % 3 != 1
    more = {"threshold": 1e-3, "normalize": "weight_sum"}
    weighed, fewer = some(kind, keep, tokenizer)
    run = sft(ConfidenceSFTTrainer, kind, more=more, train=weighed, **changes)
    found = after(run)
    assert "loss_weights" in run.train_dataset.column_names
    assert run.state.global_step == 1
    assert (
        furthest(found, after(sft(ConfidenceSFTTrainer, kind, more=more, train=fewer, **changes)))
        < ROUNDING
    )
    everything, _ = some(kind, np.ones(12), tokenizer)
    all_of_it = after(sft(ConfidenceSFTTrainer, kind, more=more, train=everything, **changes))
    assert furthest(found, all_of_it) > 1e-3


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_packed_weights_stand_beside_their_tokens(
    sft: Any, tokenizer: PreTrainedTokenizerFast, strategy: str
) -> None:
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    weights = [[float(token) for token in row] for row in ids]
    given = datasets.Dataset.from_dict({"input_ids": ids, "loss_weights": weights})
    run = sft(
        ConfidenceSFTTrainer, more={"threshold": 0.9}, train=given, packing=True, max_length=40,
        packing_strategy=strategy,
    )  # fmt: skip
    assert len(run.train_dataset) < 12
    for row in run.train_dataset:
        assert row["loss_weights"] == row["input_ids"]
    batch = run.data_collator([dict(row) for row in run.train_dataset])
    read = batch["labels"] != -100
    assert torch.equal(batch["loss_weights"][read].long(), batch["input_ids"][read])


def test_weights_that_do_not_fit_the_tokens(sft: Any) -> None:
    texts = datasets.Dataset.from_dict({"text": TEXTS, "loss_weights": [[1.0, 2.0]] * 12})
    with pytest.raises(InputError, match=r"is \(2,\) and its labels are"):
        sft(ConfidenceSFTTrainer, more={"threshold": 0.9}, train=texts)


@pytest.mark.parametrize("package", ["trl", "lightning"])
def test_without_the_package(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; import fortifai.integrations.{package}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"needs the package {package}" in done.stderr
    assert f"pip install 'fortifai[{package}]'" in done.stderr
