"""How the arms of a run differ from its baseline, generation by generation, as a markdown table.

Knowledge of the first split as a difference, with an interval over seeds and questions; perplexity
as a ratio, with one over seeds. A report says both of the last generation alone. Each interval is
of one difference: nothing is corrected for their number.

    python benchmarks/by_generation.py RUN
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fortifai.report.compare import (
    kr_difference,
    last_shared,
    mean_at,
    times_baseline,
    to_baseline,
)
from fortifai.report.load import load
from fortifai.report.records import FIRST, KR, Arm, Key

KNOWLEDGE: Key = (KR, FIRST)
MEASURES: dict[str, Key] = {
    "KR": KNOWLEDGE,
    "perplexity of the first split": ("perplexity", FIRST),
    "perplexity of held-out text": ("perplexity", "held-out"),
}


def cells(arm: Arm, other: Arm, key: Key, generation: int) -> list[str]:
    """The baseline, the arm, and how they differ; empty where they cannot be compared."""
    known = key == KNOWLEDGE
    found = (
        kr_difference(arm, other, 0, generation)
        if known
        else times_baseline(arm, other, key, generation)
    )
    if found is None or found.value is None:
        return ["", "", ""]
    form = "+.3f" if known else ".2f"
    said = f"{found.value:{form}}"
    if found.low is not None and found.high is not None:
        said += f" ({found.low:{form}} to {found.high:{form}})"
    means = [mean_at(one, key, generation) for one in (other, arm)]
    return [*("" if m is None else f"{m:.3f}" if known else f"{m:,.1f}" for m in means), said]


def row(parts: Sequence[str]) -> str:
    """A row of a markdown table."""
    return "| " + " | ".join(parts) + " |"


def main() -> None:
    """Prints a table for each arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    (run,) = load([parser.parse_args().run])
    for arm, other in to_baseline(run):
        last = last_shared(arm, other, KNOWLEDGE)
        if last is None:
            continue
        heads = ["generation"]
        for what, key in MEASURES.items():
            differ = "difference" if key == KNOWLEDGE else "ratio"
            heads += [f"{what}, {other.name}", arm.name, differ]
        print(row(heads))
        print(row(["---:"] * len(heads)))
        for generation in range(last + 1):
            of_all = [c for key in MEASURES.values() for c in cells(arm, other, key, generation)]
            print(row([str(generation), *of_all]))


if __name__ == "__main__":
    main()
