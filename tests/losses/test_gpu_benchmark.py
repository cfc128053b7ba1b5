"""The benchmark for GPUs runs in its small form, and sees what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.long
def test_it_runs_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "gpu.py", "--small", "--device", "cpu", "--turns", "1"]
    done = subprocess.run(
        [*command, "--out", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert result["wrong"] == []
    assert any("Triton" in case for case in result["errors"])  # in its interpreter
    assert [(c["head"], c["truncated"]) for c in result["losses"]] == [("small", 0), ("small", 0.7)]
    for cell in result["losses"]:
        for name in ("fortifai", "fortifai, Triton", "TRL's head"):
            assert len(cell["methods"][name]["seconds"]) == 1, cell["methods"][name]
    assert set(result["stage"]) == {
        "training, ConfidenceTrainer", "training, Trainer", "rewriting", "scoring",
    }  # fmt: skip
    assert "| small | 64 | 70% | fortifai, Triton |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # other libraries', as they are imported
def test_where_no_time_is_left_it_says_so(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    monkeypatch.setattr(gpu, "correctness", lambda device, small: {})  # that of the whole run
    told = ["gpu.py", "--small", "--device", "cpu", "--minutes", "0", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", told)
    assert gpu.main() == 0
    assert "no time was left" in capsys.readouterr().out
    assert "stage" not in json.loads((tmp_path / "gpu.json").read_text())


def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    errors = {
        "bfloat16: fortifai, focal, kept": {"loss": 1e-3, "dW": 0.5},
        "float32: fortifai, truncated": {"loss": float("nan"), "dW": 1e-6},
    }
    assert gpu.wrong(errors) == [
        "bfloat16: fortifai, focal, kept: dW is off by 0.5",
        "float32: fortifai, truncated: loss is off by nan",
    ]
