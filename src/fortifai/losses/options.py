"""The options that all losses share, spelled and checked once."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, cast, get_args, overload

from torch import Tensor

from fortifai.errors import check_number, check_whole
from fortifai.losses.checks import check_choice
from fortifai.losses.rows import RowLoss
from fortifai.losses.weighing import LossStats, Normalize, Reduction
from fortifai.weights import Weight


@dataclass(frozen=True, kw_only=True)
class LossOptions(RowLoss):
    """Keyword arguments of every loss, beside those of `fortifai.losses.rows.RowLoss`.

    Attributes:
        ignore_index: Targets with this value count nothing, in loss and divisor.
        reduction: ``mean``, ``sum``, or ``none`` for a loss of the target's shape.
        normalize: What ``mean`` divides by: the number of ``valid`` targets, as ForTIFAI's code
            does; ``weight_sum``, the sum of their sample weights; or ``kept``, the sum of
            confidence weights times sample weights. The mean of nothing is 0, not NaN.
        logit_softcap: Logits are first mapped to cap * tanh(x / cap), as Gemma does. Not for
            logits that the model has capped already, as those of transformers are.

    Raises:
        InputError: One of them is not allowed.
    """

    ignore_index: int = -100
    reduction: Reduction = "mean"
    normalize: Normalize = "valid"
    logit_softcap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("reduction", self.reduction, get_args(Reduction))
        check_choice("normalize", self.normalize, get_args(Normalize))
        check_whole("ignore_index", self.ignore_index)
        if self.logit_softcap is not None:
            check_number("logit_softcap", self.logit_softcap, "(0, inf)")


@dataclass(frozen=True, kw_only=True)
class LinearOptions(LossOptions):
    """The same of a loss on hidden states.

    Attributes:
        chunk_size: Rows of logits that exist at once (twice their memory with a soft-cap); None
            adapts it to classes and device.
    """

    chunk_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_size is not None:
            check_whole("chunk_size", self.chunk_size, 1, ", or None")


class Loss(Protocol):
    """The signature of all losses: tensors and options to a loss, with `return_stats` and stats."""

    __name__: str

    @overload
    def __call__(
        self, *tensors: Tensor, return_stats: Literal[True], **options: Any
    ) -> tuple[Tensor, LossStats]: ...
    @overload
    def __call__(
        self, *tensors: Tensor, return_stats: Literal[False] = False, **options: Any
    ) -> Tensor: ...


def spelled(options: type[RowLoss]) -> Callable[[Callable[..., Any]], Loss]:
    """Spells the ``**options`` of a loss out, for `help` and editors."""

    def spell(function: Callable[..., Any]) -> Loss:
        _sign(function, inspect.signature(function), "options", options)
        return cast(Loss, function)

    return spell


def with_weight(loss: Loss, weight: type[Weight], name: str = "") -> Loss:
    """A loss of one kind of weight, whose parameters become arguments of the loss.

        my_cross_entropy = with_weight(fortifai.weighted_cross_entropy, MyWeight)
        my_cross_entropy(logits, target, a=0.5)  # with weight=MyWeight(a=0.5)

    Args:
        loss: `fortifai.weighted_cross_entropy` or `fortifai.linear_weighted_cross_entropy`.
        weight: What makes the weight.
        name: What the loss is called.
    """
    names = parameters(weight)  # here: torch.compile cannot look at a class's fields

    @functools.wraps(loss)
    def call(*tensors: Tensor, **options: Any) -> Any:
        own = {name: options.pop(name) for name in names if name in options}
        return loss(*tensors, weight=weight(**own), **options)

    call.__name__ = call.__qualname__ = name or f"{loss.__name__} of {weight.__name__}"
    call.__module__ = sys._getframe(1).f_globals.get("__name__", "")  # for pickle
    call.__doc__ = f"`fortifai.{loss.__name__}` with this weight.\n\n{inspect.getdoc(weight)}"
    _sign(call, inspect.signature(loss), "weight", weight)
    return cast(Loss, call)


def parameters(weight: type[Weight]) -> list[str]:
    """Names of what a weight is made with."""
    return [field.name for field in fields(weight) if field.name != "kind"]


def _sign(function: Any, signature: inspect.Signature, name: str, by: type) -> None:
    """Gives `function` this signature, with the fields of a dataclass in the place of `name`."""
    found: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name != name:
            found.append(parameter)
            continue
        own = inspect.signature(by).parameters.values()
        found += [p.replace(kind=parameter.KEYWORD_ONLY) for p in own if p.name != "kind"]
    function.__signature__ = signature.replace(parameters=found)
