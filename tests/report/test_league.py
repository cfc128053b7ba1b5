"""The league: what may be entered, and how it is judged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from fortifai.errors import InputError
from fortifai.report.league import CLOSED, REAL, enter
from fortifai.report.league_page import advice, markdown, write_league
from fortifai.stats import Ratio

DOCS = (Path(__file__).parents[2] / "docs" / "league.md").read_text("utf-8")
MODULE = re.findall(r"^```python\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)[0]
COMMANDS = [line.strip() for line in DOCS.splitlines() if line.startswith("    fortifai ")]
pytestmark = pytest.mark.long


def fortifai(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command of the documentation, as it stands there."""
    told = f"'{sys.executable}' -m fortifai.cli {command.removeprefix('fortifai ')}"
    return subprocess.run(told, shell=True, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def entered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a cure was written, run and entered by the commands of docs/league.md."""
    folder = tmp_path_factory.mktemp("league")
    (folder / "keep_varied.py").write_text(MODULE)
    run, enters = (c for c in COMMANDS if "league-smoke" in c)
    done = fortifai(run, folder)
    assert done.returncode == 0, done.stderr
    done = fortifai(enters, folder)
    assert done.returncode == 0, done.stderr
    assert "varied" in done.stdout
    return folder


@pytest.fixture
def smoke(entered: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(entered / "runs" / "league-smoke", tmp_path / "run"))


def change(folder: Path, edit) -> None:
    """Another configuration in a run folder, with the sums that go with it."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    edit(config)
    rewrite(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))


def test_an_entry_is_judged_by_its_numbers(entered):
    told = json.loads((entered / "league" / "league.json").read_text())
    rows = {row["arm"]: row for row in told["rows"]}
    assert set(rows) == {"ce", "varied"}
    mine, base = rows["varied"], rows["ce"]
    assert mine["cure"] == {"cures": [{"kind": "keep_varied", "refill": True, "unit": None}]}
    assert base["cure"] == {}
    assert mine["group"] == base["group"] == CLOSED
    assert mine["budget"]["trained"] == base["budget"]["trained"] > 0
    assert mine["budget"]["generated"] == base["budget"]["generated"] > 0
    assert mine["budget"]["scored"] == 0
    # by hand: the times that the curves on the disk give
    times = {}
    for arm in rows:
        for seed in (0, 1):
            chain = entered / "runs" / "league-smoke" / "arms" / arm / f"seed-{seed}"
            curve = []
            for generation in sorted(chain.glob("generation-*")):
                lines = (generation / "scores.jsonl").read_text().splitlines()
                scores = [json.loads(line) for line in lines]
                curve += [
                    s["value"] for s in scores if (s["measure"], s["on"]) == ("kr.mean", "split-0")
                ]
            assert len(curve) == 4
            level = 0.5 + (curve[0] - 0.5) / 2
            after = next((i for i, v in enumerate(curve) if v < level), None)
            if after is None:
                times[arm, seed] = 3.0
            else:
                high, low = curve[after - 1], curve[after]
                times[arm, seed] = after - 1 + (high - level) / (high - low)
    means = {arm: np.mean([times[arm, seed] for seed in (0, 1)]) for arm in rows}
    assert math.isclose(mine["time"][0], means["varied"], rel_tol=1e-9)
    if mine["longer"]["value"] is not None:
        assert math.isclose(mine["longer"]["value"], means["varied"] / means["ce"], rel_tol=1e-9)
    page = (entered / "league" / "index.html").read_text()
    assert list((entered / "league" / "figures").glob("*.svg"))
    assert "Which cure slows model collapse" in page
    assert "<svg" in page
    assert (entered / "league" / "league.md").read_text().count("| varied |") == 1


def test_the_same_entries_give_the_same_bytes(entered, tmp_path):
    write_league([entered / "runs" / "league-smoke"], tmp_path / "again")
    for name in ("league.json", "league.md", "index.html"):
        again, first = ((f / name).read_bytes() for f in (tmp_path / "again", entered / "league"))
        assert again == first


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c.update(name="demo"), "'demo', which is no track of the league"),
        (lambda c: c.update(generations=3), "differs from the preset league-smoke in generations"),
        (lambda c: c["corpus"].update(people=17), "league-smoke in corpus.people"),
        (lambda c: c["arms"]["varied"]["train"].update(epochs=24), "arms.varied.train.epochs"),
        (lambda c: c["arms"]["varied"]["family"]["scratch"].update(layers=3), "family.scratch"),
        (lambda c: c["arms"]["ce"]["weight"].update(kind="focal"), "arms.ce.weight"),
        (lambda c: c["arms"].pop("ce"), "has no arm 'ce'"),
        (lambda c: c["splits"].update(extra=1), "splits.extra"),
    ],
)
def test_what_differs_from_the_preset_is_refused(smoke, edit, said):
    change(smoke, edit)
    with pytest.raises(InputError) as fault:
        enter([smoke])
    assert said in str(fault.value)


def test_a_key_that_an_earlier_version_did_not_know_is_as_it_was(smoke):
    change(smoke, lambda c: c.pop("threads"))
    assert len(enter([smoke]).rows) == 2


def test_an_entry_may_take_measures_of_its_own(smoke):
    """They change nothing of what is trained."""
    change(smoke, lambda c: c.update(measures=["longest-word"]))
    assert len(enter([smoke]).rows) == 2


def test_other_seeds_are_refused(smoke):
    change(smoke, lambda c: c.update(seeds=[0, 2]))
    with pytest.raises(InputError, match="differs from the preset league-smoke in seeds"):
        enter([smoke])


def test_damage_and_what_is_not_finished_are_refused(smoke, tmp_path):
    scores = smoke / "arms" / "varied" / "seed-0" / "generation-02" / "scores.jsonl"
    data = scores.read_bytes()
    scores.write_bytes(data[:-2] + b"9" + data[-1:])
    with pytest.raises(InputError, match=r"is damaged: .*scores.jsonl"):
        enter([smoke])
    shutil.rmtree(scores.parent)
    shutil.rmtree(smoke / "arms" / "varied" / "seed-0" / "generation-03")
    with pytest.raises(InputError, match="has 14 of 16 generations; start its run again"):
        enter([smoke])
    done = fortifai(f"league {smoke}", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_an_arm_of_other_updates_is_refused(smoke):
    for ledger in (smoke / "arms" / "varied").rglob("ledger.json"):
        told = json.loads(ledger.read_text())
        told["spent"]["trained"] //= 2
        rewrite(ledger, told)
    with pytest.raises(InputError, match="arms of the league take equal updates"):
        enter([smoke])


def test_an_arm_like_the_baseline_is_an_arm(smoke):
    shutil.copytree(smoke / "arms" / "ce", smoke / "arms" / "twin")
    change(smoke, lambda c: c["arms"].update(twin=c["arms"]["ce"]))
    rows = {row.arm: row for row in enter([smoke]).rows}
    assert [name for name, row in rows.items() if row.baseline] == ["ce"]
    assert rows["twin"].cure == {}
    # one seed of the two has not failed, in either arm
    assert rows["twin"].longer is not None
    assert rows["twin"].longer.bound == "unknown" or rows["twin"].longer.value == 1


def test_what_starts_at_chance_has_no_decay(smoke):
    """As a pretrained model that knows none of the answers."""
    for scores in (smoke / "arms" / "varied").glob("seed-*/generation-00/scores.jsonl"):
        rows = [json.loads(line) for line in scores.read_text().splitlines()]
        for row in rows:
            if (row["measure"], row["on"]) == ("kr.mean", "split-0"):
                row["value"] = 0.5
        rewrite(scores, "".join(f"{json.dumps(row)}\n" for row in rows))
    row = next(row for row in enter([smoke]).rows if row.arm == "varied")
    assert row.decay is None
    assert row.knowledge is not None
    assert row.knowledge[0] == 0.5


def test_entries_on_other_texts_are_refused(smoke, entered):
    rewrite(smoke / "shared" / "sources.json", {"fingerprint": "another"})
    with pytest.raises(InputError, match="on another text, questions or base model than"):
        enter([entered / "runs" / "league-smoke", smoke])


def test_more_generated_text_and_real_data_stand_apart(smoke):
    for ledger in (smoke / "arms" / "varied").rglob("ledger.json"):
        told = json.loads(ledger.read_text())
        told["spent"]["generated"] *= 3
        told["real"] = 5
        rewrite(ledger, told)
    league = enter([smoke])
    row = next(row for row in league.rows if row.arm == "varied")
    assert row.larger
    assert row.group == REAL
    assert "league-smoke: with real data, at a larger budget" in markdown(league)


def rewrite(file: Path, told: dict | str) -> None:
    """Another file, of JSON unless it is text, with the sum that goes with it."""
    file.write_text(told if isinstance(told, str) else json.dumps(told))
    sums = file.parent / "manifest.json"
    manifest = json.loads(sums.read_text())
    data = file.read_bytes()
    for group in manifest.values():
        if isinstance(group, dict) and file.name in group:
            group[file.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sums.write_text(json.dumps(manifest))


def test_advice_says_no_more_than_the_table(entered):
    row = next(r for r in enter([entered / "runs" / "league-smoke"]).rows if r.arm == "varied")

    def judged(low, high, p):
        found = Ratio(2.0, low, high, "none", "seeds", p)
        return advice([dataclasses.replace(row, longer=found, corrected=p)])

    assert judged(1.2, 3.0, 0.01).startswith("Use varied: knowledge lasts 2.00")
    assert "with statistical significance" in judged(1.2, 3.0, 0.2)  # Holm's correction decides
    assert "do not exclude 1.3" in judged(0.8, 1.5, 0.5)
    assert judged(0.8, 1.2, 0.5).startswith("**No cure of this table helps knowledge**")
    assert "nothing can be said" in advice([dataclasses.replace(row, longer=None)])
