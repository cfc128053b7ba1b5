"""What a report is made from: runs, arms, chains and generations as plain records."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai.evals.phases import PhaseRule
from fortifai.lab.measures import About, Score
from fortifai.lab.spec import FailureLevel
from fortifai.lab.store import End
from fortifai.lab.times import Took

KR = "kr.mean"
"""The score whose questions are kept one by one, so that arms are paired by question."""
FIRST = "split-0"

Floats = NDArray[np.float64]
Key = tuple[str, str]
"""A score's name, and the data it was measured on."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """What the model answered to each KR question (mean log-probability per token).

    Attributes:
        ids: The question's name, equal in all arms, seeds and generations. Shape (n,).
        split: The split its fact stands in. int64, shape (n,).
        right: 1 right, 0 wrong, 0.5 a tie. float64, shape (n,).
    """

    ids: tuple[str, ...]
    split: NDArray[np.int64]
    right: Floats


@dataclasses.dataclass(frozen=True, slots=True)
class FormatAnswers:
    """How a generation did on every question in one format; arrays of shape (n,), float64.

    Attributes:
        ids: The question's name, equal in all arms, seeds and generations.
        right: 1 right, 0 wrong, a share where options tie.
        adherent: The answer keeps to the format, 0 or 1.
        confidence: Probability of the chosen answer.
        chance: What guessing gives, over all questions.
    """

    ids: tuple[str, ...]
    right: Floats
    adherent: Floats
    confidence: Floats
    chance: float


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
    """A followed passage after it was generated `generation` times; 0 is the real text."""

    split: int
    start: int
    generation: int
    tokens: tuple[str, ...]
    changed: tuple[bool, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Generation:
    """One finished generation of one arm and seed; mappings are as their files hold them."""

    number: int
    scores: Mapping[Key, Score]
    ledger: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    histograms: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    perplexities: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    picture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    engine: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, NDArray[np.uint8]] = dataclasses.field(default_factory=dict)
    passages: tuple[Passage, ...] = ()
    answers: Answers | None = None
    formats: Mapping[str, FormatAnswers] = dataclasses.field(default_factory=dict)
    took: Took | None = None

    def value(self, key: Key) -> float | None:
        """The value of a score, or None where it was not taken."""
        score = self.scores.get(key)
        return None if score is None else score.value


@dataclasses.dataclass(frozen=True, slots=True)
class Chain:
    """The finished generations of one arm and seed, in order; a damaged one may be missing.

    Attributes:
        seed: Its seed.
        generations: Those that were measured and are whole.
        due: Numbers of all that are measured when the chain is complete.
        ended: Where and why it could not go on, if so.
    """

    seed: int
    generations: tuple[Generation, ...]
    due: tuple[int, ...]
    ended: End | None = None

    def at(self, number: int) -> Generation | None:
        """Generation `number`, or None."""
        place = bisect.bisect_left(self.generations, number, key=lambda g: g.number)
        found = self.generations[place : place + 1]
        return found[0] if found and found[0].number == number else None

    def values(self, key: Key) -> list[float]:
        """Values from generation 0 on, up to the first one that lacks the score or is NaN.

        The n-th is that of generation ``due[n]``.
        """
        out: list[float] = []
        for generation, number in zip(self.generations, self.due, strict=False):
            value = generation.value(key)
            if value is None or math.isnan(value) or generation.number != number:
                break
            out.append(value)
        return out


@dataclasses.dataclass(frozen=True, slots=True)
class Arm:
    """One arm with its seeds.

    Attributes:
        name: As in the configuration.
        label: As it is shown: with the run's label before it where several runs are shown.
        run: Label of its run.
        baseline: It is what its run compares with.
        settings: The arm's part of the configuration.
        chains: Seeds that have at least one finished generation.
    """

    name: str
    label: str
    run: str
    baseline: bool
    settings: Mapping[str, Any]
    chains: tuple[Chain, ...]

    @property
    def numbers(self) -> list[int]:
        """Generations that any seed measured, in order."""
        return sorted({g.number for chain in self.chains for g in chain.generations})

    @property
    def last(self) -> int:
        """The last generation that any seed finished."""
        return self.numbers[-1]

    def scores(self, key: Key, number: int) -> list[Score]:
        """A score of one generation, of every seed that has it."""
        found = [g for chain in self.chains if (g := chain.at(number))]
        return [g.scores[key] for g in found if key in g.scores]


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One run folder.

    Attributes:
        label: Its name, told apart from those of others.
        yaml: Its configuration, as it is written.
        unit: What samples are counted in.
        head: On what machine it ran, with which versions.
        measures: What was measured, in the order in which it is drawn.
        notes: What a reader should know, damage included.
        levels: The declared levels of failure.
        planned: Generations that are measured when all chains are complete.
        arms: Those that have a finished generation.
        prediction: What theory says, by arm.
        rule: When a phase of knowledge collapse begins.
        damage: Damaged files, with what is left out for them.
    """

    label: str
    yaml: str
    unit: str
    head: Mapping[str, Any]
    measures: tuple[About, ...]
    notes: tuple[str, ...]
    levels: tuple[FailureLevel, ...]
    planned: int
    arms: tuple[Arm, ...]
    prediction: Mapping[str, Mapping[str, Sequence[float]]] = dataclasses.field(
        default_factory=dict
    )
    rule: PhaseRule = dataclasses.field(default_factory=PhaseRule)
    damage: tuple[str, ...] = ()

    @property
    def baseline(self) -> Arm | None:
        """The arm that others are compared with, if it has a finished generation."""
        return next((arm for arm in self.arms if arm.baseline), None)

    @property
    def finished(self) -> int:
        """Finished generations, over all arms and seeds."""
        return sum(len(chain.generations) for arm in self.arms for chain in arm.chains)


def generations(arms: Sequence[Arm]) -> list[Generation]:
    """All generations of arms, arm by arm and seed by seed."""
    return [g for arm in arms for chain in arm.chains for g in chain.generations]
