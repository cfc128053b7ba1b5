"""`fortifai run` with `train.parallel`: a lost process, a signal, and the same bytes after all."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.commands import fortifai
from tests.test_run import TINY, outcome

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A finished run in two processes, and its YAML."""
    folder = tmp_path_factory.mktemp("parallel")
    told = yaml.safe_load(TINY)
    told |= {"generations": 2, "regime": {"kind": "replace"}, "arms": {"tce": {}}}
    told |= {"baseline": "tce", "weight": {"kind": "truncate", "threshold": 0.01}}
    told["train"]["parallel"] = {"kind": "fsdp", "processes": 2}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(told))
    done = fortifai("run", "tiny.yaml", "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def start(folder: Path, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "fortifai.cli", "run", "tiny.yaml", "--out", "run"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def spawned(process: psutil.Process) -> list[psutil.Process]:
    """Its children, without multiprocessing's own."""
    return [p for p in process.children() if "spawn_main" in " ".join(p.cmdline())]


def at_work(run: subprocess.Popen, workers: int) -> list[psutil.Process]:
    """The two processes of a chain, of this process or of its first child."""
    while run.poll() is None:
        try:
            parents = (
                [psutil.Process(run.pid)] if workers == 1 else spawned(psutil.Process(run.pid))
            )
            for parent in parents:
                both = spawned(parent)
                # what reads weights and text has loaded much by then
                if len(both) == 2 and all(p.memory_info().rss > 3e8 for p in both):
                    return both
        except psutil.NoSuchProcess:
            pass  # gone since it was listed
        time.sleep(0.02)
    raise AssertionError(run.communicate()[1])


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=2)
    return not alive


def test_what_a_generation_tells(root):
    fit = json.loads((root / "run/arms/tce/seed-0/generation-01/fit.json").read_text())
    ledger = json.loads((root / "run/arms/tce/seed-0/generation-01/ledger.json").read_text())
    assert fit["steps"] == 4
    assert 0 < fit["truncated_share"] < 1
    assert ledger["spent"]["trained"] == 512
    assert ledger["spent"]["generated"] == 512 - 16
    assert not list((root / "run").rglob("*.partial/*"))


def test_a_lost_process_ends_the_generation_and_the_same_command_goes_on(root, tmp_path):
    shutil.copy(root / "tiny.yaml", tmp_path)
    run = start(tmp_path, "--workers", "1")
    busy = at_work(run, 1)
    busy[-1].kill()
    _, told = run.communicate(timeout=300)
    assert run.returncode == 1
    assert "arm tce, seed 0: process " in told
    assert "of train.parallel, of 2, was killed in the" in told
    assert "start the same command again" in told
    assert "Traceback" not in told
    assert all_gone(busy)
    assert not list((tmp_path / "run").rglob("*.partial/*"))
    done = fortifai("run", "tiny.yaml", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run") == outcome(root / "run")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_ends_a_run_at_once(root, tmp_path, workers):
    shutil.copy(root / "tiny.yaml", tmp_path)
    # with two workers, chains are processes of their own, and these their children
    more = ("--set", "arms={tce: {}, ce: {weight: {kind: keep}}}") if workers == 2 else ()
    run = start(tmp_path, "--workers", workers, *more)
    at_work(run, workers)
    left = psutil.Process(run.pid).children(recursive=True)
    begin = time.monotonic()
    run.send_signal(signal.SIGTERM)
    _, told = run.communicate(timeout=30)
    assert time.monotonic() - begin < 5
    assert run.returncode == 128 + signal.SIGTERM
    assert all_gone(left)
    assert "Traceback" not in told
    if workers == 1:
        done = fortifai("run", "tiny.yaml", "--out", "run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert outcome(tmp_path / "run") == outcome(root / "run")


def test_kill_minus_nine_leaves_no_process(root, tmp_path):
    shutil.copy(root / "tiny.yaml", tmp_path)
    run = start(tmp_path, "--workers", "1")
    busy = at_work(run, 1)
    run.kill()
    run.communicate()
    assert all_gone(busy)
