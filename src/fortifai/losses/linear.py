"""Confidence-weighted cross entropy on hidden states, without full logits.

Shaped like `torch.nn.functional.linear_cross_entropy`. Rows whose weight is exactly 0 are left out
of the output layer's backward.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from fortifai.losses.autograd import Call, loss_of, product_dtype
from fortifai.losses.checks import check_linear, check_sample_weight, check_weight
from fortifai.losses.kernels import softmax_in_use
from fortifai.losses.options import LinearOptions, spelled
from fortifai.losses.weighing import LossStats
from fortifai.weights import AnyWeight


@spelled(LinearOptions)
def linear_weighted_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    weight: AnyWeight,
    sample_weight: Tensor | None = None,
    linear_bias: Tensor | None = None,
    return_stats: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, LossStats]:
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
            `fortifai.weights`.
        sample_weight: One for each target, (*), finite and 0 or more, without gradient; None for 1.
        linear_bias: Of the output layer, (C,), or None.
        return_stats: Also return `LossStats`.
        **options: See `fortifai.losses.options.LinearOptions`.

    Returns:
        The loss, float32, or float64 for such input; with `return_stats` a pair of it and stats.

    Raises:
        InputError: Shapes, dtypes, devices, an option, a weight of another shape, a target or a
            sample weight out of range, a sharded `input`, or a second derivative (in the backward).
    """
    found = linear_loss(
        input,
        linear_weight,
        target,
        weight=weight,
        options=LinearOptions(**options),
        sample_weight=sample_weight,
        linear_bias=linear_bias,
    )
    return found if return_stats else found[0]


_P = ParamSpec("_P")
_R = TypeVar("_R")
_Parameter = TypeVar("_Parameter", Tensor, Tensor | None)


def _outside_graphs(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Keeps torch.compile out of `function`: what it does depends on how many rows are kept."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():
            # PyTorch has no types for `disable`
            disabled: Callable[_P, _R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def _gathered(parameter: _Parameter) -> _Parameter:
    """A sharded parameter as a whole; its gradient is summed over the processes, and sharded."""
    if parameter is None or not hasattr(parameter, "full_tensor"):
        return parameter
    from torch.distributed.tensor import DTensor, Partial

    assert isinstance(parameter, DTensor)
    whole: Tensor = parameter.full_tensor(
        grad_placements=[Partial()] * parameter.device_mesh.ndim  # a sum is still to be taken
    )
    return whole


@_outside_graphs
def linear_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    weight: AnyWeight,
    options: LinearOptions,
    sample_weight: Tensor | None = None,
    linear_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    observe: bool = False,
) -> tuple[Tensor, LossStats]:
    """`linear_weighted_cross_entropy` and its stats; `logit_scale` comes before the soft-cap.

    With `observe` the stats say what the rows predict, too, which costs two passes over p.
    """
    check_weight(weight)
    check_linear(input, linear_weight, target, linear_bias, options.ignore_index)
    if sample_weight is not None:
        check_sample_weight(sample_weight, target)
    linear_weight, linear_bias = _gathered(linear_weight), _gathered(linear_bias)
    flat = target.reshape(-1)
    left_out = flat == options.ignore_index
    n_valid = (~left_out).sum()
    training = torch.is_grad_enabled()
    call = Call(
        target=flat,
        which=None,
        weight=weight,
        sample_weight=None,
        options=options,
        observe=observe,
        scale=logit_scale,
        product_dtype=product_dtype(input),
        softmax=softmax_in_use(),
        wanted=(
            training and input.requires_grad,
            training and linear_weight.requires_grad,
            training and linear_bias is not None and linear_bias.requires_grad,
        ),
    )
    of_data = n_valid.to(call.dtype)
    if sample_weight is not None:
        of_data = sample_weight.reshape(-1).to(call.dtype).masked_fill(left_out, 0.0)
        left_out = of_data == 0
        call = dataclasses.replace(call, sample_weight=of_data)
        of_data = of_data.sum()
    if left_out.any():
        call = call.of((~left_out).nonzero().squeeze(1))
    stats = LossStats(of_data, n_valid, of_data)
    rows = input.reshape(-1, linear_weight.shape[1])
    loss, stats = loss_of(rows, linear_weight, linear_bias, call, stats)
    if options.reduction == "none":
        loss = loss.reshape(target.shape)
    return loss, stats
