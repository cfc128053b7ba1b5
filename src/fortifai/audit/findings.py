"""What an audit found, and the rule by which it speaks of collapse."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from fortifai.errors import InputError
from fortifai.evals.diversity import Comparison
from fortifai.stats.sample import Interval

Worse = Literal["higher", "lower"]


@dataclasses.dataclass(frozen=True, slots=True)
class Levels:
    """How far a number may be on the wrong side before it is called a sign of collapse.

    They are conventions, not laws: chosen so that models trained on human text alone stay under
    them with room to spare, and models of a few generations do not.

    Attributes:
        entropy: Nats by which the text's unigram entropy is below the reference's.
        tail: Share of tokens that are rare in the reference, lost.
        repetition: Share of 4-grams repeated within a window, gained.
        sameness: Share of 3-grams that stand more than once, gained.
        confidence: Mean probability on the model's own text above that on human text.
        knowledge: Share of right answers lost against the base model.

    Raises:
        InputError: A level is not above 0.
    """

    entropy: float = 0.3
    tail: float = 0.05
    repetition: float = 0.1
    sameness: float = 0.1
    confidence: float = 0.2
    knowledge: float = 0.05

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:  # true for NaN, too
                raise InputError(f"level {name} is {value}; it must be above 0")


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One number of an audit.

    Attributes:
        name: Of the measure, such as ``entropy``.
        title: The measure in words.
        against: What it is compared with: ``human text``, the base model, a corpus, or nothing.
        value: The number.
        reference: That of what it is compared with, or None.
        difference: value - reference with its 95 % interval, or the value's own; None where there
            is none.
        floor: What sampling alone does to the difference, in 95 of 100 cases; or None.
        unit: Of all of them.
        worse: Which direction is that of collapse; None for what is shown and not judged.
        level: How far into that direction is a sign; None for what is not judged.
    """

    name: str
    title: str
    against: str
    value: float
    reference: float | None = None
    difference: Interval | None = None
    floor: float | None = None
    unit: str = ""
    worse: Worse | None = None
    level: float | None = None

    @property
    def sign(self) -> bool:
        """Whether it is a sign of collapse.

        The difference is beyond the level, and all of its interval is beyond the noise floor, both
        in the direction that is worse.
        """
        if self.worse is None or self.level is None or self.difference is None:
            return False
        up = 1 if self.worse == "higher" else -1
        near = self.difference.low if up > 0 else -self.difference.high
        return up * self.difference.value >= self.level and near > (self.floor or 0.0)


def judged(
    name: str,
    title: str,
    against: str,
    found: Comparison,
    unit: str,
    worse: Worse | None,
    levels: Levels,
) -> Finding:
    """A finding from a comparison, judged by the level of its name where a direction is worse."""
    level = getattr(levels, name) if worse else None
    return Finding(
        name,
        title,
        against,
        found.own,
        found.reference,
        found.difference,
        found.floor,
        unit,
        worse,
        level,
    )


@dataclasses.dataclass(frozen=True)
class Audit:
    """What was found of a model or a corpus.

    Attributes:
        subject: What was audited.
        reference: What it was compared with.
        findings: All numbers, those that are judged first.
        sampled: What was drawn and how, in words.
        not_measured: What this audit did not look at, in words.
        remarks: What to know of how something was measured, in words.
        histograms: Counts of confidences in the 20 equal bins of [0, 1], by text.
        examples: Some of what the model wrote: (prompt, what it wrote, what stood there).
    """

    subject: str
    reference: str
    findings: tuple[Finding, ...]
    sampled: str
    not_measured: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    histograms: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    examples: tuple[tuple[str, str, str], ...] = ()

    @property
    def signs(self) -> tuple[Finding, ...]:
        """The findings that are signs of collapse."""
        return tuple(found for found in self.findings if found.sign)

    @property
    def collapsed(self) -> bool:
        """Whether there is any sign."""
        return bool(self.signs)

    @property
    def verdict(self) -> str:
        """One sentence."""
        count = sum(found.level is not None for found in self.findings)
        if not self.signs:
            return f"No sign of collapse: all of {count} checks passed."
        titles = "; ".join(f"{found.title} (against {found.against})" for found in self.signs)
        return f"Signs of collapse: {len(self.signs)} of {count} checks failed: {titles}."

    def record(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        rows = [dataclasses.asdict(found) | {"sign": found.sign} for found in self.findings]
        return {
            "subject": self.subject,
            "reference": self.reference,
            "collapsed": self.collapsed,
            "verdict": self.verdict,
            "findings": rows,
            "sampled": self.sampled,
            "not_measured": list(self.not_measured),
            "remarks": list(self.remarks),
            "histograms": {name: list(counts) for name, counts in self.histograms.items()},
        }
