"""What each generation trains on and what it rewrites.

A part D_k^(j) is split k after j rewritings; j = 0 is real. A regime plans from the generation i
and the number of splits: which parts generation i trains on, and which parts model M_i then
rewrites. No regime knows a family, an array or a random number. To add one, write a subclass of
`Regime` with a ``kind`` and a ``plan``, and name it in `REGIMES`.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, model_validator

from fortifai.errors import InputError
from fortifai.options import Options, Share


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A reference to D_k^(j), whole or a random share of its units.

    Attributes:
        split: k.
        generation: j, the number of rewritings; 0 is real data.
        between: Which part of a random order of the part's units is taken. Every generation
            orders the units of a split once, so that parts of one split with ranges that do
            not overlap never hold the same place twice.
    """

    split: int
    generation: int
    between: tuple[float, float] = (0.0, 1.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Rewrite:
    """M_i writes D_k^(to) from `source`."""

    source: Part
    to: int


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Generation i: what it trains on and what it rewrites afterwards."""

    train: tuple[Part, ...]
    rewrites: tuple[Rewrite, ...]


class Regime(Options):
    """Which parts a generation trains on and rewrites."""

    kind: str

    @abstractmethod
    def plan(self, generation: int, splits: int) -> Plan:
        """The plan of generation i >= 0 with so many splits; a pure function."""

    @property
    def a_split_each(self) -> bool:
        """Whether every generation adds a clean split, so that there must be as many."""
        return False

    def check(self, splits: int) -> None:
        """Refuse a number of splits that it cannot work on.

        Raises:
            ValueError: It cannot.
        """


PLANNED = 100
"""Generations of a plugin's regime that are planned before a run, to find what is wrong with it."""


def check_plans(regime: Regime, splits: int, generations: int) -> None:
    """Refuse plans that read what no generation before has written, or train on nothing.

    Args:
        regime: The regime.
        splits: How many splits there are.
        generations: How many generations; `PLANNED` of them at most are looked at.

    Raises:
        InputError: A plan is none, or is as above.
    """
    there = {(split, 0) for split in range(splits)}
    for generation in range(min(generations, PLANNED)):
        plan = regime.plan(generation, splits)
        where = f"regime {regime.kind!r}, generation {generation}:"
        if not isinstance(plan, Plan):
            raise InputError(f"{where} plan returned {type(plan).__name__}; return a Plan")
        if not plan.train or not plan.rewrites:
            lacks = "rewrites" if plan.train else "trains on"
            raise InputError(f"{where} the plan {lacks} nothing; name parts")
        for part in (*plan.train, *(rewrite.source for rewrite in plan.rewrites)):
            if (part.split, part.generation) not in there:
                raise InputError(
                    f"{where} split {part.split} after {part.generation} rewritings is asked for "
                    f"and not there; there are {splits} splits, and what generations before wrote"
                )
        there |= {(rewrite.source.split, rewrite.to) for rewrite in plan.rewrites}


class Fortifai(Regime):
    """Algorithm 1 of ForTIFAI (2509.08972).

    M_i trains on D_0^(i), D_1^(i-1), ..., D_i^(0) and rewrites each of them once more, so the real
    share is 1 / (i + 1): 100, 50, 33, 25, 20, 17 %.
    """

    kind: Literal["fortifai"] = "fortifai"

    def plan(self, generation: int, splits: int) -> Plan:
        """Every old split rewritten once more, and one new clean split."""
        train = tuple(Part(k, generation - k) for k in range(min(generation + 1, splits)))
        return Plan(train, _once_more(train))

    @property
    def a_split_each(self) -> bool:
        """Yes."""
        return True


class Replace(Regime):
    """M_0 trains on the real data, M_i on M_(i-1)'s rewriting alone."""

    kind: Literal["replace"] = "replace"

    def plan(self, generation: int, splits: int) -> Plan:
        """The last rewriting of every split."""
        train = tuple(Part(k, generation) for k in range(splits))
        return Plan(train, _once_more(train))


class Accumulate(Regime):
    """M_i trains on the real data and every rewriting so far (2404.01413)."""

    kind: Literal["accumulate"] = "accumulate"

    def plan(self, generation: int, splits: int) -> Plan:
        """All versions of every split."""
        train = tuple(Part(k, j) for j in range(generation + 1) for k in range(splits))
        return Plan(train, Replace().plan(generation, splits).rewrites)


class AccumulateSubsample(Regime):
    """As `Accumulate`, drawn down to the size of the real data (2410.16713).

    Each of the i + 1 versions of a split gives an equal share of its units, none of them twice.
    """

    kind: Literal["accumulate-subsample"] = "accumulate-subsample"

    def plan(self, generation: int, splits: int) -> Plan:
        """An equal share of all versions of every split."""
        n = generation + 1
        train = tuple(
            Part(k, j, between=(j / n, (j + 1) / n)) for j in range(n) for k in range(splits)
        )
        return Plan(train, Replace().plan(generation, splits).rewrites)


class Mix(Regime):
    """A fixed share of synthetic data, or synthetic data and a share of the original on top.

    Exactly one of: `alpha`, the share of each training set that the last model rewrote, the rest
    being real, where every rewriting starts from the real data, as each generation continues the
    same real prompts (2509.04796); `keep_original`, the share of the original added to the whole
    of the last rewriting (2305.17493, setting b). `splits`: the splits it works on, where not all;
    arms that differ in it train on different texts of one size.
    """

    kind: Literal["mix"] = "mix"
    alpha: Share | None = None
    keep_original: Share | None = None
    splits: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Mix:
        if (self.alpha is None) == (self.keep_original is None):
            raise ValueError("regime 'mix' takes exactly one of alpha and keep_original")
        if self.splits is not None and len(set(self.splits)) < len(self.splits):
            raise ValueError(f"splits {list(self.splits)} names one twice")
        return self

    def check(self, splits: int) -> None:
        """Refuse splits that there are not."""
        if self.splits and max(self.splits) >= splits:
            raise ValueError(
                f"regime.splits names split {max(self.splits)} and there are {splits}, from 0; set "
                "splits.count or choose another"
            )

    def plan(self, generation: int, splits: int) -> Plan:
        """The mixture, on all splits or on some as if there were no others."""
        if self.splits is None:
            return self._mixed(generation, range(splits))
        self.check(splits)
        return self._mixed(generation, self.splits)

    def _mixed(self, generation: int, splits: range | tuple[int, ...]) -> Plan:
        if self.alpha is not None:
            rewrites = tuple(Rewrite(Part(k, 0), generation + 1) for k in splits)
            if generation == 0:
                return Plan(tuple(Part(k, 0) for k in splits), rewrites)
            shares = ((generation, 0.0, self.alpha), (0, self.alpha, 1.0))
            train = [Part(k, j, between=(a, b)) for j, a, b in shares for k in splits if a < b]
            return Plan(tuple(train), rewrites)
        last = tuple(Part(k, generation) for k in splits)
        original: tuple[Part, ...] = ()
        if generation and self.keep_original:
            original = tuple(Part(k, 0, between=(0.0, self.keep_original)) for k in splits)
        return Plan(last + original, _once_more(last))


REGIMES: tuple[type[Regime], ...] = (Fortifai, Replace, Accumulate, AccumulateSubsample, Mix)


def _once_more(parts: tuple[Part, ...]) -> tuple[Rewrite, ...]:
    return tuple(Rewrite(part, part.generation + 1) for part in parts)
