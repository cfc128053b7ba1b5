"""What the pages say: symbols, paths, commands, YAML and links are there."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from scripts import house, reference

from fortifai import configuration
from fortifai.evals import benchmarks
from fortifai.lab import experiment
from fortifai.lab.measures import Line, Score, measure
from fortifai.models.causal_lm import CausalLM
from fortifai.weights import WEIGHTS
from tests.test_layers import FLOOR

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if path.name != "CHANGELOG.md"  # which names what was
}
RUN_BY = {
    "README.md": "tests/test_readme.py",
    "docs/guides/fine-tune.md": "tests/test_readme.py",
    "docs/guides/audit.md": "tests/test_readme.py",
    "docs/losses.md": "tests/losses/test_docs.py",
    "docs/trainers.md": "tests/integrations/page.py",
    "docs/audit.md": "tests/audit/test_gate.py",
    "docs/league.md": "tests/report/test_league.py",
    "docs/plugins.md": "tests/test_plugins.py",
    "docs/measures.md": "tests/test_docs.py",
    "docs/statistics.md": "tests/test_docs.py",
    "docs/report.md": "tests/test_docs.py",
    "docs/corpora.md": "tests/test_docs.py",
    "docs/benchmarking.md": "tests/test_docs.py",
}
"""Pages with Python in them, and the test that runs it."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\b[^\n]*\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """Lines of shell that call fortifai, joined where they go on, without comments."""
    found: list[str] = []
    going_on = False
    for line in PAGES[page].splitlines():
        if line.startswith("    ") and (going_on or line.strip().startswith("fortifai ")):
            text = line.strip()
            found = [*found[:-1], f"{found[-1]} {text}"] if going_on else [*found, text]
            quotes = found[-1].count("'") % 2 == 1
            going_on = text.endswith("\\") or quotes
            found[-1] = found[-1].removesuffix("\\")
        else:
            going_on = False
    return [part for line in found for part in line.split(" #")[0].split(";")]


@pytest.mark.parametrize("page", PAGES)
def test_symbols_exist(page):
    for name in sorted(set(re.findall(r"\bfortifai(?:\.[A-Za-z_]\w*)+", PAGES[page]))):
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:cut]))
                break
            except ModuleNotFoundError:
                continue
        for part in parts[cut:]:
            assert hasattr(found, part), f"{page} names {name}, which is not there"
            found = getattr(found, part)


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    told = re.findall(r"`((?:src|tests|docs|scripts|benchmarks)/[\w./-]+)`", PAGES[page])
    assert [path for path in told if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_to_files_of_the_checkout(page):
    """Whoever reads a page in the repository has no page that only the site makes."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text("utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)", text)
    targets += re.findall(r"^\[[^\]]+\]: ([^\s#:]+)(?:#\S*)?$", text, re.M)
    targets += re.findall(r"(?:src|href)=\"([^\"#:]+)\"", text)
    there = (ROOT / page).parent
    assert [target for target in targets if not (there / target).exists()] == []


def test_files_of_the_house_exist():
    """What contributors are sent to, told from the package or the folder that is spoken of."""
    told = re.findall(r"`([\w/]+\.py)`", PAGES["CONTRIBUTING.md"] + PAGES["docs/built.md"])
    assert [
        p
        for p in told
        if not any(any((ROOT / t).rglob(p)) for t in ("src", "tests")) and not (ROOT / p).is_file()
    ] == []


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_are_commands(page):
    known = dict(reference.commands())
    for line in commands(page):
        # [--option X] in a synopsis may be given; ... stands for what was said before
        words = [w for w in shlex.split(re.sub(r"[\[\]]", "", line))[1:] if w != "..."]
        name = " ".join(words[:2]) if words[0] == "kr" else words[0]
        assert name in known, f"{page}: there is no command fortifai {name}"
        taken = {option for p in known[name].params for option in p.opts}
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= taken, f"{page}: {name} has no {sorted(options - taken)}"
        preset = words[1] if name in ("run", "show") and len(words) > 1 else "demo"
        there = preset in configuration.preset_names()
        assert there or preset.endswith((".yaml", "FILE", "NAME")), f"{page}: no preset {preset}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_yaml_is_taken(page, tmp_path):
    for block in blocks(page, "yaml"):
        raw = yaml.safe_load(block)
        if isinstance(raw, dict) and {"family", "corpus", "arms"} <= raw.keys():
            (tmp_path / "page.yaml").write_text(block, "utf-8")
            configuration.resolve(configuration.read_raw(str(tmp_path / "page.yaml"))[0])


def test_python_is_run():
    assert {page for page in PAGES if blocks(page, "python")} <= set(RUN_BY)
    for page, test in RUN_BY.items():
        assert Path(page).name in (ROOT / test).read_text("utf-8"), f"{test} does not run {page}"


def run(page: str, **names: object) -> dict[str, Any]:
    """The Python of a page, block by block in one namespace."""
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec", dont_inherit=True), names)
    return names


def test_python_of_the_page_about_measures():
    measure = run("docs/measures.md")["longest_word"]
    tokenizer = SimpleNamespace(decode=lambda _: "a collapse is one")
    generation = SimpleNamespace(
        domain=SimpleNamespace(tokenizer=tokenizer), rewritten=[np.ones(1)]
    )
    assert [score.value for score in measure(generation)] == [8.0]


def test_python_of_the_page_about_statistics():
    """Five generations, the last three wrong, all of them sure, the last out of its format."""
    right = np.zeros((2, 5, 40))
    right[:, :2] = 1
    adherent = np.ones_like(right)
    adherent[:, 4] = 0
    names = run(
        "docs/statistics.md", right=right, adherent=adherent, confidence=np.full(right.shape, 0.9)
    )
    assert names["corrected"][0] < 0.05 < names["corrected"][1]
    assert tuple(names["found"]["multiple-choice"].by_generation) == ("A", "A", "B", "B", "C")


def test_python_of_the_page_about_the_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = {
        "name": "demo", "generations": 2, "baseline": "em", "arms": {"em": {}},
        "corpus": {"kind": "points", "source": {"kind": "moons"}, "samples": 60},
        "family": {"kind": "gmm", "components": 2},
    }  # fmt: skip
    experiment.run(configuration.resolve(raw), tmp_path, Path("runs/demo"))
    names = run("docs/report.md", measure=measure, Line=Line)
    assert names["page"] == Path("runs/demo/report/index.html")
    assert names["distinct"].panel == "Diversity"


def test_python_of_the_page_about_corpora(tmp_path):
    (tmp_path / "poems.txt").write_text("A line\nand one.\n\n\nAnother.")
    read = run("docs/corpora.md")["Poems"](file="poems.txt").read(tmp_path)
    assert [d.text for d in read.corpus.documents] == ["A line\nand one.", "Another."]
    assert [d.line for d in read.corpus.documents] == [1, 3]  # the gap is no line


def test_python_of_the_page_about_benchmarks(monkeypatch, capsys):
    """What it calls has these arguments; what comes of it is tested with the harness."""
    signature = inspect.signature(benchmarks.run_benchmarks)
    scores = (Score("blimp.acc", 0.5, "blimp", 3, 0.1),)

    def stub(*args, **kwargs):
        signature.bind(*args, **kwargs)
        return benchmarks.Results(scores, ())

    monkeypatch.setattr(benchmarks, "run_benchmarks", stub)
    monkeypatch.setattr(CausalLM, "from_base", lambda name: name)
    run("docs/benchmarking.md")
    assert capsys.readouterr().out == "blimp.acc blimp 0.5 0.1\n"


def test_reference_has_all_that_there_is():
    pages = reference.pages()
    for name in configuration.preset_names():
        assert f"## {name}\n" in pages["presets.md"]
    for name, command in reference.commands():
        assert f"## {name}\n" in pages["commands.md"]
        options = [o for p in command.params for o in p.opts if o.startswith("--")]
        assert [option for option in options if option not in pages["commands.md"]] == []
    for measures in reference.measures().values():
        assert all(f"| `{m.name}` | {m.title}. " in pages["measures.md"] for m in measures)
    for weight in WEIGHTS:
        assert (
            f"`weight`, kind `{weight.kind}` {{ #{weight.__name__.lower()} }}" in pages["yaml.md"]
        )


def test_keys_are_told_with_what_they_take_and_their_defaults():
    page = reference.yaml_page()
    assert "| `learning_rate` | a number > 0 | `2e-05` |" in page
    assert '| `schedule` | `constant`, `linear`, `cosine` | `"constant"` |' in page
    assert "| `generations` | a whole number ≥ 1 and ≤ 100,000 | `6` |" in page
    assert "| `lora` | [these keys](#loraoptions) | none |" in page
    assert "| `family` | [kind `causal_lm`](#causallmoptions) |  |" in page
    assert "Raises:" not in page
    links = set(re.findall(r"\]\(#(\w+)\)", page))
    assert links <= set(re.findall(r"\{ #(\w+) \}", page))


def test_losses_of_one_weight_have_their_own_arguments():
    page = reference.pages()["api/fortifai.md"]
    assert "## truncated_cross_entropy\n" in page
    assert "    threshold: float = 0.9,\n" in page
    assert "    reduction: Reduction = 'mean',\n" in page


def test_the_house_is_that_of_the_layers():
    found = house.rooms()
    assert found.keys() == FLOOR.keys()
    assert all(FLOOR[used] < FLOOR[room] for room in found for used in found[room])
    floors = house.floors(found)
    height = {room: k for k, floor in enumerate(floors) for room in floor}
    assert all(height[used] < height[room] for room in found for used in found[room])
    picture = house.picture()
    assert all(f">{room}</text>" in picture for room in found)


def test_a_house_with_a_circle_is_none():
    with pytest.raises(ValueError, match="circle: a, b"):
        house.floors({"a": {"b"}, "b": {"a"}, "c": set()})


def test_what_follows_from_others_is_left_out():
    assert house.direct({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == [("a", "b"), ("b", "c")]


def test_pages_of_the_plan_are_short():
    assert len(PAGES["docs/built.md"].splitlines()) <= 60


def test_llms_txt_leads_to_pages():
    text = (ROOT / "docs" / "llms.txt").read_text("utf-8")
    generated = {f"reference/{name}" for name in reference.pages()}
    for target in re.findall(r"\]\(([\w./-]+)\.html\)", text):
        assert (ROOT / "docs" / f"{target}.md").is_file() or f"{target}.md" in generated
