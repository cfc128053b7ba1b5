"""The losses as modules, drop-ins for `torch.nn.CrossEntropyLoss` and its kind on hidden states."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor, nn

from fortifai.confidence import DFT, EAFT, AnyWeight, Focal, Keep, Truncate
from fortifai.losses.checks import check_chunk_size, check_options, check_weight
from fortifai.losses.functional import weighted_cross_entropy
from fortifai.losses.linear import linear_weighted_cross_entropy
from fortifai.losses.options import LinearSettings, Settings
from fortifai.losses.rows import RowLoss

_DEFAULTS: Settings = {
    "ignore_index": -100,
    "reduction": "mean",
    "normalize": "valid",
    "logit_softcap": None,
}


class _Weighted(nn.Module):
    """What the modules share.

    Attributes:
        weight: See `fortifai.confidence`.
        settings: The keyword arguments that each call gives its function.
        kept_share: Of the last call: sum of weights over valid targets, a detached scalar tensor
            on the loss's device; None before the first call.
    """

    kept_share: Tensor | None

    def __init__(self, weight: AnyWeight, settings: dict[str, Any]) -> None:
        super().__init__()
        check_weight(weight)
        self.weight = weight
        self.settings = {**_DEFAULTS, **settings}
        terms = {name: value for name, value in settings.items() if name not in _DEFAULTS}
        check_options(*(self.settings[name] for name in _DEFAULTS))
        RowLoss(**terms)
        self.kept_share = None

    def extra_repr(self) -> str:
        """The settings, for printing."""
        return ", ".join([str(self.weight), *(f"{k}={v!r}" for k, v in self.settings.items())])


class WeightedCrossEntropyLoss(_Weighted):
    """Module of `fortifai.weighted_cross_entropy`; `kept_share` holds the last call's share.

    Raises:
        InputError: `weight` is no function, or an option is none of those allowed.
    """

    def __init__(self, weight: AnyWeight, **settings: Unpack[Settings]) -> None:
        super().__init__(weight, dict(settings))

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss of logits (N, C, d1, ...) and targets (N, d1, ...)."""
        loss, stats = weighted_cross_entropy(
            input,
            target,
            weight=self.weight,
            sample_weight=sample_weight,
            return_stats=True,
            **self.settings,
        )
        self.kept_share = stats.kept_share
        return loss


class TruncatedCrossEntropyLoss(WeightedCrossEntropyLoss):
    """Module of `fortifai.truncated_cross_entropy`; `kept_share` holds the last call's share.

    Raises:
        InputError: `threshold` is not in [0, 1], or an option is none of those allowed.
    """

    def __init__(self, threshold: float = 0.9, **settings: Unpack[Settings]) -> None:
        super().__init__(Truncate(threshold), **settings)


class FocalCrossEntropyLoss(WeightedCrossEntropyLoss):
    """Module of `fortifai.focal_cross_entropy`; `kept_share` holds the last call's share.

    Raises:
        InputError: `gamma` is negative or not finite, or an option is none of those allowed.
    """

    def __init__(
        self, gamma: float = 2.0, *, detach_weight: bool = False, **settings: Unpack[Settings]
    ) -> None:
        super().__init__(Focal(gamma, detach_weight=detach_weight), **settings)


class DFTCrossEntropyLoss(WeightedCrossEntropyLoss):
    """Module of `fortifai.dft_cross_entropy`; `kept_share` holds the last call's share.

    Raises:
        InputError: An option is none of those allowed.
    """

    def __init__(self, **settings: Unpack[Settings]) -> None:
        super().__init__(DFT(), **settings)


class EAFTCrossEntropyLoss(WeightedCrossEntropyLoss):
    """Module of `fortifai.eaft_cross_entropy`; `kept_share` holds the last call's share.

    Raises:
        InputError: `alpha` or `top_k` is out of range, or an option is none of those allowed.
    """

    def __init__(
        self, alpha: float = 1.0, top_k: int | None = 20, **settings: Unpack[Settings]
    ) -> None:
        super().__init__(EAFT(alpha, top_k), **settings)


class LinearWeightedCrossEntropyLoss(_Weighted):
    """Module of `fortifai.linear_weighted_cross_entropy`.

    It holds no output layer: give that of the model in each call, so that a tied or frozen one
    stays what it is. `kept_share` holds the last call's share.

    Raises:
        InputError: `weight` is no function, or an option is none of those allowed.
    """

    def __init__(
        self, weight: AnyWeight, *, chunk_size: int | None = None, **settings: Unpack[Settings]
    ) -> None:
        super().__init__(weight, dict(settings))
        check_chunk_size(chunk_size)
        self.settings["chunk_size"] = chunk_size

    def forward(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of hidden states (*, d), a head (C, d) and targets (*)."""
        loss, stats = linear_weighted_cross_entropy(
            input,
            linear_weight,
            target,
            weight=self.weight,
            sample_weight=sample_weight,
            linear_bias=linear_bias,
            return_stats=True,
            **self.settings,
        )
        self.kept_share = stats.kept_share
        return loss


class LinearTruncatedCrossEntropyLoss(LinearWeightedCrossEntropyLoss):
    """Module of `fortifai.linear_truncated_cross_entropy`.

    Raises:
        InputError: `threshold` is not in [0, 1], or an option is none of those allowed.
    """

    def __init__(self, threshold: float = 0.9, **settings: Unpack[LinearSettings]) -> None:
        super().__init__(Truncate(threshold), **settings)


class LinearFocalCrossEntropyLoss(LinearWeightedCrossEntropyLoss):
    """Module of `fortifai.linear_focal_cross_entropy`.

    Raises:
        InputError: `gamma` is negative or not finite, or an option is none of those allowed.
    """

    def __init__(
        self, gamma: float = 2.0, *, detach_weight: bool = False, **settings: Unpack[LinearSettings]
    ) -> None:
        super().__init__(Focal(gamma, detach_weight=detach_weight), **settings)


class LinearDFTCrossEntropyLoss(LinearWeightedCrossEntropyLoss):
    """Module of `fortifai.linear_dft_cross_entropy`.

    Raises:
        InputError: An option is none of those allowed.
    """

    def __init__(self, **settings: Unpack[LinearSettings]) -> None:
        super().__init__(DFT(), **settings)


class LinearEAFTCrossEntropyLoss(LinearWeightedCrossEntropyLoss):
    """Module of `fortifai.linear_eaft_cross_entropy`.

    Raises:
        InputError: `alpha` or `top_k` is out of range, or an option is none of those allowed.
    """

    def __init__(
        self, alpha: float = 1.0, top_k: int | None = 20, **settings: Unpack[LinearSettings]
    ) -> None:
        super().__init__(EAFT(alpha, top_k), **settings)


class LinearCrossEntropyLoss(LinearWeightedCrossEntropyLoss):
    """Module of `fortifai.linear_cross_entropy`.

    Raises:
        InputError: An option is none of those allowed.
    """

    def __init__(self, **settings: Unpack[LinearSettings]) -> None:
        super().__init__(Keep(), **settings)
