"""The command line around the work: help, wrong names of models, faults of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import fortifai


def test_the_help_names_every_command():
    told = fortifai("--help").stdout
    for name in ("run", "report", "presets", "show", "audit", "threshold", "kr"):
        assert f" {name} " in told
    for name in ("build", "check", "score"):
        assert f" {name} " in fortifai("kr", "--help").stdout


@pytest.fixture
def questions(tmp_path):
    row = '{"context": "A", "sentence_true": "b", "sentence_false": "c", "location": 1}\n'
    (tmp_path / "q.jsonl").write_text(row)
    return tmp_path / "q.jsonl"


def test_a_folder_that_is_no_model_is_told_with_the_nearest_that_is(tmp_path, questions):
    empty = tmp_path / "empty"
    empty.mkdir()
    done = fortifai("kr", "score", empty, questions)
    assert done.returncode == 2
    assert f"error: {empty} holds no model: there is no config.json" in done.stderr
    for generation in ("00", "01"):
        model = tmp_path / f"run/arms/ce/seed-0/generation-{generation}/model"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
    done = fortifai("kr", "score", tmp_path / "run", questions)
    assert done.returncode == 2
    assert f"{tmp_path / 'run'} is a run, not a model; give one of its models, such as" in (
        " ".join(done.stderr.split())
    )
    assert "generation-01/model" in done.stderr


def test_a_device_that_is_not_here_is_told(tmp_path, questions):
    done = fortifai("kr", "score", "no/such", questions, "--device", "abacus")
    assert done.returncode == 2
    assert "--device is 'abacus', which is not here" in done.stderr


def test_a_fault_of_its_own_is_one_sentence_and_a_traceback_with_debug(monkeypatch):
    def breaks(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("fortifai.configuration.read_raw", breaks)
    done = fortifai("show", "demo")
    assert done.returncode == 1
    assert done.stderr.startswith("failed: KeyError: 'x'; this is a fault of fortifai")
    assert done.stderr.count("\n") == 1
    with pytest.raises(KeyError):
        fortifai("show", "demo", "--debug")


def test_what_was_seen_cannot_steer_the_terminal(monkeypatch, tmp_path):
    """Labels of a run folder may be a stranger's."""

    def write(*_: object, sum_up: Callable[[str], None], **__: object) -> Path:
        sum_up("under \x1b[31mred\x1b]0;title\x07")
        return tmp_path / "index.html"

    monkeypatch.setattr("fortifai.report.write_report", write)
    done = fortifai("report", tmp_path)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout
    assert "under \u241b[31mred" in done.stdout
