"""The figures of a report: one function each, from what was read to a captioned SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fortifai.report import collapse, densities, distributions, pictures, published, style
from fortifai.report.panels import Panel, panels
from fortifai.report.records import FIRST, KR, Generation
from fortifai.report.scene import (
    Plot,
    Scene,
    Series,
    draw,
    legend,
    legend_height,
    limits,
    plot,
    series,
)
from fortifai.report.style import HALF, SOFT, WIDE, Canvas, Look
from fortifai.report.text import MINUS

# --- knowledge --------------------------------------------------------------------------------


def kr_first_split(scene: Scene) -> Plot | None:
    """KR on the first split by generation (the paper's Fig. 6)."""
    if not scene.has(KR, FIRST):
        return None
    looks, right = (
        scene.looks,
        24 + max(style.text_width(style.short(arm.label) + " 0.00") for arm in scene.arms),
    )
    canvas = Canvas(WIDE, 412)
    axes = canvas.axes(52, 50, WIDE - 52 - right, 318)
    lines = {arm.label: series(arm, KR, FIRST) for arm in scene.arms}
    low = min([0.5, *(v for line in lines.values() for v in line.low)])
    high = max([0.76, *(v for line in lines.values() for v in line.high)])
    axes.set_ylim(low - 0.02, min(1.0, high + 0.02) + 0.005)
    style.generations(axes, scene.last)
    style.few_ticks(axes, 6)
    style.heading(axes, "Questions answered rightly", "share, true against false continuation")
    _rule(axes, 0.5, "chance 0.5")
    if scene.level is not None:
        _rule(axes, scene.level, f"failure level {scene.level:g}", colour="#b3261e", end=True)
    for arm in scene.arms:
        draw(axes, lines[arm.label], looks[arm.label])
        if scene.level is not None and arm.label in scene.crossings:
            _crossing(axes, scene.crossings[arm.label], scene.level, looks[arm.label])
    _direct_labels(axes, lines, looks)
    rings = " Rings: mean time to failure, where every seed failed." if scene.crossings else ""
    return plot(
        canvas,
        "kr-first-split",
        "Knowledge retention on the first split",
        f"Share of {scene.counts(KR, FIRST)} questions about the first split whose true "
        f"continuation has the higher mean log-probability per token.{_fate(scene)} "
        f"{scene.seeds_said()}{rings}",
    )


def _fate(scene: Scene) -> str:
    return " Only generation 0 trains on its real form." if scene.rewritten_for_good else ""


def _rule(axes: Any, height: float, text: str, colour: str = SOFT, *, end: bool = False) -> None:
    """A level across the axes, named at its beginning or at its end, clear of fallen curves."""
    axes.axhline(height, color=colour, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        text,
        (1 if end else 0, height),
        xycoords=("axes fraction", "data"),
        xytext=(-4 if end else 4, 4),
        textcoords="offset points",
        ha="right" if end else "left",
        color=colour,
        fontsize=11,
    )


def _crossing(axes: Any, time: float, level: float, look: Look) -> None:
    bottom = axes.get_ylim()[0]
    axes.plot(
        [time, time], [bottom, level], color=look.colour, linewidth=1, linestyle=":", zorder=2
    )
    axes.plot(
        [time],
        [level],
        marker="o",
        markersize=8,
        markerfacecolor="#ffffff",
        markeredgecolor=look.colour,
        markeredgewidth=1.6,
        zorder=5,
    )


def _direct_labels(axes: Any, lines: Mapping[str, Series], looks: Mapping[str, Look]) -> None:
    """Names and last values right of the lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    tall = axes.get_position().height * axes.figure.get_size_inches()[1] * 72
    ends = {name: (line.x[-1], line.mean[-1]) for name, line in lines.items() if line.x}
    wanted = {name: (y - low) / (high - low) * tall for name, (_, y) in ends.items()}
    placed = style.apart(wanted, 16, 0, tall)
    edge = axes.get_xlim()[1]
    for name, (x, y) in ends.items():
        there = low + placed[name] / tall * (high - low)
        axes.annotate(
            f"{style.short(name)} {y:.2f}",
            (edge, there),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=looks[name].colour,
            weight="bold",
            annotation_clip=False,
        )
        if abs(placed[name] - wanted[name]) > 3 or x < edge - 1:
            axes.plot(
                [x, edge],
                [y, there],
                color=looks[name].colour,
                linewidth=0.7,
                alpha=0.6,
                clip_on=False,
                zorder=3,
            )


def kr_splits(scene: Scene) -> Plot | None:
    """KR on each split by generation, one panel a split."""
    splits = scene.names(KR, "split-")
    if len(splits) < 2:
        return None
    top = legend_height(scene)
    columns, tall = min(5, len(splits)), 150
    rows = math.ceil(len(splits) / columns)
    canvas = Canvas(WIDE, top + rows * (tall + 78) + 10)
    low, high = limits(scene, [(KR, on) for on in splits], [0.5])
    step = (WIDE - 52) / columns
    for i, on in enumerate(splits):
        left = 52 + step * (i % columns)
        axes = canvas.axes(left, top + 32 + (i // columns) * (tall + 78), step - 22, tall)
        axes.set_ylim(low, high)
        style.few_ticks(axes, 4)
        style.generations(axes, scene.last, label="generation" if i == 0 else None)
        style.heading(axes, f"split {on[6:]}")
        axes.axhline(0.5, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        if i % columns:
            axes.tick_params(axis="y", labelleft=False)
        _shade_unseen(axes, scene, int(on[6:]))
        for arm in scene.arms:
            draw(axes, series(arm, KR, on), scene.looks[arm.label], size=5.5)
    legend(canvas, scene)
    return plot(
        canvas,
        "kr-splits",
        "Knowledge retention by split",
        "Share of a split's questions answered rightly. Grey: generations that had not yet trained "
        f"on any form of the split. Dashes: chance. {scene.seeds_said()}",
    )


def _shade_unseen(axes: Any, scene: Scene, split: int) -> None:
    firsts = [
        next((g.number for g in chain.generations if split in _trained_on(g)), scene.last + 1)
        for arm in scene.arms
        for chain in arm.chains
    ]
    left, edge = axes.get_xlim()[0], min(firsts)
    if edge > 0:
        axes.axvspan(left, min(edge - 0.5, axes.get_xlim()[1]), color="#f0efec", zorder=0, lw=0)


def _trained_on(generation: Generation) -> set[int]:
    return {int(part["split"]) for part in generation.ledger.get("parts", ())}


# --- panels of lines --------------------------------------------------------------------------


def kr_total(scene: Scene) -> Plot | None:
    """KR up to the stage and in total (the paper's Fig. 4)."""
    made = panels(
        scene,
        [
            Panel("All splits seen so far", "share right", KR, "up-to-stage"),
            Panel("All splits", "share right; unseen ones included", KR, "total"),
        ],
        share_y=True,
    )
    if not made:
        return None
    return plot(
        made[0],
        "kr-total",
        "Knowledge retention up to the stage, and in total",
        f"Share of questions answered rightly: left over the splits seen so far "
        f"(n = {_n(scene, KR, 'up-to-stage')}), right over all of them "
        f"(n = {_n(scene, KR, 'total')}). Both mix what is remembered with what "
        f"is newly learnt. {scene.seeds_said()}",
    )


def _n(scene: Scene, measure: str, on: str) -> str:
    return scene.counts(measure, on) if scene.has(measure, on) else "0"


def perplexity(scene: Scene) -> Plot | None:
    """Perplexity of the original first split, of held-out text and of what the model wrote."""
    made = panels(
        scene,
        [
            Panel("The original first split", "perplexity, log scale", "perplexity", FIRST),
            Panel("Held-out text", "perplexity, log scale", "perplexity", "held-out"),
            Panel(
                "The first split as it wrote it",
                "perplexity, log scale",
                "perplexity",
                "rewritten-0",
            ),
        ],
        log=True,
    )
    if not made:
        return None
    return plot(
        made[0],
        "perplexity",
        "Perplexity",
        f"Lower is surer. Left: the first split's real text.{_fate(scene)} Middle: real text that "
        "no generation trains on. Right: the model's own newest rewriting of the first split. "
        f"Scales differ. {scene.seeds_said()}",
    )


def kl(scene: Scene) -> Plot | None:
    """KL of unigram distributions (the paper's Fig. 7)."""
    made = panels(
        scene,
        [
            Panel("First split", "KL, nats, equal sizes", "kl.unigram", "rewritten-0"),
            Panel("All rewritten text", "KL, nats, equal sizes", "kl.unigram", "rewritten"),
            Panel(
                "All rewritten text", "KL, nats, against all real", "kl.unigram_paper", "rewritten"
            ),
        ],
    )
    if not made:
        return None
    return plot(
        made[0],
        "kl",
        "Drift of the token distribution",
        "KL(rewritten ‖ real) of unigram token distributions, nats; lower is closer. At equal "
        "sizes the rewritten text stands against as many tokens of real text; the third panel is "
        "the paper's form, all rewritten text against all real text, whose estimate also moves "
        f"with the size of the rewritten text. Scales differ. {scene.seeds_said()}",
    )


def diversity(scene: Scene) -> Plot | None:
    """distinct-1, -2, -3 and token entropy of the rewritten first split."""
    distinct = [
        Panel(f"distinct-{n}", f"share of different {name}", f"distinct-{n}", "rewritten-0", FIRST)
        for n, name in ((1, "tokens"), (2, "pairs"), (3, "triples"))
    ]
    entropy = Panel("Token entropy", "nats", "entropy.unigram", "rewritten-0", FIRST)
    made = panels(scene, [*distinct, entropy])
    if not made:
        return None
    return plot(
        made[0],
        "diversity",
        "Diversity of what was written",
        "Of the newest rewriting of the first split: different n-grams as a share of all n-grams, "
        "and the entropy of the unigram token distribution. Dashes: the same of the real first "
        f"split, where it was measured. Scales differ. {scene.seeds_said()}",
    )


def truncated(scene: Scene) -> Plot | None:
    """Share of tokens that training left out."""
    measure, on = "train.truncated_share", "train"
    if not scene.has(measure, on):
        return None
    top = legend_height(scene, width=HALF)
    canvas = Canvas(HALF, top + 326)
    axes = canvas.axes(56, top + 48, HALF - 80, 230)
    axes.set_ylim(-0.02, 1.02)
    style.few_ticks(axes)
    style.generations(axes, scene.last)
    style.heading(axes, "Weight taken away in training", f"share, mean over {_weighed(scene)}")
    for arm in scene.arms:
        draw(axes, series(arm, measure, on), scene.looks[arm.label], size=6.5)
    legend(canvas, scene)
    return plot(
        canvas,
        "truncated",
        "Truncated share",
        f"1 {MINUS} mean weight over all of a generation's training: the share of "
        f"{_weighed(scene)} truncated, the weight taken off under Focal, 0 where all "
        "are kept. "
        f"{scene.seeds_said()}",
        wide=False,
    )


def _weighed(scene: Scene) -> str:
    """What has a weight: tokens, points, and of images the pixels."""
    return "pixels" if scene.unit == "images" else scene.unit


def draw_all(scene: Scene) -> list[Plot]:
    """Every figure that the runs have the numbers for, in the order of the report."""
    made = []
    for figure in (
        kr_first_split,
        kr_splits,
        kr_total,
        perplexity,
        kl,
        distributions.confidence,
        diversity,
        published.benchmarks,
        collapse.in_formats,
        collapse.unlikely,
        collapse.breadth,
        collapse.surprise,
        densities.variance,
        densities.histograms,
        densities.scatter,
        densities.tails,
        densities.distances,
        pictures.samples,
        pictures.spread,
        pictures.likeness,
        pictures.classes,
        truncated,
        distributions.ledger,
    ):
        with style.drawing(figure.__name__):
            drawn = figure(scene)
        if drawn is not None:
            made.append(drawn)
    return made
