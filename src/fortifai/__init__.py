"""fortifai: train on data that models wrote, and keep what was known.

Losses that let a model learn less from what it is sure of, the recursive-training experiment that
shows what they do, and measures of collapse. Importing this needs torch alone.
"""

from fortifai.losses import (
    DFTCrossEntropyLoss,
    EAFTCrossEntropyLoss,
    FocalCrossEntropyLoss,
    LinearCrossEntropyLoss,
    LinearDFTCrossEntropyLoss,
    LinearEAFTCrossEntropyLoss,
    LinearFocalCrossEntropyLoss,
    LinearTruncatedCrossEntropyLoss,
    LinearWeightedCrossEntropyLoss,
    LossStats,
    TruncatedCrossEntropyLoss,
    WeightedCrossEntropyLoss,
    dft_cross_entropy,
    eaft_cross_entropy,
    focal_cross_entropy,
    linear_cross_entropy,
    linear_dft_cross_entropy,
    linear_eaft_cross_entropy,
    linear_focal_cross_entropy,
    linear_truncated_cross_entropy,
    linear_weighted_cross_entropy,
    triton_kernels,
    truncated_cross_entropy,
    weighted_cross_entropy,
)

__version__ = "0.1.0"

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
    "__version__",
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
]
