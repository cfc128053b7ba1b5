"""`HiddenStateLoss` in Lightning's `training_step`, and what its callback logs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from fortifai.integrations.hidden_states import HiddenStateLoss
from fortifai.integrations.lightning import LogKeptShare

from .tiny import batch_of, build, furthest, ragged, weights_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .*dataloader.* does not have many workers",
    # Lightning 2.6 uses what torch 2.13 renamed
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
)


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = build()
        self.compute = HiddenStateLoss(self.model, threshold=0.05)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.compute(self.model, batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.parameters(), lr=0.1)


def test_as_a_plain_loop(tmp_path: Path) -> None:
    data = DataLoader(ragged(8), batch_size=4, collate_fn=batch_of)
    module = Module()
    logger = CSVLogger(tmp_path)
    Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        callbacks=[LogKeptShare(module.compute)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, data)

    model = build()
    compute = HiddenStateLoss(model, threshold=0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shares = []
    for _ in range(2):
        for batch in data:
            compute(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            shares.append(compute.pop_kept_share())
    assert furthest(weights_of(module.model), weights_of(model)) == 0  # the same operations
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        logged = [float(row["kept_share"]) for row in csv.DictReader(file)]
    assert logged == pytest.approx(shares, abs=1e-7)  # logged in fp32
    assert min(shares) < 1
    # of all four batches, which are not of one size
    assert min(shares) < module.compute.pop_kept_share() < max(shares)
