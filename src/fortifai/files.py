"""Files that are whole or not there, and locks, on the file systems that people have.

Network, FUSE and Windows file systems refuse some of what Linux's own offer: locks of the system,
syncing a folder, renaming one. What was computed must not be lost to that, so what can be done
without is left out, and what cannot is done in another way.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import filelock
import psutil

from fortifai.errors import InputError, RunFailed

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a system says where a disk or a quota is full."""

_REFUSED = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.ENOLCK}
)
_NOT_SYNCED = _REFUSED | {errno.EBADF, errno.EACCES, errno.EISDIR}
_NOT_RENAMED = _REFUSED | {errno.EXDEV, errno.EBUSY}


# --- whole files ------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with the line ends of `text`, the same bytes on every system."""
    path.write_bytes(text.encode("utf-8"))


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 so that a reader, or a crash, finds the old file or the new one, never half."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write_text(partial, text)
        sync(partial)
        replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def writing(what: str, to: Path, otherwise: str) -> Iterator[None]:
    """Within: that the system refuses to write is told as one sentence.

    Args:
        what: What is written.
        to: Where to.
        otherwise: What to choose instead, such as "another folder with --out".

    Raises:
        RunFailed: An `OSError` came.
    """
    try:
        yield
    except OSError as error:
        raise RunFailed(
            f"{what} could not be written to {to} ({error.strerror or error}); make room or choose "
            f"{otherwise}"
        ) from error


def replace(source: Path, target: Path) -> None:
    """Rename a file over another; copy it where the file system refuses to rename."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno not in _NOT_RENAMED:
            raise
        shutil.copyfile(source, target)
        sync(target)
        source.unlink()


def move_folder(source: Path, target: Path, *, last: str) -> None:
    """Rename a folder to `target`, which is not there.

    Where the file system refuses (overlays do, between their layers), its files are copied, the
    one named `last` at the end: a folder that a crash left without it is not whole.
    """
    try:
        source.rename(target)
        return
    except OSError as error:
        if error.errno not in _NOT_RENAMED:
            raise
    shutil.copytree(source, target, ignore=lambda at, _: [last] if Path(at) == source else [])
    for path in (*target.rglob("*"), target):
        sync(path)
    shutil.copyfile(source / last, target / last)
    sync(target / last)
    shutil.rmtree(source)


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk, where the system can tell."""
    # Windows syncs what was opened for writing alone, and opens no folders
    flags = os.O_RDWR if sys.platform == "win32" else os.O_RDONLY
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if path.is_dir() and error.errno in _NOT_SYNCED:
            return
        raise
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """As `sync`, of an open file."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SYNCED:
            raise


# --- locks ------------------------------------------------------------------------------------

SILENT = 60.0
"""Seconds without a sign of life after which another host no longer holds a lock."""

_NAMELESS = 2.0
"""Seconds after which a lock without a name is no longer one that is just being made."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that a lock names.

    Attributes:
        host: Its host; a container is one of its own.
        pid: Its number there.
        here: Whether that is this host.
        alive: Whether it is still there: of another host, whether it gave a sign of life lately.
    """

    host: str
    pid: int
    here: bool
    alive: bool

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def holder(path: Path) -> Holder | None:
    """Who holds a lock, or died with it; None: nobody."""
    owner = filelock.SoftFileLease(path, lease_duration=SILENT).owner
    try:
        beat = path.stat().st_mtime
    except FileNotFoundError:
        return None
    if owner is None:
        return None
    here = owner.hostname == _this_host()
    alive = time.time() - beat < SILENT
    if here:
        try:  # a process that began after the last sign of life has been given the number anew
            alive = psutil.Process(owner.pid).create_time() <= beat + 1
        except psutil.Error:
            alive = False
    return Holder(owner.hostname, owner.pid, here, alive)


@functools.cache
def _this_host() -> str:
    """As locks name it."""
    with tempfile.TemporaryDirectory() as folder, filelock.SoftFileLease(f"{folder}/lock") as lease:
        owner = lease.owner
    assert owner is not None
    return owner.hostname


@contextmanager
def lock(
    path: Path, what: str, way_out: str, *, wait: float = 0.0, tell: Callable[[str], None]
) -> Iterator[None]:
    """Hold a lock for this process alone.

    It is a file that names host and process and is touched every `SILENT` / 3 seconds, so it works
    on every file system and between hosts. The lock of a process that is gone is taken over at
    once on the same host, and after `SILENT` seconds without a sign of life on another; a process
    that has lost its lock so is asked to leave by a SIGTERM, where it handles that.

    Args:
        path: The lock file, gone afterwards; its folder must be there.
        what: What it locks, as told.
        way_out: What to do where it is held or cannot be made, as told.
        wait: Seconds to wait for another process to let go; may be infinite.
        tell: Receives one sentence where it waits, and where the lock is taken over.

    Raises:
        InputError: Another process holds it, or it cannot be made.
    """

    def lost(_: object) -> None:
        tell(f"{what} was taken over by another run, since this machine gave no sign of life")
        if callable(signal.getsignal(signal.SIGTERM)):
            os.kill(os.getpid(), signal.SIGTERM)

    lease = filelock.SoftFileLease(
        path, lease_duration=SILENT, poll_interval=0.2, on_compromise=lost, thread_local=False
    )
    found: Holder | None = None
    try:
        _remove_nameless(path)
        found, since = holder(path), time.monotonic()
        _acquire(lease, path, found, wait, lambda: tell(f"waiting for {found} to let go of {what}"))
    except filelock.Timeout:
        by = holder(path) or found
        raise InputError(
            f"{what} is in use by another run of fortifai; wait for it{f' ({by})' if by else ''}, "
            f"or {way_out}"
        ) from None
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InputError(f"{what} cannot be locked ({error.strerror}); {way_out}") from error
    try:
        if found and (not found.alive if found.here else time.monotonic() - since >= SILENT):
            tell(f"the lock of {what} was taken over from {found}, which is gone")
        _remove_broken(path)
        yield
    finally:
        lease.release()


def _remove_broken(path: Path) -> None:
    """Remove what processes left that were killed while they took over the lock of another.

    Only what is old: another process may be about to put the lock back that it moved aside.
    """
    for left in path.parent.glob(f"{path.name}.break.*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > SILENT:
                left.unlink()


def _acquire(
    lease: filelock.SoftFileLease,
    path: Path,
    found: Holder | None,
    wait: float,
    tell: Callable[[], None],
) -> None:
    since = time.monotonic()
    if found is None or (found.here and not found.alive):
        lease.acquire(timeout=-1 if math.isinf(wait) else wait)
        return
    if wait or not found.here:
        tell()
    # whether another host is gone shows in its silence alone; with a sign of life the wait ends
    timeout = wait if found.here else max(wait, SILENT + 5)
    beat = path.stat().st_mtime if path.exists() else 0.0

    def answered() -> bool:
        beats = path.exists() and path.stat().st_mtime != beat
        return beats and time.monotonic() - since >= wait

    lease.acquire(timeout=-1 if math.isinf(timeout) else timeout, cancel_check=answered)


def _remove_nameless(path: Path) -> None:
    """Remove a lock that a process was killed over before it had put its name in."""
    end = time.monotonic() + _NAMELESS
    with suppress(FileNotFoundError):
        while not path.stat().st_size:
            if time.monotonic() > end:
                path.unlink()
            time.sleep(0.1)
