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

from fortifai.errors import InputError
from fortifai.integrations.hidden_states import HiddenStateLoss
from fortifai.integrations.lightning import LogKeptShare, WholeBatch
from fortifai.weights import Focal

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


def fitted(module: LightningModule, data: Any, **settings: Any) -> Trainer:
    run = Trainer(
        **{
            "max_epochs": 1,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **settings,
        }
    )
    run.fit(module, data)
    return run


class Told(Module):
    """Notes what the optimizer would step by, and the value of each loss."""

    def __init__(self, **choice: Any) -> None:
        super().__init__()
        self.compute = HiddenStateLoss(self.model, **(choice or {"threshold": 0.05}))
        self.gradients: list[torch.Tensor] = []
        self.values: list[float] = []

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        value = super().training_step(batch, _)
        self.values.append(value.item())
        return value

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.gradients.append(flat(self.model))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.parameters(), lr=0.0)


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


ROWS = ragged(6)  # with four micro-batches a step, the last step has two


def of_whole_batches(normalize: Any = "valid", clip: float | None = None) -> list[torch.Tensor]:
    model = build()
    found = []
    for rows in (ROWS[:4], ROWS[4:]):
        compute = HiddenStateLoss(model, threshold=0.05, normalize=normalize)
        if normalize == "valid":
            compute(model, batch_of(rows)).backward()
        else:
            n = sum(int((row["labels"][1:] != -100).sum()) for row in rows)
            for row in rows:
                compute(model, batch_of([row]), n).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        found.append(flat(model).clone())
        model.zero_grad()
    return found


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


SINGLE = [batch_of([row]) for row in ROWS]


def loader(batches: Any) -> Any:
    return DataLoader(batches, batch_size=None)


@pytest.mark.parametrize("normalize", ["valid", "kept"])
def test_four_of_one_are_one_of_four(normalize: Any) -> None:
    module = Told(threshold=0.05, normalize=normalize)
    fitted(
        module, loader(SINGLE), accumulate_grad_batches=4, callbacks=[WholeBatch(module.compute)]
    )
    expected = of_whole_batches(normalize)
    assert len(module.gradients) == len(expected) == 2
    for one, other in zip(module.gradients, expected, strict=True):
        assert off(one, other) < 1e-5  # fp32, summed in another order
    # the values are those of the micro-batches, whatever the gradients are divided by
    compute = HiddenStateLoss(module.model, threshold=0.05, normalize=normalize)
    values = [compute(module.model, batch).item() for batch in SINGLE]
    assert module.values == pytest.approx(values, rel=1e-6, abs=1e-7)
    # and without it the gradients are others: the data can tell
    alone = Told(threshold=0.05, normalize=normalize)
    fitted(alone, loader(SINGLE), accumulate_grad_batches=4)
    assert min(map(off, alone.gradients, expected)) > 0.05


def test_before_the_clipping_and_in_training_alone() -> None:
    class Evaluated(Told):
        def validation_step(self, batch: Any, _: int) -> None:
            self.log("mean", self.compute(self.model, batch), batch_size=1)

    class After(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            steps.append(flat(module.model).clone())
            return result

    steps: list[torch.Tensor] = []
    module = Evaluated()
    module.configure_optimizers = lambda: After(  # type: ignore[method-assign]
        module.model.parameters(), lr=0.0
    )
    run = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=4,
        gradient_clip_val=0.1, callbacks=[WholeBatch(module.compute)],
    )  # fmt: skip
    run.fit(module, loader(SINGLE), loader(SINGLE[:2]))
    for found, expected in zip(steps, of_whole_batches(clip=0.1), strict=True):
        assert off(found, expected) < 1e-5
    compute = HiddenStateLoss(module.model, threshold=0.05)
    alone = [compute(module.model, batch).item() for batch in SINGLE[:2]]
    assert run.callback_metrics["mean"].item() == pytest.approx(sum(alone) / 2, rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_in_half_precision(precision: Any) -> None:
    """As near to float32 as the micro-batches of one row are: 8 bits, and not the wrong mean."""
    module = Told(gamma=1.0)
    callbacks = [WholeBatch(module.compute)]
    fitted(
        module, loader(SINGLE), accumulate_grad_batches=4, callbacks=callbacks, precision=precision
    )
    model = build()
    HiddenStateLoss(model, Focal(1.0))(model, batch_of(ROWS[:4])).backward()
    assert off(module.gradients[0].float(), flat(model)) < 0.05


def test_nothing_counts() -> None:
    nothing = [{**b, "labels": torch.full_like(b["labels"], -100)} for b in SINGLE[:4]]
    module = Told()
    callbacks = [WholeBatch(module.compute)]
    fitted(module, loader(nothing), accumulate_grad_batches=4, callbacks=callbacks)
    assert not module.gradients[0].any()
    mixed = Told()
    fitted(
        mixed,
        loader([*nothing[:2], *SINGLE[:2]]),
        accumulate_grad_batches=4,
        callbacks=[WholeBatch(mixed.compute)],
    )
    model = build()
    HiddenStateLoss(model, threshold=0.05)(model, batch_of(ROWS[:2])).backward()
    assert off(mixed.gradients[0], flat(model)) < 1e-5


def test_it_leaves_the_loss_as_it_was() -> None:
    module = Told()
    fitted(module, loader(SINGLE), callbacks=[WholeBatch(module.compute)])
    assert module.compute.whole is None

    class Breaks(Told):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            raise RuntimeError("on the way")

    broken = Breaks()
    with pytest.raises(RuntimeError, match="on the way"):
        fitted(broken, loader(SINGLE), callbacks=[WholeBatch(broken.compute)])
    assert broken.compute.whole is None


def test_what_the_whole_batch_refuses() -> None:
    module = Told()
    module.automatic_optimization = False
    with pytest.raises(InputError, match=r"for automatic optimization.*compute\(model, batch, n\)"):
        fitted(module, loader(SINGLE), callbacks=[WholeBatch(module.compute)])

    class DeepSpeedStrategy: ...

    class Of:
        strategy = DeepSpeedStrategy()

    module.automatic_optimization = True
    with pytest.raises(InputError, match="DeepSpeed keeps them to itself"):
        WholeBatch(module.compute).on_fit_start(Of(), module)


def test_the_share_is_of_all_since_the_last_line(tmp_path: Path) -> None:
    """Weights over labels of three steps of two micro-batches each, not a mean of shares."""
    batches = [batch_of([row]) for row in ragged(12)]
    module = Told()
    logger = CSVLogger(tmp_path)
    fitted(
        module, loader(batches), accumulate_grad_batches=2, logger=logger, log_every_n_steps=3,
        callbacks=[LogKeptShare(module.compute)],
    )  # fmt: skip
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        logged = [float(row["kept_share"]) for row in csv.DictReader(file)]
    expected = []
    for part in (batches[:6], batches[6:]):
        compute = HiddenStateLoss(module.model, threshold=0.05)
        for batch in part:
            compute(module.model, batch)
        expected.append(compute.pop_kept_share())
    assert logged == pytest.approx(expected, abs=1e-7)  # logged in fp32
