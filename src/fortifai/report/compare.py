"""What may be said of the numbers: differences and changes with intervals, and times to failure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from fortifai.report.records import FIRST, KR, Arm, Chain, Run
from fortifai.stats import Estimate, Over, holm, paired_difference


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
    """An arm against its run's baseline on the same seeds and questions.

    Attributes:
        arm: Label of the arm.
        generation: The last one that both measured in every seed that they share.
        gap: KR of the arm minus the baseline's, with an interval over seeds and questions.
        these: The same over questions alone: what may be said of these models, not of the arms.
        corrected: Its p-value after Holm's correction over the arms of the run.
    """

    arm: str
    generation: int
    gap: Estimate
    these: Estimate
    corrected: float | None


def differences(run: Run, split: int | None) -> list[Difference]:
    """How each arm's KR differs from the baseline's, as many claims as there are arms.

    Args:
        run: The run.
        split: Of which the questions are; None: of all.
    """
    if run.baseline is None:
        return []
    on = "total" if split is None else FIRST if split == 0 else f"split-{split}"
    found = []
    for arm in run.arms:
        there = None if arm.baseline else last_shared(arm, run.baseline, KR, on)
        if there is None:
            continue
        sides = [_answers(one, split, there) for one in (arm, run.baseline)]
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
