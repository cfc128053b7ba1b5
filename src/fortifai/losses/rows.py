"""What a row of logits loses, beside or instead of plain cross entropy.

With z the logits of a row (after scale and soft-cap) over beta, p their softmax, t the target, C
classes, lse z the logarithm of the sum of exponentials and H the entropy of p in nats, a row loses

    beta * [ -(1 - s) log p_t + s (lse z - mean z) - c H + k (lse z)^2 ],

with s the label smoothing, c the confidence penalty and k the z-loss. What stands behind the first
term is called the remainder R here. Its gradient in z is

    s (p - 1 / C) + c p (log p + H) + 2 k lse(z) p.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from fortifai.errors import check_number


@dataclasses.dataclass(frozen=True)
class RowLoss:
    """The terms of a row's loss; without any it is cross entropy.

    Attributes:
        label_smoothing: s, in [0, 1): that share of the target is spread evenly over all classes,
            as in `torch.nn.functional.cross_entropy` (1512.00567).
        confidence_penalty: c, 0 or more: minus c times the entropy of the prediction (1701.06548).
        z_loss: k, 0 or more: k times the square of lse z (2204.02311).
        gem_beta: beta, above 0. Below 1 it is GEM with h = 1 (2408.16673): -log p_t of logits over
            beta, times beta, whose gradient is softmax(z / beta) - y. Probability, entropy and lse
            are all of logits over beta then, also those that a confidence weight sees.

    Raises:
        InputError: One of them is no number or out of range.
    """

    label_smoothing: float = 0.0
    confidence_penalty: float = 0.0
    z_loss: float = 0.0
    gem_beta: float = 1.0

    def __post_init__(self) -> None:
        check_number("label_smoothing", self.label_smoothing, "[0, 1)")
        check_number("confidence_penalty", self.confidence_penalty, "[0, inf)")
        check_number("z_loss", self.z_loss, "[0, inf)")
        check_number("gem_beta", self.gem_beta, "(0, inf)")

    @property
    def terms(self) -> dict[str, Any]:
        """The four by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(RowLoss)}

    @property
    def has_remainder(self) -> bool:
        """Whether there is a term beside that of log p_t."""
        return bool(self.label_smoothing or self.confidence_penalty or self.z_loss)

    @property
    def is_cross_entropy(self) -> bool:
        """Whether there is nothing but cross entropy."""
        return not self.has_remainder and self.gem_beta == 1

    @property
    def needs_lse(self) -> bool:
        """Whether a term asks for lse z."""
        return bool(self.label_smoothing or self.z_loss)

    def remainder(
        self,
        lse: Tensor | None,
        mean: Tensor | None,
        entropy: Tensor | None,
    ) -> Tensor:
        """R of some rows, in nats, (m,) or of any shape.

        Args:
            lse: Of z; None where `needs_lse` says that it is not needed.
            mean: Of z; None without label smoothing.
            entropy: Of p, in nats; None without a confidence penalty.
        """
        parts = []
        if self.label_smoothing:
            assert lse is not None
            assert mean is not None
            parts.append(self.label_smoothing * (lse - mean))
        if self.confidence_penalty:
            assert entropy is not None
            parts.append(-self.confidence_penalty * entropy)
        if self.z_loss:
            assert lse is not None
            parts.append(self.z_loss * lse.square())
        return torch.stack(parts).sum(0)

    def of(self, log_p: Tensor, remainder: Tensor | None) -> Tensor:
        """The losses of rows, from log p of their targets and R (None where there is none)."""
        losses = -log_p if remainder is None else remainder - (1 - self.label_smoothing) * log_p
        return losses if self.gem_beta == 1 else self.gem_beta * losses

    def remainder_of_logits(self, z: Tensor, dim: int) -> Tensor | None:
        """R by autograd, from z with its classes along `dim`; None where there is none."""
        if not self.has_remainder:
            return None
        entropy = None
        if self.confidence_penalty:
            every = torch.log_softmax(z, dim=dim)
            p = every.exp()
            # p log p is 0 at p = 0, and has no gradient there
            entropy = -(p * torch.where(p > 0, every, 0.0)).sum(dim=dim)
        return self.remainder(
            z.logsumexp(dim) if self.needs_lse else None,
            z.mean(dim) if self.label_smoothing else None,
            entropy,
        )
