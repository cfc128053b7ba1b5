"""The examples of the page about losses run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "losses.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", [c for c in EXAMPLES if "Trainer(" not in c])
def test_examples_run(code: str) -> None:
    exec(compile(code, PAGE.name, "exec"), {})


def test_examples_were_found() -> None:
    assert len(EXAMPLES) == 5
