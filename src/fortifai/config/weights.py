"""The confidence weights, as the YAML names them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from fortifai import theory
from fortifai.confidence import (
    DFT,
    EAFT,
    AnyWeight,
    Dynamic,
    Focal,
    Keep,
    Truncate,
    TruncateQuantile,
    Weight,
)
from fortifai.config.section import Section, Share


class KeepConfig(Section):
    """Cross entropy: every token counts fully."""

    kind: Literal["keep"] = "keep"

    def build(self) -> Weight:
        """The weight object."""
        return Keep()


class TruncateConfig(Section):
    """Truncated cross entropy: tokens with p > threshold count nothing."""

    kind: Literal["truncate"]
    threshold: Share = 0.9

    def build(self) -> Weight:
        """The weight object."""
        return Truncate(self.threshold)


class FocalConfig(Section):
    """Focal loss: weight (1 - p)^gamma."""

    kind: Literal["focal"]
    gamma: Annotated[float, Field(ge=0)] = 2.0
    detach_weight: bool = False

    def build(self) -> Weight:
        """The weight object."""
        return Focal(self.gamma, detach_weight=self.detach_weight)


class DynamicConfig(Section):
    """Truncation at a threshold read off the confidences of `rows` training rows."""

    kind: Literal["dynamic"]
    rows: PositiveInt = 2048

    def build(self) -> Dynamic:
        """What settles into a weight."""
        return Dynamic(self.rows)


class DFTConfig(Section):
    """Dynamic fine-tuning: weight p, without gradient."""

    kind: Literal["dft"]

    def build(self) -> Weight:
        """The weight object."""
        return DFT()


class EAFTConfig(Section):
    """Entropy-adaptive fine-tuning: weight (H / log k)^alpha, H of the `top_k` likeliest tokens."""

    kind: Literal["eaft"]
    alpha: Annotated[float, Field(ge=0)] = 1.0
    top_k: Annotated[int, Field(ge=2)] | None = 20

    def build(self) -> AnyWeight:
        """The weight object."""
        return EAFT(self.alpha, self.top_k)


class TruncateQuantileConfig(Section):
    """Points above the `quantile`-th quantile of density count nothing: Algorithm 2 of ForTIFAI."""

    kind: Literal["truncate_quantile"]
    quantile: Annotated[float, Field(gt=0, le=1)] = 0.8

    def build(self) -> Weight:
        """The weight object."""
        return TruncateQuantile(self.quantile)


class TruncateTailsConfig(Section):
    """Only the tails count, |x - mu| >= a sigma: section 2.2 of ForTIFAI."""

    kind: Literal["truncate_tails"]
    a: Annotated[float, Field(ge=0, le=38)]

    def build(self) -> Weight:
        """The weight object: truncation by the density relative to its peak, exp(-a^2 / 2)."""
        return Truncate(theory.tail_confidence(self.a))


PixelWeightConfig = Annotated[
    KeepConfig | TruncateConfig | FocalConfig | DynamicConfig, Field(discriminator="kind")
]
"""Of pixels, whose p is a probability."""

TokenWeightConfig = Annotated[
    KeepConfig | TruncateConfig | FocalConfig | DynamicConfig | DFTConfig | EAFTConfig,
    Field(discriminator="kind"),
]
"""Of tokens, of which there are more than two."""

DensityWeightConfig = Annotated[
    KeepConfig | TruncateQuantileConfig | TruncateTailsConfig, Field(discriminator="kind")
]
"""Of points, whose p is a density."""
