"""The workflow and the Python of the page about the audit (docs/audit.md), on tiny data sets."""

from __future__ import annotations

import math
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fortifai.audit import score

from .test_corpus import documents, write

PAGE = Path(__file__).resolve().parents[2] / "docs" / "audit.md"


def workflow() -> dict:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M)
    return yaml.safe_load(block)


def test_it_is_a_workflow_of_pull_requests_that_may_only_read():
    found = workflow()
    assert "pull_request" in found[True]  # YAML 1.1 reads `on` so; GitHub does not
    assert found["permissions"] == {"contents": "read"}
    (job,) = found["jobs"].values()
    places = {step["with"].get("path"): step["with"] for step in job["steps"] if "with" in step}
    assert {"new", "main"} <= set(places)
    assert places["main"]["ref"] == "${{ github.base_ref }}"
    assert all(("uses" in step) != ("run" in step) for step in job["steps"])


@pytest.mark.long
@pytest.mark.parametrize(
    ("power", "code", "said"), [(1.0, 0, "No evidence"), (1.6, 3, "Evidence"), (None, 2, "")]
)
def test_its_command_lets_pass_what_is_healthy_and_nothing_else(power, code, said, tmp_path):
    (job,) = workflow()["jobs"].values()
    (command,) = [step["run"] for step in job["steps"] if step.get("name") == "Audit"]
    for folder in ("new", "main", "bin"):
        (tmp_path / folder / "data").mkdir(parents=True)
    write(tmp_path / "main" / "data" / "a.jsonl", documents(300, 1))
    if power is None:
        (tmp_path / "new" / "data" / "a.jsonl").write_text("no JSON\n")
    else:
        write(tmp_path / "new" / "data" / "a.jsonl", documents(300, 2, power))
    shim = tmp_path / "bin" / "fortifai"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fortifai.cli "$@"\n')
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    summary = tmp_path / "summary.md"
    environment = {
        **os.environ,
        "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(summary),
    }
    done = subprocess.run(
        ["bash", "-e", "-c", command],  # as GitHub runs it
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    text = summary.read_text("utf-8") if summary.exists() else ""
    assert said.lower() in text.lower()
    assert bool(text) == bool(said)


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M)


def test_its_filter_is_one_of_nemo_curator():
    """In Curator's own stage; in a pipeline on Ray it was run by hand."""
    reason = "needs nemo-curator (1.4 was tried), which is large and has no extra here"
    tasks = pytest.importorskip("nemo_curator.tasks", reason=reason)
    pandas = pytest.importorskip("pandas")
    (block,) = [block for block in python_blocks() if "nemo_curator" in block]
    names = {"score": score}
    exec(compile(block, PAGE.name, "exec"), names)
    texts = ["one two " * 60, "too short", " ".join(f"word{i}" for i in range(600))]
    frame = pandas.DataFrame({"text": texts})
    kept = names["stage"].process(tasks.DocumentBatch(dataset_name="a", data=frame)).data
    assert kept["text"].tolist() == texts[1:]
    # of 600 different words no run from the second on is longer than one word
    assert kept["entropy_rate"].tolist()[1] == pytest.approx(600 * math.log2(600) / 599)


def test_its_python_is_that_of_the_libraries(tmp_path, monkeypatch):
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    readers = pytest.importorskip("datatrove.pipeline.readers", reason="needs fortifai[datatrove]")
    writers = pytest.importorskip("datatrove.pipeline.writers")
    monkeypatch.chdir(tmp_path)
    texts = documents(3, 0)
    names = {
        "rows": datasets.Dataset.from_dict({"text": texts}),
        "frame": pandas.DataFrame({"text": texts}, index=[5, 6, 7]),
        "pandas": pandas,
        "ParquetReader": readers.ParquetReader,
        "JsonlWriter": writers.JsonlWriter,
    }
    for block in python_blocks():
        if "nemo_curator" not in block:
            exec(compile(block, PAGE.name, "exec"), names)
    assert names["rows"]["words"] == names["frame"]["words"].tolist() == [60, 60, 60]
    assert len(names["pipeline"]) == 4
