"""The losses in Lightning: `HiddenStateLoss` in `training_step`, and its kept share in the logs."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError(
        "fortifai.integrations.lightning needs the package lightning; "
        "pip install 'fortifai[lightning]'"
    ) from error

from fortifai.integrations.counting import Counted, KeptShare


class LogKeptShare(Callback):
    """Logs ``kept_share`` of each batch, as Lightning logs what `training_step` does.

        class Module(LightningModule):
            def __init__(self, model):
                super().__init__()
                self.model = model
                self.compute = HiddenStateLoss(model, threshold=0.9)

            def training_step(self, batch, _):
                return self.compute(self.model, batch)

        Trainer(callbacks=[LogKeptShare(module.compute)])

    Of several processes it is the main one's share. Over more than a batch:
    `compute.pop_kept_share()`, where you want it.
    """

    def __init__(self, compute: Counted) -> None:
        self._share = KeptShare()
        compute.shares.append(self._share)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Logs the share of the batch; Lightning writes it down every `log_every_n_steps`."""
        sums = self._share.pop()
        if sums is not None:
            pl_module.log("kept_share", (sums[0] / sums[1]).float())
