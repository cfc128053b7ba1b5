"""Losses that weight each datum by the model's confidence in it; they need torch alone."""

from fortifai.losses.functional import weighted_cross_entropy
from fortifai.losses.kernels import triton_kernels
from fortifai.losses.linear import linear_weighted_cross_entropy
from fortifai.losses.modules import (
    DFTCrossEntropyLoss,
    EAFTCrossEntropyLoss,
    FocalCrossEntropyLoss,
    LinearCrossEntropyLoss,
    LinearDFTCrossEntropyLoss,
    LinearEAFTCrossEntropyLoss,
    LinearFocalCrossEntropyLoss,
    LinearTruncatedCrossEntropyLoss,
    LinearWeightedCrossEntropyLoss,
    TruncatedCrossEntropyLoss,
    WeightedCrossEntropyLoss,
)
from fortifai.losses.named import (
    dft_cross_entropy,
    eaft_cross_entropy,
    focal_cross_entropy,
    linear_cross_entropy,
    linear_dft_cross_entropy,
    linear_eaft_cross_entropy,
    linear_focal_cross_entropy,
    linear_truncated_cross_entropy,
    truncated_cross_entropy,
)
from fortifai.losses.options import with_weight
from fortifai.losses.weighing import LossStats

__all__ = [
    "DFTCrossEntropyLoss",
    "EAFTCrossEntropyLoss",
    "FocalCrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "LinearDFTCrossEntropyLoss",
    "LinearEAFTCrossEntropyLoss",
    "LinearFocalCrossEntropyLoss",
    "LinearTruncatedCrossEntropyLoss",
    "LinearWeightedCrossEntropyLoss",
    "LossStats",
    "TruncatedCrossEntropyLoss",
    "WeightedCrossEntropyLoss",
    "dft_cross_entropy",
    "eaft_cross_entropy",
    "focal_cross_entropy",
    "linear_cross_entropy",
    "linear_dft_cross_entropy",
    "linear_eaft_cross_entropy",
    "linear_focal_cross_entropy",
    "linear_truncated_cross_entropy",
    "linear_weighted_cross_entropy",
    "triton_kernels",
    "truncated_cross_entropy",
    "weighted_cross_entropy",
    "with_weight",
]
