"""Arms x seeds: puts family, data, regime and measures together, in one run folder."""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from fortifai import __version__, config, inputs
from fortifai.config import ArmConfig, ExperimentConfig
from fortifai.errors import InputError, RunFailed
from fortifai.evals import kr_test, language, passages
from fortifai.evals.score import Score
from fortifai.evals.view import Stage
from fortifai.inputs import Inputs, Shared
from fortifai.loop.executor import Event, Job, Listen, Tell, run_jobs, torch_threads
from fortifai.loop.progress import Progress
from fortifai.loop.recurse import Chain, recurse
from fortifai.loop.store import ChainStore, inspect, locked, write_json, write_jsonl
from fortifai.models.causal_lm import CausalLM
from fortifai.models.family import BoundLM, CausalLMFamily

CONFIG = "config.yaml"
SHARED: Job = ("shared base", 0)
"""What is prepared for all chains, where events name a chain; no arm's name has a space."""
GIVE_WAY = 30.0
"""Seconds that a chain waits for a killed run's process to let go of its folder."""


@dataclasses.dataclass(frozen=True, slots=True)
class ArmPlan:
    """What one arm will do, all seeds together.

    Attributes:
        arm: Its name.
        train_tokens: Tokens read in training, by generation, one seed.
        steps: Optimizer steps, all seeds.
        rewritten_tokens: Tokens written, all seeds.
        real_share: Share of real data that each generation trains on.
    """

    arm: str
    train_tokens: tuple[int, ...]
    steps: int
    rewritten_tokens: int
    real_share: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run will do, known before it does anything."""

    arms: tuple[ArmPlan, ...]
    seeds: int
    generations: int
    split_tokens: int
    splits: int
    pretrain_tokens: int
    held_out_tokens: int
    questions: tuple[int, ...]
    parameters: int
    disk_bytes: int
    notes: tuple[str, ...]


def plan(experiment: ExperimentConfig, data: Inputs) -> RunPlan:
    """Tokens, steps and disk of a run."""
    cut = data.splits
    arms = tuple(_plan_arm(experiment, name, cut) for name in experiment.arms)
    weights = 4 * data.parameters
    kept = experiment.generations if experiment.keep == "all" else 2  # the last and the next
    chains = len(experiment.arms) * len(experiment.seeds)
    samples = 4 * sum(a.rewritten_tokens for a in arms)
    scratch = experiment.family.scratch
    epochs = scratch.pretrain.epochs if scratch and scratch.pretrain else 0
    return RunPlan(
        arms=arms,
        seeds=len(experiment.seeds),
        generations=experiment.generations,
        split_tokens=len(cut.parts[0]),
        splits=len(cut.parts),
        pretrain_tokens=len(cut.rest) * epochs,
        held_out_tokens=len(cut.held_out),
        questions=tuple(len(part) for part in cut.questions),
        parameters=data.parameters,
        disk_bytes=weights * (kept * chains + 1) + samples,
        notes=data.notes,
    )


def _plan_arm(experiment: ExperimentConfig, name: str, cut: Any) -> ArmPlan:
    arm, size, seeds = experiment.arms[name], len(cut.parts[0]), len(experiment.seeds)
    tokens, shares, steps, rewritten = [], [], 0, 0
    for generation in range(experiment.generations):
        step = arm.regime.build()(generation, len(cut.parts))
        parts = [(p, round(size * (p.between[1] - p.between[0]))) for p in step.train]
        total = sum(n for _, n in parts)
        shares.append(sum(n for p, n in parts if p.generation == 0) / total)
        tokens.append(total * arm.train.epochs)
        batch = arm.train.block * arm.train.batch_size * arm.train.gradient_accumulation
        steps += -(-total // batch) * arm.train.epochs
        rewritten += sum(size for _ in step.rewrites)
    return ArmPlan(name, tuple(tokens), steps * seeds, rewritten * seeds, tuple(shares))


# --- running ----------------------------------------------------------------------------------


def run(
    experiment: ExperimentConfig,
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
        data = inputs.read(experiment, root)
        with locked(out):
            _check_disk(experiment, data, out)
            _write_head(experiment, data, out)
            shared = out / "shared"
            for fault in inspect(shared).faults:
                listen(Event("note", SHARED, text=f"{fault}; it is prepared again"))
            if not inputs.is_prepared(shared, data):
                progress = _Preparing(listen)
                with torch_threads(experiment.threads):
                    inputs.prepare(experiment, data, root, shared, progress)
            jobs: list[Job] = [(arm, s) for s in experiment.seeds for arm in experiment.arms]
            run_jobs(
                run_chain,
                str(out),
                jobs,
                workers=default_workers(experiment, len(jobs)) if workers is None else workers,
                threads=experiment.threads,
                listen=listen,
            )


def default_workers(experiment: ExperimentConfig, jobs: int) -> int:
    """As many chains at a time as the cores allow; one where they would share an accelerator."""
    if torch.cuda.is_available():
        return 1
    return max(1, min(jobs, len(os.sched_getaffinity(0)) // experiment.threads))


def run_chain(out: str, job: Job, progress: Progress, tell: Tell) -> None:
    """Run one arm and seed of the run folder `out`."""
    arm_name, seed = job
    folder = Path(out)
    experiment = read_config(folder)
    shared = inputs.load_shared(folder / "shared")
    chain_folder = folder / "arms" / arm_name / f"seed-{seed}"
    with locked(chain_folder, wait=GIVE_WAY), _disk_told(folder), _where(arm_name, seed):
        chain = build_chain(experiment, arm_name, seed, shared, chain_folder)
        recurse(chain, ChainStore(chain_folder), progress, tell)


def build_chain(
    experiment: ExperimentConfig, arm_name: str, seed: int, shared: Shared, folder: Path
) -> Chain[BoundLM]:
    """The loop's input for one arm and seed."""
    arm = experiment.arms[arm_name]
    family = CausalLMFamily(
        base=shared.base,
        scratch=lambda weights: inputs.random_weights(CausalLM.load(shared.base), weights),
        weight=arm.weight.build(),
        train=arm.train,
        regenerate=arm.regenerate,
        select=_select(arm, shared),
        workdir=folder / "trainer.partial",
    )
    return Chain(
        family=family,
        regime=arm.regime.build(),
        start=arm.start,
        generations=experiment.generations,
        seed=seed,
        real=shared.real,
        evaluate=functools.partial(evaluate, material=_material(experiment, shared)),
        keep=experiment.keep,
    )


def _select(arm: ArmConfig, shared: Shared) -> Callable[[CausalLM], float] | None:
    if arm.train.checkpoint == "best_held_out":
        return lambda lm: float(lm.log_prob(shared.held_out).mean())
    if arm.train.checkpoint == "best_kr":
        asked = [question for part in shared.questions for question in part]
        return lambda lm: float(kr_test.kr_test(lm, asked).right("mean").mean())
    return None


def _material(experiment: ExperimentConfig, shared: Shared) -> language.Material:
    tokenizer = CausalLM.load(shared.base, device="cpu").tokenizer
    followed = experiment.passages
    contexts = [arm.regenerate.context for arm in experiment.arms.values()]
    return language.Material(
        held_out=shared.held_out,
        questions=shared.questions,
        vocab_size=len(tokenizer),
        decode=tokenizer.decode,
        passage_starts=passages.choose(
            len(shared.real[0]), max(contexts), followed.count, followed.tokens
        ),
        passage_tokens=followed.tokens,
    )


def evaluate(stage: Stage[Any], folder: Path, *, material: language.Material) -> Sequence[Score]:
    """Measure a generation; tables that are not scores are written into `folder`."""
    view = language.LanguageView(stage, material)
    scores = [score for measure in language.MEASURES for score in measure(view)]
    if any(material.questions):
        table = kr_test.table(view.kr, view.question_splits)
        pq.write_table(pa.Table.from_pylist(table), folder / "questions.parquet")
    write_json(folder / "histograms.json", language.histograms(view))
    write_jsonl(folder / "passages.jsonl", language.followed(view))
    return scores


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


def read_config(run_folder: Path) -> ExperimentConfig:
    """The resolved configuration of a run folder.

    Raises:
        InputError: It is not a run folder.
    """
    path = run_folder / CONFIG
    if not path.is_file():
        raise InputError(f"{run_folder} is not a run folder: it has no {CONFIG}")
    return ExperimentConfig.model_validate(yaml.safe_load(path.read_text("utf-8")))


def _check_same(experiment: ExperimentConfig, out: Path) -> None:
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


def _check_disk(experiment: ExperimentConfig, data: Inputs, out: Path) -> None:
    if (out / "arms").exists():
        return  # taken up again: part of the need is there already
    need, free = plan(experiment, data).disk_bytes, shutil.disk_usage(out).free
    if need > free:
        raise InputError(
            f"the run needs about {need / 1e9:.1f} GB and the disk of {out} has "
            f"{free / 1e9:.1f} GB free; make room, choose another --out, or set keep: last"
        )


def _write_head(experiment: ExperimentConfig, data: Inputs, out: Path) -> None:
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


def _head(experiment: ExperimentConfig) -> dict[str, Any]:
    packages = ("torch", "transformers", "tokenizers", "accelerate", "numpy")
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
def _where(arm: str, seed: int) -> Iterator[None]:
    try:
        yield
    except RunFailed as error:
        raise RunFailed(f"arm {arm}, seed {seed}: {error}") from error
