"""Fits and rewritings of a language model in several processes of this machine (`train.parallel`).

The caller's process stays the owner of the model and of all that is kept: it writes weights and
text into a folder, processes read them there, train by DDP or FSDP2 or write their part of the
text, and the caller reads back what they made. Its own model leaves the accelerator meanwhile.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from fortifai.data.tokens import SpecialTokens
from fortifai.errors import InputError
from fortifai.integrations.hidden_states import HiddenStateLoss
from fortifai.lab.progress import Silent
from fortifai.losses.weighing import carries_gradient
from fortifai.models import blocks, documents, loading, training
from fortifai.models.processes import Rank, Tell, together
from fortifai.weights import Keep

if TYPE_CHECKING:
    from fortifai.lab.progress import Progress
    from fortifai.models.causal_lm import CausalLM
    from fortifai.models.options import ParallelOptions, RegenerateOptions, TrainOptions
    from fortifai.models.training import FitReport
    from fortifai.weights import AnyWeight

MODEL, SAMPLES, TRAINED = "model", "samples.npy", "trained.safetensors"
"""What lies in the folder of one call: what the caller gives, and the weights it gets back."""


@dataclasses.dataclass(frozen=True)
class Team:
    """Processes that work together, and where they may write."""

    options: ParallelOptions
    workdir: Path


def check(parallel: ParallelOptions) -> None:
    """Raise `InputError` where there are accelerators, and fewer than processes."""
    there = torch.cuda.device_count()
    if 0 < there < parallel.processes:
        raise InputError(
            f"train.parallel asks for {parallel.processes} processes with an accelerator each, and "
            f"this process sees {there}; lower processes, or raise --devices-per-chain"
        )


def fit(
    lm: CausalLM,
    samples: np.ndarray,
    weight: AnyWeight,
    train: TrainOptions,
    *,
    seed: int,
    workdir: Path,
    progress: Progress,
) -> FitReport:
    """Train `lm` in place as `training.fit` does, in the processes of `train.parallel`.

    Every step reads the rows that it would in one process, and its loss is divided by what counts
    in all of them, so weights and report are those of one process up to the rounding of sums.
    Dropout differs.

    Raises:
        InputError: As `training.fit`; or there are too few accelerators, or `train.normalize` is
            ``kept`` and the weight carries a gradient.
        RunFailed: As `training.fit`; or a process was killed. `lm` is then as it was.
    """
    assert train.parallel is not None
    check(train.parallel)
    if train.normalize == "kept" and carries_gradient(weight):
        raise InputError(
            f"train.normalize 'kept' divides by the weights of all processes, and those of "
            f"{weight!r} carry a gradient, which stays in each; set normalize to 'valid', or leave "
            "train.parallel out"
        )
    training.check(lm.model, train, None)
    told = _Fit(workdir, _dtype(lm), lm.special, weight, train, seed)
    with _given(lm, samples, workdir) as folder:
        reports = together(
            _train,
            dataclasses.replace(told, folder=folder),
            train.parallel.processes,
            what="the fit",
            hear=lambda _, step: progress.step("train", *step[:2], tokens=step[2]),
        )
        missing, unexpected = lm.model.load_state_dict(load_file(folder / TRAINED), strict=False)
        assert not unexpected
        assert not {*missing} & _names(lm.model)
    report: FitReport = reports[0]
    return report


def regenerate(
    lm: CausalLM,
    samples: np.ndarray,
    settings: RegenerateOptions,
    team: Team,
    *,
    seed: int,
    progress: Progress,
) -> np.ndarray:
    """`samples` rewritten as `lm` does by itself: each process writes a part of the blocks.

    What is written does not depend on the number of processes. Each process holds all weights.

    Raises:
        InputError: As of `CausalLM.regenerate`; or there are too few accelerators.
        RunFailed: A process was killed.
    """
    check(team.options)
    count = team.options.processes
    steps: dict[int, tuple[int, int]] = {}

    def hear(number: int, step: tuple[int, int]) -> None:
        steps[number] = step
        if len(steps) == count:  # before, the total is not known
            done, total = map(sum, zip(*steps.values(), strict=True))
            progress.step("rewrite", done, total, tokens=done)

    with _given(lm, samples, team.workdir) as folder:
        task = _Rewrite(folder, _dtype(lm), lm.special, settings, seed)
        together(_rewrite, task, count, what="the rewriting", hear=hear)
        out = samples.copy()
        for number in range(count):
            part = np.load(folder / _part(number))
            out = np.where(part != samples, part, out)
    return out


@contextmanager
def _given(lm: CausalLM, samples: np.ndarray, workdir: Path) -> Iterator[Path]:
    """A folder with model and text, while the model itself leaves its accelerator to others."""
    folder = workdir / "parallel"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        lm.save(folder / MODEL)
        np.save(folder / SAMPLES, samples)
        lm.model.to("cpu")
        if lm.device.type == "cuda":
            torch.cuda.empty_cache()
        yield folder
    finally:
        lm.model.to(lm.device)
        shutil.rmtree(folder, ignore_errors=True)


def _dtype(lm: CausalLM) -> loading.Dtype:
    return cast(loading.Dtype, str(lm.model.dtype).removeprefix("torch."))


def _names(model: nn.Module) -> set[str]:
    """Of the weights: those that are tied have several in the state, and one here."""
    return {name for name, _ in (*model.named_parameters(), *model.named_buffers())}


def _part(number: int) -> str:
    return f"part-{number}.npy"


# --- in each process --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Given:
    """What both kinds of work need.

    Attributes:
        folder: With model and text.
        dtype: Of the weights.
        special: The model's special tokens.
    """

    folder: Path
    dtype: loading.Dtype
    special: SpecialTokens

    def model(self) -> PreTrainedModel:
        """As it was given, on the CPU."""
        return loading.read(self.folder / MODEL, self.dtype)[1]

    def samples(self) -> np.ndarray:
        """As they were given."""
        read: np.ndarray = np.load(self.folder / SAMPLES)
        return read


@dataclasses.dataclass(frozen=True)
class _Fit(_Given):
    """What `_train` is told."""

    weight: AnyWeight
    train: TrainOptions
    seed: int


@dataclasses.dataclass(frozen=True)
class _Rewrite(_Given):
    """What `_rewrite` is told."""

    settings: RegenerateOptions
    seed: int


class _Heard(Silent):
    """Progress that is told to the caller."""

    def __init__(self, tell: Callable[[tuple[int, int, int]], None]) -> None:
        self._tell = tell
        self.tokens = 0

    def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
        self.tokens = tokens
        self._tell((done, total, tokens))


def _train(rank: Rank, task: _Fit, tell: Tell) -> FitReport | None:
    """Train with the others; the first process writes the weights and has the report."""
    parallel = task.train.parallel
    assert parallel is not None
    with rank.joined():
        mesh = None
        if parallel.kind == "fsdp":
            mesh = init_device_mesh(rank.device.type, (rank.count,))
        # so that the machine's memory holds one more copy at a time, however many they are
        model = rank.in_turn(lambda: _placed(task.model(), rank.device, mesh))
        report = training.fit(
            model,
            training.Blocks(task.samples(), task.train.block, task.special.front),
            task.weight,
            task.train,
            seed=task.seed,
            workdir=task.folder.parent,
            hooks=training.Hooks(Silent() if rank.number else _Heard(tell)),
        )
        state = _whole(model, keep=not rank.number)
    if rank.number:
        return None
    save_file(state, task.folder / TRAINED)
    return report


def _placed(
    model: PreTrainedModel, device: torch.device, mesh: DeviceMesh | None
) -> PreTrainedModel:
    """The model on its device, or this process's share of it."""
    if mesh is None:
        return model.to(device)
    HiddenStateLoss(model, Keep())  # is tried here, where it is whole
    units = set(model._no_split_modules or ())
    for module in [*model.modules()]:
        if type(module).__name__ in units:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _whole(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """All weights on the CPU, each once, where they are to be kept; all help to collect them."""
    names, out = _names(model), {}
    for name, value in model.state_dict().items():
        if name in names:
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            if keep:
                out[name] = whole.detach().cpu().contiguous()
    return out


def _rewrite(rank: Rank, task: _Rewrite, tell: Tell) -> None:
    """Write this process's part of the text into a file."""
    model = rank.in_turn(lambda: _placed(task.model(), rank.device, None)).eval()
    samples = task.samples()
    rewrite = (
        blocks.regenerate_blocks
        if task.settings.mode == "blocks"
        else documents.regenerate_documents
    )
    heard = _Heard(lambda step: tell(step[:2]))
    out = rewrite(
        model,
        samples,
        task.settings,
        task.special,
        seed=task.seed,
        progress=heard,
        part=blocks.Part(rank.number, rank.count),
    )
    np.save(task.folder / _part(rank.number), out)
    tell((heard.tokens, heard.tokens))  # of one that had nothing to write, too
