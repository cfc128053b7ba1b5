"""README.md and the guides, followed word by word as a new user would.

Models and texts that a page names stand where it names them, so that its commands run as they are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from fortifai import configuration
from fortifai.audit import audit_model
from fortifai.data import bios
from fortifai.integrations.transformers import ConfidenceTrainer
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM
from tests.integrations.tiny import build, ragged

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": ROOT / "README.md",
    "fine-tune.md": ROOT / "docs" / "guides" / "fine-tune.md",
    "study.md": ROOT / "docs" / "guides" / "study.md",
    "audit.md": ROOT / "docs" / "guides" / "audit.md",
}
MADE = (0, 3)
"""Exit codes of an audit that was made."""


def python(page: str) -> list[str]:
    return re.findall(r"^```python[^\n]*\n(.*?)^```", PAGES[page].read_text("utf-8"), re.M | re.S)


def commands(page: str) -> list[str]:
    """The lines of the indented blocks, which are shell."""
    text = re.sub(r"^```.*?^```", "", PAGES[page].read_text("utf-8"), flags=re.M | re.S)
    return re.findall(r"^    (\S.*)$", text, re.M)


def first_screen() -> str:
    return PAGES["README.md"].read_text("utf-8").partition("\n## ")[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every file and model that a page names is there."""
    folder = tmp_path_factory.mktemp("user")
    text = bios.bios(160, 0)[0].text
    lines = text.splitlines()
    for name, part in (("human.txt", lines[::2]), ("corpus.txt", lines[1::2])):
        (folder / name).write_text("\n".join(part), "utf-8")
    shutil.copy(folder / "corpus.txt", folder / "train.txt")
    tokenizer = scratch.train_tokenizer([text], 400)
    model = scratch.build(
        "llama", hidden_size=32, layers=2, heads=4, kv_heads=2, vocab_size=len(tokenizer),
        max_positions=256, tie_embeddings=False, seed=0,
    )  # fmt: skip
    (folder / "HuggingFaceTB").mkdir()
    named = folder / "HuggingFaceTB" / "SmolLM2-135M"
    CausalLM(model, tokenizer, device="cpu").save(named)
    return folder


def shell(line: str, place: Path) -> subprocess.CompletedProcess[str]:
    """A line of shell, with this environment's programs and no network; pip's in the checkout."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    more = {"PATH": path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "cache")}
    # pip as it stands there, into a folder of its own and from what is here
    more |= {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_TARGET": str(place / "installed")}
    more |= {"PIP_NO_BUILD_ISOLATION": "0", "PIP_UPGRADE": "1"}
    return subprocess.run(
        ["bash", "-c", line], cwd=ROOT if line.startswith("pip ") else place,
        env=os.environ | more, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip


def follow(line: str, place: Path) -> None:
    done = shell(line, place)
    wanted = MADE if line.startswith(("fortifai audit", "fortifai doctor")) else (0,)
    assert done.returncode in wanted, f"{line}\n{done.stdout}{done.stderr}"


def test_the_first_screen_is_short_and_whole():
    screen = first_screen()
    blocks = re.findall(r"^```.*?\n(.*?)^```", screen, re.M | re.S)
    assert all(len(block.splitlines()) <= 4 for block in blocks)
    assert len(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", screen)) == 1, "one figure, with its text"
    assert re.search(r"[\d.]+ times.*95 % interval [\d.]+ to [\d.]+", screen.replace("\n", " "))
    assert "pip install" in screen
    assert "<" not in "".join(commands("README.md")), "a line that bash reads as a redirection"


def test_the_number_on_the_first_screen_is_a_result():
    results = (ROOT / "docs" / "results.md").read_text("utf-8")
    found = re.search(
        r"it\s+takes ([\d.]+)\s+times.*?interval ([\d.]+) to ([\d.]+)", first_screen(), re.S
    )
    assert found is not None
    ratio, low, high = found.groups()
    assert f"is {ratio} times" in results
    assert f"({low} to {high})" in results


def test_the_table_of_the_league_is_in_its_results():
    """In short: every number stands in the row of the same arm on the league's page."""
    page = (ROOT / "docs" / "league.md").read_text("utf-8")
    league = page.partition("\n### league-facts\n")[2].partition("\n### ")[0]
    rows = [line for line in PAGES["README.md"].read_text("utf-8").splitlines() if "| 0.8" in line]
    names = {
        "cross entropy": "ce",
        "TCE 0.9": "tce-0.9",
        "Focal": "focal",
        "label smoothing": "smoothing",
        "stepping back: weights averaged with those of generation 0": "step-back",
        "real data kept beside generated, as many tokens in all": "accumulate-subsample",
    }
    assert len(rows) == len(names)
    for row in rows:
        arm, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        (whole,) = re.findall(rf"^\| {names[arm]} \|.*$", league, re.M)
        assert [cell for cell in cells if f"| {cell}" not in whole] == []


def test_abbreviations_are_told_where_they_first_stand():
    text = " ".join(PAGES["README.md"].read_text("utf-8").split())
    assert text.index("Truncated Cross Entropy at 0.1 (TCE 0.1)") < text.index("TCE 0.9")


def test_python_of_the_readme(tmp_path):
    logits, labels = torch.randn(4, 7, requires_grad=True), torch.tensor([0, 1, 2, 6])
    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1, save_strategy="no",
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    rows = [{k: v.tolist() for k, v in row.items()} for row in ragged(8)]
    names = {"logits": logits, "labels": labels, "model": build(), "args": args, "data": rows}
    for block in python("README.md"):
        exec(compile(block, "README.md", "exec", dont_inherit=True), names)
    assert torch.isfinite(names["loss"])
    assert isinstance(names["trainer"], ConfidenceTrainer)
    assert isinstance(names["trainer"], Trainer)


@pytest.mark.long
@pytest.mark.parametrize("line", commands("README.md"))
def test_commands_of_the_readme(line, place):
    follow(line, place)


@pytest.mark.long
def test_the_models_of_the_demo(place):
    """A base model, which has learnt from real text alone, is sound; what its text made is not."""
    run = place / "runs" / "demo"
    if not run.exists():  # where this test runs alone
        follow("fortifai run demo", place)
    raw, _ = configuration.read_raw("demo")
    text = bios.bios(raw["corpus"]["people"], seed=0, phrasings=2)[0].text
    last = run / "arms" / "ce" / "seed-0" / "generation-02" / "model"
    base, collapsed = map(CausalLM.load, (run / "shared" / "base", last))
    assert not audit_model(base, text).collapsed
    assert audit_model(collapsed, text).collapsed
    assert audit_model(collapsed, text, base=base).collapsed


@pytest.mark.long
@pytest.mark.parametrize("page", ["audit.md", "study.md", "fine-tune.md"])
def test_a_guide_from_its_first_line_to_its_last(page, place):
    """Files that a page has one save are saved; Python stands where it is told to be run."""
    text = PAGES[page].read_text("utf-8")
    part = r'^```(\w+)(?: title="([\w.]+)")?\n(.*?)^```|^    (\S[^\n]*)$'
    parts = re.findall(part, text, re.M | re.S)
    for language, title, block, line in parts:
        if title:
            (place / title).write_text(block, "utf-8")
        if line:
            follow(line, place)
        elif language == "python":
            (place / "block.py").write_text(block, "utf-8")
            done = shell("python block.py", place)
            assert done.returncode == 0, done.stdout + done.stderr
        elif language == "bash":
            done = shell(block, place)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip() in ("no evidence of collapse", "stop: 3")
    if page == "fine-tune.md":
        assert (place / "adapter" / "adapter_config.json").is_file()
    if page == "study.md":
        assert (place / "runs" / "mine" / "report" / "index.html").is_file()
