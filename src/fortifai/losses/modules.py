"""The losses as modules, drop-ins for `torch.nn.CrossEntropyLoss` and its kind on hidden states."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from fortifai.losses.checks import check_weight
from fortifai.losses.functional import logits_loss
from fortifai.losses.linear import linear_loss
from fortifai.losses.options import LinearOptions, LossOptions, parameters
from fortifai.weights import DFT, EAFT, AnyWeight, Focal, Keep, Truncate, Weight


class _Module(nn.Module):
    """What the modules share: ``class Mine(WeightedCrossEntropyLoss, of=MyWeight)`` is one of them.

    Attributes:
        weight: See `fortifai.weights`.
        options: What it was made with.
        kept_share: Of the last call: sum of weights over valid targets, a detached scalar tensor
            on the loss's device; None before the first call.
    """

    _of: ClassVar[type[Weight] | None] = None
    _options: ClassVar[type[LossOptions]]
    weight: AnyWeight
    options: LossOptions

    def __init_subclass__(cls, of: type[Weight] | None = None) -> None:
        super().__init_subclass__()
        cls._of = of or cls._of

    def __init__(self, *weight: Any, **options: Any) -> None:
        super().__init__()
        names = parameters(self._of) if self._of else ["weight"]
        own = {name: options.pop(name) for name in names if name in options}
        self.weight = (self._of or _given)(*weight, **own)
        self.options = self._options(**options)
        self.kept_share: Tensor | None = None

    def extra_repr(self) -> str:
        """Weight and options, for printing."""
        return f"{self.weight}, {self.options}"


def _given(weight: AnyWeight) -> AnyWeight:
    check_weight(weight)
    return weight


class WeightedCrossEntropyLoss(_Module):
    """Module of `fortifai.weighted_cross_entropy`; `kept_share` holds the last call's share.

    Args:
        weight: See `fortifai.weights`; modules of one kind of weight take its parameters instead.
        **options: See `fortifai.losses.options.LossOptions`.

    Raises:
        InputError: `weight` is no function, or a parameter or an option is not allowed.
    """

    _options = LossOptions

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss of logits (N, C, d1, ...) and targets (N, d1, ...)."""
        loss, stats = logits_loss(
            input, target, weight=self.weight, options=self.options, sample_weight=sample_weight
        )
        self.kept_share = stats.kept_share
        return loss


class TruncatedCrossEntropyLoss(WeightedCrossEntropyLoss, of=Truncate):
    """Module of `fortifai.truncated_cross_entropy`: `threshold`, and options."""


class FocalCrossEntropyLoss(WeightedCrossEntropyLoss, of=Focal):
    """Module of `fortifai.focal_cross_entropy`: `gamma`, `detach_weight`, and options."""


class DFTCrossEntropyLoss(WeightedCrossEntropyLoss, of=DFT):
    """Module of `fortifai.dft_cross_entropy`: options."""


class EAFTCrossEntropyLoss(WeightedCrossEntropyLoss, of=EAFT):
    """Module of `fortifai.eaft_cross_entropy`: `alpha`, `top_k`, and options."""


class LinearWeightedCrossEntropyLoss(_Module):
    """Module of `fortifai.linear_weighted_cross_entropy`.

    It holds no output layer: give that of the model in each call, so that a tied or frozen one
    stays what it is. `kept_share` holds the last call's share.

    Args:
        weight: See `fortifai.weights`; modules of one kind of weight take its parameters instead.
        **options: See `fortifai.losses.options.LinearOptions`.

    Raises:
        InputError: `weight` is no function, or a parameter or an option is not allowed.
    """

    _options = LinearOptions
    options: LinearOptions

    def forward(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of hidden states (*, d), a head (C, d) and targets (*)."""
        loss, stats = linear_loss(
            input,
            linear_weight,
            target,
            weight=self.weight,
            options=self.options,
            sample_weight=sample_weight,
            linear_bias=linear_bias,
        )
        self.kept_share = stats.kept_share
        return loss


class LinearTruncatedCrossEntropyLoss(LinearWeightedCrossEntropyLoss, of=Truncate):
    """Module of `fortifai.linear_truncated_cross_entropy`: `threshold`, and options."""


class LinearFocalCrossEntropyLoss(LinearWeightedCrossEntropyLoss, of=Focal):
    """Module of `fortifai.linear_focal_cross_entropy`: `gamma`, `detach_weight`, and options."""


class LinearDFTCrossEntropyLoss(LinearWeightedCrossEntropyLoss, of=DFT):
    """Module of `fortifai.linear_dft_cross_entropy`: options."""


class LinearEAFTCrossEntropyLoss(LinearWeightedCrossEntropyLoss, of=EAFT):
    """Module of `fortifai.linear_eaft_cross_entropy`: `alpha`, `top_k`, and options."""


class LinearCrossEntropyLoss(LinearWeightedCrossEntropyLoss, of=Keep):
    """Module of `fortifai.linear_cross_entropy`: options."""
