"""The losses as the papers' formulas say them: plain numpy, fp64, one datum at a time.

TCE (2509.08972, section 2.2.1), focal loss (its appendix A), DFT (2508.05629) and EAFT (2601.02151)
in the probabilities p themselves, with gradients differentiated by hand; on logits, and on hidden
states through an output layer by the chain rule. Beside cross entropy a row may lose by label
smoothing (1512.00567, equation 3), a confidence penalty (1701.06548), a z-loss (2204.02311) and
GEM (2408.16673), and a target may have a sample weight. `wrong` makes one deliberate mistake, to
show that the comparison would see it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

MISTAKES = {
    "tce": ["strict", "from below", "divide by kept", "divide by all", "nothing ignored"],
    "focal": ["detached", "divide by kept", "divide by all", "p^gamma", "gamma + 1"],
    "dft": ["1 - p", "attached", "divide by kept"],
    "eaft": ["not normalized", "all classes", "divide by kept"],
}
# for cases with the terms of `TERMS` and sample weights
MISTAKES_OF_ROWS = [
    "hard target", "smoothed over the others", "entropy of bits", "entropy added",
    "lse not squared", "terms unweighted", "loss not times beta", "weight of plain p",
    "samples not in the divisor", "samples alone in the divisor", "samples squared",
]  # fmt: skip
TERMS = {"label_smoothing": 0.2, "confidence_penalty": 0.3, "z_loss": 0.05, "gem_beta": 0.7}


def sample_weights(n: int) -> np.ndarray:
    """Some weights, 0 and above 1 among them."""
    return np.array([1.0, 0.0, 0.5, 2.0, 3.25])[np.arange(n) % 5]


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
    label_smoothing: float = 0.0
    confidence_penalty: float = 0.0
    z_loss: float = 0.0
    gem_beta: float = 1.0
    sampled: bool = False
    wrong: str = ""

    def options(self, target: torch.Tensor) -> dict[str, Any]:
        """What the functions are called with, for these targets."""
        sample = torch.from_numpy(sample_weights(target.numel())).reshape(target.shape)
        return {
            "sample_weight": sample.to(target.device) if self.sampled else None,
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
            "normalize": self.normalize,
            "logit_softcap": self.softcap,
            **{name: getattr(self, name) for name in TERMS},
            "return_stats": True,
        }


ROW_CASES = [
    Case("tce", 1.0, label_smoothing=0.1),
    Case("tce", 0.3, label_smoothing=0.1),
    Case("tce", 0.3, confidence_penalty=0.4, reduction="none"),
    Case("tce", 0.3, z_loss=0.1, normalize="kept"),
    Case("tce", 0.3, gem_beta=0.7),
    Case("tce", 0.3, gem_beta=2.0, reduction="none", softcap=3.0),
    Case("focal", 2.0, gem_beta=0.7, normalize="kept"),
    Case("focal", 2.0, **TERMS),
    Case("focal", 1.0, **TERMS, softcap=3.0, normalize="kept"),
    Case("focal", 2.0, **TERMS, reduction="none", sampled=True),
    Case("dft", **TERMS, reduction="sum"),
    Case("eaft", 1.0, **TERMS),
    Case("eaft", 1.0, top_k=None, gem_beta=0.5, reduction="none"),
    Case("tce", 0.3, sampled=True),
    Case("tce", 0.3, sampled=True, normalize="weight_sum", softcap=2.0),
    Case("tce", 0.3, sampled=True, normalize="kept"),
    Case("focal", 2.0, sampled=True, normalize="kept"),
    Case("focal", 2.0, sampled=True, normalize="weight_sum", **TERMS),
    Case("eaft", 1.0, sampled=True, reduction="none"),
    Case("tce", 1.0, normalize="weight_sum"),
]


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
    plain = np.exp(x - x.max())
    x, inner = x / case.gem_beta, inner / case.gem_beta
    e = np.exp(x - x.max())
    p = e / e.sum()
    hot = np.arange(len(x)) == t
    q = float(e[~hot].sum() / e.sum())  # 1 - p would have lost its digits near p = 1
    w, slope = _weight_and_slope(float(p[t]), q, p, case)
    if case.wrong == "weight of plain p":
        one = float(plain[t] / plain.sum())
        w, slope = _weight_and_slope(one, 1 - one, p, case)
    dp = p[t] * (hot - p)
    if w == 0:
        loss, grad = 0.0, np.zeros_like(x)
    elif p[t] == 0:
        loss, grad = math.inf, w * (p - hot)
    else:
        nll = -math.log(p[t]) if p[t] < 0.5 else -math.log1p(-q)
        row, drow = nll + 0.0, p - hot
        more, dmore = _terms(x, p, hot, nll, case)
        if case.wrong == "terms unweighted":
            loss, grad = w * row + more, (slope * row) * dp + w * drow + dmore
        else:
            row, drow = row + more, drow + dmore
            loss, grad = w * row, slope * row * dp + w * drow
    beta = 1.0 if case.wrong == "loss not times beta" else case.gem_beta
    return beta * loss, beta * grad * inner, w, slope * dp * inner


def _terms(
    x: np.ndarray, p: np.ndarray, hot: np.ndarray, nll: float, case: Case
) -> tuple[float, np.ndarray]:
    """What a row loses beside -log p of its target, and the gradient of that."""
    share = case.label_smoothing if case.wrong != "hard target" else 0.0
    classes = len(x)
    target = (1 - share) * hot + share / classes
    if case.wrong == "smoothed over the others" and classes > 1:
        target = (1 - share) * hot + share * ~hot / (classes - 1)
    lse = float(x.max()) + math.log(np.exp(x - x.max()).sum())
    log_p = x - lse
    entropy = -float((p * log_p).sum())
    size = case.confidence_penalty / (math.log(2) if case.wrong == "entropy of bits" else 1)
    size = -size if case.wrong == "entropy added" else size
    loss = -float((target * log_p).sum()) - nll - size * entropy
    grad = (hot - target) + size * p * (log_p + entropy)
    if case.wrong == "lse not squared":
        return loss + case.z_loss * lse, grad + case.z_loss * p
    return loss + case.z_loss * lse**2, grad + 2 * case.z_loss * lse * p


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
    samples = sample_weights(len(rows)) if case.sampled else np.ones(len(rows))
    kept, kept_grad, valid, of_data = 0.0, np.zeros_like(rows), 0, 0.0
    for n, t in enumerate(targets):
        if t == case.ignore_index:
            if case.wrong != "nothing ignored":
                continue
            t = 0
        loss_n, grads_n, w, kept_grad_n = _one(rows[n], int(t), case)
        sample = samples[n] ** (2 if case.wrong == "samples squared" else 1)
        losses[n], grads[n], kept_grad[n] = sample * loss_n, sample * grads_n, sample * kept_grad_n
        kept, valid, of_data = kept + sample * w, valid + 1, of_data + sample
    loss: np.ndarray = losses.reshape(target.shape)
    if case.reduction != "none":
        loss = np.asarray(losses.sum())
    if case.reduction == "mean":
        by_kept = (case.normalize == "kept") != (case.wrong == "divide by kept")
        by_data = (case.normalize == "weight_sum") != (case.wrong == "samples alone in the divisor")
        if case.wrong == "samples not in the divisor":
            by_data = False
        divisor = (kept or 1.0) if by_kept else (of_data or 1.0) if by_data else float(valid or 1)
        if case.wrong == "divide by all":
            divisor = float(len(rows))
        grads = grads / divisor
        if by_kept and kept:
            grads = grads - float(loss) / divisor**2 * kept_grad
        loss = loss / divisor
    if x.ndim > 1:
        grads = np.moveaxis(grads.reshape(*np.moveaxis(x, 1, -1).shape), -1, 1)
    return loss, grads.reshape(x.shape), kept / (of_data or 1.0)


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
