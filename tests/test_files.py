"""Whole files and locks where a file system refuses what Linux's own offer."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import filelock
import psutil
import pytest

from fortifai import files
from fortifai.errors import InputError
from fortifai.lab.store import ChainStore, committing, inspect, locked

REFUSED = [
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EBADF,
    errno.EACCES,
    errno.ENOSYS,
]


def refusing(number: int):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


def a_generation(folder: Path, text: str = "whole") -> None:
    with committing(folder, droppable=("model",)) as inside:
        (inside / "model").mkdir()
        (inside / "model" / "weights").write_text("0.1")
        (inside / "scores.jsonl").write_text(text)


# --- syncing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", REFUSED)
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_folder_that_cannot_be_synced_is_kept(tmp_path, monkeypatch, call, number):
    whole = getattr(os, call)

    def refuse(what, *rest):
        of_a_folder = (
            Path(what).is_dir() if call == "open" else stat.S_ISDIR(os.fstat(what).st_mode)
        )
        if of_a_folder:
            raise OSError(number, os.strerror(number))
        return whole(what, *rest)

    monkeypatch.setattr(f"fortifai.files.os.{call}", refuse)
    a_generation(tmp_path / "generation-00")
    files.write_whole(tmp_path / "config.yaml", "a: 1\n")
    monkeypatch.undo()
    assert inspect(tmp_path / "generation-00").whole
    assert (tmp_path / "config.yaml").read_text() == "a: 1\n"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_is_told(tmp_path, monkeypatch, number):
    monkeypatch.setattr("fortifai.files.os.fsync", refusing(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        a_generation(tmp_path / "generation-00")
    monkeypatch.undo()
    assert not inspect(tmp_path / "generation-00").whole


def test_files_are_synced_before_the_manifest_and_the_manifest_before_the_folder(
    tmp_path, monkeypatch
):
    synced: list[str] = []
    monkeypatch.setattr("fortifai.files.sync", lambda path: synced.append(path.name))
    a_generation(tmp_path / "generation-00")
    assert synced == ["weights", "scores.jsonl", "manifest.json", tmp_path.name]


# --- renaming ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EINVAL])
def test_a_folder_that_cannot_be_renamed_is_copied(tmp_path, monkeypatch, number):
    a_generation(tmp_path / "generation-00", "old")
    monkeypatch.setattr("pathlib.Path.rename", refusing(number))
    a_generation(tmp_path / "generation-00", "new")
    assert inspect(tmp_path / "generation-00").whole
    assert (tmp_path / "generation-00" / "scores.jsonl").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["generation-00"]


def test_a_copy_that_is_cut_short_never_happened(tmp_path, monkeypatch):
    """The manifest comes last: what was copied before a crash does not count."""
    copy = shutil.copyfile

    def fails_at_the_manifest(source, target, **rest):
        if Path(source).name == "manifest.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return copy(source, target, **rest)

    monkeypatch.setattr("pathlib.Path.rename", refusing(errno.EXDEV))
    monkeypatch.setattr("fortifai.files.shutil.copyfile", fails_at_the_manifest)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        a_generation(tmp_path / "generation-00")
    assert (tmp_path / "generation-00" / "scores.jsonl").exists()
    assert not inspect(tmp_path / "generation-00").whole


def test_weights_on_another_layer_are_dropped(tmp_path, monkeypatch):
    a_generation(tmp_path / "generation-00")
    monkeypatch.setattr("pathlib.Path.rename", refusing(errno.EXDEV))
    ChainStore(tmp_path).drop(0, "model")
    assert not (tmp_path / "generation-00" / "model").exists()
    assert inspect(tmp_path / "generation-00").whole


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EBUSY])
def test_a_file_that_cannot_be_renamed_is_copied(tmp_path, monkeypatch, number):
    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr("pathlib.Path.replace", refusing(number))
    files.write_whole(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr("pathlib.Path.replace", refusing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.write_whole(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_lines_end_alike_on_every_system(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "linesep", "\r\n")
    files.write_whole(tmp_path / "a", "1\n2\u2028\n")
    assert (tmp_path / "a").read_bytes() == "1\n2\u2028\n".encode()


# --- locks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_lock_needs_no_locks_of_the_system(tmp_path, monkeypatch, number):
    monkeypatch.setattr("fcntl.flock", refusing(number))
    told: list[str] = []
    with (
        locked(tmp_path, tell=told.append),
        pytest.raises(InputError, match=rf"in use by .*wait for it \(process {os.getpid()} on"),
    ):
        locked(tmp_path).__enter__()
    with locked(tmp_path, tell=told.append):  # and let go afterwards
        pass
    assert told == []


def test_a_lock_that_works_is_not_told(tmp_path):
    told: list[str] = []
    with locked(tmp_path, tell=told.append):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert told == []
    assert list(tmp_path.iterdir()) == []


CONTEND = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from fortifai.lab.store import locked

    folder, told = Path(sys.argv[1]), Path(sys.argv[2])
    for _ in range(60):
        with locked(folder, wait=60):
            number = int(told.read_text())
            time.sleep(0.001)
            told.write_text(str(number + 1))
""")


def test_no_two_hold_a_lock_whose_file_comes_and_goes(tmp_path):
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", CONTEND, str(tmp_path / "run"), str(tmp_path / "count")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "180", "none was lost"
    assert list((tmp_path / "run").iterdir()) == [], "nothing is left"


def test_waiting_for_a_lock_ends(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(InputError, match="in use by another run"),
        locked(tmp_path, wait=0.3),
    ):
        pass


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, monkeypatch, number):
    monkeypatch.setattr(filelock.SoftFileLease, "acquire", refusing(number))
    with pytest.raises(InputError, match=f"cannot be locked .*{os.strerror(number)}"):
        locked(tmp_path).__enter__()


def test_a_full_disk_is_no_bad_input(tmp_path, monkeypatch):
    monkeypatch.setattr(filelock.SoftFileLease, "acquire", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        locked(tmp_path).__enter__()
    assert not isinstance(caught.value, InputError)


HOLD = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from fortifai.lab.store import locked

    with locked(Path(sys.argv[1]), tell=lambda text: print(text, file=sys.stderr)):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
""")


def test_a_killed_holder_holds_nothing(tmp_path):
    """The same command finds the folder free, and says so."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    first = subprocess.Popen([*command, "600"], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    second = subprocess.run([*command, "0"], capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "in use by another run" in second.stderr
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    third = subprocess.run([*command, "0"], capture_output=True, text=True, check=False)
    assert third.stdout == "held\n", third.stderr
    told = f"the lock of {tmp_path} was taken over from process {first.pid} on "
    assert told in third.stderr
    assert third.stderr.endswith(", which is gone\n")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A lock of a process on another host, which has a second and a half to give a sign of life."""
    monkeypatch.setattr(files, "SILENT", 1.5)
    marker = tmp_path / ".lock"
    with locked(tmp_path):
        told = marker.read_text()
    marker.write_text(re.sub("host=.*", "host=elsewhere", re.sub("pid=.*", "pid=7", told)))
    return marker


def test_a_silent_host_loses_its_lock(tmp_path, elsewhere):
    told: list[str] = []
    begin = time.monotonic()
    with locked(tmp_path, tell=told.append):
        assert time.monotonic() - begin >= files.SILENT
        assert "elsewhere" not in elsewhere.read_text()
    assert told == [
        f"waiting for process 7 on elsewhere to let go of {tmp_path}",
        f"the lock of {tmp_path} was taken over from process 7 on elsewhere, which is gone",
    ]


def test_a_host_that_answers_keeps_its_lock(tmp_path, elsewhere):
    stop = threading.Event()

    def beat():
        while not stop.wait(0.3):
            os.utime(elsewhere)

    thread = threading.Thread(target=beat)
    thread.start()
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"in use by .* \(process 7 on elsewhere\)"):
        locked(tmp_path).__enter__()
    assert time.monotonic() - begin < 1.5, "a sign of life ends the wait"
    stop.set()
    thread.join()
    assert "elsewhere" in elsewhere.read_text()


def test_who_has_lost_its_lock_is_asked_to_leave(tmp_path, monkeypatch):
    """As a machine that slept while another took over."""
    monkeypatch.setattr(files, "SILENT", 0.6)
    asked, told = threading.Event(), []
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        with locked(tmp_path, tell=told.append):
            marker = tmp_path / ".lock"
            other = tmp_path / "other"
            other.write_text(re.sub("host=.*", "host=elsewhere", marker.read_text()))
            other.replace(marker)
            assert asked.wait(10)
        assert "elsewhere" in marker.read_text(), "the other's lock is left alone"
    finally:
        signal.signal(signal.SIGTERM, before)
    (sentence,) = told
    assert "was taken over by another run" in sentence


def test_a_lock_without_a_name_does_not_last(tmp_path):
    """A process may be killed between making the file and writing into it."""
    marker = tmp_path / ".lock"
    marker.touch()
    with locked(tmp_path):
        assert marker.stat().st_size


def test_what_was_left_in_taking_over_a_lock_is_removed_once_it_is_old(tmp_path):
    old, young = (tmp_path / f".lock.break.{pid}.{'0' * 32}" for pid in (1, 2))
    for left, age in ((old, 61), (young, 5)):
        left.write_text("")
        os.utime(left, (time.time() - age,) * 2)
    with files.lock(tmp_path / ".lock", "it", "wait", tell=print):
        assert not old.exists()
        assert young.exists()


def test_a_number_that_was_given_anew_is_not_the_holder(tmp_path):
    """This process is younger than the last sign of life of who had its number before."""
    with locked(tmp_path):
        marker = tmp_path / ".lock"
        found = files.holder(marker)
        assert found is not None
        assert (found.pid, found.here, found.alive) == (os.getpid(), True, True)
        os.utime(marker, (0, psutil.Process().create_time() - 60))
        assert not files.holder(marker).alive
    assert files.holder(marker) is None
