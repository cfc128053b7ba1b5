"""Sentences drawn from the numbers: the headline, each arm's fate, and how it was judged."""

from __future__ import annotations

from collections.abc import Sequence

from fortifai.report.compare import (
    Gap,
    claims,
    gaps,
    kr_change,
    kr_difference,
    last_of,
    last_shared,
    mean_at,
    times_baseline,
    to_first_run,
)
from fortifai.report.names import describe, leads
from fortifai.report.numbers import number, signed
from fortifai.report.records import FIRST, KR, Arm, Key, Run


def state(runs: Sequence[Run]) -> str:
    """How far the runs have got."""
    done, planned = (sum(getattr(run, what) for run in runs) for what in ("finished", "planned"))
    if done >= planned:
        return f"all {planned} generations finished"
    return f"{done} of {planned} generations finished so far"


def headline(runs: Sequence[Run]) -> str:
    """What happened to the baseline, or what differs between runs: on what leads, on held-out data.

    Of several runs, arms of one name are compared with those of the first run.
    """
    if len(runs) > 1:
        return _between(runs)
    run = runs[0]
    arm, keys = run.baseline or run.arms[0], leads(run.measures, run.arms)
    last = last_of(arm, keys[0]) if keys else None
    if last is None:
        return "Recursive training, generation by generation"
    name = f"{describe(run.measures, keys[0])}, under {arm.label}"
    if last == 0:
        return f"{name}: {number(mean_at(arm, keys[0], 0))}"
    change = kr_change(arm, 0, 0, last) if keys[0] == (KR, FIRST) else None
    significant = "" if change is None or change.sure else " (not statistically significant)"
    text = f"{name}: {_course(arm, keys[0], last)} within {last + 1} generations{significant}"
    for key in keys[1:]:
        there = last_of(arm, key)
        if there:
            text += f"; {describe(run.measures, key)}: {_course(arm, key, there)}"
    return text


def summary(runs: Sequence[Run]) -> list[str]:
    """The headline and, of one run, how what leads differs from the baseline.

    Of two arms with the numbers, of more under which arms.
    """
    run = runs[0]
    others = [arm for arm in run.arms if not arm.baseline]
    if len(runs) > 1 or run.baseline is None:
        told = []
    elif len(others) == 1:
        told = [
            f"Under {others[0].label}, {_sentence(run, others[0], key)}"
            for key in leads(run.measures, run.arms)
        ]
    else:
        told = verdicts(run)
    return [f"{headline(runs)}.", *told]


def _between(runs: Sequence[Run]) -> str:
    """What differs between runs, in arms of one name: on what leads, and on held-out data."""
    pairs, text = to_first_run(runs), f"{len(runs)} runs side by side"
    if not pairs:
        return f"{text}; no arm of {runs[0].label} stands in another one"
    told = []
    for key in leads(runs[0].measures, runs[0].arms):
        if found := gaps(pairs, key):
            told.append(f"{describe(runs[0].measures, key)}: {_furthest(found)}")
    return ". ".join([text, "; ".join(told)] if told else [text])


def _furthest(found: Sequence[Gap]) -> str:
    """The arm that differs most surely, with its interval, and how many others do."""
    if all(gap.value == gap.none for gap in found):
        return "no difference"
    sure = [gap for gap in found if gap.sure]
    one = min(sure or found, key=lambda gap: (1.0 if gap.p is None else gap.p, gap.arm))
    ends = [end for end in (one.low, one.high) if end is not None]
    if one.none:
        value, told = f"{number(one.value)} times {one.other}", [number(end) for end in ends]
    else:
        side = "above" if one.value > 0 else "below"
        value, told = f"{abs(one.value):.2f} {side} {one.other}", [signed(end) for end in ends]
    interval = f"95\u00a0% interval {' to '.join(told)}" if len(told) == 2 else "no interval"
    text = f"{one.arm} {value} ({interval})"
    if not sure:
        return f"no statistically significant difference, {text}"
    return text + (f" and {len(sure) - 1} more" if len(sure) > 1 else "")


def verdicts(run: Run) -> list[str]:
    """For each score that is told of every arm: under which arms it differs from the baseline."""
    out, base = [], run.baseline
    if base is None or len(run.arms) == 1:
        return []
    for key in leads(run.measures, run.arms):
        found, name = claims(run, key), describe(run.measures, key)
        told = [
            f"{side} under {', '.join(arms)}"
            for side, above in (("higher", True), ("lower", False))
            if (arms := [arm for arm, (over, p) in found.items() if p < 0.05 and over == above])
        ]
        rest = [arm for arm, (_, p) in found.items() if p >= 0.05]
        told += [f"no statistically significant difference: {', '.join(rest)}"] if rest else []
        text = "; ".join(told) or "no interval, so that no difference is claimed"
        out.append(f"{name}, against {base.label}: {text}.")
    return out


def sentence(run: Run, arm: Arm) -> str:
    """What happened to an arm, and how that compares with the baseline."""
    told = [_sentence(run, arm, key) for key in leads(run.measures, run.arms)]
    told += ["It is the baseline."] if arm.baseline else []
    stopped = [chain.ended for chain in arm.chains if chain.ended]
    if stopped:
        all_of_them = len(stopped) == len(arm.chains)
        who = "It" if all_of_them else f"{len(stopped)} of {len(arm.chains)} seeds"
        told.append(f"{who} ended: {stopped[0].reason}.")
    return " ".join(told) or "has no value of it yet."


def _sentence(run: Run, arm: Arm, key: Key) -> str:
    name, last = describe(run.measures, key), last_of(arm, key)
    if last is None:
        return f"{name}: no value yet."
    text = f"{name}: {_course(arm, key, last)}"
    text += f" (generation 0 to {last})" if last else ""
    if arm.baseline or run.baseline is None:
        return f"{text}."
    return f"{text}; {_versus(arm, run.baseline, key)}"


def _course(arm: Arm, key: Key, last: int) -> str:
    """The first and the last value."""
    ends = [number(mean_at(arm, key, generation)) for generation in dict.fromkeys((0, last))]
    return "\u00a0→\u00a0".join(ends)


def _versus(arm: Arm, baseline: Arm, key: Key) -> str:
    there = last_shared(arm, baseline, key)
    none = f"no paired comparison with {baseline.label}."
    if there is None:
        return none
    where = f"{baseline.label} at generation {there}"
    gap = kr_difference(arm, baseline, 0, there) if key == (KR, FIRST) else None
    if gap is not None:
        interval = ""
        if gap.low is not None and gap.high is not None:  # else one seed and one question
            interval = f", 95\u00a0% interval {signed(gap.low)} to {signed(gap.high)}"
        if gap.sure:
            side = "above" if gap.value > 0 else "below"
            return f"{abs(gap.value):.2f} {side} {where}{interval}."
        return f"no statistically significant difference to {where}: {signed(gap.value)}{interval}."
    times = times_baseline(arm, baseline, key, there)
    if times is None:
        return none
    if times.low is None or times.high is None:
        return f"{number(times.value)} times {where} (one seed: no interval)."
    span = f"95\u00a0% interval {number(times.low)} to {number(times.high)}"
    if times.low <= 1 <= times.high:
        return (
            f"no statistically significant difference to {where}: {number(times.value)} times it, "
            f"{span}."
        )
    return f"{number(times.value)} times {where}, {span}."


def method(runs: Sequence[Run]) -> str:
    """How the sentences judge differences."""
    arms = [arm for run in runs for arm in run.arms]
    several = max(len(arm.chains) for arm in arms) > 1
    told = []
    if any(chain.generations[0].answers for arm in arms for chain in arm.chains):
        drawn = "seeds and questions" if several else "questions (one seed: none of others)"
        told.append(
            "Knowledge Retention (KR): share of questions about the first split whose true "
            "continuation the model finds likelier than the false one; 0.5 is chance. Intervals of "
            f"differences: Student's t over {drawn}, paired by question."
        )
    if any(key != (KR, FIRST) for run in runs for key in leads(run.measures, run.arms)):
        told.append(
            "Ratios to the baseline: geometric mean over seeds, paired by seed; intervals: "
            "Student's t on the logarithms."
        )
    if any(run.baseline and len(run.arms) > 1 for run in runs):
        told.append(
            "Each interval is of one difference; which arms differ is said at the 5 % level after "
            "Holm's correction over the arms."
        )
    return " ".join(told)
