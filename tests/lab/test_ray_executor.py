"""Chains as tasks of Ray: what they say, what they are given, and those that are lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from fortifai.errors import InputError, RunFailed
from fortifai.lab.executor import Event, local
from tests.lab.test_executor import JOBS, dies, fails
from tests.lab.test_jobs import says

pytest.importorskip("ray", reason="Ray is not installed: pip install 'fortifai[ray]'")
from fortifai.lab import ray_executor

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A Ray of this machine's, for two chains of two threads at a time."""
    with pytest.MonkeyPatch.context() as patch:
        # a process of Ray finds what jobs are made of as any other does
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'src'}")
        out = tmp_path_factory.mktemp("run")
        with ray_executor.cluster(None, out, threads=2, workers=2, devices=None) as run:
            yield run


TWICE = """
from pathlib import Path
from fortifai.lab.ray_executor import cluster
from tests.lab.test_jobs import says

for name in "ab":
    with cluster(None, Path(name), threads=1, workers=1, devices=None) as run:
        run(says, "x", [(name, "seed-0")], listen=lambda event: print(event.job[0], event.text))
"""


def test_one_after_another_in_one_process(tmp_path):
    """Ray keeps what it was first told of its token for as long as the process lives."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    path = f"{ROOT}{os.pathsep}{ROOT / 'src'}"
    done = subprocess.run(
        [sys.executable, "-c", TWICE],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"a", "b"}


def told(run, work, shared, jobs) -> list[Event]:
    found: list[Event] = []
    run(work, shared, jobs, listen=found.append)
    return found


def test_nothing_listens_but_to_this_machine(started):
    mine = psutil.Process().children(recursive=True)
    open_ = [c for p in mine for c in p.net_connections("inet") if c.status == "LISTEN"]
    assert len(open_) > 3
    assert {c.laddr.ip.removeprefix("::ffff:") for c in open_} == {"127.0.0.1"}
    # Ray starts the program of its dashboard all the same, which then listens to nobody
    (dashboard,) = [p for p in mine if any("dashboard.py" in word for word in p.cmdline())]
    assert not [c for c in dashboard.net_connections("inet") if c.status == "LISTEN"]
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_chains_say_what_they_say_in_processes_of_this_machine(started, tmp_path):
    jobs = [("a", "seed-0"), ("a", "seed-1"), ("b", "seed-0")]
    with local(tmp_path, threads=2, workers=2, devices=None) as run:
        here = told(run, says, "x", jobs)
    there = told(started, says, "x", jobs)
    for job in jobs:
        ours, theirs = ([e for e in found if e.job == job] for found in (here, there))
        assert [e.kind for e in theirs] == ["begin", "step", "note"]
        assert theirs[:2] == ours[:2]
        assert theirs[2].text.split()[2] == ours[2].text.split()[2] == "2"
        assert theirs[2].text.split()[1] != str(os.getpid())


def test_errors_are_those_of_the_chains(started):
    jobs = [("b", "seed-0"), ("a", "seed-0"), ("a", "seed-1")]
    with pytest.raises(InputError) as failed:
        told(started, says, "b", jobs)
    assert str(failed.value) == "b.seed-0 fails"
    assert "in says" in failed.value.__notes__[0], "where, for --debug"
    with pytest.raises(RunFailed, match=r"a.seed-\d fails; a.seed-\d fails"):
        told(started, says, "a", jobs)
    with pytest.raises(RuntimeError, match="OddError: this and that"):
        told(started, fails, "", JOBS[:1])


def test_threads_are_those_that_a_process_of_this_machine_has(started, tmp_path):
    with local(tmp_path, threads=2, workers=2, devices=None) as run:
        run(pools, str(tmp_path / "local"), JOBS[:2], listen=print)
    started(pools, str(tmp_path / "ray"), JOBS[:2], listen=print)
    ours, theirs = ((tmp_path / name).read_text() for name in ("local", "ray"))
    assert theirs == ours
    assert "torch 2" in ours


def test_a_chain_that_is_always_lost_is_told_and_the_others_go_on(started, tmp_path):
    with pytest.raises(RunFailed) as failed:
        told(started, dies, str(tmp_path), JOBS)
    for seed in (0, 1):
        assert re.search(
            rf"arm arm, seed {seed}: its process or node was lost \(\w+: [^)]*\), 3 times "
            "without a new generation; start the same command again",
            str(failed.value),
        )
    assert "seed 2" not in str(failed.value)
    assert len(list(tmp_path.glob("*.tried"))) == 4


def test_a_chain_that_gets_on_is_started_again_and_again(started, tmp_path):
    found = told(started, gets_on, str(tmp_path), JOBS[:2])
    assert [e.generation for e in found if e.kind == "end" and e.job == JOBS[0]] == [1, 2, 3]
    notes = [e.text for e in found if e.kind == "note" and e.job == JOBS[0]]
    assert len(notes) == 3, "as often as ends a chain that does not get on"
    assert all("lost" in note and "started again" in note for note in notes)
    (note,) = {e.text for e in found if e.kind == "note" and e.job == JOBS[1]}
    assert note == "untouched"


@pytest.mark.parametrize(("workers", "most"), [(1, 1), (100, 2)])
def test_no_more_at_a_time_than_asked_for_and_there_is_room_for(started, tmp_path, workers, most):
    start, desk, _ = started.args
    jobs = [("arm", f"seed-{k}") for k in range(2 * most)]
    (tmp_path / "room").write_text(str(most))
    started.func(start, desk, workers, counts, str(tmp_path), jobs, listen=lambda _: None)
    found = [int(path.read_text()) for path in tmp_path.glob("seed-*")]
    assert (len(found), max(found)) == (len(jobs), most)


def pools(file, job, progress, tell):
    """The pools of numerical libraries, inside the limits that a chain sets."""
    if job == JOBS[0]:
        with threadpool_limits(2):
            # a kind once: a process may have loaded more libraries than another
            pools = sorted({(p["user_api"], p["num_threads"]) for p in threadpool_info()})
        Path(file).write_text(f"torch {torch.get_num_threads()} {pools}")


def gets_on(folder, job, progress, tell):
    """Dies after every generation that it commits, three times."""
    if job != JOBS[0]:
        tell("untouched")
        return
    count = len(list(Path(folder).iterdir())) + 1
    if count < 4:
        Path(folder, str(count)).touch()
        progress.begin(count)
        progress.end(count, [])
        time.sleep(0.5)  # in which it is told
        os._exit(9)


def counts(folder, job, progress, tell):
    """The most that are at work at a time, each of which has much to say for as long as it takes
    Ray to start another process, which is longer on a busy machine."""
    most, begin = 0, time.monotonic()
    room = int(Path(folder, "room").read_text())
    with tempfile.NamedTemporaryFile(dir=folder, prefix="at-work-"):
        while (lasted := time.monotonic() - begin) < 6 or (most < room and lasted < 60):
            progress.begin(0)
            time.sleep(0.01)
            most = max(most, len([*Path(folder).glob("at-work-*")]))
    Path(folder, job[1]).write_text(str(most))


# --- what is asked for and what there is --------------------------------------------------------


def nodes(*resources: tuple[int, int]):
    return [{"Resources": {"CPU": float(c), "GPU": float(g)}} for c, g in resources]


@pytest.mark.parametrize(
    ("there", "devices", "gpus"),
    [
        ([(2, 0)], None, 0),
        ([(8, 0), (4, 2)], None, 1),
        ([(8, 0), (4, 2)], 2, 2),
        ([(0, 0), (4, 0)], None, 0),
    ],
)
def test_what_a_chain_is_given(there, devices, gpus):
    assert ray_executor._room(nodes(*there), 2, devices) == gpus


@pytest.mark.parametrize(
    ("there", "threads", "devices", "words"),
    [
        ([(8, 2), (8, 4)], 1, 5, "--devices-per-chain is 5, and .* 4 accelerators; ask for 4"),
        ([(8, 0)], 1, 1, "--devices-per-chain is 1, and .* 0 accelerators; leave it out"),
        ([(2, 0), (1, 0)], 3, None, "threads is 3, and no node .* set it to 2 at most"),
        ([(8, 0), (2, 1)], 4, None, "threads is 4, and no node .* has 1 accel.* to 2 at most"),
    ],
)
def test_more_than_a_node_has(there, threads, devices, words):
    with pytest.raises(InputError, match=words):
        ray_executor._room(nodes(*there), threads, devices)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "nowhere.invalid:6379", "h:p:q"])
def test_an_address_where_nothing_is(address, tmp_path):
    with (
        pytest.raises(InputError, match=f"--ray-address is '{address}', and no Ray cluster"),
        ray_executor.cluster(address, tmp_path / "run", threads=1, workers=None, devices=None),
    ):
        pass
    assert not (tmp_path / "run").exists()
