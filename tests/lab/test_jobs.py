"""Chains here and in processes of their own."""

from __future__ import annotations

import os

import pytest
import torch

from fortifai.errors import InputError, RunFailed
from fortifai.lab.executor import Event, run_jobs
from fortifai.machine import threads, use_threads

JOBS = [("a", "seed-0"), ("a", "seed-1"), ("b", "seed-0")]


def says(shared, job, progress, tell):
    """A job that tells who it is; module-level, so that a process finds it."""
    progress.begin(3)
    progress.step("train", 1, 1, tokens=7)
    tell(f"{shared} {os.getpid()} {torch.get_num_threads()}")
    if job[0] in shared:
        raise (InputError if shared == "b" else RunFailed)(f"{'.'.join(job)} fails")


def run(shared="", workers=1, jobs=JOBS) -> list[Event]:
    told: list[Event] = []
    run_jobs(says, shared, jobs, workers=workers, threads=1, listen=told.append)
    return told


def test_events_say_whose_they_are():
    told = run()
    assert [event.job for event in told if event.kind == "begin"] == JOBS
    steps = [event for event in told if event.kind == "step"]
    assert {(s.generation, s.stage, s.done, s.tokens) for s in steps} == {(3, "train", 1, 7)}


def test_a_failure_stops_no_other_and_several_are_named():
    told: list[Event] = []
    with pytest.raises(InputError, match=r"^b.seed-0 fails$"):
        run_jobs(says, "b", JOBS[::-1], workers=1, threads=1, listen=told.append)
    assert [event.job for event in told if event.kind == "begin"] == JOBS[::-1]
    with pytest.raises(RunFailed, match=r"a.seed-0 fails; a.seed-1 fails"):
        run("a")


@pytest.mark.long
def test_processes_of_their_own_tell_the_same():
    alone, several = run(), run(workers=2)
    assert sorted(e.job for e in several if e.kind == "note") == sorted(JOBS)
    pids = {e.text.split()[0] for e in several if e.kind == "note"}
    assert str(os.getpid()) not in pids
    assert len(several) == len(alone)
    with pytest.raises(RunFailed, match=r"a.seed-\d fails; a.seed-\d fails"):
        run("a", workers=2)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with use_threads(before + 1):
        assert threads() == before + 1
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
