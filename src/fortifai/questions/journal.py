"""A file that remembers every answer of an endpoint, so that nothing is asked or paid for twice."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from fortifai import files
from fortifai.errors import InputError, RunFailed

FORMAT = 1


class Journal:
    """JSON lines: first what was asked for, then one line an attempt, on the disk before it counts.

    A line that a crash left unfinished is cut off when the journal is opened again. Several threads
    may add lines; another process may not have it open: a hidden lock file stands beside it.

    Attributes:
        path: Where it is.
        records: All attempts, in the order of the file.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open a journal, or begin one.

        Args:
            path: The file.
            settings: All that the answers depend on; no keys or addresses, for it is written down.

        Raises:
            InputError: It is no journal, is damaged, is in use, or was begun with other settings.
        """
        self.path = path
        self.records: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        try:
            # unbuffered: a line is in the file, or not, when write returns
            with ExitStack() as stack:
                self._file = stack.enter_context(path.open("ab", buffering=0))
                # before it is read: two runs on one journal would pay for everything twice
                stack.enter_context(_locked(path))
                self._begin({"fortifai_journal": FORMAT, **settings})
                self._open = stack.pop_all()
        except OSError as error:
            raise InputError(
                f"the journal {path} cannot be opened ({error.strerror}); give one with --journal "
                "in a folder that can be written to"
            ) from error

    def _begin(self, head: dict[str, Any]) -> None:
        whole = self._read()
        if whole:
            self._compare(whole[0], head)
            self.records = whole[1:]
        else:
            self._write(head)

    def _read(self) -> list[dict[str, Any]]:
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        rows = []
        for number, line in enumerate(data[:end].splitlines(), start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise InputError(
                    f"{self.path}, line {number}, is no line of a journal; give another file with "
                    "--journal, or remove this one to begin anew"
                )
            rows.append(row)
        if data and not rows and data[:1] != b"{":
            raise InputError(f"{self.path} is no journal; give another file with --journal")
        if end < len(data):
            os.truncate(self.path, end)
        return rows

    def _compare(self, head: dict[str, Any], wanted: dict[str, Any]) -> None:
        if "fortifai_journal" not in head:
            raise InputError(f"{self.path} is no journal; give another file with --journal")
        for key in sorted(head.keys() | wanted.keys()):
            if head.get(key) != wanted.get(key):
                raise InputError(
                    f"the journal {self.path} was begun with {key} {head.get(key)!r}, not "
                    f"{wanted.get(key)!r}; ask for the same, or give another file with --journal"
                )

    def add(self, record: dict[str, Any]) -> None:
        """Write one attempt and wait until it is on the disk.

        Raises:
            RunFailed: It cannot be written.
        """
        with self._lock:
            self._write(record)
            self.records.append(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        # ASCII: half of a surrogate pair, which JSON may hold, is no UTF-8
        line = (json.dumps(record, ensure_ascii=True) + "\n").encode("ascii")
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(0, "only a part could be written")
            files.sync_descriptor(self._file.fileno())
        except OSError as error:
            raise RunFailed(
                f"the journal {self.path} cannot be written ({error.strerror}); make room, and "
                "give the same command again"
            ) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _locked(path: Path) -> AbstractContextManager[None]:
    place = path.resolve()  # one lock, however the file is named
    return files.lock(
        place.with_name(f".{place.name}.lock"),
        f"the journal {path}",
        "give another file with --journal",
        tell=lambda sentence: warnings.warn(sentence, stacklevel=2),
    )
