"""Templates of the reports: one look, nothing that is ever run, and escaped text."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from fortifai import __version__
from fortifai.report import style
from fortifai.report.text import neutral

Row = dict[str, Any]

POLICY = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"
"""What a page may do beside its style sheet and its script: have images that lie in it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Live:
    """What makes a page interactive.

    Attributes:
        script: The one script: uPlot with its licence, then ours.
        style: Style sheets of both.
        data: JSON that holds nothing that HTML could take for its own.
    """

    script: str
    style: str
    data: str


def _shown(value: Any) -> Any:
    return neutral(value) if type(value) is str else value


def _ours(text: str) -> Markup:
    # figures made by matplotlib from numbers and escaped labels, files of the package, and JSON
    # that is inert; never text from a run
    return Markup(text)


def fill(template: str, *, live: Live | None = None, **values: Any) -> str:
    """A template of this package with its values; text is escaped.

    Args:
        template: Its file name.
        live: What makes it interactive. Its script and the style sheet are allowed by their
            hashes, and no others.
        values: What it names; one that is missing is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fortifai", "report"),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["ours"] = _ours
    sheet = environment.get_template("style.css.j2").render(fonts=Markup(style.FONTS))
    sheet += live.style if live else ""
    policy = f"{POLICY}; style-src {_allowed(sheet)}"
    policy += f"; script-src {_allowed(live.script)}" if live else ""
    return environment.get_template(template).render(
        version=__version__, sheet=Markup(sheet), policy=Markup(policy), live=live, **values
    )


def _allowed(text: str) -> str:
    """What a content policy says of a style sheet, or a script, that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def table(
    name: str,
    title: str,
    rows: Sequence[Row],
    *,
    head: Sequence[str],
    over: Sequence[tuple[str, int]] = (),
    intro: str = "",
    note: str = "",
) -> Row:
    """A table as the template draws it.

    Args:
        name: Its id.
        title: Its heading.
        rows: ``label``, ``colour`` ("": no arm's) and ``cells``, each a text or ``text``, ``note``.
        head: Names of the columns, that of the labels first.
        over: Titles over so many columns each; a gap stands before each but the first.
        intro: What stands before it.
        note: What stands after it.
    """
    gaps = [sum(width for _, width in over[:i]) for i in range(1, len(over))]
    return {
        "id": name, "title": title, "rows": rows, "head": head, "over": over, "gaps": gaps,
        "intro": intro, "note": note,
    }  # fmt: skip
