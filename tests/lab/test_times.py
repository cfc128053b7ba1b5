"""What generations took: written beside the commits, and read as far as it is there."""

import json
import time

import pytest

from fortifai import configuration
from fortifai.lab import experiment, times
from fortifai.lab.progress import Silent
from fortifai.report.context import context
from fortifai.report.failure import failures
from fortifai.report.load import load
from fortifai.report.scene import Scene


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when it is told to."""
    now = {"clock": 100.0, "processor": 7.0}
    monkeypatch.setattr(time, "monotonic", lambda: now["clock"])
    monkeypatch.setattr(time, "process_time", lambda: now["processor"])

    def passes(seconds, used=None):
        now["clock"] += seconds
        now["processor"] += seconds if used is None else used

    return passes


def test_stages_are_parted_by_what_is_told_and_a_commit_counts_all_behind_the_last(tmp_path, clock):
    timed = times.Timed(Silent(), tmp_path)
    clock(50)  # preparing
    for generation in (3, 4):
        timed.begin(generation)
        clock(2)
        timed.step("train", 1, 2)
        clock(3, used=6)  # two threads
        timed.step("train", 2, 2)
        clock(4)
        timed.step("rewrite", 1, 1)
    clock(1)
    timed.step("measure", 1, 1)
    clock(0.5)
    timed.end(4, [])
    clock(9)
    timed.begin(5)
    clock(1)
    timed.step("train", 1, 1)
    timed.end(5, [])
    assert times.times(tmp_path) == {
        4: times.Took(2, 19.5, 25.5, {"train": 10.0, "rewrite": 8.0, "measure": 1.0}),
        5: times.Took(1, 1.0, 1.0, {"train": 1.0}),
    }


def test_what_is_told_is_passed_on(tmp_path):
    told = []

    class Listening:
        def begin(self, generation):
            told.append(("begin", generation))

        def step(self, stage, done, total, *, tokens=0):
            told.append((stage, done, total, tokens))

        def end(self, generation, scores):
            told.append(("end", generation, scores))

    timed = times.Timed(Listening(), tmp_path)
    timed.begin(1)
    timed.step("train", 1, 3, tokens=64)
    timed.end(1, ["a score"])
    assert told == [("begin", 1), ("train", 1, 3, 64), ("end", 1, ["a score"])]


def test_of_a_generation_done_again_the_last_counts_and_of_a_cut_line_nothing(tmp_path):
    def line(generation, seconds):
        took = {"seconds": seconds, "processor_seconds": seconds, "stages": {}, "generations": 1}
        return json.dumps({"generation": generation, **took})

    cut = line(2, 5.0)[:30]
    text = "\n".join([line(0, 1.0), line(1, 2.0), cut + line(1, 9.0), line(0, 3.0), "7", ""])
    (tmp_path / times.TIMES).write_text(text)
    assert {g: took.seconds for g, took in times.times(tmp_path).items()} == {0: 3.0, 1: 2.0}
    assert times.times(tmp_path / "none") == {}


def test_a_run_writes_them_where_it_is_asked_to_and_else_nothing_that_differs(tmp_path):
    raw = {
        "name": "timed",
        "generations": 4,
        "eval_every": 2,
        "corpus": {"kind": "points", "source": {"kind": "gaussian"}, "samples": 100, "held_out": 9},
        "family": {"kind": "gaussian"},
        "baseline": "plain",
        "arms": {"plain": {}},
    }
    out = tmp_path / "run"
    experiment.run(configuration.resolve(raw), tmp_path, out, workers=1)
    assert not list(out.rglob(times.TIMES))
    more = configuration.resolve(raw | {"times": True, "generations": 6})
    experiment.run(more, tmp_path, out, workers=1)
    (file,) = out.rglob(times.TIMES)
    took = times.times(file.parent)
    assert {number: one.generations for number, one in took.items()} == {4: 1, 5: 1}
    assert all({"fit", "draw"} <= one.stages.keys() for one in took.values())
    assert all(sum(one.stages.values()) <= one.seconds + 0.002 for one in took.values())
    runs = load([out])
    (run,) = runs
    assert [g.took for g in run.arms[0].chains[0].generations] == [None, None, took[4], took[5]]
    found = failures(runs)
    tables = context(Scene(runs, found.drawn), [], found)["tables"]
    (made,) = [table for table in tables if table["id"] == "time"]
    assert made["head"] == ["arm", "by the clock", "of processors", *took[4].stages, "other"]
    shares = [int(cell.rstrip("%")) for cell in made["rows"][0]["cells"][2:]]
    assert sum(shares) == pytest.approx(100, abs=2)  # each rounded to 1 %
