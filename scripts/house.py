"""The picture of the house: which room imports which, read off the imports of the package.

``python -m scripts.house > house.svg`` writes it; the site draws it anew each time it is built.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "fortifai"
WIDTH, HEIGHT, GAP = 190, 52, 6

Rooms = Mapping[str, set[str]]


def rooms() -> dict[str, set[str]]:
    """Each folder or module at the top of the package, and those that it imports."""
    names = {
        p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    names -= {"__init__", "presets", "py"}
    found: dict[str, set[str]] = {name: set() for name in sorted(names)}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))) if room in found else ():
            modules = []
            if isinstance(node, ast.ImportFrom) and node.module == "fortifai":
                modules = [f"fortifai.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            parts = [module.split(".") for module in modules]
            found[room] |= {p[1] for p in parts if p[0] == "fortifai" and len(p) > 1} & names
        found.get(room, set()).discard(room)
    return found


def floors(found: Rooms) -> list[list[str]]:
    """The rooms by floor, from the ground: each stands above all that it imports.

    Raises:
        ValueError: Rooms import in a circle.
    """
    placed: list[list[str]] = []
    below: set[str] = set()
    while len(below) < len(found):
        floor = [room for room, used in found.items() if room not in below and used <= below]
        if not floor:
            raise ValueError(f"rooms import in a circle: {', '.join(sorted(set(found) - below))}")
        placed.append(floor)
        below |= set(floor)
    return placed


def direct(found: Rooms) -> list[tuple[str, str]]:
    """Imports without those that follow from others."""

    def reached(room: str) -> set[str]:
        return found[room].union(*(reached(used) for used in found[room]))

    return [
        (room, used)
        for room in found
        for used in sorted(found[room])
        if not any(used in reached(other) for other in found[room])
    ]


def picture() -> str:
    """The house as SVG: floors from the ground up, and in each room what it is built on."""
    found = rooms()
    placed = floors(found)
    on = dict.fromkeys(found, "")
    for room, used in direct(found):
        on[room] += f", {used}" if on[room] else f"on {used}"
    width = max(map(len, placed)) * (WIDTH + GAP) + GAP
    height = len(placed) * (HEIGHT + GAP) + GAP
    boxes = []
    for k, floor in enumerate(reversed(placed)):
        for i, room in enumerate(floor):
            x = width / 2 + (i - len(floor) / 2) * (WIDTH + GAP) + GAP / 2
            middle = f"{x + WIDTH / 2:.0f}"
            y = GAP + k * (HEIGHT + GAP)
            told = "".join(
                f'<text class="on" x="{middle}" y="{y + 32 + 12 * line:.0f}">{words}</text>'
                for line, words in enumerate(textwrap.wrap(on[room], 34))
            )
            boxes.append(
                f'<rect class="room" x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}"/>'
                f'<text x="{middle}" y="{y + 18:.0f}">{room}</text>{told}'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        "<title>Rooms of the package by floor; each imports only from floors below</title>"
        "<style>.room{fill:#eef3f9;stroke:#35618f}text{font:bold 14px sans-serif;"
        "text-anchor:middle;fill:#1c1c22}.on{font:10px sans-serif;fill:#55555e}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(boxes)}</svg>\n'
    )


if __name__ == "__main__":
    sys.stdout.write(picture())
