"""The interactive report in Chromium: what a reader sees and does."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fortifai.report import league_page, write_report
from fortifai.report.league import CLOSED, Budget, Entry, League, Row
from fortifai.report.load import load
from fortifai.stats import Ratio

from .fake import ARMS, write_run

api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]

LEAD = "#figure-knowledge-retention-first-split"
Opens = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        # CI is root, which Chromium runs for without its sandbox alone
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opens(chromium: Any) -> Iterator[Opens]:
    """Opens a file; behind the test no request has left it and no error was logged."""
    faults: list[str] = []
    contexts = []

    def opened(path: Path, state: str = "", **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda told: faults.append(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.on(
            "request",
            lambda request: (
                faults.append(request.url)
                if request.url.partition("#")[0] != path.as_uri() and request.url[:5] != "data:"
                else None
            ),
        )
        page.goto(path.as_uri() + state)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="module")
def report(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([small_run], tmp_path_factory.mktemp("live"), interactive=True)


def hover(page: Any, chart: str, share: float) -> str:
    """What is told where the pointer stands, that share of the way along a chart."""
    over = page.locator(f"{chart} .u-over").first
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    return str(page.locator(f"{chart} .told-here").first.inner_text())


def drawn(page: Any, chart: str) -> str:
    return str(page.locator(f"{chart} canvas").first.evaluate("it => it.toDataURL()"))


def test_hovering_tells_the_numbers_of_the_run(small_run: Path, opens: Opens, report: Path) -> None:
    page = opens(report)
    told = hover(page, LEAD, 0.5)
    assert told.startswith("generation 1\n")
    (run,) = load([small_run])
    for arm in run.arms:
        values = [c.generations[1].value(("kr.mean", "split-0")) for c in arm.chains]
        shown = re.search(rf"^{arm.label} ([\d.]+) \(([\d.]+) to ([\d.]+)\)$", told, re.MULTILINE)
        assert shown
        wanted = [np.mean(values), min(values), max(values)]
        # three decimals are shown
        assert [float(n) for n in shown.groups()] == pytest.approx(wanted, abs=0.0005 + 1e-9)
    assert hover(page, LEAD, 0.97).startswith("generation 2")
    page.mouse.move(0, 0)
    assert page.locator(f"{LEAD} .told-here").is_hidden()


def test_arrow_keys_tell_them_too(opens: Opens, report: Path) -> None:
    page = opens(report)
    page.locator(f"{LEAD} .chart").focus()
    for key, wanted in (("Right", 0), ("Right", 1), ("Left", 0), ("Left", 0)):
        page.keyboard.press(f"Arrow{key}")
        told = page.locator(f"{LEAD} .told-here").inner_text()
        assert told.startswith(f"generation {wanted}\n")


def test_an_arm_is_switched_off_in_all_places_and_in_the_address(
    opens: Opens, report: Path
) -> None:
    page = opens(report)
    before = drawn(page, LEAD)
    assert page.locator(".cards article").count() == 3  # the real text, and both arms'
    page.get_by_role("button", name="ce", exact=True).click()
    assert page.url.endswith("#?off=ce")
    assert drawn(page, LEAD) != before
    assert "tce-0.3" in (told := hover(page, LEAD, 0.5))
    assert not re.search(r"^ce ", told, re.MULTILINE)
    assert page.locator(".cards article").count() == 2
    again = opens(report, "#?off=ce")
    button = again.get_by_role("button", name="ce", exact=True)
    assert button.get_attribute("aria-pressed") == "false"
    assert drawn(again, LEAD) != before
    again.get_by_role("button", name="reset").click()
    assert button.get_attribute("aria-pressed") == "true"
    assert drawn(again, LEAD) == before
    assert again.url.endswith("#")


def test_seeds_are_drawn_and_told_one_by_one(small_run: Path, opens: Opens, report: Path) -> None:
    page = opens(report)
    before = drawn(page, LEAD)
    page.get_by_role("button", name="each seed").click()
    assert page.url.endswith("#?seeds=on")
    assert drawn(page, LEAD) != before
    told = hover(page, LEAD, 0.5)
    for arm in load([small_run])[0].arms:
        values = [c.generations[1].value(("kr.mean", "split-0")) for c in arm.chains]
        shown = re.search(
            rf"^{arm.label} .*\(seed 0: ([\d.]+), seed 1: ([\d.]+)\)$", told, re.MULTILINE
        )
        assert shown
        assert [float(n) for n in shown.groups()] == pytest.approx(values, abs=0.0005 + 1e-9)


def height(page: Any, generation: int) -> float:
    """How high the dark line of the first chart of perplexity stands at one of 3 generations."""
    share = (generation + 0.15) / 2.3  # margins of 0.15 on either side
    rows = page.locator("#figure-perplexity canvas").first.evaluate(
        """(canvas, share) => {
          const over = canvas.parentElement.querySelector(".u-over"), scale = devicePixelRatio;
          const x = Math.round((over.offsetLeft + share * over.offsetWidth) * scale);
          const [top, tall] = [over.offsetTop * scale, over.offsetHeight * scale];
          const {data} = canvas.getContext("2d").getImageData(x, top, 1, tall);
          return [...Array(tall).keys()].filter((y) => data[4 * y] < 90 && data[4 * y + 3] > 200);
        }""",
        share,
    )
    return -float(np.mean(rows))


def test_an_axis_is_made_logarithmic_where_it_can_be(
    small_run: Path, opens: Opens, report: Path
) -> None:
    page = opens(report, "#?off=tce-0.3")
    chains = load([small_run])[0].arms[0].chains
    values = [
        np.mean([c.generations[g].value(("perplexity", "split-0")) for c in chains])
        for g in range(3)
    ]
    log = page.locator("#figure-perplexity").get_by_role("button", name="log").first
    for way, pressed in ((np.log, "true"), (np.asarray, "false")):
        assert log.get_attribute("aria-pressed") == pressed
        first, middle, last = (height(page, g) for g in range(3))
        wanted = way(values)
        # a chart is some 150 pixels high
        share = (wanted[1] - wanted[0]) / (wanted[2] - wanted[0])
        assert (middle - first) / (last - first) == pytest.approx(share, abs=0.02)
        log.click()
    assert page.url.endswith("#?off=tce-0.3")
    page.locator(LEAD).get_by_role("button", name="log").click()
    assert page.url.endswith("#?off=tce-0.3&log=knowledge-retention-first-split.0")
    # a truncated share of 0 has no logarithm
    share_of = page.locator("#figure-training .chart", has_text="Truncated")
    assert share_of.get_by_role("button", name="log", include_hidden=True).is_hidden()


def test_every_axis_bears_numbers(opens: Opens, report: Path) -> None:
    """Left of the lines and below them something is drawn, on axes of either kind."""
    names = [f"{name}.{i}" for name in ("perplexity", "diversity") for i in range(3)]
    page = opens(report, f"#?log={'&log='.join(names[::2])}")
    drawn = page.locator(".chart canvas").evaluate_all(
        """(canvases) => canvases.map((canvas) => {
          const over = canvas.parentElement.querySelector(".u-over"), scale = devicePixelRatio;
          const inked = (...box) => canvas.getContext("2d")
            .getImageData(...box.map((v) => v * scale)).data.some((value) => value > 0);
          const [left, bottom] = [over.offsetLeft, over.offsetTop + over.offsetHeight];
          return inked(0, 0, left - 1, bottom) && inked(left, bottom + 1, over.offsetWidth, 28);
        })"""
    )
    assert len(drawn) > 10
    assert all(drawn)


def test_texts_stand_side_by_side_with_what_differs_marked(
    small_run: Path, opens: Opens, report: Path
) -> None:
    page = opens(report)
    cards = page.locator(".cards article")
    assert cards.locator("h4").all_inner_texts() == ["Real text", "ce", "tce-0.3"]
    tops = {round(card.bounding_box()["y"]) for card in cards.all()}
    assert len(tops) == 1
    (run,) = load([small_run])
    for arm, card in zip(run.arms, cards.all()[1:], strict=True):
        passage = arm.chains[0].generations[2].passages[0]
        words = list(zip(passage.tokens, passage.changed, strict=True))
        assert card.locator(".text").inner_text().split() == [t.strip() for t, _ in words]
        marked = " ".join(card.locator("mark").all_inner_texts()).split()
        assert marked == [t.strip() for t, c in words if c]
    page.get_by_label("Seed", exact=True).select_option("all")
    page.get_by_label("Generated", exact=True).select_option("all")
    assert cards.count() == 1 + 2 * 2 * 3
    assert page.url.endswith("#?seed=all&times=all")


def test_a_search_goes_through_all_texts_and_marks_what_it_finds(
    opens: Opens, report: Path
) -> None:
    page = opens(report)
    every = page.evaluate(
        "JSON.parse(document.getElementById('data').textContent).passages"
        ".flatMap(one => one.versions.map(version => version.pieces.join('')))"
    )
    assert len(every) == 36
    page.get_by_label("Search", exact=True).fill("THE riv")
    wanted = sum("the riv" in text.lower() for text in every)
    assert 0 < wanted < 36
    cards = page.locator(".cards article:not(.real-text)")
    assert cards.count() == wanted
    assert page.locator(".browser [role=status]").inner_text() == f"{wanted} of 36 texts"
    for card in cards.all():
        assert "".join(card.locator(".hit").all_inner_texts()).lower() == "the riv"
    again = opens(report, page.url.partition("#")[2].join(["#", ""]))
    assert again.locator(".cards article:not(.real-text)").count() == wanted
    page.get_by_label("Search", exact=True).fill("(no such [text")
    assert page.locator(".cards article").count() == 0


def test_texts_are_filtered_by_a_score(opens: Opens, report: Path) -> None:
    page = opens(report, "#?times=all&seed=all")
    page.get_by_label("from", exact=True).fill("0.3")
    page.get_by_label("to", exact=True).fill("0.5")
    told = page.locator(".cards article:not(.real-text) .small").all_inner_texts()
    shares = [float(re.findall(r"tokens changed ([\d.]+)", text)[0]) for text in told]
    assert 0 < len(shares) < 12
    assert all(0.3 <= share <= 0.5 for share in shares)
    page.get_by_label("Score", exact=True).select_option("Perplexity, held-out data")
    assert page.locator(".cards article").count() == 0
    page.get_by_label("to", exact=True).fill("")
    assert page.locator(".cards article:not(.real-text)").count() == 12


def test_a_link_keeps_the_state_and_leads_to_its_place(opens: Opens, report: Path) -> None:
    page = opens(report, "#?off=ce")
    page.locator("nav").get_by_role("link", name="Figures").click()
    page.wait_for_url("**#figures?off=ce")
    for link in page.locator("a").all():
        target = link.get_attribute("href")
        assert target.startswith("#")
        assert page.locator(f'[id="{target[1:]}"]').count() == 1
    place = "#figure-diversity?seeds=on"
    there = opens(report, place).locator("#figure-diversity")
    assert -5 < there.bounding_box()["y"] < 900
    # every figure and table can be linked to
    assert page.locator("figure:not([id]), h2:not([id])").count() == 0
    assert page.locator("figure h3 .anchor").count() == page.locator("figure").count()


def lightness(colour: str) -> float:
    """Relative luminance (WCAG 2) of rgb(...)."""
    parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_schemes(opens: Opens, report: Path, scheme: str) -> None:
    page = opens(report, color_scheme=scheme)
    style = "it => (({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(it))"
    paper = page.locator("body").evaluate(style)[1]
    assert (lightness(paper) < 0.1) == (scheme == "dark")
    card = page.locator(".cards article").last.evaluate(style)[1]
    for selector, ground in (
        ("h1", paper), (".small", paper), (".switches button", card), (".cards .text", card),
        (".chart .unit", card), ("nav a", paper),
    ):  # fmt: skip
        light = sorted(map(lightness, (page.locator(selector).first.evaluate(style)[0], ground)))
        assert (light[1] + 0.05) / (light[0] + 0.05) >= 4.5, selector


@pytest.mark.parametrize("width", [1200, 800, 400])
def test_no_page_is_wider_than_its_window(opens: Opens, report: Path, width: int) -> None:
    page = opens(report, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in page.locator(".charts .u-wrap").all():
        assert chart.bounding_box()["width"] <= width - 32
    if width == 1200:
        cut = "it => it.scrollWidth > it.clientWidth + 1"
        assert [t.evaluate(cut) for t in page.locator(".scroll").all()].count(True) == 0


def test_printed_it_is_the_plain_page(opens: Opens, report: Path) -> None:
    # as wide as A4 is between margins of 2 cm
    page = opens(report, color_scheme="dark", viewport={"width": 642, "height": 900})
    assert page.locator(f"{LEAD} .plate").is_hidden()
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 642
    assert page.locator(f"{LEAD} .plate svg").is_visible()
    assert page.locator("#passages + .still").is_visible()
    for gone in (f"{LEAD} .charts", ".switches", ".browser", "nav"):
        assert page.locator(gone).is_hidden()
    ground = page.locator("body").evaluate("it => getComputedStyle(it).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    assert page.pdf()[:5] == b"%PDF-"


def test_without_scripts_nothing_is_missing(opens: Opens, report: Path) -> None:
    page = opens(report, java_script_enabled=False)
    assert page.locator(f"{LEAD} .plate svg").is_visible()
    assert page.locator("#passages + .still mark").first.is_visible()
    assert page.locator(".chart, .switches, .browser").count() == 0


SINKS = (
    "<script>hit()</script>", "</script><script>hit()</script>", "<img src=x onerror=hit()>",
    "<svg onload=hit()>", "<svg><script>hit()</script></svg>", "<body onload=hit()>",
    "<iframe srcdoc='<script>parent.hit()</script>'>", "<iframe src=javascript:hit()>",
    "<a href=javascript:hit()>x</a>", "<details open ontoggle=hit()>",
    "<video><source onerror=hit()>",
    "<input autofocus onfocus=hit()>", "<math><mtext><script>hit()</script></mtext></math>",
    "<style>@import 'https://x.test/a.css';</style>", "<link rel=stylesheet href=https://x.test/a>",
    "<meta http-equiv=refresh content='0;url=https://x.test/'>", "<base href=https://x.test/>",
    "<object data=https://x.test/>", "<embed src=https://x.test/>", "<form action=https://x.test/>",
    "<template><script>hit()</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=hit()>'>",
    "<!--<script>hit()</script>-->", "--><script>hit()</script>", "]]><script>hit()</script>",
)  # fmt: skip
WRAPS = ("{}", "\"'></p></title>{}")
TRICKS = (
    "{{ hit() }}", "${hit()}", "`;hit();//", "';hit();//", '";hit();//', "\\u003cscript>hit()",
    "&lt;script&gt;hit()&lt;/script&gt;", "javascript:hit()", "\u2028hit()\u2029",
    "\x00<script>hit()",
    "__proto__", "constructor", "\u202e)(tih", "\U0001f600<b>", "%3Cscript%3Ehit()%3C/script%3E",
)  # fmt: skip
HOSTILE = [wrap.format(sink) for sink in SINKS for wrap in WRAPS] + list(TRICKS)


def test_hostile_texts_are_inert(opens: Opens, tmp_path: Path) -> None:
    assert len(set(HOSTILE)) >= 50
    arms = {
        "ce": ARMS["ce"],
        '"><img src=x onerror=hit()>': ARMS["tce-0.3"],
        "__proto__": ARMS["focal"],
    }
    folder = write_run(
        tmp_path / "run", name="<script>hit()</script>", arms=arms, generations=2,
        words=HOSTILE, notes=HOSTILE,
    )  # fmt: skip
    path = write_report([folder], interactive=True)
    plain = opens(path, java_script_enabled=False)
    page = opens(path, "#?times=all&seed=all&passage=all&find=hit&off=%3Cimg%20src=x%3E")
    for one in (plain, page):
        forbidden = "img, iframe, object, embed, link, base, form, video, body [onload], [onerror]"
        assert one.locator(forbidden).count() == 0
        assert one.locator("script").count() == 2
    assert page.locator(".cards .hit").count() > 50
    real = page.locator(".real-text .text").first.inner_text()
    for shown in ("<script>hit()</script>", "<iframe src=javascript:hit()>", "{{ hit() }}"):
        assert shown in real
    # such texts as search, and as state in the address
    for text in HOSTILE[::5]:
        page.get_by_label("Search", exact=True).fill(text)
    for name in arms:
        page.get_by_role("button", name=name, exact=True).click()
    assert page.url.startswith(path.as_uri())
    assert page.evaluate("typeof hit") == "undefined"


def test_no_other_script_runs(chromium: Any, report: Path, tmp_path: Path) -> None:
    """That the policy holds: a page into which something was put after all does not run it."""
    changed = tmp_path / "index.html"
    text = report.read_text("utf-8")
    put = "<script>window.hit = 1</script><img src='https://x.test/a.png' onerror='window.hit = 1'>"
    changed.write_text(text.replace("<h1>", f"{put}<h1>", 1), "utf-8")
    page = chromium.new_page()
    refused: list[str] = []
    requested: list[str] = []
    page.on("console", lambda told: refused.append(told.text))
    page.on("response", lambda response: requested.append(response.url))
    page.goto(changed.as_uri())
    assert page.evaluate("window.hit") is None
    assert len([told for told in refused if "Content Security Policy" in told]) >= 2
    assert not [url for url in requested if "x.test" in url]
    assert page.locator(".chart").count() > 0  # our own does
    page.close()


def test_the_table_of_the_league_fits_its_box_or_is_scrolled_in_it(
    opens: Opens, tmp_path: Path
) -> None:
    """With large budgets and long names of arms, at the widths of a desk and of a hand."""
    longer = Ratio(0.94, 0.86, 1.01, "none", "both", 0.07)
    row = Row(
        "league-facts", "ce-accumulate", False, {}, CLOSED, False, 5, 8, 1, (0.879, 0.567),
        (0.253, 0.234, 0.273), (2.82, 1), longer, longer, 0.074, 0.31,
        Budget(12_345_678, 2_345_678, 345_678), 44.5, {},
    )  # fmt: skip
    entry: Any = Entry(row.track, SimpleNamespace(label="run", notes=[], yaml=""), {})
    path = tmp_path / "league.html"
    path.write_text(league_page._page(League((row,), (entry,)), []), "utf-8")
    for width, fits in ((1600, True), (1280, True), (400, False)):
        page = opens(path, viewport={"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        box = page.locator(".scroll").first
        inside = box.evaluate("it => it.scrollWidth <= it.clientWidth")
        assert inside == fits
        last = box.locator("tbody td").last
        last.scroll_into_view_if_needed()
        where = last.bounding_box()
        assert where["x"] + where["width"] <= width
        assert last.inner_text() == "44.5"
