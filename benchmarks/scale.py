"""What it costs to run many chains: the scheduler, two workers against one, ever more generations.

    python benchmarks/scale.py [--chains 1000] [--rounds 3]

All on Gaussians or on no work at all, so that what is measured is the loop, the store and the
processes around them. Rounds alternate; ratios are of medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fortifai import configuration
from fortifai.lab import experiment, status
from fortifai.lab.executor import Job, Tell, run_jobs
from fortifai.lab.progress import Progress
from fortifai.lab.store import at_work, committing, locked, write_json

WORK = 0.001


def fake(folder: str, job: Job, progress: Progress, tell: Tell) -> None:
    """A millisecond of sleep."""
    progress.begin(0)
    time.sleep(WORK)


def stored(folder: str, job: Job, progress: Progress, tell: Tell) -> None:
    """The same, with what every chain does around it: a lock, word of its state, one commit."""
    progress.begin(0)
    chain = Path(folder, *job)
    with locked(chain), at_work(chain):
        time.sleep(WORK)
        with committing(chain / "generation-00") as place:
            write_json(place / "scores.json", [])


def scheduler(chains: int) -> None:
    """Time a chain costs beside its work in two processes, once the first is there."""
    jobs = [("arm", f"seed-{k}") for k in range(chains)]
    for name, work in (("no store", fake), ("lock, state, commit", stored)):
        times = [time.perf_counter()]

        def listen(_: object, times: list[float] = times) -> None:
            times.append(time.perf_counter())

        with tempfile.TemporaryDirectory() as folder:
            run_jobs(work, folder, jobs, workers=2, threads=1, listen=listen)
        began, first, *_, last = times
        each = ((last - first) * 2 / chains - WORK) * 1e3
        print(
            f"{chains} chains, {name:20} {each:6.2f} ms a chain and process; the first began after "
            f"{first - began:.1f} s"
        )


def ray(chains: int) -> None:
    """Time a chain costs as a task of Ray on two cores, once the first is there."""
    from fortifai.lab.ray_executor import cluster

    jobs, times = [("arm", f"seed-{k}") for k in range(chains)], list[float]()

    def listen(_: object) -> None:
        times.append(time.perf_counter())

    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster(None, Path(folder), threads=1, workers=2, devices=None) as run,
    ):
        there = time.perf_counter() - began
        run(stored, folder, jobs, listen=listen)
    each = ((times[-1] - times[0]) * 2 / chains - WORK) * 1e3
    print(f"{chains} chains, the same on Ray {each:6.2f} ms; Ray was there after {there:.1f} s")


def gaussian(
    generations: int, seeds: int = 1, draws: int = 1000
) -> Callable[[int], tuple[float, float]]:
    """Seconds of a run with so many workers, and of a look at it; a chain a seed."""
    settings = configuration.resolve(
        {
            "name": "scale",
            "generations": generations,
            "seeds": {"count": seeds},
            "save_samples": "needed",
            "baseline": "keep",
            "corpus": {
                "kind": "points",
                "source": {"kind": "gaussian"},
                "samples": draws,
                "held_out": 1000,
            },
            "cures": [{"kind": "deduplicate"}],
            "family": {"kind": "gaussian"},
            "arms": {"keep": {}},
        }
    )

    def run(workers: int) -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            experiment.run(settings, Path(folder), Path(folder) / "run", workers=workers)
            took = time.perf_counter() - began
            began = time.perf_counter()
            found = status.read(Path(folder) / "run")
            assert all(one.state == "finished" for one in found)
            return took, time.perf_counter() - began

    return run


def workers(rounds: int) -> None:
    """Two workers against one on the same chains, the start of the processes included."""
    run = gaussian(generations=40, seeds=8, draws=100_000)
    took: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for count in took:
            took[count].append(run(count)[0])
    one, two = (statistics.median(took[count]) for count in (1, 2))
    print(f"8 chains: {one:.1f} s with one worker, {two:.1f} s with two: {one / two:.2f} times")


def chains(rounds: int) -> None:
    """Processor seconds against chains of 20 generations, one at a time, and the exponent."""
    counts = (8, 16, 32, 64)
    used: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            run, began = gaussian(20, seeds=count), time.process_time()
            run(1)
            used[count].append(time.process_time() - began)
    print(f"chains, processor seconds: {_fitted(used)}")


def _fitted(used: dict[int, list[float]]) -> str:
    """Medians, and the exponent of a power law through them."""
    medians = [statistics.median(values) for values in used.values()]
    exponent = np.polyfit(np.log(list(used)), np.log(medians), 1)[0]
    told = ", ".join(f"{n}: {s:.2f} s" for n, s in zip(used, medians, strict=True))
    return f"{told}; exponent {exponent:.2f}"


def generations(rounds: int) -> None:
    """Processor seconds against generations, and the exponent of a power law through them."""
    counts = (125, 250, 500, 1000)
    used: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            run, began = gaussian(count), time.process_time()
            looked = run(1)[1]
            used[count].append(time.process_time() - began)
    print(f"generations, processor seconds: {_fitted(used)}")
    print(f"status of a chain of {counts[-1]} generations: {looked:.2f} s")


def main() -> None:
    """Print one line a number."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--chains", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    scheduler(given.chains)
    if importlib.util.find_spec("ray"):
        ray(given.chains)
    chains(given.rounds)
    generations(given.rounds)
    workers(given.rounds)


if __name__ == "__main__":
    main()
