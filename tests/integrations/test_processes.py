"""Two processes, started as users start them, train as one does: DDP, FSDP2, Accelerate, on gloo.

Each test starts `worker.py`, which trains in several ways at once: starting is what takes long.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fortifai import linear_truncated_cross_entropy
from fortifai.integrations.hidden_states import HiddenStateLoss

from .tiny import batch_of, build, furthest, weights_of
from .worker import (
    DATA,
    THRESHOLD,
    evaluated,
    problem,
    with_a_plain_loop,
    with_lightning,
    with_trainer,
)

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings(
        "ignore:The .*dataloader.* does not have many workers",
        # Lightning 2.6 uses what torch 2.13 renamed
        "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
    ),
]

WORKER = Path(__file__).with_name("worker.py")
ROUNDING = 1e-6  # fp32 gradients, summed in another order, over 4 steps


def started(tmp_path: Path, what: str, *launcher: str, **environment: str) -> dict[str, Any]:
    file = tmp_path / "results.pt"
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(WORKER), what, str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results: dict[str, Any] = torch.load(file)
    assert results["processes"] == 2
    return results


def alone() -> dict[str, torch.Tensor]:
    model = build()
    with_a_plain_loop(model, model, 0, 1)
    return weights_of(model)


def test_torchrun(tmp_path: Path) -> None:
    results = started(
        tmp_path, "torchrun", "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    )
    weights, shares = with_trainer(1)
    assert furthest(results["trainer"], weights) < ROUNDING
    assert results["shares"] == pytest.approx(shares, abs=1e-12)  # of both processes
    assert furthest(results["watched"], results["trainer"]) == 0  # a monitor changes nothing
    assert results["readings"] == [0, 4]
    assert results["evaluated"] == pytest.approx(evaluated(), rel=2e-6)  # fp32
    for one, other in zip(results["lightning"], with_lightning(), strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()
    expected = alone()
    for name in (
        "page, DDP",
        "page, FSDP2",
        "DDP",
        "FSDP2",
        "FSDP2, head apart",
        "FSDP2, from one",
    ):
        assert furthest(results[name], expected) < ROUNDING, name
    assert furthest(expected, weights_of(build())) > 1e-2
    h, w, b, target = problem()
    leaves = [t.requires_grad_() for t in (h, w, b)]
    value = linear_truncated_cross_entropy(
        h, w, target, threshold=0.3, linear_bias=b, reduction="sum"
    )
    value.backward()
    for name, right in zip(
        ("loss", "h", "w", "b"), (value, *(t.grad for t in leaves)), strict=True
    ):
        for dim in (0, 1):  # fp64, summed in another order
            torch.testing.assert_close(
                results["head"][f"{name} {dim}"], right, rtol=1e-12, atol=1e-14
            )


def test_accelerate_launch(tmp_path: Path) -> None:
    """--multi_gpu starts processes by torchrun, on the CPU as well; --cpu alone would start one."""
    results = started(
        tmp_path,
        "accelerate",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes=2",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--main_process_port=0",
        ACCELERATE_USE_CPU="true",
    )
    assert furthest(results["accelerate"], alone()) < ROUNDING
    # four micro-batches on each of two processes are eight rows
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for start in (0, 8):
        HiddenStateLoss(model, threshold=THRESHOLD)(
            model, batch_of(DATA[start : start + 8])
        ).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert furthest(results["page"], weights_of(model)) < ROUNDING
