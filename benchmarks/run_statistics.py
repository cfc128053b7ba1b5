"""What the statistics and the phases of one run take.

A run as large as they come: arms x seeds x generations x questions of random answers. Every arm is
compared with the first one (difference, Holm's correction, ratio of times to failure at two levels,
decay rates), and the phases of every arm in so many formats are told. The aim is under 5 seconds
for all of it. Run ``python benchmarks/run_statistics.py --help``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fortifai import stats
from fortifai.evals.phases import Curves, phases


def answers(args: argparse.Namespace, rng: np.random.Generator, pace: float) -> Any:
    """Answers whose share decays from 0.9 to 0.5."""
    share = 0.5 + 0.4 * np.exp(-pace * np.arange(args.generations))
    size = (args.seeds, args.generations, args.questions)
    return (rng.random(size) < share[None, :, None]).astype(float)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--generations", type=int, default=16)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--formats", type=int, default=4)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    arms = [answers(args, rng, 0.3 / (1 + i)) for i in range(args.arms)]
    formats = {f"format-{i}": Curves(arms[0], arms[-1], 0.25) for i in range(args.formats)}

    def compared() -> None:
        gaps = [stats.paired_difference(arm[:, -1], arms[0][:, -1]) for arm in arms[1:]]
        stats.holm([gap.p for gap in gaps if gap.p is not None])

    def failed() -> None:
        for arm in arms[1:]:
            stats.ratio_to_baseline(arm, arms[0], 0.75)
            stats.ratio_to_baseline(arm, arms[0], "half_gain", chance=0.5)

    def decayed() -> None:
        for arm in arms[1:]:
            stats.decay_ratio(arm, arms[0], 0.5)

    def told() -> None:
        for _ in arms:
            phases(formats)

    steps: dict[str, Callable[[], None]] = {
        "differences": compared,
        "times to failure": failed,
        "decay ratios": decayed,
        "phases": told,
    }
    seconds = {}
    for name, step in steps.items():
        began = time.perf_counter()
        step()
        seconds[name] = round(time.perf_counter() - began, 3)
    seconds["all"] = round(sum(seconds.values()), 3)
    print(json.dumps(vars(args) | {"seconds": seconds}))


if __name__ == "__main__":
    main()
