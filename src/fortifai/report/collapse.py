"""The figures of knowledge collapse: formats and phases, and how a text loses its breadth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from fortifai.report import style
from fortifai.report.knowledge import NAMES, Story
from fortifai.report.panels import Panel, generations, panels
from fortifai.report.records import Arm
from fortifai.report.scene import Plot, Scene, plot
from fortifai.report.style import INK, SOFT, WIDE, Canvas

_BANDS = {"B": "#fbe3b3", "C": "#f4c4bd", "unsure": "#e3e1dc", "unknown": "#f0efec"}
_BAND_NAMES = {
    "B": "B: confidently wrong",
    "C": "C: format lost",
    "unsure": "unsure",
    "unknown": "not above chance",
}
_CURVES: tuple[tuple[str, str, str, Any, str], ...] = (
    ("right", "accuracy", "#0a5c96", "-", "o"),
    ("adherent", "format adherence", "#b3261e", (0, (5, 2)), "s"),
    ("certainty", "certainty", "#4b7d1f", (0, (1, 1.4)), "^"),
)
_REAL_FILL = "#d4d3cf"


def in_formats(scene: Scene) -> Plot | None:
    """Accuracy, adherence and certainty of each arm and format, over bands of the phases."""
    if not scene.stories:
        return None
    arms = list(dict.fromkeys(story.arm.label for story in scene.stories))
    kinds = list(dict.fromkeys(story.kind for story in scene.stories))
    columns, tall, pitch, top = min(4, len(kinds)), 128, 206, 54
    lines = math.ceil(len(kinds) / columns)
    canvas = Canvas(WIDE, top + pitch * len(arms) * lines + 4)
    step = (WIDE - 40) / columns
    for story in scene.stories:
        c, extra = kinds.index(story.kind) % columns, kinds.index(story.kind) // columns
        row = arms.index(story.arm.label) * lines + extra
        axes = canvas.axes(44 + c * step, top + 36 + row * pitch, step - 26, tall)
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        generations(axes, story.table.generations[-1], step - 26)
        _bands(axes, story)
        axes.axhline(story.table.chance, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        _curves(axes, story)
        name = style.short(story.arm.label) if c == 0 else ""
        style.heading(axes, NAMES.get(story.kind, story.kind), name or " ")
        if c:
            axes.tick_params(axis="y", labelleft=False)
    phases = dict.fromkeys(p for story in scene.stories for p in story.phases.by_generation)
    entries: list[tuple[str, Any]] = [
        (
            name,
            Line2D([], [], color=colour, linestyle=dash, marker=mark, markersize=6, linewidth=2),
        )
        for _, name, colour, dash, mark in _CURVES
    ]
    entries += [(_BAND_NAMES[p], Patch(color=_BANDS[p])) for p in _BANDS if p in phases]
    entries.append(("chance", Line2D([], [], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))))
    canvas.legend(entries, left=44, top=14)
    asked = {len(story.table.ids) for story in scene.stories}
    n = f"{min(asked):,}" if len(asked) == 1 else f"{min(asked):,} to {max(asked):,}"
    seeds = max(len(story.table.seeds) for story in scene.stories)
    return plot(
        canvas,
        "formats",
        "Knowledge by the format it is asked for in",
        f"{n} questions in each format. Accuracy: share of questions whose right option the model "
        "finds likeliest. Adherence: share whose greedy answer keeps to the format. Certainty: "
        f"mean probability of the chosen option. Thin lines: each of {seeds} seeds; thick: their "
        "mean. Shaded: generations in phase B or C by the declared rule; unshaded: A, knowledge is "
        "kept.",
    )


def _bands(axes: Any, story: Story) -> None:
    numbers = np.array(story.table.generations, dtype=float)
    left, right = axes.get_xlim()
    edges = np.concatenate([[left], (numbers[1:] + numbers[:-1]) / 2, [right]])
    for i, phase in enumerate(story.phases.by_generation):
        if phase in _BANDS:
            axes.axvspan(edges[i], edges[i + 1], color=_BANDS[phase], zorder=0, lw=0)


def _curves(axes: Any, story: Story) -> None:
    for what, _, colour, dash, mark in _CURVES:
        values = getattr(story.table, what).mean(2)
        x = story.table.generations
        if len(values) > 1:
            for row in values:
                axes.plot(x, row, color=colour, linewidth=0.7, alpha=0.45, zorder=3)
        axes.plot(
            x,
            values.mean(0),
            color=colour,
            linestyle=dash,
            marker=mark if len(x) <= 25 else None,
            markersize=5,
            markeredgecolor="#ffffff",
            markeredgewidth=0.6,
            linewidth=2,
            zorder=4,
            clip_on=False,
        )


# --- what generation 0 thinks of it -----------------------------------------------------------


def unlikely(scene: Scene) -> Plot | None:
    """Histograms of the perplexity under generation 0 (The Curse of Recursion, Fig. 1)."""
    arms = [arm for arm in scene.arms if _counts(arm, 0, "real") is not None]
    if not arms:
        return None
    columns, tall, pitch, top = min(3, len(arms)), 190, 272, 40
    canvas = Canvas(WIDE, top + pitch * math.ceil(len(arms) / columns))
    step = (WIDE - 40) / columns
    edges, low, high = _range(arms)
    ceiling = max(float(_share(arm, g, on).max()) for arm in arms for g, on in _texts(arm))
    for i, arm in enumerate(arms):
        axes = canvas.axes(
            52 + (i % columns) * step, top + 40 + i // columns * pitch, step - 40, tall
        )
        axes.stairs(_share(arm, 0, "real"), edges, fill=True, color=_REAL_FILL, lw=0, zorder=1)
        shown = [g for g, on in _texts(arm) if on == "written"]
        for k, g in enumerate(shown):
            shade = 0.25 + 0.75 * (k + 1) / len(shown)
            colour = scene.looks[arm.label].colour
            axes.stairs(_share(arm, g, "written"), edges, color=colour, alpha=shade, lw=1.0 + k / 2)
        known = _first(arm)
        assert known is not None
        axes.axvline(known.unlikely, color=INK, linewidth=1, linestyle=(0, (1, 2)))
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(0, ceiling * 1.06)
        ticks = [k * 10.0**d for d in range(7) for k in (1, 2, 5) if low <= k * 10.0**d <= high]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        style.few_ticks(axes, 4)
        said = ", ".join(str(g) for g in shown)
        style.heading(axes, style.short(arm.label), f"share of sequences; generations {said}")
        axes.set_xlabel("perplexity under generation 0", color=SOFT, fontsize=11)
    canvas.legend(
        [
            ("real text", Patch(color=_REAL_FILL)),
            ("written, the darker the later", Line2D([], [], color=INK, linewidth=2)),
            ("99 % of real text", Line2D([], [], color=INK, linewidth=1, linestyle=(0, (1, 2)))),
        ],
        left=52,
        top=14,
    )
    return plot(
        canvas,
        "perplexity-first",
        "What generation 0 thinks of what later ones write",
        "Share of sequences of 64 tokens (y) by their perplexity under the arm's own generation 0 "
        "(x): the first split as it was, and as some generations wrote it. Dotted: the perplexity "
        "that 1\u00a0% of the real sequences lie above. All seeds pooled; the dotted line is the "
        "first seed's.",
    )


def _first(arm: Arm) -> Any:
    return next((g.perplexities for c in arm.chains if (g := c.at(0)) and g.perplexities), None)


def _texts(arm: Arm) -> list[tuple[int, str]]:
    """What is drawn of an arm: real text, and four of its generations at most."""
    there = [g for g in arm.numbers if _counts(arm, g, "written") is not None]
    places = np.unique(np.linspace(0, len(there) - 1, min(4, len(there))).round().astype(int))
    return [(0, "real"), *((there[i], "written") for i in places)]


def _counts(arm: Arm, number: int, on: str) -> NDArray[np.int64] | None:
    found = [
        g.perplexities.counts[on]
        for chain in arm.chains
        if (g := chain.at(number)) and g.perplexities and on in g.perplexities.counts
    ]
    return np.sum(found, axis=0) if found else None


def _share(arm: Arm, number: int, on: str) -> NDArray[np.float64]:
    counts = _counts(arm, number, on)
    assert counts is not None
    out: NDArray[np.float64] = counts / max(1, counts.sum())
    return out


def _range(arms: list[Arm]) -> tuple[NDArray[np.float64], float, float]:
    """The edges of the bins, and the part of them that holds anything."""
    told = _first(arms[0])
    assert told is not None
    edges = np.array(told.bins)
    held = np.sum([_share(arm, g, on) for arm in arms for g, on in _texts(arm)], axis=0)
    there = np.flatnonzero(held > 0)
    return edges, float(edges[there[0]]), float(edges[there[-1] + 1])


# --- breadth and surprise ---------------------------------------------------------------------


def breadth(scene: Scene) -> Plot | None:
    """Word entropy, repetition, self-BLEU and false facts."""
    made = panels(
        scene,
        [
            Panel("Word entropy", "nats", "entropy.word", "written", "real"),
            Panel("Repetition", "share of 4-grams", "repetition", "written", "real"),
            Panel("Self-BLEU", "sequences alike", "self-bleu", "written", "real"),
            Panel("False facts", "share of claims", "facts.false", "written", "real"),
        ],
    )
    if not made:
        return None
    false = any(panel.measure == "facts.false" for panel in made[1])
    claims = (
        " False facts: of the sentences that name a person of the corpus and a value, the share "
        "that contradicts what is known."
        if false
        else ""
    )
    return plot(
        made[0],
        "breadth",
        "How broad the written text is",
        "Of the first split as each generation wrote it: entropy of its words; share of 4-grams "
        "that stand in the same 128 tokens before; BLEU of sequences of 64 tokens against one "
        f"another.{claims} Dashes: the same of the real split. Scales differ. {scene.seeds_said()}",
    )


def surprise(scene: Scene) -> Plot | None:
    """Surplexity, next-token entropy, and the tail under generation 0."""
    made = panels(
        scene,
        [
            Panel("Surplexity", "of its own text", "surplexity", "written", "real"),
            Panel("Next-token entropy", "nats, own text", "entropy.next", "written", "real"),
            Panel("Under generation 0", "mean perplexity", "perplexity.first", "written", "real"),
            Panel("Unlikely sequences", "share", "perplexity.first.tail", "written", "real"),
        ],
    )
    if not made:
        return None
    first = any(panel.measure == "perplexity.first" for panel in made[1])
    more = (
        " Right: the same text under the arm's own generation 0: its mean perplexity, and the "
        "share of sequences that are less likely than 99\u00a0% of real ones."
        if first
        else ""
    )
    return plot(
        made[0],
        "surprise",
        "How much the written text surprises",
        "Left: mean perplexity of sequences of 64 tokens that a generation wrote, under itself, "
        "and the entropy of its next-token distributions along them: both fall as a model becomes "
        f"surer of what it writes.{more} Dashes: the same of the real split. Scales differ. "
        f"{scene.seeds_said()}",
    )
