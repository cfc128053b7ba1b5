"""Hooks of MkDocs: pages that are generated, and links that lead out of ``docs``.

What lies elsewhere in the repository (the README, a script, a test) becomes a page of its own where
a page links to it, so that the site is whole without a network. A link to nothing is a warning,
which a strict build fails for.
"""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import house, reference  # noqa: E402 - the line above finds them

log = logging.getLogger("mkdocs.hooks.site")

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Files at the top of the repository that are pages, and what they are called."""

READ_OFF = {"src/fortifai/lab/spec.py": "reference/yaml.md"}
"""Code from which a page of the reference is made, and that page."""

PICTURES = {
    "<!-- picture: house.svg -->": "![Rooms by floor, and what each is built on](house.svg)",
}
"""Where a page shows what is drawn at each build, and is not in a checkout."""

LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")


def repository_path(target: str, page: str) -> str:
    """Where a link of a page leads, from the top of the repository.

    Args:
        target: What the link says.
        page: The page's place in the site.
    """
    home = {site: name for name, site in PAGES.items()}
    start = posixpath.dirname(home.get(page, f"docs/{page}"))
    return posixpath.normpath(posixpath.join(start, target))


def site_path(path: str) -> str:
    """The page of the site that a file of the repository is, without its anchor."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in READ_OFF:
        return READ_OFF[path]
    if path.startswith("src/fortifai/presets/"):
        return "reference/presets.md"
    return f"source/{path}.md"


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages, and one for each file outside ``docs`` that a page links to."""
    made = {f"reference/{name}": text for name, text in reference.pages().items()}
    made |= {site: (ROOT / name).read_text("utf-8") for name, site in PAGES.items()}
    made["house.svg"] = house.picture()
    written = {f.src_uri: f.content_string for f in files if f.src_uri.endswith(".md")}
    for page, text in (written | {site: made[site] for site in PAGES.values()}).items():
        for target, _ in LINK.findall(text):
            path = repository_path(target, page)
            place = site_path(path)
            if not place.startswith("source/"):
                continue
            if (ROOT / path).is_file() and not path.startswith(".."):
                code = (ROOT / path).read_text("utf-8")
                kind = Path(path).suffix.removeprefix(".")
                made[place] = f"# {path}\n\n````{kind}\n{code}\n````\n"
            else:
                log.warning("%s links to %s, which is not there", page, target)
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links and pictures as the site has them."""
    here = page.file.src_uri
    if here.startswith(("source/", "reference/")):
        return markdown

    def moved(found: re.Match[str]) -> str:
        path = repository_path(found[1], here)
        anchor = found[2] or ""
        if path.startswith("src/fortifai/presets/"):
            anchor = f"#{Path(path).stem}"
        return posixpath.relpath(site_path(path), posixpath.dirname(here) or ".") + anchor

    markdown = LINK.sub(moved, markdown)
    for place, picture in PICTURES.items():
        markdown = markdown.replace(place, picture)
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Formulas of docstrings as code, which the site shows without a script for formulas."""
    return html.replace(":math:", "")
