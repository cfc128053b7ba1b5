"""What test_processes.py starts in several processes: ``worker.py WHAT FILE``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fortifai import linear_truncated_cross_entropy
from fortifai.integrations.hidden_states import HiddenStateLoss
from fortifai.integrations.transformers import (
    ConfidenceLoss,
    ConfidenceTrainer,
    EvalLossByToken,
    LogKeptShare,
)
from fortifai.weights import Truncate
from tests.integrations.page import PAGE, examples
from tests.integrations.tiny import (
    VOCABULARY,
    batch_of,
    build,
    ragged,
    trained,
    trainer,
    weights_of,
)

THRESHOLD = 0.05
WEIGHT = Truncate(THRESHOLD)
ROWS = 4  # of a step, all processes together
DATA = ragged(16)


def with_trainer(processes: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Four steps of ConfidenceTrainer; and the kept shares that it logged."""
    with tempfile.TemporaryDirectory() as folder:
        weights, logs = trained(
            ConfidenceTrainer,
            Path(folder),
            build(),
            DATA,
            more={"threshold": THRESHOLD},
            per_device_train_batch_size=ROWS // processes,
        )
    return weights, [entry["kept_share"] for entry in logs]


def watched(processes: int) -> tuple[dict[str, torch.Tensor], list[int]]:
    """As `with_trainer`, beside a monitor; and the steps at which this process has read."""
    from fortifai.integrations.monitor import CollapseMonitor
    from tests.tokenizers_made import byte_level

    # no token beyond the tiny vocabulary
    tokenizer = byte_level()
    text = tokenizer.decode(range(5, VOCABULARY))
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(
            ConfidenceTrainer,
            Path(folder),
            build(),
            DATA,
            more={"threshold": THRESHOLD, "processing_class": tokenizer},
            per_device_train_batch_size=ROWS // processes,
        )
        monitor = CollapseMonitor([text[:3]], [text, text], samples=8, tokens=8).attach(run)
        run.train()
    return weights_of(run.model), list(monitor.readings)


def evaluated() -> dict[str, float]:
    """Losses of 7 rows, in batches that several processes must fill up; and a share in the logs."""
    losses = {}
    compute = ConfidenceLoss(WEIGHT)
    for name, metrics in (("hidden states", None), ("logits", lambda _: {})):
        with tempfile.TemporaryDirectory() as folder:
            run = trainer(
                ConfidenceTrainer,
                Path(folder),
                build(),
                DATA,
                more={"threshold": 0.9, "eval_dataset": DATA[:7], "compute_metrics": metrics},
                per_device_eval_batch_size=2,
            )
            losses[name] = run.evaluate()["eval_loss"]
    with tempfile.TemporaryDirectory() as folder:
        # rows that fill up none: this one is told of batches
        callbacks = [EvalLossByToken(compute), LogKeptShare(compute)]
        more = {
            "compute_loss_func": compute,
            "callbacks": callbacks,
            "eval_dataset": DATA[:8],
        }
        run = trainer(
            Trainer,
            Path(folder),
            build(),
            DATA,
            more=more,
            per_device_eval_batch_size=1,
            per_device_train_batch_size=1,
            max_steps=1,
            learning_rate=0.0,
            gradient_accumulation_steps=16 // int(os.environ.get("WORLD_SIZE", "1")),
        )
        losses["callback"] = run.evaluate()["eval_loss"]
        run.train()
        losses["share"] = run.state.log_history[-2]["kept_share"]
    return losses


def steps_of(rank: int, processes: int) -> list[list[dict[str, torch.Tensor]]]:
    """Four steps of this process, each in micro-batches of one row."""
    steps = []
    for start in range(0, len(DATA), ROWS):
        rows = DATA[start : start + ROWS][rank::processes]
        steps.append([batch_of([row]) for row in rows])
    return steps


def by_the_page(rank: int, processes: int) -> dict[str, dict[str, torch.Tensor]]:
    """What the page about trainers says of DDP and FSDP2, as it stands there."""
    from torch.distributed.fsdp import fully_shard

    (code,) = examples("DDP, FSDP2")
    found = {}
    for name in ("page, DDP", "page, FSDP2"):
        model: Any = build()
        wrapped = model
        if "FSDP2" in name:
            fully_shard(model)
        else:
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        names = {"model": model, "wrapped": wrapped, "optimizer": optimizer}
        own = code.replace("threshold=0.9", f"threshold={THRESHOLD}")
        exec(compile(own, PAGE.name, "exec"), {**names, "steps": steps_of(rank, processes)})
        found[name] = {
            k: v.full_tensor() if hasattr(v, "full_tensor") else v.clone()
            for k, v in model.state_dict().items()
        }
    return found


def with_lightning() -> list[torch.Tensor]:
    """What two steps of two micro-batches would step by, on all processes, under DDP."""
    import lightning

    found: list[torch.Tensor] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = build()
            self.compute = HiddenStateLoss(self.model, WEIGHT)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.compute(self.model, batch)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            grads = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
            found.append(torch.cat(grads).clone())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    from fortifai.integrations.lightning import WholeBatch

    module = Module()
    rank, processes = (int(os.environ.get(k, d)) for k, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    mine = DATA[rank:8:processes]  # Lightning's own sampler would shuffle
    loader = torch.utils.data.DataLoader(mine, batch_size=1, collate_fn=batch_of)
    lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        accumulate_grad_batches=4 // processes,
        use_distributed_sampler=False,
        callbacks=[WholeBatch(module.compute)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, loader)
    return found


def shards(rank: int, processes: int) -> Any:
    """The rows of one process, step by step, and the labels of all processes in that step."""
    for step in range(0, len(DATA), ROWS):
        rows = DATA[step : step + ROWS]
        valid = sum(int((row["labels"][1:] != -100).sum()) for row in rows)
        yield batch_of(rows[rank::processes]), valid


def of_all(log_p: torch.Tensor) -> torch.Tensor:
    """Truncation that does not declare that it weighs each token by itself.

    The backward then computes logits anew, and needs the head once more.
    """
    return WEIGHT(log_p)


def with_a_plain_loop(
    model: Any,
    wrapped: Any,
    rank: int,
    processes: int,
    weight: Any = WEIGHT,
    compute: HiddenStateLoss | None = None,
) -> None:
    """Four steps of SGD, by `HiddenStateLoss`."""
    compute = compute or HiddenStateLoss(model, weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch, valid in shards(rank, processes):
        compute(wrapped, batch, valid / processes).backward()
        optimizer.step()
        optimizer.zero_grad()


def sharded(*, own_head: bool, rank: int, processes: int) -> dict[str, torch.Tensor]:
    """A plain loop over a model under FSDP2, whose head is a unit of its own or of the root."""
    from torch.distributed.fsdp import fully_shard

    model = build()
    for layer in model.model.layers:
        fully_shard(layer)
    if own_head:
        fully_shard(model.lm_head)
    fully_shard(model)
    weight = of_all if own_head else WEIGHT
    with_a_plain_loop(model, model, rank, processes, weight)
    return {k: v.full_tensor() for k, v in model.state_dict().items()}


def sharded_from_one(rank: int, processes: int) -> dict[str, torch.Tensor]:
    """The same where the weights are on the first process alone and the others get them from it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import fully_shard

    real = build()
    model = real
    if rank:
        with torch.device("meta"):
            model = type(real)(real.config)
    compute = HiddenStateLoss(model, WEIGHT)  # which can try the model on the first process only
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    state = {} if rank else build().state_dict()
    if rank:
        model.to_empty(device="cpu")
        for name, buffer in real.named_buffers():
            model.get_buffer(name).copy_(buffer)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state, options=options)
    with_a_plain_loop(model, model, rank, processes, compute=compute)
    return {k: v.full_tensor() for k, v in model.state_dict().items()}


def sharded_head(rank: int, processes: int) -> dict[str, torch.Tensor]:
    """Loss and gradients where the head is sharded by rows or columns, and each has its rows."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    h, w, b, target = problem()
    mesh = init_device_mesh("cpu", (processes,))
    found = {}
    for dim in (0, 1):
        weight = torch.nn.Parameter(distribute_tensor(w, mesh, [Shard(dim)]))
        bias = torch.nn.Parameter(distribute_tensor(b, mesh, [Shard(0)]))
        mine = h[rank::processes].clone().requires_grad_()
        value = linear_truncated_cross_entropy(
            mine, weight, target[rank::processes], threshold=0.3, linear_bias=bias, reduction="sum"
        )
        value.backward()
        assert weight.grad is not None
        assert bias.grad is not None
        assert weight.grad.placements == weight.placements  # type: ignore[attr-defined]
        gathered = torch.zeros_like(h)
        gathered[rank::processes] = mine.grad
        total = value.detach().clone()
        distributed.all_reduce(gathered)
        distributed.all_reduce(total)
        found |= {
            f"loss {dim}": total,
            f"h {dim}": gathered,
            f"w {dim}": weight.grad.full_tensor(),  # type: ignore[attr-defined]
            f"b {dim}": bias.grad.full_tensor(),  # type: ignore[attr-defined]
        }
    return found


def problem() -> tuple[torch.Tensor, ...]:
    """Hidden states, head, bias and targets, fp64."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((12, 6), (10, 6), (10,))
    tensors = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    return *tensors, torch.randint(0, 10, (12,), generator=generator)


def with_accelerate() -> dict[str, torch.Tensor]:
    """A plain loop over what Accelerator.prepare made."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = build()
    compute = HiddenStateLoss(model, threshold=THRESHOLD)
    wrapped, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for batch, valid in shards(accelerator.process_index, accelerator.num_processes):
        accelerator.backward(compute(wrapped, batch, valid / accelerator.num_processes))
        optimizer.step()
        optimizer.zero_grad()
    return weights_of(accelerator.unwrap_model(wrapped))


def with_accelerate_by_the_page() -> dict[str, torch.Tensor]:
    """What the page about trainers says of accelerate: eight micro-batches in all, two steps."""
    (code,) = examples("accelerate")
    model = build()
    loader = torch.utils.data.DataLoader(DATA, batch_size=1, collate_fn=batch_of)
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": loader,
    }
    own = code.replace("Accelerator()", "Accelerator(cpu=True)")
    exec(compile(own.replace("threshold=0.9", f"threshold={THRESHOLD}"), PAGE.name, "exec"), names)
    return weights_of(model)


def main() -> None:
    """Train as asked, in each process; the first writes what came of it."""
    what, file = sys.argv[1:]
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    if what == "accelerate":
        results["accelerate"] = with_accelerate()
        results["page"] = with_accelerate_by_the_page()
    else:
        results["trainer"], results["shares"] = with_trainer(2)
        results["evaluated"] = evaluated()
        results["watched"], results["readings"] = watched(2)
        rank, processes = distributed.get_rank(), distributed.get_world_size()
        model = build()
        wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        with_a_plain_loop(model, wrapped, rank, processes)
        results["DDP"] = weights_of(model)
        for own_head in (False, True):
            name = "FSDP2, head apart" if own_head else "FSDP2"
            results[name] = sharded(own_head=own_head, rank=rank, processes=processes)
        results["FSDP2, from one"] = sharded_from_one(rank, processes)
        results["head"] = sharded_head(rank, processes)
        results |= by_the_page(rank, processes)
        results["lightning"] = with_lightning()
    results["processes"] = distributed.get_world_size()
    if distributed.get_rank() == 0:
        torch.save(results, file)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
