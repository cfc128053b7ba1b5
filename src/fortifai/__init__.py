"""fortifai: train on data that models wrote, and keep what was known.

Losses that let a model learn less from what it is sure of, the recursive-training experiment that
shows what they do, and measures of collapse. Importing this needs torch alone.
"""

from fortifai.losses import (
    FocalCrossEntropyLoss,
    LossStats,
    TruncatedCrossEntropyLoss,
    focal_cross_entropy,
    truncated_cross_entropy,
    weighted_cross_entropy,
)

__version__ = "0.1.0"

__all__ = [
    "FocalCrossEntropyLoss",
    "LossStats",
    "TruncatedCrossEntropyLoss",
    "__version__",
    "focal_cross_entropy",
    "truncated_cross_entropy",
    "weighted_cross_entropy",
]
