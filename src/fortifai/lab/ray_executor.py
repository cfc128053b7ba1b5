"""Runs chains on a Ray cluster: a task a chain, on any node that sees the run folder.

Of Ray, tasks alone, and one actor: the desk, on the node of the run, to which all chains report.
Ray's own retries are not used, since they know nothing of progress (and have no end where memory
runs out): a chain whose process is lost is given to Ray again, and goes on from what it has
committed, until it is lost `ATTEMPTS` times without a new generation.
"""

from __future__ import annotations

import collections
import os
import platform
import queue
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from fortifai.errors import FortifaiError, InputError, Stopped
from fortifai.lab.executor import (
    PATIENCE,
    Event,
    Job,
    Listen,
    RunJobs,
    Sender,
    Work,
    as_sent,
    devices_of,
    lost,
    raise_failures,
)
from fortifai.lab.store import SEEN, make_folder
from fortifai.machine import accelerators, cores, use_threads

try:
    import ray
    from ray._private import ray_constants
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise InputError(
        "--executor ray needs the package ray, which is not installed; pip install 'fortifai[ray]'"
    ) from error

ATTEMPTS = 3
"""Times in a row that a chain may be lost without a new generation."""
ANSWER = 120.0
"""Seconds that a node has to start a process and say what it sees."""
LOOK = 0.5
"""Seconds between two words of a chain at work, and between two looks for them: each costs its own
work, on cores that the chains need."""
POLL = 0.1
"""Seconds of a wait for Ray, within which no handler of a signal is called."""


@contextmanager
def cluster(
    address: str | None,
    out: Path,
    *,
    threads: int,
    workers: int | None,
    devices: int | None,
    processes: int = 1,
) -> Iterator[RunJobs]:
    """The `fortifai.lab.executor.Executor` of a Ray cluster, once the address is given.

    Args:
        address: ``host:port`` of a cluster that this machine is a node of, or ``auto`` for the one
            that Ray finds here; None: one is started for this run, on this machine alone.
        out: The run folder, which all nodes see.
        threads: Threads of each job, and of each process that it starts.
        workers: Jobs at a time at most; None: as many as the nodes have room for.
        devices: Ray's GPUs of each job; None: one for each process, where there are any.
        processes: That a job has at work at a time; it has Ray's CPUs for the threads of all.

    Raises:
        InputError: No cluster is there, it runs other versions, a node does not see `out`, or no
            node has so many cores and accelerators.
    """
    cpus = threads * processes
    with _connected(address, cpus * (workers or 1)):
        nodes = [node for node in ray.nodes() if node["Alive"]]
        gpus = _room(nodes, cpus, devices, processes)
        desk = ray.remote(num_cpus=0)(_Desk).options(scheduling_strategy=_on(_here())).remote()
        _check_nodes(nodes, desk, out)
        task = ray.remote(max_retries=0, num_cpus=cpus, num_gpus=gpus)(_do)
        start = partial(task.remote, desk, str(out.absolute()), str(Path.cwd()), threads)
        yield partial(_run, start, desk, workers or sys.maxsize)


# --- the cluster ------------------------------------------------------------------------------


@contextmanager
def _connected(address: str | None, cpus: int) -> Iterator[None]:
    main = threading.current_thread() is threading.main_thread()
    before, others = signal.getsignal(signal.SIGTERM), set(psutil.Process().children())
    try:
        if address is None:
            _start(cpus)
        else:
            _connect(address)
        if main:  # Ray takes it
            signal.signal(signal.SIGTERM, before)
        yield
    except BaseException as error:
        # what a signal's handler raises within Ray is the cause of an error of Ray's own
        stopped = error if isinstance(error, Stopped) else error.__cause__
        if not isinstance(stopped, Stopped):
            ray.shutdown()
            raise
        # the system ends Ray's own processes with this one, sooner than Ray shuts down; not theirs
        for process in set(psutil.Process().children()) - others:
            for child in process.children(recursive=True):
                with suppress(psutil.Error):  # gone by itself
                    child.kill()
        raise stopped from None
    ray.shutdown()


def _start(cpus: int) -> None:
    """Start Ray on this machine, for this process and as long as it lives."""
    # without this Ray takes the network's address where it is told to take this one
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ["RAY_AUTH_TOKEN"] = _token()
    variable, ids = accelerators()
    if ids:
        os.environ[variable] = ",".join(ids)  # parts of GPUs, too, which Ray does not count
    ray.init(
        address="local",
        num_cpus=max(cpus, cores()),
        num_gpus=len(ids),
        object_store_memory=10**8,  # Ray would set a third of the memory aside; we store nothing
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )


@cache
def _token() -> str:
    """A token for the runs of this process alone: Ray's own lies in a file that others may read.

    One for all of them, since Ray reads it once in a process and keeps it.
    """
    return secrets.token_hex(32)


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    ray_constants.NUM_REDIS_GET_RETRIES = 1  # not twenty times forty seconds
    try:
        if address != "auto":
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        told = " ".join(str(error).split())
        if "Version mismatch" in told:
            raise InputError(
                f"the cluster at {address} runs another Ray or Python than this process ({told}); "
                "start both from the same environment"
            ) from error
        raise InputError(
            f"--ray-address is {address!r}, and no Ray cluster that this machine is a node of "
            f"answers there ({told}); give host:port of one that `ray start` has started, or "
            "leave it out to start one for this run"
        ) from error


def _room(
    nodes: Sequence[dict[str, Any]], cpus: int, devices: int | None, processes: int = 1
) -> int:
    """How many GPUs each chain has, where one node at least has room for it."""
    there = [(int(n["Resources"].get("CPU", 0)), int(n["Resources"].get("GPU", 0))) for n in nodes]
    most = max(gpus for _, gpus in there)
    devices = devices_of(devices, processes, most, "a node of the cluster has at most")
    if not any(have >= cpus and gpus >= devices for have, gpus in there):
        each = "threads is" if processes == 1 else "threads times train.parallel.processes is"
        raise InputError(
            f"{each} {cpus}, and no node of the cluster that has {devices} accelerators for "
            f"a chain has so many CPUs; set it to {max(c for c, g in there if g >= devices)} at "
            "most"
        )
    return devices


# --- what every node must be ------------------------------------------------------------------


class _Desk:
    """Where the chains report; its node is that of the run."""

    def __init__(self) -> None:
        self._told: list[Event] = []
        self._open = False

    def tell(self, events: list[Event]) -> bool:
        """Take events, and say whether the chain is to go on."""
        self._told += events
        return self._open

    def open(self, whether: bool) -> None:
        self._open = whether

    def take(self) -> list[Event]:
        told, self._told = self._told, []
        return told

    def sees(self, path: str, token: str) -> bool:
        try:
            return Path(path).read_text("utf-8") == token
        except OSError:
            return False


def _here() -> str:
    found: str = ray.get_runtime_context().get_node_id()
    return found


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _check_nodes(nodes: Sequence[dict[str, Any]], desk: Any, out: Path) -> None:
    """Refuse a cluster with a node whose process would not do what one of here does."""
    make_folder(out)
    look = ray.remote(max_retries=0, num_cpus=0)(_look)
    asked = {
        look.options(scheduling_strategy=_on(node["NodeID"])).remote(desk, str(out.absolute())): (
            f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        )
        for node in nodes
    }
    _wait([*asked], ANSWER)
    ours = _versions()
    for ref, name in asked.items():
        try:
            theirs, failed = ray.get(ref, timeout=0)
        except ray.exceptions.RayError as error:
            raise InputError(
                f"node {name} of the cluster cannot start a process of fortifai "
                f"({_cause(error)}); install it there as here, or take the node out"
            ) from error
        if theirs != ours:
            raise InputError(
                f"node {name} of the cluster has {theirs}, and {ours} is here; start both from "
                "the same environment"
            )
        if failed:
            raise failed


def _versions() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("fortifai", "torch"))
    return f"Python {platform.python_version()}, Ray {ray.__version__}, {packages}"


def _look(desk: Any, out: str) -> tuple[str, InputError | None]:
    try:
        _check_seen(desk, out)
    except InputError as error:
        return _versions(), error
    return _versions(), None


def _check_seen(desk: Any, out: str) -> None:
    """Raise where this node's run folder is not the one that the run's own node sees."""
    token, told = secrets.token_hex(), "it reads and writes another folder of that name"
    try:
        with tempfile.NamedTemporaryFile("w", dir=out, prefix=SEEN) as file:
            file.write(token)
            file.flush()
            os.fsync(file.fileno())
            if ray.get(desk.sees.remote(file.name, token)):
                return
    except OSError as error:
        told = str(error.strerror)
    raise InputError(
        f"node {socket.gethostname()} ({ray.util.get_node_ip_address()}) of the cluster does not "
        f"see {out} as the run does ({told}); choose an --out that all nodes share, or take the "
        "node out"
    )


# --- the chains -------------------------------------------------------------------------------


def _run(
    start: Callable[[Work, Any, Job], Any],
    desk: Any,
    most: int,
    work: Work,
    shared: Any,
    jobs: Sequence[Job],
    *,
    listen: Listen,
) -> None:
    """Run every job, `most` at a time; a `RunJobs` once the first three are given."""
    waiting = collections.deque(jobs)
    losses: collections.Counter[Job] = collections.Counter()
    failures: list[Exception] = []
    running: dict[Any, Job] = {}
    desk.open.remote(True)
    looked = 0.0
    try:
        while waiting or running:
            while waiting and len(running) < most:
                job = waiting.popleft()
                running[start(work, shared, job)] = job
            done, _ = ray.wait([*running], timeout=POLL)
            if done or time.monotonic() - looked >= LOOK:
                looked = time.monotonic()
                for event in ray.get(desk.take.remote()):
                    if event.kind == "end":
                        del losses[event.job]
                    listen(event)
            for ref in done:
                job = running.pop(ref)
                try:
                    failed = ray.get(ref)
                except ray.exceptions.RayError as error:
                    losses[job] += 1
                    how = f"its process or node was lost ({_cause(error)})"
                    if losses[job] < ATTEMPTS:
                        listen(Event("note", job, text=f"{how}; it is started again"))
                        waiting.appendleft(job)
                        continue
                    failed = lost(job, f"{how}, {ATTEMPTS} times without a new generation")
                if isinstance(failed, FortifaiError):
                    failures.append(failed)
                elif failed is not None:
                    raise failed
    except BaseException:
        # not by ray.cancel, which can bring this process down (2.60)
        desk.open.remote(False)
        _wait([*running], PATIENCE)
        raise
    raise_failures(failures)


def _wait(refs: list[Any], seconds: float) -> None:
    """Until all are there, or so long."""
    end = time.monotonic() + seconds
    while refs and time.monotonic() < end:
        refs = ray.wait(refs, num_returns=len(refs), timeout=POLL)[1]


def _cause(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__


# --- in a process of Ray ----------------------------------------------------------------------


def _do(
    desk: Any, out: str, place: str, threads: int, work: Work, shared: Any, job: Job
) -> Exception | None:
    """One job; what it failed with."""
    with suppress(OSError):  # what is not there cannot be needed
        os.chdir(place)  # plugins may lie there
    before = signal.signal(signal.SIGTERM, _leave)
    line = _Line(desk)
    sender = Sender(job, line.say)
    try:
        with ThreadPoolExecutor(1) as aside:  # for the reason of a line's thread
            aside.submit(_check_seen, desk, out).result()
        with use_threads(threads):
            work(shared, job, sender, sender.note)
    except Stopped as stopped:
        os._exit(stopped.exit_code)  # behind the work's own clearing up
    except Exception as error:
        return as_sent(error)
    finally:
        signal.signal(signal.SIGTERM, before)
        line.end()
    return None


def _leave(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough
    raise Stopped(number)


class _Line:
    """From a chain to the desk, and back where the run leaves.

    Its thread waits for Ray. Where a task's own thread does, Ray gives the task's CPUs to another,
    and more chains would be at work than there is room for.
    """

    def __init__(self, desk: Any) -> None:
        self._desk = desk
        self._said: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def say(self, event: Event) -> None:
        self._said.put(event)

    def end(self) -> None:
        """Wait until all is told."""
        self._said.put(None)
        self._thread.join()

    def _talk(self) -> None:
        last = False
        while not last:
            events: list[Event] = []
            end = time.monotonic() + LOOK
            # steps wait for others; what else is said is told at once
            while not last and not (events and events[-1].kind != "step"):
                try:
                    event = self._said.get(timeout=max(0.0, end - time.monotonic()))
                except queue.Empty:
                    break
                last = event is None
                events += [event] if event else []
            try:
                go_on = ray.get(self._desk.tell.remote(events))
            except ray.exceptions.RayError:  # the run is gone
                go_on = False
            if not go_on and not last:
                os.kill(os.getpid(), signal.SIGTERM)
                return
