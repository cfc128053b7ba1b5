"""The command in this process, and work that is killed again and again: starts take seconds."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import psutil
import pytest

from fortifai import cli


class Done(NamedTuple):
    """What a command left, as of `subprocess.run`."""

    returncode: int
    stdout: str
    stderr: str


def fortifai(*arguments: object, cwd: Path | None = None) -> Done:
    """The command; `run` has one worker, which is this process, unless it is told otherwise."""
    told = [*map(str, arguments)]
    if told[0] == "run" and "--workers" not in told:
        told += ["--workers", "1"]
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd or Path.cwd()),
        mock.patch.object(sys, "argv", ["fortifai", *told]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as caught,
    ):
        cli.main()
    return Done(int(caught.value.code or 0), out.getvalue(), err.getvalue())


def started(process: psutil.Process) -> list[psutil.Process]:
    """Processes that it started by multiprocessing, whichever way; not multiprocessing's own."""

    def named(processes: list[psutil.Process], name: str) -> list[psutil.Process]:
        return [p for p in processes if name in " ".join(p.cmdline())]

    children = process.children()
    servers = named(children, "forkserver")
    forked = [p for server in servers for p in named(server.children(), "forkserver")]
    return named(children, "spawn_main") + forked


def kills(work: Callable[[], None], moments: Iterable[Callable[[], bool]]) -> int:
    """Fork the work and kill -9 it at each moment, when that is reached; how often it was alive.

    What has been imported is there in a fork; the threads that libraries start in work are not, so
    the caller has done no work itself.
    """
    killed = 0
    for reached in moments:
        child = os.fork()
        if child == 0:
            try:
                work()
            finally:
                os._exit(0)
        while not (ended := os.waitpid(child, os.WNOHANG)[0]) and not reached():
            time.sleep(0.002)
        if not ended:
            os.kill(child, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    return killed


def killed(code: str, *arguments: object) -> int:
    """What a process prints that runs `code`, which calls `kills`, with these arguments."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    return int(done.stdout.split()[-1])


needs_kill = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no kill -9 on Windows")
