"""The regimes, as the YAML names them."""

from __future__ import annotations

import functools
from typing import Annotated, Literal

from pydantic import Field, model_validator

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
    (2305.17493).
    """

    kind: Literal["mix"]
    alpha: Share | None = None
    keep_original: Share | None = None

    @model_validator(mode="after")
    def _one_of(self) -> MixRegime:
        if (self.alpha is None) == (self.keep_original is None):
            raise ValueError("regime 'mix' takes exactly one of alpha and keep_original")
        return self

    def build(self) -> regimes.Regime:
        """The regime as a function."""
        if self.alpha is not None:
            return functools.partial(regimes.mix_alpha, alpha=self.alpha)
        assert self.keep_original is not None
        return functools.partial(regimes.mix_keep_original, keep_original=self.keep_original)


RegimeConfig = Annotated[
    FortifaiRegime | ReplaceRegime | AccumulateRegime | AccumulateSubsampleRegime | MixRegime,
    Field(discriminator="kind"),
]
