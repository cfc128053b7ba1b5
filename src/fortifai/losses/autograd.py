"""Weighted cross entropy on hidden states, as functions of autograd."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from fortifai.errors import InputError
from fortifai.losses.chunks import Gradients, Head, Judge, Predictions, Slopes, Softmax, sweep
from fortifai.losses.options import LinearOptions
from fortifai.losses.weighing import (
    LossStats,
    Observed,
    carries_gradient,
    reduce_losses,
    weigh,
    weighted,
)
from fortifai.weights import AnyWeight, is_elementwise, uses_entropy

# Memory of the logits that exist at once, where the caller does not say
_CHUNK_BYTES = 64 * 2**20
_CHUNK_BYTES_OF_ACCELERATORS = 512 * 2**20
# With fewer rows than these the products wait for memory, whatever the vocabulary
_FEWEST_ROWS = 128


@dataclasses.dataclass(frozen=True)
class Call:
    """What the functions are called with, beside the tensors that carry gradient.

    Attributes:
        target: (N,) int64, checked.
        which: Rows that count, (n,): not ignored, of a sample weight above 0. None for all.
        weight: What each row counts.
        sample_weight: Times this, of the rows that count, (n,) in `dtype`; None for 1.
        options: Of the loss; what a row loses among them.
        observe: Whether to note what the rows predict.
        scale: Of the logits, before the cap.
        product_dtype: Of the operands of matrix products.
        softmax: What computes p and log p.
        wanted: Whether hidden states, head and bias need gradients.
    """

    target: Tensor
    which: Tensor | None
    weight: AnyWeight
    sample_weight: Tensor | None
    options: LinearOptions
    observe: bool
    scale: float
    product_dtype: torch.dtype
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
        size = self.options.chunk_size or rows_at_once(head.classes, input.device.type)
        sweep(head, input, self.target, which, judge, gradients, size, self.softmax)

    def of(self, which: Tensor) -> Call:
        """The same of some of all rows."""
        few = None if self.sample_weight is None else self.sample_weight[which]
        return dataclasses.replace(self, which=which, sample_weight=few)

    @property
    def count(self) -> int:
        """How many rows count."""
        return len(self.target) if self.which is None else len(self.which)

    def head(self, weight: Tensor, bias: Tensor | None) -> Head:
        """The output layer in the dtypes it is computed with."""
        bias = None if bias is None else bias.detach().to(self.dtype)
        weight = weight.detach().to(self.product_dtype)
        options = self.options
        return Head(weight, bias, self.scale, options.logit_softcap, self.dtype, options)

    def by_data(self, weights: Tensor, part: slice = slice(None)) -> Tensor:
        """The weights of some rows times their sample weights."""
        return weights if self.sample_weight is None else weights * self.sample_weight[part]

    def see(self, found: Predictions, classes: int, seen: Tensor) -> None:
        """Adds the entropies in nats of some rows, and how many goals are the likeliest, (2,)."""
        if self.observe:
            entropy = found.entropy(None).sum() * math.log(classes)
            seen += torch.stack((entropy, found.likeliest().sum().to(entropy)))

    def observed(self, seen: Tensor) -> Observed | None:
        """What was seen of all rows."""
        if not self.observe:
            return None
        return Observed(torch.tensor(self.count, device=seen.device), *seen)

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
    stats: LossStats,
) -> tuple[Tensor, LossStats]:
    """The loss, (N,) for ``none`` and a scalar otherwise, and its stats.

    Args:
        input: Hidden states (N, d).
        weight: Of the output layer, (C, d).
        bias: Of the output layer, (C,), or None.
        call: See there.
        stats: What is known of the targets; what is kept of them is found here.
    """
    reduction, normalize = call.options.reduction, call.options.normalize
    by_kept = reduction == "mean" and normalize == "kept"
    if (
        reduction != "none"
        and is_elementwise(call.weight)
        and not (by_kept and carries_gradient(call.weight))
    ):
        divisor: float | None = 1.0
        if reduction == "mean":
            known = {"valid": stats.valid, "weight_sum": stats.weight_sum}.get(normalize)
            divisor = None if known is None else known.item() or 1.0
        # PyTorch has no types for `apply`
        loss, kept, seen = _AtOnce.apply(input, weight, bias, call, divisor)  # type: ignore[no-untyped-call]
        return loss, stats._replace(kept=kept, observed=call.observed(seen))
    # as above
    log_p, remainder, entropies, seen = _Statistics.apply(input, weight, bias, call)  # type: ignore[no-untyped-call]
    if call.count == 0:  # a weight need not know what to do with nothing
        losses = weights = -log_p
    else:
        weights = call.by_data(weigh(call.weight, log_p.clone(), lambda _: entropies))
        rest = remainder if call.options.has_remainder else None
        losses = weighted(weights, call.options.of(log_p, rest))
    kept = weights.sum()
    stats = stats._replace(kept=kept.detach(), observed=call.observed(seen))
    if reduction == "none" and call.which is not None:
        losses = call.new(len(input)).index_copy(0, call.which, losses)
    return reduce_losses(losses, kept, stats, reduction, normalize), stats


class _AtOnce(torch.autograd.Function):
    """Sum of the weighted losses over a divisor; the gradients are computed on the way.

    For weights of one row each: when the logits of a chunk are there, all is known but a factor
    that is the same for all rows (from above, or one over the sum of weights: a divisor of None).
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: Call,
        divisor: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the sum of weights, and what was seen."""
        ctx.save_for_backward(input, weight, bias)
        ctx.call, ctx.divisor = call, divisor
        loss, kept, seen, ctx.gradients, ctx.scale = _compute(input, weight, bias, call, divisor)
        ctx.dtypes = [None if t is None else t.dtype for t in (input, weight, bias)]
        ctx.mark_non_differentiable(kept, seen)
        return loss, kept, seen

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """The gradients, scaled in place; a second call for the same graph computes them anew."""
        _refuse_second_derivative()
        gradients, scale = ctx.gradients, ctx.scale
        ctx.gradients = None  # given away: what is scaled in place belongs to one caller
        if gradients is None:
            saved = ctx.saved_tensors
            hidden, weight, bias = saved
            gradients, scale = _compute(hidden, weight, bias, ctx.call, ctx.divisor)[3:]
        factor = upstream if scale is None else upstream * scale
        # a look at an accelerator's memory would cost more than the multiplication
        if not (factor.device.type == "cpu" and factor.item() == 1):
            gradients.scale_(factor)
        return *gradients.to(ctx.dtypes), None, None


def _compute(
    input: Tensor, weight: Tensor, bias: Tensor | None, call: Call, divisor: float | None
) -> tuple[Tensor, Tensor, Tensor, Gradients, Tensor | None]:
    """Loss, sum of weights, what was seen, gradients, and their factor that waits."""
    seen = call.new(2)
    losses, weights = call.new(call.count), call.new(call.count)
    head = call.head(weight, bias)
    # Where products are in half precision, small factors would be lost in it: they wait
    early = divisor if divisor is not None and call.product_dtype == call.dtype else 1.0

    def judge(part: slice, found: Predictions) -> Slopes | None:
        call.see(found, head.classes, seen)
        with torch.enable_grad():
            leaf = found.log_p.requires_grad_(any(call.wanted))
            # which may change in place what it gets
            some = call.by_data(weigh(call.weight, leaf.clone(), found.entropy), part)
            rows = weighted(some, call.options.of(leaf, found.remainder))
            weights[part], losses[part] = some.detach(), rows.detach()
            if not any(call.wanted):
                return None
            (slope,) = torch.autograd.grad(rows.sum(), leaf)
        if found.remainder is None:
            return Slopes(slope.neg_().div_(early), None)
        return Slopes(slope.neg_().div_(early), some.detach() * (call.options.gem_beta / early))

    with torch.autocast(input.device.type, enabled=False):
        gradients = Gradients.empty(head, len(input), call.wanted)
        call.sweep(head, input, call.which, judge, gradients)
    kept = weights.sum()
    over = torch.where(kept > 0, kept, 1.0) if divisor is None else losses.new_tensor(divisor)
    return losses.sum() / over, kept, seen, gradients, None if early == divisor else 1 / over


class _Statistics(torch.autograd.Function):
    """log p of the targets that count and the remainders of their rows, (n,) each.

    And the entropies if the weight needs them, without gradient. What nobody needs is empty. The
    backward computes the logits again, of those rows alone whose gradient is not 0.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, call: Call
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The log-probabilities, remainders, normalized entropies, and what was seen."""
        ctx.save_for_backward(input, weight, bias)
        ctx.call = call
        needed = uses_entropy(call.weight)
        log_p = call.new(call.count)
        remainders = call.new(call.count if call.options.has_remainder else 0)
        entropies = call.new(call.count if needed else 0)

        seen = call.new(2)

        def judge(part: slice, found: Predictions) -> None:
            call.see(found, head.classes, seen)
            log_p[part] = found.log_p
            if found.remainder is not None:
                remainders[part] = found.remainder
            if needed:
                # `needed` says that the weight has it, which mypy cannot see
                entropies[part] = found.entropy(call.weight.entropy_top_k)  # type: ignore[attr-defined]

        with torch.autocast(input.device.type, enabled=False):
            head = call.head(weight, bias)
            call.sweep(head, input, call.which, judge, None)
        ctx.mark_non_differentiable(entropies, seen)
        return log_p, remainders, entropies, seen

    @staticmethod
    def backward(
        ctx: Any, of_log_p: Tensor, of_remainders: Tensor, *_: Any
    ) -> tuple[Tensor | None, ...]:
        """The gradients for those of the log-probabilities and remainders."""
        _refuse_second_derivative()
        hidden, weight, bias = ctx.saved_tensors
        call: Call = ctx.call
        both = call.options.has_remainder
        rows = ((of_log_p != 0) | (of_remainders != 0) if both else of_log_p).nonzero().squeeze(1)
        pulls, pushes = -of_log_p[rows], of_remainders[rows] if both else None
        if call.which is not None:
            rows = call.which[rows]

        def judge(part: slice, _: Predictions) -> Slopes:
            return Slopes(pulls[part], None if pushes is None else pushes[part])

        with torch.autocast(hidden.device.type, enabled=False):
            head = call.head(weight, bias)
            gradients = Gradients.empty(head, len(hidden), call.wanted)
            call.sweep(head, hidden, rows, judge, gradients)
        dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        return *gradients.to(dtypes), None


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise InputError(
            "the backward was called with create_graph=True, but losses on hidden states have no "
            "second derivative; use fortifai.weighted_cross_entropy on logits for that"
        )
