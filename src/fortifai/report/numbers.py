"""Numbers in print."""

from __future__ import annotations

import re

from fortifai.report.text import DASH, MINUS


def number(value: float | None, form: str = "") -> str:
    """A value in print: in a form of Python's, or with about three digits that matter."""
    if value is None:
        return DASH
    size = abs(value)
    if not form:
        small = size >= 1e7 or 0 < size < 0.1
        form = ".3g" if small else ",.0f" if size >= 100 else ".1f" if size >= 10 else ".2f"
    # without the exponent's zeros, and with a minus that no line breaks at
    return re.sub(r"e([+-])0*", r"e\1", format(value, form)).replace("-", MINUS)


def signed(value: float, digits: int = 2) -> str:
    """A difference, with its sign unless it is shown as 0."""
    text = number(value, f"+,.{digits}f")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def span(low: float | None, high: float | None, form: str = "") -> str:
    """An interval, its ends with "to" between, which is no minus; an open end is left out."""
    if low is None and high is None:
        return ""
    if high is None:
        return f"from {number(low, form)}"
    if low is None:
        return f"up to {number(high, form)}"
    return f"{number(low, form)} to {number(high, form)}"
