"""Blocks in real pipelines of datatrove, on two tasks, one of them killed and run again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fortifai.errors import InputError
from fortifai.stats.scores import score

datatrove = pytest.importorskip("datatrove", reason="needs fortifai[datatrove]")

TEXTS = [
    " ".join(f"w{(i * k) % (17 + 40 * (i % 2))}" for k in range(120)) + f" d{i}" for i in range(40)
] + ["short"]

PIPELINE = """
import os, sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import {reader}
from datatrove.pipeline.writers import JsonlWriter
from fortifai.integrations.datatrove import DiversityFilter, DiversityStats

BOUNDS = {{"distinct_2": (0.4, None)}}

class Die(PipelineStep):
    name = "die once"
    def run(self, data, rank=0, world_size=1):
        for i, doc in enumerate(data):
            if rank == 1 and i == 5 and not os.path.exists("died"):
                open("died", "w").close()
                os._exit(9)
            yield doc

if __name__ == "__main__":
    LocalPipelineExecutor(
        pipeline=[
            {reader}("in"),
            Die(),
            DiversityStats("stats", groups_to_compute=["summary", "histogram"]),
            DiversityFilter(BOUNDS, JsonlWriter("dropped", compression=None)),
            JsonlWriter("kept", compression=None),
        ],
        tasks=2, workers=1, logging_dir="logs",
    ).run()
"""


def pipeline(folder: Path) -> int:
    """Run it; the exit code. A helper process outlives one that dies, so there are no pipes."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    with subprocess.Popen([sys.executable, "pipeline.py"], start_new_session=True, **quiet) as run:
        try:
            return run.wait(timeout=300)
        finally:
            with contextlib.suppress(ProcessLookupError):  # none is left
                os.killpg(run.pid, signal.SIGKILL)


def rows(folder):
    found = {}
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            found[row["text"]] = row["metadata"]
    return found


@pytest.mark.long
@pytest.mark.parametrize("reader", ["JsonlReader", "ParquetReader"])
def test_a_pipeline_of_two_tasks_one_killed_and_run_again(reader, tmp_path):
    (tmp_path / "in").mkdir()
    for rank in (0, 1):
        part = TEXTS[rank::2]
        if reader == "JsonlReader":
            lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
            (tmp_path / "in" / f"{rank}.jsonl").write_text(lines)
        else:
            pq.write_table(pa.table({"text": part}), tmp_path / "in" / f"{rank}.parquet")
    (tmp_path / "pipeline.py").write_text(PIPELINE.format(reader=reader))
    assert [pipeline(tmp_path), pipeline(tmp_path)] == [9, 0]
    known = dict(zip(TEXTS, score(TEXTS)["distinct_2"].tolist(), strict=True))
    kept, dropped = rows(tmp_path / "kept"), rows(tmp_path / "dropped")
    assert set(kept) == {text for text, value in known.items() if not value < 0.4}
    assert set(dropped) == set(TEXTS) - set(kept)
    assert "short" in kept  # has no 2-gram, so nothing speaks against it
    assert {row["filter_reason"] for row in dropped.values()} == {"distinct_2"}
    for text, row in (kept | dropped).items():
        if text != "short":
            assert row["distinct_2"] == pytest.approx(known[text])
    sums = [
        json.loads(path.read_text())["summary"]
        for path in (tmp_path / "stats" / "summary" / "entropy_rate").glob("*.json")
    ]
    assert sum(each["n"] for each in sums) == 40  # of the short one there is none
    total = sum(value for value in score(TEXTS[:-1])["entropy_rate"])
    assert sum(each["total"] for each in sums) == pytest.approx(total)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({}, "no bounds"),
        ({"rare": (0, 1)}, "'rare' is no score; there are words, entropy"),
        ({"repetition": (0.2, 0.1)}, "the least comes first"),
    ],
)
def test_bounds_that_are_none(bounds, words):
    from fortifai.integrations.datatrove import DiversityFilter

    with pytest.raises(InputError, match=words):
        DiversityFilter(bounds)
