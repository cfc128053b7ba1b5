from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fortifai import (
    dft_cross_entropy,
    eaft_cross_entropy,
    focal_cross_entropy,
    truncated_cross_entropy,
    weighted_cross_entropy,
)
from fortifai.weights import Focal, Keep, Truncate

from .reference import MISTAKES, MISTAKES_OF_ROWS, ROW_CASES, TERMS, Case, check

# fp64: the sums are of some hundred terms of size 10, and 1e-16 each
EXACT = {"rtol": 1e-11, "atol": 1e-13}
# fp32: log p is off by the rounding of logits and of their log-sum, some 1e-7 x 10
SINGLE = {"rtol": 1e-5, "atol": 3e-6}


def caller(case: Case) -> Callable[..., Any]:
    def call(x: torch.Tensor, t: torch.Tensor) -> Any:
        options = case.options(t)
        if case.kind == "tce":
            return truncated_cross_entropy(x, t, threshold=case.parameter, **options)
        if case.kind == "dft":
            return dft_cross_entropy(x, t, **options)
        if case.kind == "eaft":
            return eaft_cross_entropy(x, t, alpha=case.parameter, top_k=case.top_k, **options)
        return focal_cross_entropy(
            x, t, gamma=case.parameter, detach_weight=case.detach_weight, **options
        )

    return call


def batch(
    shape: tuple[int, ...], seed: int, *, ignored: float = 0.3, ignore_index: int = -100
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with confidences from 0 to 1, and targets of which some are ignored."""
    rng = np.random.default_rng(seed)
    classes = shape[0] if len(shape) == 1 else shape[1]
    logits = rng.normal(size=shape) * 3
    target = rng.integers(0, classes, (*shape[:1], *shape[2:]) if len(shape) > 1 else ())
    target = np.where(rng.random(target.shape) < ignored, ignore_index, target)
    return torch.from_numpy(logits), torch.from_numpy(target)


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
    Case("focal", 2.0, detach_weight=True),
    Case("focal", 2.0, detach_weight=True, normalize="kept"),
    Case("focal", 3.5, reduction="sum"),
    Case("focal", 2.0, reduction="none", softcap=5.0),
    Case("dft"),
    Case("dft", normalize="kept", softcap=2.0),
    Case("eaft", 1.0),
    Case("eaft", 0.5, top_k=None, normalize="kept"),
    Case("eaft", 2.0, reduction="none", softcap=3.0),
    *ROW_CASES,
]
NAMES = [
    "-".join(str(v) for v in dataclasses.astuple(c) if v not in ("", None, False)) for c in CASES
]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("shape", [(40, 7), (7,), (3, 5, 6), (2, 4, 3, 5), (1, 1), (0, 5)])
def test_value_gradient_and_kept_share(case: Case, shape: tuple[int, ...]) -> None:
    logits, target = batch(shape, seed=len(shape))
    check(caller(case), logits, target, case, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_dtypes(case: Case, dtype: torch.dtype) -> None:
    logits, target = batch((60, 9), seed=3)
    check(caller(case), logits.to(dtype), target, case, **SINGLE)
    loss, stats = caller(case)(logits.to(dtype), target)
    assert loss.dtype == torch.float32  # half precision is computed, and given back, in single
    assert stats.kept.dtype == torch.float32


def test_half_precision_would_not_do() -> None:
    """In bf16 itself the loss is off by more than the tolerance of the test above."""
    logits, target = batch((60, 9), seed=3)
    case = Case("focal", 0.0)
    low = lambda x, t: (F.cross_entropy(x, t), caller(case)(x, t)[1])  # noqa: E731
    with pytest.raises(AssertionError):
        check(low, logits.bfloat16(), target, case, **SINGLE)


@settings(deadline=None, max_examples=100)
@given(
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["tce", "focal"]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    normalize=st.sampled_from(["valid", "kept"]),
    ignore_index=st.sampled_from([-100, -1, 0, 2]),
)
def test_any_shape(
    data: st.DataObject, seed: int, kind: str, reduction: str, normalize: str, ignore_index: int
) -> None:
    dims = data.draw(st.lists(st.integers(0, 4), min_size=0, max_size=3), "d")
    shape = (*dims[:1], data.draw(st.integers(1, 9), "C"), *dims[1:])
    case = Case(
        kind,
        data.draw(st.floats(0, 1) if kind == "tce" else st.sampled_from([0.0, 0.5, 1, 2, 3.3])),
        reduction=reduction,
        normalize=normalize,
        ignore_index=ignore_index,
    )
    logits, target = batch(shape, seed, ignore_index=ignore_index)
    check(caller(case), logits, target, case, **EXACT)


def mistaken() -> list[tuple[Case, str]]:
    cases = (CASES[0], CASES[7], Case("dft"), Case("eaft", 1.0))
    return [(c, wrong) for c in cases for wrong in MISTAKES[c.kind]]


@pytest.mark.parametrize(
    ("case", "wrong"), mistaken(), ids=[f"{c.kind}-{w}" for c, w in mistaken()]
)
@pytest.mark.parametrize("tolerance", [EXACT, SINGLE], ids=["fp64", "fp32"])
def test_a_wrong_reference_is_seen(case: Case, wrong: str, tolerance: dict[str, float]) -> None:
    logits, target = batch((40, 4), seed=5)
    case = dataclasses.replace(case, parameter=0.5 if case.kind == "tce" else 2.0)
    # two classes of equal logits and two that are out: p is 0.5, the threshold, exactly
    logits[:3] = torch.tensor([0.0, 0.0, -1e4, -1e4], dtype=torch.float64)
    target[:3] = torch.tensor([0, 1, 0])
    if tolerance is SINGLE:
        logits = logits.float()
    check(caller(case), logits, target, case, **tolerance)
    with pytest.raises(AssertionError):
        check(caller(case), logits, target, dataclasses.replace(case, wrong=wrong), **tolerance)


MANY = Case("focal", 2.0, **TERMS, sampled=True, normalize="weight_sum")


@pytest.mark.parametrize("wrong", MISTAKES_OF_ROWS)
@pytest.mark.parametrize("tolerance", [EXACT, SINGLE], ids=["fp64", "fp32"])
def test_a_wrong_reference_of_rows_is_seen(wrong: str, tolerance: dict[str, float]) -> None:
    logits, target = batch((40, 4), seed=5)
    logits = logits.float() if tolerance is SINGLE else logits
    check(caller(MANY), logits, target, MANY, **tolerance)
    with pytest.raises(AssertionError):
        check(caller(MANY), logits, target, dataclasses.replace(MANY, wrong=wrong), **tolerance)


def test_label_smoothing_is_that_of_cross_entropy() -> None:
    """PyTorch's, and that of transformers' Trainer, divide by the same labels."""
    logits, target = batch((40, 7), seed=6)
    for smoothing in (0.1, 0.9):
        ours = weighted_cross_entropy(logits, target, weight=Keep(), label_smoothing=smoothing)
        theirs = F.cross_entropy(logits, target, label_smoothing=smoothing)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_gem_is_softmax_of_sharpened_logits_less_the_truth() -> None:
    """2408.16673 with h = 1: sum_j q_j (z_j - z_y), q of logits over beta and held fixed."""
    logits, target = batch((30, 8), seed=7, ignored=0.0)
    beta, leaf = 0.7, logits.clone().requires_grad_()
    q = torch.softmax(leaf / beta, 1).detach()
    log_p = torch.log_softmax(leaf, 1)
    (-(q * (log_p.gather(1, target[:, None]) - log_p)).sum(1)).sum().backward()
    expected = torch.softmax(logits / beta, 1) - F.one_hot(target, 8)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-10, atol=1e-12)
    ours = logits.clone().requires_grad_()
    weighted_cross_entropy(ours, target, weight=Keep(), gem_beta=beta, reduction="sum").backward()
    torch.testing.assert_close(ours.grad, expected, rtol=1e-12, atol=1e-14)


def test_a_truncated_row_has_no_smoothed_loss() -> None:
    """The weight of the target multiplies all that the row loses."""
    logits, target = (
        torch.tensor([[9.0, 0, 0], [0, 0, 0]], dtype=torch.float64),
        torch.tensor([0, 1]),
    )
    leaf = logits.requires_grad_()
    each = truncated_cross_entropy(
        leaf, target, threshold=0.9, **{**TERMS, "gem_beta": 1.0}, reduction="none"
    )
    each.sum().backward()
    log3 = math.log(3)  # uniform: smoothed or not, cross entropy, entropy and lse are log 3
    assert each.tolist() == pytest.approx([0, log3 - 0.3 * log3 + 0.05 * log3**2])
    assert leaf.grad[0].abs().sum() == 0
    assert leaf.grad[1].abs().sum() > 0


# a detached weight is no function's derivative, and shall not be
DERIVATIVES = [c for c in CASES if not c.detach_weight and c.kind in ("tce", "focal")]


@pytest.mark.parametrize("case", DERIVATIVES, ids=str)
def test_first_and_second_derivatives(case: Case) -> None:
    logits, target = batch((6, 4), seed=11)
    leaf = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: caller(case)(x, target)[0], (leaf,))
    assert torch.autograd.gradgradcheck(lambda x: caller(case)(x, target)[0], (leaf,))


def test_by_hand() -> None:
    """p = 1/2, 1/4, 1/8: losses of 1, 2 and 3 times log 2."""
    logits = torch.log(torch.tensor([[4.0, 2, 1, 1], [4, 2, 1, 1], [4, 2, 1, 1], [4, 2, 1, 1]]))
    target = torch.tensor([0, 1, 2, -100])
    log2 = float(np.log(2))
    value, stats = truncated_cross_entropy(logits, target, threshold=0.3, return_stats=True)
    assert value.item() == pytest.approx((2 + 3) * log2 / 3)  # the ignored one is no divisor
    assert (stats.kept.item(), stats.valid.item()) == (2.0, 3)
    assert stats.kept_share.item() == pytest.approx(2 / 3)
    kept = truncated_cross_entropy(logits, target, threshold=0.3, normalize="kept")
    assert kept.item() == pytest.approx((2 + 3) * log2 / 2)
    each = focal_cross_entropy(logits, target, gamma=2.0, reduction="none")
    expected = [1 / 4 * log2, 9 / 16 * 2 * log2, 49 / 64 * 3 * log2, 0]
    assert each.tolist() == pytest.approx(expected)
    assert truncated_cross_entropy(logits, target).item() == pytest.approx(2 * log2)


@pytest.mark.parametrize("shape", [(50, 11), (11,), (3, 7, 5), (2, 9, 4, 3)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [Keep(), Truncate(1.0), Truncate(1), Focal(0.0)], ids=repr)
def test_keeping_all_is_cross_entropy_to_the_bit(weight, shape, reduction) -> None:
    for seed in range(5):
        logits, target = batch(shape, seed, ignored=0.0 if len(shape) == 1 else 0.3)
        a, b = (logits.float().requires_grad_() for _ in range(2))
        ours, stats = weighted_cross_entropy(
            a, target, weight=weight, reduction=reduction, return_stats=True
        )
        theirs = F.cross_entropy(b, target, reduction=reduction)
        assert torch.equal(ours, theirs)
        ours.sum().backward()
        theirs.sum().backward()
        assert torch.equal(a.grad, b.grad)
        assert stats.kept_share == 1


def test_stats_carry_no_gradient() -> None:
    logits, target = batch((8, 5), 0)
    for case in (CASES[0], CASES[2], CASES[7]):
        _, stats = caller(case)(logits.requires_grad_(), target)
        assert not stats.kept.requires_grad
        assert not stats.valid.requires_grad


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_no_value_is_looked_at(case: Case) -> None:
    """On an accelerator a look would wait for it; tensors without data cannot be looked at."""
    logits = torch.empty(6, 5, 2, device="meta", requires_grad=True)
    target = torch.empty(6, 2, dtype=torch.int64, device="meta")
    loss, stats = caller(case)(logits, target)
    loss.sum().backward()
    assert stats.kept_share.shape == ()
    with pytest.raises(RuntimeError, match="meta"):
        stats.kept_share.item()


def test_it_compiles_whole() -> None:
    compiled = torch.compile(
        lambda x, t: truncated_cross_entropy(x, t, threshold=0.5, return_stats=True),
        backend="eager",
        fullgraph=True,
    )
    logits, target = batch((8, 5), 0)
    expected = truncated_cross_entropy(logits, target, threshold=0.5, return_stats=True)
    torch.testing.assert_close(tuple(compiled(logits, target)), tuple(expected))
