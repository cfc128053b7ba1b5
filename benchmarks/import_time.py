"""Import time of fortifai against torch alone, in processes of their own, in turn."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def seconds(module: str) -> float:
    """Import time of a module in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(module)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    """Print medians and the difference, in seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    turns = parser.parse_args().turns
    seconds("torch")  # warms the file cache
    pairs = [(seconds("torch"), seconds("fortifai")) for _ in range(turns)]
    torch, ours = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    print(json.dumps({"torch_s": torch, "fortifai_s": ours, "difference_s": ours - torch}))


if __name__ == "__main__":
    main()
