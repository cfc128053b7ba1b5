"""The interactive page as it is written; what a browser makes of it is in test_browser.py."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path

import pytest

from fortifai.report import interactive, write_report
from fortifai.report.load import load
from fortifai.report.passages import places, scores_of
from fortifai.report.scene import Scene
from tests.commands import fortifai

from .test_report import GOLDEN, Page, allowed, bare, policy_of

UPLOT = Path(interactive.__file__).with_name("uplot")


@pytest.fixture(scope="module")
def page(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("interactive")
    return write_report([small_run], out, interactive=True).read_text("utf-8")


def scripts(page: str) -> tuple[str, str]:
    """The data and the script of a page."""
    found = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert len(found) == len([tag for tag, _ in Page(page).tags if tag == "script"]) == 2
    return found[0], found[1]


def test_one_script_is_allowed_by_its_hash_and_nothing_else(page: str) -> None:
    assert policy_of(page) == {
        "default-src": "'none'", "script-src": allowed(page, "script"), "img-src": "data:",
        "style-src": allowed(page, "style"), "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip


def test_without_its_script_it_is_the_plain_page(page: str) -> None:
    """So that a reader without scripts, or a printer, lacks nothing."""
    without = re.sub("<script.*?</script>\n", "", page, flags=re.DOTALL)
    without = re.sub("; script-src '[^']*'", "", without)
    assert bare(without).split() == GOLDEN.read_text("utf-8").split()


def test_the_library_is_the_published_one_and_keeps_its_licence(page: str) -> None:
    told = dict(reversed(line.split()[1:]) for line in _sums())
    for name in ("LICENSE", "uPlot.iife.min.js", "uPlot.min.css"):
        assert hashlib.sha256((UPLOT / name).read_bytes()).hexdigest() == told[name]
    script = scripts(page)[1]
    assert script.startswith("/*! uPlot")
    assert "Copyright (c) 2022 Leon Sorokin" in script
    assert (UPLOT / "LICENSE").read_text("utf-8").strip() in script


def _sums() -> list[str]:
    lines = (UPLOT / "SOURCE.md").read_text("utf-8").splitlines()
    return [line for line in lines if line.strip().startswith("sha256")]


def test_its_numbers_are_those_of_the_run(small_run: Path, page: str) -> None:
    told = json.loads(scripts(page)[0])
    (run,) = load([small_run])
    assert [arm["label"] for arm in told["arms"]] == [arm.label for arm in run.arms]
    (panel,) = told["figures"]["knowledge-retention-first-split"]
    assert panel["x"] == [0, 1, 2]
    for line, arm in zip(panel["arms"], run.arms, strict=True):
        seeds = [[g.value(("kr.mean", "split-0")) for g in c.generations] for c in arm.chains]
        # six digits are kept
        assert line["seeds"] == [pytest.approx(values, rel=1e-5) for values in seeds]
        means = [sum(values) / len(values) for values in zip(*seeds, strict=True)]
        assert line["mean"] == pytest.approx(means, rel=1e-5)
        assert line["low"] == pytest.approx(
            [min(pair) for pair in zip(*seeds, strict=True)], rel=1e-5
        )
    levels = {curve["name"]: curve["level"] for curve in panel["curves"]}
    assert levels == {"chance": 0.5, "failure level": 0.75}


def test_its_texts_are_those_of_all_arms_seeds_and_generations(small_run: Path) -> None:
    scene = Scene(load([small_run]))
    found = places(scene)
    assert len(found) == 3
    for place in found:
        shown = [(v.arm.label, v.seed, v.times) for v in place.versions]
        wanted = [(a, s, n) for a in ("ce", "tce-0.3") for s in (0, 1) for n in (1, 2, 3)]
        assert sorted(shown) == sorted(wanted)
    chain = scene.arms[0].chains[1]
    passage = chain.generations[2].passages[0]
    (version,) = [v for v in found[0].versions if (v.arm.label, v.seed, v.times) == ("ce", 1, 3)]
    assert "".join(version.pieces) == "".join(passage.tokens)
    changed = [t for t, c in zip(passage.tokens, passage.changed, strict=True) if c]
    assert " ".join(version.pieces[1::2]).split() == "".join(changed).split()
    scores = dict(zip(scores_of(scene), version.scores, strict=True))
    assert scores["tokens changed"] == pytest.approx(sum(passage.changed) / len(passage.changed))
    pairs = [passage.tokens[i : i + 2] for i in range(len(passage.tokens) - 1)]
    assert scores["different pairs of tokens"] == len({*pairs}) / len(pairs)
    wrote = chain.generations[2].value(("perplexity", "held-out"))
    assert scores["Perplexity, held-out data"] == wrote


def test_data_cannot_end_its_element_and_come_back_as_they_were() -> None:
    hostile = ["</script><script>alert(1)</script>", "<!--", "]]>", "a&amp;b", "\u2028\u2029"]
    told = interactive.inert({"texts": hostile, "numbers": [0.1 + 0.2, math.nan, math.inf, 3]})
    assert not re.search("[<>&\u2028\u2029]", told)
    back = json.loads(told)
    assert back["texts"][:4] == hostile[:4]
    assert back["texts"][4] == "\ufffd\ufffd"  # shown, never obeyed
    assert back["numbers"] == [0.3, None, None, 3]


@pytest.mark.parametrize(
    ("options", "interactive"),
    [([], False), (["--interactive"], True), (["--open"], True), (["--open", "--plain"], False)],
)
def test_a_report_is_plain_unless_it_is_opened(
    options: list[str], interactive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bool] = []
    opened: list[str] = []

    def write(runs: list[Path], out: Path, *, interactive: bool, **_: object) -> Path:
        written.append(interactive)
        return out / "index.html"

    monkeypatch.setattr("fortifai.report.write_report", write)
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or len(opened) > 1)
    for told in ("no browser was found", ""):
        done = fortifai("report", "run", "--out", tmp_path, *options)
        assert done.returncode == 0
        assert (told if "--open" in options else "") in done.stderr
    assert bool(done.stderr) is False
    assert written == [interactive] * 2
    assert opened == [(tmp_path / "index.html").as_uri()] * 2 * ("--open" in options)


def test_panels_that_share_an_axis_do_so(page: str) -> None:
    panels = json.loads(scripts(page)[0])["figures"]["splits"]
    every = [v for panel in panels for line in panel["arms"] for v in line["mean"]]
    (limits,) = {tuple(panel["limits"]) for panel in panels}
    assert limits[0] < min(every)
    assert max(every) < limits[1]
