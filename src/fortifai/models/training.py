"""Training a causal language model with a confidence weight, through transformers' Trainer."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from fortifai.errors import InputError, RunFailed
from fortifai.integrations.transformers import ConfidenceTrainer
from fortifai.models.scoring import positions

if TYPE_CHECKING:
    from fortifai.confidence import AnyWeight
    from fortifai.config import TrainConfig
    from fortifai.loop.progress import Progress

CHECK_EVERY = 16
"""On an accelerator losses are looked at this often: each look waits for the device."""


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
    """

    loss: float
    truncated_share: float
    steps: int
    tokens: int
    seconds: float
    epochs: list[dict[str, Any]]


class Blocks(Dataset[Tensor]):
    """A token stream cut into rows of one length, handed out a batch at a time.

    The tokens after the last whole row are left out; a stream shorter than one row is one row.

    Args:
        samples: (n,) token ids.
        block: Tokens of a row, those of `front` among them.
        front: What stands before every row: bos, or nothing.
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


def _collate(rows: Tensor | list[Tensor]) -> dict[str, Tensor]:
    batch = rows if isinstance(rows, Tensor) else torch.stack(rows)
    return {"input_ids": batch, "labels": batch}


def fit(
    model: PreTrainedModel,
    samples: np.ndarray,
    weight: AnyWeight,
    train: TrainConfig,
    *,
    front: Sequence[int] = (),
    seed: int,
    workdir: Path,
    select: Callable[[], float] | None,
    progress: Progress,
) -> FitReport:
    """Train `model` in place on a token stream.

    The stream is cut into rows of `train.block` tokens, those of `front` among them (what is left
    over at its end is not trained on), drawn in an order that `seed` decides. All randomness comes
    from `seed`; the global random states are left as they were. Nothing is written outside
    `workdir`, and there only by the services named in `train.report_to`.

    Args:
        model: The model, with the weights to start from; trained on the device where it is.
        samples: (n,) token ids.
        weight: The confidence weight of the loss.
        train: Epochs, batch, learning rate and the rest.
        front: What stands before every row and is no target: bos, or nothing.
        seed: Of the data order and of dropout.
        workdir: Folder for what reporting services write.
        select: Scores the model after each epoch, higher is better; the weights of the best
            epoch (the earliest of equals) are put back at the end. Needed unless
            `train.checkpoint` is ``last``, and not called then.
        progress: Told after each optimizer step.

    Raises:
        InputError: The stream has fewer than 2 tokens, `block` is longer than the model reads, or
            the loss cannot be had from the model's hidden states (see `HiddenStateLoss`).
        RunFailed: The loss is not finite; names the step.
    """
    _check(model, train, select)
    select = None if train.checkpoint == "last" else select
    blocks = Blocks(samples, train.block, front)
    watch = _Watch(blocks, train, progress, select, model)
    began = time.perf_counter()
    use_cache = model.config.use_cache
    with _global_random_state_kept():
        trainer = _Recorded(
            model=model,
            args=_arguments(model, train, seed=seed, workdir=workdir),
            weight=weight,
            normalize=train.normalize,
            label_smoothing=train.label_smoothing,
            confidence_penalty=train.confidence_penalty,
            z_loss=train.z_loss,
            gem_beta=train.gem_beta,
            data_collator=_collate,
            train_dataset=blocks,
            callbacks=[watch],
        )
        watch.trainer = trainer
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        finally:
            # Trainer switches the cache off in the model's configuration, and leaves it off
            model.config.use_cache = use_cache
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
    )


def _check(model: PreTrainedModel, train: TrainConfig, select: Callable[[], float] | None) -> None:
    if train.block > positions(model):
        raise InputError(
            f"train.block is {train.block}, but the model reads {positions(model)} tokens at most; "
            "lower it"
        )
    if train.checkpoint != "last" and select is None:
        raise InputError(
            f"train.checkpoint is {train.checkpoint!r}, but there is nothing to select by; give "
            "held-out text or questions, or use 'last'"
        )


def _arguments(
    model: PreTrainedModel, train: TrainConfig, *, seed: int, workdir: Path
) -> TrainingArguments:
    reports = list(train.report_to)
    args = TrainingArguments(
        output_dir=str(workdir),
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type="constant_with_warmup"
        if train.schedule == "constant"
        else train.schedule,
        warmup_steps=train.warmup_share,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=uses_bf16(train, model.device),
        optim="adamw_torch_fused",
        seed=seed,
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


def uses_bf16(train: TrainConfig, device: torch.device) -> bool:
    """Whether the forward pass runs under bf16 autocast (weights stay as they are, fp32)."""
    if train.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return train.precision == "bf16"


class _Recorded(ConfidenceTrainer):
    """The trainer, remembering what its loss was since the last step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parts: list[Tensor] = []

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        value = super().compute_loss(*args, **kwargs)
        self.parts.append(value.detach())
        return value

    def pop(self) -> Tensor:
        """Loss of the step: its micro-batches are scaled so that they add up to it."""
        total = torch.stack(self.parts).sum()
        self.parts.clear()
        return total


class _Watch(TrainerCallback):
    """Reports progress and epochs, stops at a loss that is not finite, keeps the best weights."""

    def __init__(
        self,
        blocks: Blocks,
        train: TrainConfig,
        progress: Progress,
        select: Callable[[], float] | None,
        model: PreTrainedModel,
    ) -> None:
        self.trainer: _Recorded  # given when it is there: it takes this watch when it is made
        self.train, self.progress = train, progress
        self.select, self.model = select, model
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
        kept = self.trainer.confidence.pop_kept_share()
        record: dict[str, Any] = {
            "epoch": len(self.epochs) + 1,
            "loss": float(torch.stack(self.losses).mean()),
            "truncated_share": 1.0 - float(kept),
            # the last one is shorter where the number of epochs is no whole one
            "tokens": round(self.epoch_tokens * min(1, self.train.epochs - len(self.epochs))),
        }
        self.losses, self.looked = [], 0
        if self.select is not None:
            with _global_random_state_kept():
                score = self.select()
            better = score > self.best[0] or self.best[1] is None
            if better:
                state_dict = self.model.state_dict()
                self.best = (
                    score if score == score else -math.inf,
                    {k: v.detach().to("cpu", copy=True) for k, v in state_dict.items()},
                )
            record |= {"score": score, "kept": better}
        self.epochs.append(record)

    def restore_best(self) -> None:
        """Put the weights of the best epoch back; does nothing where none was selected."""
        if self.best[1] is not None:
            self.model.load_state_dict(self.best[1])
            self.best = (self.best[0], None)


def _looks_each_step(device: torch.device) -> bool:
    return device.type == "cpu"


@contextlib.contextmanager
def _global_random_state_kept() -> Iterator[None]:
    """Give the global random generators back as they were: Trainer seeds them all."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002
