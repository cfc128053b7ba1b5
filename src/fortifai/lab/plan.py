"""What a run will do, known before it does anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fortifai.lab.domain import Domain
from fortifai.lab.regimes import Regime
from fortifai.lab.spec import AnyExperiment

_EXACT = 100
"""Generations that are counted one by one; behind them, training sets grow evenly or not at all."""
_SHOWN = 6
"""Generations whose real share is told, before the last one's."""


@dataclasses.dataclass(frozen=True, slots=True)
class ArmPlan:
    """What one arm will do, over all generations and seeds.

    Attributes:
        arm: Its name.
        trained: Samples read in training.
        steps: Optimizer steps; 0 where there are none. Where training sets grow, those behind the
            100th generation are estimated, to a step a generation.
        rewritten: Samples written.
        real_share: Share of real data that the first generations train on; where there are more
            than eight, of the first six and the last.
    """

    arm: str
    trained: int
    steps: int
    rewritten: int
    real_share: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run will do, known before it does anything.

    Attributes:
        arms: What each arm will do.
        chains: Names of the chains of each arm, one a seed or one for all seeds.
        seeds: How many.
        generations: How many.
        unit: What samples are counted in.
        facts: What there is to say of the data, name and value.
        disk_bytes: About how much the run folder will hold.
        notes: What a user should know.
    """

    arms: tuple[ArmPlan, ...]
    chains: tuple[str, ...]
    seeds: int
    generations: int
    unit: str
    facts: tuple[tuple[str, str], ...]
    disk_bytes: int
    notes: tuple[str, ...]


def plan(experiment: AnyExperiment, data: Domain) -> RunPlan:
    """Samples, steps and disk of a run; takes no longer for more generations."""
    arms = tuple(_plan_arm(experiment, name, data) for name in experiment.arms)
    commits = -(-experiment.generations // experiment.eval_every) + 1
    kept = commits if experiment.save_weights == "all" else 2  # the last and the next
    kept += experiment.keep_first and experiment.save_weights != "all"
    count = len(experiment.arms) * len(experiment.chains())
    written = sum(a.rewritten for a in arms) * data.sample_bytes
    if experiment.save_samples == "needed":
        chain_seeds = len(experiment.arms) * len(experiment.seeds)
        written = min(written, 2 * len(data.real[0]) * data.sample_bytes * chain_seeds)
    return RunPlan(
        arms=arms,
        chains=tuple(experiment.chains()),
        seeds=len(experiment.seeds),
        generations=experiment.generations,
        unit=experiment.unit,
        facts=data.facts,
        disk_bytes=data.model_bytes * (kept * count + 1) + written,
        notes=data.notes,
    )


def _plan_arm(experiment: AnyExperiment, name: str, data: Domain) -> ArmPlan:
    regime, seeds = experiment.arms[name].regime, len(experiment.seeds)
    counted = min(experiment.generations, _EXACT)
    behind = experiment.generations - counted
    totals, real, rewritten = zip(
        *(_step(regime, g, experiment.split_count, len(data.real[0])) for g in range(counted)),
        strict=True,
    )
    efforts = [data.effort(name, total) for total in totals]
    trained, steps, written = (*map(sum, zip(*efforts, strict=True)), sum(rewritten))
    shares = [n / total for n, total in zip(real, totals, strict=True)]
    if behind:
        first, last = _ahead(totals, 1), _ahead(totals, behind)
        ends = [data.effort(name, first), data.effort(name, last)]
        trained += behind * (ends[0][0] + ends[1][0]) // 2
        steps += behind * (ends[0][1] + ends[1][1]) // 2
        written += behind * (_ahead(rewritten, 1) + _ahead(rewritten, behind)) // 2
        # a share of the real data that falls does so as one over the generation
        falls = real[1] > real[-1]
        left = real[-1] * counted / experiment.generations if falls else real[-1]
        shares.append(left / last)
    if len(shares) > _SHOWN + 2:
        shares = [*shares[:_SHOWN], shares[-1]]
    return ArmPlan(name, trained * seeds, steps * seeds, written * seeds, tuple(shares))


def _ahead(counts: Sequence[int], generations: int) -> int:
    """What comes so many generations behind the counted ones, if they go on growing evenly."""
    return counts[-1] + generations * (counts[-1] - counts[-2])


def _step(regime: Regime, generation: int, splits: int, size: int) -> tuple[int, int, int]:
    """Samples that one generation of one seed trains on, the real ones among them, and writes."""
    step = regime.plan(generation, splits)
    parts = [(part, _share(size, part.between)) for part in step.train]
    real = sum(n for part, n in parts if part.generation == 0)
    return sum(n for _, n in parts), real, size * len(step.rewrites)


def _share(size: int, between: tuple[float, float]) -> int:
    # rounded at both ends, as the loop does: the shares of many parts then add up to the whole
    return round(size * between[1]) - round(size * between[0])
