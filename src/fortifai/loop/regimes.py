"""What each generation trains on and what it rewrites.

A part D_k^(j) is split k after j rewritings; j = 0 is real. A regime is a pure function from the
generation i and the number of splits to a `Plan`: which parts generation i trains on, and which
parts model M_i then rewrites. No regime knows a family, an array or a random number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A reference to D_k^(j), whole or a random share of its units.

    Attributes:
        split: k.
        generation: j, the number of rewritings; 0 is real data.
        between: Which stretch of a random order of the part's units is taken. Every generation
            orders the units of a split once, so that parts of one split with stretches that do
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


Regime = Callable[[int, int], Plan]
"""(generation i >= 0, number of splits) -> Plan."""


def fortifai(generation: int, splits: int) -> Plan:
    """Algorithm 1 of ForTIFAI (2509.08972).

    M_i trains on D_0^(i), D_1^(i-1), ..., D_i^(0) and rewrites each of them once more, so the real
    share is 1 / (i + 1): 100, 50, 33, 25, 20, 17 %.
    """
    train = tuple(Part(k, generation - k) for k in range(min(generation + 1, splits)))
    return Plan(train, _once_more(train))


def replace(generation: int, splits: int) -> Plan:
    """M_0 trains on the real data, M_i on M_(i-1)'s rewriting alone."""
    train = tuple(Part(k, generation) for k in range(splits))
    return Plan(train, _once_more(train))


def accumulate(generation: int, splits: int) -> Plan:
    """M_i trains on the real data and every rewriting so far (2404.01413)."""
    train = tuple(Part(k, j) for j in range(generation + 1) for k in range(splits))
    return Plan(train, _once_more(replace(generation, splits).train))


def accumulate_subsample(generation: int, splits: int) -> Plan:
    """As `accumulate`, drawn down to the size of the real data (2410.16713).

    Each of the i + 1 versions of a split gives an equal share of its units, none of them twice.
    """
    n = generation + 1
    train = tuple(Part(k, j, between=(j / n, (j + 1) / n)) for j in range(n) for k in range(splits))
    return Plan(train, _once_more(replace(generation, splits).train))


def mix_alpha(generation: int, splits: int, *, alpha: float) -> Plan:
    """A share `alpha` of the data rewritten by the last model, the rest real (2509.04796).

    Every rewriting starts from the real data, as each generation continues the same real prompts.
    """
    rewrites = tuple(Rewrite(Part(k, 0), generation + 1) for k in range(splits))
    if generation == 0:
        return Plan(tuple(Part(k, 0) for k in range(splits)), rewrites)
    synthetic = [Part(k, generation, between=(0.0, alpha)) for k in range(splits) if alpha > 0]
    real = [Part(k, 0, between=(alpha, 1.0)) for k in range(splits) if alpha < 1]
    return Plan((*synthetic, *real), rewrites)


def mix_keep_original(generation: int, splits: int, *, keep_original: float) -> Plan:
    """The last model's rewriting, and a share of the original on top (2305.17493, setting b)."""
    plan = replace(generation, splits)
    if generation == 0 or keep_original == 0:
        return plan
    original = tuple(Part(k, 0, between=(0.0, keep_original)) for k in range(splits))
    return Plan(plan.train + original, plan.rewrites)


def on_splits(generation: int, splits: int, *, regime: Regime, chosen: tuple[int, ...]) -> Plan:
    """Another regime on some of the splits alone, as if there were no others.

    Raises:
        ValueError: A split is chosen that there is not.
    """
    if max(chosen) >= splits:
        raise ValueError(f"split {max(chosen)} is chosen and there are {splits}, from 0")
    plan = regime(generation, len(chosen))

    def there(part: Part) -> Part:
        return dataclasses.replace(part, split=chosen[part.split])

    rewrites = (dataclasses.replace(r, source=there(r.source)) for r in plan.rewrites)
    return Plan(tuple(map(there, plan.train)), tuple(rewrites))


def _once_more(parts: tuple[Part, ...]) -> tuple[Rewrite, ...]:
    return tuple(Rewrite(part, part.generation + 1) for part in parts)
