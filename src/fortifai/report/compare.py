"""What may be said of the numbers: differences, changes and ratios with intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from fortifai.report.records import FIRST, KR, Arm, Chain, Key, Run
from fortifai.stats import Estimate, Over, Ratio, holm, mean_estimate, paired_difference


def kr_change(arm: Arm, split: int, before: int, after: int) -> Estimate | None:
    """How KR on a split changed between two generations of an arm, question by question.

    The interval is over questions: it is said of the models of this run.
    """
    return _paired(_answers(arm, split, after), _answers(arm, split, before), over="questions")


def kr_difference(arm: Arm, baseline: Arm, split: int | None, generation: int) -> Estimate | None:
    """KR of an arm minus the baseline's at one generation, on the same seeds and questions.

    `split`: of which the questions are; None: of all.
    """
    return _paired(_answers(arm, split, generation), _answers(baseline, split, generation))


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """An arm against another, such as its run's baseline, on the same seeds and questions.

    Attributes:
        arm: Label of the arm.
        generation: The last one that both measured in every seed that they share.
        gap: KR of the arm minus the other's, with an interval over seeds and questions.
        these: The same over questions alone: what may be said of these models, not of the arms.
        corrected: Its p-value after Holm's correction over all that are compared.
    """

    arm: str
    generation: int
    gap: Estimate
    these: Estimate
    corrected: float | None


Pairs = Sequence[tuple[Arm, Arm]]
"""Arms, each with the one that it is compared with."""


def to_baseline(run: Run) -> Pairs:
    """Each arm with the run's baseline."""
    base = run.baseline
    return [(arm, base) for arm in run.arms if base and not arm.baseline]


def to_first_run(runs: Sequence[Run]) -> Pairs:
    """Each arm with that of the same name in the first run."""
    first = {arm.name: arm for arm in runs[0].arms}
    arms = [arm for run in runs[1:] for arm in run.arms if arm.name in first]
    return [(arm, first[arm.name]) for arm in arms]


def differences(pairs: Pairs, split: int | None) -> list[Difference]:
    """How the KR of each arm differs from that of its other, as many claims as there are pairs.

    Args:
        pairs: What is compared.
        split: Of which the questions are; None: of all.
    """
    on = "total" if split is None else FIRST if split == 0 else f"split-{split}"
    found = []
    for arm, other in pairs:
        there = last_shared(arm, other, (KR, on))
        if there is None:
            continue
        sides = [_answers(one, split, there) for one in (arm, other)]
        gap, these = _paired(*sides), _paired(*sides, over="questions")
        if gap is not None and these is not None:
            found.append((arm.label, there, gap, these))
    tested = [gap.p for _, _, gap, _ in found if gap.p is not None]
    corrected = iter(holm(tested))
    return [
        Difference(label, there, gap, these, None if gap.p is None else next(corrected))
        for label, there, gap, these in found
    ]


_Table = dict[int, dict[str, float]]


def _answers(arm: Arm, split: int | None, generation: int) -> _Table:
    """By seed and question, whether it was answered rightly."""
    out: _Table = {}
    for chain in arm.chains:
        found = chain.at(generation)
        if found is not None and found.answers is not None:
            answers = found.answers
            asked = np.flatnonzero((answers.split == split) | (split is None))
            out[chain.seed] = {answers.ids[i]: float(answers.right[i]) for i in asked}
    return out


def _paired(left: _Table, right: _Table, *, over: Over | None = None) -> Estimate | None:
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        return None
    shared = set.intersection(*({*left[s]} & {*right[s]} for s in seeds))
    if not shared:
        return None
    ids = sorted(shared)
    tables = [np.array([[side[s][i] for i in ids] for s in seeds]) for side in (left, right)]
    if len(ids) == 1 and over == "questions":
        over = None  # one question is no sample of questions
    return paired_difference(tables[0], tables[1], over=over)


def shared(chains: Sequence[Chain], key: Key) -> tuple[int, ...]:
    """Generations up to which all chains have a score without a gap, of those that all took.

    A chain that ended early has a last generation that no other one was due to measure.
    """
    taken = [set(c.due[: len(c.values(key))]) for c in chains]
    return tuple(sorted(set.intersection(*taken))) if taken else ()


def last_shared(arm: Arm, baseline: Arm, key: Key) -> int | None:
    """The last generation that both arms measured in every seed that they share."""
    pairs = pairs_of(arm, baseline)
    return max(shared([c for pair in pairs for c in pair], key), default=None)


def last_of(arm: Arm, key: Key) -> int | None:
    """The last generation that every seed of the arm measured."""
    return max(shared(arm.chains, key), default=None)


def pairs_of(arm: Arm, baseline: Arm) -> list[tuple[Chain, Chain]]:
    """The chains of both arms, by seed."""
    return [(a, b) for a in arm.chains for b in baseline.chains if a.seed == b.seed]


def mean_at(arm: Arm, key: Key, generation: int) -> float | None:
    """Mean over the seeds that measured it; None where none did."""
    values = [s.value for s in arm.scores(key, generation) if math.isfinite(s.value)]
    return float(np.mean(values)) if values else None


@dataclasses.dataclass(frozen=True, slots=True)
class Gap:
    """How an arm differs from another in one score.

    Attributes:
        arm: Label of the arm.
        other: Label of the one that it is compared with.
        generation: The last one that both measured in every seed that they share.
        value: Difference of shares of Knowledge Retention on the first split; else the ratio.
        low: Lower end of its 95 % interval; None where there is none.
        high: Upper end.
        none: The value of no difference: 0 of differences, 1 of ratios.
        p: After Holm's correction over all that are compared; None where there is no interval.
    """

    arm: str
    other: str
    generation: int
    value: float
    low: float | None
    high: float | None
    none: float
    p: float | None

    @property
    def sure(self) -> bool:
        """Whether it may be claimed however many arms there are."""
        return self.p is not None and self.p < 0.05


def gaps(pairs: Pairs, key: Key) -> list[Gap]:
    """How each arm differs from its other, where they can be compared.

    On the first split's knowledge by the difference of shares, by seed and question; else by the
    ratio, by seed.
    """
    if key == (KR, FIRST):
        others = {arm.label: other.label for arm, other in pairs}
        return [
            Gap(one.arm, others[one.arm], one.generation, one.gap.value, one.gap.low, one.gap.high,
                0.0, one.corrected)
            for one in differences(pairs, 0)
        ]  # fmt: skip
    found = []
    for arm, other in pairs:
        there = last_shared(arm, other, key)
        times = None if there is None else times_baseline(arm, other, key, there)
        if there is not None and times is not None and times.value is not None:
            ends = times.value, times.low, times.high
            found.append(Gap(arm.label, other.label, there, *ends, 1.0, times.p))
    corrected = iter(holm([gap.p for gap in found if gap.p is not None]))
    return [gap if gap.p is None else dataclasses.replace(gap, p=next(corrected)) for gap in found]


def claims(run: Run, key: Key) -> dict[str, tuple[bool, float]]:
    """By arm, whether it lies above the baseline, and p after Holm's correction over the arms.

    An arm without a p-value is left out.
    """
    found = gaps(to_baseline(run), key)
    return {gap.arm: (gap.value > gap.none, gap.p) for gap in found if gap.p is not None}


def times_baseline(arm: Arm, baseline: Arm, key: Key, generation: int) -> Ratio | None:
    """Geometric mean over seeds of the arm's value over the baseline's, by Student's t on logs.

    Ratios, because variances and distances spread over orders of magnitude. None for no pair of
    seeds, and where a value is not positive; with one pair there is no interval.
    """
    logs = []
    for pair in pairs_of(arm, baseline):
        values = [v for c in pair if (g := c.at(generation)) and (v := g.value(key)) is not None]
        if len(values) < 2 or not 0 < min(values) <= max(values) < math.inf:
            return None
        logs.append(math.log(values[0]) - math.log(values[1]))
    if not logs:
        return None
    found = mean_estimate(logs)
    value, low, high = (
        None if x is None else math.exp(min(x, 700.0)) for x in (found.value, found.low, found.high)
    )
    return Ratio(value, low, high, "none", found.over, found.p)
