"""The figures of image models: grids of samples, spread, likeness, classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fortifai.report.densities import chosen, missing
from fortifai.report.panels import Panel, name_column, panels
from fortifai.report.records import Arm
from fortifai.report.scene import Plot, Scene, plot
from fortifai.report.style import SOFT, WIDE, Canvas

_COLUMNS = 6
_SIDE = 4
"""Images along each side of a cell."""


def samples(scene: Scene) -> Plot | None:
    """Grids of samples by generation, arms under one another (the paper's Fig. 9)."""
    arms = [arm for arm in scene.arms if "rewritten" in _grid(arm, 0)]
    if not arms:
        return None
    there = chosen(arms, _COLUMNS - 1)
    (left, names), gap = name_column(arms), 12
    side = (WIDE - left - 10) / (len(there) + 1) - gap
    side = min(side, 170)
    canvas = Canvas(WIDE, round(34 + len(arms) * (side + 16)))
    for r, arm in enumerate(arms):
        top = 34 + r * (side + 16)
        colour = scene.looks[arm.label].colour
        canvas.text(6, top + side / 2, names[arm.label], color=colour, weight="bold")
        cells = [("real", _grid(arm, 0).get("real"), "")]
        cells += [
            (f"generation {n}", _grid(arm, n).get("rewritten"), missing(arm, n)) for n in there
        ]
        for c, (name, grid, why) in enumerate(cells):
            x = left + c * (side + gap)
            if r == 0:
                canvas.text(x + side / 2, 22, name, color=SOFT, ha="center", fontsize=11)
            axes = canvas.axes(x, top, side, side)
            axes.set_axis_off()
            if grid is not None:
                image = axes.imshow(
                    _tiled(grid), cmap="gray", vmin=0, vmax=255, interpolation="nearest"
                )
                image.set_gid(f"image-{r}-{c}")  # equal images would have equal ids
            else:
                axes.text(0.5, 0.5, why, ha="center", color=SOFT, fontsize=10)
    return plot(
        canvas,
        "samples",
        "What was drawn, generation by generation",
        f"The first {_SIDE * _SIDE} images that each generation wrote, of one seed, beside real "
        "ones. Arms draw from the same codes.",
    )


def _grid(arm: Arm, number: int) -> dict[str, NDArray[np.uint8]]:
    found = arm.chains[0].at(number)
    return dict(found.grid) if found else {}


def _tiled(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The first images as one, with a line between them."""
    shown = images[: _SIDE * _SIDE]
    _, height, width = shown.shape
    out = np.full((_SIDE * (height + 1) - 1, _SIDE * (width + 1) - 1), 90, dtype=np.uint8)
    for i, image in enumerate(shown):
        row, column = divmod(i, _SIDE)
        y, x = row * (height + 1), column * (width + 1)
        out[y : y + height, x : x + width] = image
    return out


def spread(scene: Scene) -> Plot | None:
    """Spread of generation 0's codes, and how well held-out images are told."""
    made = panels(
        scene,
        [
            Panel("Spread of codes", "standard deviation", "spread", "rewritten", "real"),
            Panel("Held-out images", "log p of all pixels, nats", "reconstruction", "held-out"),
        ],
    )
    if not made:
        return None
    return plot(
        made[0],
        "spread",
        "Spread of what was drawn",
        "Left: standard deviation of generation 0's encoder means over what each generation wrote "
        "(the measure of The Curse of Recursion); dashes: over the real images, in the arm's "
        "colour where arms differ, since every arm and seed is seen through its own generation 0. "
        f"Right: log-probability of held-out real images at their mean code. {scene.seeds_said()}",
    )


def likeness(scene: Scene) -> Plot | None:
    """Fréchet distance, precision and recall in generation 0's code space."""
    made = panels(
        scene,
        [
            Panel("Fréchet distance", "in code space", "frechet", "rewritten", "real"),
            Panel("Precision", "share of draws near real ones", "precision", "rewritten", "real"),
            Panel("Recall", "share of real ones near draws", "recall", "rewritten", "real"),
        ],
    )
    if not made:
        return None
    return plot(
        made[0],
        "likeness",
        "Likeness to held-out images",
        "In the code space of generation 0's encoder, at equal numbers "
        f"(n = {scene.counts('frechet', 'rewritten')} of either side): Fréchet distance; precision "
        "and recall by nearest neighbours (k = 3). Dashes: real images that were trained on, the "
        f"best to be had. {scene.seeds_said()}",
    )


def classes(scene: Scene) -> Plot | None:
    """What a classifier of real images sees."""
    made = panels(
        scene,
        [
            Panel("Entropy over classes", "nats", "classes.entropy", "rewritten", "real"),
            Panel("Certainty", "mean top probability", "classes.certainty", "rewritten", "real"),
        ],
    )
    if not made:
        return None
    return plot(
        made[0],
        "classes",
        "What a classifier sees",
        "A classifier trained on real images: entropy of the classes that it finds in the draws, "
        "and how sure it is of them. Dashes: held-out real images. "
        f"{scene.seeds_said()}",
    )
