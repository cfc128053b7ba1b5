"""Trainer's arguments that the trainers of this package cannot do, or should not do silently."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from fortifai.errors import InputError


def check_arguments(name: str, args: Any, accelerator: Any) -> None:
    """Raise `InputError` where Trainer's arguments ask for what the trainer `name` cannot do."""
    if args.label_smoothing_factor:
        raise InputError(
            f"label_smoothing_factor is {args.label_smoothing_factor}, which would smooth the loss "
            f"of evaluation alone; set it to 0 and give {name} "
            f"label_smoothing={args.label_smoothing_factor}, which smooths that of training"
        )
    if args.n_gpu > 1:
        raise InputError(
            f"{name} sees {args.n_gpu} GPUs in one process, which Trainer would serve by "
            "DataParallel; start it by torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES "
            "to one"
        )
    config = getattr(accelerator, "parallelism_config", None)
    for kind in ("tp", "cp", "sp"):
        if config is not None and getattr(config, f"{kind}_enabled", False):
            raise InputError(
                f"parallelism_config has {kind}_size above 1, which splits rows or the output "
                f"layer; {name} works with data parallelism (DDP, FSDP2)"
            )


# Those of other packages may keep float32 copies, or round so that small steps add up
_WITHOUT_COPIES = ("torch.", "transformers.")


def warn_of_vanishing_steps(optimizer: torch.optim.Optimizer) -> None:
    """Warn where trained weights are in half precision, and the optimizer keeps no copies."""
    if not type(optimizer).__module__.startswith(_WITHOUT_COPIES):
        return
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    half = [p for p in trained if p.dtype in (torch.bfloat16, torch.float16)]
    if half:
        kind = str(half[0].dtype).removeprefix("torch.")
        least = torch.finfo(half[0].dtype).eps / 2
        warnings.warn(
            f"{len(half)} of {len(trained)} trained tensors are {kind}, of which "
            f"{type(optimizer).__name__} keeps no float32 copies: a step below {least:.1g} of a "
            "weight's size vanishes, and most steps of fine-tuning do; load the model with "
            "dtype=torch.float32, and set bf16=True to compute in bfloat16 all the same",
            stacklevel=3,
        )
