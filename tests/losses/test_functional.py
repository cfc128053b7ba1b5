"""The losses against the papers' formulas written out in NumPy at double precision."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fortifai
from fortifai import (
    FocalCrossEntropyLoss,
    TruncatedCrossEntropyLoss,
    focal_cross_entropy,
    truncated_cross_entropy,
    weighted_cross_entropy,
)
from fortifai.errors import InputError

IGNORE = -100


def reference(logits, target, *, threshold=None, gamma=None, detach=False, normalize="valid",
              reduction="mean", wrong=None):  # fmt: skip
    """(loss, gradient) of rows (N, C): d loss / d log p worked out by hand, one row at a time.

    `wrong` plants one of the mistakes that the comparison must catch.
    """
    n, c = logits.shape
    losses, slopes, weights, rows = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros((n, c))
    for i in range(n):
        if target[i] == IGNORE:
            continue
        shifted = logits[i] - logits[i].max()
        p = np.exp(shifted) / np.exp(shifted).sum()
        pt = p[target[i]]
        log_p = shifted[target[i]] - math.log(np.exp(shifted).sum())
        rows[i] = (np.arange(c) == target[i]) - p  # d log p_t / d logits
        if threshold is not None:
            keep = pt < threshold if wrong == "strict" else pt <= threshold
            weights[i], slope_of_weight = float(keep), 0.0
        else:
            weights[i] = (1 - pt) ** gamma
            slope_of_weight = 0.0 if detach else -gamma * (1 - pt) ** (gamma - 1) * pt
        if wrong == "no slope":
            slope_of_weight = 0.0
        losses[i] = -weights[i] * log_p
        slopes[i] = -weights[i] - slope_of_weight * log_p
    if reduction == "none":
        return losses, None
    valid = (target != IGNORE).sum()
    divisor = {"valid": valid, "kept": weights.sum()}[normalize]
    if wrong == "kept":
        divisor = weights.sum()
    if reduction == "sum":
        divisor = 1.0
    divisor = divisor or 1.0
    return losses.sum() / divisor, slopes[:, None] * rows / divisor


def case(seed, n=40, c=7, scale=2.0, ignored=0.2):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, c, n)
    target[rng.random(n) < ignored] = IGNORE
    return rng.normal(size=(n, c)) * scale, target


def ours(logits, target, dtype=torch.float64, **options):
    x = torch.tensor(logits, dtype=dtype, requires_grad=True)
    options = dict(options)
    if "threshold" in options:
        loss = truncated_cross_entropy(x, torch.tensor(target), **options)
    else:
        options["detach_weight"] = options.pop("detach", False)
        loss = focal_cross_entropy(x, torch.tensor(target), **options)
    loss.sum().backward()
    return loss.detach().numpy(), x.grad.double().numpy()


def agree(got, expected, tolerance):
    loss = np.allclose(got[0], expected[0], rtol=tolerance, atol=tolerance)
    return loss and np.allclose(got[1], expected[1], rtol=tolerance, atol=tolerance)


OPTIONS = [
    {"threshold": 0.9},
    {"threshold": 0.3},
    {"threshold": 0.0},
    {"threshold": 1.0},
    {"gamma": 2.0},
    {"gamma": 2.0, "detach": True},
    {"gamma": 0.5, "detach": True},
    {"gamma": 1.5},
    {"gamma": 0.0},
    {"threshold": 0.3, "normalize": "kept"},
    {"gamma": 2.0, "normalize": "kept", "detach": True},
    {"threshold": 0.3, "reduction": "sum"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_value_and_gradient(options):
    logits, target = case(0)
    # double precision: sums of 40 terms of order one round at 1e-15
    assert agree(ours(logits, target, **options), reference(logits, target, **options), 1e-12)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"threshold": 0.3}, "kept"),
        ({"gamma": 2.0}, "kept"),
        ({"gamma": 2.0}, "no slope"),
    ],
)
def test_a_wrong_reference_is_told_apart(options, wrong):
    logits, target = case(0)
    expected = reference(logits, target, wrong=wrong, **options)
    assert not agree(ours(logits, target, **options), expected, 1e-3)


def test_a_tie_with_the_threshold_is_kept():
    # two equal logits: p is 1/2 and log p the float nearest to log(1/2) on both sides
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(3, 2, dtype=dtype)
        loss = truncated_cross_entropy(x, torch.zeros(3, dtype=torch.long), threshold=0.5)
        assert loss.item() == pytest.approx(math.log(2))
    logits, target = np.zeros((3, 2)), np.zeros(3, dtype=int)
    got = ours(logits, target, threshold=0.5)
    assert agree(got, reference(logits, target, threshold=0.5), 1e-12)
    assert not agree(got, reference(logits, target, threshold=0.5, wrong="strict"), 1e-3)


@given(
    st.integers(1, 30), st.integers(2, 12), st.integers(0, 2**31), st.floats(0, 1),
    st.sampled_from(["valid", "kept"]), st.sampled_from(["mean", "sum", "none"]),
)  # fmt: skip
@settings(deadline=None)
def test_random_shapes(n, c, seed, threshold, normalize, reduction):
    logits, target = case(seed, n, c)
    expected = reference(
        logits, target, threshold=threshold, normalize=normalize, reduction=reduction
    )
    got = ours(logits, target, threshold=threshold, normalize=normalize, reduction=reduction)
    assert np.allclose(got[0], expected[0], atol=1e-10)
    if reduction != "none":
        assert np.allclose(got[1], expected[1], atol=1e-10)


@pytest.mark.parametrize("options", [{"threshold": 0.5}, {"gamma": 2.0}, {"gamma": 1.5}])
@pytest.mark.parametrize("normalize", ["valid", "kept"])
def test_gradcheck(options, normalize):
    logits, target = case(3, n=8, c=5)
    x = torch.tensor(logits, requires_grad=True)
    t = torch.tensor(target)
    function = truncated_cross_entropy if "threshold" in options else focal_cross_entropy
    assert torch.autograd.gradcheck(
        lambda z: function(z, t, normalize=normalize, logit_softcap=4.0, **options), x
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threshold_one_is_cross_entropy_to_the_last_bit(reduction, dtype):
    logits, target = case(5, n=333, c=50)
    t = torch.tensor(target)
    x, y = (torch.tensor(logits, dtype=dtype, requires_grad=True) for _ in range(2))
    a = truncated_cross_entropy(x, t, threshold=1.0, reduction=reduction)
    b = F.cross_entropy(y, t, reduction=reduction)
    a.backward()
    b.backward()
    assert torch.equal(a, b)
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, target = case(6, n=200, c=30)
    logits = torch.tensor(logits).to(dtype).double().numpy()  # what half precision can hold
    loss, grad = ours(logits, target, dtype, threshold=0.6)
    expected = reference(logits, target, threshold=0.6)
    assert loss.dtype == np.float32
    assert np.allclose(loss, expected[0], rtol=1e-5)  # float32 sums of 200 terms
    # the gradient is rounded to the input's precision at the end, and only there: half an ulp
    ulp = 2.0 ** (-8 if dtype == torch.bfloat16 else -11)
    assert np.all(np.abs(grad - expected[1]) <= ulp * np.abs(expected[1]) + 1e-7)


@pytest.mark.parametrize("shape", [(), (4,), (4, 3), (2, 3, 4)])
def test_shapes_of_cross_entropy(shape):
    torch.manual_seed(0)
    target = torch.randint(0, 6, shape)
    logits_shape = (6,) if shape == () else (shape[0], 6, *shape[1:])
    logits = torch.randn(logits_shape, dtype=torch.float64)
    got = truncated_cross_entropy(logits, target, threshold=1.0, reduction="none")
    assert got.shape == target.shape
    assert torch.equal(got, F.cross_entropy(logits, target, reduction="none"))
    log_p = -F.cross_entropy(logits, target, reduction="none")
    kept = truncated_cross_entropy(logits, target, threshold=0.2, reduction="none")
    assert torch.equal(kept, torch.where(log_p.exp() <= 0.2, -log_p, 0.0))


def test_everything_truncated_is_zero_and_everything_ignored_too():
    x = torch.tensor([[30.0, 0.0], [25.0, 0.0]], requires_grad=True)
    for normalize in ("valid", "kept"):
        for target in (torch.zeros(2, dtype=torch.long), torch.full((2,), IGNORE)):
            loss = truncated_cross_entropy(x, target, threshold=0.5, normalize=normalize)
            (grad,) = torch.autograd.grad(loss, x)
            assert loss.item() == 0.0
            assert torch.equal(grad, torch.zeros(2, 2))


def test_infinite_logits_never_make_nan():
    inf = math.inf
    # target impossible; target certain; another class impossible
    x = torch.tensor([[-inf, 0.0, 1.0], [0.0, -inf, -inf], [0.5, 0.0, -inf]], requires_grad=True)
    target = torch.zeros(3, dtype=torch.long)
    for loss in (
        truncated_cross_entropy(x, target, threshold=0.9, reduction="none"),
        focal_cross_entropy(x, target, reduction="none"),
        focal_cross_entropy(x, target, gamma=0.5, reduction="none"),
    ):
        (grad,) = torch.autograd.grad(loss.sum(), x)
        assert loss[0] == inf  # as cross entropy says of the impossible
        assert loss[1] == 0.0
        assert not grad.isnan().any()
    loss = truncated_cross_entropy(x[1:], target[1:], threshold=0.1)
    assert loss.item() == 0.0


def test_weight_zero_times_infinite_loss_is_zero():
    def half(log_p):
        return (log_p > -2).to(log_p.dtype)  # drops the impossible

    x = torch.tensor([[-math.inf, 0.0], [0.0, 0.0]], requires_grad=True)
    loss = weighted_cross_entropy(x, torch.zeros(2, dtype=torch.long), weight=half)
    (grad,) = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx(math.log(2) / 2)
    assert torch.equal(grad[0], torch.zeros(2))


def test_focal_near_certainty_keeps_its_digits():
    """(1 - p)^2 (-log p) is about (1 - p)^3: naive float32 gives 0 or noise."""
    for margin in (8.0, 12.0, 16.0):
        x = torch.tensor([[margin, 0.0]])
        got = focal_cross_entropy(x, torch.tensor([0])).item()
        q = 1 / (1 + math.exp(margin))
        expected = -(q**2) * math.log1p(-q)
        # log_softmax itself holds log p near 0 to half an ulp of 1: 6e-8 / q
        assert got == pytest.approx(expected, rel=3 * 6e-8 / q + 1e-6)


def test_softcap_is_gemmas():
    logits, target = case(8)
    capped = 5.0 * np.tanh(logits / 5.0)
    got = truncated_cross_entropy(
        torch.tensor(logits), torch.tensor(target), threshold=0.5, logit_softcap=5.0
    )
    assert got.item() == pytest.approx(reference(capped, target, threshold=0.5)[0], rel=1e-12)


def test_stats_count_by_hand():
    x = torch.log(torch.tensor([[0.95, 0.05], [0.5, 0.5], [0.2, 0.8], [0.9, 0.1]]))
    target = torch.tensor([0, 0, IGNORE, 1])
    loss, stats = truncated_cross_entropy(x, target, threshold=0.6, return_stats=True)
    assert (stats.kept.item(), stats.valid.item()) == (2.0, 3)
    assert stats.kept_share.item() == pytest.approx(2 / 3)
    assert loss.item() == pytest.approx((math.log(2) + math.log(10)) / 3)
    _, stats = focal_cross_entropy(x, target, return_stats=True)
    assert stats.kept.item() == pytest.approx(0.05**2 + 0.5**2 + 0.9**2, rel=1e-5)
    assert not stats.kept.requires_grad


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (TruncatedCrossEntropyLoss(0.4), lambda x, t: truncated_cross_entropy(x, t, threshold=0.4)),
        (
            FocalCrossEntropyLoss(1.5, detach_weight=True, normalize="kept"),
            lambda x, t: focal_cross_entropy(x, t, gamma=1.5, detach_weight=True, normalize="kept"),
        ),
    ],
)
def test_modules(module, function):
    logits, target = case(9)
    x, t = torch.tensor(logits), torch.tensor(target)
    assert module.kept_share is None
    assert torch.equal(module(x, t), function(x, t))
    assert 0 < module.kept_share.item() < 1
    assert "ignore_index=-100" in repr(module)


X, T = torch.zeros(3, 4), torch.zeros(3, dtype=torch.long)
BAD = [
    (lambda: truncated_cross_entropy(X, T, threshold=1.5), "threshold is 1.5"),
    (lambda: truncated_cross_entropy(X, T, threshold=math.nan), "threshold is nan"),
    (lambda: focal_cross_entropy(X, T, gamma=-1), "gamma is -1"),
    (lambda: focal_cross_entropy(X, T, gamma=math.inf), "gamma is inf"),
    (lambda: truncated_cross_entropy(X, T, reduction="man"), "did you mean 'mean'"),
    (lambda: truncated_cross_entropy(X, T, normalize="keep"), "did you mean 'kept'"),
    (lambda: truncated_cross_entropy(X, T, logit_softcap=0), "logit_softcap is 0"),
    (lambda: truncated_cross_entropy(X, X), "class probabilities"),
    (lambda: truncated_cross_entropy(X.long(), T), "must be floating point"),
    (lambda: truncated_cross_entropy(X, T.int()), "must be int64"),
    (lambda: truncated_cross_entropy(X, T[:2]), r"target \(2,\)"),
    (lambda: truncated_cross_entropy(X, torch.tensor([0, 4, -1])), r"target\[1\] is 4"),
    (lambda: truncated_cross_entropy(X, torch.tensor([0, -1, 4])), r"target\[1\] is -1"),
]


@pytest.mark.parametrize(("call", "words"), BAD, ids=[w for _, w in BAD])
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_everything_promised_is_exported():
    for name in fortifai.__all__:
        assert hasattr(fortifai, name)
