"""The measure that a report leads with where there are no Knowledge Retention questions."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from fortifai.report.compare import last_of, last_shared, mean_at
from fortifai.report.records import FIRST, Arm
from fortifai.report.text import DASH, MINUS
from fortifai.stats import Ratio, mean_interval


@dataclasses.dataclass(frozen=True, slots=True)
class Lead:
    """A measure in words.

    Attributes:
        measure: Its name.
        on: What it was measured on.
        name: What it is called in a sentence.
        paired: Whether arms may be compared seed by seed: they draw the same random numbers.
    """

    measure: str
    on: str
    name: str
    paired: bool = True


_LEADS = (
    Lead("perplexity", FIRST, "Perplexity of the original first split", paired=False),
    Lead("spread", "rewritten", "Spread of the draws' codes"),
    Lead("variance.ratio", "model", "Variance"),
)
_MIXTURE = Lead("wasserstein", "rewritten", "Distance from the real points (Wasserstein-1)")


def lead(arms: Sequence[Arm]) -> Lead | None:
    """The first leading measure that any of the arms has; mixtures have their own."""
    if any(last_of(arm, "components.kept", "model") is not None for arm in arms):
        return _MIXTURE
    for candidate in _LEADS:
        if any(last_of(arm, candidate.measure, candidate.on) is not None for arm in arms):
            return candidate
    return None


def number(value: float | None, digits: int | None = None) -> str:
    """A value in print: so many digits, or about three that matter."""
    if value is None:
        return DASH
    if digits is not None and 0.001 <= abs(value) < 1e6:
        return f"{value:.{digits}f}"
    size = abs(value)
    if size >= 1e7 or 0 < size < 0.01:
        # without the exponent's zeros, and with a minus that no line breaks at
        return re.sub(r"e([+-])0*", r"e\1", f"{value:.3g}").replace("e-", f"e{MINUS}")
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def headline(arm: Arm, told: Lead | None) -> str:
    """One sentence on what happened to an arm."""
    last = last_of(arm, told.measure, told.on) if told else None
    if told is None or last is None:
        return "Recursive training, generation by generation"
    first, end = (mean_at(arm, told.measure, told.on, g) for g in (0, last))
    if first is None or end is None:
        return "Recursive training, generation by generation"
    if last == 0:
        return f"{told.name} under {arm.label}: {number(first)}"
    return (
        f"{told.name} under {arm.label}: {number(first)}\u00a0→\u00a0{number(end)} within "
        f"{last + 1} generations"
    )


def sentence(arm: Arm, baseline: Arm | None, told: Lead | None) -> str:
    """What happened to an arm, and how that compares with the baseline."""
    last = last_of(arm, told.measure, told.on) if told else None
    if told is None or last is None:
        return "was not measured on the first split."
    first, end = (mean_at(arm, told.measure, told.on, g) for g in (0, last))
    name = told.name[0].lower() + told.name[1:]
    text = f"{name} {number(first)}"
    if last:
        text += f" → {number(end)} (generation 0 to {last})"
    stopped = [c.ended for c in arm.chains if c.ended]
    if stopped:
        who = (
            "it"
            if len(stopped) == len(arm.chains)
            else f"{len(stopped)} of {len(arm.chains)} seeds"
        )
        text += f", where {who} ended: {stopped[0].reason}"
    if arm.baseline or baseline is None:
        return text + ("; the baseline." if arm.baseline else ".")
    return f"{text}; {_versus(arm, baseline, told)}"


def _versus(arm: Arm, baseline: Arm, told: Lead) -> str:
    there = last_shared(arm, baseline, told.measure, told.on)
    gap = _gap(arm, baseline, told, there) if there is not None else None
    if gap is None or gap.low is None or gap.high is None:
        return f"no paired comparison with {baseline.label}."
    span = f"95\u00a0% interval {number(gap.low)} to {number(gap.high)}"
    if gap.low <= 1 <= gap.high:
        return (
            f"not distinguishable from {baseline.label} at generation {there}: "
            f"{number(gap.value)} times it, {span}."
        )
    return f"{number(gap.value)} times {baseline.label} at generation {there}, {span}."


def _gap(arm: Arm, baseline: Arm, told: Lead, generation: int) -> Ratio | None:
    """Geometric mean over seeds of the arm's value over the baseline's, by Student's t on logs.

    Ratios, because variances and distances spread over orders of magnitude.
    """
    logs = []
    for chain in arm.chains:
        other = next((c for c in baseline.chains if c.seed == chain.seed), None)
        pair = [c.at(generation) if c else None for c in (chain, other)]
        values = [v for g in pair if g and (v := g.value(told.measure, told.on)) is not None]
        if not told.paired or len(values) < 2 or min(values) <= 0:
            return None
        logs.append(math.log(values[0]) - math.log(values[1]))
    interval = mean_interval(logs)
    if interval is None:
        return None
    mean = sum(logs) / len(logs)
    return Ratio(_exp(mean), _exp(interval[0]), _exp(interval[1]), "none", "seeds")


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
