"""Where formulas meet 0 * inf, and input that is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fortifai import focal_cross_entropy, truncated_cross_entropy, weighted_cross_entropy
from fortifai.errors import InputError
from fortifai.weights import Focal, Keep, Truncate, TruncateQuantile

INF = math.inf
WEIGHTS = [Keep(), Truncate(0.0), Truncate(0.9), Focal(0.5), Focal(1.0), Focal(2.0)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def grad_of(logits: torch.Tensor, target: torch.Tensor, **options) -> tuple[torch.Tensor, ...]:
    leaf = logits.detach().clone().requires_grad_()
    loss = weighted_cross_entropy(leaf, target, **options)
    loss.sum().backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("normalize", ["valid", "kept"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_everything_truncated_is_zero(dtype, reduction, normalize) -> None:
    logits = torch.tensor([[50.0, 0, 0], [0, 50, 0]], dtype=dtype)
    loss, grad = grad_of(
        logits,
        torch.tensor([0, 1]),
        weight=Truncate(0.9),
        reduction=reduction,
        normalize=normalize,
    )
    assert loss.abs().sum() == 0
    assert grad.abs().sum() == 0


@pytest.mark.parametrize("normalize", ["valid", "kept"])
@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
def test_everything_ignored_is_zero(weight, normalize) -> None:
    """PyTorch's mean of nothing is NaN, and would end a training run for an empty micro-batch."""
    logits, target = torch.randn(4, 3), torch.full((4,), -100)
    assert F.cross_entropy(logits, target).isnan()
    loss, grad = grad_of(logits, target, weight=weight, normalize=normalize)
    assert loss == 0
    assert grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
def test_classes_that_are_masked_out(weight, dtype) -> None:
    """-inf for a class that is not the target: its gradient is 0, all else as without it."""
    full = torch.tensor([[1.0, 2.0, -1.0, -INF], [0.5, 0.5, 3.0, -INF]], dtype=dtype)
    target = torch.tensor([0, 2])
    loss, grad = grad_of(full, target, weight=weight)
    less, less_grad = grad_of(full[:, :3], target, weight=weight)
    # the same sums with a term of exp(-inf) = 0 more, in lanes of another order: one rounding
    torch.testing.assert_close(loss, less, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad[:, :3], less_grad)
    assert grad[:, 3].abs().sum() == 0


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("weight", [Keep(), Truncate(0.0), Truncate(0.9), Focal(0.5), Focal(2.0)])
def test_a_target_that_is_masked_out(weight, detach) -> None:
    """p = 0: the weight is 1, so loss and gradient are cross entropy's, inf and p - 1."""
    if isinstance(weight, Focal):
        weight = Focal(weight.gamma, detach_weight=detach)
    logits = torch.tensor([[1.0, 2.0, -INF]])
    loss, grad = grad_of(logits, torch.tensor([2]), weight=weight)
    leaf = logits.clone().requires_grad_()
    F.cross_entropy(leaf, torch.tensor([2])).backward()
    assert loss == INF
    torch.testing.assert_close(grad, leaf.grad)
    assert grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.5, 2.0, 4.0])
def test_focal_at_certainty(gamma) -> None:
    """P = 1 to the last bit: (1-p)^gamma has loss and gradient 0, whatever its slope there."""
    logits = torch.tensor([[200.0, 0, 0], [0, 0, 0]])
    loss, grad = grad_of(logits, torch.tensor([0, 1]), weight=Focal(gamma), reduction="none")
    assert loss[0] == 0
    assert grad[0].abs().sum() == 0
    assert grad[1].abs().sum() > 0


def test_focal_near_certainty_does_not_cancel() -> None:
    """1 - p = 1e-9 in fp64: naive 1 - exp(log p) has 7 digits left, expm1 all of them."""
    gap = 1e-9
    log_p = torch.tensor(math.log1p(-gap), dtype=torch.float64)
    weight = Focal(1.0)(log_p).item()
    assert weight == pytest.approx(gap, rel=1e-14, abs=0)
    assert 1 - math.exp(log_p.item()) != pytest.approx(gap, rel=1e-9, abs=0)


def test_focal_far_from_certainty() -> None:
    """p = exp(-200), below the smallest fp32: the loss is 200 and the gradient cross entropy's."""
    loss, grad = grad_of(torch.tensor([[0.0, 200.0]]), torch.tensor([0]), weight=Focal(2.0))
    assert loss == 200
    assert grad.tolist() == [[-1, 1]]


@pytest.mark.parametrize("classes", [2, 4, 8, 64, 1024])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_are_kept(classes, dtype) -> None:
    """Equal logits, p = 1/classes exactly: kept at that threshold, truncated just below."""
    logits, target = torch.full((1, classes), 1.5, dtype=dtype), torch.tensor([1])
    share = [
        truncated_cross_entropy(logits, target, threshold=t, return_stats=True)[1].kept.item()
        for t in (1 / classes, 1 / classes * (1 - 1e-5))
    ]
    assert share == [1, 0]


@pytest.mark.parametrize("threshold", [1e-30, 1e-300])
def test_thresholds_far_below_what_single_precision_holds(threshold) -> None:
    """Probabilities would all be 0 there; their logarithms are not."""
    lower = math.log(threshold)
    logits = torch.tensor([[lower * 1.01, 0.0], [lower * 0.99, 0.0]])
    _, stats = truncated_cross_entropy(
        logits, torch.tensor([0, 0]), threshold=threshold, return_stats=True
    )
    assert stats.kept == 1


@pytest.mark.parametrize("bad", [[math.nan, 0.0], [INF, 0.0], [-INF, -INF]], ids=str)
@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
def test_a_diverged_model_shows(weight, bad) -> None:
    """Logits without a softmax give NaN, as cross entropy does, also where all is truncated."""
    logits = torch.tensor([bad, [9.0, -9.0]])
    loss, grad = grad_of(logits, torch.tensor([0, 0]), weight=weight)
    assert loss.isnan()
    assert grad[0].isnan().any()
    assert grad[1].isfinite().all()


def test_a_weight_of_zero_at_p_zero() -> None:
    """Weight p (DFT, 2508.05629) where p = 0: 0 * inf is 0 here, with and without gradient."""
    logits = torch.tensor([[-INF, 0.0], [0.0, 0.0]])
    for weight in (lambda lp: lp.detach().exp(), lambda lp: lp.exp()):
        loss, grad = grad_of(logits, torch.tensor([0, 0]), weight=weight, reduction="none")
        assert loss.tolist() == pytest.approx([0, math.log(2) / 2])
        assert grad.isfinite().all()
        assert grad[0].abs().sum() == 0


def test_a_weight_of_ones_own() -> None:
    """Any function of log p, a comparison among them."""
    logits, target = torch.tensor([[0.0, 0], [0, 5]], dtype=torch.float64), torch.tensor([0, 1])
    ours = weighted_cross_entropy(logits, target, weight=lambda lp: lp < -0.5)
    assert ours.item() == pytest.approx(math.log(2) / 2)
    assert ours.dtype == torch.float64


def test_a_weight_of_all_data_where_there_are_none() -> None:
    for logits, target in (
        (torch.zeros(2, 4), torch.tensor([-100, -100])),
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(4), torch.tensor(-100)),
    ):
        loss, grad = grad_of(logits, target, weight=TruncateQuantile(0.5))
        assert loss == 0
        assert grad.abs().sum() == 0


X, T = torch.zeros(3, 4), torch.tensor([0, 1, 2])
BAD = {
    "classes": (X, torch.tensor([0, 4, 7]), {}, r"target\[1\] is 4.*\[0, 4\).*-100"),
    "negative": (X, torch.tensor([0, 1, -1]), {}, r"target\[2\] is -1"),
    "nested": (torch.zeros(2, 4, 2), torch.tensor([[0, 0], [0, 9]]), {}, r"target\[1, 1\] is 9"),
    "scalar": (torch.zeros(4), torch.tensor(4), {}, r"target is 4"),
    "shapes": (X, torch.tensor([0, 1]), {}, r"\(3, 4\) and target \(2,\)"),
    "order": (torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), {}, r"\(2, 3, 4\) and target \(2, 3"),
    "no classes": (torch.tensor(0.0), torch.tensor(0), {}, r"\(\) and target \(\)"),
    "probabilities": (X, torch.full((3, 4), 0.25), {}, "class probabilities.*class indices"),
    "int32": (X, T.int(), {}, r"int32.*\.long\(\)"),
    "whole logits": (X.long(), T, {}, "int64; allowed are float16"),
    "array": (np.zeros((3, 4)), T, {}, "input is of type ndarray"),
    "list": (X, [0, 1, 2], {}, "target is of type list"),
    "reduction": (X, T, {"reduction": "men"}, "'men'.*did you mean 'mean'"),
    "normalize": (X, T, {"normalize": "keep"}, "'keep'.*did you mean 'kept'"),
    "softcap": (X, T, {"logit_softcap": 0.0}, "logit_softcap is 0.0"),
    "softcap text": (X, T, {"logit_softcap": "30"}, "logit_softcap is '30'"),
    "softcap true": (X, T, {"logit_softcap": True}, "logit_softcap is True"),
    "ignored": (X, T, {"ignore_index": None}, "ignore_index is None; it must be a whole number"),
    "ignored text": (X, T, {"ignore_index": "x"}, "ignore_index is 'x'"),
    "ignored half": (X, T, {"ignore_index": -100.0}, "ignore_index is -100.0"),
    "smoothing": (X, T, {"label_smoothing": torch.ones(2)}, "label_smoothing is tensor"),
    "fp8": (X.to(torch.float8_e5m2), T, {}, "input is torch.float8_e5m2; allowed are"),
    "softcap nan": (X, T, {"logit_softcap": math.nan}, "logit_softcap is nan"),
    "softcap inf": (X, T, {"logit_softcap": INF}, "logit_softcap is inf"),
    "threshold": (X, T, {"threshold": 1.5}, r"threshold is 1.5.*\[0, 1\]"),
    "threshold below": (X, T, {"threshold": -0.1}, r"threshold is -0.1"),
    "threshold nan": (X, T, {"threshold": math.nan}, "threshold is nan"),
    "threshold text": (X, T, {"threshold": "0.9"}, "threshold is '0.9'.*number"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name) -> None:
    logits, target, options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        truncated_cross_entropy(logits, target, **options)


def test_bad_gamma() -> None:
    for gamma in (-1.0, math.nan, INF, None, True):
        with pytest.raises(InputError, match=f"gamma is {gamma}"):
            focal_cross_entropy(X, T, gamma=gamma)


def test_bad_weights() -> None:
    with pytest.raises(InputError, match=r"weight is 0\.9"):
        weighted_cross_entropy(X, T, weight=0.9)
    with pytest.raises(InputError, match=r"\(3, 1\) for log-probabilities \(3,\)"):
        weighted_cross_entropy(X, T, weight=lambda lp: lp.exp()[:, None])
    with pytest.raises(InputError, match="gave float"):
        weighted_cross_entropy(X, T, weight=lambda lp: 1.0)


def test_good_input_at_the_rim() -> None:
    """What is allowed is not refused: the last class, an ignore_index that is a class."""
    truncated_cross_entropy(X, torch.tensor([3, 0, -100]))
    ours = truncated_cross_entropy(X, torch.tensor([3, 0, 0]), ignore_index=0, reduction="sum")
    assert ours.item() == pytest.approx(math.log(4))
    assert truncated_cross_entropy(X, T, threshold=np.float32(0.5)).item() > 0
