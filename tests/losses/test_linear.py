"""Losses on hidden states against formulas in numpy, finite differences and PyTorch's autograd."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fortifai import (
    linear_cross_entropy,
    linear_dft_cross_entropy,
    linear_eaft_cross_entropy,
    linear_focal_cross_entropy,
    linear_truncated_cross_entropy,
    linear_weighted_cross_entropy,
    weighted_cross_entropy,
)
from fortifai.losses import chunks
from fortifai.weights import DFT, EAFT, Focal, Keep, Truncate, TruncateQuantile

from .reference import MISTAKES, MISTAKES_OF_ROWS, ROW_CASES, TERMS, Case, check_linear

# fp64: sums of some hundred products of size 10, and 1e-16 each
EXACT = {"rtol": 1e-10, "atol": 1e-12}
# fp32: logits of size 10 are sums of products, off by some 1e-6; the gradients sum up 40 of these
SINGLE = {"rtol": 1e-4, "atol": 2e-5}

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def weight_of(case: Case) -> Any:
    return {
        "tce": lambda: Truncate(case.parameter),
        "focal": lambda: Focal(case.parameter, detach_weight=case.detach_weight),
        "dft": DFT,
        "eaft": lambda: EAFT(case.parameter, case.top_k),
    }[case.kind]()


def caller(case: Case, chunk_size: int | None = None, weight: Any = None) -> Callable[..., Any]:
    def call(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, t: torch.Tensor) -> Any:
        one = {"linear_bias": b, "chunk_size": chunk_size, **case.options(t)}
        if weight is not None:
            return linear_weighted_cross_entropy(h, w, t, weight=weight, **one)
        if case.kind == "tce":
            return linear_truncated_cross_entropy(h, w, t, threshold=case.parameter, **one)
        if case.kind == "focal":
            return linear_focal_cross_entropy(
                h, w, t, gamma=case.parameter, detach_weight=case.detach_weight, **one
            )
        if case.kind == "dft":
            return linear_dft_cross_entropy(h, w, t, **one)
        return linear_eaft_cross_entropy(h, w, t, alpha=case.parameter, top_k=case.top_k, **one)

    return call


def batch(
    n: int,
    width: int,
    classes: int,
    seed: int,
    *,
    bias: bool = True,
    ignored: float = 0.3,
    ignore_index: int = -100,
) -> tuple[Tensors, torch.Tensor]:
    """A head and hidden states with confidences from 0 to 1; some targets are ignored."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(n, width)) * 3 / max(width, 1) ** 0.5
    target = rng.integers(0, classes, n)
    target = np.where(rng.random(n) < ignored, ignore_index, target)
    head = rng.normal(size=(classes, width))
    b = torch.from_numpy(rng.normal(size=classes)) if bias else None
    return (torch.from_numpy(h), torch.from_numpy(head), b), torch.from_numpy(target)


CASES = [
    Case("tce", 0.9),
    Case("tce", 0.0),
    Case("tce", 1.0),
    Case("tce", 0.3, normalize="kept"),
    Case("tce", 0.3, reduction="sum"),
    Case("tce", 0.3, reduction="none"),
    Case("tce", 0.3, softcap=2.0),
    Case("focal", 2.0),
    Case("focal", 0.0),
    Case("focal", 0.5),
    Case("focal", 1.0, normalize="kept"),
    Case("focal", 2.0, detach_weight=True, normalize="kept"),
    Case("focal", 3.5, reduction="sum"),
    Case("focal", 2.0, reduction="none", softcap=5.0),
    Case("dft"),
    Case("dft", reduction="none"),
    Case("eaft", 1.0),
    Case("eaft", 0.5, top_k=None, normalize="kept"),
    Case("eaft", 2.0, reduction="none", softcap=3.0),
    *ROW_CASES,
]
NAMES = [
    "-".join(str(v) for v in dataclasses.astuple(c) if v not in ("", None, False)) for c in CASES
]


@pytest.mark.parametrize("chunk_size", [None, 1, 7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_value_gradients_and_kept_share(case: Case, bias: bool, chunk_size: int | None) -> None:
    tensors, target = batch(40, 5, 7, seed=1, bias=bias)
    check_linear(caller(case, chunk_size), tensors, target, case, **EXACT)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_single_precision(case: Case) -> None:
    (h, w, b), target = batch(40, 5, 7, seed=1)
    assert b is not None
    tensors = h.float(), w.float(), b.float()
    check_linear(caller(case), tensors, target, case, **SINGLE)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_same_weight_undeclared(case: Case) -> None:
    """A function that does not say that it is elementwise goes the way of two passes."""
    weight = weight_of(case)
    hidden = lambda *args: weight(*args)  # noqa: E731
    if case.kind == "eaft":
        hidden.entropy_top_k = case.top_k  # type: ignore[attr-defined]
    tensors, target = batch(40, 5, 7, seed=1)
    check_linear(caller(case, 6, hidden), tensors, target, case, **EXACT)


@settings(deadline=None, max_examples=100)
@given(
    n=st.integers(0, 30),
    width=st.integers(1, 9),
    classes=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["tce", "focal", "dft", "eaft"]),
    parameter=st.floats(0, 1),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    normalize=st.sampled_from(["valid", "kept", "weight_sum"]),
    ignore_index=st.sampled_from([-100, -1, 0]),
    softcap=st.sampled_from([None, 4.0]),
    bias=st.booleans(),
    terms=st.booleans(),
    sampled=st.booleans(),
    chunk_size=st.sampled_from([None, 1, 2, 5, 1000]),
)
def test_any_shape(
    n, width, classes, seed, kind, parameter, reduction, normalize, ignore_index, softcap, bias,
    terms, sampled, chunk_size,
) -> None:  # fmt: skip
    if kind == "focal":
        parameter = [0.0, 0.5, 1.0, 2.0, 3.3][seed % 5]
    case = Case(
        kind,
        parameter,
        reduction=reduction,
        normalize=normalize,
        ignore_index=ignore_index,
        softcap=softcap,
        sampled=sampled,
        **(TERMS if terms else {}),
    )
    tensors, target = batch(n, width, classes, seed, bias=bias, ignore_index=ignore_index)
    # where hardly any weight is left, the divisor is what the rounding of 1 - p near p = 1 left
    atol = 1e-7 if normalize == "kept" and kind == "focal" else 1e-10
    check_linear(caller(case, chunk_size), tensors, target, case, rtol=1e-7, atol=atol)


def mistaken() -> list[tuple[Case, str]]:
    cases = [Case("tce", 0.5), Case("focal", 2.0), Case("dft"), Case("eaft", 1.0)]
    return [(c, wrong) for c in cases for wrong in MISTAKES[c.kind]]


@pytest.mark.parametrize(
    ("case", "wrong"), mistaken(), ids=[f"{c.kind}-{w}" for c, w in mistaken()]
)
@pytest.mark.parametrize("tolerance", [EXACT, SINGLE], ids=["fp64", "fp32"])
def test_a_wrong_reference_is_seen(case: Case, wrong: str, tolerance: dict[str, float]) -> None:
    (h, w, _), target = batch(40, 4, 4, seed=5, bias=False)
    # logits of [0, 0, -1e4, -1e4]: p is 0.5, the threshold, exactly
    w = torch.eye(4, dtype=torch.float64)
    h[:3] = torch.tensor([0.0, 0.0, -1e4, -1e4], dtype=torch.float64)
    target[:3] = torch.tensor([0, 1, 0])
    tensors: Tensors = (h, w, None)
    if tolerance is SINGLE:
        # -1e4 is a hidden state here: a gradient of 1e-7 more in the head is 1e-3 in its product
        h[:3] = h[:3].clamp(min=-200)
        tensors = (h.float(), w.float(), None)
    check_linear(caller(case), tensors, target, case, **tolerance)
    wrong_case = dataclasses.replace(case, wrong=wrong)
    with pytest.raises(AssertionError):
        check_linear(caller(case), tensors, target, wrong_case, **tolerance)


MANY = Case("focal", 2.0, **TERMS, sampled=True, normalize="weight_sum")


@pytest.mark.parametrize("wrong", MISTAKES_OF_ROWS)
@pytest.mark.parametrize("tolerance", [EXACT, SINGLE], ids=["fp64", "fp32"])
def test_a_wrong_reference_of_rows_is_seen(wrong: str, tolerance: dict[str, float]) -> None:
    tensors, target = batch(40, 4, 4, seed=5, bias=False)
    if tolerance is SINGLE:
        tensors = (tensors[0].float(), tensors[1].float(), None)
    check_linear(caller(MANY), tensors, target, MANY, **tolerance)
    wrong_case = dataclasses.replace(MANY, wrong=wrong)
    with pytest.raises(AssertionError):
        check_linear(caller(MANY), tensors, target, wrong_case, **tolerance)


# a detached weight is no function's derivative; that of a truncation jumps, but not here
DERIVATIVES = [c for c in CASES if not c.detach_weight and c.kind in ("tce", "focal")]


@pytest.mark.parametrize("case", DERIVATIVES, ids=str)
def test_finite_differences(case: Case) -> None:
    tensors, target = batch(6, 3, 5, seed=11)
    leaves = [t.requires_grad_() for t in tensors if t is not None]
    assert torch.autograd.gradcheck(lambda h, w, b: caller(case)(h, w, b, target)[0], leaves)


def test_a_weight_of_all_data() -> None:
    """A quantile is of all log p, not of those of a chunk; so may any function's weight be."""

    def centred(log_p: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(log_p.mean() - log_p)  # its gradient mixes the data

    (h, w, b), target = batch(30, 4, 9, seed=3, ignored=0.5)
    leaves = [t.requires_grad_() for t in (h, w, b) if t is not None]
    log_p = torch.log_softmax(F.linear(h, w, b), 1)[target != -100]
    log_p = log_p.gather(1, target[target != -100].unsqueeze(1)).squeeze(1)
    for weight in (TruncateQuantile(0.4), centred):
        # by hand: what is ignored is not there
        by_hand = -(weight(log_p) * log_p).mean()
        assert linear_weighted_cross_entropy(
            h, w, target, weight=weight, linear_bias=b
        ).item() == pytest.approx(by_hand.item(), rel=1e-11)
        for reduction in ("mean", "none"):
            ours = linear_weighted_cross_entropy(
                h, w, target, weight=weight, linear_bias=b, chunk_size=4, reduction=reduction
            )
            logits = F.linear(h, w, b)
            theirs = weighted_cross_entropy(logits, target, weight=weight, reduction=reduction)
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=0)
            found = torch.autograd.grad(ours.sum(), leaves)
            expected = torch.autograd.grad(theirs.sum(), leaves)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    # declared to be of each datum alone, it would be wrong: the declaration is what decides
    centred.elementwise = True  # type: ignore[attr-defined]
    wrong = linear_weighted_cross_entropy(h, w, target, weight=centred, linear_bias=b, chunk_size=4)
    assert wrong.item() != pytest.approx(
        weighted_cross_entropy(F.linear(h, w, b), target, weight=centred).item(), rel=1e-6
    )


def test_keeping_all_is_cross_entropy() -> None:
    (h, w, b), target = batch(50, 6, 11, seed=2)
    expected = F.cross_entropy(F.linear(h, w, b), target)
    assert b is not None
    for loss in (
        linear_cross_entropy(h, w, target, linear_bias=b),
        linear_weighted_cross_entropy(h, w, target, weight=Keep(), linear_bias=b),
        linear_truncated_cross_entropy(h, w, target, threshold=1.0, linear_bias=b),
    ):
        torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    if hasattr(F, "linear_cross_entropy"):  # torch 2.13 has it
        theirs = F.linear_cross_entropy(h, w, target, linear_bias=b)
        torch.testing.assert_close(linear_cross_entropy(h, w, target, linear_bias=b), theirs)


def test_leading_dimensions() -> None:
    """Input (*, d) and target (*): as models give them; one row alone, too."""
    (h, w, _), target = batch(24, 5, 7, seed=4)
    flat = linear_truncated_cross_entropy(h, w, target, threshold=0.5, reduction="none")
    deep = linear_truncated_cross_entropy(
        h.view(2, 3, 4, 5), w, target.view(2, 3, 4), threshold=0.5, reduction="none"
    )
    assert deep.shape == (2, 3, 4)
    assert torch.equal(deep.flatten(), flat)
    one = linear_truncated_cross_entropy(h[0], w, torch.tensor(3), threshold=1.0, reduction="none")
    assert one.shape == ()
    torch.testing.assert_close(one, F.cross_entropy(h[0] @ w.T, torch.tensor(3)))
    moved = h.t().contiguous().t()  # of other strides
    assert torch.equal(
        linear_truncated_cross_entropy(moved, w, target, threshold=0.5, reduction="none"), flat
    )


def test_by_hand() -> None:
    """p = 1/2, 1/4, 1/8: losses of 1, 2 and 3 times log 2."""
    h = torch.ones(4, 1)
    head = torch.log(torch.tensor([[4.0], [2.0], [1.0], [1.0]]))
    target = torch.tensor([0, 1, 2, -100])
    log2 = float(np.log(2))
    value, stats = linear_truncated_cross_entropy(h, head, target, threshold=0.3, return_stats=True)
    assert value.item() == pytest.approx((2 + 3) * log2 / 3)
    assert (stats.kept.item(), stats.valid.item()) == (2.0, 3)
    each = linear_focal_cross_entropy(h, head, target, gamma=2.0, reduction="none")
    assert each.tolist() == pytest.approx([1 / 4 * log2, 9 / 16 * 2 * log2, 49 / 64 * 3 * log2, 0])
    dft = linear_weighted_cross_entropy(h, head, target, weight=DFT(), reduction="none")
    assert dft.tolist() == pytest.approx([1 / 2 * log2, 1 / 4 * 2 * log2, 1 / 8 * 3 * log2, 0])
    # entropy 1/2 log 2 + 1/4 log 4 + 2/8 log 8 = 7/4 log 2, of at most log 4
    eaft = linear_weighted_cross_entropy(h, head, target, weight=EAFT(top_k=None), reduction="none")
    assert eaft.tolist() == pytest.approx([7 / 8 * k * log2 for k in (1, 2, 3, 0)])


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_way_of_accelerators(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their softmax, from PyTorch's logsumexp, gives the same numbers here."""
    monkeypatch.setattr(chunks, "_fused", lambda device: False)
    tensors, target = batch(40, 5, 7, seed=1)
    check_linear(caller(case, 7), tensors, target, case, **EXACT)
