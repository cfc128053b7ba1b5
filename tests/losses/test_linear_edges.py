"""Losses on hidden states where formulas meet their ends, and input that is none."""

from __future__ import annotations

import functools
import math
import re
import types
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fortifai import (
    DFTCrossEntropyLoss,
    EAFTCrossEntropyLoss,
    FocalCrossEntropyLoss,
    LinearCrossEntropyLoss,
    LinearDFTCrossEntropyLoss,
    LinearEAFTCrossEntropyLoss,
    LinearFocalCrossEntropyLoss,
    LinearTruncatedCrossEntropyLoss,
    LinearWeightedCrossEntropyLoss,
    TruncatedCrossEntropyLoss,
    WeightedCrossEntropyLoss,
    dft_cross_entropy,
    eaft_cross_entropy,
    focal_cross_entropy,
    linear_cross_entropy,
    linear_dft_cross_entropy,
    linear_eaft_cross_entropy,
    linear_focal_cross_entropy,
    linear_truncated_cross_entropy,
    linear_weighted_cross_entropy,
    truncated_cross_entropy,
    weighted_cross_entropy,
)
from fortifai.errors import InputError
from fortifai.weights import (
    DFT,
    EAFT,
    Dynamic,
    Focal,
    Keep,
    Truncate,
    TruncateQuantile,
)

INF = math.inf
WEIGHTS = [Keep(), Truncate(0.0), Truncate(0.9), Focal(0.5), Focal(2.0), DFT(), EAFT()]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def grads_of(h, w, target, b=None, **options):
    """Loss and gradients; logits can be set at will where the head is the identity."""
    leaves = [t.detach().clone().requires_grad_() for t in (h, w, b) if t is not None]
    bias = leaves[2] if b is not None else None
    loss = linear_weighted_cross_entropy(*leaves[:2], target, linear_bias=bias, **options)
    loss.sum().backward()
    return loss.detach(), [leaf.grad for leaf in leaves]


def sure(n: int, confident: int, classes: int = 64, width: int = 32, dtype=torch.float32):
    """Hidden states of which the first `confident`, mixed among the rest, are sure of the truth."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (n,), generator=generator)
    h = torch.randn(n, width, generator=generator, dtype=torch.float64) * 0.1
    rows = torch.randperm(n, generator=generator)[:confident]
    h[rows] = w[target[rows]] * 2
    return h.to(dtype), w.to(dtype), target


def _named(weight):
    """An id that is the same in every process, which the address of a function is not."""
    return "function" if isinstance(weight, types.FunctionType) else repr(weight)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", ["valid", "kept"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_everything_truncated_is_zero(dtype, normalize, reduction) -> None:
    h, w, target = sure(20, 20, dtype=dtype)
    loss, grads = grads_of(
        h, w, target, weight=Truncate(0.9), normalize=normalize, reduction=reduction
    )
    assert loss.abs().sum() == 0
    assert all(g.abs().sum() == 0 for g in grads)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", ["valid", "kept"])
@pytest.mark.parametrize(
    "weight", [*WEIGHTS, TruncateQuantile(), lambda log_p: log_p.exp()], ids=_named
)
@pytest.mark.parametrize("n", [0, 5])
def test_all_ignored_or_nothing_there(n, weight, normalize, reduction) -> None:
    h, w, b = torch.randn(n, 3), torch.randn(7, 3), torch.randn(7)
    options = {"weight": weight, "normalize": normalize, "reduction": reduction}
    loss, grads = grads_of(h, w, torch.full((n,), -100), b, **options)
    assert loss.shape == ((n,) if reduction == "none" else ())
    assert loss.abs().sum() == 0
    assert [g.shape for g in grads] == [h.shape, w.shape, b.shape]
    assert all(g.abs().sum() == 0 for g in grads)


@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
def test_one_token(weight) -> None:
    h, w, target = sure(1, 0, dtype=torch.float64)
    loss, grads = grads_of(h, w, target, weight=weight)
    leaves = [h.clone().requires_grad_(), w.clone().requires_grad_()]
    expected = weighted_cross_entropy(F.linear(*leaves), target, weight=weight)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(grads, [x.grad for x in leaves], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("classes", [2, 4, 8, 64, 1024, 2**15])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_are_kept(classes, dtype) -> None:
    """Equal logits, p = 1/classes exactly: kept at that threshold, truncated just below."""
    h, w, target = torch.ones(3, 1, dtype=dtype), torch.full((classes, 1), 1.5, dtype=dtype), [1]
    share = [
        linear_truncated_cross_entropy(
            h, w, torch.tensor(target * 3), threshold=t, return_stats=True
        )[1].kept.item()
        for t in (1 / classes, 1 / classes * (1 - 1e-5))
    ]
    assert share == [3, 0]


@pytest.mark.parametrize("far", [50.0, 80.0, 95.0, 120.0, 1e4])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_log_p_where_p_is_none(far, chunk_size) -> None:
    """exp(-95) is no normal fp32 and exp(-120) none at all: log p is there nonetheless."""
    logits = torch.zeros(40, 5)
    logits[::2, 1] = far
    target = torch.zeros(40, dtype=torch.int64)
    each = linear_cross_entropy(
        logits, torch.eye(5), target, reduction="none", chunk_size=chunk_size
    )
    expected = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(each, expected, rtol=1e-6, atol=0)
    naive = -torch.softmax(logits, 1)[:, 0].log()
    assert far < 100 or not torch.allclose(naive, expected, rtol=1e-6)


def test_classes_that_are_masked_out() -> None:
    """A bias of -inf: p = 0, loss inf and finite gradients where it is the target, as on logits."""
    h, w, _ = sure(4, 0, classes=3)
    b = torch.tensor([0.0, 1.0, -INF])
    for weight in WEIGHTS:
        target = torch.tensor([0, 1, 0, 1])
        leaves = [t.clone().requires_grad_() for t in (h, w)]
        expected = weighted_cross_entropy(F.linear(*leaves, b), target, weight=weight)
        expected.backward()
        loss, grads = grads_of(h, w, target, b, weight=weight)
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(grads[:2], [x.grad for x in leaves])
        loss, grads = grads_of(h, w, torch.tensor([2, 1, 0, 1]), b, weight=weight)
        # a weight of 0 at p = 0 leaves nothing of an infinite loss
        assert loss == INF or isinstance(weight, DFT)
        assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
@pytest.mark.parametrize("bad", [[math.nan, 0.0], [INF, 0.0], [-INF, -INF]], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_diverged_model_shows(weight, bad, reduction) -> None:
    """Logits without a softmax give NaN, also where all is truncated; here through the bias."""
    h = torch.zeros(2, 2)
    b = torch.tensor(bad)
    loss, (grad, *_) = grads_of(
        h, torch.eye(2), torch.tensor([0, 0]), b, weight=weight, reduction=reduction
    )
    assert loss.isnan().any()
    assert grad.isnan().any()


def test_diverged_rows_do_not_spread() -> None:
    h = torch.zeros(6, 3)
    h[4] = math.nan
    each, (grad, _) = grads_of(
        h, torch.eye(3), torch.zeros(6).long(), weight=Truncate(0.9), reduction="none", chunk_size=4
    )
    assert each.isnan().tolist() == [False] * 4 + [True, False]
    assert grad.isnan().any(1).tolist() == [False] * 4 + [True, False]


@pytest.mark.parametrize("weight", [Keep(), Truncate(0.5), Focal(2.0)], ids=repr)
@pytest.mark.parametrize("chunk_size", [None, 16])
def test_bf16_is_as_exact_as_logits_in_single(weight, chunk_size) -> None:
    """Errors against fp64 of the loss and of each gradient, root mean squares over their size.

    Both round thousands of gradients to bf16 in the end, but not always the same ones the same way:
    1 % more is chance. fp32 itself is worth 1e-6.
    """
    h, w, target = sure(200, 60, classes=300, width=64, dtype=torch.bfloat16)

    def logits_in(dtype, round_first=False):
        leaves = [t.clone().requires_grad_() for t in (h, w)]
        x = F.linear(*leaves) if round_first else F.linear(*(t.to(dtype) for t in leaves))
        loss = weighted_cross_entropy(x.to(dtype), target, weight=weight)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    leaves = [t.double().requires_grad_() for t in (h, w)]
    loss = weighted_cross_entropy(F.linear(*leaves), target, weight=weight)
    truth = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    ours, grads = grads_of(h, w, target, weight=weight, chunk_size=chunk_size)
    assert ours.dtype == torch.float32
    assert grads[0].dtype == grads[1].dtype == torch.bfloat16

    def errors(found):
        return [
            (a.double() - b).square().mean().sqrt() / b.square().mean().sqrt()
            for a, b in zip(found, truth, strict=True)
        ]

    single = errors(logits_in(torch.float32))
    low = errors(logits_in(torch.float32, round_first=True))
    for mine, theirs, rounded in zip(errors([ours, *grads]), single, low, strict=True):
        assert mine <= theirs * 1.01 + 1e-6
        assert rounded > theirs * 1.01 + 1e-6  # logits rounded to bf16 would be seen


def addmm_flops(_, a, b, *rest, **kwargs) -> int:
    """PyTorch's counter knows addmm but not its form in place."""
    return 2 * a[0] * a[1] * b[1]


def test_skipped_rows_cost_no_arithmetic() -> None:
    """The products: 1 for all valid rows, 2 more for the kept ones, and none for the ignored."""
    n, confident, classes, width = 96, 60, 64, 32
    h, w, target = sure(n, confident, classes, width)
    one = 2 * n * classes * width

    def flops(weight, rows=target, head_learns=True, **options):
        leaves = h.clone().requires_grad_(), w.clone().requires_grad_(head_learns)
        known = {torch.ops.aten.addmm_: addmm_flops}
        with FlopCounterMode(display=False, custom_mapping=known) as counter:
            loss = linear_weighted_cross_entropy(*leaves, rows, weight=weight, **options)
            loss.sum().backward()
        return counter.get_total_flops() / one

    kept = (n - confident) / n
    for chunk_size in (None, 10):
        assert flops(Keep(), chunk_size=chunk_size) == 3
        assert flops(Truncate(0.9), chunk_size=chunk_size) == pytest.approx(1 + 2 * kept)
        assert flops(Truncate(0.9), head_learns=False) == pytest.approx(1 + kept)
        # unknown upstream gradients: the logits of kept rows twice
        each = flops(Truncate(0.9), chunk_size=chunk_size, reduction="none")
        assert each == pytest.approx(1 + 3 * kept)
    half = torch.where(torch.arange(n) % 2 == 0, target, -100)
    assert flops(Keep(), half) == 1.5
    data = (torch.arange(n) % 2 == 0).float()
    for reduction in ("mean", "none"):
        rest = flops(Keep(), sample_weight=data, reduction=reduction)
        assert rest == flops(Keep(), half, reduction=reduction)
    terms = {"label_smoothing": 0.1, "confidence_penalty": 0.1, "z_loss": 0.1, "gem_beta": 0.7}
    assert flops(Truncate(1e-9), **terms) == 1

    def by_hand(log_p):
        return (log_p < -0.1).float()

    assert flops(by_hand) == pytest.approx(1 + 3 * kept)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor):
                self.size = max(self.size, t.numel())
        return out


@pytest.mark.parametrize("weight", [*WEIGHTS, lambda log_p: log_p.exp()], ids=_named)
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"logit_softcap": 5.0}], ids=str)
def test_full_logits_are_never_there(weight, options) -> None:
    n, classes, width, chunk = 300, 200, 4, 10
    h, w, target = sure(n, 100, classes, width)
    leaves = [t.requires_grad_() for t in (h, w)]
    with Largest() as largest:
        loss = linear_weighted_cross_entropy(
            *leaves, target, weight=weight, chunk_size=chunk, **options
        )
        loss.sum().backward()
    # a row of the buffer is padded to lines of the cache
    assert chunk * classes <= largest.size <= chunk * (classes + 16)
    with Largest() as largest:
        weighted_cross_entropy(F.linear(*leaves), target, weight=Keep())
    assert largest.size == n * classes


def test_results_repeat_to_the_bit() -> None:
    h, w, target = sure(300, 150, classes=1000)
    for weight in (Truncate(0.9), Focal(), EAFT()):
        for reduction in ("mean", "none"):
            first, again = (
                grads_of(h, w, target, weight=weight, reduction=reduction) for _ in range(2)
            )
            assert torch.equal(first[0], again[0])
            assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))


H, W, B, T = torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(4), torch.tensor([0, 1, 2])
META = torch.zeros(4, 2, device="meta")
BAD = {
    "classes": ((H, W, torch.tensor([0, 4, 7])), {}, r"target\[1\] is 4.*\[0, 4\).*-100"),
    "negative": ((H, W, torch.tensor([0, 1, -1])), {}, r"target\[2\] is -1"),
    "nested": ((torch.zeros(1, 3, 2), W, T[None] * 9), {}, r"target\[0, 1\] is 9"),
    "rows": ((H, W, T[:2]), {}, r"input is \(3, 2\).*target \(2,\)"),
    "width": ((H, torch.zeros(4, 3), T), {}, r"linear_weight \(4, 3\)"),
    "transposed": ((H, torch.zeros(2, 4), T * 0), {}, r"linear_weight \(2, 4\).*\(C, d\)"),
    "head": ((H, torch.zeros(4), T), {}, r"linear_weight is \(4,\).*torch.nn.Linear"),
    "no classes": ((H, torch.zeros(0, 2), T), {}, r"linear_weight is \(0, 2\)"),
    "scalar": ((torch.tensor(0.0), W, T), {}, r"input is \(\)"),
    "bias": ((H, W, T), {"linear_bias": B[:3]}, r"linear_bias is \(3,\).*must be \(4,\)"),
    "mixed": ((H.bfloat16(), W, T), {}, "dtypes differ: input torch.bfloat16.*autocast"),
    "mixed bias": ((H, W, T), {"linear_bias": B.double()}, "linear_bias torch.float64"),
    "whole": ((H.long(), W, T), {}, "input is torch.int64; allowed are float16"),
    "complex": ((H, W.cfloat(), T), {}, "linear_weight is torch.complex64"),
    "devices": ((H, META, T), {}, "linear_weight is on meta and target on cpu"),
    "probabilities": ((H, W, torch.full((3, 4), 0.25)), {}, "class probabilities"),
    "int32": ((H, W, T.int()), {}, r"int32.*\.long\(\)"),
    "array": ((np.zeros((3, 2)), W, T), {}, "input is of type ndarray"),
    "no tensor": ((H, W, T), {"linear_bias": [0.0] * 4}, "linear_bias is of type list"),
    "reduction": ((H, W, T), {"reduction": "men"}, "'men'.*did you mean 'mean'"),
    "normalize": ((H, W, T), {"normalize": "keep"}, "'keep'.*did you mean 'kept'"),
    "softcap": ((H, W, T), {"logit_softcap": -1.0}, "logit_softcap is -1.0"),
    "softcap text": ((H, W, T), {"logit_softcap": "30"}, "logit_softcap is '30'"),
    "ignored": ((H, W, T), {"ignore_index": None}, "ignore_index is None; it must be a"),
    "ignored nan": ((H, W, T), {"ignore_index": math.nan}, "ignore_index is nan"),
    "no width": ((H[:, :0], W[:, :0], T), {}, r"linear_weight is \(4, 0\)"),
    "smoothing": ((H, W, T), {"label_smoothing": 1.5}, r"label_smoothing is 1.5.*\[0, 1\)"),
    "sample": ((H, W, T), {"sample_weight": torch.ones(4)}, r"sample_weight is \(4,\)"),
    "chunk": ((H, W, T), {"chunk_size": 0}, "chunk_size is 0.*1 or more"),
    "chunk half": ((H, W, T), {"chunk_size": 2.5}, "chunk_size is 2.5"),
    "threshold": ((H, W, T), {"threshold": 1.5}, r"threshold is 1.5.*\[0, 1\]"),
    "threshold below": ((H, W, T), {"threshold": -0.1}, r"threshold is -0.1"),
    "threshold nan": ((H, W, T), {"threshold": math.nan}, "threshold is nan"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name) -> None:
    arguments, options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        linear_truncated_cross_entropy(*arguments, **options)


class Untouched(TorchFunctionMode):
    """Fails on any product: bad input is told before work starts."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.mm, torch.addmm, torch.softmax), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_before_work_starts(name) -> None:
    arguments, options, _ = BAD[name]
    with Untouched(), pytest.raises(InputError):
        linear_truncated_cross_entropy(*arguments, **options)


def with_entropy_of(top_k: Any) -> Any:
    def weight(log_p: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        return entropy

    weight.entropy_top_k = top_k  # type: ignore[attr-defined]
    return weight


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_a_weight_that_works_in_place(training: bool, reduction: str) -> None:
    """What it is given is its own: the loss needs log p afterwards."""
    in_place, apart = lambda log_p: log_p.exp_(), lambda log_p: log_p.exp()
    in_place.elementwise = apart.elementwise = True  # type: ignore[attr-defined]
    h, w, target = sure(20, 10)
    with torch.set_grad_enabled(training):
        for weight in (in_place, lambda log_p: in_place(log_p)):
            found, expected = (
                linear_weighted_cross_entropy(
                    h.clone().requires_grad_(), w, target, weight=each, reduction=reduction
                )
                for each in (weight, apart)
            )
            assert torch.equal(found, expected)
        logits = F.linear(h, w)
        assert torch.equal(
            weighted_cross_entropy(logits, target, weight=in_place, reduction=reduction),
            weighted_cross_entropy(logits, target, weight=apart, reduction=reduction),
        )


def test_bad_weights() -> None:
    for weight, message in (
        (Dynamic(), r"Dynamic\(rows=2048\); give a function of log p"),
        (torch.ones(4), "class weights are not supported"),
        (0.5, "weight is 0.5"),
        (lambda log_p: log_p.exp().sum(), r"gave \(\) for log-probabilities \(3,\)"),
        (lambda log_p: 1.0, "gave float"),
        (Truncate, "weight is the class Truncate; give one of it"),
        (
            with_entropy_of(0),
            "is 0; it must be a whole number of 2 or more, or None",
        ),
        (with_entropy_of("a"), "is 'a'; it must be a whole number of 2"),
    ):
        with pytest.raises(InputError, match=message):
            linear_weighted_cross_entropy(H, W, T, weight=weight)
        with pytest.raises(InputError, match=message):
            weighted_cross_entropy(torch.zeros(3, 4), T, weight=weight)
    for gamma in (-1.0, math.nan, INF, None, True):
        with pytest.raises(InputError, match=f"gamma is {gamma}"):
            linear_focal_cross_entropy(H, W, T, gamma=gamma)


def everywhere(**options: Any) -> list[Any]:
    """Calls of all functions and modules with these options."""
    logits = torch.zeros(3, 4)
    heads = [
        (linear_weighted_cross_entropy, {"weight": Keep()}),
        *((f, {}) for f in (linear_truncated_cross_entropy, linear_focal_cross_entropy)),
        *((f, {}) for f in (linear_dft_cross_entropy, linear_eaft_cross_entropy)),
        (linear_cross_entropy, {}),
    ]
    whole = [
        (weighted_cross_entropy, {"weight": Keep()}),
        *((f, {}) for f in (truncated_cross_entropy, focal_cross_entropy)),
        *((f, {}) for f in (dft_cross_entropy, eaft_cross_entropy)),
    ]
    modules = (
        TruncatedCrossEntropyLoss, FocalCrossEntropyLoss, DFTCrossEntropyLoss, EAFTCrossEntropyLoss,
        functools.partial(WeightedCrossEntropyLoss, Keep()),
    )  # fmt: skip
    linear_modules = (
        LinearTruncatedCrossEntropyLoss, LinearFocalCrossEntropyLoss, LinearCrossEntropyLoss,
        LinearDFTCrossEntropyLoss, LinearEAFTCrossEntropyLoss,
        functools.partial(LinearWeightedCrossEntropyLoss, Keep()),
    )  # fmt: skip
    return [
        *(lambda f=f, k=k: f(H, W, T, **k, **options) for f, k in heads),
        *(lambda f=f, k=k: f(logits, T, **k, **options) for f, k in whole),
        *(lambda m=m: m(**options)(logits, T) for m in modules),
        *(lambda m=m: m(**options)(H, W, T) for m in linear_modules),
    ]


BAD_TERMS = {
    "label_smoothing": ((-0.1, 1.0, math.nan), "[0, 1)"),
    "confidence_penalty": ((-0.1, INF, "0.1"), "[0, inf)"),
    "z_loss": ((-1e-4, None, True), "[0, inf)"),
    "gem_beta": ((0, -0.7, INF), "(0, inf)"),
}


@pytest.mark.parametrize("name", BAD_TERMS)
def test_terms_of_rows_out_of_range_are_refused_everywhere(name: str) -> None:
    values, interval = BAD_TERMS[name]
    for value in values:
        message = re.escape(f"{name} is {value!r}; it must be a number in {interval}")
        for call in everywhere(**{name: value}):
            with pytest.raises(InputError, match=message):
                call()


def test_terms_of_rows_are_taken_everywhere() -> None:
    """Four uniform classes: cross entropy, smoothed or not, entropy and lse are log 4."""
    log4 = math.log(4)
    p = 1 / 4
    weights = [1, 1, (1 - p) ** 2, p, 1]  # keep, truncate, focal, dft, eaft
    linear, whole = [*weights, 1], weights
    modules, linear_modules = [1, (1 - p) ** 2, p, 1, 1], [1, (1 - p) ** 2, 1, p, 1, 1]
    for options, loss in (
        ({"label_smoothing": 0.3}, log4),
        ({"confidence_penalty": 0.3}, 0.7 * log4),
        ({"z_loss": 0.3}, log4 + 0.3 * log4**2),
        ({"gem_beta": 0.7}, 0.7 * log4),
    ):
        found = [call().item() for call in everywhere(**options)]
        expected = [w * loss for w in (*linear, *whole, *modules, *linear_modules)]
        assert found == pytest.approx(expected, rel=1e-6), options  # fp32


S = torch.ones(3)
BAD_SAMPLES = {
    "negative": (torch.tensor([1, -0.5, 1]), r"sample_weight\[1\] is -0.5; weights must be finite"),
    "nan": (torch.tensor([1, 1, math.nan]), r"sample_weight\[2\] is nan"),
    "inf": (torch.tensor([INF, 1, 1]), r"sample_weight\[0\] is inf"),
    "length": (
        S[:2],
        r"sample_weight is \(2,\) and target \(3,\); give one weight for each target",
    ),
    "scalar": (torch.tensor(1.0), r"sample_weight is \(\) and target \(3,\)"),
    "list": ([1, 1, 1], "sample_weight is of type list"),
    "complex": (S.cfloat(), "sample_weight is torch.complex64"),
    "device": (S.to("meta"), "sample_weight is on meta and target on cpu"),
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_bad_sample_weights(name: str) -> None:
    sample, message = BAD_SAMPLES[name]
    with Untouched():
        for call in (
            lambda: linear_weighted_cross_entropy(H, W, T, weight=Keep(), sample_weight=sample),
            lambda: weighted_cross_entropy(H @ W.T, T, weight=Keep(), sample_weight=sample),
            lambda: LinearTruncatedCrossEntropyLoss()(H, W, T, sample_weight=sample),
            lambda: TruncatedCrossEntropyLoss()(torch.zeros(3, 4), T, sample_weight=sample),
        ):
            with pytest.raises(InputError, match=message):
                call()


def test_sample_weights_that_learn() -> None:
    learnt = torch.ones(3, requires_grad=True)
    with pytest.raises(InputError, match=r"requires a gradient.*detach it, or use"):
        linear_weighted_cross_entropy(H, W, T, weight=Keep(), sample_weight=learnt)
    loss = weighted_cross_entropy(torch.zeros(3, 4), T, weight=Keep(), sample_weight=learnt)
    loss.backward()
    assert learnt.grad.tolist() == pytest.approx([math.log(4) / 3] * 3)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("normalize", ["valid", "kept", "weight_sum"])
def test_what_has_no_sample_weight_may_be_anything(normalize: str, reduction: str) -> None:
    """Not even a NaN spreads from there, and a weight of all data does not see it."""
    h, w, target = sure(20, 10, dtype=torch.float64)
    sample = torch.ones(20, dtype=torch.float64)
    sample[::3] = 0
    h[::3] = math.nan
    options = {"normalize": normalize, "reduction": reduction, "sample_weight": sample}
    few = sample > 0
    for weight in (Truncate(0.9), Focal(2.0), TruncateQuantile(0.5)):
        loss, (grad, head) = grads_of(h, w, target, weight=weight, **options)
        leaf = F.linear(h, w).requires_grad_()
        whole = weighted_cross_entropy(leaf, target, weight=weight, **options)
        whole.sum().backward()
        torch.testing.assert_close(loss, whole.detach(), rtol=1e-12, atol=1e-30)
        assert grad[~few].abs().sum() == leaf.grad[~few].abs().sum() == 0
        assert head.isfinite().all()
        alone = weighted_cross_entropy(
            F.linear(h[few], w),
            target[few],
            weight=weight,
            normalize=normalize,
            reduction=reduction,
        )
        if reduction == "none":
            torch.testing.assert_close(loss[few], alone)
        else:  # 7 of 20 are valid, and in the divisor alone
            share = 13 / 20 if normalize == "valid" else 1.0
            torch.testing.assert_close(loss, alone * share)


def test_all_sample_weights_zero() -> None:
    for normalize in ("valid", "kept", "weight_sum"):
        for weight in (Truncate(0.9), TruncateQuantile(0.5)):
            loss, grads = grads_of(
                H + 1, W, T, weight=weight, sample_weight=0 * S, normalize=normalize
            )
            assert loss == 0
            assert all(g.abs().sum() == 0 for g in grads)


def test_infinite_rows_with_terms() -> None:
    """p = 0 of the target: inf by -log p, whatever is beside it, and finite gradients."""
    terms = {"label_smoothing": 0.1, "confidence_penalty": 0.2, "z_loss": 0.1, "gem_beta": 0.7}
    h, w = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    b = torch.tensor([0.0, 0.0, -INF], dtype=torch.float64)
    target = torch.tensor([2, 0])
    logits = b.expand(2, 3).clone().requires_grad_()
    for smoothing in (0.1, 0.0):
        terms["label_smoothing"] = smoothing
        logits.grad = None
        whole = weighted_cross_entropy(logits, target, weight=Keep(), reduction="none", **terms)
        whole.sum().backward()
        assert logits.grad.isfinite().all()
        for reduction in ("none", "sum"):
            each, (_, _, bias) = grads_of(
                h, w, target, b, weight=Keep(), reduction=reduction, **terms
            )
            # a smoothed target asks for every class, as PyTorch's does
            assert whole.tolist() == [INF, INF] if smoothing else whole[1].isfinite()
            assert whole[0] == INF
            torch.testing.assert_close(
                each, whole.detach() if reduction == "none" else whole.sum().detach()
            )
            torch.testing.assert_close(bias, logits.grad.sum(0))


def test_modules_are_their_functions() -> None:
    h, w, target = sure(20, 10)
    target[::4] = -100
    b = torch.randn(64)
    for module, function, parameter in (
        (LinearTruncatedCrossEntropyLoss(0.4), linear_truncated_cross_entropy, {"threshold": 0.4}),
        (
            LinearTruncatedCrossEntropyLoss(0.4, normalize="kept", logit_softcap=9.0, chunk_size=3),
            linear_truncated_cross_entropy,
            {"threshold": 0.4, "normalize": "kept", "logit_softcap": 9.0, "chunk_size": 3},
        ),
        (
            LinearFocalCrossEntropyLoss(1.5, detach_weight=True, reduction="none"),
            linear_focal_cross_entropy,
            {"gamma": 1.5, "detach_weight": True, "reduction": "none"},
        ),
        (LinearCrossEntropyLoss(reduction="sum"), linear_cross_entropy, {"reduction": "sum"}),
        (LinearWeightedCrossEntropyLoss(DFT()), linear_weighted_cross_entropy, {"weight": DFT()}),
    ):
        assert module.kept_share is None
        loss = module(h, w, target, b)
        expected, stats = function(h, w, target, linear_bias=b, **parameter, return_stats=True)
        assert torch.equal(loss, expected)
        assert torch.equal(module.kept_share, stats.kept_share)
        assert not list(module.parameters())
        assert "reduction=" in repr(module)
    whole = target.clamp(min=0)
    module = LinearWeightedCrossEntropyLoss(DFT(), ignore_index=0)
    expected = linear_weighted_cross_entropy(h, w, whole, weight=DFT(), ignore_index=0)
    assert torch.equal(module(h, w, whole), expected)
    assert not torch.equal(linear_weighted_cross_entropy(h, w, whole, weight=DFT()), expected)
    with pytest.raises(InputError, match="chunk_size is -1"):
        LinearCrossEntropyLoss(chunk_size=-1)
    with pytest.raises(InputError, match="give a function"):
        LinearWeightedCrossEntropyLoss(Dynamic())
