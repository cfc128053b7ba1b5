"""The figures that are not lines: confidence histograms, and the ledger of real and rewritten."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter
from numpy.typing import NDArray

from fortifai.report import style
from fortifai.report.records import FIRST, Arm, Generation
from fortifai.report.scene import Plot, Scene, legend_height, plot
from fortifai.report.style import HALF, INK, SOFT, WIDE, Canvas

_REAL_FILL = "#d4d3cf"
_PER_ROW = 5


# --- confidence -------------------------------------------------------------------------------


def confidence(scene: Scene) -> Plot | None:
    """Histograms of the confidence on real, rewritten and held-out text (the paper's Fig. 1)."""
    arms = [arm for arm in scene.arms if _histogram(arm, 0, FIRST) is not None]
    if not arms:
        return None
    bands = [arms[i : i + _PER_ROW] for i in range(0, len(arms), _PER_ROW)]
    tall, pitch, top = 120, 152, 48
    band_height = 2 * pitch + 56
    canvas = Canvas(WIDE, top + len(bands) * band_height - 8)
    step = (WIDE - 60) / max(len(band) for band in bands)
    step = min(step, 330)
    ceiling = max(_tallest(arm, number) for arm in arms for number in {0, arm.last})
    for b, band in enumerate(bands):
        for c, arm in enumerate(band):
            for r, number in enumerate((0, arm.last)):
                axes = canvas.axes(
                    56 + c * step, top + 30 + b * band_height + r * pitch, step - 22, tall
                )
                axes.set_ylim(0, ceiling * 1.06)
                _confidence_panel(axes, arm, number, scene, limit=int(step / 8) if r == 0 else 0)
                if c:
                    axes.tick_params(axis="y", labelleft=False)
                if r == 0:
                    axes.tick_params(axis="x", labelbottom=False)
                elif b == len(bands) - 1 and c == 0:
                    axes.set_xlabel("confidence p", color=SOFT, fontsize=11)
    _confidence_legend(canvas)
    return plot(
        canvas,
        "confidence",
        "Confidence on real, rewritten and held-out text",
        "Share of tokens (y) by the probability p that the arm's model gives them (x, bins of "
        f"{_bin_width(arms[0]):g}), after its first generation (above) and its last (below): the "
        "real first split, the same split as this generation rewrote it, and held-out real text. "
        "All seeds pooled. Dotted upright line: the arm's truncation threshold; tokens right of "
        "it are left out of training.",
    )


def _confidence_panel(axes: Any, arm: Arm, number: int, scene: Scene, *, limit: int) -> None:
    look = scene.looks[arm.label]
    for on, how in (
        (FIRST, {"fill": True, "color": _REAL_FILL, "lw": 0, "zorder": 1}),
        ("held-out", {"color": INK, "lw": 1.3, "linestyle": (0, (3, 2)), "zorder": 3}),
        ("rewritten-0", {"color": look.colour, "lw": 2.0, "zorder": 4}),
    ):
        found = _histogram(arm, number, on)
        if found is not None:
            axes.stairs(found[1], found[0], **how)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    style.few_ticks(axes, 3)
    if arm.threshold is not None:
        axes.axvline(arm.threshold, color=look.colour, linewidth=1.2, linestyle=":", zorder=2)
    axes.annotate(
        f"generation {number}",
        (0.5, 1),
        xycoords="axes fraction",
        xytext=(0, -4),
        textcoords="offset points",
        ha="center",
        va="top",
        color=SOFT,
        fontsize=11,
        bbox={"facecolor": "#ffffff", "edgecolor": "none", "pad": 1.5},
        zorder=6,
    )
    if limit:
        style.heading(axes, style.short(arm.label, limit))


def _histogram(
    arm: Arm, number: int, on: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Edges and the share of tokens in each bin, all seeds together."""
    found = [g for chain in arm.chains if (g := chain.at(number)) and on in g.counts]
    if not found:
        return None
    edges = np.array(found[0].bins, dtype=np.float64)
    same = [g.counts[on] for g in found if len(g.counts[on]) == len(edges) - 1]
    total = np.sum(np.array(same, dtype=np.float64), axis=0) if same else np.zeros(1)
    return (edges, total / total.sum()) if total.sum() > 0 else None


def _tallest(arm: Arm, number: int) -> float:
    found = [_histogram(arm, number, on) for on in (FIRST, "held-out", "rewritten-0")]
    return max(float(h[1].max()) for h in found if h is not None)


def _bin_width(arm: Arm) -> float:
    edges = arm.chains[0].generations[0].bins
    return round(edges[1] - edges[0], 6)


def _confidence_legend(canvas: Canvas) -> None:
    canvas.legend(
        [
            ("real first split", Patch(color=_REAL_FILL, linewidth=0)),
            ("rewritten first split, in the arm's colour", Line2D([], [], color=SOFT, linewidth=2)),
            ("held-out", Line2D([], [], color=INK, linewidth=1.3, linestyle=(0, (3, 2)))),
        ],
        left=52,
        top=10,
    )


# --- the ledger -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class LedgerGroup:
    """Arms whose generations trained on the same amounts.

    Attributes:
        arms: Their labels.
        rows: One generation each.
    """

    arms: tuple[str, ...]
    rows: tuple[LedgerRow, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class LedgerRow:
    """What one generation trained on: tokens by how often they were rewritten (0: real)."""

    generation: int
    by_age: Mapping[int, int]

    @property
    def real(self) -> int:
        """Real tokens."""
        return self.by_age.get(0, 0)

    @property
    def total(self) -> int:
        """All tokens."""
        return sum(self.by_age.values())

    @property
    def real_share(self) -> float:
        """Real over all; NaN where nothing was trained on."""
        return self.real / self.total if self.total else math.nan


def ledgers(arms: Sequence[Arm]) -> list[LedgerGroup]:
    """Ledgers of the arms, those that are equal as far as both go told once."""
    groups: list[tuple[list[str], list[LedgerRow]]] = []
    for arm in arms:
        longest = max(arm.chains, key=lambda chain: len(chain.generations))
        rows = [_ledger_row(g) for g in longest.generations if g.ledger.get("parts")]
        if not rows:
            continue
        for names, known in groups:
            both = min(len(known), len(rows))
            if _key(known[:both]) == _key(rows[:both]):
                names.append(arm.label)
                known.extend(rows[both:])
                break
        else:
            groups.append(([arm.label], rows))
    return [LedgerGroup(tuple(names), tuple(rows)) for names, rows in groups]


def thinned(rows: Sequence[LedgerRow], count: int) -> tuple[LedgerRow, ...]:
    """At most so many rows, evenly spaced, the first and the last among them."""
    if len(rows) <= count:
        return tuple(rows)
    places = np.linspace(0, len(rows) - 1, count).round().astype(int)
    return tuple(rows[place] for place in places)


def _key(rows: Sequence[LedgerRow]) -> str:
    return json.dumps([[r.generation, sorted(r.by_age.items())] for r in rows])


def _ledger_row(generation: Generation) -> LedgerRow:
    ages: dict[int, int] = {}
    for part in generation.ledger["parts"]:
        age = int(part["generation"])
        ages[age] = ages.get(age, 0) + int(part["values"])
    return LedgerRow(generation.number, dict(sorted(ages.items())))


def ledger(scene: Scene) -> Plot | None:
    """Real and rewritten tokens in each generation's training set."""
    groups = ledgers(scene.arms)
    if not groups:
        return None
    pitch, top = 326, legend_height(scene, width=HALF)  # in line with its neighbour
    canvas = Canvas(HALF, top + pitch * len(groups))
    groups = [dataclasses.replace(group, rows=thinned(group.rows, 9)) for group in groups]
    oldest = max(age for group in groups for row in group.rows for age in row.by_age)
    for i, group in enumerate(groups):
        axes = canvas.axes(56, top + 48 + i * pitch, HALF - 80, 230)
        _ledger_panel(axes, group, oldest, scene.last)
        whole = len(group.arms) == len(scene.arms)
        name = "All arms" if whole else style.short(", ".join(group.arms), 56)
        style.heading(axes, name, f"thousand {scene.unit} trained on, once each")
    entries: list[tuple[str, Any]] = [("real", Patch(color=_shade(0, oldest), linewidth=0))]
    if oldest:
        ages = "once" if oldest == 1 else f"1 to {oldest} times: paler, more often"
        entries.append((f"rewritten {ages}", _ramp(oldest)))
    canvas.legend(entries, left=52, top=14)
    return plot(
        canvas,
        "ledger",
        f"Ledger of real and rewritten {'text' if scene.unit == 'tokens' else scene.unit}",
        f"{scene.unit.capitalize()} in each generation's training set, by how often they were "
        "rewritten before. Percentages: the share that is real. One epoch; the same for every "
        "seed.",
        wide=False,
    )


def _ramp(oldest: int) -> Patch:
    return Patch(color=_shade(max(1, (oldest + 1) // 2), oldest), linewidth=0)


def _shade(age: int, oldest: int) -> str:
    if age == 0:
        return "#3a3a42"
    level = 0.62 + 0.26 * (age - 1) / max(1, oldest - 1)
    return f"#{round(level * 255):02x}{round(level * 252):02x}{round(level * 244):02x}"


def _ledger_panel(axes: Any, group: LedgerGroup, oldest: int, last: int) -> None:
    steps = np.diff([row.generation for row in group.rows])
    width = 0.62 * float(steps.min()) if len(steps) else 0.62
    labelled = len(group.rows) <= 6
    for row in group.rows:
        bottom = 0.0
        for age, values in _stacked(row.by_age).items():
            axes.bar(
                row.generation,
                values / 1000,
                bottom=bottom,
                width=width,
                color=_shade(age, oldest),
                edgecolor="#ffffff",
                linewidth=0.8,
            )
            bottom += values / 1000
        axes.annotate(
            f"{row.real_share:.0%}{' real' if labelled else ''}",
            (row.generation, bottom),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=11,
        )
    axes.set_ylim(0, 1.1 * max(row.total for row in group.rows) / 1000)
    style.few_ticks(axes)
    style.generations(axes, last)
    axes.set_xlim(-0.8 * width, last + 0.8 * width)


def _stacked(by_age: Mapping[int, int]) -> Mapping[int, int]:
    """Real and rewritten data; of many ages, all rewritten data as one."""
    if len(by_age) <= 12:
        return by_age
    oldest = max(by_age)
    return {0: by_age.get(0, 0), oldest: sum(n for age, n in by_age.items() if age)}
