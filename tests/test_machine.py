"""What a machine says of itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fortifai import machine

AVAILABLE = 5000


@pytest.mark.parametrize(
    ("platform", "accelerator", "method"),
    [
        ("linux", False, "forkserver"),
        # its libraries must not be forked once they have looked for accelerators
        ("linux", True, "spawn"),
        ("darwin", False, "spawn"),
        ("win32", False, "spawn"),
    ],
)
def test_how_processes_start(monkeypatch, platform, accelerator, method):
    monkeypatch.setattr(machine.sys, "platform", platform)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator)
    assert machine.process_context().get_start_method() == method


@pytest.fixture(autouse=True)
def available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=AVAILABLE)
    )


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, AVAILABLE),
        ({"memory.max": "max\n", "memory.current": "700\n"}, AVAILABLE),
        ({"memory.max": "3000\n", "memory.current": "700\n"}, 2300),
        ({"memory.max": "9000\n", "memory.current": "700\n"}, AVAILABLE),
        ({"memory.max": "3000\n", "memory.current": "3100\n"}, 0),
        ({"memory/memory.limit_in_bytes": "3000", "memory/memory.usage_in_bytes": "1"}, 2999),
    ],
    ids=["none", "no limit", "limit", "larger than the machine", "all taken", "version 1"],
)
def test_free_memory_is_what_the_container_leaves(tmp_path: Path, files, free):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.free_memory(tmp_path) == free


def test_a_machine_tells_without_them():
    assert machine.free_memory() <= AVAILABLE
