"""What is behind the losses on hidden states: input checked, heads gathered, settings chosen."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from fortifai.confidence import AnyWeight
from fortifai.losses.autograd import Call, loss_of, product_dtype, rows_at_once
from fortifai.losses.checks import (
    Normalize,
    Reduction,
    check_linear,
    check_options,
    check_sample_weight,
    check_weight,
)
from fortifai.losses.kernels import softmax_in_use
from fortifai.losses.rows import RowLoss
from fortifai.losses.weighing import LossStats

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
    sample_weight: Tensor | None,
    linear_bias: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    normalize: Normalize,
    logit_softcap: float | None,
    rows: RowLoss,
    chunk_size: int | None,
    logit_scale: float = 1.0,
    observe: bool = False,
) -> tuple[Tensor, LossStats]:
    """`linear_weighted_cross_entropy`; `logit_scale` times logits and bias, before the cap.

    With `observe` the stats say what the rows predict, too, which costs two passes over p.
    """
    check_weight(weight)
    check_options(ignore_index, reduction, normalize, logit_softcap)
    check_linear(input, linear_weight, target, linear_bias, ignore_index, chunk_size)
    if sample_weight is not None:
        check_sample_weight(sample_weight, target)
    linear_weight, linear_bias = _gathered(linear_weight), _gathered(linear_bias)
    classes, width = linear_weight.shape
    flat = target.reshape(-1)
    left_out = flat == ignore_index
    n_valid = (~left_out).sum()
    training = torch.is_grad_enabled()
    dtype = product_dtype(input)
    call = Call(
        target=flat,
        which=None,
        weight=weight,
        sample_weight=None,
        rows=rows,
        observe=observe,
        scale=logit_scale,
        softcap=logit_softcap,
        product_dtype=dtype,
        chunk_size=chunk_size or rows_at_once(classes, input.device.type),
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
    loss, stats = loss_of(
        input.reshape(-1, width), linear_weight, linear_bias, call, stats, reduction, normalize
    )
    if reduction == "none":
        loss = loss.reshape(target.shape)
    return loss, stats
