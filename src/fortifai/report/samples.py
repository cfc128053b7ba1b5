"""The figures of what was drawn, generation by generation: histograms, points, images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Ellipse
from matplotlib.ticker import FixedLocator, FuncFormatter
from numpy.typing import NDArray

from fortifai.report import style
from fortifai.report.numbers import number
from fortifai.report.records import Arm, Generation
from fortifai.report.scene import Plot, Scene, plot
from fortifai.report.style import GRID, INK, REAL_FILL, SOFT, WIDE, Canvas

COLUMNS = 6
"""Generations that are shown side by side, at most."""
SIDE = 4
"""Images along each side of a cell."""
TITLE = "What was drawn, generation by generation"

Cell = Callable[[Any, Arm, Generation], None]


def histograms(scene: Scene) -> Plot | None:
    """Histograms of what was generated (the paper's Figs. 2 and C4a)."""
    arms = [arm for arm in scene.arms if "counts" in _first(arm).picture]

    def cell(axes: Any, arm: Arm, generation: Generation) -> None:
        _histogram(axes, generation.picture, _first(arm).picture, scene.looks[arm.label].colour)

    return _matrix(
        scene,
        "histograms",
        arms,
        cell,
        "Histogram of one seed's draws over five real standard deviations on either side; grey: "
        "the real points. What lies outside the axis counts in the outermost bins. Scales differ "
        "from panel to panel.",
        _spread_of_counts,
        tall=96,
    )


def scatter(scene: Scene) -> Plot | None:
    """Points and components (the paper's Fig. 8)."""
    arms = [arm for arm in scene.arms if "points" in _first(arm).picture]
    limits = _limits(arms) if arms else ()

    def cell(axes: Any, arm: Arm, generation: Generation) -> None:
        colour = scene.looks[arm.label].colour
        _points(axes, generation.picture, _first(arm).picture, colour)
        axes.set(xlim=limits[:2], ylim=limits[2:])

    return _matrix(
        scene,
        "points",
        arms,
        cell,
        "Up to 400 of one seed's draws; grey: real points; ellipses: the components of the fitted "
        "density at two standard deviations. Axes: the first two dimensions, the same in all "
        "panels.",
        lambda g: float(np.std(g.picture["points"]["rewritten"], axis=0).mean()),
    )


def images(scene: Scene) -> Plot | None:
    """Grids of generated images, arms under one another (the paper's Fig. 9)."""
    arms = [arm for arm in scene.arms if "rewritten" in _first(arm).grid]

    def cell(axes: Any, arm: Arm, generation: Generation) -> None:
        _image(axes, generation.grid["rewritten"], f"{arms.index(arm)}-{generation.number}")

    def real(axes: Any, arm: Arm, generation: Generation) -> None:
        if "real" in generation.grid:
            _image(axes, generation.grid["real"], f"{arms.index(arm)}-real")

    return _matrix(
        scene,
        "samples",
        arms,
        cell,
        f"The first {SIDE * SIDE} images that each generation wrote, of one seed, beside real "
        "ones. Arms draw from the same codes.",
        lambda g: float(np.std(g.grid["rewritten"], axis=0).mean()),
        real=real,
    )


# --- arms by generations ----------------------------------------------------------------------


def _matrix(
    scene: Scene,
    name: str,
    arms: Sequence[Arm],
    cell: Cell,
    caption: str,
    spread: Callable[[Generation], float],
    *,
    tall: int = 0,
    real: Cell | None = None,
) -> Plot | None:
    """One row an arm, one column a generation, before them one of real data if so."""
    if not arms:
        return None
    numbers = chosen(arms, COLUMNS - 1 if real else COLUMNS)
    shown: list[int | None] = [*([None] if real else []), *numbers]
    names = {arm.label: style.short(arm.label, 20) for arm in arms}
    left, gap = max(90, 18 + max(1.16 * style.text_width(name) for name in names.values())), 12
    wide = (WIDE - left - 10) / len(shown) - gap
    wide = wide if tall else min(wide, 170)
    high = tall or wide
    canvas = Canvas(WIDE, round(34 + len(arms) * (high + 30)))
    for r, arm in enumerate(arms):
        top, colour = 34 + r * (high + 30), scene.looks[arm.label].colour
        canvas.text(6, top + high / 2, names[arm.label], color=colour, weight="bold")
        for c, generation in enumerate(shown):
            x = left + c * (wide + gap)
            if r == 0:
                head = "real" if generation is None else f"generation {generation}"
                canvas.text(x + wide / 2, 22, head, color=SOFT, ha="center", fontsize=11)
            axes = canvas.axes(x, top, wide, high)
            axes.grid(visible=False)
            axes.tick_params(labelleft=False, labelsize=9)
            found = arm.chains[0].at(generation or 0)
            if found is None:
                axes.set_axis_off()
                why = missing(arm, generation or 0)
                place = {"ha": "center", "transform": axes.transAxes}
                axes.text(0.5, 0.5, why, color=SOFT, fontsize=10, **place)
            elif generation is None and real:
                real(axes, arm, found)
            else:
                cell(axes, arm, found)
    told = []
    for arm in arms:
        drawn = [g for there in numbers if (g := arm.chains[0].at(there))]
        told.append(f"{arm.label} {' to '.join(number(spread(g)) for g in (drawn[0], drawn[-1]))}")
    alt = f"Standard deviation over the draws, first and last generation: {'; '.join(told)}."
    return plot(canvas, name, TITLE, f"{caption}{scene.endings()}", alt)


def chosen(arms: Sequence[Arm], count: int) -> list[int]:
    """Generations to show: the first and the last, and some between, of the first seeds'."""
    return style.thinned(sorted({g.number for a in arms for g in a.chains[0].generations}), count)


def missing(arm: Arm, number: int) -> str:
    """Why there is nothing to be seen of the first seed's generation `number`."""
    chain = arm.chains[0]
    if chain.ended and number >= chain.ended.generation:
        return "ended"
    if number not in chain.due:
        return "not measured"
    return "not yet" if number > chain.generations[-1].number else "left out"


def _first(arm: Arm) -> Generation:
    """Generation 0 of the first seed, or an empty one."""
    return arm.chains[0].at(0) or Generation(0, {})


# --- cells ------------------------------------------------------------------------------------


def _histogram(
    axes: Any, picture: Mapping[str, Any], first: Mapping[str, Any], colour: str
) -> None:
    edges = np.array(picture["edges"])
    real = first.get("counts", {}).get("real")
    if real is not None and sum(real):
        axes.stairs(np.array(real) / sum(real), edges, fill=True, color=REAL_FILL, lw=0)
    drawn = np.array(picture["counts"]["rewritten"], dtype=np.float64)
    axes.stairs(drawn / max(drawn.sum(), 1), edges, color=colour, linewidth=1.6)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(FixedLocator([edges[0], (edges[0] + edges[-1]) / 2, edges[-1]]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v, ".3g")))
    # inwards, where they do not meet those of the panels beside
    for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_ha(side)


def _spread_of_counts(generation: Generation) -> float:
    edges = np.array(generation.picture["edges"])
    counts = np.array(generation.picture["counts"]["rewritten"], dtype=np.float64)
    middles, shares = (edges[1:] + edges[:-1]) / 2, counts / max(counts.sum(), 1)
    return math.sqrt(max(0.0, float(shares @ middles**2 - (shares @ middles) ** 2)))


def _limits(arms: Sequence[Arm]) -> tuple[float, ...]:
    """Axes that hold the real points with a wide margin: what leaves them has left the data."""
    real = np.concatenate([np.array(_first(arm).picture["points"]["real"]) for arm in arms])
    low, high = real.min(0), real.max(0)
    centre, half = (low + high) / 2, 0.75 * (high - low).max()
    return (centre[0] - half, centre[0] + half, centre[1] - half, centre[1] + half)


def _points(axes: Any, picture: Mapping[str, Any], first: Mapping[str, Any], colour: str) -> None:
    # as pixels: thousands of points would make a file of megabytes
    for points, how in (
        (first["points"]["real"], {"color": REAL_FILL, "markersize": 3, "zorder": 1}),
        (picture["points"]["rewritten"], {"color": colour, "markersize": 2.2, "alpha": 0.7}),
    ):
        axes.plot(*np.array(points).T, ".", rasterized=True, **how)
    for component in picture["components"]:
        values, vectors = np.linalg.eigh(np.array(component["covariance"]))
        axes.add_patch(
            Ellipse(
                component["mean"],
                4 * math.sqrt(max(values[1], 0)),
                4 * math.sqrt(max(values[0], 0)),
                angle=math.degrees(math.atan2(vectors[1, 1], vectors[0, 1])),
                fill=False,
                edgecolor=INK,
                linewidth=0.9,
                alpha=max(0.15, min(1.0, 2 * component["weight"])),
                zorder=3,
            )
        )
    axes.tick_params(labelbottom=False, length=0)
    # a frame: what leaves the panel is cut off there
    axes.spines[:].set(visible=True, color=GRID)


def _image(axes: Any, grid: NDArray[np.uint8], name: str) -> None:
    """The first images as one, with a line between them."""
    axes.set_axis_off()
    shown = grid[: SIDE * SIDE]
    _, height, width = shown.shape
    out = np.full((SIDE * (height + 1) - 1, SIDE * (width + 1) - 1), 90, dtype=np.uint8)
    for i, image in enumerate(shown):
        y, x = (i // SIDE) * (height + 1), (i % SIDE) * (width + 1)
        out[y : y + height, x : x + width] = image
    drawn = axes.imshow(out, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    drawn.set_gid(f"image-{name}")  # equal images would have equal ids
