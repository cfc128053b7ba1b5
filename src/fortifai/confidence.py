"""The confidence weights: how sure the model is of a datum decides how much it learns from it.

A weight maps the log-probability of what stands there, log p_t, to [0, 1]. The loss of a token is
then ``weight(log p_t) * (-log p_t)``. To add one, write a callable of this shape; nothing else
needs to know it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import torch
from torch import Tensor

from fortifai.errors import InputError


class Weight(Protocol):
    """Maps log-probabilities to weights."""

    def __call__(self, log_p: Tensor) -> Tensor:
        """Weight of each datum.

        Args:
            log_p: Log-probabilities in nats, float32 or float64, any shape, in [-inf, 0].

        Returns:
            Weights in [0, 1], same shape and dtype. One that carries a gradient is differentiated
            as part of the loss; one that shall not must be detached.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Keep:
    """Weight 1: cross entropy."""

    def __call__(self, log_p: Tensor) -> Tensor:
        """Ones."""
        return torch.ones_like(log_p, requires_grad=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Truncate:
    """Truncated cross entropy: 1 where p <= threshold, else 0, without gradient.

    ForTIFAI (2509.08972), section 2.2.1. The comparison is made in the log domain, where
    probabilities near 0 do not underflow and those that tie with the threshold stay equal to it.

    Raises:
        InputError: `threshold` is not in [0, 1].
    """

    threshold: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:  # false for NaN, too
            raise InputError(
                f"threshold is {self.threshold}; it is a probability and must lie in [0, 1]"
            )

    def __call__(self, log_p: Tensor) -> Tensor:
        """Ones where p <= threshold, zeros elsewhere."""
        level = math.log(self.threshold) if self.threshold > 0 else -math.inf
        return (log_p.detach() <= level).to(log_p.dtype)


@dataclasses.dataclass(frozen=True, slots=True)
class Focal:
    """Focal loss: (1 - p)^gamma.

    ForTIFAI (2509.08972), appendix A, after 1708.02002. The weight carries gradient, as in both,
    unless `detach_weight`.

    Raises:
        InputError: `gamma` is negative or not finite.
    """

    gamma: float = 2.0
    detach_weight: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise InputError(f"gamma is {self.gamma}; it must be a finite number, 0 or more")

    def __call__(self, log_p: Tensor) -> Tensor:
        """(1 - p)^gamma, without the cancellation of 1 - p near p = 1."""
        log_p = log_p.detach() if self.detach_weight else log_p
        if self.gamma == 0:
            return torch.ones_like(log_p, requires_grad=False)
        not_p = -torch.expm1(log_p)
        if self.gamma >= 1:
            return not_p**self.gamma
        # below 1 the slope of x^gamma at x = 0 is infinite: a certain datum has weight and slope 0
        certain = not_p == 0
        return torch.where(certain, 0.0, torch.where(certain, 1.0, not_p) ** self.gamma)


def keeps_all(weight: Weight) -> bool:
    """Whether `weight` is 1 for every datum, so that the loss is cross entropy exactly."""
    return (
        isinstance(weight, Keep)
        or (isinstance(weight, Truncate) and weight.threshold == 1)
        or (isinstance(weight, Focal) and weight.gamma == 0)
    )
