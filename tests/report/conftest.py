from __future__ import annotations

from pathlib import Path

import pytest

from .fake import ARMS, TEXT, write_run


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms, two seeds, three generations."""
    arms = {name: ARMS[name] for name in ("ce", "tce-0.3")}
    folder = tmp_path_factory.mktemp("runs") / "small"
    return write_run(folder, name="small", arms=arms, generations=3, words=TEXT[:40])
