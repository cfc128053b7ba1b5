"""Chains in processes: they end with their parent, and see the accelerators that are theirs."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fortifai import machine
from fortifai.errors import InputError, RunFailed
from fortifai.lab import executor
from fortifai.lab.executor import run_jobs

JOBS = [("arm", f"seed-{k}") for k in range(4)]
ROOT = Path(__file__).parents[2]


def deep(folder, job, progress, tell):
    """Minutes inside one call of a library, where Python calls no handler of a signal."""
    Path(folder, f"{job[1]}.pid").write_text(str(os.getpid()))
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


def held(folder, job, progress, tell):
    """A call that lets no other thread of Python run, so that none could watch."""
    Path(folder, f"{job[1]}.pid").write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(600)


def quick(folder, job, progress, tell):
    place = {k: v for k, v in os.environ.items() if k.endswith("VISIBLE_DEVICES")}
    Path(folder, job[1]).write_text(f"{os.getpid()} {place}")
    time.sleep(0.3)  # so that no process takes all jobs


def dies(folder, job, progress, tell):
    Path(folder, f"{job[1]}.tried").touch()
    if job[1] in ("seed-0", "seed-1"):
        os._exit(9)


def tells(folder, job, progress, tell):
    told = {"pid": os.getpid(), "parent": os.getppid(), "said": os.environ["SAID"]}
    told["loaded"] = "fortifai.fork_server" in sys.modules
    Path(folder, f"{job[1]}-{os.getpid()}").write_text(json.dumps(told))
    time.sleep(0.3)  # so that no process takes both jobs


class OddError(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def fails(folder, job, progress, tell):
    raise OddError("this", "that")


PARENT = """
import sys, time, threading
from tests.lab.test_executor import JOBS, deep, held
from fortifai.lab.executor import run_jobs
if __name__ == "__main__":
    run_jobs(deep, sys.argv[1], JOBS[:2], workers=2, threads=1, listen=print)
"""


def until(reached, seconds=180.0):  # a busy machine takes a minute to start three processes
    end = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < end, "in vain"
        time.sleep(0.02)
    return found


def pids(folder, count=2):
    found = [p.read_text() for p in Path(folder).glob("*.pid")]
    return len(found) == count and all(found) and [int(text) for text in found]


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.long
def test_a_killed_parent_takes_its_processes_along(tmp_path):
    """However deep in a computation they are."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    code = PARENT.replace("run_jobs(deep", "run_jobs(held")
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    children = until(lambda: pids(tmp_path))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: all(gone(pid) for pid in children), seconds=5)


@pytest.mark.long
def test_the_watch_on_the_parent_alone_ends_a_process_too(tmp_path):
    """As on systems that have no signal for the death of a parent."""
    code = PARENT.replace("if __name__", "sys.platform = 'elsewhere'\nif __name__", 1)
    file = tmp_path / "parent.py"  # a module of its own, which processes import again
    file.write_text(code)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    parent = subprocess.Popen([sys.executable, file, str(tmp_path)], env=environment)
    children = until(lambda: pids(tmp_path))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: all(gone(pid) for pid in children), seconds=5)


@pytest.mark.long
def test_a_process_that_is_killed_is_told_and_the_others_go_on(tmp_path):
    with pytest.raises(RunFailed) as told:
        run_jobs(dies, str(tmp_path), JOBS, workers=2, threads=1, listen=print)
    for seed in (0, 1):
        assert f"arm arm, seed {seed}: its process was killed (out of memory?)" in str(told.value)
    assert "seed 2" not in str(told.value)
    assert len(list(tmp_path.glob("*.tried"))) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="of a server that processes are forked from")
def test_what_is_loaded_here_is_loaded_once_for_all_processes(tmp_path, monkeypatch):
    """Each begins with this process's environment of now, whenever their server began.

    A signal to all processes of a job does not end the server: that is for the run to do.
    """
    told: list[dict] = []
    for said in ("this", "that"):
        monkeypatch.setenv("SAID", said)
        run_jobs(tells, str(tmp_path), JOBS[:2], workers=2, threads=1, listen=print)
        told = [json.loads(p.read_text()) for p in tmp_path.iterdir()]
        os.kill(told[0]["parent"], signal.SIGTERM)
    assert len({one["pid"] for one in told}) == 4
    (server,) = {one["parent"] for one in told}
    assert server != os.getpid()
    assert all(one["loaded"] for one in told)
    assert [sum(one["said"] == said for one in told) for said in ("this", "that")] == [2, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="of a server that processes are forked from")
def test_a_process_that_has_set_nothing_ends_when_it_is_asked_to():
    """However early: fifty times, since the signal may come while a process is being forked."""
    for _ in range(50):
        process = machine.process_context().Process(target=time.sleep, args=(600,))
        process.start()
        process.terminate()
        process.join(30)
        assert process.exitcode == -signal.SIGTERM


def test_a_module_in_the_working_folder_is_no_library(tmp_path):
    """Even where it has the name of one; a script sees the folder that it lies in."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "psutil.py").write_text("open('loaded', 'w')")
    script = tmp_path / "script.py"
    script.write_text(
        PARENT.replace("run_jobs(deep", "run_jobs(quick").replace("deep, ", "quick, ")
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    command = [sys.executable, script, str(tmp_path)]
    subprocess.run(command, env=environment, cwd=tmp_path / "here", check=True, timeout=120)
    assert (tmp_path / "seed-0").exists()
    assert not (tmp_path / "here" / "loaded").exists()


@pytest.mark.long
def test_an_error_that_cannot_travel_between_processes_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="OddError: this and that"):
        run_jobs(fails, str(tmp_path), JOBS[:2], workers=2, threads=1, listen=print)


@pytest.mark.long
@pytest.mark.parametrize(
    ("workers", "seen"),
    [
        (2, ["0,1", "2,3"]),
        (3, ["0,1", "2,3"]),
        (1, ["0,1"]),
    ],
)
def test_each_process_sees_accelerators_of_its_own(tmp_path, workers, seen):
    places = [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    run_jobs(quick, str(tmp_path), JOBS, workers=workers, threads=1, listen=print, places=places)
    told = dict(p.read_text().split(" ", 1) for p in tmp_path.iterdir())
    assert str(os.getpid()) not in told
    assert len(told) == workers
    assert {eval(text)["CUDA_VISIBLE_DEVICES"] for text in told.values()} == set(seen)


# --- which accelerators there are ------------------------------------------------------------


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """A machine with so many GPUs, and what nvidia-smi says of them."""

    def make(count, listing="", hip=None, **environment):
        for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(f"{name}_VISIBLE_DEVICES", value)
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)
        monkeypatch.setattr("torch.version.hip", hip)
        (tmp_path / "listing").write_text(listing)
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\ncat {tmp_path / 'listing'}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return make


WHOLE = "GPU 0: NVIDIA H200 (UUID: GPU-aa)\nGPU 1: NVIDIA H200 (UUID: GPU-bb)\n"
PARTS = """GPU 0: NVIDIA H200 (UUID: GPU-aa)
  MIG 1g.18gb     Device  0: (UUID: MIG-11)
  MIG 1g.18gb     Device  1: (UUID: MIG-22)
GPU 1: NVIDIA H200 (UUID: GPU-bb)
"""


@pytest.mark.parametrize(
    ("machine_", "variable", "ids"),
    [
        ({"count": 0}, "CUDA", ""),
        ({"count": 0, "CUDA": "0,1"}, "CUDA", ""),
        ({"count": 2, "listing": WHOLE}, "CUDA", "0 1"),
        ({"count": 1, "listing": PARTS}, "CUDA", "MIG-11 MIG-22 GPU-bb"),
        ({"count": 1, "listing": PARTS, "CUDA": "MIG-22"}, "CUDA", "MIG-22"),
        ({"count": 2, "CUDA": "3, GPU-aa"}, "CUDA", "3 GPU-aa"),
        ({"count": 1, "CUDA": "5,-1,6"}, "CUDA", "5"),
        ({"count": 2, "hip": "6.2"}, "ROCR", "0 1"),
        ({"count": 2, "hip": "6.2", "ROCR": "4,7"}, "ROCR", "4 7"),
        ({"count": 1, "hip": "6.2", "ROCR": "4,7", "HIP": "1"}, "HIP", "1"),
    ],
)
def test_the_accelerators_of_a_machine(stand_ins, machine_, variable, ids):
    stand_ins(**machine_)
    assert machine.accelerators() == (f"{variable}_VISIBLE_DEVICES", tuple(ids.split()))


def test_without_the_tool_gpus_have_numbers(stand_ins, monkeypatch):
    stand_ins(3, PARTS)
    monkeypatch.setenv("PATH", "/nowhere")
    assert machine.accelerators()[1] == ("0", "1", "2")


@pytest.mark.parametrize(
    ("devices", "shares"),
    [(None, ["0", "1", "2", "3", "4"]), (1, ["0", "1", "2", "3", "4"]), (2, ["0,1", "2,3"])],
)
def test_accelerators_are_shared_out(stand_ins, devices, shares):
    stand_ins(5)
    assert executor.shares(devices) == [{"CUDA_VISIBLE_DEVICES": ids} for ids in shares]


@pytest.mark.parametrize(
    ("count", "told"), [(2, "may use 2 accelerators; ask for 2 at most"), (0, "leave it out")]
)
def test_more_accelerators_a_chain_than_there_are(stand_ins, count, told):
    stand_ins(count)
    with pytest.raises(InputError, match=f"--devices-per-chain is 3, and .*{told}"):
        executor.shares(3)


@pytest.mark.parametrize(
    ("accelerators", "asked", "workers"), [(8, None, 8), (0, None, 16), (0, 3, 3), (8, 9, 9)]
)
def test_as_many_chains_at_a_time_as_there_is_room_for(
    stand_ins, monkeypatch, accelerators, asked, workers
):
    stand_ins(accelerators)
    monkeypatch.setattr(executor, "cores", lambda: 64)
    with executor.local(Path(), threads=4, workers=asked, devices=None) as run:
        assert run.keywords["workers"] == workers
    monkeypatch.setattr(executor, "cores", lambda: 3)
    stand_ins(0)
    with executor.local(Path(), threads=4, workers=None, devices=None) as run:
        assert run.keywords["workers"] == 1


def test_chains_that_use_no_accelerator_have_the_cores(stand_ins, monkeypatch):
    """One GPU does not make a run of Gaussians go one chain at a time, nor is it taken."""
    stand_ins(1)
    monkeypatch.setattr(executor, "cores", lambda: 8)
    with executor.local(Path(), threads=1, workers=None, devices=0) as run:
        assert (run.keywords["workers"], run.keywords["places"]) == (8, [])


def test_one_chain_is_run_in_this_process(tmp_path):
    run_jobs(quick, str(tmp_path), JOBS[:1], workers=8, threads=1, listen=print)
    assert (tmp_path / JOBS[0][1]).read_text().split()[0] == str(os.getpid())
