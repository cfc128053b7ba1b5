"""The keyword arguments that all losses share, spelled once for who checks types."""

from __future__ import annotations

from typing import Literal, Required, TypedDict

from torch import Tensor

from fortifai.losses.checks import Normalize, Reduction


class Terms(TypedDict, total=False):
    """What a row loses; see `fortifai.losses.rows.RowLoss`."""

    label_smoothing: float
    confidence_penalty: float
    z_loss: float
    gem_beta: float


class Settings(Terms, total=False):
    """What the modules on logits hold; see `fortifai.weighted_cross_entropy`."""

    ignore_index: int
    reduction: Reduction
    normalize: Normalize
    logit_softcap: float | None


class LinearSettings(Settings, total=False):
    """What the modules on hidden states hold; see `fortifai.linear_weighted_cross_entropy`."""

    chunk_size: int | None


class Options(Settings, total=False):
    """What the functions on logits take."""

    sample_weight: Tensor | None
    return_stats: Literal[False]


class OptionsAndStats(Settings, total=False):
    """The same, where stats are returned, too."""

    sample_weight: Tensor | None
    return_stats: Required[Literal[True]]


class LinearOptions(LinearSettings, total=False):
    """What the functions on hidden states take."""

    sample_weight: Tensor | None
    linear_bias: Tensor | None
    return_stats: Literal[False]


class LinearOptionsAndStats(LinearSettings, total=False):
    """The same, where stats are returned, too."""

    sample_weight: Tensor | None
    linear_bias: Tensor | None
    return_stats: Required[Literal[True]]
