"""The site: strict, whole without a network, and every link of a page led where it goes."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mkdocs", reason="the site needs pip install '.[docs]'")

from scripts import site_hooks

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("page", "link", "site"),
    [
        ("index.md", "docs/guides/audit.md", "guides/audit.md"),
        ("index.md", "docs/results/a/b.svg", "results/a/b.svg"),
        ("index.md", "CITATION.cff", "source/CITATION.cff.md"),
        ("contributing.md", "docs/plugins.md#cures", "plugins.md#cures"),
        ("experiments.md", "../CONTRIBUTING.md", "contributing.md"),
        ("results.md", "../src/fortifai/presets/demo.yaml", "reference/presets.md#demo"),
        ("guides/study.md", "../../src/fortifai/lab/spec.py", "../reference/yaml.md"),
        ("results.md", "../tests/test_pretrained.py", "source/tests/test_pretrained.py.md"),
        ("guides/audit.md", "../audit.md", "../audit.md"),
        ("guides/audit.md", "../corpora.md#text-local-files", "../corpora.md#text-local-files"),
        ("faq.md", "../SECURITY.md", "security.md"),
    ],
)
def test_links_lead_to_pages_of_the_site(page, link, site):
    where = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    told = site_hooks.on_page_markdown(f"See [it]({link}).", where)
    assert told == f"See [it]({site})."


def test_links_elsewhere_stay():
    where = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    for text in ("[a](https://arxiv.org/abs/2509.08972)", "[a](#cite)", "f(x)(y.md)"):
        assert site_hooks.on_page_markdown(text, where) == text


def test_what_is_drawn_at_each_build_is_a_picture_of_the_site_alone():
    page = (ROOT / "docs" / "built.md").read_text("utf-8")
    (place,) = [place for place in site_hooks.PICTURES if place in page]
    told = site_hooks.on_page_markdown(
        page, SimpleNamespace(file=SimpleNamespace(src_uri="built.md"))
    )
    assert place not in told
    assert "](house.svg)" in told


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    more = {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(root / "src")}
    return subprocess.run(
        command, cwd=root, env=os.environ | more, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.long
def test_nothing_is_fetched_from_elsewhere(site):
    found = []
    for path in site.rglob("*.html"):
        text = path.read_text("utf-8")
        found += re.findall(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//[^"]*"', text)
        found += re.findall(r'<link[^>]*href="(?:https?:)?//[^"]*"', text)
    for path in site.rglob("*.css"):
        found += re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)]*", path.read_text("utf-8"))
    assert found == []
    assert (site / "search" / "search_index.js").is_file(), "searched in a folder, too"
    assert "iframe-worker.js" in (site / "index.html").read_text("utf-8")


@pytest.mark.long
def test_the_reference_is_there(site):
    api = (site / "reference" / "api" / "fortifai.html").read_text("utf-8")
    assert 'id="truncated_cross_entropy"' in api
    assert 'id="fortifai.TruncatedCrossEntropyLoss"' in api
    assert "learning_rate" in (site / "reference" / "yaml.html").read_text("utf-8")
    assert (site / "house.svg").is_file()
    assert '"house.svg"' in (site / "built.html").read_text("utf-8")
    assert (site / "llms.txt").is_file()


@pytest.mark.long
@pytest.mark.parametrize(
    "wrong",
    [
        ["[a page](nowhere-a.md)", "[code](../src/nowhere-b.py)", "[part](losses.md#nowhere-c)"],
        ["::: fortifai.nowhere"],
    ],
    ids=["links", "symbol"],
)
def test_what_is_not_there_fails_the_build(wrong, tmp_path):
    """A small copy: the pages, the code they are read off, and some lines more."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("scripts", "src", "tests", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    for path in (*ROOT.glob("*.md"), ROOT / "mkdocs.yml", ROOT / "CITATION.cff"):
        shutil.copy(path, tmp_path)
    page = tmp_path / "docs" / "faq.md"
    page.write_text("\n\n".join([page.read_text("utf-8"), *wrong, ""]), "utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    for name in re.findall(r"nowhere[-\w]*", " ".join(wrong)):
        assert name in done.stderr


def test_a_link_to_nothing_is_a_warning_of_mkdocs():
    """Only what MkDocs' own loggers say counts in a strict build."""
    assert site_hooks.log.name.startswith("mkdocs.")
    assert isinstance(site_hooks.log, logging.Logger)
