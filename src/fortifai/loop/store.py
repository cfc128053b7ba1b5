"""A chain of generations on disk: one folder each, whole or not there.

A generation is written into ``generation-NN.partial``; its manifest, with the size and SHA-256 of
every file, is written last, then the folder is renamed. Whatever is killed in between never
happened. Model weights may be dropped later to save disk: the manifest knows them apart.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fortifai.errors import InputError

MANIFEST = "manifest.json"
MODEL = "model"
SAMPLES = "samples.safetensors"
ENDED = "ended.json"


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
class End:
    """A chain that could not go on: the generation that could not be trained, and why."""

    generation: int
    reason: str


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON with sorted keys, so that equal data are equal bytes."""
    path.write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def committing(folder: Path, droppable: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when the block ends, or never exists.

    Anything found at `folder` before is replaced.

    Args:
        folder: Where to.
        droppable: Names at its top that may be removed later without harm to the rest.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    _write_manifest(partial, droppable)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    _sync(folder.parent)


def _write_manifest(folder: Path, droppable: Sequence[str]) -> None:
    kept: dict[str, dict[str, Any]] = {}
    may_go: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        _sync(path)
        where = may_go if _top(name) in droppable else kept
        where[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(folder / MANIFEST, {"files": kept, "droppable": may_go})
    _sync(folder / MANIFEST)


def _top(name: str) -> str:
    return name.partition("/")[0]


def _sync(path: Path) -> None:
    # a power cut must not leave a manifest whose files are still in the page cache
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def inspect(folder: Path) -> Health:
    """Check a committed folder against its manifest, reading every byte."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        kept, droppable = dict(manifest["files"]), dict(manifest["droppable"])
    except FileNotFoundError:
        return Health(False)
    except (ValueError, KeyError, TypeError):
        return Health(False, (f"{folder / MANIFEST} is not a manifest",))
    dropped = {_top(name) for name in droppable if not (folder / _top(name)).exists()}
    files = kept | {name: told for name, told in droppable.items() if _top(name) not in dropped}
    found = {name: _fault(folder / name, told) for name, told in files.items()}
    faults = tuple(fault for fault in found.values() if fault)
    broken = {_top(name) for name, fault in found.items() if fault}
    return Health(not faults, faults, frozenset(map(_top, files)) - broken)


def _fault(path: Path, told: dict[str, Any]) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    size = path.stat().st_size
    if size != told["bytes"]:
        return f"{path} has {size} bytes instead of {told['bytes']}"
    if sha256(path) != told["sha256"]:
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
        """The SHA-256 that a generation's manifest gives for a file; None if it cannot be read."""
        try:
            manifest = json.loads((self.path(generation) / MANIFEST).read_text("utf-8"))
            files = manifest["files"] | manifest["droppable"]
            return str(files[name]["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def drop(self, generation: int, name: str) -> None:
        """Remove a generation's weights or samples; everything else of it stays.

        They are renamed first, so that a kill in between leaves no half of them under their name.
        """
        path = self.path(generation) / name
        if path.exists():
            gone = self.folder / f"dropped-{generation:02d}-{name}.partial"
            _remove(gone)
            path.rename(gone)
            _remove(gone)

    def end(self, generation: int, reason: str) -> None:
        """Mark the chain as one whose generation `generation` could not be trained."""
        partial = self.folder / f"{ENDED}.partial"
        partial.parent.mkdir(parents=True, exist_ok=True)
        write_json(partial, {"generation": generation, "reason": reason})
        _sync(partial)
        partial.rename(self.folder / ENDED)

    def ended(self) -> End | None:
        """How the chain ended before its time; None if it did not."""
        path = self.folder / ENDED
        return End(**json.loads(path.read_text("utf-8"))) if path.is_file() else None

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
def locked(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold `folder` for this process alone.

    Args:
        folder: Created if it is not there.
        wait: Seconds to wait for another process to let go.

    Raises:
        InputError: Another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise InputError(
            f"{folder} cannot be made ({error.strerror}); choose another --out"
        ) from error
    with (folder / ".lock").open("w") as handle:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise InputError(
                        f"{folder} is in use by another run of fortifai; wait for it or choose "
                        "another --out"
                    ) from None
                time.sleep(0.2)
        yield
