"""A generation's fit by LoRA against full fine-tuning: time and peak memory, turn by turn.

Each fit is a process of its own, so that its peak is its own; the model is dequantised once before.
A process fits twice, and the second is timed: on virtual machines the first touch of each page of
memory costs more than the work on it. Prints JSON; the ratios are what matters, machines differ.

    python benchmarks/lora.py MODEL.gguf --turns 3 --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODES = ("full", "lora")

WARM_UP = 2
"""Steps of the fit that is not timed."""


def measure(model: Path, mode: str, args: argparse.Namespace) -> dict[str, float]:
    """One fit in this process: seconds of it, and the process's peak resident memory in MiB."""
    import numpy as np
    import torch

    from fortifai.lab.progress import Silent
    from fortifai.models.causal_lm import CausalLM
    from fortifai.models.options import LoraOptions, TrainOptions
    from fortifai.weights import Truncate

    torch.set_num_threads(args.threads)
    lm = CausalLM.load(model, device="cpu")
    loaded = peak()
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, 40_000, args.steps * args.batch_size * args.block).astype(np.int32)
    few = tokens[: WARM_UP * args.batch_size * args.block]
    train = TrainOptions(
        epochs=1,
        batch_size=args.batch_size,
        block=args.block,
        learning_rate=2e-5 if mode == "full" else 2e-4,
        lora=None if mode == "full" else LoraOptions(r=args.rank),
    )
    for read in (few, tokens):
        began, used = time.perf_counter(), time.process_time()
        lm.fit(
            read,
            Truncate(0.9),
            train,
            seed=0,
            workdir=model / "work",
            select=None,
            progress=Silent(),
        )
        wall, cpu = time.perf_counter() - began, time.process_time() - used
    return {
        "seconds": wall,
        "processor seconds": cpu,
        "peak MiB": peak(),
        "peak MiB before": loaded,
    }


def peak() -> float:
    """Of this process so far, MiB; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {
        "median": round(statistics.median(values), 3),
        "lowest": round(min(values), 3),
        "highest": round(max(values), 3),
    }


def main() -> None:
    """Run both modes in turn and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a GGUF file, a folder or a hub id")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        print(json.dumps(measure(Path(args.model), args.mode, args)))
        return
    found: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        from fortifai.models.causal_lm import CausalLM

        CausalLM.from_base(args.model, device="cpu").save(Path(folder))
        given = {k: v for k, v in vars(args).items() if k not in ("model", "turns", "mode")}
        options = [f"--{k.replace('_', '-')}={v}" for k, v in given.items()]
        for _ in range(args.turns):
            for mode in MODES:
                command = [sys.executable, __file__, folder, *options, f"--mode={mode}"]
                done = subprocess.run(command, check=True, capture_output=True, env=os.environ)
                found[mode].append(json.loads(done.stdout.decode().splitlines()[-1]))
    out: dict[str, Any] = {
        mode: {key: spread([turn[key] for turn in turns]) for key in turns[0]}
        for mode, turns in found.items()
    }
    pairs = list(zip(found["lora"], found["full"], strict=True))
    for key in ("seconds", "processor seconds", "peak MiB"):
        out[f"lora / full, {key}"] = spread([a[key] / b[key] for a, b in pairs])
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
