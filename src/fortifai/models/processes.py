"""One piece of work in several processes of this machine at once, a rank each.

They live as long as the call that starts them. One that fails or is killed ends all, and so does
an exception in the caller, such as that of a signal; where the caller itself is killed, the system
ends them (`fortifai.machine.end_with_parent`).
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from threadpoolctl import threadpool_limits

from fortifai.errors import FortifaiError, RunFailed
from fortifai.lab.executor import as_sent
from fortifai.machine import end_with_parent, process_context

T = TypeVar("T")

MOURN = 2.0
"""Seconds in which a process that was killed is found behind the complaint of another."""
LEAVE = 60.0
"""Seconds that a process has for its end, once its work is done."""
LATE = timedelta(hours=1)
"""How long a process waits for another, one that reads its weights from a slow disk among them."""


@dataclasses.dataclass(frozen=True)
class Rank:
    """One of several processes.

    Attributes:
        number: From 0.
        count: Of all.
        meeting: The folder by whose files they find each other.
        threads: PyTorch threads of each: as many as the caller has.
    """

    number: int
    count: int
    meeting: str
    threads: int

    @property
    def device(self) -> torch.device:
        """The accelerator of its number, of those that the caller sees; else the processor."""
        if torch.cuda.is_available():
            return torch.device("cuda", self.number)
        return torch.device("cpu")

    @contextmanager
    def joined(self) -> Iterator[None]:
        """A process group of all.

        NCCL on accelerators; elsewhere gloo, through the interface that no other machine reaches.
        """
        device = self.device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        elif loopback := _loopback():
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=self._store("group"),
            rank=self.number,
            world_size=self.count,
            timeout=LATE,
        )
        try:
            yield
        finally:
            dist.destroy_process_group()

    def in_turn(self, work: Callable[[], T]) -> T:
        """What `work` gives, done by one process after the other; once."""
        store = self._store("turns")
        if self.number:
            store.wait([str(self.number - 1)], LATE)
        done = work()
        store.set(str(self.number), "done")
        return done

    def _store(self, name: str) -> Any:
        # which PyTorch documents, and does not list for others to import
        return dist.FileStore(str(Path(self.meeting) / name), self.count)  # type: ignore[attr-defined] # torch gives it no types


Tell = Callable[[Any], None]
Work = Callable[[Rank, Any, Tell], Any]
"""(which process, the task, says something to the caller) -> its result; module-level."""


def together(
    work: Work, task: Any, count: int, *, what: str, hear: Callable[[int, Any], None]
) -> list[Any]:
    """What `work` gives in each of so many processes, in their order.

    Args:
        work: Does its share.
        task: Small and picklable; files carry the rest.
        count: Processes.
        what: They do, for messages: "the fit".
        hear: Is given a process's number and what it says, one at a time.

    Raises:
        RunFailed: A process was killed.
        Exception: What the first of them raised.
    """
    members: list[_Member] = []
    # on a local disk: the files need locks, which shared ones may not have
    with tempfile.TemporaryDirectory(prefix="fortifai-") as folder:
        try:
            for number in range(count):
                rank = Rank(number, count, folder, torch.get_num_threads())
                members.append(_Member(rank, work, task))
            results = _results(members, what, hear)
            for member in members:
                member.process.join(LEAVE)
            return results
        finally:
            for member in members:
                member.process.kill()
            for member in members:
                member.process.join()


class _Member:
    """A process and the pipe to it."""

    def __init__(self, rank: Rank, work: Work, task: Any) -> None:
        context = process_context()
        self.number = rank.number
        self.pipe, there = context.Pipe()
        environment = dict(os.environ)  # a server may have begun with another
        self.process = context.Process(target=_serve, args=(there, rank, work, task, environment))
        with _quieter():
            self.process.start()
        there.close()


@dataclasses.dataclass(frozen=True)
class _Done:
    result: Any


def _results(members: Sequence[_Member], what: str, hear: Callable[[int, Any], None]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(members):
        busy = {m.pipe: m for m in members if m.number not in results}
        for pipe in multiprocessing.connection.wait(list(busy)):
            member = busy[pipe]  # type: ignore[index] # a connection, as all that were given
            try:
                told = member.pipe.recv()
            except (EOFError, OSError):
                raise _killed(member, len(members), what) from None
            if isinstance(told, _Done):
                results[member.number] = told.result
            elif isinstance(told, Exception):
                raise _cause(told, members, what) from None
            else:
                hear(member.number, told)
    return [results[member.number] for member in members]


def _cause(told: Exception, members: Sequence[_Member], what: str) -> Exception:
    """What a process told, or that another was killed: then all lose their connections."""
    if isinstance(told, FortifaiError):
        return told
    deadline = time.monotonic() + MOURN
    while time.monotonic() < deadline:
        for member in members:
            if member.process.exitcode not in (None, 0):
                return _killed(member, len(members), what)
        time.sleep(0.05)
    return told


def _killed(member: _Member, count: int, what: str) -> RunFailed:
    return RunFailed(
        f"process {member.number} of train.parallel, of {count}, was killed in {what} (out of "
        "memory?); start the same command again to go on from the last whole generation"
    )


@contextmanager
def _quieter() -> Iterator[None]:
    """A process that starts in here warns of PyTorch's own doings only where it is asked to.

    DDP looks for parameters without a gradient, which some models have, and with those that have
    none it warns that it did, each time.
    """
    name = "TORCH_CPP_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = before or "ERROR"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _loopback() -> str | None:
    """The interface of 127.0.0.1; None where gloo takes no name."""
    if sys.platform == "win32":
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family == socket.AF_INET and a.address == "127.0.0.1" for a in addresses):
            return name
    return None


# --- in such a process ------------------------------------------------------------------------


def _serve(pipe: Any, rank: Rank, work: Work, task: Any, environment: Mapping[str, str]) -> None:
    # those of a terminal or a queue go to all processes, and the caller sees to its own
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    os.environ.update(environment)
    for name, value in {
        "RANK": rank.number,
        "LOCAL_RANK": rank.number,
        "WORLD_SIZE": rank.count,
        "LOCAL_WORLD_SIZE": rank.count,
        # accelerate sets the threads itself where this is missing
        "OMP_NUM_THREADS": rank.threads,
    }.items():
        os.environ[name] = str(value)
    torch.set_num_threads(rank.threads)
    try:
        with threadpool_limits(rank.threads):
            told: Any = _Done(work(rank, task, pipe.send))
    except Exception as error:
        told = as_sent(error)
    pipe.send(told)
