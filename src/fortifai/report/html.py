"""One HTML file from what was read: words, tables, figures, texts. Nothing in it is ever run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fortifai.report import knowledge, lead, style
from fortifai.report.compare import (
    differences,
    kr_change,
    kr_difference,
    last_of,
    last_shared,
    mean_at,
)
from fortifai.report.distributions import ledgers, thinned
from fortifai.report.failure import Failures
from fortifai.report.lead import number
from fortifai.report.page import fill
from fortifai.report.records import FIRST, KR, Arm, Passage, Run
from fortifai.report.scene import Plot, Scene
from fortifai.report.text import DASH, MINUS, TIMES
from fortifai.stats import Estimate

Row = dict[str, Any]


def render(runs: Sequence[Run], scene: Scene, plots: Sequence[Plot], failures: Failures) -> str:
    """The report as one HTML document.

    Args:
        runs: What was read.
        scene: Arms and their looks, as the figures have them.
        plots: The figures.
        failures: Times to failure.
    """
    looks = scene.looks
    stories = [_story(run, looks) for run in runs]
    groups, rows = _summary(scene, failures)
    return fill(
        "template.html.j2",
        title=", ".join(run.label for run in runs),
        state=_state(runs),
        headline=_headline(runs),
        stories=stories,
        method=_method(runs),
        summary_groups=groups,
        summary=rows,
        summary_note=_summary_note(scene),
        failures=_failure_table(scene, failures),
        failure_note=failures.note,
        differences=_difference_table(runs, looks),
        onsets=knowledge.onset_table(scene.stories, _colours(looks)),
        decays=knowledge.decay_table(scene.stories, _colours(looks)),
        unit=scene.unit,
        plots=plots,
        passages=_passages(scene.arms, looks),
        passage_seed=_followed(scene.arms),
        ledgers=_ledger_tables(scene.arms),
        made=[_made(run) for run in runs],
    )


def _colours(looks: Mapping[str, style.Look]) -> Mapping[str, str]:
    return {label: look.colour for label, look in looks.items()}


# --- words drawn from the numbers -------------------------------------------------------------


def _state(runs: Sequence[Run]) -> str:
    done = sum(run.finished for run in runs)
    planned = sum(run.planned for run in runs)
    if done >= planned:
        return f"all {planned} generations finished"
    return f"{done} of {planned} generations finished so far"


def _headline(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs side by side"
    arm = runs[0].baseline or runs[0].arms[0]
    last = last_of(arm)
    change = kr_change(arm, 0, 0, last) if last else None
    if last is None or change is None:
        return lead.headline(arm, lead.lead(runs[0].arms))
    values = [mean_at(arm, KR, FIRST, generation) for generation in (0, last)]
    span = f"{values[0]:.2f} → {values[1]:.2f}"
    times = f"within {last + 1} generations"
    if not change.sure:
        return (
            f"Knowledge of the first split under {arm.label} did not change beyond noise "
            f"{times} ({span})"
        )
    verb = "fell" if change.value < 0 else "rose"
    return (
        f"Knowledge of the first split {verb} from {values[0]:.2f} to {values[1]:.2f} under "
        f"{arm.label} {times}"
    )


def _story(run: Run, looks: Mapping[str, style.Look]) -> Row:
    arms = sorted(run.arms, key=lambda arm: not arm.baseline)
    lines = [
        {
            "label": arm.label,
            "colour": looks[arm.label].colour,
            "text": _sentence(arm, run.baseline),
        }
        for arm in arms
    ]
    return {"run": run.label, "lines": lines}


def _sentence(arm: Arm, baseline: Arm | None) -> str:
    last = last_of(arm)
    if last is None:
        arms = [arm] if baseline is None else [arm, baseline]
        return lead.sentence(arm, baseline, lead.lead(arms))
    first, end = (mean_at(arm, KR, FIRST, generation) for generation in (0, last))
    told = f"KR {number(first, 2)}"
    if last:
        told += f" → {number(end, 2)} (generation 0 to {last})"
    if arm.baseline or baseline is None:
        return told + ("; the baseline." if arm.baseline else ".")
    return f"{told}; {_versus(arm, baseline)}"


def _versus(arm: Arm, baseline: Arm) -> str:
    there = last_shared(arm, baseline, KR, FIRST)
    gap = kr_difference(arm, baseline, 0, there) if there is not None else None
    if gap is None:
        return f"no paired comparison with {baseline.label}."
    interval = _interval(gap)
    if not gap.sure:
        return (
            f"not distinguishable from {baseline.label} at generation {there}: difference "
            f"{_signed(gap.value)}{interval}."
        )
    side = "above" if gap.value > 0 else "below"
    return f"{abs(gap.value):.2f} {side} {baseline.label} at generation {there}{interval}."


def _interval(gap: Estimate) -> str:
    if gap.low is None or gap.high is None:  # one seed and one question
        return ""
    return f", 95\u00a0% interval {_signed(gap.low)} to {_signed(gap.high)}"


def _method(runs: Sequence[Run]) -> str:
    if runs[0].unit != "tokens":
        return (
            "Ratios to the baseline: geometric mean over seeds, paired by seed, since the arms of "
            "a seed draw the same random numbers; intervals: Student's t on the logarithms."
        )
    if not any(
        chain.generations[0].answers for run in runs for a in run.arms for chain in a.chains
    ):
        return (
            "The runs have no Knowledge Retention questions. Perplexities are means over seeds; no "
            "difference between arms is claimed of them."
        )
    seeds = max(len(arm.chains) for run in runs for arm in run.arms)
    drawn = (
        "seeds and questions"
        if seeds > 1
        else "questions (one seed: what another would give is not known)"
    )
    return (
        "KR: share of questions about the first split whose true continuation the model finds "
        "likelier than the false one; 0.5 is chance. Intervals: Student's t over "
        f"{drawn}, paired by question."
    )


# --- numbers ----------------------------------------------------------------------------------


def _signed(value: float, digits: int = 2) -> str:
    text = f"{value:+.{digits}f}".replace("-", MINUS)
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def _cell(arm: Arm, measure: str, on: str, generation: int | None, digits: int | None) -> Row:
    value = None if generation is None else mean_at(arm, measure, on, generation)
    if generation is None or value is None:
        return {"text": DASH, "note": "", "first": False}
    scores = [
        g.scores[measure, on]
        for chain in arm.chains
        if (g := chain.at(generation)) and (measure, on) in g.scores
    ]
    note = ""
    if len(scores) > 1:
        span = (min(s.value for s in scores), max(s.value for s in scores))
        note = f"{number(span[0], digits)} {DASH} {number(span[1], digits)}"
    elif scores[0].stderr is not None:
        note = f"± {number(1.96 * scores[0].stderr, digits)}"
    return {"text": number(value, digits), "note": note, "first": False}


def _summary(scene: Scene, failures: Failures) -> tuple[list[Row], list[Row]]:
    wanted = (
        ("KR, first split", KR, FIRST, 3, True),
        ("KR, all splits", KR, "total", 3, False),
        ("Perplexity, original", "perplexity", FIRST, None, True),
        ("Perplexity, held-out", "perplexity", "held-out", None, False),
        ("Variance ratio", "variance.ratio", "model", None, True),
        ("L2 distance", "l2", "model", None, True),
        ("Wasserstein-1", "wasserstein", "rewritten", None, True),
        ("Beyond 3 sigma", "tail.3sigma", "rewritten", 4, True),
        ("Spread of codes", "spread", "rewritten", 3, True),
        ("Fréchet", "frechet", "rewritten", None, True),
        ("Precision", "precision", "rewritten", 2, False),
        ("Recall", "recall", "rewritten", 2, False),
        ("Class entropy", "classes.entropy", "rewritten", 2, False),
    )
    shown = _fitting([w for w in wanted if scene.has(w[1], w[2])])
    groups: list[Row] = [
        {"title": title, "columns": ["first", "last"] if both else ["last"]}
        for title, _, _, _, both in shown
    ]
    if failures.levels:
        groups.append({"title": failures.levels[0], "columns": ["generations, ratio"]})
    rows = []
    for arm in scene.arms:
        cells = []
        for _, measure, on, digits, both in shown:
            last = last_of(arm, measure, on)
            pair = [_cell(arm, measure, on, generation, digits) for generation in (0, last)]
            pair = pair if both else pair[1:]
            pair[0]["first"] = True
            cells += pair
        if failures.levels:
            time, ratio = failures.cells[arm.label][0]
            known = not arm.baseline and ratio["text"] != DASH
            told = f" ({ratio['note']})" if ratio["note"] else ""
            note = f"{TIMES} {ratio['text']}{told}" if known else ratio["note"]
            cells.append({"text": time["text"], "note": note, "first": True})
        look = scene.looks[arm.label]
        rows.append(
            {"label": arm.label, "colour": look.colour, "extent": _extent(arm), "cells": cells}
        )
    return groups, rows


_Column = tuple[str, str, str, int | None, bool]


def _fitting(columns: Sequence[_Column]) -> list[_Column]:
    """The first columns, as many as the page is wide; a measure told twice takes two."""
    out: list[_Column] = []
    for column in columns:
        if sum(1 + both for *_, both in (*out, column)) <= 6:
            out.append(column)
    return out


def _extent(arm: Arm) -> str:
    lengths = {len(chain.generations) for chain in arm.chains}
    low, high = min(lengths), max(lengths)
    return f"{low if low == high else f'{low} to {high}'} {TIMES} {len(arm.chains)}"


def _summary_note(scene: Scene) -> str:
    small = (
        "the lowest and highest seed"
        if scene.seeds > 1
        else "half the 95\u00a0% interval over what was measured, where there is one"
    )
    original = " Original: the real text of the first split." if scene.unit == "tokens" else ""
    return (
        f"Means over seeds; small: {small}. First: generation 0, which trained on the real first "
        f"split. Last: the last generation that all seeds of the arm have finished.{original}"
    )


def _failure_table(scene: Scene, failures: Failures) -> Row | None:
    if not failures.levels:
        return None
    rows = [
        {
            "label": arm.label,
            "colour": scene.looks[arm.label].colour,
            "pairs": failures.cells[arm.label],
        }
        for arm in scene.arms
    ]
    return {"levels": failures.levels, "rows": rows}


def _difference_table(runs: Sequence[Run], looks: Mapping[str, style.Look]) -> Row | None:
    """Each arm against its run's baseline: the first split's questions, and all of them."""
    columns: tuple[tuple[str, int | None], ...] = (("KR, first split", 0), ("KR, all splits", None))
    by_column = [
        {found.arm: found for run in runs for found in differences(run, split)}
        for _, split in columns
    ]
    rows = []
    for arm in [arm for run in runs for arm in run.arms]:
        found = [column.get(arm.label) for column in by_column]
        if not any(found):
            continue
        cells = []
        for one in found:
            if one is None:
                cells.append([DASH] * 5)
                continue
            spans = [_span(one.gap), _span(one.these)]
            told = [str(one.generation), _signed(one.gap.value, 3), *spans, _p(one.corrected)]
            cells.append(told)
        rows.append({"label": arm.label, "colour": looks[arm.label].colour, "cells": cells})
    if not rows:
        return None
    seeds = max(len(arm.chains) for run in runs for arm in run.arms)
    arms = (
        "The arms: interval over seeds and questions, what other seeds would give. With two or "
        "three seeds only large differences can be told from the chance of a seed."
        if seeds > 1
        else "There is one seed: no interval here says what another would give."
    )
    note = (
        f"{arms} These models: interval over questions alone. Each interval is of one difference. "
        "p: two-sided, that the arms are equal, after Holm's correction over the arms of a run in "
        "this column; under 0.05 a difference may be claimed however many arms there are."
    )
    return {"columns": [title for title, _ in columns], "rows": rows, "note": note}


def _span(gap: Estimate) -> str:
    if gap.low is None or gap.high is None:
        return DASH
    return f"{_signed(gap.low, 3)} to {_signed(gap.high, 3)}"


def _p(value: float | None) -> str:
    if value is None:
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


# --- passages, ledger, settings ---------------------------------------------------------------


def _followed(arms: Sequence[Arm]) -> int:
    """The seed whose passages are shown: the smallest."""
    return min(chain.seed for arm in arms for chain in arm.chains)


def _passages(arms: Sequence[Arm], looks: Mapping[str, style.Look]) -> list[Row]:
    seed = _followed(arms)
    by_arm: dict[str, list[Passage]] = {}
    for arm in arms:
        chain = next((c for c in arm.chains if c.seed == seed), arm.chains[0])
        by_arm[arm.label] = [p for g in chain.generations for p in g.passages]
    several = len({arm.run for arm in arms}) > 1
    places = dict.fromkeys((arm.run, p.split, p.start) for arm in arms for p in by_arm[arm.label])
    out = []
    for run, split, start in sorted(places):
        members = [arm for arm in arms if arm.run == run]
        here = {
            arm.label: [p for p in by_arm[arm.label] if (p.split, p.start) == (split, start)]
            for arm in members
        }
        real = next((p for ps in here.values() for p in ps if p.generation == 0), None)
        length = max(len(p.tokens) for ps in here.values() for p in ps)
        title = f"Split {split}, tokens {start:,} to {start + length - 1:,}"
        out.append(
            {
                "title": f"{run}: {title}" if several else title,
                "real": "".join(_visible(t) for t in real.tokens).strip() if real else "",
                "arms": [
                    {
                        "label": label,
                        "colour": looks[label].colour,
                        "rows": [_passage_row(p) for p in ps if p.generation],
                    }
                    for label, ps in here.items()
                ],
            }
        )
    return out


def _passage_row(passage: Passage) -> Row:
    share = sum(passage.changed) / len(passage.changed) if passage.changed else 0.0
    return {
        "times": f"rewritten {passage.generation}{TIMES}",
        "changed": f"{share:.0%} changed",
        "pieces": list(_pieces(passage)),
    }


def _pieces(passage: Passage) -> Iterable[Row]:
    """Stretches of changed and of kept tokens, the spaces before a stretch apart from it."""
    start = 0
    for end in range(1, len(passage.tokens) + 1):
        if end == len(passage.tokens) or passage.changed[end] != passage.changed[start]:
            text = "".join(_visible(token) for token in passage.tokens[start:end])
            bare = text.lstrip(" ")
            lead = text[: len(text) - len(bare)]
            yield {"changed": passage.changed[start] and bool(bare), "lead": lead, "text": bare}
            start = end


def _visible(token: str) -> str:
    return token.replace("\n", "\u21b5 ")


def _ledger_tables(arms: Sequence[Arm]) -> list[Row]:
    return [
        {
            "title": ", ".join(group.arms),
            "rows": [
                {
                    "generation": row.generation,
                    "real": f"{row.real:,}",
                    "rewritten": f"{row.total - row.real:,}",
                    "total": f"{row.total:,}",
                    "share": f"{row.real_share:.0%}",
                }
                for row in thinned(group.rows, 12)
            ],
        }
        for group in ledgers(arms)
    ]


def _made(run: Run) -> Row:
    facts = [("fortifai", str(run.head.get("version", "unknown")))]
    for key in ("versions", "machine"):
        told = run.head.get(key)
        if isinstance(told, Mapping):
            facts += [(str(name).replace("_", " "), str(value)) for name, value in told.items()]
    if "created" in run.head:
        facts.append(("created", str(run.head["created"])))
    return {"label": run.label, "notes": run.notes, "facts": facts, "yaml": run.yaml}
