"""`train.compile`: the layers compiled while a model is trained, with the same weights in the end.

Most tests take a backend that makes graphs and no code of them: what could differ by our doing
(which part is compiled, when, and that it is put back) shows there within seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch._dynamo.utils import counters

from fortifai.errors import InputError
from fortifai.lab.progress import Silent
from fortifai.models import compiled
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import TrainOptions
from fortifai.models.training import FitReport
from fortifai.weights import Truncate

# some steps of AdamW at 3e-3 from gradients that differ by fp32's rounding: where one is nearly 0,
# a step of 3e-3 is divided by its own size and shows it; 3e-6 was seen
ROUNDING = 5e-5

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def with_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(compiled, "BACKEND", name)
    assert not compiled._fault(name, torch.device("cpu"))  # a graph of its own, made once
    counters.clear()
    yield name
    torch.compiler.reset()


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def backend(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from with_backend(request.param, monkeypatch)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from with_backend("aot_eager", monkeypatch)


def fit(lm: CausalLM, folder: Path, select: Any = None, **changes: Any) -> FitReport:
    """Five steps an epoch, of four rows of 32 tokens each."""
    samples = np.random.default_rng(0).integers(1, lm.model.config.vocab_size, 20 * 32)
    train = {"epochs": 2, "learning_rate": 3e-3, "batch_size": 4, "block": 32, **changes}
    return lm.fit(
        samples.astype(np.int32),
        Truncate(0.9),
        TrainOptions.model_validate(train),
        seed=0,
        workdir=folder,
        select=select,
        progress=Silent(),
    )


@pytest.mark.long
def test_a_compiled_fit_ends_where_another_does(make: Any, tmp_path: Path, backend: str) -> None:
    plain, quickly = make(), make()
    expected = fit(plain, tmp_path)
    found = fit(quickly, tmp_path, compile=True)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.truncated_share == pytest.approx(expected.truncated_share, abs=1e-6)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(
            quickly.model.state_dict()[name], value, atol=ROUNDING, rtol=0, msg=name
        )
    assert counters["stats"]["unique_graphs"] == 1  # the layers, whole: nothing broke them
    assert not counters["graph_break"]
    assert "forward" not in quickly.model.base_model.__dict__


@pytest.mark.long
def test_what_selects_runs_uncompiled(make: Any, tmp_path: Path, quick: str) -> None:
    """It reads sequences of lengths of its own, each of which would be another graph."""
    lm = make()
    asked: list[int] = []

    def select(model: CausalLM) -> float:
        asked.append(int(model.log_prob(np.arange(1, 12 + len(asked), dtype=np.int32)).size))
        return -float(len(asked))

    fit(lm, tmp_path, select, compile=True, checkpoint="best_held_out", epochs=3)
    assert asked == [11, 12, 13]
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.long
def test_every_fit_begins_with_no_graphs(make: Any, tmp_path: Path, quick: str) -> None:
    """PyTorch allows eight of a function, here two; beyond that it runs it uncompiled."""
    lm = make()
    with torch._dynamo.config.patch(recompile_limit=2):
        for block in (16, 18, 20):
            before = counters["stats"]["unique_graphs"]
            # rows that fill whole batches: one shape
            fit(lm, tmp_path, compile=True, epochs=0.1, block=block, batch_size=1)
            assert counters["stats"]["unique_graphs"] == before + 1


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"lora": {"r": 2}}, "lora compute gradients of their own"),
        ({"parallel": {"kind": "ddp", "processes": 2}}, "fits in one process"),
    ],
)
def test_what_compiling_breaks_with_is_refused(more: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TrainOptions.model_validate({"compile": True, **more})


def test_a_machine_that_cannot_compile_is_told_before_a_fit(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(compiled, "BACKEND", "of no machine")
    monkeypatch.setattr(torch, "compile", missing)
    lm = make()
    before = {k: v.clone() for k, v in lm.model.state_dict().items()}
    with pytest.raises(InputError, match=r"nothing can be compiled here .*no C\+\+ compiler"):
        fit(lm, tmp_path, compile=True)
    assert all(torch.equal(before[k], v) for k, v in lm.model.state_dict().items())


def test_a_model_that_cannot_be_compiled_is_told_so(
    make: Any, tmp_path: Path, quick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(graph: Any, inputs: Any) -> Any:
        raise ValueError("no code for this")

    monkeypatch.setattr(compiled, "_fault", lambda backend, device: "")
    monkeypatch.setattr(compiled, "BACKEND", fails)
    lm = make()
    with pytest.raises(InputError, match=r"LlamaForCausalLM cannot be compiled .*no code for this"):
        fit(lm, tmp_path, compile=True)
    assert "forward" not in lm.model.base_model.__dict__


def test_other_errors_of_a_fit_stay_what_they_are(make: Any) -> None:
    with pytest.raises(ZeroDivisionError), compiled.layers(make().model, True):
        raise ZeroDivisionError


def test_a_model_without_a_part_for_its_layers_is_refused(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make().model
    monkeypatch.setattr(type(model), "base_model", property(lambda self: self))
    with (
        pytest.raises(InputError, match="all but the output layer"),
        compiled.layers(model, True),
    ):
        pass
