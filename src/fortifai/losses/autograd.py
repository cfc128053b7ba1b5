"""Weighted cross entropy on hidden states, as functions of autograd."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fortifai.confidence import AnyWeight, is_elementwise, uses_entropy
from fortifai.errors import InputError
from fortifai.losses.checks import Normalize, Reduction
from fortifai.losses.chunks import Gradients, Head, Judge, Softmax, sweep
from fortifai.losses.weighing import LossStats, reduce_losses, weigh, weighted

# Memory of the logits that exist at once, where the caller does not say
_CHUNK_BYTES = 40 * 2**20
_CHUNK_BYTES_OF_ACCELERATORS = 512 * 2**20
# With fewer rows than these the products wait for memory, whatever the vocabulary
_FEWEST_ROWS = 128

Entropy = Callable[[int | None], Tensor]


@dataclasses.dataclass(frozen=True)
class Call:
    """What the functions are called with, beside the tensors that carry gradient.

    Attributes:
        target: (N,) int64, checked.
        which: Rows that are not ignored, (n,); None for all.
        weight: What each row counts.
        scale: Of the logits, before the cap.
        softcap: Cap of the logits, or None.
        product_dtype: Of the operands of matrix products.
        chunk_size: Rows of logits that exist at once.
        softmax: What computes p and log p.
        wanted: Whether hidden states, head and bias need gradients.
    """

    target: Tensor
    which: Tensor | None
    weight: AnyWeight
    scale: float
    softcap: float | None
    product_dtype: torch.dtype
    chunk_size: int
    softmax: Softmax
    wanted: tuple[bool, bool, bool]

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits, statistics, losses and sums of gradients."""
        return torch.float64 if self.product_dtype == torch.float64 else torch.float32

    def sweep(
        self,
        head: Head,
        input: Tensor,
        which: Tensor | None,
        judge: Judge,
        gradients: Gradients | None,
    ) -> None:
        """`chunks.sweep` over rows of `which`."""
        sweep(head, input, self.target, which, judge, gradients, self.chunk_size, self.softmax)

    @property
    def count(self) -> int:
        """How many rows are not ignored."""
        return len(self.target) if self.which is None else len(self.which)

    def head(self, weight: Tensor, bias: Tensor | None) -> Head:
        """The output layer in the dtypes it is computed with."""
        bias = None if bias is None else bias.detach().to(self.dtype)
        weight = weight.detach().to(self.product_dtype)
        return Head(weight, bias, self.scale, self.softcap, self.dtype)

    def new(self, *size: int) -> Tensor:
        """Zeros in the dtype of the statistics."""
        return self.target.new_zeros(size, dtype=self.dtype)


def rows_at_once(classes: int, device: str) -> int:
    """Rows of logits that exist at once, where the caller does not say."""
    memory = _CHUNK_BYTES if device == "cpu" else _CHUNK_BYTES_OF_ACCELERATORS
    return max(_FEWEST_ROWS, memory // (4 * classes))


def product_dtype(input: Tensor) -> torch.dtype:
    """Of the operands of matrix products with these hidden states."""
    device = input.device.type
    if input.dtype == torch.float64:
        return torch.float64
    if device == "cpu":
        return torch.float32
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype


def loss_of(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    call: Call,
    reduction: Reduction,
    normalize: Normalize,
) -> tuple[Tensor, LossStats]:
    """The loss, (N,) for ``none`` and a scalar otherwise, and its stats.

    Args:
        input: Hidden states (N, d).
        weight: Of the output layer, (C, d).
        bias: Of the output layer, (C,), or None.
        call: See there.
        reduction: ``mean``, ``sum`` or ``none``.
        normalize: ``valid`` or ``kept``.
    """
    n_valid = torch.tensor(call.count, device=input.device)
    by_kept = reduction == "mean" and normalize == "kept"
    if (
        reduction != "none"
        and is_elementwise(call.weight)
        and not (by_kept and _carries_gradient(call.weight))
    ):
        divisor: Literal["kept"] | int = 1
        if reduction == "mean":
            divisor = "kept" if by_kept else max(call.count, 1)
        # PyTorch has no types for `apply`
        loss, kept = _AtOnce.apply(input, weight, bias, call, divisor)  # type: ignore[no-untyped-call]
        return loss, LossStats(kept, n_valid)
    # as above
    log_p, entropies = _LogProbabilities.apply(input, weight, bias, call)  # type: ignore[no-untyped-call]
    if call.count == 0:  # a weight need not know what to do with nothing
        losses = weights = -log_p
    else:
        weights = weigh(call.weight, log_p.clone(), lambda _: entropies)
        losses = weighted(weights, -log_p)
    stats = LossStats(weights.detach().sum(), n_valid)
    if reduction == "none" and call.which is not None:
        losses = call.new(len(input)).index_copy(0, call.which, losses)
    return reduce_losses(losses, weights, n_valid, reduction, normalize), stats


def _carries_gradient(weight: AnyWeight) -> bool:
    """Whether an elementwise weight has a slope; found by asking for the weight of one datum."""
    with torch.enable_grad():
        log_p = torch.full((1,), -1.0, requires_grad=True)
        return weigh(weight, log_p, lambda _: torch.full((1,), 0.5)).requires_grad


class _AtOnce(torch.autograd.Function):
    """Sum of the weighted losses over a divisor; the gradients are computed on the way.

    For weights of one row each: when the logits of a chunk are there, all is known but a factor
    that is the same for all rows (from above, or one over the sum of weights).
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: Call,
        divisor: Literal["kept"] | int,
    ) -> tuple[Tensor, Tensor]:
        """The loss and the sum of weights."""
        ctx.save_for_backward(input, weight, bias)
        ctx.call, ctx.divisor = call, divisor
        loss, kept, ctx.gradients, ctx.scale = _compute(input, weight, bias, call, divisor)
        ctx.dtypes = [None if t is None else t.dtype for t in (input, weight, bias)]
        ctx.mark_non_differentiable(kept)
        return loss, kept

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """The gradients, scaled in place; a second call for the same graph computes them anew."""
        _refuse_second_derivative()
        gradients, scale = ctx.gradients, ctx.scale
        ctx.gradients = None  # given away: what is scaled in place belongs to one caller
        if gradients is None:
            saved = ctx.saved_tensors
            hidden, weight, bias = saved
            _, _, gradients, scale = _compute(hidden, weight, bias, ctx.call, ctx.divisor)
        factor = upstream if scale is None else upstream * scale
        # a look at an accelerator's memory would cost more than the multiplication
        if not (factor.device.type == "cpu" and factor.item() == 1):
            gradients.scale_(factor)
        return *gradients.to(ctx.dtypes), None, None


def _compute(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    call: Call,
    divisor: Literal["kept"] | int,
) -> tuple[Tensor, Tensor, Gradients, Tensor | None]:
    """Loss, sum of weights, gradients, and what these must still be multiplied by."""
    losses, weights = call.new(call.count), call.new(call.count)
    head = call.head(weight, bias)
    # Where products are in half precision, small factors would be lost in it: they wait
    early = divisor if isinstance(divisor, int) and call.product_dtype == call.dtype else 1

    def judge(part: slice, log_p: Tensor, entropy: Entropy) -> Tensor | None:
        with torch.enable_grad():
            leaf = log_p.requires_grad_(any(call.wanted))
            some = weigh(call.weight, leaf.clone(), entropy)  # which it may change in place
            nll = weighted(some, -leaf)
            weights[part], losses[part] = some.detach(), nll.detach()
            if not any(call.wanted):
                return None
            (slope,) = torch.autograd.grad(nll.sum(), leaf)
        return slope.neg_().div_(early)

    with torch.autocast(input.device.type, enabled=False):
        gradients = Gradients.zeros(head, len(input), call.wanted)
        call.sweep(head, input, call.which, judge, gradients)
    kept = weights.sum()
    over = torch.where(kept > 0, kept, 1.0) if divisor == "kept" else losses.new_tensor(divisor)
    return losses.sum() / over, kept, gradients, None if early == divisor else 1 / over


class _LogProbabilities(torch.autograd.Function):
    """log p of the targets that are not ignored, (n,), and the entropies if the weight needs them.

    The backward computes the logits again, of those rows alone whose gradient is not 0.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, call: Call
    ) -> tuple[Tensor, Tensor]:
        """The log-probabilities and normalized entropies."""
        ctx.save_for_backward(input, weight, bias)
        ctx.call = call
        found = call.new(call.count)
        needed = uses_entropy(call.weight)
        entropies = call.new(call.count if needed else 0)

        def judge(part: slice, log_p: Tensor, entropy: Entropy) -> None:
            found[part] = log_p
            if needed:
                # `needed` says that the weight has it, which mypy cannot see
                entropies[part] = entropy(call.weight.entropy_top_k)  # type: ignore[union-attr]

        with torch.autocast(input.device.type, enabled=False):
            head = call.head(weight, bias)
            call.sweep(head, input, call.which, judge, None)
        ctx.mark_non_differentiable(entropies)
        return found, entropies

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """The gradients for those of the log-probabilities."""
        _refuse_second_derivative()
        hidden, weight, bias = ctx.saved_tensors
        call: Call = ctx.call
        rows = upstream.nonzero().squeeze(1)
        factors = -upstream[rows]
        if call.which is not None:
            rows = call.which[rows]

        def judge(part: slice, _: Tensor, __: Entropy) -> Tensor:
            return factors[part]

        with torch.autocast(hidden.device.type, enabled=False):
            head = call.head(weight, bias)
            gradients = Gradients.zeros(head, len(hidden), call.wanted)
            call.sweep(head, hidden, rows, judge, gradients)
        dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        return *gradients.to(dtypes), None


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise InputError(
            "the backward was called with create_graph=True, but losses on hidden states have no "
            "second derivative; use fortifai.weighted_cross_entropy on logits for that"
        )
