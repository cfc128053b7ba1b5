"""What it costs to run many chains: the scheduler, two workers against one, ever more generations.

    python benchmarks/scale.py [--parts workers] [--chains 1000] [--rounds 3]

On Gaussians, on small language models or on no work at all, so that what is measured is the loop,
the store and the processes around them. Rounds alternate; times of a language model are counted
from the first word of a chain, since what chains share is made before.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fortifai import configuration
from fortifai.lab import experiment, status
from fortifai.lab.executor import Event, Executor, Job, Tell, local, run_jobs
from fortifai.lab.progress import Progress
from fortifai.lab.spec import AnyExperiment
from fortifai.lab.store import at_work, committing, locked, write_json

WORK = 0.001
PARTS = ("scheduler", "points", "workers", "language", "room")


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
    if not importlib.util.find_spec("ray"):
        return
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


def _gaussian(generations: int, seeds: int, draws: int) -> AnyExperiment:
    """Chains of a Gaussian, one a seed, of which every generation is committed."""
    return configuration.resolve(
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


def gaussian(generations: int, seeds: int = 1) -> float:
    """Run it, one chain at a time; the seconds of a look at what is there then."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        experiment.run(_gaussian(generations, seeds, 1000), Path(folder), out, workers=1)
        began = time.perf_counter()
        assert all(one.state == "finished" for one in status.read(out))
        return time.perf_counter() - began


def _tiny(**changes: Any) -> dict[str, Any]:
    """The preset `demo` with a model of one narrow layer, two generations of a thousand tokens."""
    raw, _ = configuration.read_raw("demo")
    raw |= {"generations": 2, "arms": {"ce": {}}}
    raw |= {"splits": {"tokens": 1024, "held_out_tokens": 1024}}
    raw["family"]["scratch"] |= {"hidden_size": 32, "layers": 1, "heads": 2, "vocab_size": 512}
    raw["family"]["scratch"]["pretrain"] = {"epochs": 1}
    return raw | changes


def _language(
    raw: dict[str, Any],
    clock: Callable[[], float],
    *,
    workers: int = 1,
    executor: Executor = local,
) -> tuple[float, float]:
    """Time to the first word of a chain, and from there to the last one, of a run of a preset.

    Of several workers that begin one after the other, the mean of their first words counts.
    """
    settings, began, last = configuration.resolve(raw), clock(), 0.0
    first: dict[Job, float] = {}

    def listen(event: Event) -> None:
        nonlocal last
        if event.job not in (experiment.RUN, experiment.SHARED):
            last = clock()
            first.setdefault(event.job, last)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        experiment.run(
            settings, Path(folder), out, workers=workers, listen=listen, executor=executor
        )
    beginning = statistics.mean(sorted(first.values())[:workers])
    return beginning - began, last - beginning


def workers(rounds: int) -> None:
    """Two workers against one, and Ray's against ours, on chains of `demo` of one thread each."""
    raw, _ = configuration.read_raw("demo")
    raw |= {"generations": 1, "arms": {"ce": {}}, "seeds": list(range(4)), "threads": 1}
    ways: dict[str, tuple[int, Executor]] = {"one worker": (1, local), "two": (2, local)}
    if importlib.util.find_spec("ray"):
        from fortifai.lab.ray_executor import cluster

        ways["two, Ray"] = (2, functools.partial(cluster, None))
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (count, executor) in ways.items():
            began, used = _language(raw, time.perf_counter, workers=count, executor=executor)
            took[name].append(used)
            print(f"4 chains of demo, {name:10}: {used:6.1f} s, behind {began:.1f} s of beginning")
    _ratio("one worker takes", took["one worker"], took["two"], "times as long as two")
    if "two, Ray" in took:
        _ratio("Ray takes", took["two, Ray"], took["two"], "times as long as local")


def _ratio(before: str, over: list[float], under: list[float], behind: str) -> None:
    """The median of the ratios turn by turn, lowest and highest in brackets."""
    each = sorted(a / b for a, b in zip(over, under, strict=True))
    print(f"{before} {statistics.median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f}) {behind}")


def language(rounds: int) -> None:
    """Processor seconds of tiny language models against tokens, arms and chains, one at a time."""
    weights = [{"kind": "truncate", "threshold": k / 10} for k in range(2, 10)]
    asked: dict[str, dict[int, dict[str, Any]]] = {
        "tokens": {
            n: {"splits": {"tokens": n, "held_out_tokens": 1024}}
            for n in (4096, 8192, 16384, 32768)
        },
        "arms": {
            n: {"baseline": "tce-0", "arms": {f"tce-{k}": {"weight": weights[k]} for k in range(n)}}
            for n in (1, 2, 4, 8)
        },
        "chains": {n: {"seeds": {"count": n}} for n in (8, 16, 32, 64)},
    }
    for what, sizes in asked.items():
        used: dict[int, list[float]] = {n: [] for n in sizes}
        for _ in range(rounds):
            for n, changes in sizes.items():
                used[n].append(_language(_tiny(**changes), time.process_time)[1])
        print(f"{what} of a tiny language model, processor seconds: {_fitted(used)}")


def room() -> None:
    """Memory and disk of a chain while its generations pass, with `save_weights: last`."""
    steps = {"a Gaussian": (_gaussian(1000, 1, 1000), (100, 400, 700, 999))}
    # what is written grows with the generations under the paper's own regime, which adds a split
    tiny = _tiny(generations=50, regime={"kind": "replace"}, save_samples="needed")
    steps["a tiny language model"] = (configuration.resolve(tiny), (5, 20, 35, 49))
    for name, (settings, looked) in steps.items():
        for line in _grown(settings, looked):
            print(f"{name}, {line}")


def _grown(settings: AnyExperiment, looked: Sequence[int]) -> list[str]:
    """What a run holds at the end of some generations, a line each."""
    told: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")

        def listen(event: Event) -> None:
            if event.kind == "end" and event.generation in looked:
                memory = psutil.Process().memory_full_info().uss / 2**20
                files = {f: f.stat().st_size for f in out.rglob("*") if f.is_file()}
                weights = sum(n for f, n in files.items() if f.suffix == ".safetensors")
                rest = sum(files.values()) - weights
                told.append(
                    f"generation {event.generation}: {memory:.0f} MiB of memory, "
                    f"{weights / 2**20:.2f} MiB of weights and samples, {rest / 2**20:.2f} MiB of "
                    "records"
                )

        experiment.run(settings, Path(folder), out, workers=1, listen=listen)
    return told


def chains(rounds: int) -> None:
    """Processor seconds against chains of 20 generations, one at a time, and the exponent."""
    counts = (8, 16, 32, 64)
    used: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            began = time.process_time()
            gaussian(20, seeds=count)
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
            began = time.process_time()
            looked = gaussian(count)
            used[count].append(time.process_time() - began)
    print(f"generations, processor seconds: {_fitted(used)}")
    print(f"status of a chain of {counts[-1]} generations: {looked:.2f} s")


def main() -> None:
    """Print one line a number."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--chains", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    given = arguments.parse_args()
    if "scheduler" in given.parts:
        scheduler(given.chains)
        ray(given.chains)
    if "points" in given.parts:
        chains(given.rounds)
        generations(given.rounds)
    if "workers" in given.parts:
        workers(given.rounds)
    if "language" in given.parts:
        language(given.rounds)
    if "room" in given.parts:
        room()


if __name__ == "__main__":
    main()
