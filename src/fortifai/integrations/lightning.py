"""The losses in Lightning: `HiddenStateLoss` in `training_step`, its divisor and kept share."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError(
        "fortifai.integrations.lightning needs the package lightning; "
        "pip install 'fortifai[lightning]'"
    ) from error

import torch
from torch import Tensor

from fortifai.errors import InputError
from fortifai.integrations.counting import Counted, KeptShare
from fortifai.losses.weighing import LossStats


class WholeBatch(Callback):
    """Divides the loss by the labels of the whole batch: all micro-batches, all processes.

        Trainer(accumulate_grad_batches=4, callbacks=[WholeBatch(module.compute)])

    Without it each micro-batch is divided by its own labels, and Lightning takes the mean of these
    means over micro-batches and processes, in which a label of a short text counts more than one
    of a long one. How many labels a batch has is known at its end only. So gradients are summed
    over the labels, up to a factor that is one for all, and divided by their number before the
    optimizer's step and the clipping. With ``normalize="kept"`` each micro-batch counts in
    proportion to its labels; with ``weight_sum`` the sums of the data's weights stand for the
    numbers of labels. What `training_step` returns keeps its value, the mean over the
    labels of the micro-batch; it must be what `compute` gave, called without a number of labels:
    anything added to it would be divided, too.

    For automatic optimization, on one device or with DDP. FSDP averages gradients likewise; it has
    not been tried.

    Raises:
        InputError: In `fit`, for manual optimization, where ``compute(model, batch, n)`` does it;
            or for DeepSpeed, which keeps the gradients to itself.
    """

    def __init__(self, compute: Counted) -> None:
        self._compute = compute
        self._trainer: Any = None
        self._unit: Tensor | None = None
        self._items: Tensor | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Checks that it can be done, and begins."""
        if not pl_module.automatic_optimization:
            raise InputError(
                "WholeBatch is for automatic optimization; with automatic_optimization = False "
                "leave it out, and give the labels of the whole batch: compute(model, batch, n)"
            )
        if "DeepSpeed" in type(trainer.strategy).__name__:
            raise InputError(
                "WholeBatch divides gradients before the optimizer's step, and DeepSpeed keeps "
                "them to itself; use DDP or FSDP, or leave WholeBatch out"
            )
        self._trainer = trainer
        self._unit = self._items = None
        self._compute.whole = self._loss

    def _loss(self, total: Tensor, stats: LossStats) -> Tensor:
        if self._unit is None:
            # About the labels of a micro-batch, so that sums of gradients stay in the range of
            # half precision; the same everywhere and always, or it would not cancel
            labels = self._trainer.strategy.reduce(stats.valid.to(total.dtype), reduce_op="sum")
            self._unit = (labels / self._trainer.world_size).clamp(min=1)
        items = self._compute.items(stats)
        self._items = items if self._items is None else self._items + items
        mean = total / torch.where(items > 0, items, torch.ones_like(items))
        slope = total / self._unit
        return slope + (mean - slope).detach()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Divides the gradients by the labels since the last step."""
        if self._items is None or self._unit is None:
            return
        items = trainer.strategy.reduce(self._items.to(self._unit.dtype), reduce_op="sum")
        # what Lightning and the average over processes have divided by already
        before = self._unit * trainer.accumulate_grad_batches * trainer.world_size
        factor = before / torch.where(items > 0, items, torch.ones_like(items))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor.to(parameter.grad.device))
        self._items = None

    def on_fit_end(self, *_: Any) -> None:
        """Leaves the loss as it was."""
        self._compute.whole = None

    def on_exception(self, *_: Any) -> None:
        """The same where training broke off."""
        self._compute.whole = None


class LogKeptShare(Callback):
    """Logs ``kept_share``: of all batches since Lightning last wrote down, and of all processes.

        class Module(LightningModule):
            def __init__(self, model):
                super().__init__()
                self.model = model
                self.compute = HiddenStateLoss(model, threshold=0.9)

            def training_step(self, batch, _):
                return self.compute(self.model, batch)

        Trainer(callbacks=[LogKeptShare(module.compute)])

    Lightning writes it down every `log_every_n_steps`; in between, on the progress bar and in
    `callback_metrics`, it is that of the main process so far. It is a sum of weights over a number
    of labels, not a mean of shares: batches count by their labels.
    """

    def __init__(self, compute: Counted) -> None:
        self._share = KeptShare()
        self._so_far: Tensor | None = None
        self._step = 0
        compute.shares.append(self._share)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Notes where training begins."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Logs the share at each step of the optimizer."""
        if trainer.global_step == self._step:  # a micro-batch, of which Lightning writes nothing
            return
        self._step = trainer.global_step
        sums = self._share.pop()
        if sums is None:
            return
        if self._so_far is not None:
            sums = self._so_far + sums
        self._so_far = sums
        if trainer.log_every_n_steps and self._step % trainer.log_every_n_steps == 0:
            sums = trainer.strategy.reduce(sums.clone(), reduce_op="sum")
            self._so_far = None
        pl_module.log("kept_share", (sums[0] / sums[1]).float())
