"""Templates of the reports: one look, nothing that is ever run, and escaped text."""

from __future__ import annotations

from typing import Any

import jinja2
from markupsafe import Markup

from fortifai import __version__
from fortifai.report import style
from fortifai.report.text import neutral


def _shown(value: Any) -> Any:
    return neutral(value) if type(value) is str else value


def _svg(text: str) -> Markup:
    # made by matplotlib from numbers and escaped labels, never from a file
    return Markup(text)


def fill(template: str, **values: Any) -> str:
    """A template of this package with its values; text is escaped.

    Args:
        template: Its file name.
        values: What it names; one that is missing is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fortifai", "report"),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["svg"] = _svg
    found = environment.get_template(template)
    return found.render(version=__version__, fonts=Markup(style.FONTS), **values)
