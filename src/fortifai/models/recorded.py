"""transformers' Trainer for a fit: alone, or one of several processes that train together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader

from fortifai.integrations.counting import KeptShare, share_of
from fortifai.integrations.transformers import ConfidenceTrainer
from fortifai.losses.weighing import LossStats

IGNORED = -100


def collate(rows: Tensor | list[Tensor]) -> dict[str, Tensor]:
    """A batch of rows of tokens, each its own labels."""
    batch = rows if isinstance(rows, Tensor) else torch.stack(rows)
    return {"input_ids": batch, "labels": batch}


def collate_part(rows: Any, *, collate: Callable[[Any], Any], number: int, count: int) -> Any:
    """Of a batch the rows of one of several processes, the same number each or one more.

    One that is left without a row has the first, with no label that counts: all processes go
    through model and gradients together.
    """
    few = rows[number * len(rows) // count : (number + 1) * len(rows) // count]
    if len(few):
        return collate(few)
    batch = collate(rows[:1])
    return batch | {"labels": torch.full_like(batch["labels"], IGNORED)}


class _Share(KeptShare):
    """What was kept, and what the last micro-batch was."""

    last: LossStats

    def add(self, stats: LossStats) -> None:
        """Adds those of a micro-batch."""
        super().add(stats)
        self.last = stats


class Recorded(ConfidenceTrainer):
    """The trainer, remembering what its loss and what it kept were.

    Of several processes each is handed the batches that one alone would be, in the same order, and
    reads its rows of each. The loss is divided by the labels (with ``kept`` by the sum of weights)
    of the whole batch, so gradients add up to those of one process.

    A model that is sharded by FSDP2 already is left as it is: it has its place, and reduces its
    gradients itself.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.parts: list[Tensor] = []
        super().__init__(*args, **kwargs)
        self.share = _Share()
        self.confidence.shares.append(self.share)
        if any(hasattr(parameter, "full_tensor") for parameter in self.model.parameters()):
            prepare = self.accelerator.prepare_model
            # autocast alone
            self.accelerator.prepare_model = lambda model, **_: prepare(
                model, device_placement=False, evaluation_mode=True
            )

    @property
    def processes(self) -> int:
        """How many train together."""
        return int(self.accelerator.num_processes)

    @property
    def _by_kept(self) -> bool:
        return self.confidence.options.normalize == "kept"

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Of several processes: all batches in the order of one process, a part of each."""
        if self.processes == 1:
            return super().get_train_dataloader()
        part = functools.partial(
            collate_part,
            collate=self.data_collator,
            number=self.accelerator.process_index,
            count=self.processes,
        )
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            shuffle=True,
            collate_fn=part,
            pin_memory=self.args.dataloader_pin_memory,
        )
        # the same order, by accelerate's own sampler; nothing is left for it to part
        return prepare_data_loader(
            loader,
            num_processes=1,
            process_index=0,
            use_seedable_sampler=True,
            data_seed=self.args.data_seed,
        )

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As `ConfidenceTrainer`'s; remembers it."""
        value = super().compute_loss(*args, **kwargs)
        if self.processes > 1 and self._by_kept:
            value = value * self._of_all_kept()
        self.parts.append(value.detach())
        return value

    def _of_all_kept(self) -> Tensor:
        """What makes a loss per own weight, times own labels, one per weight of all processes.

        With L = sum of w * loss, K = sum of w and V labels of one process, the trainer gives
        L / K * V; of all processes it is sum L / sum K * sum V. Weights carry no gradient here:
        `fortifai.models.parallel` refuses others.
        """
        stats = self.share.last
        own = torch.stack((stats.kept, stats.valid.to(stats.kept)))
        kept, valid = self.accelerator.reduce(own, reduction="sum")
        ratio = own[0] * valid / (kept * own[1])
        return torch.where((own[0] > 0) & (own[1] > 0), ratio, 0.0)

    def pop(self) -> Tensor:
        """Loss of the step: its micro-batches are scaled so that they add up to it."""
        total = torch.stack(self.parts).sum()
        self.parts.clear()
        # each process's is scaled for the mean of all gradients
        loss: Tensor = self.accelerator.reduce(total, reduction="mean")
        return loss

    def pop_kept_share(self) -> float:
        """Sum of weights over labels, of all processes, since the last call; NaN for none."""
        sums = self.share.pop()
        if sums is None:
            return float("nan")
        return share_of(self.accelerator.reduce(sums, reduction="sum"))
