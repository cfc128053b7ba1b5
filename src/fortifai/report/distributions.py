"""The figures that are no lines: confidence, perplexity under generation 0, and the ledger."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fortifai.report import style
from fortifai.report.records import FIRST, Arm, Floats, Generation
from fortifai.report.scene import Plot, Scene, plot
from fortifai.report.style import INK, REAL_FILL, SOFT, WIDE, Canvas

_HELD_OUT: dict[str, Any] = {"color": INK, "linewidth": 1.3, "linestyle": (0, (3, 2))}
_UNLIKELY: dict[str, Any] = {"color": INK, "linewidth": 1, "linestyle": (0, (1, 2))}


def _shares(arm: Arm, what: str, number: int, on: str) -> Floats | None:
    """The share in each bin of a histogram, all seeds together; None where there is none."""
    found = [getattr(g, what) for chain in arm.chains if (g := chain.at(number))]
    counts = [np.array(told["counts"][on]) for told in found if on in told.get("counts", {})]
    same = [one for one in counts if one.shape == counts[0].shape]
    total: Floats = np.sum(same, axis=0, dtype=np.float64) if same else np.zeros(1)
    return total / total.sum() if total.sum() > 0 else None


def _edges(arm: Arm, what: str) -> Floats:
    """The bins of a histogram."""
    found = [getattr(g, what) for chain in arm.chains for g in chain.generations]
    return np.array(next(told["bins"] for told in found if told), dtype=np.float64)


# --- confidence -------------------------------------------------------------------------------


def confidence(scene: Scene) -> Plot | None:
    """Histograms of the confidence on real, generated and held-out text (the paper's Fig. 1)."""
    arms = [arm for arm in scene.arms if _shares(arm, "histograms", 0, FIRST) is not None]
    if not arms:
        return None
    columns, tall, pitch, top = min(5, len(arms)), 120, 152, 48
    band = 2 * pitch + 56
    canvas = Canvas(WIDE, top + math.ceil(len(arms) / columns) * band - 8)
    step = min((WIDE - 60) / columns, 330)
    drawn = [
        (on, arm, number, shares)
        for arm in arms
        for number in (0, arm.last)
        for on in (FIRST, "held-out", "rewritten-0")
        if (shares := _shares(arm, "histograms", number, on)) is not None
    ]
    ceiling = max(float(shares.max()) for *_, shares in drawn)
    for i, arm in enumerate(arms):
        colour = scene.looks[arm.label].colour
        how = {
            FIRST: {"fill": True, "color": REAL_FILL, "lw": 0, "zorder": 1},
            "held-out": _HELD_OUT | {"zorder": 3},
            "rewritten-0": {"color": colour, "lw": 2.0, "zorder": 4},
        }
        for r, number in enumerate((0, arm.last)):
            left, down = 56 + i % columns * step, top + 30 + i // columns * band + r * pitch
            axes = canvas.axes(left, down, step - 22, tall)
            for on, owner, there, shares in drawn:
                if (owner, there) == (arm, number):
                    axes.stairs(shares, _edges(arm, "histograms"), **how[on])
            axes.set(xlim=(0, 1), ylim=(0, ceiling * 1.06))
            axes.xaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            style.few_ticks(axes, 3)
            axes.tick_params(axis="y", labelleft=not i % columns)
            if (threshold := _threshold(arm)) is not None:
                axes.axvline(threshold, color=colour, lw=1.2, ls=":", zorder=2)
            style.heading(axes, style.short(arm.label, int(step / 8)) if r == 0 else "")
            axes.set_title(f"generation {number}", color=SOFT, fontsize=11, y=0.84)
    axes.set_xlabel("confidence p", color=SOFT, fontsize=11)
    canvas.legend(
        [
            ("real first split", Patch(color=REAL_FILL, linewidth=0)),
            ("first split as generated, in the arm's colour", Line2D([], [], color=SOFT, lw=2)),
            ("held-out", Line2D([], [], **_HELD_OUT)),
        ],
        left=52,
        top=10,
    )
    return plot(
        canvas,
        "confidence",
        "Confidence on real, generated and held-out text",
        "Share of tokens (y) by the probability p that the arm's model gives them (x), after its "
        "first generation (above) and its last (below): the real first split, the same split as "
        "this generation wrote it, and held-out real text. All seeds pooled."
        + (_THRESHOLDS if any(_threshold(arm) is not None for arm in arms) else ""),
        _mean_confidences(arms),
    )


_THRESHOLDS = (
    " Dotted upright line: the arm's truncation threshold; tokens right of it are left out of "
    "training."
)


def _threshold(arm: Arm) -> float | None:
    """The threshold above which it truncates, where it is one for the whole run."""
    weight = arm.settings.get("weight") or {}
    return float(weight.get("threshold", 0.9)) if weight.get("kind") == "truncate" else None


def _mean_confidences(arms: Sequence[Arm]) -> str:
    """The figure in words."""
    told = []
    for arm in arms:
        edges, what = _edges(arm, "histograms"), "histograms"
        found = (_shares(arm, what, number, "rewritten-0") for number in (0, arm.last))
        means = (shares @ (edges[1:] + edges[:-1]) / 2 for shares in found if shares is not None)
        told.append(f"{arm.label} {' to '.join(f'{mean:.2f}' for mean in means)}")
    return (
        "Mean confidence on the first split as generated, after the first and the last generation: "
        f"{'; '.join(told)}."
    )


# --- perplexity under generation 0 ------------------------------------------------------------


def perplexity(scene: Scene) -> Plot | None:
    """Histograms of the perplexity under generation 0 (The Curse of Recursion, Fig. 1)."""
    what = "perplexities"
    arms = [arm for arm in scene.arms if _shares(arm, what, 0, "real") is not None]
    if not arms:
        return None
    columns, tall, pitch, top = min(3, len(arms)), 190, 272, 40
    canvas = Canvas(WIDE, top + pitch * math.ceil(len(arms) / columns))
    step = (WIDE - 40) / columns
    drawn: dict[str, dict[int | str, Floats]] = {}
    for arm in arms:
        found = {n: _shares(arm, what, n, "written") for n in arm.numbers}
        there = {n: shares for n, shares in found.items() if shares is not None}
        kept = {n: there[n] for n in style.thinned(list(there), 4)}
        drawn[arm.label] = {"real": _shares(arm, what, 0, "real"), **kept}  # type: ignore[dict-item] # arms that have one
    every = np.array([shares for told in drawn.values() for shares in told.values()])
    edges, held = _edges(arms[0], what), np.flatnonzero(every.sum(0) > 0)
    low, high = float(edges[held[0]]), float(edges[held[-1] + 1])
    ticks = [k * 10.0**d for d in range(7) for k in (1, 2, 5) if low <= k * 10.0**d <= high]
    for i, arm in enumerate(arms):
        left, down = 52 + i % columns * step, top + 40 + i // columns * pitch
        axes = canvas.axes(left, down, step - 40, tall)
        told = dict(drawn[arm.label])
        axes.stairs(told.pop("real"), edges, fill=True, color=REAL_FILL, lw=0, zorder=1)
        for k, shares in enumerate(told.values()):
            shade, colour = 0.25 + 0.75 * (k + 1) / len(told), scene.looks[arm.label].colour
            axes.stairs(shares, edges, color=colour, alpha=shade, lw=1.0 + k / 2)
        first = next(g for chain in arm.chains if (g := chain.at(0)) and g.perplexities)
        axes.axvline(first.perplexities["unlikely"], **_UNLIKELY)
        axes.set(xscale="log", xlim=(low, high), ylim=(0, every.max() * 1.06))
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        style.few_ticks(axes, 4)
        said = ", ".join(str(number) for number in told)
        style.heading(axes, style.short(arm.label), f"share of sequences; generations {said}")
        axes.set_xlabel("perplexity under generation 0", color=SOFT, fontsize=11)
    canvas.legend(
        [
            ("real text", Patch(color=REAL_FILL)),
            ("generated, the darker the later", Line2D([], [], color=INK, linewidth=2)),
            ("99 % of real text", Line2D([], [], **_UNLIKELY)),
        ],
        left=52,
        top=14,
    )
    return plot(
        canvas,
        "perplexity-under-generation-0",
        "Perplexity under generation 0",
        "Share of sequences of 64 tokens (y) by their perplexity under the arm's own generation 0 "
        "(x): the first split as it was, and as some generations wrote it. Dotted: the perplexity "
        "that 1\u00a0% of the real sequences lie above. All seeds pooled; the dotted line is the "
        "first seed's.",
        _medians(drawn, edges),
    )


def _medians(drawn: Mapping[str, Mapping[int | str, Floats]], edges: Floats) -> str:
    """The figure in words; medians are read off a straight line within their bin."""
    told = []
    for label, found in drawn.items():
        medians = (np.interp(0.5, [0, *np.cumsum(shares)], edges) for shares in found.values())
        names = ("real" if name == "real" else f"generation {name}" for name in found)
        pairs = zip(names, medians, strict=True)
        told.append(f"{label}: {', '.join(f'{name} {median:.3g}' for name, median in pairs)}")
    return f"Median perplexity of a sequence. {'; '.join(told)}."


# --- the ledger -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class LedgerRow:
    """What one generation trained on: samples by how often they were generated (0: real)."""

    generation: int
    by_age: Mapping[int, int]

    @property
    def total(self) -> int:
        """All samples."""
        return sum(self.by_age.values())

    @property
    def real(self) -> int:
        """Real samples."""
        return self.by_age.get(0, 0)

    @property
    def real_share(self) -> float:
        """Real over all; NaN where nothing was trained on."""
        return self.real / self.total if self.total else math.nan


def ledgers(arms: Sequence[Arm]) -> dict[tuple[str, ...], list[LedgerRow]]:
    """Ledgers by the labels of their arms: those that are equal as far as both go are told once."""
    groups: list[tuple[list[str], list[LedgerRow]]] = []
    for arm in arms:
        longest = max(arm.chains, key=lambda chain: len(chain.generations))
        rows = [_ledger_row(g) for g in longest.generations if g.ledger.get("parts")]
        for names, known in groups if rows else ():
            both = min(len(known), len(rows))
            if known[:both] == rows[:both]:
                names.append(arm.label)
                known.extend(rows[both:])
                break
        else:
            groups += [([arm.label], rows)] if rows else []
    return {tuple(names): rows for names, rows in groups}


def _ledger_row(generation: Generation) -> LedgerRow:
    ages: dict[int, int] = {}
    for part in generation.ledger["parts"]:
        age = int(part["generation"])
        ages[age] = ages.get(age, 0) + int(part["values"])
    return LedgerRow(generation.number, dict(sorted(ages.items())))


def ledger(scene: Scene) -> Plot | None:
    """Real and generated data in each generation's training set."""
    groups = ledgers(scene.arms)
    if not groups:
        return None
    columns, pitch, top = 2, 316, 40
    canvas = Canvas(WIDE, top + pitch * math.ceil(len(groups) / columns))
    oldest = max(age for rows in groups.values() for row in rows for age in row.by_age)
    step = (WIDE - 20) / columns
    for i, (arms, rows) in enumerate(groups.items()):
        left, down = 56 + i % columns * step, top + 44 + i // columns * pitch
        axes = canvas.axes(left, down, step - 66, 220)
        _ledger_panel(axes, style.thinned(rows, 9), oldest, scene.last, step - 66)
        name = "All arms" if len(groups) == 1 else style.short(", ".join(arms), 56)
        style.heading(axes, name, f"thousand {scene.unit} trained on, once each")
    entries: list[tuple[str, Any]] = [("real", Patch(color=_shade(0, oldest), linewidth=0))]
    if oldest:
        ages = "once" if oldest == 1 else f"1 to {oldest} times: paler, more often"
        middle = _shade(max(1, (oldest + 1) // 2), oldest)
        entries.append((f"generated {ages}", Patch(color=middle, linewidth=0)))
    canvas.legend(entries, left=52, top=14)
    return plot(
        canvas,
        "ledger",
        f"Ledger of real and generated {'text' if scene.unit == 'tokens' else scene.unit}",
        f"{scene.unit.capitalize()} in each generation's training set, by how often they were "
        "generated before. Percentages: the share that is real. One epoch; the same for every "
        "seed.",
        "Share that is real, first and last generation: "
        + "; ".join(
            f"{', '.join(arms)} {rows[0].real_share:.0%} to {rows[-1].real_share:.0%}"
            for arms, rows in groups.items()
        )
        + ".",
    )


def _shade(age: int, oldest: int) -> str:
    if age == 0:
        return "#3a3a42"
    level = 0.62 + 0.26 * (age - 1) / max(1, oldest - 1)
    return f"#{round(level * 255):02x}{round(level * 252):02x}{round(level * 244):02x}"


def _ledger_panel(
    axes: Any, rows: Sequence[LedgerRow], oldest: int, last: int, width: float
) -> None:
    steps = np.diff([row.generation for row in rows])
    bar = 0.62 * float(steps.min()) if len(steps) else 0.62
    for row in rows:
        ages = dict(row.by_age)
        if len(ages) > 12:  # of many ages, all generated data as one
            ages = {0: row.real, max(ages): row.total - row.real}
        bottom = 0.0
        for age, values in ages.items():
            how = {"color": _shade(age, oldest), "edgecolor": "#ffffff", "linewidth": 0.8}
            axes.bar(row.generation, values / 1000, bottom=bottom, width=bar, **how)
            bottom += values / 1000
        axes.annotate(
            f"{row.real_share:.0%}{' real' if len(rows) <= 6 else ''}",
            (row.generation, bottom),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=11,
        )
    axes.set_ylim(0, 1.1 * max(row.total for row in rows) / 1000)
    style.few_ticks(axes)
    style.generations(axes, last, width)
    axes.set_xlim(-0.8 * bar, last + 0.8 * bar)
