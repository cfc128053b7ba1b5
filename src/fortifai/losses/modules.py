"""The losses as modules, drop-ins for `torch.nn.CrossEntropyLoss`."""

from __future__ import annotations

from torch import Tensor, nn

from fortifai.confidence import Focal, Truncate, Weight
from fortifai.losses.functional import (
    Normalize,
    Reduction,
    check_options,
    weighted_cross_entropy,
)


class _WeightedCrossEntropyLoss(nn.Module):
    """What the modules share.

    Attributes:
        kept_share: Of the last call: sum of weights over valid targets, a detached scalar tensor
            on the loss's device; None before the first call.
    """

    kept_share: Tensor | None

    def __init__(
        self,
        weight: Weight,
        ignore_index: int,
        reduction: Reduction,
        normalize: Normalize,
        logit_softcap: float | None,
    ) -> None:
        super().__init__()
        check_options(reduction, normalize, logit_softcap)
        self.weight = weight
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.normalize: Normalize = normalize
        self.logit_softcap = logit_softcap
        self.kept_share = None

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (N, C, d1, ...) and targets (N, d1, ...)."""
        loss, stats = weighted_cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            normalize=self.normalize,
            logit_softcap=self.logit_softcap,
            return_stats=True,
        )
        self.kept_share = stats.kept_share
        return loss

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return (
            f"{self.weight}, ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"normalize={self.normalize!r}, logit_softcap={self.logit_softcap}"
        )


class TruncatedCrossEntropyLoss(_WeightedCrossEntropyLoss):
    """Module of `fortifai.truncated_cross_entropy`; `kept_share` holds the last call's share.

    Raises:
        InputError: `threshold` is not in [0, 1], or an option is none of those allowed.
    """

    def __init__(
        self,
        threshold: float = 0.9,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        normalize: Normalize = "valid",
        logit_softcap: float | None = None,
    ) -> None:
        super().__init__(Truncate(threshold), ignore_index, reduction, normalize, logit_softcap)


class FocalCrossEntropyLoss(_WeightedCrossEntropyLoss):
    """Module of `fortifai.focal_cross_entropy`; `kept_share` holds the last call's share.

    Raises:
        InputError: `gamma` is negative or not finite, or an option is none of those allowed.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        *,
        detach_weight: bool = False,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        normalize: Normalize = "valid",
        logit_softcap: float | None = None,
    ) -> None:
        weight = Focal(gamma, detach_weight=detach_weight)
        super().__init__(weight, ignore_index, reduction, normalize, logit_softcap)
