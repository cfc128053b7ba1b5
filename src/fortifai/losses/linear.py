"""Confidence-weighted cross entropy on hidden states, without full logits.

Shaped like `torch.nn.functional.linear_cross_entropy`. Rows whose weight is exactly 0 are left out
of the output layer's backward.
"""

from __future__ import annotations

from typing import Any, Unpack, overload

from torch import Tensor

from fortifai.confidence import DFT, EAFT, AnyWeight, Focal, Keep, Truncate
from fortifai.losses.checks import Normalize, Reduction
from fortifai.losses.functional import Loss
from fortifai.losses.hidden import linear_loss
from fortifai.losses.options import LinearOptions, LinearOptionsAndStats
from fortifai.losses.rows import RowLoss
from fortifai.losses.weighing import LossStats


@overload
def linear_weighted_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    weight: AnyWeight,
    **options: Unpack[LinearOptions],
) -> Tensor: ...
@overload
def linear_weighted_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    weight: AnyWeight,
    **options: Unpack[LinearOptionsAndStats],
) -> tuple[Tensor, LossStats]: ...


def linear_weighted_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    weight: AnyWeight,
    sample_weight: Tensor | None = None,
    linear_bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalize: Normalize = "valid",
    logit_softcap: float | None = None,
    label_smoothing: float = 0.0,
    confidence_penalty: float = 0.0,
    z_loss: float = 0.0,
    gem_beta: float = 1.0,
    chunk_size: int | None = None,
    return_stats: bool = False,
) -> Loss:
    r"""Cross entropy of an output layer's classes, each target weighted by the model's confidence.

    `fortifai.weighted_cross_entropy` of the logits :math:`x = h W^T + b`, which are never there as
    a whole: loss and gradients are computed for some rows at a time. Rows whose weight is exactly 0
    are left out of the backward's products, two thirds of all: with a share k kept, the arithmetic
    is (1 + 2k) / 3 of cross entropy's. Ignored rows, and those of sample weight 0, are left out of
    all three.

    Where the weight is `elementwise` and the losses are added up, the gradients are computed with
    the loss. Otherwise (``none``, a weight of all data, ``kept`` with a weight that carries
    gradient) the backward computes the logits of the kept rows once more.

    On the CPU products are computed in float32, or float64 for such input; elsewhere in the dtype
    of the input, or of autocast. Logits, statistics and sums of gradients are float32 or float64
    always. On the CPU results repeat to the last bit with the same number of threads.

    Args:
        input: Hidden states (*, d); float16, bfloat16, float32 or float64.
        linear_weight: Of the output layer, (C, d), of the same dtype unless autocast is on. If it
            needs no gradient (frozen), that product is left out. It may be tied to the embedding,
            or sharded (DTensor): then it is gathered, and its gradient is the sum over processes,
            of which each has rows of its own.
        target: Class indices (*), int64, in [0, C).
        weight: Maps log p_t (and, if it declares so, the entropy) to [0, 1]; see
            `fortifai.confidence`.
        sample_weight: One for each target, (*), finite and 0 or more, without gradient; None for 1.
        linear_bias: Of the output layer, (C,), or None.
        ignore_index: Targets with this value count nothing, in loss and divisor.
        reduction: ``mean``, ``sum``, or ``none`` for a loss of the target's shape.
        normalize: What ``mean`` divides by: ``valid``, ``weight_sum`` or ``kept``; see
            `fortifai.weighted_cross_entropy`. The mean of nothing is 0, not NaN.
        logit_softcap: Logits are first squeezed to cap * tanh(x / cap), as Gemma does.
        label_smoothing: See `fortifai.weighted_cross_entropy`, as for the next three.
        confidence_penalty: Times the entropy, taken off the loss.
        z_loss: Times the square of the logarithm of the sum of exponentials.
        gem_beta: Logits over beta, and the loss times beta.
        chunk_size: Rows of logits that exist at once (twice their memory with a soft-cap); None
            adapts it to classes and device.
        return_stats: Also return `LossStats`.

    Returns:
        The loss, float32, or float64 for such input; with `return_stats` a pair of it and stats.

    Raises:
        InputError: Shapes, dtypes, devices, an option, a weight of another shape, a target or a
            sample weight out of range, a sharded `input`, or a second derivative (in the backward).
    """
    loss, stats = linear_loss(
        input,
        linear_weight,
        target,
        weight=weight,
        sample_weight=sample_weight,
        linear_bias=linear_bias,
        ignore_index=ignore_index,
        reduction=reduction,
        normalize=normalize,
        logit_softcap=logit_softcap,
        rows=RowLoss(label_smoothing, confidence_penalty, z_loss, gem_beta),
        chunk_size=chunk_size,
    )
    return (loss, stats) if return_stats else loss


@overload
def linear_truncated_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    threshold: float = ...,
    **options: Unpack[LinearOptions],
) -> Tensor: ...
@overload
def linear_truncated_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    threshold: float = ...,
    **options: Unpack[LinearOptionsAndStats],
) -> tuple[Tensor, LossStats]: ...


def linear_truncated_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, threshold: float = 0.9, **options: Any
) -> Loss:
    """Truncated cross entropy on hidden states: `fortifai.truncated_cross_entropy` without logits.

    TCE (ForTIFAI, 2509.08972, section 2.2.1): targets with p above the threshold count nothing, and
    cost a third of what the others do.

    Args:
        input: Hidden states; see `linear_weighted_cross_entropy`, as for what is not said here.
        linear_weight: Of the output layer.
        target: Class indices.
        threshold: Confidence above which a target counts nothing, in [0, 1].
        **options: The others of `linear_weighted_cross_entropy`.

    Raises:
        InputError: As `linear_weighted_cross_entropy`, or a threshold outside [0, 1].
    """
    loss: Loss = linear_weighted_cross_entropy(
        input, linear_weight, target, weight=Truncate(threshold), **options
    )
    return loss


@overload
def linear_focal_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    gamma: float = ...,
    detach_weight: bool = ...,
    **options: Unpack[LinearOptions],
) -> Tensor: ...
@overload
def linear_focal_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    gamma: float = ...,
    detach_weight: bool = ...,
    **options: Unpack[LinearOptionsAndStats],
) -> tuple[Tensor, LossStats]: ...


def linear_focal_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    detach_weight: bool = False,
    **options: Any,
) -> Loss:
    """Focal loss on hidden states: `fortifai.focal_cross_entropy` without logits.

    Args:
        input: Hidden states; see `linear_weighted_cross_entropy`, as for what is not said here.
        linear_weight: Of the output layer.
        target: Class indices.
        gamma: How fast confident targets fade; 0 is cross entropy exactly.
        detach_weight: Whether the weight carries no gradient.
        **options: The others of `linear_weighted_cross_entropy`.

    Raises:
        InputError: As `linear_weighted_cross_entropy`, or a gamma that is negative or not finite.
    """
    loss: Loss = linear_weighted_cross_entropy(
        input, linear_weight, target, weight=Focal(gamma, detach_weight=detach_weight), **options
    )
    return loss


@overload
def linear_dft_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, **options: Unpack[LinearOptions]
) -> Tensor: ...
@overload
def linear_dft_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, **options: Unpack[LinearOptionsAndStats]
) -> tuple[Tensor, LossStats]: ...


def linear_dft_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, **options: Any
) -> Loss:
    """Dynamic fine-tuning on hidden states: `fortifai.dft_cross_entropy` without logits.

    Args:
        input: Hidden states; see `linear_weighted_cross_entropy`, as for what is not said here.
        linear_weight: Of the output layer.
        target: Class indices.
        **options: The others of `linear_weighted_cross_entropy`.

    Raises:
        InputError: As `linear_weighted_cross_entropy`.
    """
    loss: Loss = linear_weighted_cross_entropy(
        input, linear_weight, target, weight=DFT(), **options
    )
    return loss


@overload
def linear_eaft_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    alpha: float = ...,
    top_k: int | None = ...,
    **options: Unpack[LinearOptions],
) -> Tensor: ...
@overload
def linear_eaft_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    alpha: float = ...,
    top_k: int | None = ...,
    **options: Unpack[LinearOptionsAndStats],
) -> tuple[Tensor, LossStats]: ...


def linear_eaft_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    top_k: int | None = 20,
    **options: Any,
) -> Loss:
    """EAFT on hidden states: `fortifai.eaft_cross_entropy` without logits.

    Args:
        input: Hidden states; see `linear_weighted_cross_entropy`, as for what is not said here.
        linear_weight: Of the output layer.
        target: Class indices.
        alpha: Power of the entropy, 0 or more.
        top_k: Likeliest classes that the entropy H is of; None for all.
        **options: The others of `linear_weighted_cross_entropy`.

    Raises:
        InputError: As `linear_weighted_cross_entropy`, or an alpha or k out of range.
    """
    loss: Loss = linear_weighted_cross_entropy(
        input, linear_weight, target, weight=EAFT(alpha, top_k), **options
    )
    return loss


@overload
def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, **options: Unpack[LinearOptions]
) -> Tensor: ...
@overload
def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, **options: Unpack[LinearOptionsAndStats]
) -> tuple[Tensor, LossStats]: ...


def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, **options: Any
) -> Loss:
    """Cross entropy on hidden states, without full logits: the baseline of the others.

    Args:
        input: Hidden states; see `linear_weighted_cross_entropy`, as for what is not said here.
        linear_weight: Of the output layer.
        target: Class indices.
        **options: The others of `linear_weighted_cross_entropy`.

    Raises:
        InputError: As `linear_weighted_cross_entropy`.
    """
    loss: Loss = linear_weighted_cross_entropy(
        input, linear_weight, target, weight=Keep(), **options
    )
    return loss
