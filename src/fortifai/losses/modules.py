"""The losses as modules, drop-ins for `torch.nn.CrossEntropyLoss` and its kind on hidden states."""

from __future__ import annotations

from torch import Tensor, nn

from fortifai.confidence import AnyWeight, Focal, Keep, Truncate
from fortifai.losses.checks import (
    Normalize,
    Reduction,
    check_chunk_size,
    check_options,
    check_weight,
)
from fortifai.losses.functional import weighted_cross_entropy
from fortifai.losses.linear import linear_weighted_cross_entropy


class _Weighted(nn.Module):
    """What the modules share; `label_smoothing` is 0 only, and there to say so.

    Attributes:
        kept_share: Of the last call: sum of weights over valid targets, a detached scalar tensor
            on the loss's device; None before the first call.
    """

    kept_share: Tensor | None

    def __init__(
        self,
        weight: AnyWeight,
        ignore_index: int,
        reduction: Reduction,
        normalize: Normalize,
        logit_softcap: float | None,
        label_smoothing: float,
    ) -> None:
        super().__init__()
        check_weight(weight)
        check_options(ignore_index, reduction, normalize, logit_softcap, label_smoothing)
        self.weight = weight
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.normalize: Normalize = normalize
        self.logit_softcap = logit_softcap
        self.kept_share = None

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return (
            f"{self.weight}, ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"normalize={self.normalize!r}, logit_softcap={self.logit_softcap}"
        )


class _OnLogits(_Weighted):
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


class TruncatedCrossEntropyLoss(_OnLogits):
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
        label_smoothing: float = 0.0,
    ) -> None:
        weight = Truncate(threshold)
        super().__init__(weight, ignore_index, reduction, normalize, logit_softcap, label_smoothing)


class FocalCrossEntropyLoss(_OnLogits):
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
        label_smoothing: float = 0.0,
    ) -> None:
        weight = Focal(gamma, detach_weight=detach_weight)
        super().__init__(weight, ignore_index, reduction, normalize, logit_softcap, label_smoothing)


class LinearWeightedCrossEntropyLoss(_Weighted):
    """Module of `fortifai.linear_weighted_cross_entropy`.

    It holds no output layer: give that of the model in each call, so that a tied or frozen one
    stays what it is. `kept_share` holds the last call's share.

    Raises:
        InputError: `weight` is no function, or an option is none of those allowed.
    """

    def __init__(
        self,
        weight: AnyWeight,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        normalize: Normalize = "valid",
        logit_softcap: float | None = None,
        label_smoothing: float = 0.0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, normalize, logit_softcap, label_smoothing)
        check_chunk_size(chunk_size)
        self.chunk_size = chunk_size

    def forward(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None = None,
    ) -> Tensor:
        """The loss of hidden states (*, d), a head (C, d), targets (*) and a bias (C,)."""
        loss, stats = linear_weighted_cross_entropy(
            input,
            linear_weight,
            target,
            weight=self.weight,
            linear_bias=linear_bias,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            normalize=self.normalize,
            logit_softcap=self.logit_softcap,
            chunk_size=self.chunk_size,
            return_stats=True,
        )
        self.kept_share = stats.kept_share
        return loss


class LinearTruncatedCrossEntropyLoss(LinearWeightedCrossEntropyLoss):
    """Module of `fortifai.linear_truncated_cross_entropy`.

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
        label_smoothing: float = 0.0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(
            Truncate(threshold),
            ignore_index=ignore_index,
            reduction=reduction,
            normalize=normalize,
            logit_softcap=logit_softcap,
            label_smoothing=label_smoothing,
            chunk_size=chunk_size,
        )


class LinearFocalCrossEntropyLoss(LinearWeightedCrossEntropyLoss):
    """Module of `fortifai.linear_focal_cross_entropy`.

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
        label_smoothing: float = 0.0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(
            Focal(gamma, detach_weight=detach_weight),
            ignore_index=ignore_index,
            reduction=reduction,
            normalize=normalize,
            logit_softcap=logit_softcap,
            label_smoothing=label_smoothing,
            chunk_size=chunk_size,
        )


class LinearCrossEntropyLoss(LinearWeightedCrossEntropyLoss):
    """Module of `fortifai.linear_cross_entropy`.

    Raises:
        InputError: An option is none of those allowed.
    """

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        logit_softcap: float | None = None,
        label_smoothing: float = 0.0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(
            Keep(),
            ignore_index=ignore_index,
            reduction=reduction,
            logit_softcap=logit_softcap,
            label_smoothing=label_smoothing,
            chunk_size=chunk_size,
        )
