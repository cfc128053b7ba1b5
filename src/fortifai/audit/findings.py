"""What an audit found, and the rule by which it speaks of collapse."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from fortifai.errors import InputError
from fortifai.evals.diversity import Comparison
from fortifai.stats.sample import Interval

Worse = Literal["higher", "lower"]

VERSION = 1
"""Of what `Audit.record` returns; it rises when a key changes its meaning or goes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Levels:
    """How far a number may be on the wrong side before it is evidence of collapse.

    They are conventions, not laws: chosen so that models trained on human text alone stay under
    them with room to spare, and models of a few generations do not.

    Attributes:
        entropy: Nats by which the text's unigram entropy is below the reference's.
        tail: Share of tokens that are rare in the reference, lost.
        repetition: Share of 4-grams repeated within a window, gained.
        duplication: Share of 3-grams that stand more than once, gained.
        copies: Share of documents that are copies of others, or nearly so, gained.
        confidence: Mean probability on the model's own text above that on human text.
        knowledge: Share of right answers lost against the base model.
        coverage: pass@k lost against the base model.

    Raises:
        InputError: A level is not above 0.
    """

    entropy: float = 0.3
    tail: float = 0.05
    repetition: float = 0.1
    duplication: float = 0.1
    copies: float = 0.05
    confidence: float = 0.2
    knowledge: float = 0.05
    coverage: float = 0.05

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
        level: How far into that direction is evidence; None for what is not judged.
        family: What it tells of: ``diversity``, ``tails``, ``repetition`` and so on.
        source: The part of a corpus that it is of; "" is all of it.
        p: That of a test of no difference, by Holm's correction over all findings; or None.
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
    family: str = ""
    source: str = ""
    p: float | None = None

    @property
    def way(self) -> float | None:
        """The difference in units of its level, towards collapse; None without a level above 0."""
        if not self.level or self.difference is None:
            return None
        return (1 if self.worse == "higher" else -1) * self.difference.value / self.level

    @property
    def evidence(self) -> bool:
        """Whether it is evidence of collapse.

        The difference is beyond the level, and all of its interval is beyond the noise floor, both
        in the direction that is worse; where it is one of many, it is significant at 5 % as one of
        them all.
        """
        if self.worse is None or self.level is None or self.difference is None:
            return False
        if self.p is not None and self.p >= 0.05:
            return False
        up = 1 if self.worse == "higher" else -1
        near = self.difference.low if up > 0 else -self.difference.high
        return up * self.difference.value >= self.level and near > (self.floor or 0.0)


def signed(value: float) -> str:
    """A difference in a sentence: three digits that matter, its sign, and a real minus."""
    return f"{value:+.3g}".replace("-", "\u2212")


def finite(value: Any) -> Any:
    """Plain values with None for NaN, which JSON has not."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def judged(
    name: str,
    title: str,
    against: str,
    found: Comparison,
    unit: str,
    worse: Worse | None,
    levels: Levels,
    family: str,
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
        family,
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
        solved: By model, how many questions had 0, 1, ... right answers of several.
    """

    subject: str
    reference: str
    findings: tuple[Finding, ...]
    sampled: str
    not_measured: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    histograms: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    examples: tuple[tuple[str, str, str], ...] = ()
    solved: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    @property
    def evidence(self) -> tuple[Finding, ...]:
        """The findings that are evidence of collapse."""
        return tuple(found for found in self.findings if found.evidence)

    @property
    def collapsed(self) -> bool:
        """Whether there is any evidence of it."""
        return bool(self.evidence)

    @property
    def comparable(self) -> bool:
        """Whether what was compared is of one kind."""
        return True

    @property
    def headline(self) -> str:
        """The verdict in a few words."""
        if not self.collapsed:
            return "no evidence of collapse"
        families = dict.fromkeys(found.family for found in self.evidence)
        return f"evidence of collapse in: {', '.join(families)}"

    @property
    def verdict(self) -> str:
        """One sentence."""
        count = sum(found.level is not None for found in self.findings)
        if not self.collapsed:
            return f"No evidence of collapse: all of {count} checks passed{self._nearest()}."
        titles = "; ".join(
            f"{found.title} (against {found.against}"
            + (f", source {found.source})" if found.source else ")")
            for found in self.evidence
        )
        return f"Evidence of collapse: {len(self.evidence)} of {count} checks failed: {titles}."

    @property
    def next_step(self) -> str:
        """What to do now, by the verdict, in a sentence."""
        if self.collapsed:
            return (
                "train with real data in every round, then with a cure (docs/cures.md) or a loss "
                "(docs/losses.md; `fortifai threshold` suggests its threshold), and audit that "
                "model; a base model (--base) tells collapse from what was always so."
            )
        return (
            "audit the model of the next round with the same text and seed; while it trains, "
            "CollapseMonitor watches for the same signs (docs/trainers.md)."
        )

    def _nearest(self) -> str:
        """Which check came nearest to being evidence."""
        ways = [(found.way, found) for found in self.findings if found.way is not None]
        if not ways:
            return ""
        way, found = max(ways, key=lambda pair: pair[0])
        where = f" (source {found.source})" if found.source else ""
        if way <= 0:
            return ", and none differs towards collapse"
        if way >= 1:
            return f"; {found.title}{where} is beyond its level, and within noise"
        return f"; nearest to its level is {found.title}{where}, {way:.0%} of the way"

    def record(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        rows = [dataclasses.asdict(found) | {"evidence": found.evidence} for found in self.findings]
        return {
            "version": VERSION,
            "subject": self.subject,
            "reference": self.reference,
            "collapsed": self.collapsed,
            "verdict": self.verdict,
            "next": self.next_step,
            "findings": rows,
            "sampled": self.sampled,
            "not_measured": list(self.not_measured),
            "remarks": list(self.remarks),
            "histograms": {name: list(counts) for name, counts in self.histograms.items()},
            "solved": {name: list(counts) for name, counts in self.solved.items()},
        }
