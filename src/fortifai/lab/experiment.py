"""Arms x seeds: puts family, data, regime and measures together, in one run folder."""

from __future__ import annotations

import dataclasses
import errno
import gc
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fortifai import files
from fortifai.errors import InputError, RunFailed, nearest
from fortifai.lab import plugins, run_folder
from fortifai.lab.domain import Domain
from fortifai.lab.executor import Event, Executor, Job, Listen, Tell, local
from fortifai.lab.loop import Chain, recurse
from fortifai.lab.measures import Score
from fortifai.lab.plan import plan
from fortifai.lab.progress import Progress
from fortifai.lab.seeds import Seed
from fortifai.lab.spec import AnyExperiment, with_plugins
from fortifai.lab.store import (
    LOCK,
    SEEN,
    ChainStore,
    at_work,
    committing,
    inspect,
    locked,
    unfinished,
    write_json,
)
from fortifai.lab.times import Timed
from fortifai.machine import use_threads

RUN: Job = ("run", "")
"""The run as a whole, where events name a chain."""
SHARED: Job = ("shared data", "")
"""What is prepared for all chains, where events name a chain; no arm's name has a space."""
PREPARING = f"{LOCK}-shared"
"""The lock of who writes the head and what all chains share."""
GIVE_WAY = 30.0
"""Seconds that a chain waits for a killed run's process to let go of its folder."""


# --- running ----------------------------------------------------------------------------------


def run(
    experiment: AnyExperiment,
    root: Path,
    out: Path,
    *,
    workers: int | None = None,
    devices: int | None = None,
    only: Job | None = None,
    listen: Listen = lambda _: None,
    executor: Executor = local,
) -> None:
    """Run an experiment, or what is missing of it, into the folder `out`.

    Args:
        experiment: The resolved configuration.
        root: Folder that its file names are relative to.
        out: The run folder; created, or taken up again.
        workers: Chains at a time; None: as many as the accelerators allow, else the cores.
        devices: Accelerators of each chain; None: 1 where there are any, or one for each of its
            processes.
        only: The one chain to run. Others may be run at the same time, by other processes.
        listen: Receives events.
        executor: Where the chains run.

    Raises:
        InputError: The configuration or what it names is wrong, `out` holds another run, or the
            executor cannot do what it is asked for.
        RunFailed: Work that had started could not go on; what was finished is kept.
    """

    def tell(sentence: str) -> None:
        listen(Event("note", RUN, text=sentence))

    jobs = chains(experiment) if only is None else [only]
    with _disk_told(out), ExitStack() as held:
        run_folder.earlier(experiment, out)  # refuses before anything is read
        run_jobs = held.enter_context(
            executor(
                out,
                threads=experiment.threads,
                workers=workers,
                devices=_devices(experiment, devices),
                processes=experiment.processes,
            )
        )
        data = experiment.read(root)
        if only is None:
            held.enter_context(locked(out, tell=tell))
            for left in out.glob(f"{SEEN}*"):  # of a run that was killed while a node looked
                left.unlink(missing_ok=True)
        elif (whole := files.holder(out / LOCK)) and whole.alive:
            raise InputError(
                f"{out} is in use by a run of all its chains ({whole}); wait for it, or choose "
                "another --out"
            )
        with locked(out, name=PREPARING, wait=math.inf, tell=tell):
            _prepare(experiment, root, data, out, listen)
        run_jobs(
            run_chain,
            Place(str(out.absolute()), experiment.without_plugins(), experiment.plugins.names),
            _longest_first(experiment, data, jobs),
            listen=listen,
        )


def _devices(experiment: AnyExperiment, asked: int | None) -> int | None:
    """Accelerators of each chain, as an executor is told; None where it finds out."""
    if experiment.accelerated:
        return asked
    if asked is not None:
        raise InputError(
            f"--devices-per-chain is {asked}, and {experiment.unit} are computed on the processor; "
            "leave it out"
        )
    return 0


def chains(experiment: AnyExperiment) -> list[Job]:
    """All of them, the first seed of every arm first."""
    return [(arm, name) for name in experiment.chains() for arm in experiment.arms]


def chain_named(experiment: AnyExperiment, name: str) -> Job:
    """The chain of a name such as ``ce/seed-0``.

    Raises:
        InputError: There is none.
    """
    known = {"/".join(job): job for job in chains(experiment)}
    if name not in known:
        told = ", ".join([*known][:5]) + (", ..." if len(known) > 5 else "")
        raise InputError(
            f"there is no chain {name!r}{nearest(name, known)}; the {len(known)} chains of this "
            f"run are {told}"
        )
    return known[name]


def _longest_first(experiment: AnyExperiment, data: Domain, jobs: list[Job]) -> list[Job]:
    """So that no long chain is left to the end, when others have nothing to do."""
    if len(jobs) == 1:
        return jobs
    work = {arm.arm: arm.trained + arm.rewritten for arm in plan(experiment, data).arms}
    return sorted(jobs, key=lambda job: -work[job[0]])


# --- what all chains share --------------------------------------------------------------------


def _prepare(
    experiment: AnyExperiment, root: Path, data: Domain, out: Path, listen: Listen
) -> None:
    """Write what is missing of the head and of ``shared/``, or what more generations change."""
    earlier = run_folder.earlier(experiment, out)  # another process may have been here
    before = data
    if earlier is not None and earlier.generations < experiment.generations:
        before = earlier.read(root)
        _check_foundation(earlier, before, data, out)
    _check_disk(experiment, data, out)
    run_folder.sweep(out)
    if earlier is None:
        run_folder.write_head(experiment, data, out)
    _share(experiment, data, before, out, listen)
    if earlier is not None:
        run_folder.renew_head(
            experiment, earlier, data, out, lambda text: listen(Event("note", RUN, text=text))
        )


def _share(
    experiment: AnyExperiment, data: Domain, before: Domain, out: Path, listen: Listen
) -> None:
    """Write ``shared/`` where it is not there, not whole, or made for fewer generations."""
    shared, grows = out / "shared", before is not data
    for fault in inspect(shared).faults:
        listen(Event("note", SHARED, text=f"{fault}; it is prepared again"))
    # a growth that was cut short may have left the new one
    whole = is_prepared(shared, experiment.unit, before, *((data,) if grows else ()))
    if whole and not grows:
        return
    if grows:
        _mark_stale(experiment, before, data, out, listen)
    # a base model that a process had pretrained when it was killed need not be pretrained again
    sources = {"fingerprint": data.fingerprint, "foundation": data.foundation(len(data.real))}
    goes_on = not whole and _sources(unfinished(shared)) == sources
    with use_threads(experiment.threads), committing(shared, goes_on=goes_on) as folder:
        write_json(folder / SOURCES, sources)
        data.save(folder, _Preparing(listen), before=shared if whole else None)


SOURCES = "sources.json"


def _sources(folder: Path) -> Any:
    """What `folder` says that it was made from; None where that cannot be read."""
    try:
        return json.loads((folder / SOURCES).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def is_prepared(folder: Path, unit: str, *data: Domain) -> bool:
    """Whether `folder` is whole and was made from the same data, or one of several.

    Raises:
        InputError: It was made from other data.
    """
    if not inspect(folder).whole:
        return False
    if _sources(folder)["fingerprint"] not in [one.fingerprint for one in data]:
        raise InputError(
            f"the {unit} of the run have changed since {folder.parent} was started (corpus "
            "or questions); restore them or choose another --out"
        )
    return True


def _check_foundation(earlier: AnyExperiment, before: Domain, data: Domain, out: Path) -> None:
    """Refuse to grow where the same generations would be others if more had been asked for."""
    splits = earlier.split_count
    if before.foundation(splits) != data.foundation(splits):
        raise InputError(
            f"{out} cannot go on from {earlier.generations} generations: regime fortifai takes a "
            f"split for each, and with more of them the first {splits} splits, or the text that "
            "the base model is pretrained on, are no longer what they were; choose another --out "
            "(a run can grow where splits.tokens or corpus.samples is set and nothing is "
            "pretrained on the rest)"
        )


def _mark_stale(
    experiment: AnyExperiment, before: Domain, data: Domain, out: Path, listen: Listen
) -> None:
    """Have the old generations done again where measures look at splits that are new."""
    if len(before.real) == len(data.real):
        return
    listen(
        Event(
            "note",
            RUN,
            text=f"every generation is measured on all splits, and there are {len(data.real)} now "
            f"instead of {len(before.real)}: the generations that are there are done again, with "
            "the same models",
        )
    )
    for arm in experiment.arms:
        for name in experiment.chains():
            folder = out / "arms" / arm / name
            with locked(folder, wait=GIVE_WAY):
                ChainStore(folder).set_stale(ChainStore(folder).committed())


# --- one chain --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Place:
    """A run folder, and how its configuration is read: small, and fit for another process.

    Attributes:
        out: The run folder.
        kind: Its experiment, without plugins.
        plugins: Names of the plugins' modules.
    """

    out: str
    kind: type[AnyExperiment]
    plugins: tuple[str, ...] = ()

    def read(self) -> AnyExperiment:
        """The experiment."""
        kind = with_plugins(self.kind, plugins.load(self.plugins))
        return run_folder.read_config(Path(self.out), kind)


def run_chain(place: Place, job: Job, progress: Progress, tell: Tell) -> None:
    """Run one chain of a run folder."""
    arm, name = job
    folder, experiment = Path(place.out), place.read()
    data = experiment.load(folder / "shared")
    chain_folder = folder / "arms" / arm / name
    with (
        locked(chain_folder, wait=GIVE_WAY, tell=tell),
        at_work(chain_folder),
        _disk_told(folder),
        _where(arm, name),
    ):
        chain = build_chain(experiment, arm, experiment.chains()[name], data, chain_folder)
        # here, where every library that the chain uses is loaded: a pool that is loaded later
        # would keep all cores, and the order of its sums would depend on `workers`
        with use_threads(experiment.threads), collecting_new():
            listening = Timed(progress, chain_folder) if experiment.times else progress
            store = ChainStore(chain_folder)
            recurse(chain, store, listening, tell)
            store.sweep()  # what a trainer worked in is of no use to a chain that has ended


@contextmanager
def collecting_new() -> Iterator[None]:
    """Leave out of garbage collections what is there already, inside the block.

    A trainer asks for a whole collection in every fit. Passing over all that loaded libraries hold
    takes a third of a second.
    """
    frozen = gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:  # else the process wants it so, and the two cannot be told apart
            gc.unfreeze()


def build_chain(
    experiment: AnyExperiment, arm: str, seed: Seed, data: Domain, folder: Path
) -> Chain[Any]:
    """The loop's input for one chain."""
    settings = experiment.arms[arm]
    family, real = data.chain(arm, seed, folder)
    return Chain(
        family=family,
        regime=settings.regime,
        cures=settings.cures,
        after_fit=settings.after_fit,
        init_from=settings.init_from,
        generations=experiment.generations,
        seed=seed,
        real=real,
        domain=data,
        evaluate=data.evaluate,
        eval_every=experiment.eval_every,
        save_weights=experiment.save_weights,
        save_samples=experiment.save_samples,
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


def _check_disk(experiment: AnyExperiment, data: Domain, out: Path) -> None:
    if (out / "arms").exists():
        return  # taken up again: part of the need is there already
    need, free = plan(experiment, data).disk_bytes, shutil.disk_usage(out).free
    if need > free:
        raise InputError(
            f"the run needs about {need / 1e9:.1f} GB and the disk of {out} has "
            f"{free / 1e9:.1f} GB free; make room, choose another --out, or set save_weights: last"
        )


@contextmanager
def _disk_told(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in files.FULL:
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
