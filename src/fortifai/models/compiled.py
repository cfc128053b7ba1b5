"""The layers of a model compiled by `torch.compile` while it is trained."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from fortifai.errors import InputError, kind_and_reason
from fortifai.machine import bf16_on_cpu

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fortifai.models.options import TrainOptions

BACKEND = "inductor"
"""What makes code of the graphs."""

T = TypeVar("T")


def check(train: TrainOptions, device: torch.device) -> None:
    """Refuse what the device or the machine cannot do, before work starts.

    Raises:
        InputError: `train.precision` is ``bf16`` on a processor without instructions for it, or
            `train.compile` is set where nothing can be compiled.
    """
    if train.precision == "bf16" and device.type == "cpu" and not bf16_on_cpu():
        raise InputError(
            "train.precision is bf16, and this processor has no instructions for bfloat16 (neither "
            "avx512_bf16 nor amx_bf16), so it would take longer than fp32; set it to auto or fp32"
        )
    fault = _fault(BACKEND, device) if train.compile else ""
    if fault:
        raise InputError(
            f"train.compile is set, and nothing can be compiled here ({fault}); install what is "
            "missing (a C++ compiler on a CPU, Triton on a GPU), or leave train.compile out"
        )


@functools.cache
def _fault(backend: str, device: torch.device) -> str:
    """Why a graph of one operation does not run compiled; nothing if it does."""
    try:
        torch.compile(lambda x: x.sin() + 1, backend=backend)(torch.ones(8, device=device))
    except Exception as error:  # whatever it is, it would end the first step
        return kind_and_reason(error)
    return ""


@contextlib.contextmanager
def layers(model: PreTrainedModel, asked: bool) -> Iterator[None]:
    """Within: all of the model but its output layer and loss runs compiled, if that is asked for.

    The loss decides by what it kept how much it computes, and stays as it is. Graphs are made for
    each shape of a batch: in a fit that is two at most, as the last batch of an epoch may be
    shorter.

    Raises:
        InputError: What failed within failed in compiling, or nothing but the whole model can be.
    """
    if not asked:
        yield
        return
    trunk = cast(nn.Module, model.base_model)
    if trunk is model:
        raise InputError(
            f"train.compile is set, and {type(model).__name__} does not say which part of it is "
            "all but the output layer (base_model_prefix); leave train.compile out"
        )
    # graphs of models that were trained before would count against the number that PyTorch allows
    torch.compiler.reset()
    with _forward(trunk, torch.compile(trunk.forward, backend=BACKEND, dynamic=False)):
        try:
            yield
        except Exception as error:
            if not _of_compiling(error):
                raise
            raise InputError(
                f"{type(model).__name__} cannot be compiled ({kind_and_reason(error)}); leave "
                "train.compile out"
            ) from error


def _of_compiling(error: Exception) -> bool:
    """Whether PyTorch's compiler raised it."""
    return any(
        t.__module__.startswith(("torch._dynamo", "torch._inductor")) for t in type(error).mro()
    )


@contextlib.contextmanager
def _forward(module: nn.Module, instead: Callable[..., Any]) -> Iterator[None]:
    """Within: a module has another forward."""
    before = module.__dict__.get("forward")
    cast(Any, module).forward = instead
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            cast(Any, module).forward = before


def plainly(model: PreTrainedModel, function: Callable[[], T]) -> Callable[[], T]:
    """A function during which the model runs uncompiled: sequences of many lengths go through."""

    def run() -> T:
        trunk = cast(nn.Module, model.base_model)
        with _forward(trunk, type(trunk).forward.__get__(trunk)):
            return function()

    return run
