"""Confidence-weighted cross entropy on logits, shaped like `torch.nn.functional.cross_entropy`."""

from __future__ import annotations

from typing import Any, Unpack, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fortifai.confidence import (
    DFT,
    EAFT,
    AnyWeight,
    Focal,
    Truncate,
    is_elementwise,
    keeps_all,
)
from fortifai.errors import InputError
from fortifai.losses.checks import (
    Normalize,
    Reduction,
    check_indices,
    check_kind,
    check_options,
    check_range,
    check_sample_weight,
    check_weight,
)
from fortifai.losses.options import Options, OptionsAndStats
from fortifai.losses.rows import RowLoss
from fortifai.losses.weighing import (
    LossStats,
    normalized_entropy,
    reduce_losses,
    weigh,
    weighted,
)

Loss = Tensor | tuple[Tensor, LossStats]
"""With `return_stats` the second."""


@overload
def weighted_cross_entropy(
    input: Tensor, target: Tensor, *, weight: AnyWeight, **options: Unpack[Options]
) -> Tensor: ...
@overload
def weighted_cross_entropy(
    input: Tensor, target: Tensor, *, weight: AnyWeight, **options: Unpack[OptionsAndStats]
) -> tuple[Tensor, LossStats]: ...


def weighted_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: AnyWeight,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalize: Normalize = "valid",
    logit_softcap: float | None = None,
    label_smoothing: float = 0.0,
    confidence_penalty: float = 0.0,
    z_loss: float = 0.0,
    gem_beta: float = 1.0,
    return_stats: bool = False,
) -> Loss:
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
            `fortifai.confidence`.
        sample_weight: One for each target, of its shape, finite and 0 or more; None for 1. A weight
            of all data does not see targets of sample weight 0.
        ignore_index: Targets with this value count nothing, in loss and divisor.
        reduction: ``mean``, ``sum``, or ``none`` for a loss of the target's shape.
        normalize: What ``mean`` divides by: the number of ``valid`` targets, as ForTIFAI's code
            does; ``weight_sum``, the sum of their sample weights; or ``kept``, the sum of
            confidence weights times sample weights. The mean of nothing is 0, not NaN.
        logit_softcap: Logits are first squeezed to cap * tanh(x / cap), as Gemma does. Not for
            logits that the model has capped already, as those of transformers have.
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1).
        confidence_penalty: Times the entropy of the prediction in nats, taken off the loss.
        z_loss: Times the square of the logarithm of the sum of exponentials, added to the loss.
        gem_beta: Logits over beta and the loss times beta: GEM (2408.16673) below 1. The confidence
            is that of logits over beta, too.
        return_stats: Also return `LossStats`, computed on the way without a second softmax.

    Returns:
        The loss, float32 for half-precision input and of the input's dtype otherwise; with
        `return_stats` a pair of it and the stats.

    Raises:
        InputError: Shapes, dtypes, an option, a weight of another shape, or a target or sample
            weight out of range (looked for on the CPU only: a look at an accelerator's memory would
            wait for it).
    """
    check_weight(weight)
    check_options(ignore_index, reduction, normalize, logit_softcap)
    rows = RowLoss(label_smoothing, confidence_penalty, z_loss, gem_beta)
    _check(input, target, sample_weight, ignore_index)
    valid = target != ignore_index
    counted = valid if sample_weight is None else valid & (sample_weight != 0)
    logits = _without(input, counted)
    logits = logits.float() if input.dtype in (torch.float16, torch.bfloat16) else logits
    if logit_softcap is not None:
        logits = logit_softcap * torch.tanh(logits / logit_softcap)
    if gem_beta != 1:
        logits = logits / gem_beta
    n_valid = valid.sum()
    if sample_weight is None:
        of_data = n_valid.to(logits.dtype)
        if keeps_all(weight) and rows.is_cross_entropy and reduction != "none":
            # PyTorch's own reduction, so that this is cross entropy to the last bit
            loss = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
            loss = loss / n_valid.clamp(min=1) if reduction == "mean" else loss
            return (loss, LossStats(of_data, n_valid, of_data)) if return_stats else loss
    else:
        sample_weight = torch.where(valid, sample_weight, 0).to(logits.dtype)
        of_data = sample_weight.detach().sum()
    log_p = -F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    weights = _weights(weight, log_p, logits, counted)
    if sample_weight is not None:
        weights = weights * sample_weight
    remainder = rows.remainder_of_logits(logits, _classes_at(input))
    losses = weighted(weights, rows.of(log_p, remainder))
    kept = weights.sum()
    stats = LossStats(kept.detach(), n_valid, of_data)
    loss = reduce_losses(losses, kept, stats, reduction, normalize)
    return (loss, stats) if return_stats else loss


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


@overload
def truncated_cross_entropy(
    input: Tensor, target: Tensor, *, threshold: float = ..., **options: Unpack[Options]
) -> Tensor: ...
@overload
def truncated_cross_entropy(
    input: Tensor, target: Tensor, *, threshold: float = ..., **options: Unpack[OptionsAndStats]
) -> tuple[Tensor, LossStats]: ...


def truncated_cross_entropy(
    input: Tensor, target: Tensor, *, threshold: float = 0.9, **options: Any
) -> Loss:
    r"""Truncated cross entropy, TCE (ForTIFAI, 2509.08972, section 2.2.1).

    :math:`\chi_\gamma(p_t) \cdot (-\log p_t)` with :math:`\chi_\gamma = 1` where
    :math:`p_t \le \gamma`, the threshold, and 0 elsewhere, without gradient. A threshold of 1 is
    cross entropy exactly; if everything is truncated, loss and gradient are 0.

    Args:
        input: Logits; see `weighted_cross_entropy`, as for what is not said here.
        target: Class indices.
        threshold: Confidence above which a target counts nothing, in [0, 1].
        **options: The others of `weighted_cross_entropy`.

    Raises:
        InputError: As `weighted_cross_entropy`, or a threshold outside [0, 1].
    """
    loss: Loss = weighted_cross_entropy(input, target, weight=Truncate(threshold), **options)
    return loss


@overload
def focal_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = ...,
    detach_weight: bool = ...,
    **options: Unpack[Options],
) -> Tensor: ...
@overload
def focal_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = ...,
    detach_weight: bool = ...,
    **options: Unpack[OptionsAndStats],
) -> tuple[Tensor, LossStats]: ...


def focal_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    detach_weight: bool = False,
    **options: Any,
) -> Loss:
    r"""Focal loss, :math:`(1 - p_t)^\gamma \cdot (-\log p_t)` (2509.08972, appendix A).

    Args:
        input: Logits; see `weighted_cross_entropy`, as for what is not said here.
        target: Class indices.
        gamma: How fast confident targets fade; 0 is cross entropy exactly.
        detach_weight: Whether the weight carries no gradient.
        **options: The others of `weighted_cross_entropy`.

    Raises:
        InputError: As `weighted_cross_entropy`, or a gamma that is negative or not finite.
    """
    loss: Loss = weighted_cross_entropy(
        input, target, weight=Focal(gamma, detach_weight=detach_weight), **options
    )
    return loss


@overload
def dft_cross_entropy(input: Tensor, target: Tensor, **options: Unpack[Options]) -> Tensor: ...
@overload
def dft_cross_entropy(
    input: Tensor, target: Tensor, **options: Unpack[OptionsAndStats]
) -> tuple[Tensor, LossStats]: ...


def dft_cross_entropy(input: Tensor, target: Tensor, **options: Any) -> Loss:
    r"""Dynamic fine-tuning, :math:`p_t \cdot (-\log p_t)`, no gradient through p (2508.05629).

    Args:
        input: Logits; see `weighted_cross_entropy`, as for what is not said here.
        target: Class indices.
        **options: The others of `weighted_cross_entropy`.

    Raises:
        InputError: As `weighted_cross_entropy`.
    """
    loss: Loss = weighted_cross_entropy(input, target, weight=DFT(), **options)
    return loss


@overload
def eaft_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = ...,
    top_k: int | None = ...,
    **options: Unpack[Options],
) -> Tensor: ...
@overload
def eaft_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = ...,
    top_k: int | None = ...,
    **options: Unpack[OptionsAndStats],
) -> tuple[Tensor, LossStats]: ...


def eaft_cross_entropy(
    input: Tensor, target: Tensor, *, alpha: float = 1.0, top_k: int | None = 20, **options: Any
) -> Loss:
    r"""Entropy-adaptive fine-tuning, :math:`(H / \log k)^\alpha \cdot (-\log p_t)` (2601.02151).

    Args:
        input: Logits; see `weighted_cross_entropy`, as for what is not said here.
        target: Class indices.
        alpha: Power of the entropy, 0 or more.
        top_k: Likeliest classes that the entropy H is of; None for all.
        **options: The others of `weighted_cross_entropy`.

    Raises:
        InputError: As `weighted_cross_entropy`, or an alpha or k out of range.
    """
    loss: Loss = weighted_cross_entropy(input, target, weight=EAFT(alpha, top_k), **options)
    return loss
