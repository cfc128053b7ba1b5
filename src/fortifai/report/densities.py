"""The figures of Gaussians and mixtures: variance, histograms, points, tails, distances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from matplotlib.ticker import FixedLocator, FuncFormatter

from fortifai.report import style
from fortifai.report.panels import Panel, generations, name_column, panels
from fortifai.report.records import Arm
from fortifai.report.scene import Plot, Scene, draw, legend, legend_height, plot, series
from fortifai.report.style import GRID, INK, SOFT, WIDE, Canvas
from fortifai.report.text import MINUS

_REAL_FILL = "#d4d3cf"
_COLUMNS = 6
"""Generations that are shown side by side, at most."""


def variance(scene: Scene) -> Plot | None:
    """Variance by generation, simulated and predicted, on one axis (the paper's Figs. 2 and C4)."""
    measure, on = "variance.ratio", "model"
    if not scene.has(measure, on):
        return None
    dashed = Line2D([], [], color=SOFT, linewidth=1.4, linestyle=(0, (4, 3)))
    band = Line2D([], [], color=SOFT, linewidth=1.2, linestyle=(0, (1, 1.5)))
    banded = any("low" in p for p in scene.prediction.values())
    extra: list[tuple[str, Any]] = [("expected by theory", dashed)] if scene.prediction else []
    extra += [("95 % of single seeds, by theory", band)] if banded else []
    top = legend_height(scene, [name for name, _ in extra])
    canvas = Canvas(WIDE, top + 48 + 320 + 44)
    axes = canvas.axes(70, top + 48, WIDE - 100, 320)
    lines = {arm.label: series(arm, measure, on) for arm in scene.arms}
    values = [v for line in lines.values() for v in (*line.low, *line.high) if v > 0]
    for arm in scene.arms:
        look, told = scene.looks[arm.label], scene.prediction.get(arm.label)
        if told and lines[arm.label].x:
            values += _prediction(axes, told, lines[arm.label].x[-1], look.colour)
    style.plain_log(axes, [*values, 1.0])
    generations(axes, scene.last, WIDE - 100)
    style.heading(axes, "Variance of the fitted density", "over that of the real one, log scale")
    axes.axhline(1, color=SOFT, linewidth=1, zorder=1)
    for arm in scene.arms:
        draw(axes, lines[arm.label], scene.looks[arm.label], size=6.5)
    legend(canvas, scene, extra)
    theory = (
        " Dashes: its expectation by theory, bias times amplification times the finite-sample "
        "factor; thin dots: 95\u00a0% of single seeds by the same theory."
        if scene.prediction
        else ""
    )
    return plot(
        canvas,
        "variance",
        "Variance, simulated and predicted" if scene.prediction else "Variance",
        "Variance of each generation's density over that of the real distribution, mean over "
        f"dimensions; 1: nothing lost. n = {scene.counts(measure, on)} points a fit.{theory} "
        f"{scene.seeds_said()}{_endings(scene)}",
    )


def _prediction(
    axes: Any, told: Mapping[str, Sequence[float]], last: int, colour: str
) -> list[float]:
    """Draw what theory expects, as far as the arm went; returns the heights drawn."""
    shown = [i for i, g in enumerate(told["generation"]) if g <= last]
    x = [told["generation"][i] for i in shown]
    heights: list[float] = []
    for key, width, dash in (
        ("low", 0.8, (0, (1, 2))),
        ("high", 0.8, (0, (1, 2))),
        ("mean", 1.4, (0, (4, 3))),
    ):
        if key not in told:
            continue
        y = [told[key][i] for i in shown]
        axes.plot(x, y, color=colour, linewidth=width, linestyle=dash, zorder=3)
        heights += [v for v in y if v > 0 and math.isfinite(v)]
    return heights


def _endings(scene: Scene) -> str:
    ended = {
        f"{arm.label} before generation {chain.ended.generation}"
        for arm in scene.arms
        for chain in arm.chains
        if chain.ended
    }
    return f" Ended early: {', '.join(sorted(ended))}." if ended else ""


# --- what was drawn ---------------------------------------------------------------------------


def histograms(scene: Scene) -> Plot | None:
    """Histograms of what was written, by generation (the paper's Figs. 2 and C4a)."""
    return _matrix(
        scene,
        "counts",
        "histograms",
        "What was drawn, generation by generation",
        "Histogram of one seed's draws over five real standard deviations on either side; grey: "
        "the real points. What lies outside the axis counts in the outermost bins. Scales differ "
        "from panel to panel.",
        tall=96,
    )


def scatter(scene: Scene) -> Plot | None:
    """Points and components, by generation (the paper's Fig. 8)."""
    return _matrix(
        scene,
        "points",
        "points",
        "What was drawn, generation by generation",
        "Up to 400 of one seed's draws; grey: real points; ellipses: the components of the fitted "
        "density at two standard deviations. Axes: the first two dimensions, the same in all "
        "panels.",
        tall=0,
    )


def _matrix(
    scene: Scene, key: str, name: str, title: str, caption: str, *, tall: int
) -> Plot | None:
    """One row an arm, one column a generation."""
    arms = [arm for arm in scene.arms if key in _picture(arm, 0)]
    if not arms:
        return None
    columns = chosen(arms, _COLUMNS)
    (left, names), gap = name_column(arms), 12
    wide = (WIDE - left - 10) / len(columns) - gap
    high = tall or wide
    canvas = Canvas(WIDE, round(34 + len(arms) * (high + 30)))
    limits = _limits(arms) if key == "points" else None
    for r, arm in enumerate(arms):
        top = 34 + r * (high + 30)
        colour = scene.looks[arm.label].colour
        canvas.text(6, top + high / 2, names[arm.label], color=colour, weight="bold")
        for c, number in enumerate(columns):
            if r == 0:
                canvas.text(
                    left + c * (wide + gap) + wide / 2,
                    22,
                    f"generation {number}",
                    color=SOFT,
                    ha="center",
                    fontsize=11,
                )
            picture = _picture(arm, number)
            axes = canvas.axes(left + c * (wide + gap), top, wide, high)
            axes.grid(visible=False)
            axes.tick_params(labelleft=False, labelsize=9)
            if key not in picture:
                axes.set_axis_off()
                axes.text(
                    0.5,
                    0.5,
                    missing(arm, number),
                    ha="center",
                    color=SOFT,
                    fontsize=10,
                    transform=axes.transAxes,
                )
            elif key == "counts":
                _histogram(axes, picture, _picture(arm, 0), colour)
            else:
                _points(axes, picture, _picture(arm, 0), colour, limits)
    return plot(canvas, name, title, f"{caption}{_endings(scene)}")


def missing(arm: Arm, number: int) -> str:
    """Why there is nothing to be seen of the first seed's generation `number`."""
    chain = arm.chains[0]
    if chain.ended and number >= chain.ended.generation:
        return "ended"
    if number not in chain.due:
        return "not measured"
    return "not yet" if number > chain.generations[-1].number else "left out"


def _picture(arm: Arm, number: int) -> Mapping[str, Any]:
    """What the first seed drew."""
    found = arm.chains[0].at(number)
    return found.picture if found else {}


def chosen(arms: Sequence[Arm], count: int) -> list[int]:
    """Generations to show: the first and the last, and some between, of the first seeds'."""
    there = sorted({g.number for arm in arms for g in arm.chains[0].generations})
    if len(there) <= count:
        return there
    places = np.linspace(0, len(there) - 1, count).round().astype(int)
    return [there[place] for place in places]


def _histogram(
    axes: Any, picture: Mapping[str, Any], first: Mapping[str, Any], colour: str
) -> None:
    edges = np.array(picture["edges"])
    real = first.get("counts", {}).get("real")
    if real is not None and sum(real):
        axes.stairs(np.array(real) / sum(real), edges, fill=True, color=_REAL_FILL, lw=0)
    drawn = np.array(picture["counts"]["rewritten"], dtype=np.float64)
    axes.stairs(drawn / max(drawn.sum(), 1), edges, color=colour, linewidth=1.6)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(FixedLocator([edges[0], (edges[0] + edges[-1]) / 2, edges[-1]]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}".replace("-", MINUS)))
    # inwards, where they do not meet those of the panels beside
    for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_ha(side)


def _limits(arms: Sequence[Arm]) -> tuple[float, float, float, float]:
    """Axes that hold the real points with a wide margin: what leaves them has left the data."""
    real = np.concatenate([np.array(_picture(arm, 0)["points"]["real"]) for arm in arms])
    low, high = real.min(0), real.max(0)
    centre, half = (low + high) / 2, 0.75 * (high - low).max()
    return (centre[0] - half, centre[0] + half, centre[1] - half, centre[1] + half)


def _points(
    axes: Any,
    picture: Mapping[str, Any],
    first: Mapping[str, Any],
    colour: str,
    limits: tuple[float, float, float, float] | None,
) -> None:
    real = np.array(first["points"]["real"])
    drawn = np.array(picture["points"]["rewritten"])
    # as pixels: thousands of points would make a file of megabytes
    real_dots = {"color": _REAL_FILL, "markersize": 3, "zorder": 1, "rasterized": True}
    axes.plot(real[:, 0], real[:, 1], ".", **real_dots)
    drawn_dots = {"color": colour, "markersize": 2.2, "zorder": 2, "rasterized": True}
    axes.plot(drawn[:, 0], drawn[:, 1], ".", alpha=0.7, **drawn_dots)
    for component in picture["components"]:
        values, vectors = np.linalg.eigh(np.array(component["covariance"]))
        angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
        axes.add_patch(
            Ellipse(
                component["mean"],
                4 * math.sqrt(max(values[1], 0)),
                4 * math.sqrt(max(values[0], 0)),
                angle=angle,
                fill=False,
                edgecolor=INK,
                linewidth=0.9,
                alpha=max(0.15, min(1.0, 2 * component["weight"])),
                zorder=3,
            )
        )
    if limits:
        axes.set_xlim(limits[0], limits[1])
        axes.set_ylim(limits[2], limits[3])
    axes.tick_params(labelbottom=False, length=0)
    # a frame: what leaves the panel is cut off there
    axes.spines[:].set(visible=True, color=GRID)


# --- panels of lines --------------------------------------------------------------------------


def tails(scene: Scene) -> Plot | None:
    """Tail mass beyond 2 and 3 sigma, and the drift of the mean."""
    made = panels(
        scene,
        [
            Panel("Beyond 2 sigma", "share of the draws", "tail.2sigma", "rewritten", "real"),
            Panel("Beyond 3 sigma", "share of the draws", "tail.3sigma", "rewritten", "real"),
            Panel("Drift of the mean", "real standard deviations", "mean.drift", "model"),
        ],
    )
    if not made:
        return None
    return plot(
        made[0],
        "tails",
        "Tails and centre",
        "Share of the draws beyond 2 and 3 standard deviations (Mahalanobis distances) of the real "
        f"distribution, and the distance of the fitted mean from the real one. "
        f"Dashes: real points. Scales differ. {scene.seeds_said()}",
    )


def distances(scene: Scene) -> Plot | None:
    """Wasserstein-1, L2 between mixtures, components kept, held-out log-likelihood."""
    made = panels(
        scene,
        [
            Panel("Wasserstein-1", "to held-out points", "wasserstein", "rewritten"),
            Panel("L2 distance", "to the true density", "l2", "model"),
            Panel("Components kept", "of the mixture", "components.kept", "model"),
            Panel("Held-out points", "log-density, nats", "log_likelihood", "held-out"),
        ],
    )
    if not made:
        return None
    return plot(
        made[0],
        "distances",
        "Distance from the real distribution",
        "Wasserstein-1 between draws and held-out real points (sliced in more than one dimension); "
        "L2 distance between the fitted and the true density, in closed form (to generation 0's "
        "where no true one is known); components with weight and spread left; mean log-density of "
        f"held-out real points. Scales differ. {scene.seeds_said()}",
    )
