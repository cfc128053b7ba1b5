"""What the losses on logits and on hidden states share: from log p to weights, losses and means."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fortifai.errors import InputError
from fortifai.losses.checks import check_weight
from fortifai.weights import AnyWeight, uses_entropy

Reduction = Literal["mean", "sum", "none"]
Normalize = Literal["valid", "kept", "weight_sum"]


class Observed(NamedTuple):
    """What rows predict, summed over those that were computed; detached scalar tensors.

    Attributes:
        rows: Their number: valid targets, of a sample weight above 0.
        entropy: Of the predictions, in nats.
        likeliest: For how many the target is the likeliest class, ties among them.
    """

    rows: Tensor
    entropy: Tensor
    likeliest: Tensor


class LossStats(NamedTuple):
    """What a loss saw, as detached scalar tensors on its device: no synchronisation.

    Attributes:
        kept: Sum over the valid (not ignored) targets of confidence weight times sample weight.
        valid: Number of valid targets.
        weight_sum: Sum of their sample weights; their number where none are given.
        observed: None unless trainers ask for it.
    """

    kept: Tensor
    valid: Tensor
    weight_sum: Tensor
    observed: Observed | None = None

    @property
    def kept_share(self) -> Tensor:
        """Kept over the sum of sample weights; 0 where nothing is valid."""
        return self.kept / torch.where(self.weight_sum > 0, self.weight_sum, 1.0)


def weigh(weight: AnyWeight, log_p: Tensor, entropy: Callable[[int | None], Tensor]) -> Tensor:
    """The weights of data with these log-probabilities, of the same shape and dtype.

    Args:
        weight: See `fortifai.weights`.
        log_p: Any shape.
        entropy: Gives the normalized entropies for an ``entropy_top_k``; called if they are needed.

    Raises:
        InputError: `weight` is no function, or returns no tensor of the shape of `log_p`.
    """
    check_weight(weight)
    if uses_entropy(weight):
        # mypy knows no attributes of callables
        top_k = weight.entropy_top_k  # type: ignore[attr-defined]
        weights = weight(log_p, entropy(top_k).to(log_p.dtype))
    else:
        weights = weight(log_p)
    if not isinstance(weights, Tensor) or weights.shape != log_p.shape:
        got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        # a weight of another shape would be broadcast, and weigh each datum by the others'
        raise InputError(
            f"{weight!r} gave {got} for log-probabilities {tuple(log_p.shape)}; a weight must "
            "return one weight for each, a tensor of the same shape"
        )
    return weights.to(log_p.dtype)


def carries_gradient(weight: AnyWeight) -> bool:
    """Whether a weight has a slope; found by asking for the weight of one datum."""
    with torch.enable_grad():
        log_p = torch.full((1,), -1.0, requires_grad=True)
        return weigh(weight, log_p, lambda _: torch.full((1,), 0.5)).requires_grad


def normalized_entropy(p: Tensor, top_k: int | None, dim: int = -1) -> Tensor:
    """Entropy of predictions over the largest it can be: 0 for certainty, 1 for uniform.

    -sum p log p / log k of the `top_k` likeliest classes, made to sum to 1; of all for None.

    Args:
        p: Probabilities, classes along `dim`.
        top_k: How many classes; all if there are fewer.
        dim: Where the classes are.
    """
    if top_k is not None and top_k < p.shape[dim]:
        p = p.topk(top_k, dim=dim).values
        p = p / p.sum(dim=dim, keepdim=True)
    # one class alone is always certain
    nats: Tensor = torch.special.entr(p).sum(dim=dim)
    return nats / max(math.log(p.shape[dim]), 1e-9)


def weighted(weights: Tensor, losses: Tensor) -> Tensor:
    """Weights * losses with 0 * inf = 0, in value and gradient."""
    if weights.requires_grad:
        # At p = 0 the slope of a weight of p is 0, and times a loss of inf would not be a number
        weights = torch.where(losses.detach().isinf(), weights.detach(), weights)
    return torch.where(weights.detach() == 0, 0.0, weights * losses)


def reduce_losses(
    losses: Tensor, kept: Tensor, stats: LossStats, reduction: Reduction, normalize: Normalize
) -> Tensor:
    """The losses themselves, their sum, or their mean by `normalize`.

    Args:
        losses: Weighted, of any shape.
        kept: The sum of their weights, with its gradient.
        stats: Of these losses.
        reduction: ``mean``, ``sum`` or ``none``.
        normalize: What ``mean`` divides by.
    """
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    divisor = {"valid": stats.valid, "kept": kept, "weight_sum": stats.weight_sum}[normalize]
    return total / torch.where(divisor > 0, divisor, torch.ones_like(divisor))
