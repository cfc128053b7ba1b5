"""The examples of the page about trainers, by the heading they stand under."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trainers.md"


def examples(heading: str) -> list[str]:
    """The Python under a heading, block by block."""
    text = PAGE.read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return re.findall(r"```python\n(.*?)```", section, re.S)
