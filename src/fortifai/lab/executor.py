"""Runs the chains of an experiment, in this process or several at a time in processes of its own.

A chain (one arm and seed, or all its seeds) depends on no other, so chains are the unit of parallel
work. Each gets the same number of threads however many run at a time, and wherever: sums in another
order round otherwise, and a result must not depend on `workers`. An `Executor` says where: `local`
here, on a cluster `fortifai.lab.ray_executor`.
"""

from __future__ import annotations

import collections
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol

from fortifai.errors import FortifaiError, InputError, RunFailed, Stopped
from fortifai.lab.measures import Score
from fortifai.lab.progress import Progress
from fortifai.machine import (
    accelerators,
    cores,
    end_with_parent,
    process_context,
    use_threads,
)

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


class RunJobs(Protocol):
    """Runs every job; one that fails does not stop the others."""

    def __call__(self, work: Work, shared: Any, jobs: Sequence[Job], *, listen: Listen) -> None:
        """Run them.

        Args:
            work: Does one job.
            shared: First argument of `work`; small and picklable.
            jobs: What to do.
            listen: Receives events, one at a time.

        Raises:
            FortifaiError: What the first failed job raised, once the others have ended;
                `RunFailed` naming every failed job if there are several.
        """
        ...


class Executor(Protocol):
    """Where chains run: looks before any work at what it is asked for, and clears up behind it."""

    def __call__(
        self,
        out: Path,
        *,
        threads: int,
        workers: int | None,
        devices: int | None,
        processes: int = 1,
    ) -> AbstractContextManager[RunJobs]:
        """Make ready.

        Args:
            out: The folder that all jobs write into.
            threads: Threads of each job, and of each process that it starts.
            workers: Jobs at a time; None: as many as there is room for.
            devices: Accelerators of each job; None: one for each process, where there are any; 0:
                the job is for the processor alone, and none is looked for.
            processes: That a job has at work at a time.

        Raises:
            InputError: There are fewer accelerators or cores, or `out` cannot be used from there.
        """
        ...


PATIENCE = 1.0
"""Seconds that processes which are asked to leave have for it."""
_MOST_PROCESSES = 61 if sys.platform == "win32" else 1 << 16  # Windows waits for no more at once


class Sender:
    """A `Progress` that sends events."""

    def __init__(self, job: Job, send: Listen) -> None:
        self._job, self._send = job, send
        self._generation, self._last = 0, 0.0

    def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
        """Send a step, at most ten a second and the last."""
        now = time.monotonic()
        if now - self._last >= 0.1 or done >= total:
            self._last = now
            self._send(Event("step", self._job, self._generation, stage, done, total, tokens))

    def begin(self, generation: int) -> None:
        """Send the start of a generation."""
        self._generation = generation
        self._send(Event("begin", self._job, generation))

    def end(self, generation: int, scores: Sequence[Score]) -> None:
        """Send the end of a generation."""
        self._send(Event("end", self._job, generation, scores=tuple(scores)))

    def note(self, text: str) -> None:
        """Send a sentence."""
        self._send(Event("note", self._job, self._generation, text=text))


@contextmanager
def local(
    out: Path, *, threads: int, workers: int | None, devices: int | None, processes: int = 1
) -> Iterator[RunJobs]:
    """The `Executor` of this machine: a process a chain, with accelerators of its own.

    Raises:
        InputError: There are fewer accelerators than `devices`, or than `processes`.
    """
    places: list[dict[str, str]] = []
    if devices != 0:
        n = devices_of(devices, processes, len(accelerators()[1]), "a run here may use")
        places = shares(n or None)
    workers = workers or len(places) or max(1, cores() // (threads * processes))
    yield partial(run_jobs, workers=workers, threads=threads, places=places)


def shares(devices: int | None) -> list[dict[str, str]]:
    """The environment of each chain that runs at a time: which accelerators it sees.

    Args:
        devices: Accelerators of each; None: 1, where there are any.

    Raises:
        InputError: There are fewer.
    """
    variable, ids = accelerators()
    n = devices_of(devices, 1, len(ids), "a run here may use") or 1
    return [{variable: ",".join(ids[i : i + n])} for i in range(0, len(ids) - n + 1, n)]


def devices_of(asked: int | None, processes: int, there: int, where: str) -> int:
    """Accelerators of each chain, at least one for each of its processes where there are any.

    Args:
        asked: Of ``--devices-per-chain``, if it is given; 0 where chains use none.
        processes: Of a chain.
        there: Accelerators that a chain may have.
        where: They are, for the message.

    Raises:
        InputError: More are asked for than are there, or fewer than there are processes.
    """
    if asked == 0:
        return 0
    if asked is not None and asked > there:
        raise too_few_devices(asked, there, where)
    if 0 < there < processes:
        raise InputError(
            f"train.parallel.processes is {processes}, with an accelerator each, and {where} "
            f"{there} accelerators; lower it to {there}"
        )
    if asked is not None and asked < processes:
        raise InputError(
            f"--devices-per-chain is {asked}, and each process of train.parallel, of {processes}, "
            f"has an accelerator; set it to {processes}, or leave it out"
        )
    return min(processes, there) if asked is None else asked


def too_few_devices(asked: int, there: int, where: str) -> InputError:
    """What to say where a chain is to have more accelerators than there are."""
    return InputError(
        f"--devices-per-chain is {asked}, and {where} {there} accelerators; "
        + (f"ask for {there} at most" if there else "leave it out to run on the processor")
    )


def run_jobs(
    work: Work,
    shared: Any,
    jobs: Sequence[Job],
    *,
    workers: int,
    threads: int,
    listen: Listen,
    places: Sequence[Mapping[str, str]] = (),
) -> None:
    """Run every job; one that fails does not stop the others.

    However this process ends, its own end: on an exception they are asked to leave and, soon
    after, killed; where this process is killed, the system kills them.

    Args:
        work: Does one job.
        shared: First argument of `work`; small and picklable.
        jobs: What to do.
        workers: How many at a time; 1 runs them in this process, unless there are several places.
        threads: For each.
        listen: Receives events, one at a time.
        places: Environment variables of each process, in turn: which accelerators are its own.

    Raises:
        FortifaiError: What the first failed job raised, once the others have ended; `RunFailed`
            naming every failed job if there are several.
    """
    workers = min(workers, len(jobs), _MOST_PROCESSES)
    if workers == 1 and len(places) < 2:
        failures = _run_here(work, shared, jobs, threads, listen)
    else:

        def start(number: int) -> _Process:
            place = places[number % len(places)] if places else {}
            return _Process(number, work, shared, threads, place)

        failures = _run_in_processes(jobs, workers, start, listen)
    raise_failures(failures)


def raise_failures(failures: Sequence[Exception]) -> None:
    """Raise the one failure that there is, or `RunFailed` with what each of several says."""
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise RunFailed("; ".join(map(str, failures))) from failures[0]


def _run_here(
    work: Work, shared: Any, jobs: Sequence[Job], threads: int, listen: Listen
) -> list[Exception]:
    failures: list[Exception] = []
    with use_threads(threads):
        for job in jobs:
            sender = Sender(job, listen)
            try:
                work(shared, job, sender, sender.note)
            except FortifaiError as error:
                failures.append(error)
    return failures


def _run_in_processes(
    jobs: Sequence[Job], count: int, start: Callable[[int], _Process], listen: Listen
) -> list[Exception]:
    """Run the jobs in so many processes; `start` makes the one of a number."""
    waiting = collections.deque(jobs)
    failures: list[Exception] = []
    processes: dict[Any, _Process] = {}
    try:
        for number in range(count):
            process = start(number)
            processes[process.pipe] = process
            process.take(waiting.popleft())
        while processes:
            for pipe in multiprocessing.connection.wait(list(processes)):
                process = processes[pipe]
                try:
                    told = process.pipe.recv()
                except (EOFError, OSError):
                    told = process.was_killed()
                if isinstance(told, Event):
                    listen(told)
                    continue
                if isinstance(told, FortifaiError):
                    failures.append(told)
                elif told is not None:
                    raise told
                if waiting and process.ended:  # another in its place
                    del processes[pipe]
                    process = start(process.number)
                    processes[process.pipe] = process
                if waiting:
                    process.take(waiting.popleft())
                else:
                    process.leave()
                    del processes[pipe]
    finally:
        _end([process.process for process in processes.values()])
    return failures


class _Process:
    """A process that does one job after the other, and the pipe to it."""

    job: Job

    def __init__(
        self, number: int, work: Work, shared: Any, threads: int, place: Mapping[str, str]
    ) -> None:
        context = process_context()
        self.number, self.ended = number, False
        environment = os.environ | place  # a server may have begun with another
        self.pipe, there = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(there, work, shared, threads, environment)
        )
        self.process.start()
        there.close()

    def take(self, job: Job) -> None:
        self.job = job
        with suppress(OSError):  # it was killed, which shows when it is listened to
            self.pipe.send(job)

    def was_killed(self) -> RunFailed:
        self.ended = True
        self.process.join()
        return lost(self.job, "its process was killed (out of memory?)")

    def leave(self) -> None:
        with suppress(OSError):
            self.pipe.send(None)
        self.process.join()


def lost(job: Job, how: str) -> RunFailed:
    """What to say of a job that ended without a word."""
    arm, chain = job
    return RunFailed(
        f"arm {arm}, {chain.replace('-', ' ')}: {how}; start the same command again to go on from "
        "the last whole generation"
    )


def _end(processes: Iterable[BaseProcess]) -> None:
    """Ask processes to leave, and kill those that are deep in a computation."""
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()


# --- in such a process ------------------------------------------------------------------------

_busy = threading.Event()


def _serve(
    pipe: Any, work: Work, shared: Any, threads: int, environment: Mapping[str, str]
) -> None:
    signal.signal(signal.SIGTERM, _leave)
    # that of a terminal goes to all processes, and the parent sees to them
    signal.signal(signal.SIGINT, lambda *_: None)
    end_with_parent()
    os.environ.update(environment)
    turn = threading.Lock()

    def send(told: Any) -> None:
        with turn:
            pipe.send(told)

    while (job := pipe.recv()) is not None:
        failed: Exception | None = None
        _busy.set()
        try:
            sender = Sender(job, send)
            with use_threads(threads):
                work(shared, job, sender, sender.note)
        except Stopped as stopped:
            os._exit(stopped.exit_code)  # behind the work's own clearing up
        except Exception as error:
            failed = as_sent(error)
        _busy.clear()
        send(failed)


def as_sent(error: Exception) -> Exception:
    """The error with its traceback as a note, which a pipe carries; another where it cannot."""
    error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _leave(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough
    if not _busy.is_set():
        os._exit(128 + number)
    raise Stopped(number)
