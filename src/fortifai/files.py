"""Files that are whole or not there, and locks, on the file systems that people have.

Network, FUSE and Windows file systems refuse some of what Linux's own offer: locks, syncing a
folder, renaming one. What was computed must not be lost to that, so what can be done without is
left out, and what cannot is done in another way.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from fortifai.errors import InputError

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


@contextmanager
def lock(
    path: Path, what: str, way_out: str, *, wait: float = 0.0, tell: Callable[[str], None]
) -> Iterator[None]:
    """Hold a lock for this process alone; it is let go when the process ends, however it does.

    Where the file system has no locks, a marker file ``PATH.soft`` stands for one, which a process
    on the same machine takes over when its owner is gone.

    Args:
        path: The lock file, gone afterwards; its folder must be there.
        what: What it locks, as told.
        way_out: What to do where it is held or cannot be made, as told.
        wait: Seconds to wait for another process to let go.
        tell: Receives one sentence where there are no locks.

    Raises:
        InputError: Another process holds it, or it cannot be made.
    """
    soft = path.with_name(f"{path.name}.soft")
    held: filelock.BaseFileLock | None = None
    try:
        if filelock.has_fcntl or sys.platform == "win32":
            held = _native(path, wait)
        if held is None:
            held = filelock.SoftFileLock(soft, timeout=wait, poll_interval=0.2)
            held.acquire()
            tell(
                f"the file system of {path.parent} has no file locks, so {soft.name} stands for "
                "one: start no other run there, and if a machine fails remove that file"
            )
    except filelock.Timeout:
        left = f", or remove {soft} if a failed machine left it" if soft.exists() else ""
        raise InputError(
            f"{what} is in use by another run of fortifai; wait for it{left}, or {way_out}"
        ) from None
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InputError(f"{what} cannot be locked ({error.strerror}); {way_out}") from error
    try:
        yield
    finally:
        # before it is let go: whoever waits finds that the file has no name, and makes another;
        # Windows removes it itself
        with suppress(OSError):
            path.unlink(missing_ok=True)
        held.release()


def _native(path: Path, wait: float) -> filelock.BaseFileLock | None:
    """The system's lock, acquired; None where the file system refuses locks."""
    found = filelock.FileLock(path, timeout=wait, poll_interval=0.2, fallback_to_soft=False)
    try:
        found.acquire()
    except OSError as error:
        if isinstance(error, filelock.Timeout) or error.errno not in _REFUSED:
            raise
        return None
    return found
