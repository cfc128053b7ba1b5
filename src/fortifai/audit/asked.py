"""What a model was asked: findings of questions, of coverage and of benchmarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fortifai.audit.findings import Finding, Levels, Worse, signed
from fortifai.evals import coverage as coverage_
from fortifai.evals import kr_test
from fortifai.evals.coverage import Coverage, Covered
from fortifai.lab.measures import Score
from fortifai.stats.sample import Interval, sample_mean, share

if TYPE_CHECKING:
    from fortifai.data.questions import Question
    from fortifai.models.causal_lm import CausalLM

Floats = NDArray[np.float64]
Tick = Callable[[str, int, int], None]


def shifted(found: Interval, by: float) -> Interval:
    """An interval moved by a constant."""
    return Interval(found.value + by, found.low + by, found.high + by)


def paired(now: Floats, before: Floats) -> tuple[float, float, Interval]:
    """Two means of the same items, and their difference with its interval over items."""
    return float(now.mean()), float(before.mean()), sample_mean(now - before)


# --- knowledge --------------------------------------------------------------------------------


def knowledge(
    lm: CausalLM,
    base: CausalLM | None,
    base_name: str,
    questions: Sequence[Question],
    levels: Levels,
    tick: Tick,
) -> list[Finding]:
    """Knowledge Retention, against chance and against the base model."""
    right = kr_test.kr_test(lm, questions).right("mean")
    tick("questions", 1, 1 if base is None else 2)
    title = f"KR, {len(questions):,} questions"
    chance = Finding(
        "knowledge", title, "chance", float(right.mean()), 0.5,
        shifted(sample_mean(right), -0.5), unit="share",
    )  # fmt: skip
    if base is None:
        return [chance]
    before = kr_test.kr_test(base, questions).right("mean")
    tick("questions", 2, 2)
    value, reference, change = paired(right, before)
    since = Finding(
        "knowledge.base", title, base_name, value, reference, change, None, "share", "lower",
        levels.knowledge, "knowledge",
    )  # fmt: skip
    return [chance, since]


# --- coverage ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Asked:
    """What coverage found.

    Attributes:
        findings: Of the model, and of what has changed since the base model.
        remarks: What to know of them, in words.
        solved: By model, how many questions have 0, 1, ... right answers.
    """

    findings: tuple[Finding, ...] = ()
    remarks: tuple[str, ...] = ()
    solved: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


def coverage(
    models: Sequence[tuple[str, CausalLM]],
    asked: Coverage,
    levels: Levels,
    seed: int,
    tick: Tick,
) -> Asked:
    """Distinct answers, pass@1 and pass@k, with intervals over questions.

    Against the base model the differences are of the same questions, sampled with the same random
    numbers. Judged is pass@k: distinct answers and the gap shrink in a model that gets better, too.

    Args:
        models: The model by its name, and its base model if there is one.
        asked: The questions.
        levels: What counts as evidence.
        seed: Of the sampling.
        tick: Told what is being done, and how much of it is.
    """
    found = [
        coverage_.cover(lm, asked, seed=seed, tick=lambda i, n: tick("answers", i, n))
        for _, lm in models
    ]
    rows = [_measured(covered, asked) for covered in found]
    out = [
        Finding(f"coverage.{name}", title, "", float(values.mean()), None, _around(values, unit),
                None, unit, family="coverage")
        for name, (title, values, unit) in rows[0].items()
    ]  # fmt: skip
    told: tuple[str, ...] = (
        f"coverage: {len(asked.asked):,} questions, {asked.samples} answers each at temperature 1, "
        f"at most {asked.answer_tokens:,} tokens",
    )
    if len(models) > 1:
        since, narrower = _since(rows, models[1][0], asked.of, levels)
        out += since
        told += narrower
    solved = {name: covered.solved for (name, _), covered in zip(models, found, strict=True)}
    return Asked(tuple(out), told, solved)


Measured = dict[str, tuple[str, Floats, str]]
"""By name: title, a number for each question, unit."""


def _measured(found: Covered, asked: Coverage) -> Measured:
    n, k = asked.samples, asked.of
    one, several = found.passed(1), found.passed(k)
    return {
        "pass@1": ("pass@1", one, "share"),
        f"pass@{k}": (f"pass@{k}", several, "share"),
        "gap": (f"pass@{k} over pass@1", several - one, "share"),
        "distinct": (f"distinct answers of {n}", found.distinct, "answers"),
        "always": (f"questions solved by all {n}", (found.counts == n).astype(np.float64), "share"),
        "answered": ("samples with an answer", found.answered, "share"),
    }


def _around(values: Floats, unit: str) -> Interval:
    """A mean with its interval: Wilson's where all values are 0 or 1, else Student's."""
    if unit == "share" and np.isin(values, (0.0, 1.0)).all():
        return share(values)
    found = sample_mean(values)
    # a share is none beyond 0 and 1
    high = min(found.high, 1.0) if unit == "share" else found.high
    return Interval(found.value, max(found.low, 0.0), high)


def _since(
    rows: Sequence[Measured], base: str, k: int, levels: Levels
) -> tuple[list[Finding], tuple[str, ...]]:
    out = {}
    for name, (title, now, unit) in rows[0].items():
        worse: Worse | None = "lower" if name == f"pass@{k}" else None
        value, reference, change = paired(now, rows[1][name][1])
        out[name] = Finding(
            f"coverage.{name}.base", title, base, value, reference, change, None, unit, worse,
            levels.coverage if worse else None, "coverage",
        )  # fmt: skip
    one, several = (out[name].difference for name in ("pass@1", f"pass@{k}"))
    assert one is not None
    assert several is not None
    if not (one.low > 0 and several.high < 0):
        return list(out.values()), ()
    judged = out[f"pass@{k}"]
    out[f"pass@{k}"] = dataclasses.replace(judged, title=f"{judged.title}, while pass@1 rose")
    told = (
        f"narrower than {base}: pass@1 {_told(one)}, pass@{k} {_told(several)}; what it solves it "
        "solves more often, and it solves fewer questions at all"
    )
    return list(out.values()), (told,)


def _told(found: Interval) -> str:
    return f"{signed(found.value)} ({signed(found.low)} to {signed(found.high)})"


# --- benchmarks -------------------------------------------------------------------------------


def benchmark(score: Score) -> Finding:
    """A score that is shown."""
    reach = None if score.stderr is None else 1.96 * score.stderr
    around = (
        None if reach is None else Interval(score.value, score.value - reach, score.value + reach)
    )
    return Finding(
        score.measure, score.measure, "", score.value, None, around, None, score.unit or ""
    )
