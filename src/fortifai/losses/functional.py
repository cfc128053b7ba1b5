"""Confidence-weighted cross entropy on logits, shaped like `torch.nn.functional.cross_entropy`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fortifai.errors import InputError
from fortifai.losses.checks import (
    check_indices,
    check_kind,
    check_range,
    check_sample_weight,
    check_weight,
)
from fortifai.losses.options import LossOptions, spelled
from fortifai.losses.weighing import (
    LossStats,
    normalized_entropy,
    reduce_losses,
    weigh,
    weighted,
)
from fortifai.weights import AnyWeight, is_elementwise, keeps_all


@spelled(LossOptions)
def weighted_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: AnyWeight,
    sample_weight: Tensor | None = None,
    return_stats: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, LossStats]:
    r"""Cross entropy with each target weighted by the model's confidence in it.

    With :math:`p_t = \mathrm{softmax}(x)_t` the loss of one target is
    :math:`w(\log p_t) \cdot (-\log p_t)` (ForTIFAI, 2509.08972, section 2.2), times its sample
    weight. A weight of exactly 0 gives loss 0 and gradient 0 even where :math:`p_t = 0`; the result
    is never NaN for logits that have a softmax. Logits that have none (a NaN, +inf, or -inf for
    every class) give NaN, truncated or not, so that a diverged model shows; those of ignored
    targets, and of targets of sample weight 0, may be anything, and have gradient 0.

    What is weighted may be more than cross entropy: the weight of a target multiplies all that its
    row loses, so that a truncated row has no smoothed loss, penalty or z-loss either. The formula
    and its terms stand in `fortifai.losses.rows`.

    Args:
        input: Logits, (C), (N, C) or (N, C, d1, ..., dK). Half precision is computed in float32.
        target: Class indices, int64, (), (N) or (N, d1, ..., dK).
        weight: Maps log p_t (and, if it declares so, the entropy) to [0, 1]; see
            `fortifai.weights`.
        sample_weight: One for each target, of its shape, finite and 0 or more; None for 1. A weight
            of all data does not see targets of sample weight 0.
        return_stats: Also return `LossStats`, computed on the way without a second softmax.
        **options: See `fortifai.losses.options.LossOptions`.

    Returns:
        The loss, float32 for half-precision input and of the input's dtype otherwise; with
        `return_stats` a pair of it and the stats.

    Raises:
        InputError: Shapes, dtypes, an option, a weight of another shape, or a target or sample
            weight out of range (looked for on the CPU only: a look at an accelerator's memory would
            wait for it).
    """
    found = logits_loss(
        input, target, weight=weight, options=LossOptions(**options), sample_weight=sample_weight
    )
    return found if return_stats else found[0]


def logits_loss(
    input: Tensor,
    target: Tensor,
    *,
    weight: AnyWeight,
    options: LossOptions,
    sample_weight: Tensor | None = None,
) -> tuple[Tensor, LossStats]:
    """`weighted_cross_entropy` and its stats."""
    check_weight(weight)
    ignore_index, reduction = options.ignore_index, options.reduction
    _check(input, target, sample_weight, ignore_index)
    valid = target != ignore_index
    counted = valid if sample_weight is None else valid & (sample_weight != 0)
    logits = _without(input, counted)
    logits = logits.float() if input.dtype in (torch.float16, torch.bfloat16) else logits
    if options.logit_softcap is not None:
        logits = options.logit_softcap * torch.tanh(logits / options.logit_softcap)
    if options.gem_beta != 1:
        logits = logits / options.gem_beta
    n_valid = valid.sum()
    if sample_weight is None:
        of_data = n_valid.to(logits.dtype)
        if keeps_all(weight) and options.is_cross_entropy and reduction != "none":
            # PyTorch's own reduction, so that this is cross entropy to the last bit
            loss = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
            loss = loss / n_valid.clamp(min=1) if reduction == "mean" else loss
            return loss, LossStats(of_data, n_valid, of_data)
    else:
        sample_weight = torch.where(valid, sample_weight, 0).to(logits.dtype)
        of_data = sample_weight.detach().sum()
    log_p = -F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    weights = _weights(weight, log_p, logits, counted)
    if sample_weight is not None:
        weights = weights * sample_weight
    remainder = options.remainder_of_logits(logits, _classes_at(input))
    losses = weighted(weights, options.of(log_p, remainder))
    kept = weights.sum()
    stats = LossStats(kept.detach(), n_valid, of_data)
    return reduce_losses(losses, kept, stats, reduction, options.normalize), stats


def _classes_at(input: Tensor) -> int:
    return 0 if input.dim() == 1 else 1


def _without(input: Tensor, counted: Tensor) -> Tensor:
    """The logits with 0 for those of targets that do not count, whose gradients are then 0, too.

    The backward of a softmax multiplies the gradient 0 of an ignored target by p, and where logits
    are infinite or NaN, as those of paddings may be, 0 times that is NaN.
    """
    # elsewhere than on the CPU a look whether there are any would wait for the device
    if input.device.type == "cpu" and not torch.compiler.is_compiling() and counted.all():
        return input
    return input.masked_fill(~counted.unsqueeze(_classes_at(input)), 0.0)


def _weights(weight: AnyWeight, log_p: Tensor, logits: Tensor, counted: Tensor) -> Tensor:
    """The confidence weights, 0 for targets that do not count."""

    def entropy(top_k: int | None) -> Tensor:
        at = _classes_at(logits)
        return normalized_entropy(torch.softmax(logits.detach(), dim=at), top_k, dim=at)

    if is_elementwise(weight):
        # without asking the device which targets count; in place it may change what it is given
        return torch.where(counted, weigh(weight, log_p.clone(), entropy), 0.0)
    # one that looks at all data shall see only these
    weights = torch.zeros_like(log_p)
    if not counted.any():  # a weight need not know what to do with nothing
        return weights
    some = weigh(weight, log_p[counted], lambda top_k: entropy(top_k)[counted])
    return weights.masked_scatter(counted, some)


def _check(input: Tensor, target: Tensor, sample_weight: Tensor | None, ignore_index: int) -> None:
    check_indices(target, {"input": input})
    check_kind("input", input)
    classes_at = _classes_at(input)
    expected = input.shape[:classes_at] + input.shape[classes_at + 1 :]
    if input.dim() == 0 or target.shape != expected:
        raise InputError(
            f"input is {tuple(input.shape)} and target {tuple(target.shape)}; for logits "
            "(N, C, d1, ...) the target is (N, d1, ...), for (C) it is a scalar"
        )
    on_cpu = target.device.type == "cpu" and not torch.compiler.is_compiling()
    if sample_weight is not None:
        check_sample_weight(sample_weight, target, trained=True, values=on_cpu)
    if on_cpu:
        check_range(target, input.shape[classes_at], ignore_index)
