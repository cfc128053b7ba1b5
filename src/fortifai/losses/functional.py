"""Confidence-weighted cross entropy on logits, shaped like `torch.nn.functional.cross_entropy`."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fortifai.confidence import Focal, Truncate, Weight, keeps_all
from fortifai.errors import InputError, nearest

Reduction = Literal["mean", "sum", "none"]
Normalize = Literal["valid", "kept"]


class LossStats(NamedTuple):
    """What a loss saw, as detached scalar tensors on its device: no synchronisation.

    Attributes:
        kept: Sum of the weights of the valid (not ignored) targets.
        valid: Number of valid targets.
    """

    kept: Tensor
    valid: Tensor

    @property
    def kept_share(self) -> Tensor:
        """Kept over valid; 0 where nothing is valid."""
        return self.kept / self.valid.clamp(min=1)


@overload
def weighted_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Weight,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    normalize: Normalize = ...,
    logit_softcap: float | None = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...


@overload
def weighted_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Weight,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    normalize: Normalize = ...,
    logit_softcap: float | None = ...,
    return_stats: Literal[True],
) -> tuple[Tensor, LossStats]: ...


@overload
def weighted_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Weight,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    normalize: Normalize = ...,
    logit_softcap: float | None = ...,
    return_stats: bool,
) -> Tensor | tuple[Tensor, LossStats]: ...


def weighted_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Weight,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalize: Normalize = "valid",
    logit_softcap: float | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, LossStats]:
    r"""Cross entropy with each target weighted by the model's confidence in it.

    With :math:`p_t = \mathrm{softmax}(x)_t` the loss of one target is
    :math:`w(\log p_t) \cdot (-\log p_t)` (ForTIFAI, 2509.08972, section 2.2). A weight of exactly 0
    gives loss 0 and gradient 0 even where :math:`p_t = 0`; the result is never NaN for logits that
    have a softmax. Logits that have none (a NaN, +inf, or -inf for every class) give NaN, truncated
    or not, so that a diverged model shows.

    Args:
        input: Logits, (C), (N, C) or (N, C, d1, ..., dK). Half precision is computed in float32.
        target: Class indices, int64, (), (N) or (N, d1, ..., dK).
        weight: Maps log p_t to [0, 1]; see `fortifai.confidence`.
        ignore_index: Targets with this value count nothing, in loss and divisor.
        reduction: ``mean``, ``sum``, or ``none`` for a loss of the target's shape.
        normalize: What ``mean`` divides by: the number of ``valid`` targets, as ForTIFAI's code
            does, or the sum of weights, ``kept``. The mean of nothing is 0, not NaN.
        logit_softcap: Logits are first squeezed to cap * tanh(x / cap), as Gemma does. Not for
            logits that the model has capped already, as those of transformers have.
        return_stats: Also return `LossStats`, computed on the way without a second softmax.

    Returns:
        The loss, float32 for half-precision input and of the input's dtype otherwise; with
        `return_stats` a pair of it and the stats.

    Raises:
        InputError: Shapes, dtypes, an option, a weight of another shape, or a target out of range
            (looked for on the CPU only: a look at an accelerator's memory would wait for it).
    """
    _check(input, target, ignore_index, reduction, normalize, logit_softcap)
    logits = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    if logit_softcap is not None:
        logits = logit_softcap * torch.tanh(logits / logit_softcap)
    valid = target != ignore_index
    n_valid = valid.sum()
    if keeps_all(weight) and reduction != "none":
        # PyTorch's own reduction, so that this is cross entropy to the last bit
        loss = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
        if reduction == "mean":
            loss = loss / n_valid.clamp(min=1)
        return (loss, LossStats(n_valid.to(loss.dtype), n_valid)) if return_stats else loss
    nll = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    weights = torch.where(valid, _weigh(weight, -nll), 0.0)
    losses = _product(weights, nll)
    loss = _reduce(losses, weights, n_valid, reduction, normalize)
    if not return_stats:
        return loss
    return loss, LossStats(weights.detach().sum(), n_valid)


def _weigh(weight: Weight, log_p: Tensor) -> Tensor:
    if not callable(weight):
        raise InputError(
            f"weight is {weight!r}; give a function of log p, such as "
            "fortifai.confidence.Truncate(0.9)"
        )
    weights = weight(log_p)
    if not isinstance(weights, Tensor) or weights.shape != log_p.shape:
        got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        # a weight of another shape would be broadcast, and weigh each datum by the others'
        raise InputError(
            f"{weight!r} gave {got} for log-probabilities {tuple(log_p.shape)}; a weight must "
            "return one weight for each, a tensor of the same shape"
        )
    return weights.to(log_p.dtype)


def _product(weights: Tensor, nll: Tensor) -> Tensor:
    """Weights * nll with 0 * inf = 0, in value and gradient."""
    if weights.requires_grad:
        # At p = 0 the slope of a weight of p is 0, and times nll = inf would not be a number
        weights = torch.where(nll.detach().isinf(), weights.detach(), weights)
    return torch.where(weights.detach() == 0, 0.0, weights * nll)


def _reduce(
    losses: Tensor, weights: Tensor, n_valid: Tensor, reduction: Reduction, normalize: Normalize
) -> Tensor:
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    if normalize == "valid":
        return total / n_valid.clamp(min=1)
    kept = weights.sum()
    return total / torch.where(kept > 0, kept, 1.0)


@overload
def truncated_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    threshold: float = ...,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    normalize: Normalize = ...,
    logit_softcap: float | None = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...


@overload
def truncated_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    threshold: float = ...,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    normalize: Normalize = ...,
    logit_softcap: float | None = ...,
    return_stats: Literal[True],
) -> tuple[Tensor, LossStats]: ...


def truncated_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    threshold: float = 0.9,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalize: Normalize = "valid",
    logit_softcap: float | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, LossStats]:
    r"""Truncated cross entropy, TCE (ForTIFAI, 2509.08972, section 2.2.1).

    :math:`\chi_\gamma(p_t) \cdot (-\log p_t)` with :math:`\chi_\gamma = 1` where
    :math:`p_t \le \gamma`, the threshold, and 0 elsewhere, without gradient. A threshold of 1 is
    cross entropy exactly; if everything is truncated, loss and gradient are 0.

    Args:
        input: See `weighted_cross_entropy`, as for the other arguments.
        target: Class indices.
        threshold: Confidence above which a target counts nothing, in [0, 1].
        ignore_index: Targets with this value count nothing.
        reduction: ``mean``, ``sum`` or ``none``.
        normalize: ``valid`` or ``kept``.
        logit_softcap: Cap of the logits, or None.
        return_stats: Also return `LossStats`.

    Raises:
        InputError: As `weighted_cross_entropy`, or a threshold outside [0, 1].
    """
    return weighted_cross_entropy(
        input,
        target,
        weight=Truncate(threshold),
        ignore_index=ignore_index,
        reduction=reduction,
        normalize=normalize,
        logit_softcap=logit_softcap,
        return_stats=return_stats,
    )


@overload
def focal_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = ...,
    detach_weight: bool = ...,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    normalize: Normalize = ...,
    logit_softcap: float | None = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...


@overload
def focal_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = ...,
    detach_weight: bool = ...,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    normalize: Normalize = ...,
    logit_softcap: float | None = ...,
    return_stats: Literal[True],
) -> tuple[Tensor, LossStats]: ...


def focal_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    detach_weight: bool = False,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalize: Normalize = "valid",
    logit_softcap: float | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, LossStats]:
    r"""Focal loss, :math:`(1 - p_t)^\gamma \cdot (-\log p_t)` (2509.08972, appendix A).

    Args:
        input: See `weighted_cross_entropy`, as for the other arguments.
        target: Class indices.
        gamma: How fast confident targets fade; 0 is cross entropy exactly.
        detach_weight: Whether the weight carries no gradient.
        ignore_index: Targets with this value count nothing.
        reduction: ``mean``, ``sum`` or ``none``.
        normalize: ``valid`` or ``kept``.
        logit_softcap: Cap of the logits, or None.
        return_stats: Also return `LossStats`.

    Raises:
        InputError: As `weighted_cross_entropy`, or a gamma that is negative or not finite.
    """
    return weighted_cross_entropy(
        input,
        target,
        weight=Focal(gamma, detach_weight=detach_weight),
        ignore_index=ignore_index,
        reduction=reduction,
        normalize=normalize,
        logit_softcap=logit_softcap,
        return_stats=return_stats,
    )


def _check(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    reduction: str,
    normalize: str,
    logit_softcap: float | None,
) -> None:
    check_options(reduction, normalize, logit_softcap)
    for name, value in (("input", input), ("target", target)):
        if not isinstance(value, Tensor):
            raise InputError(f"{name} is of type {type(value).__name__}; give a torch.Tensor")
    if not input.is_floating_point():
        raise InputError(f"input is {input.dtype}; logits must be floating point")
    if target.is_floating_point():
        raise InputError(
            f"target is {target.dtype}, as class probabilities are; a confidence weight needs one "
            "true class for each datum, so give class indices (int64)"
        )
    if target.dtype != torch.int64:
        raise InputError(f"target is {target.dtype}; class indices must be int64: use .long()")
    if input.device != target.device:
        raise InputError(f"input is on {input.device} and target on {target.device}; move one")
    classes_at = 0 if input.dim() == 1 else 1
    expected = input.shape[:classes_at] + input.shape[classes_at + 1 :]
    if input.dim() == 0 or target.shape != expected:
        raise InputError(
            f"input is {tuple(input.shape)} and target {tuple(target.shape)}; for logits "
            "(N, C, d1, ...) the target is (N, d1, ...), for (C) it is a scalar"
        )
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_range(target, input.shape[classes_at], ignore_index)


def check_options(reduction: str, normalize: str, logit_softcap: float | None) -> None:
    """Raise `InputError` unless the options of `weighted_cross_entropy` are allowed."""
    check_choice("reduction", reduction, get_args(Reduction))
    check_choice("normalize", normalize, get_args(Normalize))
    if logit_softcap is not None and not 0 < logit_softcap < math.inf:
        raise InputError(f"logit_softcap is {logit_softcap}; it must be above 0, or None")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise `InputError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise InputError(
            f"{name} is {value!r}; allowed are {', '.join(allowed)}{nearest(str(value), allowed)}"
        )


def _check_range(target: Tensor, classes: int, ignore_index: int) -> None:
    wrong = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if wrong.any():
        where = tuple(int(i) for i in wrong.nonzero()[0])
        raise InputError(
            f"target{list(where) if where else ''} is {int(target[where])}; class indices lie in "
            f"[0, {classes}), and ignore_index is {ignore_index}"
        )
