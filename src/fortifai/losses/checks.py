"""Bad input of the losses: one sentence each, before work starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from fortifai.errors import InputError, check_whole, nearest

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_weight(weight: object) -> None:
    """Raise `InputError` unless `weight` can be called."""
    if isinstance(weight, Tensor):
        raise InputError(
            f"weight is a tensor {tuple(weight.shape)}; class weights are not supported: weight is "
            "a function of log p here, such as fortifai.weights.Truncate(0.9)"
        )
    if isinstance(weight, type):
        raise InputError(
            f"weight is the class {weight.__name__}; give one of it, such as "
            "fortifai.weights.Truncate(0.9)"
        )
    if not callable(weight):
        raise InputError(
            f"weight is {weight!r}; give a function of log p, such as "
            "fortifai.weights.Truncate(0.9)"
        )
    top_k = getattr(weight, "entropy_top_k", None)
    if top_k is not None:
        check_whole(f"entropy_top_k of {weight!r}", top_k, 2, ", or None for all classes")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise `InputError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise InputError(
            f"{name} is {value!r}; allowed are {', '.join(allowed)}{nearest(str(value), allowed)}"
        )


def check_indices(target: Tensor, others: Mapping[str, object]) -> None:
    """Raise `InputError` unless all are tensors on one device and the targets class indices."""
    for name, value in (*others.items(), ("target", target)):
        if not isinstance(value, Tensor):
            raise InputError(f"{name} is of type {type(value).__name__}; give a torch.Tensor")
    if target.is_floating_point():
        raise InputError(
            f"target is {target.dtype}, as class probabilities are; a confidence weight needs one "
            "true class for each datum, so give class indices (int64)"
        )
    if target.dtype != torch.int64:
        raise InputError(f"target is {target.dtype}; class indices must be int64: use .long()")
    for name, value in others.items():
        device = cast(Tensor, value).device
        if device != target.device:
            raise InputError(f"{name} is on {device} and target on {target.device}; move one")


def check_sample_weight(
    sample_weight: object, target: Tensor, *, trained: bool = False, values: bool = True
) -> None:
    """Raise `InputError` unless there is one weight, finite and not negative, for each target.

    Args:
        sample_weight: What is given.
        target: Checked already.
        trained: Whether it may carry gradient.
        values: Whether to look at the weights themselves, which waits for an accelerator.
    """
    if not isinstance(sample_weight, Tensor):
        raise InputError(
            f"sample_weight is of type {type(sample_weight).__name__}; give a torch.Tensor"
        )
    if sample_weight.is_complex():
        raise InputError(f"sample_weight is {sample_weight.dtype}; weights are real numbers")
    if sample_weight.shape != target.shape:
        raise InputError(
            f"sample_weight is {tuple(sample_weight.shape)} and target {tuple(target.shape)}; give "
            "one weight for each target"
        )
    if sample_weight.device != target.device:
        raise InputError(
            f"sample_weight is on {sample_weight.device} and target on {target.device}; move one"
        )
    if sample_weight.requires_grad and not trained:
        raise InputError(
            "sample_weight requires a gradient, which losses on hidden states do not give it; "
            "detach it, or use fortifai.weighted_cross_entropy on logits"
        )
    if values:
        check_weights("sample_weight", sample_weight)


def check_weights(name: str, weights: Tensor) -> None:
    """Raise `InputError` that names the first weight that is negative or not finite."""
    wrong = ~((weights >= 0) & weights.isfinite())
    if wrong.any():
        where = tuple(int(i) for i in wrong.nonzero()[0])
        raise InputError(
            f"{name}{list(where) if where else ''} is {weights[where].item()}; weights must be "
            "finite and 0 or more"
        )


def check_range(target: Tensor, classes: int, ignore_index: int, name: str = "target") -> None:
    """Raise `InputError` that names the first target that is no class."""
    wrong = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if wrong.any():
        where = tuple(int(i) for i in wrong.nonzero()[0])
        raise InputError(
            f"{name}{list(where) if where else ''} is {int(target[where])}; class indices lie in "
            f"[0, {classes}), and ignore_index is {ignore_index}"
        )


def check_linear(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    ignore_index: int,
) -> None:
    """Raise `InputError` unless these hidden states, head and targets go together."""
    tensors = {"input": input, "linear_weight": linear_weight}
    if linear_bias is not None:
        tensors["linear_bias"] = linear_bias
    check_indices(target, tensors)
    for name, tensor in tensors.items():
        check_kind(name, tensor)
    mixed = {tensor.dtype for tensor in tensors.values()}
    if len(mixed) > 1 and not (
        torch.is_autocast_enabled(input.device.type) and torch.float64 not in mixed
    ):
        found = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise InputError(f"dtypes differ: {found}; convert to one, or call under torch.autocast")
    if linear_weight.dim() != 2 or 0 in linear_weight.shape:
        raise InputError(
            f"linear_weight is {tuple(linear_weight.shape)}; it must be (classes, width), as that "
            "of torch.nn.Linear"
        )
    classes, width = linear_weight.shape
    if input.dim() == 0 or input.shape[-1] != width or target.shape != input.shape[:-1]:
        raise InputError(
            f"input is {tuple(input.shape)}, linear_weight {tuple(linear_weight.shape)} and target "
            f"{tuple(target.shape)}; for a head of (C, d) input is (*, d) and target (*)"
        )
    if linear_bias is not None and linear_bias.shape != (classes,):
        raise InputError(
            f"linear_bias is {tuple(linear_bias.shape)}; for linear_weight "
            f"{tuple(linear_weight.shape)} it must be ({classes},)"
        )
    check_range(target, classes, ignore_index)


def check_kind(name: str, tensor: Tensor) -> None:
    """Raise `InputError` unless it is a whole tensor of a dtype that losses are computed from."""
    if tensor.dtype not in _DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise InputError(f"{name} is {tensor.dtype}; allowed are {allowed}")
    # a DTensor, without importing what makes one; a sharded head is gathered
    if name == "input" and hasattr(tensor, "full_tensor"):
        raise InputError(
            "input is a DTensor; give the rows of this process, input.to_local(), or, where all "
            "processes have the same rows, linear_weight.full_tensor() with them"
        )
