"""What may be said of the numbers: differences and changes with intervals, and times to failure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from fortifai.report.load import KR, Arm, Chain
from fortifai.stats import paired_difference


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def kr_change(arm: Arm, split: int, before: int, after: int) -> Estimate | None:
    """How KR on a split changed between two generations of an arm, question by question."""
    return _paired(_answers(arm, split, after), _answers(arm, split, before))


def kr_difference(arm: Arm, baseline: Arm, split: int, generation: int) -> Estimate | None:
    """KR of an arm minus the baseline's at one generation, on the same seeds and questions."""
    return _paired(_answers(arm, split, generation), _answers(baseline, split, generation))


_Table = dict[int, dict[str, float]]


def _answers(arm: Arm, split: int, generation: int) -> _Table:
    """By seed and question, whether it was answered rightly."""
    out: _Table = {}
    for chain in arm.chains:
        found = chain.at(generation)
        if found is not None and found.answers is not None:
            answers = found.answers
            asked = np.flatnonzero(answers.split == split)
            out[chain.seed] = {answers.ids[i]: float(answers.right[i]) for i in asked}
    return out


def _paired(left: _Table, right: _Table) -> Estimate | None:
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        return None
    shared = set.intersection(*({*left[s]} & {*right[s]} for s in seeds))
    if not shared:
        return None
    ids = sorted(shared)
    tables = [np.array([[side[s][i] for i in ids] for s in seeds]) for side in (left, right)]
    return Estimate(*paired_difference(tables[0], tables[1]))


def shared(chains: Sequence[Chain], measure: str, on: str) -> tuple[int, ...]:
    """Generations up to which all chains have a measure without a gap, of those that all took.

    A chain that ended early has a last generation that no other one was due to measure.
    """
    taken = [set(c.due[: len(c.values(measure, on))]) for c in chains]
    return tuple(sorted(set.intersection(*taken))) if taken else ()


def last_shared(arm: Arm, baseline: Arm, measure: str, on: str) -> int | None:
    """The last generation that both arms measured in every seed that they share."""
    there = {c.seed: c for c in baseline.chains}
    pairs = [(c, there[c.seed]) for c in arm.chains if c.seed in there]
    return max(shared([c for pair in pairs for c in pair], measure, on), default=None)


def last_of(arm: Arm, measure: str = KR, on: str = "split-0") -> int | None:
    """The last generation that every seed of the arm measured."""
    return max(shared(arm.chains, measure, on), default=None)


def mean_at(arm: Arm, measure: str, on: str, generation: int) -> float | None:
    """Mean over the seeds that measured it; None where none did."""
    found = [
        value
        for chain in arm.chains
        if (g := chain.at(generation)) and (value := g.value(measure, on)) is not None
    ]
    values = [v for v in found if math.isfinite(v)]
    return float(np.mean(values)) if values else None
