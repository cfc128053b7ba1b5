"""Parts from outside the package, from a module to the report."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from fortifai import configuration
from fortifai.errors import InputError
from fortifai.lab import plugins
from tests.commands import fortifai

DOCS = Path(__file__).parents[1] / "docs" / "plugins.md"
MODULE = re.findall(r"^```python\n(.*?)^```", DOCS.read_text("utf-8"), re.DOTALL | re.MULTILINE)[0]
"""The module that the documentation shows: one part of each sort."""

EXPERIMENT = {
    "name": "mine",
    "generations": 3,
    "seeds": [0, 1],
    "baseline": "plain",
    "corpus": {"kind": "points", "source": {"kind": "uniform", "width": 2.0}, "samples": 60},
    "measures": ["reach"],
    "family": {"kind": "gaussian"},
    "arms": {
        "plain": {},
        "cured": {
            "weight": {"kind": "half"},
            "regime": {"kind": "anchor"},
            "cures": [{"kind": "every_other", "first": 1}, {"kind": "deduplicate"}],
        },
    },
}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A plugin's module in the working directory."""
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "mine"
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_one_of_each_from_a_module_to_the_report(module, tmp_path, workers):
    command = ("run", "mine.yaml", "--out", "run", "--plugin", module, "--workers", workers)
    done = fortifai(*command)
    assert done.returncode == 0, done.stderr
    arm = tmp_path / "run" / "arms" / "cured" / "seed-1"
    ledger = json.loads((arm / "generation-01" / "ledger.json").read_text())
    every_other, deduplicate = ledger["cures"]
    # the anchor's regime: the rewriting and the real data once more
    assert every_other["read"] == {"generation-0": 60, "real": 60}
    assert every_other["kept"] == deduplicate["kept"] == {"generation-0": 30, "real": 30}
    rows = (arm / "generation-01" / "scores.jsonl").read_text().splitlines()
    scores = {row["measure"]: row for row in map(json.loads, rows)}
    assert 0 < scores["reach"]["value"] < 20
    # its weight: half of every point, and none left out at generation 0
    assert scores["train.truncated_share"]["value"] == 0.5
    # its corpus: nothing beyond the width, so both real moments are those of a uniform
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "Reach of the points" in page
    assert (tmp_path / "run" / "config.yaml").read_text().count("uniform") == 1
    sys.modules.pop(module)
    again = fortifai("report", "run")  # without the plugin: a report needs none of its code
    assert module not in sys.modules
    assert again.returncode == 0, again.stderr
    assert "Reach of the points" in (tmp_path / "run" / "report" / "index.html").read_text()


@pytest.mark.parametrize("value", ["math.nan", "math.inf", "math.nan if N == 0 else 2.0"])
def test_a_measure_without_a_finite_value_costs_no_report(module, tmp_path, value):
    """What was trained has its report; a line that has no point is not drawn."""
    finite = "2.0" in value
    value = value.replace("N", "generation.number")
    text = "import math\n" + MODULE.replace("float(written.max() - written.min())", value)
    (tmp_path / "mine.py").write_text(text)
    done = fortifai("run", "mine.yaml", "--out", "run", "--plugin", module, "--set", "seeds=[0]")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert ("Reach of the points" in page) == finite


def test_a_run_that_goes_on_with_another_plugin_says_so(module, tmp_path):
    command = ("run", "mine.yaml", "--out", "run", "--plugin", module, "--set", "seeds=[0]")
    assert fortifai(*command, "--set", "generations=2").returncode == 0
    made = json.loads((tmp_path / "run" / "run.json").read_text())
    source = tmp_path / "mine.py"
    assert made["plugins"] == {"mine": hashlib.sha256(source.read_bytes()).hexdigest()}
    again = fortifai(*command, "--set", "generations=3")
    assert "another one than this run began with" not in again.stderr + again.stdout
    source.write_text(MODULE + "# changed\n")
    changed = fortifai(*command, "--set", "generations=4")
    assert changed.returncode == 0
    told = " ".join((changed.stderr + changed.stdout).split())
    assert "the plugin mine is another one than this run began with" in told


def test_a_yaml_alone_imports_nothing(module):
    with pytest.raises(InputError, match=r"source.kind is 'uniform'; allowed are gaussian"):
        configuration.resolve(EXPERIMENT)
    curious = EXPERIMENT | {"arms": {"plain": {"cures": [{"kind": "every_other"}]}}}
    with pytest.raises(InputError, match=r"cures.0.kind is 'every_other'.* needs --plugin MODULE"):
        configuration.resolve(curious | {"corpus": {"kind": "points", "source": {"kind": "moons"}}})
    assert module not in sys.modules
    found = plugins.load([module])
    resolved = configuration.resolve(EXPERIMENT, found)
    assert resolved.corpus.source.kind == "uniform"
    assert [m.name for m in resolved.taken()][-1] == "reach"
    wrong = EXPERIMENT["arms"] | {"plain": {"cures": [{"kind": "every_othr"}]}}
    with pytest.raises(InputError, match="did you mean 'every_other'"):
        configuration.resolve(EXPERIMENT | {"arms": wrong}, found)
    with pytest.raises(InputError, match="measures names 'reech', which no plugin has"):
        configuration.resolve(EXPERIMENT | {"measures": ["reech"]}, found)


def test_a_measure_must_be_asked_for(module):
    found = plugins.load([module])
    raw = {k: v for k, v in EXPERIMENT.items() if k != "measures"}
    assert "reach" not in [m.name for m in configuration.resolve(raw, found).taken()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no_such_module: the module could not be imported .*ModuleNotFoundError"),
        ("1 / 0", "could not be imported .ZeroDivisionError"),
        ("raise SystemExit(3)", "could not be imported .SystemExit: 3"),
        ("x = 1", "the module has no list PLUGIN"),
        ("PLUGIN = [int]", "lists <class 'int'>, which is none of"),
    ],
)
def test_wrong_modules_get_one_sentence(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = "no_such_module"
    if text is not None:
        name = f"wrong_{abs(hash(text))}"
        (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(InputError, match=message):
        plugins.load([name])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def select", "def choose", "EveryOther has no method select; write it as Select says"),
        ("def plan", "def plans", "Anchor has no method plan; write it as Regime says"),
        ("def draw", "def drawn", "Uniform has no method draw; write it as PointSource says"),
        ("def __call__", "def weigh", "Half has no method __call__; write it as Weight says"),
        ("PointSource", "Corpus", "Uniform is a Corpus of no kind of data; derive it from"),
    ],
)
def test_a_part_that_lacks_what_it_is_asked_for(tmp_path, monkeypatch, old, new, message):
    """Before work starts, not in the middle of a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = MODULE.replace(old, new)
    if new == "Corpus":
        text = text.replace("fortifai.points.sources", "fortifai.lab.plugins")
    name = f"lacking_{new.split()[-1].strip('_')}"
    (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(InputError, match=message):
        plugins.load([name])


def test_a_measure_of_a_name_that_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "same_name.py").write_text(MODULE.replace('"reach"', '"wasserstein"'))
    found = plugins.load(["same_name"])
    with pytest.raises(InputError, match="'wasserstein', which is also a measure of this package"):
        configuration.resolve(EXPERIMENT | {"measures": ["wasserstein"]}, found)


def test_two_parts_of_one_kind_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = MODULE.replace("every_other", "deduplicate")
    (tmp_path / "same_kind.py").write_text(text)
    found = plugins.load(["same_kind"])
    with pytest.raises(InputError, match="are both of kind 'deduplicate'"):
        configuration.resolve(EXPERIMENT, found)


STEP = """
from typing import Literal

from fortifai.lab.after_fit import AfterFit


class Shrink(AfterFit):
    kind: Literal["shrink"] = "shrink"
    times: float = 0.9

    def apply(self, model, fitted):
        for theta in model.weights().values():
            theta.data *= self.times
        return {}


PLUGIN = [Shrink]
"""


def test_a_step_on_weights_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "shrinking.py").write_text(STEP)
    raw = {
        "name": "mine",
        "generations": 2,
        "baseline": "plain",
        "corpus": {"kind": "images", "source": {"kind": "digits"}},
        "family": {"kind": "vae"},
        "arms": {"plain": {}, "mine": {"after_fit": [{"kind": "shrink"}, {"kind": "step_back"}]}},
    }
    resolved = configuration.resolve(raw, plugins.load(["shrinking"]))
    assert [step.kind for step in resolved.arms["mine"].after_fit] == ["shrink", "step_back"]
    with pytest.raises(InputError, match="kind is 'shrink'; allowed are step_back, neon"):
        configuration.resolve(raw)
    (tmp_path / "lacking_apply.py").write_text(STEP.replace("def apply", "def change"))
    with pytest.raises(InputError, match="Shrink has no method apply; write it as AfterFit says"):
        plugins.load(["lacking_apply"])
