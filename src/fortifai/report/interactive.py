"""What makes a page interactive: one script, its styles, and the numbers and texts it shows."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from fortifai.report.page import Live
from fortifai.report.passages import places, scores_of
from fortifai.report.records import Arm, Key
from fortifai.report.scene import Curve, Panel, Plot, Scene
from fortifai.report.text import neutral


def live(scene: Scene, plots: Sequence[Plot]) -> Live:
    """What makes the page of `plots` interactive."""
    told = {
        "arms": [_arm(scene, arm) for arm in scene.arms],
        "figures": {
            plot.name: [_panel(scene, panel) for panel in plot.panels]
            for plot in plots
            if plot.panels
        },
        "scores": list(scores_of(scene)),
        "passages": _passages(scene),
    }
    return Live(_script(), _file("uplot/uPlot.min.css") + _file("interactive.css"), inert(told))


def inert(told: Any) -> str:
    """JSON for a ``<script type="application/json">``, which no text in it can end."""
    text = json.dumps(_plain(told), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found.group()):04x}", text)


def _plain(told: Any) -> Any:
    """The same with texts that can be looked at, and numbers short and finite, or null."""
    if isinstance(told, str):
        return neutral(told)
    if isinstance(told, float):
        return float(f"{told:.6g}") if math.isfinite(told) else None
    if isinstance(told, Mapping):
        return {neutral(str(key)): _plain(value) for key, value in told.items()}
    if isinstance(told, Sequence):
        return [_plain(value) for value in told]
    return told


def _file(name: str) -> str:
    return resources.files("fortifai.report").joinpath(name).read_text("utf-8")


@functools.cache
def _script() -> str:
    licence, library = _file("uplot/LICENSE"), _file("uplot/uPlot.iife.min.js")
    return f"/*! uPlot\n\n{licence}*/\n{library}\n{_file('interactive.js')}"


def _arm(scene: Scene, arm: Arm) -> dict[str, Any]:
    look = scene.looks[arm.label]
    return {
        "label": arm.label,
        "colour": look.colour,
        "mark": look.mark,
        "dash": _dash(look.dash),
        "seeds": [chain.seed for chain in arm.chains],
    }


def _dash(dash: Any) -> list[float]:
    """Dashes as a canvas takes them; matplotlib's are in widths of the line, and that is 2."""
    return [] if dash == "-" else [2.0 * length for length in dash[1]]


def _panel(scene: Scene, panel: Panel) -> dict[str, Any]:
    every = [line.x for line in panel.lines.values()] + [curve.x for curve in panel.curves]
    x = sorted({number for numbers in every for number in numbers})
    return {
        "title": panel.title,
        "unit": panel.unit,
        "log": panel.log,
        "unseen": panel.unseen,
        "limits": panel.limits,
        "x": x,
        "arms": [_line(panel, arm, x) for arm in scene.arms],
        "curves": [_curve(curve, x) for curve in panel.curves],
    }


def _line(panel: Panel, arm: Arm, x: Sequence[float]) -> dict[str, Any]:
    line = panel.lines[arm.label]
    found: dict[str, Any] = {"failed": panel.failed.get(arm.label)}
    found |= {
        what: _at(line.x, getattr(line, what), x)
        for what in ("mean", "low", "high")
        if what == "mean" or line.low != line.high
    }
    if len(arm.chains) > 1:
        found["seeds"] = [_of_seed(chain.generations, panel.key, x) for chain in arm.chains]
    return found


def _of_seed(generations: Sequence[Any], key: Key, x: Sequence[float]) -> list[Any]:
    return _at([g.number for g in generations], [g.value(key) for g in generations], x)


def _curve(curve: Curve, x: Sequence[float]) -> dict[str, Any]:
    level = set(curve.y) if len(set(curve.y)) == 1 else {None}
    return {
        "name": curve.name,
        "arm": curve.arm,
        "colour": curve.colour,
        "dash": _dash(curve.how["linestyle"]),
        "width": curve.how["linewidth"],
        "level": level.pop(),
        "y": _at(curve.x, curve.y, x),
    }


def _at(numbers: Sequence[float], values: Sequence[Any], x: Sequence[float]) -> list[Any]:
    """Values by generation `x`; None where there is none."""
    found = dict(zip(numbers, values, strict=True))
    return [found.get(number) for number in x]


def _passages(scene: Scene) -> list[dict[str, Any]]:
    index = {arm.label: i for i, arm in enumerate(scene.arms)}
    return [
        {
            "title": place.title,
            "real": place.real,
            "versions": [
                {
                    "arm": index[version.arm.label],
                    "seed": version.seed,
                    "times": version.times,
                    "pieces": version.pieces,
                    "scores": version.scores,
                }
                for version in place.versions
            ],
        }
        for place in places(scene)
    ]
