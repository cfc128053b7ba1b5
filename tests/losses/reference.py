"""The losses as the papers' formulas say them: plain numpy, fp64, one datum at a time.

TCE (2509.08972, section 2.2.1), focal loss (its appendix A), DFT (2508.05629) and EAFT (2601.02151)
in the probabilities p themselves, with gradients differentiated by hand; on logits, and on hidden
states through an output layer by the chain rule. `wrong` makes one deliberate mistake, to show that
the comparison would see it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

MISTAKES = {
    "tce": ["strict", "from below", "divide by kept", "divide by all", "nothing ignored"],
    "focal": ["detached", "divide by kept", "divide by all", "p^gamma", "gamma + 1"],
    "dft": ["1 - p", "attached", "divide by kept"],
    "eaft": ["not normalized", "all classes", "divide by kept"],
}


@dataclass(frozen=True)
class Case:
    """What the loss is called with."""

    kind: str  # tce | focal | dft | eaft
    parameter: float = 0.0
    detach_weight: bool = False
    ignore_index: int = -100
    reduction: str = "mean"
    normalize: str = "valid"
    softcap: float | None = None
    top_k: int | None = 3
    wrong: str = ""


def _weight_and_slope(p: float, q: float, all_p: np.ndarray, case: Case) -> tuple[float, float]:
    """w(p) and dw/dp; q is 1 - p."""
    if case.kind == "dft":
        if case.wrong == "1 - p":
            return q, 0.0
        return p, 1.0 if case.wrong == "attached" else 0.0
    if case.kind == "eaft":
        k = len(all_p) if case.wrong == "all classes" else min(case.top_k or 10**9, len(all_p))
        top = np.sort(all_p)[len(all_p) - k :]
        top = top[top > 0] / top.sum()
        most = 1.0 if case.wrong == "not normalized" else math.log(k)
        return (float(-(top * np.log(top)).sum() / most) if k > 1 else 0.0) ** case.parameter, 0.0
    if case.kind == "tce":
        if case.wrong == "strict":
            return float(p < case.parameter), 0.0
        if case.wrong == "from below":
            return float(p >= case.parameter), 0.0
        return float(p <= case.parameter), 0.0
    gamma = case.parameter + (case.wrong == "gamma + 1")
    if gamma == 0:
        return 1.0, 0.0
    if case.wrong == "p^gamma":
        return p**gamma, gamma * p ** (gamma - 1)
    slope = -gamma * q ** (gamma - 1) if q > 0 else 0.0
    if case.detach_weight or case.wrong == "detached":
        slope = 0.0
    return q**gamma, slope


def _one(x: np.ndarray, t: int, case: Case) -> tuple[float, np.ndarray, float, np.ndarray]:
    """Loss, its gradient, the weight and its gradient of one row of logits (C,)."""
    inner = np.ones_like(x)
    if case.softcap is not None:
        squeezed = np.tanh(x / case.softcap)
        x, inner = case.softcap * squeezed, 1 - squeezed**2
    e = np.exp(x - x.max())
    p = e / e.sum()
    hot = np.arange(len(x)) == t
    q = float(e[~hot].sum() / e.sum())  # 1 - p would have lost its digits near p = 1
    w, slope = _weight_and_slope(float(p[t]), q, p, case)
    dp = p[t] * (hot - p)
    if w == 0:
        loss, grad = 0.0, np.zeros_like(x)
    elif p[t] == 0:
        loss, grad = math.inf, w * (p - hot)
    else:
        nll = -math.log(p[t]) if p[t] < 0.5 else -math.log1p(-q)
        loss, grad = w * nll, (slope * nll - w / p[t]) * dp
    return loss, grad * inner, w, slope * dp * inner


def reference(
    logits: np.ndarray, target: np.ndarray, case: Case
) -> tuple[np.ndarray, np.ndarray, float]:
    """The loss, the gradient of its sum, and the kept share.

    Args:
        logits: (N, C, d1, ...) or (C,).
        target: (N, d1, ...) or ().
    """
    x = logits.astype(np.float64)
    rows = x.reshape(1, -1) if x.ndim == 1 else np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    targets = target.reshape(-1)
    losses, grads = np.zeros(len(rows)), np.zeros_like(rows)
    kept, kept_grad, valid = 0.0, np.zeros_like(rows), 0
    for n, t in enumerate(targets):
        if t == case.ignore_index:
            if case.wrong != "nothing ignored":
                continue
            t = 0
        losses[n], grads[n], w, kept_grad[n] = _one(rows[n], int(t), case)
        kept, valid = kept + w, valid + 1
    loss: np.ndarray = losses.reshape(target.shape)
    if case.reduction != "none":
        loss = np.asarray(losses.sum())
    if case.reduction == "mean":
        by_kept = (case.normalize == "kept") != (case.wrong == "divide by kept")
        divisor = (kept or 1.0) if by_kept else float(max(valid, 1))
        if case.wrong == "divide by all":
            divisor = float(len(rows))
        grads = grads / divisor
        if by_kept and kept:
            grads = grads - float(loss) / divisor**2 * kept_grad
        loss = loss / divisor
    if x.ndim > 1:
        grads = np.moveaxis(grads.reshape(*np.moveaxis(x, 1, -1).shape), -1, 1)
    return loss, grads.reshape(x.shape), kept / max(valid, 1)


def check(
    call: object,
    logits: torch.Tensor,
    target: torch.Tensor,
    case: Case,
    *,
    rtol: float,
    atol: float,
) -> None:
    """Assert that a loss function's value, gradient and kept share are the reference's.

    Args:
        call: Maps (logits, target) to (loss, stats).
        logits: Any dtype; the reference starts from its values as they are.
        target: Class indices.
        case: What `call` computes.
        rtol: Relative tolerance, of the loss in units of fp32 or fp64 rounding.
        atol: Absolute tolerance. The gradient may be off by one more rounding to its own dtype.
    """
    assert callable(call)
    leaf = logits.detach().clone().requires_grad_()
    loss, stats = call(leaf, target)
    loss.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == logits.dtype
    values = logits.detach().double().numpy()
    expected, grad, share = reference(values, target.numpy(), case)
    np.testing.assert_allclose(loss.detach().double().numpy(), expected, rtol=rtol, atol=atol)
    half = logits.dtype in (torch.float16, torch.bfloat16)
    rounding = torch.finfo(logits.dtype).eps if half else 0.0
    least = torch.finfo(logits.dtype).smallest_normal if half else 0.0
    np.testing.assert_allclose(
        leaf.grad.double().numpy(), grad, rtol=rtol + rounding, atol=atol + least
    )
    np.testing.assert_allclose(float(stats.kept_share), share, rtol=rtol, atol=atol)
    assert not stats.kept.requires_grad  # or whoever keeps it keeps the graph


def check_linear(
    call: object,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
    target: torch.Tensor,
    case: Case,
    *,
    rtol: float,
    atol: float,
) -> None:
    """Assert that a loss on hidden states is the reference's of logits, chained by hand.

    Args:
        call: Maps (input, linear_weight, linear_bias, target) to (loss, stats).
        tensors: Hidden states (N, d), head (C, d) and bias (C,) or None, fp32 or fp64.
        target: Class indices (N,).
        case: What `call` computes. For ``none`` row n's gradient is asked for (n + 1) / N times.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
    """
    assert callable(call)
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    loss, stats = call(*leaves, target)
    asked = np.arange(1, len(target) + 1) / max(len(target), 1)
    loss.backward(torch.from_numpy(asked).to(loss.dtype) if case.reduction == "none" else None)
    h, w, b = (None if t is None else t.detach().double().numpy() for t in tensors)
    assert h is not None
    assert w is not None
    logits = h @ w.T + (0.0 if b is None else b)
    expected, grad, share = reference(logits, target.numpy(), case)
    if case.reduction == "none":
        grad = grad * asked[:, None]
    wanted = [grad @ w, grad.T @ h, grad.sum(axis=0)]
    np.testing.assert_allclose(loss.detach().double().numpy(), expected, rtol=rtol, atol=atol)
    for leaf, right in zip(leaves, wanted, strict=True):
        if leaf is not None:
            assert leaf.grad.dtype == leaf.dtype
            np.testing.assert_allclose(leaf.grad.double().numpy(), right, rtol=rtol, atol=atol)
    np.testing.assert_allclose(float(stats.kept_share), share, rtol=rtol, atol=atol)
