"""Losses that weight each datum by the model's confidence in it; they need torch alone."""

from fortifai.losses.functional import (
    LossStats,
    focal_cross_entropy,
    truncated_cross_entropy,
    weighted_cross_entropy,
)
from fortifai.losses.modules import FocalCrossEntropyLoss, TruncatedCrossEntropyLoss

__all__ = [
    "FocalCrossEntropyLoss",
    "LossStats",
    "TruncatedCrossEntropyLoss",
    "focal_cross_entropy",
    "truncated_cross_entropy",
    "weighted_cross_entropy",
]
