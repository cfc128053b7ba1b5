"""Runs that are stopped, killed, spread over jobs of a cluster, and looked at from aside."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from fortifai import configuration, files
from fortifai.errors import InputError
from fortifai.lab import experiment, status
from tests.commands import Done, fortifai, killed, needs_kill
from tests.lab.test_executor import gone, until

# signals, processes and whole runs
pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
RAW = yaml.safe_load("""
name: scale
generations: 6
seeds: {count: 2}
baseline: mle
corpus: {kind: points, source: {kind: gaussian}, samples: 50, held_out: 50}
cures: [{kind: deduplicate}]
regime: {kind: replace}
measures: [probe]
family: {kind: gaussian}
arms: {mle: {}, acc: {regime: {kind: accumulate}}}
""")
NAMES = ["mle/seed-0", "mle/seed-1", "acc/seed-0", "acc/seed-1"]
PROBE = textwrap.dedent("""
    import hashlib, os, time
    from pathlib import Path
    from fortifai.lab.measures import Score, measure

    @measure("probe", title="Probe", panel="Probe", unit="none", real=True)
    def probe(generation):
        asked = os.environ.get("PROBE", "")
        if generation.number == 3:
            if asked:
                with open(os.environ["PROBED"], "a") as told:
                    told.write(f"{os.getpid()}\\n")
            if asked == "deep":
                hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
            if asked == "wait":
                time.sleep(600)
            while asked == "hold" and not os.path.exists(os.environ["PROBED"] + ".go"):
                time.sleep(0.05)
            if asked == "fail":
                raise RuntimeError("the probe broke")
        if asked == "slow":
            time.sleep(0.02)
        yield Score("probe", 1.0, "rewritten", 1)

    PLUGIN = [probe]
""")


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "scale.yaml").write_text(yaml.safe_dump(RAW, sort_keys=False))
    (tmp_path / "probing.py").write_text(PROBE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT / 'src'}")
    monkeypatch.setenv("PROBED", str(tmp_path / "probed"))
    yield tmp_path
    # a test that fails half-way leaves nothing that takes the others' time
    while STARTED:
        if (process := STARTED.pop()).poll() is None:
            for each in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):  # gone since it was listed
                    each.kill()
            process.kill()
            process.communicate()


STARTED: list[subprocess.Popen[str]] = []
"""Runs that a test has started."""


RUN = ("run", "scale.yaml", "--plugin", "probing", "--out", "run")


def run(*arguments: object) -> list[str]:
    """The command of a process of its own, which can be stopped."""
    return [sys.executable, "-m", "fortifai.cli", *RUN, *map(str, arguments)]


def start(asked: str, *arguments: object, **options: bool) -> subprocess.Popen[str]:
    environment = os.environ | {"PROBE": asked}
    STARTED.append(
        subprocess.Popen(
            run(*arguments), env=environment, stderr=subprocess.PIPE, text=True, **options
        )
    )
    return STARTED[-1]


def finish(*arguments: object) -> Done:
    """The same in this process, which has loaded everything; the plugin is read anew."""
    sys.modules.pop("probing", None)
    return fortifai(*RUN, *arguments)


def probed(count: int = 1) -> list[int]:
    told = Path("probed")

    def found():
        lines = told.read_text().split() if told.exists() else []
        return len(lines) >= count and [int(line) for line in lines]

    return until(found)


def outcome(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
        and p.name != "run.json"
        and p != folder / "manifest.json"
        # of a process that was killed while it took over a lock; removed when it is a minute old
        and not re.match(r"\.lock.*\.break\.", p.name)
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, str]:
    """What a run that nobody disturbs leaves, but for its report."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "probing.py").write_text(PROBE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        from fortifai.lab import plugins

        resolved = configuration.resolve(RAW, plugins.load(["probing"]))
        experiment.run(resolved, folder, folder / "run", workers=1)
    sys.modules.pop("probing")
    return outcome(folder / "run")


def without_report(found: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in found.items() if not name.startswith("report/")}


# --- being stopped ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "asked", "workers"),
    [
        (signal.SIGTERM, "deep", 1),
        (signal.SIGINT, "wait", 1),
        (signal.SIGINT, "deep", 2),
        (signal.SIGTERM, "wait", 2),
    ],
)
def test_a_signal_ends_a_run_at_once(place, whole, number, workers, asked):
    """In the middle of a computation, too; what is committed stays, and no process does."""
    process = start(asked, "--workers", workers)
    at_work = probed(workers)
    left = [process.pid, *(c.pid for c in psutil.Process(process.pid).children(recursive=True))]
    assert set(at_work) <= set(left)
    begin = time.monotonic()
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert time.monotonic() - begin < 5
    assert process.returncode == 128 + number
    until(lambda: all(gone(pid) for pid in left), seconds=1)
    if asked == "wait":
        assert "stopped; the same command goes on" in told
        assert "Traceback" not in told
        assert not list(Path("run").rglob(".lock*")), "let go of"
        assert {one.state for one in status.read(Path("run"))} <= {"waiting", "finished"}
    again = finish()
    assert again.returncode == 0, again.stderr
    assert ("was taken over" in again.stderr) == (asked == "deep")
    assert without_report(outcome(Path("run"))) == whole


def test_a_signal_to_all_processes_of_a_job_is_one_to_the_run(place):
    """As a terminal's and a cluster's are."""
    process = start("wait", "--workers", "2", start_new_session=True)
    probed(2)
    os.killpg(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 143, told
    assert "stopped; the same" in told
    assert not list(Path("run").rglob(".lock*")), "let go of"


def test_what_a_killed_node_left_is_taken_away(place, whole):
    """A node of a cluster that died while it looked whether it sees the folder leaves a file."""
    Path("run").mkdir()
    Path("run/.lock-seen-of-one-that-is-gone").touch()
    done = finish()
    assert done.returncode == 0, done.stderr
    assert without_report(outcome(Path("run"))) == whole


def test_a_second_run_on_a_folder_gets_one_sentence(place):
    first = start("wait", "--workers", "1")
    probed()
    second = finish()
    assert second.returncode == 2
    assert re.fullmatch(
        rf"error: run is in use by another run of fortifai; wait for it "
        rf"\(process {first.pid} on \S+\), or choose another --out\n",
        second.stderr,
    )
    third = finish("--chain", "acc/seed-1")
    assert third.returncode == 2
    assert "run is in use by a run of all its chains (process" in third.stderr
    first.kill()
    first.communicate()


def committed() -> int:
    return len(list(Path("run").glob("arms/*/*/generation-*/manifest.json")))


def test_kills_at_random_moments_lose_nothing(place, whole):
    """Killed where it may be, a run ends with the bytes of one that was not."""
    rng, moments = random.Random(0), []
    for kill in range(8):
        before = committed()
        if before > 18:  # so that there is something to do again
            for done in rng.sample(sorted(Path("run").glob("arms/*/*/generation-*")), 12):
                (done / "manifest.json").unlink(missing_ok=True)
            before = committed()
        process = start("slow", "--workers", "2")
        if kill % 3:  # the others early on, while it starts or prepares
            while committed() == before and process.poll() is None:
                time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2 if kill % 3 else 3))
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM if kill % 5 == 4 else signal.SIGKILL)
        process.communicate(timeout=60)
        until(lambda children=children: all(gone(c.pid) for c in children), seconds=5)
        moments.append(committed() - before)
    assert sum(new > 0 for new in moments) > 3, "many kills came in the midst of the work"
    again = finish()
    assert again.returncode == 0, again.stderr
    assert without_report(outcome(Path("run"))) == whole


KILLED = """
import random, sys, time
from pathlib import Path
import yaml
from fortifai import configuration
from fortifai.lab import experiment, plugins
from tests.commands import kills

rng, run = random.Random(0), Path("run")
raw = yaml.safe_load(Path("scale.yaml").read_text())
resolved = configuration.resolve(raw, plugins.load(["probing"]))

def undone():
    there = sorted(run.glob("arms/*/*/generation-*/manifest.json"))
    for done in rng.sample(there, 12) if len(there) > 12 else []:
        done.unlink()  # so that there is something to do again

def moments():
    yield lambda: False  # the whole, and how long as much takes as is undone each time
    undone()
    begin = time.monotonic()
    yield lambda: False
    length = time.monotonic() - begin
    for _ in range(200):
        undone()
        end = time.monotonic() + rng.uniform(0, length)
        yield lambda: time.monotonic() >= end

print(kills(lambda: experiment.run(resolved, Path(), run, workers=1), moments()))
"""


@needs_kill
def test_two_hundred_kills_lose_nothing(place, whole):
    """Of forks that have loaded everything, so that they fall into the work."""
    assert killed(KILLED) > 150
    again = finish()
    assert again.returncode == 0, again.stderr
    assert without_report(outcome(Path("run"))) == whole


# --- one chain alone --------------------------------------------------------------------------


def test_chains_one_by_one_and_at_once_are_the_run(place, whole):
    processes = [start("", "--chain", name) for name in NAMES]
    for process in processes:
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    assert outcome(Path("run")) == whole
    again = finish("--chain", NAMES[2])
    assert (again.returncode, again.stderr) == (0, ""), "there was nothing to do"
    assert again.stdout == f"finished: {NAMES[2]} of run\n"
    assert outcome(Path("run")) == whole


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--chain", "mle/seed-9"), r"no chain 'mle/seed-9'; did you mean 'mle/seed-\d'\?; the 4"),
        (("--chain", "mle"), "there is no chain 'mle'"),
        (("--devices-per-chain", "2"), "--devices-per-chain is 2, and points are computed on the"),
        (("--sbatch", "time=1"), "--sbatch is for the script that --slurm prints"),
        (("--slurm", "--sbatch", "time"), "--sbatch is 'time'; it must be KEY=VALUE"),
        (("--slurm", "--sbatch", "a=b c"), "it must be KEY=VALUE"),
        (("--slurm", "--chain", "mle/seed-0"), "give it without --chain"),
        (("--slurm", "--executor", "ray"), "give it without --executor ray"),
        (("--ray-address", "auto"), "--ray-address is for --executor ray"),
    ],
)
def test_bad_input_is_told_in_one_sentence(place, arguments, told):
    done = finish(*arguments)
    assert done.returncode == 2
    assert re.search(told, done.stderr)
    assert done.stderr.count("\n") == 1
    assert not Path("run").exists()


def test_long_chains_come_first(place):
    asked = []

    @contextmanager
    def executor(out, **_):
        yield lambda work, shared, jobs, *, listen: asked.append(jobs)

    resolved = configuration.resolve(RAW | {"measures": []})
    experiment.run(resolved, place, place / "run", executor=executor)
    assert asked == [[("acc", "seed-0"), ("acc", "seed-1"), ("mle", "seed-0"), ("mle", "seed-1")]]


# --- SLURM ------------------------------------------------------------------------------------


@pytest.fixture
def array(place, monkeypatch):
    """The script, on a machine whose fortifai is this one and whose scontrol writes a file."""
    tools = place / "tools"
    tools.mkdir()
    for name, line in (
        ("fortifai", f'exec "{sys.executable}" -m fortifai.cli "$@"'),
        ("scontrol", 'echo "$@" > requeued'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    printed = finish("--slurm", "--sbatch", "time=4:00:00", "--sbatch", "signal=B:USR1@300")
    assert printed.returncode == 0, printed.stderr
    assert not Path("run").exists()
    (place / "array.sh").write_text(printed.stdout)
    return printed.stdout


def test_a_task_of_the_array_runs_its_chain(array):
    lines = array.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert [line for line in lines if "signal" in line] == ["#SBATCH --signal=B:USR1@300"]
    for line in ("--array=0-3", "--time=4:00:00", "--requeue", "--cpus-per-task=1"):
        assert f"#SBATCH {line}" in lines
    done = subprocess.run(["bash", "array.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {one.chain: one.state for one in status.read(Path("run"))} == {
        name: "finished" if name == "acc/seed-1" else "waiting" for name in NAMES
    }


def test_before_its_time_limit_a_task_is_queued_again(array, monkeypatch):
    monkeypatch.setenv("PROBE", "wait")
    process = subprocess.Popen(["bash", "array.sh"], stderr=subprocess.PIPE, text=True)
    (pid,) = probed()
    process.send_signal(signal.SIGUSR1)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 143
    assert gone(pid)
    assert "stopped; the same command goes on" in told
    assert Path("requeued").read_text() == "requeue 17_3\n"


# --- status -----------------------------------------------------------------------------------


def test_what_is_finished_running_and_waiting(place):
    process = start("wait", "--workers", "1")
    probed()
    found = {one.chain: one for one in status.read(Path("run"))}
    assert list(found) == NAMES
    running = found["acc/seed-0"]  # the longest arm comes first
    assert (running.state, running.done, running.due) == ("running", 3, 6)
    assert re.fullmatch(rf"process {process.pid} on \S+ since 20\d\d-\S+Z", running.told)
    assert {one.state for one in found.values() if one != running} == {"waiting"}
    process.kill()
    process.communicate()
    killed = {one.chain: one for one in status.read(Path("run"))}["acc/seed-0"]
    assert (killed.state, killed.done) == ("failed", 3)
    assert f"process {process.pid} on" in killed.told
    assert "is gone" in killed.told
    assert finish().returncode == 0
    shown = fortifai("status", "run")
    assert shown.returncode == 0
    assert "4 chains: 4 finished" in shown.stdout
    assert "acc/seed-0  finished  6 of 6" in shown.stdout


def test_what_failed_and_why(place):
    process = start("fail", "--chain", "mle/seed-1")
    process.communicate(timeout=120)
    assert process.returncode == 1
    failed = {one.chain: one for one in status.read(Path("run"))}["mle/seed-1"]
    assert (failed.state, failed.done) == ("failed", 3)
    assert "the probe broke" in failed.told
    assert finish("--chain", "mle/seed-1").returncode == 0
    assert {one.chain: one for one in status.read(Path("run"))}["mle/seed-1"].state == "finished"


def test_files_are_held_against_their_sums(place):
    assert finish("--chain", "mle/seed-0").returncode == 0
    scores = Path("run/arms/mle/seed-0/generation-02/scores.jsonl")
    scores.write_text(scores.read_text().replace("1", "2"))
    found = status.read(Path("run"))[0]
    assert (found.state, found.done) == ("waiting", 5)
    assert "scores.jsonl" in found.told


def test_a_run_of_an_earlier_version_has_its_chains_too(place):
    assert finish("--chain", "mle/seed-0").returncode == 0
    plan = json.loads(Path("run/plan.json").read_text())
    del plan["chains"]
    Path("run/plan.json").write_text(json.dumps(plan))
    assert [one.chain for one in status.read(Path("run"))] == ["mle/seed-0", *NAMES[2:]]


def test_status_of_a_run_that_measures_every_other_generation(place):
    done = finish("--set", "eval_every=2", "--set", "generations=5", "--set", "arms={mle: {}}")
    assert done.returncode == 0, done.stderr
    found = status.read(Path("run"))
    # 0, 2 and 4: the first, every other and the last
    assert {(one.state, one.done, one.due) for one in found} == {("finished", 3, 3)}


def test_status_of_what_is_no_run(place):
    with pytest.raises(InputError, match="is not a run folder"):
        status.read(place)
    (place / "config.yaml").write_text("a: 1\n")
    with pytest.raises(InputError, match="is not a run folder"):
        status.read(place)


def test_a_host_that_is_silent_holds_nothing(place, monkeypatch):
    """By status, at once; by a run, when it has seen the silence."""
    folder = place / "run" / "arms" / "mle" / "seed-0"
    assert finish("--chain", "mle/seed-0").returncode == 0
    marker = folder / ".lock"
    with files.lock(marker, "it", "", tell=print):
        told = marker.read_text()
    marker.write_text(re.sub("host=.*", "host=elsewhere", told))
    holder = files.holder(marker)
    assert holder is not None
    assert (holder.host, holder.here, holder.alive) == ("elsewhere", False, True)
    assert status.read(place / "run")[0].state == "running"
    os.utime(marker, (0, time.time() - files.SILENT - 1))
    assert status.read(place / "run")[0].state == "finished"
