"""How much longer `import fortifai` takes than `import torch`, each in processes of its own.

The two take turns, so that whatever else the machine does falls on both; figures are medians. The
aim is torch plus 0.2 s. Run ``python benchmarks/import_time.py --help``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys

NAMES = ("torch", "fortifai", "fortifai.losses")


def seconds(name: str) -> float:
    """Wall time of one import in a new process, without the start of Python."""
    code = f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7, help="how often each is imported")
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn in range(args.turns + 1):
        for name in NAMES:
            took = seconds(name)
            if turn:  # the first turn fills the file cache
                times[name].append(took)
    middle = {name: statistics.median(took) for name, took in times.items()}
    result = {
        "benchmark": "import_time",
        "seconds": {name: round(took, 3) for name, took in middle.items()},
        "spread": {n: [round(min(t), 3), round(max(t), 3)] for n, t in times.items()},
        "over_torch_seconds": {
            n: round(
                statistics.median(b - a for a, b in zip(times["torch"], times[n], strict=True)), 3
            )
            for n in NAMES[1:]
        },
        "ratio_to_torch": {n: round(middle[n] / middle["torch"], 4) for n in NAMES[1:]},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
