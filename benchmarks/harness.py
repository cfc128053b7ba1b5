"""BLiMP's 67 paradigms: ours against lm-evaluation-harness alone, on the same model and files.

Both read the same local files and give the same scores, which is checked. `evaluate` is from tasks
in memory to scores, prompts included; `load` is from files to tasks. The harness is timed at its
command's default of one sequence a batch, and at a batch size of one's choice.
Run ``python benchmarks/harness.py --help``.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
import torch
import transformers
from lm_eval.api.group import Group
from lm_eval.config.group import AggMetricConfig
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from fortifai.evals import benchmarks
from fortifai.evals.benchmarks import Benchmark
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM


def setting(args: argparse.Namespace) -> CausalLM:
    """A random model: its weights do not change its speed."""
    texts = []
    for path in sorted(Path(args.data).glob("*.jsonl.gz")):
        with gzip.open(path, "rt") as stream:
            texts += [json.loads(line)["sentence_good"] for line in stream][::5]
    tokenizer = scratch.train_tokenizer(texts, args.vocab)
    model = scratch.build(
        "llama",
        hidden_size=args.hidden,
        layers=args.layers,
        heads=4,
        vocab_size=len(tokenizer),
        max_positions=128,
        seed=0,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight *= 4  # nearly uniform answers would be ties that rounding decides
    return CausalLM(model, tokenizer, device=args.device)


def load_theirs(data: str, cache: str) -> Group:
    """The harness's tasks as it loads them itself, from JSON files."""
    folder = Path(lm_eval.tasks.__file__).parent / "blimp"
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    members = [
        {
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {"train": f"{data}/{name.removeprefix('blimp_')}.jsonl.gz"},
                "cache_dir": cache,
            },
        }
        for name in manager.all_subtasks
        if Path(f"{data}/{name.removeprefix('blimp_')}.jsonl.gz").is_file()
    ]
    mean = AggMetricConfig(metric="acc", weight_by_size=False)
    group = Group("blimp", aggregate_metric_list=[mean])
    for task in manager.load({"group": "json", "task": members})["tasks"].values():
        group.add(task)
    return group


def timed(work: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Seconds by the clock and of processor time, and what came of it; its prints are put aside."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        began = time.perf_counter(), time.process_time()
        out = work()
        return (time.perf_counter() - began[0], time.process_time() - began[1]), out


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder of BLiMP's 67 .jsonl.gz files")
    parser.add_argument("--limit", type=int, default=50, help="pairs of each paradigm")
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=3072)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 1])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm = setting(args)
    asked = Benchmark("blimp", data=str(Path(args.data).resolve()), limit=args.limit)
    with tempfile.TemporaryDirectory() as cache:
        suite_seconds, suite = timed(lambda: benchmarks.read([asked], Path()))
        group_seconds, group = timed(lambda: load_theirs(asked.data, cache))
        group_again, group = timed(lambda: load_theirs(asked.data, cache))
        ways: dict[str, Callable[[], dict[str, float]]] = {
            "ours": lambda: {
                s.on: s.value for s in suite.run(lm).scores if s.measure == "blimp.acc"
            }
        }
        for size in args.batches:
            theirs = HFLM(lm.model, tokenizer=lm.tokenizer, batch_size=size)

            def run(theirs: HFLM = theirs) -> dict[str, float]:
                found = lm_eval.simple_evaluate(theirs, tasks=[group], limit=args.limit)
                return {name: metrics["acc,none"] for name, metrics in found["results"].items()}

            ways[f"harness, batches of {size}"] = run
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        answers: dict[str, dict[str, float]] = {}
        for _ in range(args.turns):
            for name, work in ways.items():
                taken, answers[name] = timed(work)
                seconds[name].append(taken)

    def told(place: int) -> dict[str, object]:
        lists = {name: [round(both[place], 2) for both in v] for name, v in seconds.items()}
        # turn by turn, since what else the machine does changes between turns
        ratios = {
            name: [round(theirs / ours, 2) for theirs, ours in zip(v, lists["ours"], strict=True)]
            for name, v in lists.items()
            if name != "ours"
        }
        middle = {name: statistics.median(values) for name, values in ratios.items()}
        return {"seconds": lists, "times_ours": ratios, "median_times_ours": middle}

    result = {
        "benchmark": "harness",
        "settings": vars(args) | {"data": "blimp"},
        "parameters": lm.model.num_parameters(),
        "pairs": 67 * args.limit,
        "evaluate_by_the_clock": told(0),
        "evaluate_processor_time": told(1),
        "load_by_the_clock": {
            "ours": round(suite_seconds[0], 2),
            "harness, first": round(group_seconds[0], 2),
            "harness, again": round(group_again[0], 2),
        },
        "same_scores": all(answer == answers["ours"] for answer in answers.values()),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": args.device,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "lm_eval": lm_eval.__version__,
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
