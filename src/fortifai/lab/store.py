"""A chain of generations on disk: one folder each, whole or not there.

A generation is written into ``generation-NN.partial``; its manifest, with the size and SHA-256 of
every file, is written last, then the folder is renamed. Whatever is killed in between never
happened. Model weights may be dropped later to save disk: the manifest knows them apart.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fortifai import files
from fortifai.errors import InputError

MANIFEST = "manifest.json"
MODEL = "model"
SAMPLES = "samples.safetensors"
ENDED = "ended.json"
STALE = "stale.json"
STATE = "state.json"
LOCK = ".lock"
SEEN = ".lock-seen-"
"""So begin the files by which nodes of a cluster find out whether they see the same folder."""


@dataclasses.dataclass(frozen=True, slots=True)
class Health:
    """What a look at a committed folder found.

    Attributes:
        whole: Every file that must be there is there, with its size and sum.
        faults: What is wrong with which file, one sentence part each.
        there: The files and folders at its top that are there and whole.
    """

    whole: bool
    faults: tuple[str, ...] = ()
    there: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class FileSum:
    """What a manifest says of a file: its size in bytes and hexadecimal SHA-256."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """A chain that could not go on: the generation that could not be trained, and why."""

    generation: int
    reason: str


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON with sorted keys, so that equal data are equal bytes."""
    files.write_text(path, _json_text(data))


def _json_text(data: Any) -> str:
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows)
    files.write_text(path, "".join(f"{line}\n" for line in lines))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def committing(
    folder: Path, droppable: Sequence[str] = (), *, goes_on: bool = False
) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when the block ends, or never exists.

    Anything found at `folder` before is replaced.

    Args:
        folder: Where to.
        droppable: Names at its top that may be removed later without harm to the rest.
        goes_on: Begin with the folders that a killed process had committed inside of it, instead
            of with nothing.
    """
    partial = unfinished(folder)
    if goes_on:
        # all are looked at before one is removed: what is removed may say that it can go on
        for left in [path for path in partial.iterdir() if not _is_commit(path)]:
            _remove(left)
    else:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=goes_on)
    yield partial
    _write_manifest(partial, droppable)
    shutil.rmtree(folder, ignore_errors=True)
    files.move_folder(partial, folder, last=MANIFEST)
    files.sync(folder.parent)


def unfinished(folder: Path) -> Path:
    """Where `committing` writes what is to become `folder`."""
    return folder.with_name(folder.name + ".partial")


def _is_commit(path: Path) -> bool:
    # a folder that was copied where it could not be renamed may be there twice
    return path.is_dir() and path.suffix != ".partial" and inspect(path).whole


def _write_manifest(folder: Path, droppable: Sequence[str]) -> None:
    kept: dict[str, dict[str, Any]] = {}
    may_go: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        files.sync(path)
        where = may_go if _top(name) in droppable else kept
        where[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(folder / MANIFEST, {"files": kept, "droppable": may_go})
    files.sync(folder / MANIFEST)


def _top(name: str) -> str:
    return name.partition("/")[0]


def inspect(folder: Path) -> Health:
    """Check a committed folder against its manifest, reading every byte."""
    try:
        kept, droppable = read_manifest(folder)
    except FileNotFoundError:
        return Health(False)
    except (OSError, ValueError):
        return Health(False, (f"{folder / MANIFEST} is not a manifest",))
    dropped = {_top(name) for name in droppable if not (folder / _top(name)).exists()}
    due = kept | {name: told for name, told in droppable.items() if _top(name) not in dropped}
    found = {name: fault for name, told in due.items() if (fault := _fault(folder / name, told))}
    # what may be dropped is known by name: another one is a name that has changed
    found |= {
        name: f"{folder / MANIFEST} has changed (it names {name})"
        for name in droppable
        if _top(name) not in (MODEL, SAMPLES)
    }
    broken = {_top(name) for name in found}
    return Health(not found, tuple(found.values()), frozenset(map(_top, due)) - broken)


def read_manifest(folder: Path) -> tuple[dict[str, FileSum], dict[str, FileSum]]:
    """The files that a committed folder must hold, and those that may have been dropped.

    Raises:
        FileNotFoundError: It has no manifest.
        ValueError: It cannot be read as one.
    """
    text = (folder / MANIFEST).read_text("utf-8")
    try:
        told = json.loads(text)
        kept, droppable = (
            {
                str(name): FileSum(int(row["bytes"]), str(row["sha256"]))
                for name, row in told[key].items()
            }
            for key in ("files", "droppable")
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / MANIFEST} is not a manifest") from error
    return kept, droppable


def _fault(path: Path, told: FileSum) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    size = path.stat().st_size
    if size != told.size:
        return f"{path} has {size} bytes instead of {told.size}"
    if sha256(path) != told.sha256:
        return f"{path} has changed (its SHA-256 differs from the manifest's)"
    return None


class ChainStore:
    """The generations of one arm and seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, generation: int) -> Path:
        """Folder of a generation, whether it exists or not."""
        return self.folder / f"generation-{generation:02d}"

    def sum_of(self, generation: int, name: str) -> str | None:
        """The SHA-256 that a generation's manifest gives for a file, or its own without one."""
        try:
            kept, droppable = read_manifest(self.path(generation))
            return (kept | droppable)[name].sha256
        except (OSError, ValueError, KeyError):
            path = self.path(generation) / name
            return sha256(path) if path.is_file() else None

    def drop(self, generation: int, name: str) -> None:
        """Remove a generation's weights or samples; everything else of it stays.

        They are renamed first, so that a kill in between leaves no half of them under their name.
        """
        path = self.path(generation) / name
        if path.exists():
            gone = self.folder / f"dropped-{generation:02d}-{name}.partial"
            _remove(gone)
            try:
                path.rename(gone)
            except PermissionError:
                return  # Windows, while the file is mapped: the chain tries again at its end
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                gone = path  # another layer of an overlay: half of it counts as damaged, not lost
            _remove(gone)

    def forget(self, generation: int) -> None:
        """Remove a generation that is no commit any more, since its chain has grown."""
        path = self.path(generation)
        if path.exists():
            (path / MANIFEST).unlink(missing_ok=True)  # first: what is left is not whole
            _remove(path)

    def end(self, generation: int, reason: str) -> None:
        """Mark the chain as one whose generation `generation` could not be trained."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_whole(
            self.folder / ENDED, _json_text({"generation": generation, "reason": reason})
        )

    def ended(self) -> End | None:
        """How the chain ended before its time; None if it did not.

        Raises:
            ValueError: The mark has changed: it is none, or there are generations behind the end.
        """
        path = self.folder / ENDED
        if not path.is_file():
            return None
        try:
            told = json.loads(path.read_text("utf-8"))
            found = End(int(told["generation"]), str(told["reason"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read") from error
        behind = [g for g in self.committed() if g >= found.generation]
        if found.generation < 1 or behind:
            raise ValueError(f"{path} says {found.generation}, and generation {behind} is there")
        return found

    def go_on(self) -> None:
        """Take back that the chain has ended."""
        (self.folder / ENDED).unlink(missing_ok=True)

    def committed(self) -> list[int]:
        """The generations that have a manifest, in order."""
        found = (re.fullmatch(r"generation-(\d+)", p.parent.name) for p in self._manifests())
        return sorted(int(match.group(1)) for match in found if match)

    def _manifests(self) -> Iterable[Path]:
        return self.folder.glob(f"generation-*/{MANIFEST}")

    def set_stale(self, generations: Iterable[int]) -> None:
        """Say which committed generations are to be done again; none: all are as they must be."""
        rows = sorted(generations)
        if rows:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_whole(self.folder / STALE, _json_text(rows))
        else:
            (self.folder / STALE).unlink(missing_ok=True)

    def stale(self) -> set[int]:
        """Committed generations that are to be done again: whole, but measured on less."""
        path = self.folder / STALE
        try:
            return (
                {int(g) for g in json.loads(path.read_text("utf-8"))} if path.is_file() else set()
            )
        except (ValueError, TypeError):
            return set(self.committed())  # damaged: doing all again is slow and right

    def sweep(self) -> None:
        """Remove what a killed process left half-written."""
        if self.folder.exists():
            for left in self.folder.iterdir():
                if left.name.endswith(".partial"):
                    _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Leave word in a chain's folder that it is being worked on, or why that failed."""
    state = {"since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    files.write_whole(folder / STATE, _json_text(state))
    try:
        yield
    except Exception as error:
        with suppress(OSError):  # such as a full disk, which is what is told then
            files.write_whole(folder / STATE, _json_text(state | {"failed": str(error)}))
        raise
    except BaseException:
        (folder / STATE).unlink(missing_ok=True)
        raise
    (folder / STATE).unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder of a run, and those above it, where they are not there.

    Raises:
        InputError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in files.FULL:
            raise
        raise InputError(
            f"{folder} cannot be made ({error.strerror}); choose another --out"
        ) from error


@contextmanager
def locked(
    folder: Path,
    *,
    name: str = LOCK,
    wait: float = 0.0,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[None]:
    """Hold `folder` for this process alone; see `files.lock`.

    Args:
        folder: Created if it is not there.
        name: Of the lock, where a folder has several.
        wait: Seconds to wait for another process to let go.
        tell: Receives one sentence where it waits, and where the lock is taken over.

    Raises:
        InputError: Another process holds it, or it cannot be made.
    """
    make_folder(folder)
    with files.lock(folder / name, str(folder), "choose another --out", wait=wait, tell=tell):
        yield
