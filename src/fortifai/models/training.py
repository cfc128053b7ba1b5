"""Training a causal language model with a confidence weight, through transformers' Trainer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from fortifai.errors import InputError, RunFailed
from fortifai.lab.seeds import derive
from fortifai.models import compiled, lora
from fortifai.models.lora import Adapter
from fortifai.models.recorded import Recorded, collate
from fortifai.models.scoring import positions

if TYPE_CHECKING:
    from fortifai.lab.progress import Progress
    from fortifai.models.options import TrainOptions
    from fortifai.weights import AnyWeight

CHECK_EVERY = 16
"""On an accelerator losses are looked at this often: each look waits for the device."""

TOKENS_AT_ONCE = 512
"""Of a batch under LoRA on a CPU, and half of its rows at most; with more, products of matrices are
hardly faster, and what is kept for the backward takes more than half of full fine-tuning's memory.
"""


@dataclasses.dataclass(frozen=True)
class FitReport:
    """What one fit did.

    Attributes:
        loss: Mean training loss of the last epoch, in nats per token, as the weight and
            `normalize` define it.
        truncated_share: Mean of 1 - weight over all tokens of the whole fit.
        steps: Optimizer steps.
        tokens: Tokens of the stream that were read, all epochs together.
        seconds: Wall time.
        epochs: For each epoch ``epoch``, ``loss``, ``truncated_share``, ``tokens`` and, where a
            checkpoint was selected, ``score`` and ``kept`` (whether it was the best so far).
        adapter: What was trained, and merged into the model, under `train.lora`.
    """

    loss: float
    truncated_share: float
    steps: int
    tokens: int
    seconds: float
    epochs: list[dict[str, Any]]
    adapter: Adapter | None = None


class Blocks(Dataset[Tensor]):
    """A token stream cut into rows of one length, handed out a batch at a time.

    The tokens after the last whole row are left out; a stream shorter than one row is one row.

    Args:
        samples: (n,) token ids.
        block: Tokens of a row, those of `front` among them.
        front: What stands before every row and is no target: bos, or nothing.

    Raises:
        InputError: There are fewer than 2 tokens.
    """

    def __init__(self, samples: np.ndarray, block: int, front: Sequence[int] = ()) -> None:
        if len(samples) < 2:
            raise InputError(
                f"the training text has {len(samples)} tokens; it needs at least 2, so give a "
                "longer corpus"
            )
        width = min(block - len(front), len(samples))
        rows = len(samples) // width
        text = torch.from_numpy(samples[: rows * width].astype(np.int64)).view(rows, width)
        # no target: what a token is predicted from is the one to its left, and bos has none
        before = torch.tensor(front, dtype=torch.int64).expand(rows, -1)
        self.rows = torch.cat([before, text], dim=1)
        self.tokens = text.numel()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """The rows of one batch in one indexing, (len(indices), block) int64."""
        return self.rows[indices]


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What is called during a fit.

    Attributes:
        progress: Told after each optimizer step.
        select: Scores the model after each epoch, higher is better; the weights of the best
            epoch (the earliest of equals) are put back at the end. Needed unless
            `TrainOptions.checkpoint` is ``last``, and not called then.
    """

    progress: Progress
    select: Callable[[], float] | None = None


def fit(
    model: PreTrainedModel,
    blocks: Blocks,
    weight: AnyWeight,
    train: TrainOptions,
    *,
    seed: int,
    workdir: Path,
    hooks: Hooks,
    adapter: Adapter | None = None,
) -> FitReport:
    """Train `model` in place on rows of tokens, drawn in an order that `seed` decides.

    All randomness comes from `seed`; the global random states are left as they were. Nothing is
    written outside `workdir`, and there only by the services named in `train.report_to`.

    In a process group all processes train together; `fortifai.models.parallel` starts one.

    Args:
        model: The model, with the weights to start from; trained on the device where it is.
        blocks: The rows, of `train.block` tokens.
        weight: The confidence weight of the loss.
        train: Epochs, batch, learning rate and the rest.
        seed: Of the data order and of dropout.
        workdir: Folder for what reporting services write.
        hooks: What is called after a step and after an epoch.
        adapter: Under `train.lora`, one of this model to train on, instead of a new one.

    Raises:
        InputError: `train.block` is longer than the model reads, the weights are of half precision,
            machine or model have not what `train.precision` or `train.compile` needs, the loss
            cannot be had from the model's hidden states (see `HiddenStateLoss`), or the adapters of
            `train.lora` do not fit the model.
        RunFailed: The loss is not finite; names the step.
    """
    check(model, train, hooks.select)
    if train.compile and hooks.select is not None:
        hooks = dataclasses.replace(hooks, select=compiled.plainly(model, hooks.select))
    watch = _Watch(blocks, train, hooks, model)
    began = time.perf_counter()
    with _prepared(model, train, adapter, seed) as adapters:
        trainer = Recorded(
            model=model,
            args=_arguments(model, train, seed=seed, workdir=workdir),
            weight=weight,
            normalize=train.normalize,
            **train.terms,
            data_collator=collate,
            train_dataset=blocks,
            callbacks=[watch],
        )
        watch.trainer = trainer
        trainer.remove_callback(PrinterCallback)
        try:
            # not before: the trainer has tried the model on two tokens, which is another graph
            with compiled.layers(model, train.compile):
                trainer.train()
        finally:
            model.zero_grad(set_to_none=True)
            model.eval()
            del watch.trainer  # each held the other, and both the optimizer's memory
        watch.restore_best()
    return FitReport(
        loss=watch.epochs[-1]["loss"],
        truncated_share=float(np.mean([e["truncated_share"] for e in watch.epochs])),
        steps=int(trainer.state.global_step),
        tokens=sum(e["tokens"] for e in watch.epochs),
        seconds=time.perf_counter() - began,
        epochs=watch.epochs,
        adapter=adapters[0] if adapters else None,
    )


@contextlib.contextmanager
def _prepared(
    model: PreTrainedModel, train: TrainOptions, adapter: Adapter | None, seed: int
) -> Iterator[list[Adapter]]:
    """What a fit changes for its time alone; yields what `lora.training` does, empty without."""
    with random_state_kept(), _without_cache(model):
        if train.lora is None:
            yield []
            return
        torch.manual_seed(seed)
        with lora.training(model, train.lora, adapter) as adapters, _gradients_in_place(model):
            yield adapters


@contextlib.contextmanager
def _gradients_in_place(model: PreTrainedModel) -> Iterator[None]:
    """Gradients stay where they are from step to step, and are there before the first.

    Made anew in a backward pass they lie between what that pass frees, and what is left between
    them is too small for the activations of the next: a tenth of a fit's memory under LoRA.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    model.zero_grad = functools.partial(type(model).zero_grad, model, set_to_none=False)
    try:
        yield
    finally:
        del model.zero_grad


def check(model: PreTrainedModel, train: TrainOptions, select: Callable[[], float] | None) -> None:
    """Raise `InputError` where `fit` would before it begins."""
    compiled.check(train, model.device)
    if train.block > positions(model):
        raise InputError(
            f"train.block is {train.block}, but the model reads {positions(model)} tokens at most; "
            "lower it"
        )
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    halves = sorted(dtypes & {"bfloat16", "float16"})
    if getattr(model, "quantization_method", None) is not None:
        raise InputError(
            "the weights of the model are quantised, so they cannot be trained; give the "
            "checkpoint that was quantised, or a GGUF file of it"
        )
    if halves:
        raise InputError(
            f"the weights of the model are {', '.join(halves)}, in which most steps of "
            "AdamW round to nothing; load it with dtype float32, and train.precision bf16 for the "
            "speed"
        )
    if train.checkpoint != "last" and select is None:
        raise InputError(
            f"train.checkpoint is {train.checkpoint!r}, but there is nothing to select by; give "
            "held-out text or questions, or use 'last'"
        )


def _arguments(
    model: PreTrainedModel, train: TrainOptions, *, seed: int, workdir: Path
) -> TrainingArguments:
    reports = list(train.report_to)
    rows = _rows_at_once(model, train)
    rank = dist.get_rank() if dist.is_initialized() else 0
    args = TrainingArguments(
        output_dir=str(workdir),
        num_train_epochs=train.epochs,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=train.gradient_accumulation * (train.batch_size // rows),
        learning_rate=train.learning_rate,
        lr_scheduler_type="constant_with_warmup"
        if train.schedule == "constant"
        else train.schedule,
        warmup_steps=train.warmup_share,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=uses_bf16(train, model.device),
        optim="adamw_torch_fused",
        # dropout of its own for each of several processes; all know the order of the data
        seed=derive(seed, "process", rank) if rank else seed,
        data_seed=seed,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="steps" if reports else "no",
        logging_steps=10,
        # with the filter on, every step waits for the device and hides what we look for
        logging_nan_inf_filter=False,
        report_to=reports or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=model.device.type == "cuda",
        use_cpu=model.device.type == "cpu",
    )
    _ = args.device  # sets n_gpu, which would otherwise wrap the model for all GPUs at hand
    args._n_gpu = min(args.n_gpu, 1)
    return args


def _rows_at_once(model: PreTrainedModel, train: TrainOptions) -> int:
    """Rows of a batch that are read at once: under LoRA on a CPU a half at most.

    Without gradients and an optimizer's state for the weights, what is kept for the backward is
    most of the memory. The gradients of pieces add up to the batch's where each label counts the
    same, which ``kept`` does not know before its end.
    """
    if train.lora is None or train.normalize != "valid" or model.device.type != "cpu":
        return train.batch_size
    few = max(1, min(TOKENS_AT_ONCE // train.block, train.batch_size // 2))
    return max(n for n in range(1, train.batch_size + 1) if train.batch_size % n == 0 and n <= few)


def uses_bf16(train: TrainOptions, device: torch.device) -> bool:
    """Whether the forward pass runs under bf16 autocast (weights stay as they are, fp32)."""
    if train.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return train.precision == "bf16"


class _Watch(TrainerCallback):
    """Reports progress and epochs, stops at a loss that is not finite, keeps the best weights."""

    def __init__(
        self,
        blocks: Blocks,
        train: TrainOptions,
        hooks: Hooks,
        model: PreTrainedModel,
    ) -> None:
        self.trainer: Recorded  # given when it is there: it takes this watch when it is made
        self.train, self.progress, self.model = train, hooks.progress, model
        self.select = None if train.checkpoint == "last" else hooks.select
        self.epochs: list[dict[str, Any]] = []
        self.epoch_tokens = blocks.tokens
        self.losses: list[Tensor] = []  # of this epoch's steps
        self.looked = 0
        self.best: tuple[float, dict[str, Tensor] | None] = (-math.inf, None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.losses.append(self.trainer.pop())
        waiting = len(self.losses) - self.looked
        if waiting >= CHECK_EVERY or _looks_each_step(self.model.device):
            self._look(state.global_step)
        done = state.global_step
        tokens = round(self.epoch_tokens * self.train.epochs * done / max(1, state.max_steps))
        self.progress.step("train", done, state.max_steps, tokens=tokens)

    def _look(self, step: int) -> None:
        """Raise if a loss not yet looked at is not finite."""
        new = torch.stack(self.losses[self.looked :])
        self.looked = len(self.losses)
        bad = torch.nonzero(~torch.isfinite(new)).flatten().tolist()
        if bad:
            raise RunFailed(
                f"the training loss became {new[bad[0]].item()} at step "
                f"{step - len(new) + 1 + bad[0]}; lower train.learning_rate (now "
                f"{self.train.learning_rate:g}) or train.max_grad_norm, or use precision fp32"
            )

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if len(self.losses) > self.looked:
            self._look(state.global_step)
        kept = self.trainer.pop_kept_share()
        record: dict[str, Any] = {
            "epoch": len(self.epochs) + 1,
            "loss": float(torch.stack(self.losses).mean()),
            "truncated_share": 1.0 - kept,
            # the last one is shorter where the number of epochs is no whole one
            "tokens": round(self.epoch_tokens * min(1, self.train.epochs - len(self.epochs))),
        }
        self.losses, self.looked = [], 0
        if self.select is not None:
            with random_state_kept():
                score = self.select()
            better = score > self.best[0] or self.best[1] is None
            if better:
                self.best = (
                    score if score == score else -math.inf,
                    {k: v.detach().to("cpu", copy=True) for k, v in self._changing().items()},
                )
            record |= {"score": score, "kept": better}
        self.epochs.append(record)

    def _changing(self) -> dict[str, Tensor]:
        """The model's state without what is not trained: under LoRA its adapters alone."""
        named = self.model.named_parameters(remove_duplicate=False)
        frozen = {name for name, parameter in named if not parameter.requires_grad}
        return {k: v for k, v in self.model.state_dict().items() if k not in frozen}

    def restore_best(self) -> None:
        """Put the weights of the best epoch back; does nothing where none was selected."""
        if self.best[1] is not None:
            self.model.load_state_dict(self.best[1], strict=False)
            self.best = (self.best[0], None)


def _looks_each_step(device: torch.device) -> bool:
    return device.type == "cpu"


@contextlib.contextmanager
def _without_cache(model: PreTrainedModel) -> Iterator[None]:
    """No cache of keys in training, and the configuration as it was afterwards.

    Trainer switches the cache off in the configuration at the top and leaves it off; one of text
    and images has its own, which the text part goes by, a level below.
    """
    configs = [model.config, model.config.get_text_config(decoder=True)]
    before = [vars(config).get("use_cache") for config in configs]
    configs[-1].use_cache = False
    try:
        yield
    finally:
        for config, use_cache in zip(configs, before, strict=True):
            if use_cache is not None:
                config.use_cache = use_cache
            else:
                vars(config).pop("use_cache", None)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Give the global random generators back as they were: Trainer, for one, seeds them all."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002
