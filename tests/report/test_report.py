from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from fortifai.errors import InputError, RunFailed
from fortifai.report import write_report
from fortifai.report.text import neutral

from .fake import ARMS, FakeArm, write_run

CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
NAMES = {
    "kr-first-split", "kr-splits", "kr-total", "perplexity", "kl", "confidence", "diversity",
    "truncated", "ledger",
}  # fmt: skip
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
    assert {"http-equiv": "Content-Security-Policy", "content": CSP} in [a for _, a in parsed.tags]


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
    kr = ET.fromstring((report.parent / "figures/kr-first-split.svg").read_text("utf-8"))
    texts = {"".join(t.itertext()) for t in kr.iter("{http://www.w3.org/2000/svg}text")}
    assert {"failure level 0.75", "chance 0.5"} <= texts
    assert any(t.startswith("tce-0.3 0.") for t in texts)


def test_the_same_run_gives_the_same_bytes(small_run: Path, report: Path, tmp_path: Path) -> None:
    again = write_report([small_run], tmp_path).parent
    for path in [report, *(report.parent / "figures").iterdir()]:
        assert (again / path.relative_to(report.parent)).read_bytes() == path.read_bytes()


def test_matplotlib_is_left_as_it_was(small_run: Path, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    write_report([small_run], tmp_path)
    assert dict(mpl.rcParams) == before


def test_the_numbers_told_are_those_of_the_run(page: str) -> None:
    # knowledge() and the seeded answers of the fake run give these means; counted by hand from
    # its questions here, independently of the report's own reading
    text = " ".join(Page(page).text.split())
    values = {}
    for arm in ("ce", "tce-0.3"):
        told = re.search(
            rf"{re.escape(arm)} KR (\d\.\d\d) → (\d\.\d\d) \(generation 0 to 2\)", text
        )
        assert told, arm
        values[arm] = (float(told[1]), float(told[2]))
    for arm, (first, last) in values.items():
        for number, told_value in ((0, first), (2, last)):
            # two decimals are shown: half a unit of the last one, and float noise
            assert told_value == pytest.approx(_kr(arm, number), abs=0.005 + 1e-9)


def _kr(arm: str, generation: int) -> float:
    from .fake import QUESTIONS, knowledge

    shares = []
    for seed in (0, 1):
        easy = np.random.default_rng([0]).random(QUESTIONS)
        noise = np.random.default_rng([seed, 0, generation]).normal(0, 0.08, QUESTIONS)
        level = knowledge(ARMS[arm], 0, generation)
        shares.append((level > np.clip(easy + noise, 0, 1)).mean())
    return float(np.mean(shares))


def test_a_difference_within_noise_is_not_claimed(tmp_path: Path) -> None:
    # the second arm is the first under another name: its answers are the same ones
    arms = {"ce": ARMS["ce"], "twin": FakeArm({"kind": "keep"}, 1.0)}
    text = write_report([write_run(tmp_path / "run", arms=arms, generations=2)]).read_text("utf-8")
    assert "not distinguishable from ce" in text
    assert " above ce" not in text
    assert " below ce" not in text


def test_a_clear_difference_is_told_with_its_interval(tmp_path: Path) -> None:
    arms = {"ce": FakeArm({"kind": "keep"}, 3.0), "kept": FakeArm({"kind": "keep"}, 0.0)}
    # three seeds: two say too little of others
    folder = write_run(tmp_path / "run", arms=arms, generations=2, seeds=[0, 1, 2])
    text = write_report([folder]).read_text("utf-8")
    told = re.search(
        r"(0\.\d\d) above ce at generation 1, 95\u00a0% interval \+(0\.\d\d) to \+", text
    )
    assert told
    assert 0 < float(told[2]) < float(told[1])
    assert "fell from" in text


def test_the_table_of_differences_is_that_of_the_statistics(tmp_path: Path) -> None:
    from fortifai.report.compare import differences
    from fortifai.report.load import load

    arms = {name: ARMS[name] for name in ("ce", "tce-0.3", "focal")}
    folder = write_run(tmp_path / "run", arms=arms, generations=2, seeds=[0, 1, 2])
    page = write_report([folder]).read_text("utf-8")
    table = page[page.index('id="differences"') :]
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", table[: table.index("</table>")], re.S)
    assert len(rows) == 2  # the baseline is not compared with itself
    for row, found in zip(rows, differences(load([folder])[0], 0), strict=True):
        told = re.findall(r"<td[^>]*>(.*?)</td>", row)
        assert told[0] == "1"
        # three decimals are shown: half a unit of the last one, and float noise
        text = " ".join(told[1:4]).replace("\u2212", "-")
        shown = [float(n) for n in re.findall(r"[+-]?\d\.\d+", text)]
        wanted = [found.gap.value, found.gap.low, found.gap.high, found.these.low, found.these.high]
        assert shown == pytest.approx(wanted, abs=0.0005 + 1e-9)
    assert "no interval here says what another would give" not in page
    one = write_report([write_run(tmp_path / "one", arms=arms, generations=2, seeds=[0])])
    assert "no interval here says what another would give" in one.read_text("utf-8")


def test_an_arm_that_does_not_change_is_said_to_be_within_noise(tmp_path: Path) -> None:
    arms = {"ce": FakeArm({"kind": "keep"}, 0.0)}
    text = write_report([write_run(tmp_path / "run", arms=arms, generations=2)]).read_text("utf-8")
    assert "did not change beyond noise" in text


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
    legend = "".join(ET.fromstring((path.parent / "figures/kl.svg").read_text("utf-8")).itertext())
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
    from fortifai.report.load import load

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
    folder = write_run(tmp_path / "run", arms=arms, generations=4, done=done)
    text = write_report([folder]).read_text("utf-8")
    assert "6 of 16 generations finished so far" in text
    assert "1 to 3 \u00d7 2" in text
    # the arms share seed 0, generations 0 and 1: no later generation is compared
    assert re.search(r"tce-0\.3</b> KR .*ce at generation 1\b", text)


def test_one_generation_of_one_arm_is_enough(tmp_path: Path) -> None:
    arms = {"ce": ARMS["ce"]}
    folder = write_run(tmp_path / "run", arms=arms, generations=5, seeds=[0], done={("ce", 0): 1})
    text = write_report([folder]).read_text("utf-8")
    assert "1 of 5 generations finished so far" in text
    assert outside(text) == []


def test_without_questions_there_is_a_report_without_kr(tmp_path: Path) -> None:
    arms = {name: ARMS[name] for name in ("ce", "tce-0.3")}
    path = write_report(
        [write_run(tmp_path / "run", arms=arms, generations=2, questions=False, levels=[])]
    )
    drawn = {p.stem for p in (path.parent / "figures").iterdir()}
    assert drawn == {n for n in NAMES if not n.startswith("kr")}
    text = path.read_text("utf-8")
    assert "Perplexity of the original first split under ce" in text
    assert "Time to failure" not in text


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    arms = {name: ARMS[name] for name in ("ce", "tce-0.3")}
    folders = [
        write_run(tmp_path / name, name=name, arms=arms, generations=2, seeds=[0])
        for name in ("small", "large")
    ]
    path = write_report(folders)
    assert path.parent == folders[0] / "report"
    text = Page(path.read_text("utf-8")).text
    for label in ("small/ce", "small/tce-0.3", "large/ce", "large/tce-0.3"):
        assert label in text
    assert re.search(r"small/ce at generation 1", text)  # each run has its own baseline
    assert re.search(r"large/ce at generation 1", text)


def test_the_ledger_is_told_in_percent(page: str) -> None:
    ledger = page[page.index('id="ledger-table"') :]
    assert re.findall(r"<td>(\d+)%</td>", ledger) == ["100", "50", "33"]


def test_five_arms_two_seeds_five_generations_stay_under_five_megabytes(tmp_path: Path) -> None:
    path = write_report([write_run(tmp_path / "run")])
    assert path.stat().st_size < 5e6


def test_where_a_report_cannot_go_is_told(small_run: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("x", "utf-8")
    with pytest.raises(InputError, match="is a file; give a folder"):
        write_report([small_run], taken)
    with pytest.raises(RunFailed, match="could not be written"):
        write_report([small_run], taken / "below")
