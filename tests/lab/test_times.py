"""What generations took: written beside the commits, and read as far as it is there."""

import json
import time

import pytest

from fortifai.lab import times
from fortifai.lab.progress import Silent


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
