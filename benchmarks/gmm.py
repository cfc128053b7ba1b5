"""The family `gmm` through the whole loop, against the bare scikit-learn loop.

200 generations of two components on 1,000 points in the plane: EM from the last mixture, new draws,
and so on. Ours draws, fits, measures and commits; the bare loop fits and draws. In turn, several
times; the ratio is of the medians. Run ``python benchmarks/gmm.py --help``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from fortifai import configuration
from fortifai.lab import experiment
from fortifai.lab.loop import recurse
from fortifai.lab.progress import Silent
from fortifai.lab.spec import AnyExperiment
from fortifai.lab.store import ChainStore


def settings(args: argparse.Namespace) -> AnyExperiment:
    """The experiment that both do."""
    return configuration.resolve(
        {
            "name": "benchmark",
            "generations": args.generations,
            "eval_every": args.every,
            "save_samples": "needed",
            "baseline": "em",
            "corpus": {
                "kind": "points",
                "source": {"kind": "two_gaussians"},
                "samples": args.points,
                "held_out": 1000,
            },
            "family": {"kind": "gmm", "components": 2},
            "arms": {"em": {}},
        }
    )


def ours(args: argparse.Namespace) -> float:
    """Seconds of a chain."""
    experiment_ = settings(args)
    with tempfile.TemporaryDirectory() as folder:
        data = experiment_.read(Path(folder))
        shared = Path(folder) / "shared"
        shared.mkdir()
        data.save(shared, Silent())
        loaded = experiment_.load(shared)
        chain = experiment.build_chain(experiment_, "em", 0, loaded, Path(folder))
        began = time.perf_counter()
        recurse(chain, ChainStore(Path(folder) / "chain"), Silent())
        return time.perf_counter() - began


def bare(args: argparse.Namespace) -> float:
    """Seconds of fitting and drawing alone."""
    points = settings(args).read(Path()).real[0][:, 0]
    rng = np.random.RandomState(0)
    start: dict[str, np.ndarray] = {}
    began = time.perf_counter()
    for _ in range(args.generations):
        em = GaussianMixture(2, tol=1e-5, max_iter=2000, random_state=rng, **start)
        em.fit(points)
        points = em.sample(args.points)[0]
        start = {
            "weights_init": em.weights_,
            "means_init": em.means_,
            "precisions_init": em.precisions_,
        }
    return time.perf_counter() - began


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # EM's own, of both
    pairs = []
    with threadpool_limits(1):
        ours(args)  # warm up
        for _ in range(args.pairs):
            pairs.append((ours(args), bare(args)))
    print(
        json.dumps(
            {
                "generations": args.generations,
                "ours_seconds": round(statistics.median(a for a, _ in pairs), 2),
                "bare_seconds": round(statistics.median(b for _, b in pairs), 2),
                "ratio": round(statistics.median(a / b for a, b in pairs), 3),
                "ratios": [round(a / b, 3) for a, b in pairs],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
