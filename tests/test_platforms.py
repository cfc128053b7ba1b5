"""macOS and Windows, as far as Linux can stand in for them."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import fortifai
from fortifai.lab import executor
from fortifai.machine import cores, machine, source_commit

SOURCES = sorted(Path(fortifai.__file__).parent.rglob("*.py"))

# what Python's documentation marks as not available on Windows
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
OF_OS = {
    *("chown", "chroot", "fork", "forkpty", "geteuid", "getgid", "getloadavg", "getpgid"),
    *("getuid", "killpg", "lchown", "mkfifo", "mknod", "nice", "openpty", "pathconf", "pread"),
    *(
        "sched_getaffinity",
        "sched_setaffinity",
        "setpgid",
        "setsid",
        "setuid",
        "statvfs",
        "sysconf",
    ),
    *("uname", "wait", "wait3", "wait4", "waitid", "WIFSIGNALED"),
}
OF_SIGNAL = {"SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGQUIT", "alarm", "pause"}

TINY = """
name: tiny
generations: 2
seeds: [0, 1]
baseline: em
corpus: {kind: points, source: {kind: moons}, samples: 60}
regime: {kind: replace}
family: {kind: gmm, components: 2}
arms:
  em: {}
"""

# in a sitecustomize, so that the processes of --workers stand in too
ELSEWHERE = """
import os, sys
del os.sched_getaffinity
import psutil
for name in ("cpu_affinity",):
    delattr(psutil.Process, name)
sys.modules["fcntl"] = None
sys.modules["resource"] = None
"""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_is_used_that_windows_lacks(path):
    found, tree = [], ast.parse(path.read_text("utf-8"))
    on_linux = [
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "sys.platform == 'linux'"
        for line in node.body
        for inner in ast.walk(line)
    ]
    for node in ast.walk(tree):
        if node in on_linux:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [(node.module or "").partition(".")[0]]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            lacking = {"os": OF_OS, "signal": OF_SIGNAL}.get(node.value.id, set())
            found += [node.attr] if node.attr in lacking else []
        found += [name for name in names if name in MODULES]
    assert found == []


def elsewhere(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(ELSEWHERE)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "fortifai.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        check=False,
    )


@pytest.mark.long
def test_a_run_and_its_report_without_what_is_posix(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    run = ("run", "tiny.yaml", "--out", "run", "--workers")
    done = elsewhere(tmp_path, *run, "2")
    assert done.returncode == 0, done.stderr
    assert "only soft file lock is available" in done.stderr, "the stand-in stands in"
    assert elsewhere(tmp_path, "report", "run").returncode == 0
    # a chain taken up in one process, and on another system: a lock file of this one's lies about
    gone = next((tmp_path / "run").glob("arms/*/*/generation-01"))
    shutil.rmtree(gone)
    (tmp_path / "run" / ".lock").touch()
    again = elsewhere(tmp_path, *run, "1")
    assert again.returncode == 0, again.stderr
    assert (gone / "manifest.json").is_file()


@pytest.mark.long
def test_an_audit_without_what_is_posix(tmp_path):
    town = "The town number {} has {} mills and {} bridges."
    lines = [town.format(i, i * 7 % 31, i % 5) for i in range(1000)]
    (tmp_path / "a.txt").write_text("\n".join(lines[:500]))
    (tmp_path / "b.txt").write_text("\n".join(lines[500:]))
    done = elsewhere(tmp_path, "audit", "--text", "a.txt", "--against", "b.txt", "--out", "audit")
    assert done.returncode in (0, 3), done.stderr
    assert (tmp_path / "audit" / "index.html").is_file()


def test_cores_where_the_system_tells_and_where_it_does_not(monkeypatch):
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: [1, 5, 7])
    assert cores() == 3
    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert cores() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


def test_the_machine_in_a_few_words(monkeypatch):
    monkeypatch.setattr("fortifai.machine.Path", lambda _: Path("/nowhere"))
    told = machine()
    assert told["memory_gib"] == round(psutil.virtual_memory().total / 2**30, 1)
    assert told["processor"]


def test_no_more_processes_than_windows_can_wait_for(monkeypatch):
    asked: list[int] = []

    def run(jobs, count, start, listen):
        asked.append(count)
        return []

    monkeypatch.setattr(executor, "_run_in_processes", run)
    monkeypatch.setattr(executor, "_MOST_PROCESSES", 61)
    jobs = [("arm", f"seed-{k}") for k in range(100)]
    executor.run_jobs(print, None, jobs, workers=100, threads=1, listen=print)
    assert asked == [61]


def test_the_commit_of_a_checkout_is_known_and_of_a_mere_neighbour_not(tmp_path, monkeypatch):
    def git(*args):
        who = ("-c", "user.name=n", "-c", "user.email=n@example.org")
        done = subprocess.run(["git", *who, *args], cwd=tmp_path, capture_output=True, check=True)
        return done.stdout.decode().strip()

    own = tmp_path / "machine.py"
    own.write_text("1\n")
    monkeypatch.setattr("fortifai.machine.__file__", str(own))
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "first")
    assert source_commit() is None, "lies in a repository that does not hold it"
    git("add", "machine.py")
    git("commit", "--quiet", "--message", "second")
    assert source_commit() == git("rev-parse", "HEAD")
    own.write_text("2\n")
    assert source_commit() == git("rev-parse", "HEAD") + "+"
