"""The regimes, as the YAML names them."""

from __future__ import annotations

import functools
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, model_validator

from fortifai.config.section import Section, Share
from fortifai.loop import regimes


class FortifaiRegime(Section):
    """Algorithm 1 of ForTIFAI: every old split rewritten once more, one new clean split."""

    kind: Literal["fortifai"] = "fortifai"

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        return regimes.fortifai


class ReplaceRegime(Section):
    """Each generation trains on the last generation's rewriting alone."""

    kind: Literal["replace"]

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        return regimes.replace


class AccumulateRegime(Section):
    """Each generation trains on the real data and all rewritings so far."""

    kind: Literal["accumulate"]

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        return regimes.accumulate


class AccumulateSubsampleRegime(Section):
    """As accumulate, drawn down to the size of the real data."""

    kind: Literal["accumulate-subsample"]

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        return regimes.accumulate_subsample


class MixRegime(Section):
    """A fixed share of synthetic data, or synthetic data and a share of the original on top.

    Exactly one of: `alpha`, the share of each training set that is rewritten, the rest real
    (2509.04796); `keep_original`, the share of the original added to the whole rewriting
    (2305.17493). `splits`: the splits it works on, where not all; arms that differ in it train on
    different texts of one size.
    """

    kind: Literal["mix"]
    alpha: Share | None = None
    keep_original: Share | None = None
    splits: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> MixRegime:
        if (self.alpha is None) == (self.keep_original is None):
            raise ValueError("regime 'mix' takes exactly one of alpha and keep_original")
        if self.splits is not None and len(set(self.splits)) < len(self.splits):
            raise ValueError(f"splits {list(self.splits)} names one twice")
        return self

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        if self.alpha is not None:
            regime: regimes.Regime = functools.partial(regimes.mix_alpha, alpha=self.alpha)
        else:
            assert self.keep_original is not None
            regime = functools.partial(regimes.mix_keep_original, keep_original=self.keep_original)
        if self.splits is None:
            return regime
        return functools.partial(regimes.on_splits, regime=regime, chosen=self.splits)


RegimeConfig = Annotated[
    FortifaiRegime | ReplaceRegime | AccumulateRegime | AccumulateSubsampleRegime | MixRegime,
    Field(discriminator="kind"),
]
