from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from fortifai import __version__
from fortifai.errors import InputError, RunFailed
from fortifai.lab.measures import About, Line, Score
from fortifai.lab.store import write_json
from fortifai.report import lines, write_report
from fortifai.report.compare import differences, to_baseline, to_first_run
from fortifai.report.context import context
from fortifai.report.failure import failures
from fortifai.report.figures import draw_all
from fortifai.report.load import load
from fortifai.report.numbers import signed
from fortifai.report.records import Arm, Chain, Generation, Run
from fortifai.report.scene import Scene
from fortifai.report.style import Canvas
from fortifai.report.text import neutral
from fortifai.text.measures import MEASURES

from .fake import ARMS, FakeArm, write_run

LEAD = "knowledge-retention-first-split"
NAMES = {
    LEAD, "splits", "knowledge-retention", "perplexity",
    "drift-of-the-token-distribution", "confidence", "diversity", "training", "ledger",
}  # fmt: skip
GOLDEN = Path(__file__).with_name("golden.html")
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """What a page is made of: its tags with their attributes, ids, and the text outside tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, *names: str) -> list[str]:
        return [v for _, attrs in self.tags for n, v in attrs.items() if n in names and v]


def outside(page: str) -> list[str]:
    """Everything in `page` that a browser would fetch, or run."""
    parsed = Page(page)
    found = [
        v
        for v in parsed.values("src", "srcset", "href", "xlink:href", "action", "data", "poster")
        if not v.startswith(("#", "data:"))
    ]
    found += [u for u in re.findall(r"url\(\s*['\"]?([^)]*)", page) if not u.startswith("#")]
    found += re.findall(r"@import[^;]*", page)
    found += [
        t for t, _ in parsed.tags if t in {"script", "iframe", "object", "embed", "link", "base"}
    ]
    found += [n for _, attrs in parsed.tags for n in attrs if n.startswith("on")]
    return found


def policy_of(page: str) -> dict[str, str]:
    """What the content policy of a page allows."""
    (told,) = [
        attrs["content"] or ""
        for _, attrs in Page(page).tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    return dict(rule.strip().split(" ", 1) for rule in told.split(";"))


def allowed(page: str, tag: str) -> str:
    """How a policy allows the one element of a page that bears no attributes."""
    (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def bare(page: str) -> str:
    """A page without figures and styles, whose bytes other versions may change."""
    body = re.sub(r"<(svg xmlns|style)\b.*?</(svg|style)>", r"<\2></\2>", page, flags=re.DOTALL)
    body = re.sub("style-src '[^']*'", "style-src", body)
    return body.replace(f"fortifai {__version__}", "fortifai VERSION")


def told(*folders: Path) -> dict[str, Any]:
    """What the template is given, without the figures."""
    runs = load(folders)
    times = failures(runs)
    return context(Scene(runs, times.drawn), [], times)


def table(given: dict[str, Any], name: str) -> dict[str, list[Any]]:
    """The cells of a table by the labels of its rows; empty where it is not there."""
    found = [one["rows"] for one in given["tables"] if one["id"] == name]
    return {row["label"]: row["cells"] for rows in found for row in rows}


def sentences(given: dict[str, Any]) -> dict[str, str]:
    """What is said of each arm."""
    return {line["label"]: line["text"] for one in given["stories"] for line in one["lines"]}


@pytest.fixture(scope="module")
def report(small_run: Path) -> Path:
    return write_report([small_run])


@pytest.fixture(scope="module")
def page(report: Path) -> str:
    return report.read_text("utf-8")


def test_the_report_lies_in_the_first_run_or_where_it_was_asked(
    small_run: Path, report: Path, tmp_path: Path
) -> None:
    assert report == small_run / "report" / "index.html"
    assert write_report([small_run], tmp_path / "else") == tmp_path / "else" / "index.html"
    for place in (report.parent, tmp_path / "else"):
        assert {p.stem for p in (place / "figures").iterdir()} == NAMES
        assert not list(place.rglob("*.partial"))


def test_nothing_is_fetched_or_run(page: str) -> None:
    assert outside(page) == []
    parsed = Page(page)
    assert parsed.open == []  # every tag is closed
    assert policy_of(page) == {
        "default-src": "'none'", "style-src": allowed(page, "style"), "img-src": "data:",
        "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    assert parsed.values("style") == []  # which the policy would not let be


def test_the_check_for_fetches_sees_them() -> None:
    for bad in (
        '<img src="https://x.org/a.png">',
        '<a href="figures/kr.svg">x</a>',
        "<style>p { background: url(//x.org/a) }</style>",
        "<style>@import 'a.css';</style>",
        "<script>1</script>",
        '<p onclick="x()">a</p>',
    ):
        assert outside(bad), bad


def test_ids_are_unique_and_every_reference_hits_one(page: str) -> None:
    ids = Page(page).values("id")
    assert len(ids) == len(set(ids))
    referred = {v[1:] for v in Page(page).values("href", "xlink:href") if v.startswith("#")}
    referred |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert referred
    assert referred <= set(ids)


def test_figures_are_whole_svg_with_text_as_text(report: Path) -> None:
    for path in (report.parent / "figures").iterdir():
        root = ET.fromstring(path.read_text("utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        texts = {"".join(t.itertext()) for t in root.iter("{http://www.w3.org/2000/svg}text")}
        assert texts, path
        assert "DejaVu" not in path.read_text("utf-8")  # a font of the reader's system instead
    kr = ET.fromstring(
        (report.parent / "figures/knowledge-retention-first-split.svg").read_text("utf-8")
    )
    texts = {"".join(t.itertext()) for t in kr.iter("{http://www.w3.org/2000/svg}text")}
    assert {"failure level 0.75"} <= texts
    assert any(t.startswith("tce-0.3 0.") for t in texts)


def test_figures_of_earlier_matplotlib_keep_their_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = Canvas(100, 50)
    old = """<svg><text style="font: 700 12px 'DejaVu Sans'; text-anchor: middle">a</text></svg>"""
    monkeypatch.setattr(canvas.figure, "savefig", lambda file, **_: file.write(old.encode()))
    drawn = canvas.svg("name", "title", "alt")
    assert '<text font-weight="700" font-size="12px" font-family="system-ui, ' in drawn
    assert 'text-anchor="middle">a<' in drawn


def test_the_same_run_gives_the_same_bytes(small_run: Path, report: Path, tmp_path: Path) -> None:
    again = write_report([small_run], tmp_path).parent
    for path in [report, *(report.parent / "figures").iterdir()]:
        assert (again / path.relative_to(report.parent)).read_bytes() == path.read_bytes()


def test_matplotlib_is_left_as_it_was(small_run: Path, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    write_report([small_run], tmp_path)
    assert dict(mpl.rcParams) == before


def test_the_page_is_the_golden_one(page: str) -> None:
    """To have it written anew, delete it; look at it before it is committed."""
    body = bare(page)
    if not GOLDEN.exists():
        GOLDEN.write_text(body, "utf-8")
        pytest.fail(f"{GOLDEN} was not there; it is now")
    assert body == GOLDEN.read_text("utf-8")


def test_the_numbers_told_are_those_of_the_run(small_run: Path) -> None:
    # knowledge() and the seeded answers of the fake run give these means; counted by hand from
    # its questions here, independently of the report's own reading
    given = told(small_run)
    for arm in ("ce", "tce-0.3"):
        found = re.search(
            r": (\d\.\d\d)\u00a0→\u00a0(\d\.\d\d) \(generation 0 to 2\)", sentences(given)[arm]
        )
        assert found, arm
        cells = table(given, "summary")[arm]
        assert cells[0] == "3 \u00d7 2"
        for i, number in ((0, 0), (1, 2)):
            wanted = _kr(arm, number)
            # half a unit of the last decimal that is shown, and float noise
            assert float(found[i + 1]) == pytest.approx(wanted, abs=0.005 + 1e-9)
            assert float(cells[i + 1]["text"]) == pytest.approx(wanted, abs=0.0005 + 1e-9)


def _kr(arm: str, generation: int) -> float:
    from .fake import QUESTIONS, knowledge

    shares = []
    for seed in (0, 1):
        easy = np.random.default_rng([0]).random(QUESTIONS)
        noise = np.random.default_rng([seed, 0, generation]).normal(0, 0.08, QUESTIONS)
        level = knowledge(ARMS[arm], 0, generation)
        shares.append((level > np.clip(easy + noise, 0, 1)).mean())
    return float(np.mean(shares))


def test_a_difference_that_is_not_significant_is_not_claimed(tmp_path: Path) -> None:
    # the second arm is the first under another name: its answers are the same ones
    arms = {"ce": ARMS["ce"], "twin": FakeArm({"kind": "keep"}, 1.0)}
    said = sentences(told(write_run(tmp_path / "run", arms=arms, generations=2)))["twin"]
    assert "no statistically significant difference to ce" in said
    assert "above" not in said
    assert "below" not in said


def test_a_clear_difference_is_told_with_its_interval(tmp_path: Path) -> None:
    arms = {"ce": FakeArm({"kind": "keep"}, 3.0), "kept": FakeArm({"kind": "keep"}, 0.0)}
    # three seeds: two say too little of others
    given = told(write_run(tmp_path / "run", arms=arms, generations=2, seeds=[0, 1, 2]))
    found = re.search(
        r"(0\.\d\d) above ce at generation 1, 95\u00a0% interval \+(0\.\d\d) to \+",
        sentences(given)["kept"],
    )
    assert found
    assert 0 < float(found[2]) < float(found[1])
    assert "not statistically significant" not in given["headline"]


def test_the_table_of_differences_is_that_of_the_statistics(tmp_path: Path) -> None:
    arms = {name: ARMS[name] for name in ("ce", "tce-0.3", "focal")}
    folder = write_run(tmp_path / "run", arms=arms, generations=2, seeds=[0, 1, 2])
    rows = table(told(folder), "differences")
    found = differences(to_baseline(load([folder])[0]), 0)
    assert list(rows) == [one.arm for one in found] == ["tce-0.3", "focal"]
    for cells, one in zip(rows.values(), found, strict=True):
        assert cells[0] == "1"
        # three decimals are shown: half a unit of the last one, and float noise
        text = " ".join(cells[1:4]).replace("\u2212", "-")
        shown = [float(n) for n in re.findall(r"[+-]?\d\.\d+", text)]
        wanted = [one.gap.value, one.gap.low, one.gap.high, one.these.low, one.these.high]
        assert shown == pytest.approx(wanted, abs=0.0005 + 1e-9)


def test_what_a_generation_costs_is_a_mean_over_generations_and_seeds(small_run: Path) -> None:
    (run,) = load([small_run])
    assert table(told(small_run), "cost") == {}  # an older run, which has not counted

    def counted(chain: Chain) -> Chain:
        spent = [
            {"trained": 1000 * (g.number + 1) + 10 * chain.seed, "generated": 512, "scored": 0}
            for g in chain.generations
        ]
        ledgers = [{**g.ledger, "spent": s} for g, s in zip(chain.generations, spent, strict=True)]
        found = zip(chain.generations, ledgers, strict=True)
        kept = tuple(dataclasses.replace(g, ledger=ledger) for g, ledger in found)
        return dataclasses.replace(chain, generations=kept)

    first = dataclasses.replace(run.arms[0], chains=tuple(map(counted, run.arms[0].chains)))
    runs = (dataclasses.replace(run, arms=(first, *run.arms[1:])),)
    times = failures(runs)
    rows = table(context(Scene(runs, times.drawn), [], times), "cost")
    assert rows == {first.label: ["2,005", "512", "0"]}


@pytest.mark.long
def test_what_was_seen_is_told_in_three_lines(tmp_path: Path) -> None:
    """Of two arms with the numbers of the page, of more under which arms, of several runs one."""
    paces = {"ce": 3.0, "kept": 0.0}
    arms = {name: FakeArm({"kind": "keep"}, pace) for name, pace in paces.items()}
    folder = write_run(tmp_path / "run", arms=arms, generations=3, seeds=[0, 1, 2])
    given, lines = told(folder), []
    write_report([folder], sum_up=lines.append)
    assert lines[0] == f"{given['headline']}."
    of_the_page = sentences(given)["kept"]
    assert len(lines) == 3
    for line in lines[1:]:
        assert line.startswith("Under kept, ")
        assert line.removeprefix("Under kept, ") in of_the_page
        assert "at generation 2, 95\u00a0% interval" in line
    more = write_run(
        tmp_path / "more", arms=arms | {"twin": arms["ce"]}, generations=3, seeds=[0, 1, 2]
    )
    write_report([more], sum_up=(several := list[str]()).append)
    assert several[1:] == told(more)["stories"][0]["verdicts"]
    write_report([folder, more], tmp_path / "both", sum_up=(both := list[str]()).append)
    assert both == [f"{told(folder, more)['headline']}."]


def test_the_lead_tells_of_knowledge_and_of_held_out_text(tmp_path: Path) -> None:
    paces = {"ce": 3.0, "kept": 0.0, "twin": 3.0}
    arms = {name: FakeArm({"kind": "keep"}, pace) for name, pace in paces.items()}
    folder = write_run(tmp_path / "run", arms=arms, generations=3, seeds=[0, 1, 2])
    given = told(folder)
    assert re.search(
        r"^Knowledge Retention, first split, under ce: 0\.\d\d\u00a0→\u00a00\.\d\d within 3 "
        r"generations; Perplexity, held-out data: \d+\u00a0→\u00a0[\d,]+$",
        given["headline"],
    )
    knowledge, fluency = given["stories"][0]["verdicts"]
    assert knowledge == (
        "Knowledge Retention, first split, against ce: higher under kept; no statistically "
        "significant difference: twin."
    )
    assert fluency == (
        "Perplexity, held-out data, against ce: lower under kept; no statistically significant "
        "difference: twin."
    )
    ratio = re.search(r"held-out data: .*?; (0\.\d+) times ce at gen", sentences(given)["kept"])
    assert ratio
    (run,) = load([folder])
    values = [
        [c.generations[2].value(("perplexity", "held-out")) or 0.0 for c in arm.chains]
        for arm in run.arms[:2]
    ]
    mean = np.exp(np.mean(np.log(values[1]) - np.log(values[0])))
    assert float(ratio[1]) == pytest.approx(mean, rel=0.01)  # three digits are shown
    # one seed says nothing of others: of fluency nothing is claimed
    one = told(write_run(tmp_path / "one", arms=arms, generations=3, seeds=[0]))
    assert one["stories"][0]["verdicts"][1].endswith(
        "no interval, so that no difference is claimed."
    )


def test_every_figure_says_what_it_shows(small_run: Path) -> None:
    scene = Scene(load([small_run]))
    for figure in draw_all(scene):
        (said,) = re.findall(r"<desc>([^<]+)</desc>", figure.svg)
        assert "ce" in said
        assert re.search(r"\d", said), figure.name
    (lead,) = [figure for figure in draw_all(scene) if figure.name == LEAD]
    first, last = (_kr("ce", number) for number in (0, 2))
    assert f"Knowledge Retention, first split: ce {first:.2f} to {last:.2f}, tce-0.3" in lead.svg


def test_an_arm_that_does_not_change_is_said_not_to(tmp_path: Path) -> None:
    arms = {"ce": FakeArm({"kind": "keep"}, 0.0)}
    given = told(write_run(tmp_path / "run", arms=arms, generations=2))
    assert "within 2 generations (not statistically significant)" in given["headline"]


HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</pre></details><h1>",
    "{{ 7*7 }}", '"><svg onload=alert(1)>', "\u202eesrever", "\x1b[31mred",
    "a\x00b", "&lt;ok", "]]>", "$x^2$",
]  # fmt: skip


def test_text_of_strangers_stays_text(tmp_path: Path) -> None:
    names = ["ce", '"><b onx=1>&', "$a_b$ <i>"]
    arms = dict.fromkeys(names, ARMS["tce-0.3"])
    folder = write_run(
        tmp_path / "run", name="<u>run</u>", arms=arms, generations=2, words=HOSTILE, notes=HOSTILE
    )
    path = write_report([folder])
    text = path.read_text("utf-8")
    assert outside(text) == []
    parsed = Page(text)
    assert parsed.open == []
    assert not {"script", "img", "i", "u"} & {tag for tag, _ in parsed.tags}
    assert [tag for tag, _ in parsed.tags].count("h1") == 1
    # shown as it is, in the passages and in the notes, not evaluated
    for shown in ("<script>alert(1)</script>", "{{ 7*7 }}", "&lt;ok", *names, "<u>run</u>"):
        assert shown in parsed.text, shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)
    assert "\ufffdesrever" in parsed.text
    assert "\u241b[31mred" in parsed.text
    for figure in (path.parent / "figures").iterdir():
        drawn = ET.fromstring(figure.read_text("utf-8"))
        assert not [e for e in drawn.iter() if e.tag.endswith(("}script", "}b", "}i"))]
    legend = "".join(
        ET.fromstring((path.parent / "figures/perplexity.svg").read_text("utf-8")).itertext()
    )
    assert '"><b onx=1>&' in legend
    assert "$a_b$ <i>" in legend


def test_neutral_shows_what_would_act_and_keeps_what_is_read() -> None:
    assert neutral("a\tb\nc é 漢字 ‌‍ 🙂") == "a\tb\nc é 漢字 ‌‍ 🙂"
    assert neutral("\x00\x1b\r\x7f") == "\u2400\u241b\u240d\u2421"
    for code in (
        0x85,
        0x9B,
        0x61C,
        0x200E,
        0x202A,
        0x202E,
        0x2066,
        0x2069,
        0xFEFF,
        0xD800,
        0xE0041,
    ):
        assert neutral(f"a{chr(code)}b") == "a\ufffdb"


def test_changed_tokens_are_marked_and_no_others(tmp_path: Path) -> None:
    arms = {"ce": ARMS["ce"]}
    folder = write_run(tmp_path / "run", arms=arms, generations=1, seeds=[0])
    text = write_report([folder]).read_text("utf-8")
    passages = load([folder])[0].arms[0].chains[0].generations[0].passages
    wanted = [
        t for p in passages if p.generation for t, c in zip(p.tokens, p.changed, strict=True) if c
    ]
    body = text[text.index('id="passages"') :]
    marked = re.findall(r"<mark>(.*?)</mark>", body)[1:]  # the first one explains the marks
    assert " ".join(marked).split() == "".join(wanted).split()
    assert "text-decoration: underline" in text  # seen without colour too


def test_a_run_in_progress_is_said_to_be_one(tmp_path: Path) -> None:
    arms = {name: ARMS[name] for name in ("ce", "tce-0.3")}
    done = {("ce", 0): 3, ("ce", 1): 1, ("tce-0.3", 0): 2, ("tce-0.3", 1): 0}
    given = told(write_run(tmp_path / "run", arms=arms, generations=4, done=done))
    assert given["state"] == "6 of 16 generations finished so far"
    assert table(given, "summary")["ce"][0] == "1 to 3 \u00d7 2"
    # the arms share seed 0, generations 0 and 1: no later generation is compared
    assert "ce at generation 1" in sentences(given)["tce-0.3"]


def test_one_generation_of_one_arm_is_enough(tmp_path: Path) -> None:
    arms = {"ce": ARMS["ce"]}
    folder = write_run(tmp_path / "run", arms=arms, generations=5, seeds=[0], done={("ce", 0): 1})
    assert told(folder)["state"] == "1 of 5 generations finished so far"
    assert outside(write_report([folder]).read_text("utf-8")) == []


def test_without_questions_there_is_a_report_without_kr(tmp_path: Path) -> None:
    arms = {name: ARMS[name] for name in ("ce", "tce-0.3")}
    folder = write_run(tmp_path / "run", arms=arms, generations=2, questions=False, levels=[])
    drawn = {p.stem for p in (write_report([folder]).parent / "figures").iterdir()}
    # perplexity leads instead
    lead = {"perplexity-first-split"}
    assert drawn == {n for n in NAMES if n[:9] not in ("knowledge", "splits")} | lead
    given = told(folder)
    assert given["headline"].startswith("Perplexity, first split, under ce: ")
    assert [one["id"] for one in given["tables"]] == ["summary"]


@pytest.mark.parametrize(("count", "rows"), [(5, [5]), (6, [3, 3]), (7, [4, 3]), (11, [4, 4, 3])])
def test_panels_fill_their_rows_evenly(small_run: Path, count: int, rows: list[int]) -> None:
    scene = Scene(load([small_run]))
    owner = next(measure for measure in scene.measures if measure.owns("kr.mean"))
    panel = lines._panel(scene, (owner, Line("", "kr.mean", "split-0")))
    figure = lines._panels(scene, [panel] * count, columns=5).figure
    heights = Counter(round(axes.get_position().y0, 3) for axes in figure.axes)
    assert [heights[height] for height in sorted(heights, reverse=True)] == rows


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    arms = {name: ARMS[name] for name in ("ce", "tce-0.3")}
    folders = [
        write_run(tmp_path / name, name=name, arms=arms, generations=2, seeds=[0])
        for name in ("small", "large")
    ]
    assert write_report(folders).parent == folders[0] / "report"
    given = told(*folders)
    # both were made alike
    assert given["headline"] == (
        "2 runs side by side. Knowledge Retention, first split: no difference; "
        "Perplexity, held-out data: no difference"
    )
    said = sentences(given)
    assert list(said) == ["small/ce", "small/tce-0.3", "large/ce", "large/tce-0.3"]
    for run in ("small", "large"):  # each run has its own baseline
        assert f"{run}/ce at generation 1" in said[f"{run}/tce-0.3"]
    assert len({passage["title"] for passage in given["passages"]}) == 6


def test_arms_of_one_name_are_compared_between_runs(tmp_path: Path) -> None:
    paces = {"small": 3.0, "large": 0.0}
    folders = [
        write_run(
            tmp_path / name, name=name, generations=2, seeds=[0, 1, 2],
            arms={"ce": FakeArm({"kind": "keep"}, pace), name: FakeArm({"kind": "keep"}, pace)},
        )
        for name, pace in paces.items()
    ]  # fmt: skip
    rows = table(told(*folders), "between-runs")
    assert list(rows) == ["large/ce"]  # no other name stands in both
    (found,) = differences(to_first_run(load(folders)), 0)
    small, large = (
        [c.generations[1].value(("kr.mean", "split-0")) for c in run.arms[0].chains]
        for run in load(folders)
    )
    assert found.gap.value == pytest.approx(np.mean(large) - np.mean(small))
    assert rows["large/ce"][1] == f"+{found.gap.value:.3f}"
    ends = f"{signed(found.gap.low)} to {signed(found.gap.high)}"
    assert found.gap.low is not None
    assert found.gap.low > 0
    assert table(told(folders[0]), "between-runs") == {}
    lead = told(*folders)["headline"]
    assert lead.startswith(
        "2 runs side by side. Knowledge Retention, first split: "
        f"large/ce {found.gap.value:.2f} above small/ce (95\u00a0% interval {ends}); "
        "Perplexity, held-out data: large/ce 0."
    )
    assert re.search(r" times small/ce \(95\u00a0% interval 0\.\d+ to 0\.\d+\)$", lead)


def test_runs_without_an_arm_in_common_say_so(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / arm, name=arm, generations=2, seeds=[0], arms={arm: ARMS[arm]})
        for arm in ("ce", "focal")
    ]
    lead = told(*folders)["headline"]
    assert lead == "2 runs side by side; no arm of ce stands in another one"


def test_one_run_more_or_less_lucky_is_not_claimed(tmp_path: Path) -> None:
    """Of one seed there is no interval over seeds, and no ratio has one at all."""
    folders = [
        write_run(
            tmp_path / name, name=name, generations=2, seeds=[0],
            arms={"ce": FakeArm({"kind": "keep"}, pace)},
        )
        for name, pace in (("small", 1.0), ("large", 0.9))
    ]  # fmt: skip
    fluent = told(*folders)["headline"].partition("; ")[2]
    assert re.fullmatch(
        r"Perplexity, held-out data: no statistically significant difference, large/ce "
        r"0\.\d+ times small/ce \(no interval\)",
        fluent,
    )


def test_the_ledger_is_told_in_percent(small_run: Path) -> None:
    (group,) = told(small_run)["ledgers"]
    assert [row["cells"][-1] for row in group["rows"]] == ["100%", "50%", "33%"]


def test_a_measure_of_a_plugin_is_drawn_by_what_it_says(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", arms={"ce": ARMS["ce"]}, generations=2)
    file = folder / "measures.json"
    mine = About("train.loss", "My <loss>", "My panel", "mine", "lower", caption="What I mean.")
    kept = [row for row in json.loads(file.read_text("utf-8")) if row["name"] != "train.loss"]
    write_json(file, [mine.record(), *kept])
    scene = Scene(load([folder]))
    (figure,) = [plot for plot in draw_all(scene) if plot.title == "My panel"]
    assert figure.name == "my-panel"
    assert "My &lt;loss&gt;" in figure.svg
    assert figure.caption.startswith("My <loss>: What I mean (n = 16,384). Lower is better.")


def test_five_arms_two_seeds_five_generations_stay_under_two_megabytes(tmp_path: Path) -> None:
    path = write_report([write_run(tmp_path / "run")], interactive=True)
    assert path.stat().st_size < 2e6


def test_where_a_report_cannot_go_is_told(small_run: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("x", "utf-8")
    with pytest.raises(InputError, match="is a file; give a folder"):
        write_report([small_run], taken)
    with pytest.raises(RunFailed, match="could not be written"):
        write_report([small_run], taken / "below")


def test_published_benchmarks_are_drawn_by_their_usual_metric() -> None:
    def score(name: str, on: str, chance: float | None) -> tuple[tuple[str, str], Score]:
        return (name, on), Score(name, 0.4, on, 50, chance=chance)

    scores = dict(
        [
            score("benchmark.hellaswag.acc", "hellaswag", 0.25),
            score("benchmark.hellaswag.acc_norm", "hellaswag", 0.25),
            score("benchmark.gsm8k.exact_match.strict", "gsm8k", None),
            score("benchmark.blimp.acc", "blimp", 0.5),
            score("benchmark.blimp.acc", "blimp_one_task", 0.5),
        ]
    )
    arm = Arm("ce", "ce", "run", True, {}, (Chain(0, (Generation(0, scores),), (0,)),))
    run = Run("run", "", "tokens", {}, MEASURES, (), (), 1, (arm,))
    (figure,) = draw_all(Scene([run]))
    assert figure.name == "published-benchmarks"
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg)
    for shown in ("hellaswag", "acc_norm", "gsm8k", "exact_match.strict", "blimp", "chance"):
        assert shown in texts
    assert "blimp_one_task" not in texts
