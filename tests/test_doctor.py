"""`fortifai doctor`, and what the project says of its own dependencies."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from typer.testing import CliRunner

from fortifai.cli import doctor
from fortifai.cli.app import app
from fortifai.errors import InputError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OUR_OWN = {"test", "docs", "dev"}


@pytest.fixture
def asked(monkeypatch):
    """Has the package ask for other things, as its metadata would."""

    def ask(*requirements: str) -> None:
        monkeypatch.setattr(importlib.metadata, "requires", lambda _: list(requirements))

    return ask


def told(*arguments: str):
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_what_is_missing_is_told_by_feature(asked):
    asked("torch>=2", "no-such-thing>=1; extra == 'peft'", "numpy>=999; extra == 'gguf'")
    done = told("--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 0, "nothing that is needed is missing"
    assert found["versions"]["fortifai"] == importlib.metadata.version("fortifai")
    assert found["devices"][0] == "cpu"
    assert found["machine"]["cores"] >= 1
    assert found["needed"] == [["torch>=2", importlib.metadata.version("torch"), ""]]
    assert found["optional"]["peft"]["packages"] == [["no-such-thing>=1", "", "missing"]]
    (numpy,) = found["optional"]["gguf"]["packages"]
    assert numpy[1:] == [importlib.metadata.version("numpy"), "another version"]
    assert found["optional"]["trl"]["packages"] == []
    text = re.sub(r"\s+", " ", told().stdout)
    assert "no-such-thing>=1 missing" in text
    assert "pip install 'fortifai[peft]'" in text


@pytest.mark.parametrize("needed", ["no-such-thing", "numpy<1"])
def test_a_needed_part_that_is_missing_is_found(asked, needed):
    asked(needed)
    assert told().exit_code == 3


def test_a_package_for_another_system_is_not_asked_for(asked):
    asked("no-such-thing; platform_system == 'Amiga'")
    assert told().exit_code == 0


def test_a_package_that_is_not_installed_is_told(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    with pytest.raises(InputError, match="not installed"):
        doctor.examine()


def test_every_extra_has_its_feature():
    assert set(doctor.FEATURES) == set(EXTRAS) - OUR_OWN


def test_lowest_constraints_are_the_lower_bounds():
    """constraints-lowest.txt pins what pyproject.toml declares for the core and the trainers."""
    lines = (ROOT / "constraints-lowest.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and line[0] != "#")
    wanted = [
        *PROJECT["dependencies"],
        *(r for e in ("trl", "peft", "lightning") for r in EXTRAS[e]),
    ]
    bounds = {}
    for requirement in map(Requirement, wanted):
        (bound,) = [s.version for s in requirement.specifier if s.operator == ">="]
        bounds[requirement.name] = bound
    assert {k: Version(v) for k, v in pinned.items()} == {k: Version(v) for k, v in bounds.items()}
