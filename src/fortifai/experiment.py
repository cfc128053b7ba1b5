"""Arms x seeds: puts family, data, regime and measures together, in one run folder."""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from threadpoolctl import threadpool_limits

from fortifai import __version__, config, setups
from fortifai.config import AnyExperiment
from fortifai.errors import InputError, RunFailed
from fortifai.evals.score import Score
from fortifai.loop.executor import Event, Job, Listen, Tell, run_jobs, torch_threads
from fortifai.loop.progress import Progress
from fortifai.loop.recurse import Chain, recurse
from fortifai.loop.store import ChainStore, committing, inspect, locked, write_json
from fortifai.setups import Inputs, Shared

CONFIG = "config.yaml"
SHARED: Job = ("shared data", "")
"""What is prepared for all chains, where events name a chain; no arm's name has a space."""
GIVE_WAY = 30.0
"""Seconds that a chain waits for a killed run's process to let go of its folder."""


@dataclasses.dataclass(frozen=True, slots=True)
class ArmPlan:
    """What one arm will do.

    Attributes:
        arm: Its name.
        trained: Samples read in training, by generation, one seed.
        steps: Optimizer steps, all seeds; 0 where there are none.
        rewritten: Samples written, all seeds.
        real_share: Share of real data that each generation trains on.
    """

    arm: str
    trained: tuple[int, ...]
    steps: int
    rewritten: int
    real_share: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run will do, known before it does anything.

    Attributes:
        arms: What each arm will do.
        seeds: How many.
        generations: How many.
        unit: What samples are counted in.
        facts: What there is to say of the data, name and value.
        disk_bytes: About how much the run folder will hold.
        notes: What a user should know.
    """

    arms: tuple[ArmPlan, ...]
    seeds: int
    generations: int
    unit: str
    facts: tuple[tuple[str, str], ...]
    disk_bytes: int
    notes: tuple[str, ...]


def plan(experiment: AnyExperiment, data: Inputs) -> RunPlan:
    """Samples, steps and disk of a run."""
    arms = tuple(_plan_arm(experiment, name, data) for name in experiment.arms)
    commits = -(-experiment.generations // experiment.every) + 1
    kept = commits if experiment.keep == "all" else 2  # the last and the next
    kept += experiment.keep_first and experiment.keep != "all"
    count = len(experiment.arms) * len(chains(experiment))
    written = sum(a.rewritten for a in arms) * data.sample_bytes
    if experiment.keep_samples == "needed":
        chain_seeds = len(experiment.arms) * len(experiment.seeds)
        written = min(written, 2 * data.split_size * data.sample_bytes * chain_seeds)
    return RunPlan(
        arms=arms,
        seeds=len(experiment.seeds),
        generations=experiment.generations,
        unit=data.unit,
        facts=data.facts,
        disk_bytes=data.model_bytes * (kept * count + 1) + written,
        notes=data.notes,
    )


def _plan_arm(experiment: AnyExperiment, name: str, data: Inputs) -> ArmPlan:
    regime, seeds = experiment.arms[name].regime.build(), len(experiment.seeds)
    trained, shares, steps, rewritten = [], [], 0, 0
    for generation in range(experiment.generations):
        step = regime(generation, experiment.split_count)
        parts = [(p, _share(data.split_size, p.between)) for p in step.train]
        total = sum(n for _, n in parts)
        shares.append(sum(n for p, n in parts if p.generation == 0) / total)
        read, updates = data.effort(name, total)
        trained.append(read)
        steps += updates
        rewritten += data.split_size * len(step.rewrites)
    return ArmPlan(name, tuple(trained), steps * seeds, rewritten * seeds, tuple(shares))


def _share(size: int, between: tuple[float, float]) -> int:
    # rounded at both ends, as the loop does: the shares of many parts then add up to the whole
    return round(size * between[1]) - round(size * between[0])


def chains(experiment: AnyExperiment) -> dict[str, tuple[int, ...]]:
    """The chains of every arm: the folder of each and its seeds.

    One a seed, or one for all seeds where the family is vectorised over them.
    """
    if all(arm.family.kind == "gaussian" for arm in experiment.arms.values()):
        return {"seeds": experiment.seeds}
    return {f"seed-{seed}": (seed,) for seed in experiment.seeds}


# --- running ----------------------------------------------------------------------------------


def run(
    experiment: AnyExperiment,
    root: Path,
    out: Path,
    *,
    workers: int | None = None,
    listen: Listen = lambda _: None,
) -> None:
    """Run an experiment, or what is missing of it, into the folder `out`.

    Args:
        experiment: The resolved configuration.
        root: Folder that its file names are relative to.
        out: The run folder; created, or taken up again.
        workers: Chains at a time; None: as many as the cores allow, 1 with an accelerator.
        listen: Receives events.

    Raises:
        InputError: The configuration or what it names is wrong, or `out` holds another run.
        RunFailed: Work that had started could not go on; what was finished is kept.
    """
    with _disk_told(out):
        _check_same(experiment, out)
        data = setups.read(experiment, root)
        with locked(out):
            _check_disk(experiment, data, out)
            _write_head(experiment, data, out)
            shared = out / "shared"
            for fault in inspect(shared).faults:
                listen(Event("note", SHARED, text=f"{fault}; it is prepared again"))
            if not is_prepared(shared, data):
                with torch_threads(experiment.threads), committing(shared) as folder:
                    data.write(folder, _Preparing(listen))
                    write_json(folder / "sources.json", {"fingerprint": data.fingerprint})
            jobs: list[Job] = [
                (arm, name) for name in chains(experiment) for arm in experiment.arms
            ]
            run_jobs(
                run_chain,
                str(out),
                jobs,
                workers=default_workers(experiment, len(jobs)) if workers is None else workers,
                threads=experiment.threads,
                listen=listen,
            )


def default_workers(experiment: AnyExperiment, jobs: int) -> int:
    """As many chains at a time as the cores allow; one where they would share an accelerator."""
    if torch.cuda.is_available():
        return 1
    return max(1, min(jobs, len(os.sched_getaffinity(0)) // experiment.threads))


def is_prepared(folder: Path, data: Inputs) -> bool:
    """Whether `folder` is whole and was made from the same data.

    Raises:
        InputError: It was made from other data.
    """
    if not inspect(folder).whole:
        return False
    made = json.loads((folder / "sources.json").read_text("utf-8"))["fingerprint"]
    if made != data.fingerprint:
        raise InputError(
            f"the {data.unit} of the run have changed since {folder.parent} was started (corpus "
            "or questions); restore them or choose another --out"
        )
    return True


def run_chain(out: str, job: Job, progress: Progress, tell: Tell) -> None:
    """Run one chain of the run folder `out`."""
    arm, name = job
    folder = Path(out)
    experiment = read_config(folder)
    shared = setups.load(experiment, folder / "shared")
    chain_folder = folder / "arms" / arm / name
    with locked(chain_folder, wait=GIVE_WAY), _disk_told(folder), _where(arm, name):
        chain = build_chain(experiment, arm, chains(experiment)[name], shared, chain_folder)
        # here, where every library that the chain uses is loaded: a pool that is loaded later
        # would keep all cores, and the order of its sums would depend on `workers`
        with threadpool_limits(experiment.threads):
            recurse(chain, ChainStore(chain_folder), progress, tell)


def build_chain(
    experiment: AnyExperiment, arm: str, seeds: tuple[int, ...], shared: Shared, folder: Path
) -> Chain[Any]:
    """The loop's input for one chain."""
    ground, settings = shared.ground(arm, seeds, folder), experiment.arms[arm]
    return Chain(
        family=ground.family,
        regime=settings.regime.build(),
        start=settings.start,
        generations=experiment.generations,
        seeds=seeds,
        real=ground.real,
        evaluate=ground.evaluate,
        every=experiment.every,
        keep=experiment.keep,
        keep_samples=experiment.keep_samples,
        keep_first=experiment.keep_first,
    )


@dataclasses.dataclass(frozen=True)
class _Preparing:
    """Progress of what all chains share."""

    listen: Listen

    def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
        self.listen(Event("step", SHARED, 0, stage, done, total, tokens))

    def begin(self, generation: int) -> None:
        """There are no generations yet."""

    def end(self, generation: int, scores: Sequence[Score]) -> None:
        """There are no generations yet."""


# --- the run folder's head --------------------------------------------------------------------


def read_config(run_folder: Path) -> AnyExperiment:
    """The resolved configuration of a run folder.

    Raises:
        InputError: It is not a run folder.
    """
    path = run_folder / CONFIG
    if not path.is_file():
        raise InputError(f"{run_folder} is not a run folder: it has no {CONFIG}")
    return config.resolve(yaml.safe_load(path.read_text("utf-8")))


def _check_same(experiment: AnyExperiment, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; a run is a folder, so choose another --out")
    path = out / CONFIG
    if not path.exists():
        if out.exists() and any(p.name != ".lock" for p in out.iterdir()):
            raise InputError(f"{out} holds other files and is not a run; choose another --out")
        return
    try:
        old = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as YAML; choose another --out") from error
    keys = config.difference(old, config.plain(experiment))
    if keys:
        raise InputError(
            f"{out} was started with another configuration; these keys differ: "
            f"{', '.join(keys)}; restore them or choose another --out"
        )


def _check_disk(experiment: AnyExperiment, data: Inputs, out: Path) -> None:
    if (out / "arms").exists():
        return  # taken up again: part of the need is there already
    need, free = plan(experiment, data).disk_bytes, shutil.disk_usage(out).free
    if need > free:
        raise InputError(
            f"the run needs about {need / 1e9:.1f} GB and the disk of {out} has "
            f"{free / 1e9:.1f} GB free; make room, choose another --out, or set keep: last"
        )


def _write_head(experiment: AnyExperiment, data: Inputs, out: Path) -> None:
    _write_whole(out / "run.json", json.dumps(_head(experiment), indent=1) + "\n")
    _write_whole(out / "notes.json", json.dumps(list(data.notes), indent=1) + "\n")
    record = dataclasses.asdict(plan(experiment, data))
    _write_whole(out / "plan.json", json.dumps(record, indent=1) + "\n")
    _write_whole(out / CONFIG, config.dump(experiment))


def _write_whole(path: Path, text: str) -> None:
    if path.exists():
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def _head(experiment: AnyExperiment) -> dict[str, Any]:
    packages = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "scikit-learn")
    return {
        "name": experiment.name,
        "version": __version__,
        "versions": {
            "python": platform.python_version(),
            **{p: importlib.metadata.version(p) for p in packages},
        },
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """The machine in a few words: processor, cores, memory, accelerator, system."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "accelerator": accelerator,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the general name below is all there is
    return platform.processor() or platform.machine()


@contextmanager
def _disk_told(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _disk_full(out) from error
    except Exception as error:
        # safetensors and pyarrow raise their own errors, with the system's message inside
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise _disk_full(out) from error


def _disk_full(out: Path) -> RunFailed:
    return RunFailed(
        f"the disk of {out} is full; make room and start the same command again: it goes on from "
        "the last whole generation"
    )


@contextmanager
def _where(arm: str, chain: str) -> Iterator[None]:
    try:
        yield
    except RunFailed as error:
        raise RunFailed(f"arm {arm}, {chain.replace('-', ' ')}: {error}") from error
