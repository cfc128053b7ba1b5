"""fortifai: train on data that models wrote, and keep what was known.

Losses that let a model learn less from what it is sure of, the recursive-training experiment that
shows what they do, and measures of collapse. Importing this needs torch alone.
"""

from fortifai.losses import (
    FocalCrossEntropyLoss,
    LinearCrossEntropyLoss,
    LinearFocalCrossEntropyLoss,
    LinearTruncatedCrossEntropyLoss,
    LinearWeightedCrossEntropyLoss,
    LossStats,
    TruncatedCrossEntropyLoss,
    focal_cross_entropy,
    linear_cross_entropy,
    linear_focal_cross_entropy,
    linear_truncated_cross_entropy,
    linear_weighted_cross_entropy,
    triton_kernels,
    truncated_cross_entropy,
    weighted_cross_entropy,
)

__version__ = "0.1.0"

__all__ = [
    "FocalCrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "LinearFocalCrossEntropyLoss",
    "LinearTruncatedCrossEntropyLoss",
    "LinearWeightedCrossEntropyLoss",
    "LossStats",
    "TruncatedCrossEntropyLoss",
    "__version__",
    "focal_cross_entropy",
    "linear_cross_entropy",
    "linear_focal_cross_entropy",
    "linear_truncated_cross_entropy",
    "linear_weighted_cross_entropy",
    "triton_kernels",
    "truncated_cross_entropy",
    "weighted_cross_entropy",
]
