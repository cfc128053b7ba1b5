"""The wheel and the sdist: built, installed into an empty environment, and run there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from fortifai.configuration import preset_names

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.long


def run(*command: str | Path, cwd: Path, **more: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | more
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True,
        check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wheel, which is built from the sdist, and of the sdist."""
    out = tmp_path_factory.mktemp("dist")
    # with the builder that is here: nothing is fetched
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


def one(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_the_wheel_has_the_package_and_nothing_else(built):
    names = zipfile.ZipFile(one(built, "*.whl")).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fortifai"}
    assert "fortifai/py.typed" in names
    presets = {f"fortifai/presets/{name}.yaml" for name in preset_names()}
    assert presets <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    # the library that interactive reports hold, with its licence
    parts = ("uPlot.iife.min.js", "uPlot.min.css", "LICENSE")
    assert {f"fortifai/report/uplot/{part}" for part in parts} <= set(names)


def test_the_sdist_has_what_it_takes_to_test_and_document(built):
    with tarfile.open(one(built, "*.tar.gz")) as sdist:
        names = sdist.getnames()
    inside = {name.partition("/")[2] for name in names}
    wanted = {"src/fortifai/py.typed", "tests/test_package.py", "docs/results.md", "mkdocs.yml"}
    wanted |= {"LICENSE", "README.md", "CITATION.cff", "constraints.txt", "scripts/house.py"}
    assert wanted <= inside
    assert not {name for name in inside if name.startswith((".venv", "runs/", "build/"))}


@pytest.fixture(scope="module")
def python(built, tmp_path_factory) -> Path:
    """Python of an empty environment with the wheel in it, and this one's packages beside it.

    The wheel was built from the sdist, so what it takes to build one is in there.

    Dependencies are those that were tested with: they are found where they lie, not fetched again.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    inside = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    where = run(inside, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    # first its own packages, so that a checkout that this environment knows of does not come first
    (Path(where.strip()) / "zz_shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    run(
        sys.executable, "-m", "pip", "--python", inside, "install", "--quiet", "--no-deps",
        "--no-index", "--no-build-isolation", "--ignore-installed", one(built, "*.whl"),
        cwd=folder,
    )  # fmt: skip
    return inside


def test_it_runs_where_it_is_installed(python, tmp_path):
    where = run(python, "-c", "import fortifai; print(fortifai.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(python.parents[1]), "not the checkout"
    smaller = [
        "corpus.samples=60", "corpus.held_out=100", "generations=3", "eval_every=1", "seeds=[0]",
    ]  # fmt: skip
    settings = [word for setting in smaller for word in ("--set", setting)]
    program = python.with_name("fortifai")
    told = run(program, "run", "fortifai-gmm", *settings, "--out", "run", cwd=tmp_path)
    assert "report:" in told
    assert (tmp_path / "run" / "report" / "index.html").is_file()
