"""The family `gaussian` through the whole loop, against a plain NumPy loop and the random numbers.

One run of `fortifai` (draw, fit, measure, commit, resume at any time) of so many seeds, generations
and draws; a loop of ``np.random.normal`` and ``np.std`` over some of its generations, scaled up;
and what cannot be undercut: filling the memory of one generation with normal numbers from NumPy's
fastest generator on all threads, again and again. Uniform numbers, which are little more than the
random bits, are filled in beside it. Run ``python benchmarks/gaussian.py --help``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fortifai import configuration
from fortifai.lab import experiment


def ours(args: argparse.Namespace, generations: int) -> float:
    """Seconds of a run through loop, store and measures."""
    settings = configuration.resolve(
        {
            "name": "benchmark",
            "generations": generations,
            "eval_every": args.every or generations,
            "seeds": {"count": args.seeds},
            "threads": args.threads,
            "save_samples": "needed",
            "baseline": "keep",
            "corpus": {
                "kind": "points",
                "source": {"kind": "gaussian"},
                "samples": args.draws,
                "held_out": 1000,
            },
            "family": {"kind": "gaussian"},
            "arms": {"keep": {}},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        experiment.run(settings, Path(folder), Path(folder) / "run", workers=1)
        return time.perf_counter() - began


def plain(args: argparse.Namespace, generations: int) -> float:
    """Seconds of a loop over the seeds, one after another."""
    began = time.perf_counter()
    for _ in range(args.seeds):
        mean, sigma = 0.0, 1.0
        for _ in range(generations):
            draws = np.random.normal(mean, sigma, args.draws)  # noqa: NPY002 - the peer's way
            mean, sigma = draws.mean(), np.std(draws)
    return time.perf_counter() - began


def filling(
    args: argparse.Namespace, fill: Callable[[np.random.Generator, np.ndarray], object]
) -> float:
    """Nanoseconds per number of filling a generation's draws on all threads."""
    generation, turns = np.empty((args.seeds, args.draws)), 40

    def work(thread: int) -> None:
        rng = np.random.Generator(np.random.SFC64(thread))
        for _ in range(turns):
            for row in generation[thread :: args.threads]:
                fill(rng, row)

    with ThreadPoolExecutor(args.threads) as pool:
        began = time.perf_counter()
        list(pool.map(work, range(args.threads)))
        seconds = time.perf_counter() - began
    return seconds / (turns * generation.size) * 1e9


def peak(args: argparse.Namespace, generations: int) -> float:
    """Peak of the memory that Python and NumPy allocate in a run, in MiB."""
    tracemalloc.start()
    ours(args, generations)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found / 2**20


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--generations", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, help="measure and commit so often; first and last")
    parser.add_argument("--plain-generations", type=int, default=50)
    args = parser.parse_args()
    total = args.seeds * args.generations * args.draws
    ours(args, 3)  # warm up
    # in turn, so that what else the machine does falls on all of them
    before = plain(args, args.plain_generations)
    normal = filling(args, lambda rng, row: rng.standard_normal(out=row))
    bits = filling(args, lambda rng, row: rng.random(out=row))
    seconds = ours(args, args.generations)
    normal = (normal + filling(args, lambda rng, row: rng.standard_normal(out=row))) / 2
    after = plain(args, args.plain_generations)
    loop = (before + after) / 2 * args.generations / args.plain_generations
    print(
        json.dumps(
            {
                "draws": total,
                "seconds": round(seconds, 2),
                "ns_per_draw": round(seconds / total * 1e9, 2),
                "plain_loop_seconds": round(loop, 1),
                "times_faster_than_plain": round(loop / seconds, 2),
                "normals_alone_ns": round(normal, 2),
                "over_normals_alone": round(seconds / (total * normal * 1e-9), 2),
                "random_gigabits_per_second": round(53 / bits, 1),
                "uniform_doubles_ns": round(bits, 2),
                "peak_mib_10_generations": round(peak(args, 10), 1),
                "peak_mib_100_generations": round(peak(args, 100), 1),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
