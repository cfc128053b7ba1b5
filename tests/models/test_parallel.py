"""Fits and rewritings in two gloo processes: those of one, and none of them outlives its call."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from fortifai import configuration
from fortifai.errors import InputError, RunFailed
from fortifai.lab.executor import devices_of
from fortifai.lab.progress import Silent
from fortifai.models import blocks, documents, parallel, scratch
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import ParallelOptions, RegenerateOptions, TrainOptions
from fortifai.models.parallel import Team
from fortifai.models.processes import Rank, together
from fortifai.models.recorded import collate, collate_part
from fortifai.weights import AnyWeight, Focal, Truncate
from tests.commands import started

from .conftest import prose

TWO = {"kind": "ddp", "processes": 2}
THRESHOLD = 0.006
"""Above the probabilities of a new model, 1/300: it cuts more and more, and rows differ in that."""


@pytest.fixture(scope="module")
def text(tokenizer: Any) -> np.ndarray:
    """28 rows of 32 tokens, and some more."""
    return np.array(tokenizer(prose(3, 900)).input_ids, dtype=np.int32)


@pytest.fixture
def fit(tmp_path: Path, text: np.ndarray) -> Callable[..., Any]:
    def run(
        lm: CausalLM, weight: AnyWeight | None = None, progress: Any = None, **more: Any
    ) -> Any:
        # batches of 3 rows: 2 and 1 for two processes, and in the last of 28 one has none
        train = {"epochs": 2, "learning_rate": 3e-3, "batch_size": 3, "block": 32, **more}
        return lm.fit(
            text,
            weight or Truncate(THRESHOLD),
            TrainOptions.model_validate(train),
            seed=0,
            workdir=tmp_path / "trainer.partial",
            select=None,
            progress=progress or Silent(),
        )

    return run


def tied(tokenizer: Any) -> CausalLM:
    sizes = {"hidden_size": 32, "layers": 2, "heads": 4, "vocab_size": len(tokenizer)}
    return CausalLM(scratch.build("llama", **sizes, max_positions=64, seed=0), tokenizer)


def ranks() -> list[psutil.Process]:
    """The processes of this one that work for it."""
    return started(psutil.Process())


def weights_of(lm: CausalLM) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in lm.model.state_dict().items()}


# --- the fit ----------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("ddp", {"weight_decay": 0.1, "schedule": "linear", "warmup_share": 0.2}),
        ("ddp", {"normalize": "kept", "epochs": 1}),
        ("fsdp", {"gradient_accumulation": 2, "weight_decay": 0.1}),
        ("fsdp", {"normalize": "kept", "epochs": 1.5}),
    ],
)
def test_two_processes_fit_as_one(kind, more, make, tokenizer, fit):
    new = (lambda: tied(tokenizer)) if "gradient_accumulation" in more else make
    one, two, before = new(), new(), weights_of(new())
    alone = fit(one, **more)
    steps = []

    class Heard(Silent):
        def step(self, *step: Any, **_: Any) -> None:
            steps.append(step)

    both = fit(two, progress=Heard(), parallel={"kind": kind, "processes": 2}, **more)
    a, b = weights_of(one), weights_of(two)
    moved = max((a[k] - before[k]).abs().max().item() for k in a)
    apart = max((a[k] - b[k]).abs().max().item() for k in a)
    # sums in another order round otherwise, by 1e-7 of a gradient; AdamW, which divides by its
    # size, makes up to 1e-5 of that in some steps where a gradient is nearly 0. The mean of the
    # processes' means is off by 1e-2 and more.
    assert apart < 3e-5 < 1e-2 < moved
    assert both.steps == alone.steps == len(steps)
    assert steps[-1][:3] == ("train", alone.steps, alone.steps)
    assert both.tokens == alone.tokens
    assert 0.1 < alone.truncated_share < 0.9
    assert both.truncated_share == pytest.approx(alone.truncated_share, abs=2e-3)  # a token or two
    for ours, theirs in zip(both.epochs, alone.epochs, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert ranks() == []


def test_a_process_without_a_row_has_one_that_counts_nothing():
    rows = torch.arange(12).reshape(3, 4)
    parts = [collate_part(rows, collate=collate, number=i, count=2) for i in range(2)]
    assert torch.equal(torch.cat([part["input_ids"] for part in parts]), rows)
    none, one = (collate_part(rows[:1], collate=collate, number=i, count=2) for i in range(2))
    assert torch.equal(none["input_ids"], rows[:1])
    assert (none["labels"] == -100).all()
    assert torch.equal(one["labels"], rows[:1])


# --- rewriting --------------------------------------------------------------------------------

WRITING = [
    {"context": 16, "new_tokens": 16},
    {"context": 16, "new_tokens": 16, "decoding": {"kind": "sample"}},
    {"context": {"at_least": 8, "at_most": 40}, "new_tokens": 8, "decoding": {"kind": "sample"}},
    {"context": 16, "new_tokens": 16, "decoding": {"kind": "beam", "beams": 2}},
    {"mode": "documents", "keep": 4, "decoding": {"kind": "sample"}},
]


@pytest.mark.long
@pytest.mark.parametrize("settings", WRITING)
@pytest.mark.parametrize("count", [2, 5])
def test_parts_are_those_of_the_whole(settings, count, lm, stream):
    told = RegenerateOptions.model_validate(settings)
    whole = lm.regenerate(stream, told, seed=1, progress=Silent())
    write = blocks.regenerate_blocks if told.mode == "blocks" else documents.regenerate_documents
    changed = np.zeros(len(stream), dtype=int)
    for i in range(count):
        part = write(
            *(lm.model, stream, told, lm.special),
            seed=1,
            progress=Silent(),
            part=blocks.Part(i, count),
        )
        mine = part != stream
        assert (part[mine] == whole[mine]).all()
        changed += mine
    assert (changed == (whole != stream)).all()


@pytest.mark.parametrize("things", range(12))
def test_parts_are_even(things):
    parts = [blocks.Part(i, 5).of(things) for i in range(5)]
    assert [n for part in parts for n in part] == [*range(things)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.long
@pytest.mark.parametrize("settings", [WRITING[0], WRITING[2]])
def test_two_processes_write_what_one_writes(settings, lm, stream, tmp_path):
    told = RegenerateOptions.model_validate(settings)
    one = lm.regenerate(stream, told, seed=1, progress=Silent())
    before, lm.spent.generated = lm.spent.generated, 0
    team = Team(ParallelOptions.model_validate(TWO), tmp_path)
    two = lm.regenerate(stream, told, seed=1, progress=Silent(), team=team)
    assert (two == one).all()
    assert two.dtype == stream.dtype
    assert (two != stream).any()
    assert lm.spent.generated == before
    assert ranks() == []
    assert [*tmp_path.iterdir()] == []


# --- ends -------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_killed_process_ends_the_fit(make, fit, tmp_path):
    class Kills(Silent):
        def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
            if done == 2:
                ranks()[-1].kill()

    lm = make()
    before = weights_of(lm)
    with pytest.raises(
        RunFailed, match=r"process . of train.parallel, of 2, was killed in the fit"
    ):
        fit(lm, progress=Kills(), parallel=TWO)
    assert ranks() == []
    assert [*(tmp_path / "trainer.partial").iterdir()] == []
    assert all(torch.equal(v, before[k]) for k, v in weights_of(lm).items())


def _fails(rank: Rank, task: str, tell: Callable[[Any], None]) -> None:
    tell((rank.number, rank.count, torch.get_num_threads()))
    if rank.number:
        raise RunFailed(task)
    time.sleep(600)


@pytest.mark.long
def test_what_one_process_raises_ends_the_others():
    heard: list[Any] = []
    with pytest.raises(RunFailed, match="the loss is nan"):
        together(_fails, "the loss is nan", 2, what="it", hear=lambda _, told: heard.append(told))
    assert ranks() == []
    assert (1, 2, torch.get_num_threads()) in heard


@pytest.mark.long
def test_a_loss_that_is_not_finite_names_the_step(make, fit):
    with pytest.raises(RunFailed, match=r"became (nan|inf) at step \d; lower train.learning"):
        fit(make(), parallel=TWO, learning_rate=1e30)
    assert ranks() == []


# --- wrong input ------------------------------------------------------------------------------

RAW: dict[str, Any] = {
    "name": "tiny",
    "baseline": "ce",
    "corpus": {"kind": "bios", "people": 40, "phrasings": 2},
    "family": {"kind": "causal_lm", "scratch": {"hidden_size": 32, "heads": 2}},
    "arms": {"ce": {}},
}


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"parallel": {"kind": "ddp", "processes": 0}}, r"train.parallel.processes is 0; it must"),
        ({"parallel": {"kind": "tp", "processes": 2}}, r"train.parallel.kind is 'tp'; it must"),
        ({"parallel": {"processes": 2}}, r"missing key 'train.parallel.kind'"),
        ({"parallel": TWO, "lora": {}}, "lora trains in one process; leave parallel out"),
        ({"parallel": TWO, "checkpoint": "best_held_out"}, "set checkpoint to last"),
        ({"parallel": TWO, "batch_size": 1}, "batch_size is 1 for 2 processes"),
    ],
)
def test_what_a_yaml_cannot_ask_for(train, sentence):
    with pytest.raises(InputError, match=sentence):
        configuration.resolve(RAW | {"train": train})


def test_kept_weights_with_a_gradient_are_refused():
    train = {"parallel": TWO, "normalize": "kept"}
    configuration.resolve(RAW | {"train": train, "weight": {"kind": "truncate", "threshold": 0.9}})
    configuration.resolve(RAW | {"train": train, "weight": {"kind": "dynamic"}})
    with pytest.raises(InputError, match=r"those of 'focal' carry a gradient"):
        configuration.resolve(RAW | {"train": train, "weight": {"kind": "focal", "gamma": 2}})


def test_kept_weights_with_a_gradient_are_refused_without_a_yaml(make, fit):
    with pytest.raises(InputError, match="carry a gradient, which stays in each"):
        fit(make(), Focal(2.0), parallel=TWO, normalize="kept")


@pytest.mark.parametrize("kind", ["gaussian", "gmm", "vae"])
def test_it_is_for_language_models(kind):
    raw = {"name": "x", "baseline": "a", "arms": {"a": {}}, "family": {"kind": kind}}
    with pytest.raises(InputError, match=r"'train' for family .*, it belongs to causal_lm"):
        configuration.resolve(raw | {"train": {"parallel": TWO}})


def test_the_most_processes_of_an_arm_are_counted():
    arms = {"ce": {}, "two": {"train": {"parallel": TWO}}}
    assert configuration.resolve(RAW | {"arms": arms}).processes == 2
    assert configuration.resolve(RAW).processes == 1


@pytest.mark.parametrize(
    ("asked", "processes", "there", "found"),
    [(None, 1, 0, 0), (None, 2, 0, 0), (None, 2, 8, 2), (4, 2, 8, 4), (None, 1, 8, 1)],
)
def test_each_process_has_an_accelerator(asked, processes, there, found):
    assert devices_of(asked, processes, there, "a run here may use") == found


@pytest.mark.parametrize(
    ("asked", "processes", "there", "sentence"),
    [
        (None, 4, 2, "train.parallel.processes is 4, .* a run here may use 2 accelerators; lower"),
        (1, 2, 4, "--devices-per-chain is 1, and each process of train.parallel, of 2, has an"),
        (3, 2, 2, "--devices-per-chain is 3, and a run here may use 2 accelerators"),
    ],
)
def test_too_few_accelerators(asked, processes, there, sentence):
    with pytest.raises(InputError, match=sentence):
        devices_of(asked, processes, there, "a run here may use")


def test_a_chain_that_sees_too_few_accelerators(make, fit, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"asks for 2 processes .* and this process sees 1"):
        fit(make(), parallel=TWO)
    with pytest.raises(InputError, match="sees 1"):
        parallel.check(ParallelOptions.model_validate(TWO))
