"""Rows that are ignored or weigh nothing leave no trace, whatever stands in them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fortifai import (
    FocalCrossEntropyLoss,
    TruncatedCrossEntropyLoss,
    linear_weighted_cross_entropy,
    weighted_cross_entropy,
)
from fortifai.weights import DFT, EAFT, AnyWeight, Focal, Keep, Truncate, TruncateQuantile

TARGET = torch.tensor([-100, 3, 5, -100, 1, 2])
IGNORED = TARGET == -100
WEIGHTS: list[AnyWeight] = [
    Keep(),
    Truncate(0.3),
    Focal(2.0),
    Focal(0.5, detach_weight=True),
    DFT(),
    EAFT(),
    EAFT(0.5, top_k=3),
    TruncateQuantile(0.6),
]
BAD = [math.nan, math.inf, -math.inf]


def logits(bad: float | None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Of six rows; of the ignored ones one is wholly bad and one in a single class."""
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    if bad is not None:
        x[0] = bad
        x[3, 2] = bad
    return x.requires_grad_()


def after(loss: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
def test_on_logits_as_if_the_ignored_rows_were_others(weight: AnyWeight, bad: float) -> None:
    """To the last bit: nothing of an ignored row reaches another one."""
    options: Any = itertools.product(
        ("mean", "sum", "none"),
        ("valid", "kept"),
        (None, 5.0),
        (torch.float32, torch.bfloat16, torch.float16),
    )
    for reduction, normalize, cap, dtype in options:
        results = []
        for value in (bad, None):
            x = logits(value, dtype)
            loss = weighted_cross_entropy(
                x, TARGET, weight=weight, reduction=reduction, normalize=normalize,
                logit_softcap=cap,
            )  # fmt: skip
            results.append(after(loss, x))
        (loss, slope), (expected, expected_slope) = results
        assert torch.equal(loss, expected)
        assert torch.equal(slope, expected_slope)
        assert (slope[IGNORED] == 0).all()
        assert (slope[~IGNORED] != 0).any()
        assert slope.isfinite().all()


def test_cross_entropy_itself_does_not() -> None:
    """Why it takes care: PyTorch's own gives NaN."""
    x = logits(math.nan)
    F.cross_entropy(x, TARGET).backward()
    assert x.grad is not None
    assert x.grad[0].isnan().all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
def test_on_hidden_states(weight: AnyWeight, bad: float) -> None:
    for dtype, reduction, cap, chunk in itertools.product(
        (torch.float32, torch.bfloat16, torch.float16), ("mean", "sum", "none"), (None, 5.0), (2, 9)
    ):
        results = []
        for value in (bad, None):
            h = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
            if value is not None:
                h[0], h[3, 1] = value, value
            w = torch.randn(8, 4, generator=torch.Generator().manual_seed(3)).to(dtype)
            leaves = (h.requires_grad_(), w.requires_grad_())
            loss = linear_weighted_cross_entropy(
                h, w, TARGET, weight=weight, reduction=reduction, logit_softcap=cap,
                chunk_size=chunk,
            )  # type: ignore[call-overload]  # reduction is a plain str here  # fmt: skip
            results.append(after(loss, *leaves))
        for found, expected in zip(*results, strict=True):
            assert torch.equal(found, expected)
            assert found.isfinite().all()
        assert (results[0][1][IGNORED] == 0).all()


@pytest.mark.parametrize("shape", ["(N, C, d)", "(C)"])
def test_of_other_shapes(shape: str) -> None:
    if shape == "(C)":
        x, target = torch.full((5,), math.nan, requires_grad=True), torch.tensor(-100)
        expected = torch.zeros(5)
    else:
        x = torch.zeros(2, 5, 3)
        x[1, :, 2] = math.inf
        x.requires_grad_()
        target = torch.tensor([[0, 1, 2], [3, 4, -100]])
        # p = 1 / 5 in each class, over five targets
        expected = (torch.full((2, 5, 3), 0.2) - F.one_hot(target.clamp(min=0), 5).mT) / 5
        expected[1, :, 2] = 0
    loss = weighted_cross_entropy(x, target, weight=Keep())
    (slope,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(slope, expected)


def test_modules_and_all_ignored() -> None:
    for module in (TruncatedCrossEntropyLoss(0.3), FocalCrossEntropyLoss(2.0)):
        x = logits(math.nan)
        loss = module(x, torch.full_like(TARGET, -100))
        (slope,) = torch.autograd.grad(loss, x)
        assert loss == 0
        assert (slope == 0).all()


@pytest.mark.long
def test_second_derivatives_and_compilers_see_the_same() -> None:
    def of(x: torch.Tensor) -> torch.Tensor:
        return weighted_cross_entropy(x, TARGET, weight=Focal(2.0))

    x = logits(math.nan)
    (slope,) = torch.autograd.grad(of(x), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), x)
    assert (second[IGNORED] == 0).all()
    assert second.isfinite().all()
    compiled = torch.compile(of, fullgraph=True, backend="aot_eager")
    (traced,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(traced, slope.detach())


@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
def test_impossible_classes_poison_nothing(weight: AnyWeight) -> None:
    """Classes of logit -inf have p = 0, as masked ones have: no part in loss, entropy, gradient."""
    masked = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([0, 3, 5, -100, 1, 2])
    narrow = masked[:, :6].clone().requires_grad_()
    masked[:, 6:] = -math.inf
    masked.requires_grad_()
    found = after(weighted_cross_entropy(masked, target, weight=_few(weight)), masked)
    expected = after(weighted_cross_entropy(narrow, target, weight=_few(weight)), narrow)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1][:, :6], expected[1])
    assert (found[1][:, 6:] == 0).all()


def _few(weight: AnyWeight) -> AnyWeight:
    """An entropy of fewer classes than there are, so that masked ones are not among them."""
    return EAFT(weight.alpha, top_k=3) if isinstance(weight, EAFT) else weight


@pytest.mark.parametrize("weight", [Truncate(0.3), Focal(2.0), Focal(0.5), DFT(), EAFT()], ids=str)
def test_certain_rows_on_logits_and_hidden_states(weight: AnyWeight) -> None:
    """p = 1 to the last digit: weight 0 (of DFT: loss 0), and a finite gradient of 0."""
    head = torch.eye(3)
    for sure in (200.0, 1e30):
        h = torch.tensor([[sure, 0.0, 0.0], [0.3, 0.2, 0.1]], requires_grad=True)
        target = torch.tensor([0, 1])
        for loss in (
            weighted_cross_entropy(h @ head, target, weight=weight),
            linear_weighted_cross_entropy(h, head, target, weight=weight),
        ):
            value, slope = after(loss, h)
            assert value.isfinite()
            assert (slope[0] == 0).all()
            assert slope[1].isfinite().all()


@pytest.mark.parametrize("weight", [DFT(), Truncate(0.3), Focal(2.0), EAFT()], ids=str)
def test_impossible_targets(weight: AnyWeight) -> None:
    """p = 0: the loss is infinite unless the weight is 0; its gradient, and others', are finite."""
    x = torch.tensor([[-math.inf, 0.0, 1.0], [0.3, 0.2, 0.1]], requires_grad=True)
    value, slope = after(weighted_cross_entropy(x, torch.tensor([0, 1]), weight=weight), x)
    assert value.isfinite() if isinstance(weight, DFT) else value.isinf()
    assert slope.isfinite().all()
    if isinstance(weight, DFT):
        assert (slope[0] == 0).all()
