"""How often 95 % intervals hold the truth in simulation, and how often phases err.

Differences of two equal arms (what is left of 100 % is called different by chance), the power to
find five points, ratios of times to failure, decay rates and their ratios, onsets of phases. Each
row says its Monte-Carlo standard error. Run ``python benchmarks/coverage.py --help``; the whole
takes some minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import numpy as np

from fortifai import stats
from fortifai.evals.phases import Curves, PhaseRule, phases

CHANCE = 0.25


def tell(what: str, hits: int, sims: int, **settings: Any) -> None:
    """One row: a share and its standard error."""
    share = hits / sims
    error = math.sqrt(max(share * (1 - share), 1 / sims) / sims)
    row = {"what": what} | settings | {"share": round(share, 4), "se": round(error, 4)}
    print(json.dumps(row), flush=True)


def two_arms(
    rng: np.random.Generator, seeds: int, n: int, wobble: float, own: float, effect: float = 0.0
) -> list[Any]:
    """Answers of two arms to the same questions; `own`: what each arm is good at."""
    ease = np.clip(0.6 + rng.normal(0, 0.2, n), 0.05, 0.95)
    gap = (rng.normal(0, own, n) + effect) / 2
    shift = rng.normal(0, wobble, (2, seeds, 1))
    return [
        (rng.random((seeds, n)) < ease + sign * gap + by).astype(float)
        for sign, by in zip((1, -1), shift, strict=True)
    ]


def differences(sims: int) -> None:
    """Coverage of a difference of 0, and power at five points."""
    for seeds in (1, 2, 3, 5, 8):
        for n in (74, 300, 1500):
            for wobble in (0.0,) if seeds == 1 else (0.0, 0.01, 0.03):
                for own in (0.0, 0.2):
                    rng = np.random.default_rng([seeds, n])
                    pairs = (two_arms(rng, seeds, n, wobble, own) for _ in range(sims))
                    held = sum(not stats.paired_difference(*pair).sure for pair in pairs)
                    tell("difference", held, sims, seeds=seeds, n=n, wobble=wobble, own=own)
    for wobble in (0.0, 0.01, 0.015, 0.02):
        rng = np.random.default_rng(0)
        pairs = (two_arms(rng, 5, 1500, wobble, 0.2, 0.05) for _ in range(sims))
        found = sum(stats.paired_difference(*pair).sure for pair in pairs)
        tell("power at five points", found, sims, seeds=5, n=1500, wobble=wobble)


def folded(rng: np.random.Generator, curve: Any, seeds: int, n: int, wobble: Any) -> Any:
    """Answers whose share is `curve` exactly; `wobble` (seeds, generations or 1) is added."""
    place = np.abs((rng.uniform(size=n) + rng.normal(0, 0.15, (seeds, len(curve), n))) % 2)
    place = np.where(place > 1, 2 - place, place)
    return (place < np.asarray(curve)[None, :, None] + wobble[..., None]).astype(float)


def times(sims: int) -> None:
    """Coverage of the ratio of times to failure; the truth is that of many seeds."""
    curves = ([0.95, 0.85, 0.75, 0.65, 0.55], [0.95, 0.75, 0.55, 0.45, 0.4])

    def mean_time(curve: list[float], wobble: float) -> float:
        shift = np.random.default_rng(7).normal(0, wobble, (20_000, 1))
        return float(
            np.mean([stats.time_to_failure(x, 0.7).stage for x in np.asarray(curve) + shift])
        )

    for seeds in (1, 2, 3, 5, 8):
        rng, wobble = np.random.default_rng(seeds), 0.05 if seeds > 1 else 0.0
        truth = mean_time(curves[0], wobble) / mean_time(curves[1], wobble)
        held = 0
        for i in range(sims):
            pair = [folded(rng, c, seeds, 300, rng.normal(0, wobble, (seeds, 1))) for c in curves]
            found = stats.ratio_to_baseline(*pair, 0.7, n_boot=200, seed=i)
            held += found.low <= truth <= (math.inf if found.high is None else found.high)
        tell("ratio of times to failure", held, sims, seeds=seeds, n=300, wobble=wobble)


def decays(sims: int) -> None:
    """Coverage of a decay rate and of a ratio of two."""
    at = np.arange(8)
    for seeds in (1, 2, 3, 5):
        rng, rate, ratio = np.random.default_rng(seeds), 0, 0
        wobble = 0.02 if seeds > 1 else 0.0
        for i in range(sims):
            pair = [
                folded(
                    rng,
                    CHANCE + 0.5 * np.exp(-k * at),
                    seeds,
                    300,
                    rng.normal(0, wobble, (seeds, 8)),
                )
                for k in (0.1, 0.4)
            ]
            one = stats.decay_rate(pair[1], CHANCE, n_boot=150, seed=i)
            rate += one.low <= 0.4 <= one.high
            two = stats.decay_ratio(*pair, CHANCE, n_boot=150, seed=i)
            high = math.inf if two.high is None else two.high
            ratio += (-math.inf if two.low is None else two.low) <= 4 <= high
        tell("decay rate", rate, sims, seeds=seeds, n=300, wobble=wobble)
        tell("decay ratio", ratio, sims, seeds=seeds, n=300, wobble=wobble)


def onsets(sims: int) -> None:
    """Onsets within one generation, their intervals, and false ones on flat curves."""
    at = np.arange(12)

    def fall(middle: float, width: float, top: float, floor: float) -> Any:
        return floor + (top - floor) / (1 + np.exp((at - middle) / width))

    def truth(curve: Any, floor: float) -> int:
        return int(np.argmax(curve[0] - curve >= 0.5 * (curve[0] - floor)))

    for seeds, wobble in ((1, 0.0), (2, 0.02), (3, 0.02), (5, 0.03)):
        rng, near, held, none = np.random.default_rng(seeds), 0, 0, 0

        def asked(curve: Any, rng: Any = rng, seeds: int = seeds, wobble: float = wobble) -> Any:
            return folded(rng, curve, seeds, 200, rng.normal(0, wobble, (seeds, 12)))

        for _ in range(sims):
            width, middle = rng.uniform(0.5, 1.5), rng.uniform(2, 6)
            know = fall(middle, width, rng.uniform(0.6, 0.9), CHANCE)
            form = fall(middle + rng.uniform(2.5, 4), width, rng.uniform(0.85, 1.0), 0.02)
            found = phases({"f": Curves(asked(know), asked(form), CHANCE)})["f"]
            true = (truth(know, CHANCE), truth(form, 0.0))
            if found.b is None or found.c is None:
                none += 1
                continue
            both = list(zip((found.b, found.c), true, strict=True))
            near += all(abs(o.generation - t) <= 1 for o, t in both)
            held += sum(o.low <= t <= (math.inf if o.high is None else o.high) for o, t in both)
        tell("both onsets within one", near, sims, seeds=seeds, n=200, wobble=wobble, missed=none)
        tell("interval of an onset", held, 2 * (sims - none), seeds=seeds, n=200, wobble=wobble)
        for share in (0.5, 0.001):
            rule, false = PhaseRule(accuracy_lost=share, adherence_lost=share), 0
            for _ in range(sims):
                flat = np.full(12, rng.uniform(0.4, 0.9))
                found = phases({"f": Curves(asked(flat), asked(flat), CHANCE)}, rule)["f"]
                false += found.knowledge is not None or found.c is not None
            tell("false onset", false, sims, seeds=seeds, n=200, wobble=wobble, lost=share)
    for seeds in (2, 3):
        for share in (0.5, 0.001):
            rng, rule, false = (
                np.random.default_rng(seeds),
                PhaseRule(accuracy_lost=share, adherence_lost=share),
                0,
            )
            for _ in range(sims):
                walks = [rng.normal(0, 0.02, (seeds, 12)).cumsum(1) for _ in range(2)]
                pair = [folded(rng, np.full(12, 0.6), seeds, 200, walk) for walk in walks]
                found = phases({"f": Curves(*pair, CHANCE)}, rule)["f"]
                false += found.knowledge is not None or found.c is not None
            tell("false onset, random walk", false, sims, seeds=seeds, n=200, lost=share)


def main() -> None:
    """Print one JSON object a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sims", type=int, default=1000, help="simulations a row")
    parser.add_argument("--only", choices=["differences", "times", "decays", "onsets"])
    args = parser.parse_args()
    for part in (differences, times, decays, onsets):
        if args.only in (None, part.__name__):
            part(args.sims)


if __name__ == "__main__":
    main()
