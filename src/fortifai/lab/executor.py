"""Runs the chains of an experiment, in this process or several at a time in processes of its own.

A chain (one arm and seed, or all its seeds) depends on no other, so chains are the unit of parallel
work. Each gets the same number of threads however many run at a time: sums in another order round
otherwise, and a result must not depend on `workers`.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Literal

import torch

from fortifai.errors import FortifaiError, RunFailed
from fortifai.lab.measures import Score
from fortifai.lab.progress import Progress

Job = tuple[str, str]
"""An arm's name and the name of one of its chains, such as ``seed-0``."""

Tell = Callable[[str], None]
Work = Callable[[Any, Job, Progress, Tell], None]
"""(what all jobs share, the job, progress, notes); module-level, so that a process finds it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Something that a chain says while it runs."""

    kind: Literal["step", "begin", "end", "note"]
    job: Job
    generation: int = 0
    stage: str = ""
    done: int = 0
    total: int = 0
    tokens: int = 0
    text: str = ""
    scores: tuple[Score, ...] = ()


Listen = Callable[[Event], None]

_MOST_PROCESSES = 61 if sys.platform == "win32" else 1 << 16  # Windows waits for no more at once


class _Sender:
    """A `Progress` that sends events; steps at most ten a second."""

    def __init__(self, job: Job, send: Listen) -> None:
        self._job, self._send = job, send
        self._generation, self._last = 0, 0.0

    def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
        self._leave_if_orphaned()
        now = time.monotonic()
        if now - self._last >= 0.1 or done >= total:
            self._last = now
            self._send(Event("step", self._job, self._generation, stage, done, total, tokens))

    def begin(self, generation: int) -> None:
        self._generation = generation
        self._send(Event("begin", self._job, generation))

    def end(self, generation: int, scores: Sequence[Score]) -> None:
        self._send(Event("end", self._job, generation, scores=tuple(scores)))

    def note(self, text: str) -> None:
        self._send(Event("note", self._job, self._generation, text=text))

    def _leave_if_orphaned(self) -> None:
        # a parent that was killed takes its chains along: nobody would wait for them, and the same
        # command started again must find the folder free
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(1)


def run_jobs(
    work: Work, shared: Any, jobs: Sequence[Job], *, workers: int, threads: int, listen: Listen
) -> None:
    """Run every job; one that fails does not stop the others.

    Args:
        work: Does one job.
        shared: First argument of `work`; small and picklable.
        jobs: What to do.
        workers: How many at a time; 1 runs them in this process.
        threads: PyTorch threads for each.
        listen: Receives events, one at a time.

    Raises:
        FortifaiError: What the first failed job raised, once the others have ended; `RunFailed`
            naming every failed job if there are several.
    """
    if workers == 1:
        failures = _run_here(work, shared, jobs, threads, listen)
    else:
        failures = _run_in_processes(work, shared, jobs, workers, threads, listen)
    if len(failures) == 1:
        raise failures[0][1]
    if failures:
        raise RunFailed("; ".join(f"{error}" for _, error in failures)) from failures[0][1]


def _run_here(
    work: Work, shared: Any, jobs: Sequence[Job], threads: int, listen: Listen
) -> list[tuple[Job, Exception]]:
    failures: list[tuple[Job, Exception]] = []
    with torch_threads(threads):
        for job in jobs:
            sender = _Sender(job, listen)
            try:
                work(shared, job, sender, sender.note)
            except FortifaiError as error:
                failures.append((job, error))
    return failures


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Use so many PyTorch threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_in_processes(
    work: Work, shared: Any, jobs: Sequence[Job], workers: int, threads: int, listen: Listen
) -> list[tuple[Job, Exception]]:
    context = multiprocessing.get_context("spawn")  # fork and threaded libraries do not mix
    queue: Any = context.Queue()
    listener = threading.Thread(target=_drain, args=(queue, listen), daemon=True)
    listener.start()
    failures: list[tuple[Job, Exception]] = []
    pool = ProcessPoolExecutor(
        min(workers, len(jobs), _MOST_PROCESSES),
        mp_context=context,
        initializer=_initialize,
        initargs=(queue, threads),
    )
    try:
        futures = {pool.submit(_run_there, work, shared, job): job for job in jobs}
        for future in as_completed(futures):
            try:
                future.result()
            except FortifaiError as error:
                failures.append((futures[future], error))
            except BrokenProcessPool as error:
                arm, chain = futures[future]
                raise RunFailed(
                    f"arm {arm}, {chain.replace('-', ' ')}: its process was killed (out of "
                    "memory?); start the same command again to go on from the last whole generation"
                ) from error
        pool.shutdown()  # a process that ends has sent all that it said
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        queue.put(None)
        listener.join(timeout=10)
    return failures


def _drain(queue: Any, listen: Listen) -> None:
    while (event := queue.get()) is not None:
        listen(event)


_worker: dict[str, Any] = {}


def _initialize(queue: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    _worker.update(send=queue.put)


def _run_there(work: Work, shared: Any, job: Job) -> None:
    sender = _Sender(job, _worker["send"])
    work(shared, job, sender, sender.note)
