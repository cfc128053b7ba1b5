"""fortifai: train on data that models wrote, and keep what was known.

Losses that let a model learn less from what it is sure of, the recursive-training experiment that
shows what they do, and measures of collapse. The losses are loaded when the first one is named, and
torch with them, which is all that they need.
"""

# ruff: noqa: F405 - names of the star, which a test holds against losses.__all__
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fortifai import losses as losses
    from fortifai.losses import *  # noqa: F403 - what __all__ names

__version__ = "0.1.0"

# spelled out: a name that is none of these is a room's, and loads no loss
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
    "with_weight",
]


def __getattr__(name: str) -> Any:
    """A loss: processes that audit texts load none, and save torch's 150 MiB each."""
    if name not in (*__all__, "losses"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import fortifai.losses as every

    return every if name == "losses" else getattr(every, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "losses"})
