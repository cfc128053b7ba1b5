"""How measures, their scores and numbers are called and written in print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fortifai.lab.measures import About, Line
from fortifai.report.records import Arm, Key, generations

TELLING = ("rewritten-0", "rewritten", "written", "held-out", "split-0", "model", "train")
"""Data in the order in which a measure that says no lines is drawn on one of them."""
HELD_OUT = "held-out"
_REAL = {"rewritten-0": "split-0", "rewritten": "real", "written": "real"}
"""The real data that stand beside generated ones."""
_DATA = {
    "split-0": "first split",
    "rewritten-0": "first split as generated",
    "rewritten": "",
    "written": "first split as generated",
    "held-out": "held-out data",
    "real": "real data",
    "up-to-stage": "all splits so far",
    "total": "all splits",
    "model": "",
    "train": "",
}
"""Data in words; what a score was taken on alone is not said."""


def lines_of(measure: About, arms: Sequence[Arm]) -> list[Line]:
    """What is drawn of a measure: what it says, or all its scores that were taken."""
    if measure.lines is not None:
        return list(measure.lines)
    keys = dict.fromkeys(k for g in generations(arms) for k in g.scores if measure.owns(k[0]))
    out = []
    for score in dict.fromkeys(name for name, _ in keys):
        there = [on for name, on in keys if name == score]
        on = next((on for on in TELLING if on in there), there[0])
        real = _REAL.get(on, "real") if measure.real else ""
        real = real if real in there else "real" if measure.real and "real" in there else ""
        variant = score[len(measure.name) + 1 :]
        out.append(Line(variant if variant and len(keys) > 1 else measure.title, score, on, real))
    return out


def describe(measures: Iterable[About], key: Key) -> str:
    """A score in words, such as "Knowledge Retention, first split"."""
    score, on = key
    data = _DATA.get(on, on)
    owners = [measure for measure in measures if measure.owns(score)]
    name = score
    if owners:
        owner = max(owners, key=lambda measure: len(measure.name))
        titles = [line.title for line in owner.lines or () if line.score == score]
        if score == owner.name or {line.score for line in owner.lines or ()} == {score}:
            name = owner.title
        elif len(titles) == 1:
            name = titles[0]
        else:
            name = f"{owner.title} ({score[len(owner.name) + 1 :]})"
    return f"{name}, {data}" if data else name


def leads(measures: Iterable[About], arms: Sequence[Arm]) -> list[Key]:
    """The scores that a report begins with: the first headline, and the first on held-out data."""
    taken = {key for g in generations(arms) for key in g.scores}
    found = [key for key in headlines(measures) if key in taken]
    held_out = [key for key in found[1:] if key[1] == HELD_OUT]
    return [*found[:1], *held_out[:1]]


def headlines(measures: Iterable[About]) -> dict[Key, str]:
    """The scores that are told of every run, in order, with how their numbers are written."""
    return {(h.score, h.on): h.form for measure in measures for h in measure.headlines}
