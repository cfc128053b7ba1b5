"""The plan of the house: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fortifai

SOURCE = Path(fortifai.__file__).parent
FLOORS = (
    {"errors"},
    {"options", "files", "file_formats", "machine", "fork_server", "stats"},
    {"weights", "file_tables"},
    {"losses"},
    {"lab", "integrations", "data"},
    {"points", "images", "models"},
    {"evals"},
    {"questions", "text"},
    {"audit", "configuration"},
    {"report"},
    {"cli"},
)
"""From the ground up: a room imports from floors below its own alone."""
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module by its name within the package."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts).removesuffix("__init__").rstrip(".")] = path
    return found


def imports(path: Path) -> set[str]:
    """What a module imports of the package, within functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fortifai":
            inner = node.module.removeprefix("fortifai").lstrip(".")
            found |= {f"{inner}.{alias.name}".lstrip(".") for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.split(".")[0] == "fortifai"]
            found |= {name.removeprefix("fortifai").lstrip(".") for name in names}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    return found


def test_every_room_has_its_floor():
    rooms = {name.partition(".")[0] for name in modules()} - {"", "presets"}
    assert rooms == set(FLOOR)


def test_no_import_runs_up_a_floor_or_across_one():
    """So that no rooms import in a circle either."""
    wrong = []
    for name, path in modules().items():
        room = name.partition(".")[0]
        if not room:
            continue  # the package's own __init__, which offers the losses
        for target in imports(path):
            other = target.partition(".")[0]
            if other in FLOOR and other != room and FLOOR[other] >= FLOOR[room]:
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_no_module_is_named_where_a_string_would_be_imported():
    """Modules that are imported by a name in a string are those of `configuration` alone."""
    users = [n for n, path in modules().items() if "import_module(" in path.read_text("utf-8")]
    assert sorted(users) == ["configuration", "lab.plugins"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("fortifai.losses", ("transformers", "pydantic", "scipy", "sklearn", "fortifai.lab")),
        # what each process of an audit of texts loads
        ("fortifai.audit.corpus", ("torch", "transformers", "pydantic", "fortifai.losses")),
        (
            "fortifai.points.domain",
            (
                # the last two take longer to load than a run of Gaussians lasts
                *("transformers", "datasets", "fortifai.models", "torch", "sklearn"),
                *("fortifai.text", "fortifai.data", "fortifai.evals"),
            ),
        ),
        ("fortifai.images.domain", ("transformers", "fortifai.text", "fortifai.models")),
        ("fortifai.lab.experiment", ("torch", "transformers", "fortifai.points", "fortifai.text")),
        ("fortifai.report.load", ("transformers", "fortifai.models", "fortifai.points")),
    ],
)
def test_what_an_import_does_not_load(module, never):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = set(done.stdout.split())
    assert not loaded & set(never)


GAUSSIANS = """
import sys
from pathlib import Path
from fortifai import configuration
from fortifai.lab import experiment

raw = {
    "name": "gaussians", "generations": 2, "seeds": {"count": 2}, "baseline": "mle",
    "corpus": {"kind": "points", "source": {"kind": "gaussian"}, "samples": 50, "held_out": 50},
    "family": {"kind": "gaussian"}, "arms": {"mle": {}},
}
experiment.run(configuration.resolve(raw), Path(), Path(sys.argv[1]), workers=1)
assert (Path(sys.argv[1]) / "manifest.json").exists()
print(*sys.modules)
"""


@pytest.mark.long
def test_a_run_of_gaussians_that_keeps_every_point_loads_no_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", GAUSSIANS, str(tmp_path / "run")],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert not set(done.stdout.split()) & {"torch", "sklearn", "matplotlib"}
