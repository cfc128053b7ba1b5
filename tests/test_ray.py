"""Runs on Ray: stopped, killed, on two nodes of which one is lost, and refused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fortifai.lab import status
from tests import test_scale
from tests.lab.test_executor import gone, until
from tests.test_scale import finish, outcome, probed, run, start, without_report

pytest.importorskip("ray", reason="Ray is not installed: pip install 'fortifai[ray]'")

pytestmark = pytest.mark.long
place, whole = test_scale.place, test_scale.whole
RAY = ("--executor", "ray")


# --- on one machine ---------------------------------------------------------------------------


def family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def test_a_run_has_the_bytes_of_a_local_one_and_leaves_nothing_behind(place, whole):
    process = start("", *RAY)
    until(lambda: Path("run").exists())
    left = {p.pid for p in family(process.pid)}
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert without_report(outcome(Path("run"))) == whole
    for chain in ("mle seed 0", "acc seed 1"):
        assert [line.split("  ")[0] for line in told.splitlines() if line.startswith(chain)] == [
            f"{chain} generation {k} (of 0 to 5)" for k in range(6)
        ]
    assert not [line for line in told.splitlines() if "generation" not in line], "Ray is quiet"
    until(lambda: all(gone(pid) for pid in left), seconds=5)


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_ends_a_run_deep_in_a_computation(place, whole, number, to_all):
    """To the run alone, or to all processes of its group, as a terminal and a cluster do."""
    process = start("deep", *RAY, start_new_session=True)
    at_work = probed(2 if os.cpu_count() != 1 else 1)
    left = [p.pid for p in family(process.pid)]
    assert set(at_work) <= set(left)
    begin = time.monotonic()
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, told = process.communicate(timeout=30)
    assert time.monotonic() - begin < 5
    assert process.returncode == 128 + number, told
    until(lambda: all(gone(pid) for pid in left), seconds=1)
    assert told.endswith("stopped; the same command goes on from the last whole generation\n")
    assert "Traceback" not in told
    again = finish()
    assert again.returncode == 0, again.stderr
    assert without_report(outcome(Path("run"))) == whole


def test_a_chain_that_can_clear_up_does(place):
    process = start("wait", *RAY)
    probed()
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 143, told
    assert not list(Path("run").rglob(".lock*")), "let go of"
    assert {one.state for one in status.read(Path("run"))} == {"waiting"}


def test_a_killed_run_takes_its_chains_along(place, whole):
    process = start("deep", *RAY)
    at_work = probed()
    process.kill()
    process.communicate()
    until(lambda: all(gone(pid) for pid in at_work), seconds=10)
    again = finish()
    assert again.returncode == 0, again.stderr
    assert without_report(outcome(Path("run"))) == whole


# --- two nodes --------------------------------------------------------------------------------


def namespace(pid: int | str) -> Path:
    return Path(f"/proc/{pid}/ns/net").readlink()


class Nodes:
    """Two nodes of Ray, in two network namespaces where the machine allows it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, dict[str, subprocess.Popen[bytes]]()
        self.holders: list[subprocess.Popen[bytes]] = []
        self.addresses = {"head": "127.0.0.1", "other": "127.0.0.1"}
        self.entry: dict[str, list[str]] = {"head": [], "other": []}
        if subprocess.run(["unshare", "--net", "true"], check=False).returncode == 0:
            self._namespaces()
        self.address = f"{self.addresses['head']}:{20000 + os.getpid() % 10000}"

    def _namespaces(self) -> None:
        for name, ip in (("head", "10.77.0.1"), ("other", "10.77.0.2")):
            holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
            self.holders.append(holder)
            until(lambda pid=holder.pid: namespace(pid) != namespace("self"))
            self.entry[name] = ["nsenter", "--target", str(holder.pid), "--net"]
            self.addresses[name] = ip
        peer = self.holders[1].pid
        self.do("head", f"ip link add ray0 type veth peer name ray0 netns {peer}")
        for name, ip in self.addresses.items():
            self.do(name, f"ip addr add {ip}/24 dev ray0")
            self.do(name, "ip link set ray0 up")
            self.do(name, "ip link set lo up")

    def do(self, name: str, line: str) -> None:
        subprocess.run([*self.entry[name], *line.split()], check=True)

    def start(self, name: str, asked: str = "", *, before: Sequence[str] = ()) -> None:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
        ray += [f"--node-ip-address={self.addresses[name]}", "--object-store-memory=100000000"]
        if name == "head":
            ray += ["--head", f"--port={self.address.split(':')[1]}"]
            ray += ["--disable-usage-stats", "--include-dashboard=false"]
        else:
            ray += [f"--address={self.address}"]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.started[name] = subprocess.Popen(
                [*self.entry[name], *before, *ray],
                env=os.environ | {"PROBE": asked},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until(lambda: b"--block" in (self.folder / f"{name}.log").read_bytes())

    def pids(self, name: str) -> set[int]:
        return {p.pid for p in family(self.started[name].pid)}

    def kill(self, name: str) -> None:
        for process in family(self.started[name].pid):
            with suppress(psutil.NoSuchProcess):  # gone since it was listed
                process.kill()
        self.started.pop(name).wait()

    def run(self, *arguments: object) -> subprocess.Popen[str]:
        asked = run(*RAY, "--ray-address", self.address, *arguments)
        return subprocess.Popen([*self.entry["head"], *asked], stderr=subprocess.PIPE, text=True)

    def finish(self, *arguments: object) -> tuple[int, str]:
        process = self.run(*arguments)
        told = process.communicate(timeout=120)[1]
        return process.returncode, told


@pytest.fixture
def nodes(place, monkeypatch):
    # `ray start --head` of Ray 2.60 asks for a token once ~/.ray has one; other nodes send none
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    found = Nodes(place)
    yield found
    for name in [*found.started]:
        found.kill(name)
    for holder in found.holders:
        holder.kill()
        holder.wait()


def test_a_worker_is_killed_a_node_is_lost_and_comes_back(nodes, whole):
    nodes.start("head", "hold")
    nodes.start("other", "hold")
    process = nodes.run()
    both = set(probed(2))
    (here,), (there,) = both & nodes.pids("head"), both & nodes.pids("other")
    os.kill(here, signal.SIGKILL)
    again = (set(probed(3)) - both).pop()
    assert again in nodes.pids("head")
    nodes.kill("other")
    until(lambda: gone(there), seconds=10)
    nodes.start("other", "hold")
    back = (set(probed(4)) - both - {again}).pop()
    assert back in nodes.pids("other"), "the node that came back was given the chain"
    Path("probed.go").touch()
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert told.count("its process or node was lost") == 2
    assert without_report(outcome(Path("run"))) == whole


def test_more_than_the_nodes_have_is_refused_and_a_signal_leaves_the_cluster(nodes):
    """As it was, when it has taken the chains along."""
    nodes.start("head", "deep")
    code, told = nodes.finish("--set", "threads=3")
    assert code == 2
    assert "threads is 3, and no node of the cluster" in told
    assert told.count("\n") == 1
    process = nodes.run()
    (pid,) = probed()
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 143, told
    until(lambda: gone(pid), seconds=5)
    assert nodes.started["head"].poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may hide a folder from a process")
def test_a_node_that_does_not_see_the_folder_is_named(nodes):
    nodes.start("head")
    Path("run").mkdir()
    hidden = f'mount -t tmpfs none {Path("run").absolute()} && exec "$@"'
    nodes.start("other", before=["unshare", "--mount", "sh", "-c", hidden, "sh"])
    code, told = nodes.finish()
    assert code == 2
    assert re.fullmatch(
        rf"error: node \S+ \({nodes.addresses['other']}\) of the cluster does not see "
        rf"{Path('run').absolute()} as the run does \(it reads and writes another folder of that "
        r"name\); choose an --out that all nodes share, or take the node out\n",
        told,
    )
    assert not list(Path("run").iterdir())


def test_a_node_without_fortifai_is_named(nodes):
    broken = nodes.folder / "broken" / "fortifai"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('there is no fortifai here')")
    nodes.start("head")
    nodes.start("other", before=["env", f"PYTHONPATH={broken.parent}"])
    code, told = nodes.finish()
    assert code == 2
    assert re.fullmatch(
        rf"error: node \S+ \({nodes.addresses['other']}\) of the cluster cannot start a process of "
        r"fortifai \(.*there is no fortifai here.*\); install it there as here, or take the node "
        r"out\n",
        told,
    )


# --- refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("versions", ["'0.0.1', here[1]", "here[0], '3.99.0'"])
def test_another_version_on_the_cluster(nodes, versions):
    faked = textwrap.dedent(f"""
        from ray._private import utils
        from ray.scripts.scripts import main
        here = utils.compute_version_info()
        utils.compute_version_info = lambda: ({versions})
        main()
    """)
    (nodes.folder / "faked.py").write_text(faked)
    nodes.start("head", before=["sh", "-c", f'shift 3; exec {sys.executable} faked.py "$@"', "sh"])
    code, told = nodes.finish()
    assert code == 2
    assert "runs another Ray or Python than this process" in told
    assert told.count("\n") == 1


def test_without_ray(place):
    Path("ray.py").write_text("raise ModuleNotFoundError('no ray')")
    # in a process of its own: this one has imported Ray
    done = subprocess.run(run(*RAY), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: --executor ray needs the package ray, which is not installed; pip install "
        "'fortifai[ray]'\n"
    )
    assert not Path("run").exists()
