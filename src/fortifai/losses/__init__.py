"""Losses that weight each datum by the model's confidence in it; they need torch alone."""

from fortifai.losses.functional import (
    LossStats,
    focal_cross_entropy,
    truncated_cross_entropy,
    weighted_cross_entropy,
)
from fortifai.losses.kernels import triton_kernels
from fortifai.losses.linear import (
    linear_cross_entropy,
    linear_focal_cross_entropy,
    linear_truncated_cross_entropy,
    linear_weighted_cross_entropy,
)
from fortifai.losses.modules import (
    FocalCrossEntropyLoss,
    LinearCrossEntropyLoss,
    LinearFocalCrossEntropyLoss,
    LinearTruncatedCrossEntropyLoss,
    LinearWeightedCrossEntropyLoss,
    TruncatedCrossEntropyLoss,
)

__all__ = [
    "FocalCrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "LinearFocalCrossEntropyLoss",
    "LinearTruncatedCrossEntropyLoss",
    "LinearWeightedCrossEntropyLoss",
    "LossStats",
    "TruncatedCrossEntropyLoss",
    "focal_cross_entropy",
    "linear_cross_entropy",
    "linear_focal_cross_entropy",
    "linear_truncated_cross_entropy",
    "linear_weighted_cross_entropy",
    "triton_kernels",
    "truncated_cross_entropy",
    "weighted_cross_entropy",
]
