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

from tests.commands import fortifai, started
from tests.test_run import TINY, outcome

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A finished run in two processes, and its YAML."""
    folder = tmp_path_factory.mktemp("parallel")
    told = yaml.safe_load(TINY)
    told |= {"generations": 2, "regime": {"kind": "replace"}, "arms": {"tce": {}}}
    # near the probabilities of a model that has learnt little, of a vocabulary of 400
    told |= {"baseline": "tce", "weight": {"kind": "truncate", "threshold": 0.003}}
    told |= {"save_weights": "all"}  # so that the second generation can be done again by itself
    told["train"]["parallel"] = {"kind": "fsdp", "processes": 2}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(told))
    done = fortifai("run", "tiny.yaml", "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "fortifai.cli", "run", "tiny.yaml", "--out", "run"]
    workers = [] if "--workers" in arguments else ["--workers", "1"]
    return subprocess.Popen(
        [*command, *workers, *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def at_work(run: subprocess.Popen, workers: int) -> list[psutil.Process]:
    """The two processes of a chain, of this process or of its first child."""
    while run.poll() is None:
        try:
            parents = (
                [psutil.Process(run.pid)] if workers == 1 else started(psutil.Process(run.pid))
            )
            for parent in parents:
                both = started(parent)
                # what has computed that long reads weights and text, or is behind it
                if len(both) == 2 and all(p.cpu_times().user > 0.1 for p in both):
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


def test_whatever_ends_it_the_same_command_goes_on(root, tmp_path):
    """A lost process, a signal, kill -9: no process stays, and the bytes are the same."""
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "run/arms/tce/seed-0/generation-01")

    run = start(tmp_path)
    busy = at_work(run, 1)
    busy[-1].kill()
    _, told = run.communicate(timeout=300)
    assert run.returncode == 1
    assert "arm tce, seed 0: process " in told
    assert "of train.parallel, of 2, was killed in the fit" in told
    assert "start the same command again" in told
    assert "Traceback" not in told
    assert all_gone(busy)
    assert not list((tmp_path / "run").rglob("*.partial/*"))

    run = start(tmp_path)
    busy = at_work(run, 1)
    assert_leaves(run)
    assert all_gone(busy)

    run = start(tmp_path)
    busy = at_work(run, 1)
    run.kill()
    run.communicate()
    assert all_gone(busy)

    done = fortifai("run", "tiny.yaml", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run") == outcome(root / "run")


def test_a_signal_ends_chains_that_are_processes_themselves(root, tmp_path):
    shutil.copy(root / "tiny.yaml", tmp_path)
    two = "arms={tce: {}, ce: {weight: {kind: keep}}}"
    run = start(tmp_path, "--workers", "2", "--set", two)
    at_work(run, 2)
    left = psutil.Process(run.pid).children(recursive=True)
    assert_leaves(run)
    assert all_gone(left)


def assert_leaves(run: subprocess.Popen) -> None:
    begin = time.monotonic()
    run.send_signal(signal.SIGTERM)
    _, told = run.communicate(timeout=30)
    assert time.monotonic() - begin < 5
    assert run.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in told
