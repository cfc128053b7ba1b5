"""Confidence-weighted cross entropy on logits, shaped like `torch.nn.functional.cross_entropy`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fortifai.confidence import AnyWeight, Focal, Truncate, is_elementwise, keeps_all
from fortifai.errors import InputError
from fortifai.losses.checks import (
    Normalize,
    Reduction,
    check_indices,
    check_kind,
    check_options,
    check_range,
    check_weight,
)
from fortifai.losses.weighing import (
    LossStats,
    normalized_entropy,
    reduce_losses,
    weigh,
    weighted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "LossStats",
    "Normalize",
    "Reduction",
    "focal_cross_entropy",
    "truncated_cross_entropy",
    "weighted_cross_entropy",
]


@overload
def weighted_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: AnyWeight,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    normalize: Normalize = ...,
    logit_softcap: float | None = ...,
    label_smoothing: float = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...


@overload
def weighted_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: AnyWeight,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    normalize: Normalize = ...,
    logit_softcap: float | None = ...,
    label_smoothing: float = ...,
    return_stats: Literal[True],
) -> tuple[Tensor, LossStats]: ...


@overload
def weighted_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: AnyWeight,
    ignore_index: int = ...,
    reduction: Reduction = ...,
    normalize: Normalize = ...,
    logit_softcap: float | None = ...,
    label_smoothing: float = ...,
    return_stats: bool,
) -> Tensor | tuple[Tensor, LossStats]: ...


def weighted_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: AnyWeight,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalize: Normalize = "valid",
    logit_softcap: float | None = None,
    label_smoothing: float = 0.0,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, LossStats]:
    r"""Cross entropy with each target weighted by the model's confidence in it.

    With :math:`p_t = \mathrm{softmax}(x)_t` the loss of one target is
    :math:`w(\log p_t) \cdot (-\log p_t)` (ForTIFAI, 2509.08972, section 2.2). A weight of exactly 0
    gives loss 0 and gradient 0 even where :math:`p_t = 0`; the result is never NaN for logits that
    have a softmax. Logits that have none (a NaN, +inf, or -inf for every class) give NaN, truncated
    or not, so that a diverged model shows; those of ignored targets may be anything, and have
    gradient 0.

    Args:
        input: Logits, (C), (N, C) or (N, C, d1, ..., dK). Half precision is computed in float32.
        target: Class indices, int64, (), (N) or (N, d1, ..., dK).
        weight: Maps log p_t (and, if it declares so, the entropy) to [0, 1]; see
            `fortifai.confidence`.
        ignore_index: Targets with this value count nothing, in loss and divisor.
        reduction: ``mean``, ``sum``, or ``none`` for a loss of the target's shape.
        normalize: What ``mean`` divides by: the number of ``valid`` targets, as ForTIFAI's code
            does, or the sum of weights, ``kept``. The mean of nothing is 0, not NaN.
        logit_softcap: Logits are first squeezed to cap * tanh(x / cap), as Gemma does. Not for
            logits that the model has capped already, as those of transformers have.
        label_smoothing: 0 only, and here to say so: the probability of one true class decides the
            weight, and a smoothed target would keep pulling where that class is left out.
        return_stats: Also return `LossStats`, computed on the way without a second softmax.

    Returns:
        The loss, float32 for half-precision input and of the input's dtype otherwise; with
        `return_stats` a pair of it and the stats.

    Raises:
        InputError: Shapes, dtypes, an option, a weight of another shape, or a target out of range
            (looked for on the CPU only: a look at an accelerator's memory would wait for it).
    """
    check_weight(weight)
    check_options(ignore_index, reduction, normalize, logit_softcap, label_smoothing)
    _check(input, target, ignore_index)
    valid = target != ignore_index
    logits = _without_ignored(input, valid)
    logits = logits.float() if input.dtype in (torch.float16, torch.bfloat16) else logits
    if logit_softcap is not None:
        logits = logit_softcap * torch.tanh(logits / logit_softcap)
    n_valid = valid.sum()
    if keeps_all(weight) and reduction != "none":
        # PyTorch's own reduction, so that this is cross entropy to the last bit
        loss = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
        if reduction == "mean":
            loss = loss / n_valid.clamp(min=1)
        return (loss, LossStats(n_valid.to(loss.dtype), n_valid)) if return_stats else loss
    nll = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")

    def entropy(top_k: int | None) -> Tensor:
        at = 0 if input.dim() == 1 else 1
        return normalized_entropy(torch.softmax(logits.detach(), dim=at), top_k, dim=at)

    if is_elementwise(weight):
        # without asking the device which targets are ignored
        weights = torch.where(valid, weigh(weight, -nll, entropy), 0.0)
    else:
        weights = _weights_of_valid(weight, nll, valid, entropy)
    losses = weighted(weights, nll)
    loss = reduce_losses(losses, weights, n_valid, reduction, normalize)
    if not return_stats:
        return loss
    return loss, LossStats(weights.detach().sum(), n_valid)


def _without_ignored(input: Tensor, valid: Tensor) -> Tensor:
    """The logits with 0 for those of ignored targets, whose gradients are then 0, too.

    The backward of a softmax multiplies the gradient 0 of an ignored target by p, and where logits
    are infinite or NaN, as those of paddings may be, 0 times that is NaN.
    """
    # elsewhere than on the CPU a look whether there are any would wait for the device
    if input.device.type == "cpu" and not torch.compiler.is_compiling() and valid.all():
        return input
    classes_at = 0 if input.dim() == 1 else 1
    return input.masked_fill(~valid.unsqueeze(classes_at), 0.0)


def _weights_of_valid(
    weight: AnyWeight, nll: Tensor, valid: Tensor, entropy: Callable[[int | None], Tensor]
) -> Tensor:
    """Weights that look at all data: ignored ones, with a loss of 0, are none of them."""
    weights = torch.zeros_like(nll)
    if not valid.any():  # a weight need not know what to do with nothing
        return weights
    some = weigh(weight, -nll[valid], lambda top_k: entropy(top_k)[valid])
    return weights.masked_scatter(valid, some)


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
    label_smoothing: float = ...,
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
    label_smoothing: float = ...,
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
    label_smoothing: float = 0.0,
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
        label_smoothing: 0 only.
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
        label_smoothing=label_smoothing,
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
    label_smoothing: float = ...,
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
    label_smoothing: float = ...,
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
    label_smoothing: float = 0.0,
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
        label_smoothing: 0 only.
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
        label_smoothing=label_smoothing,
        return_stats=return_stats,
    )


def _check(input: Tensor, target: Tensor, ignore_index: int) -> None:
    check_indices(target, {"input": input})
    check_kind("input", input)
    classes_at = 0 if input.dim() == 1 else 1
    expected = input.shape[:classes_at] + input.shape[classes_at + 1 :]
    if input.dim() == 0 or target.shape != expected:
        raise InputError(
            f"input is {tuple(input.shape)} and target {tuple(target.shape)}; for logits "
            "(N, C, d1, ...) the target is (N, d1, ...), for (C) it is a scalar"
        )
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        check_range(target, input.shape[classes_at], ignore_index)
