"""LoRA adapters (Hu et al., 2106.09685), through peft: W + (alpha / r) B A, B and A of rank r.

A model is trained through adapters of its layers, which are merged into its weights afterwards, so
that it reads and writes as fast as any other. The adapter itself is handed out besides: with the
model that it was trained on it is all that need be kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fortifai.errors import InputError
from fortifai.models.hub import ADAPTER, exists

if TYPE_CHECKING:
    from fortifai.models.options import LoraOptions

WEIGHTS = "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A trained adapter, apart from its model.

    Attributes:
        settings: peft's, as its adapter_config.json has them.
        weights: By peft's names, on the CPU.
    """

    settings: Mapping[str, Any]
    weights: Mapping[str, Tensor]

    def save(self, folder: Path, base: Path) -> None:
        """Write it as peft does, with the way from `folder` to its base model's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        told = dict(self.settings) | {"base_model_name_or_path": os.path.relpath(base, folder)}
        text = json.dumps(told, indent=1, sort_keys=True) + "\n"
        (folder / ADAPTER).write_text(text, encoding="utf-8")
        save_file(dict(self.weights), folder / WEIGHTS, {"format": "pt"})

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read what `save` or peft wrote.

        Raises:
            InputError: It is torn, or peft is not installed.
        """
        peft = _peft(str(folder))
        settings = _settings(folder)
        try:
            weights = peft.load_peft_weights(str(folder), device="cpu")
        except Exception as error:  # whatever peft, safetensors and pickle say of torn files
            raise InputError(
                f"the weights of the adapter {folder} could not be read ({_first(error)}); give "
                f"its folder with {WEIGHTS}"
            ) from error
        return cls(settings, weights)


def base_of(folder: str | Path) -> str:
    """The name of the model that an adapter belongs to; a folder beside it as a path.

    Raises:
        InputError: The adapter does not say so.
    """
    name = _settings(Path(folder)).get("base_model_name_or_path")
    if not name:
        raise InputError(
            f"{folder} is a LoRA adapter that does not name its base model; write it into its "
            f"{ADAPTER} as base_model_name_or_path, or merge the adapter and give the whole model"
        )
    beside = os.path.normpath(Path(folder) / str(name))
    return beside if exists(beside) else str(name)


def merge_saved(model: PreTrainedModel, folder: str | Path) -> None:
    """Add a saved adapter to the weights of its base model, in place.

    Raises:
        InputError: It belongs to another model, is none that can be merged, or is not whole.
    """
    adapter = Adapter.load(Path(folder))
    wrapped = _wrap(model, adapter.settings, str(folder))
    _fill(wrapped, adapter, str(folder))
    _merge(wrapped)


@contextlib.contextmanager
def training(
    model: PreTrainedModel, settings: LoraOptions, start: Adapter | None = None
) -> Iterator[list[Adapter]]:
    """Inside the block only adapters of `model` are trained; at its end they are merged into it.

    New ones begin as B = 0 and A drawn from PyTorch's global generator.

    Args:
        model: Changed in place; as it was before where the block raises.
        settings: Rank, scale, dropout, which layers.
        start: An adapter to train on; it is one of this model.

    Yields:
        A list, which the trained adapter is put into at the end.

    Raises:
        InputError: peft is not installed, or the settings name layers that the model has not.
    """
    peft = _peft("train.lora")
    told = peft.LoraConfig(**_chosen(model, settings)).to_dict()
    wrapped = _wrap(model, told, "train.lora")
    if start is not None:
        _fill(wrapped, start, "the generation before")
    done: list[Adapter] = []
    try:
        with _in_few_passes(wrapped):
            yield done
        weights = _weights(wrapped)
        kept = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in weights.items()}
        done.append(Adapter(_plain(told), kept))
        _merge(wrapped)
    except BaseException:
        wrapped.unload()
        raise
    finally:
        model.requires_grad_(True)


@contextlib.contextmanager
def _in_few_passes(wrapped: Any) -> Iterator[None]:
    """Inside the block linear layers of peft compute by `_LowRank`, gated ones by `_Gated`."""
    changed = []
    for layer in wrapped.modules():
        for fits, forward in ((_is_plain, _forward), (_is_gated, _forward_gated)):
            if fits(layer):
                layer.forward = functools.partial(forward, layer)
                changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _is_plain(layer: Any) -> bool:
    from peft.tuners.lora import Linear

    plain = type(layer) is Linear and type(layer.get_base_layer()) is nn.Linear
    return plain and isinstance(layer.lora_dropout["default"], nn.Identity)


def _is_gated(layer: Any) -> bool:
    """Whether it is down(act(gate(x)) * up(x)), found by trying: others use these names too."""
    parts: Any = (getattr(layer, f"{name}_proj", None) for name in ("gate", "up", "down"))
    gate, up, down = parts
    act = getattr(layer, "act_fn", None)
    if act is None or not (_is_plain(gate) and _is_plain(up) and _is_plain(down)):
        return False
    if any(isinstance(m, nn.Dropout) and m.p for m in layer.modules()):
        return False
    if len(inspect.signature(layer.forward).parameters) != 1:
        return False
    with torch.no_grad():
        x = torch.linspace(-1, 1, gate.weight.shape[1]).to(gate.weight)[None, None]
        return torch.equal(layer(x), down(act(gate(x)) * up(x)))


def _forward(layer: Any, x: Tensor) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):  # which casts what _LowRank would not
        as_peft: Tensor = type(layer).forward(layer, x)
        return as_peft
    out: Tensor = _LowRank.apply(x, *_parts(layer))  # type: ignore[no-untyped-call] # torch gives it no types
    return out


def _forward_gated(layer: Any, x: Tensor) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):
        as_written: Tensor = type(layer).forward(layer, x)
        return as_written
    parts = [_parts(part) for part in (layer.gate_proj, layer.up_proj, layer.down_proj)]
    trained = [matrix for a, b, _ in parts for matrix in (a, b)]
    out: Tensor = _Gated.apply(x, *trained, layer.act_fn, *(fixed for *_, fixed in parts))  # type: ignore[no-untyped-call] # torch gives it no types
    return out


@dataclasses.dataclass(frozen=True, slots=True)
class _Fixed:
    """What of a layer is not trained."""

    weight: Tensor
    bias: Tensor | None
    scale: float

    def value(self, rows: Tensor, low: Tensor, b: Tensor) -> Tensor:
        """The layer's, rows W^T + bias + scale low B^T, where low is rows A^T."""
        out = nn.functional.linear(rows, self.weight, self.bias)
        return out.addmm_(low, b.T, alpha=self.scale)

    def gradients(self, grad: Tensor, low: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Of low, and of B; grad is that of `value`."""
        of_b = grad.T @ low if len(b) < WIDE else (low.T @ grad).T
        return (grad @ b).mul_(self.scale), of_b.mul_(self.scale)


WIDE = 1024
"""Columns from which on MKL is faster at the transposed product of a tall matrix and a narrow."""


def _parts(layer: Any) -> tuple[Tensor, Tensor, _Fixed]:
    """A, B and the rest."""
    base = layer.get_base_layer()
    fixed = _Fixed(base.weight, base.bias, layer.scaling["default"])
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight, fixed


class _LowRank(torch.autograd.Function):
    """x W^T + bias + scale (x A^T) B^T, where W and the bias are fixed.

    The adapter is added by the matrix product that computes it, forward and backward. peft scales
    and adds in passes of their own, which on a CPU cost as much as the products of rank r.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, fixed: _Fixed) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.T
        ctx.save_for_backward(rows, a, b, low)
        ctx.fixed, ctx.shape = fixed, x.shape
        return fixed.value(rows, low, b).view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, a, b, low = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        of_low, of_b = ctx.fixed.gradients(grad, low, b)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (grad @ ctx.fixed.weight).addmm_(of_low, a).view(ctx.shape)
        return of_x, of_low.T @ rows, of_b, None


class _Gated(torch.autograd.Function):
    """`_LowRank` of act(`_LowRank` of x) * (`_LowRank` of x): gate, up and down, in this order.

    act(gate) * up is computed once more in the backward. Of four tensors as wide as the inner layer
    that would be kept for it two remain: nearly a third less of all that a LLaMA keeps, at the
    price of two elementwise passes. Gate and up read x together: their A in one product, and their
    gradients of x added by the products that compute them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *told: Any) -> Tensor:
        (a_gate, b_gate, a_up, b_up, a, b), ctx.act, *ctx.fixed = told[:6], *told[6:]
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ torch.cat([a_gate, a_up]).T
        lows = low.split([len(a_gate), len(a_up)], dim=1)
        gate = ctx.fixed[0].value(rows, lows[0], b_gate)
        up = ctx.fixed[1].value(rows, lows[1], b_up)
        inner = ctx.act(gate).mul(up)
        low_down = inner @ a.T
        ctx.save_for_backward(rows, gate, up, low, low_down, *told[:6])
        ctx.shape = x.shape
        return ctx.fixed[2].value(inner, low_down, b).view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, gate, up, low, low_down, a_gate, b_gate, a_up, b_up, a, b = ctx.saved_tensors
        of_gate_layer, of_up_layer, of_down_layer = ctx.fixed
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        of_low, of_b = of_down_layer.gradients(grad, low_down, b)
        of_inner = (grad @ of_down_layer.weight).addmm_(of_low, a)
        with torch.enable_grad():
            leaves = gate.detach().requires_grad_(), up.detach().requires_grad_()
            inner = ctx.act(leaves[0]) * leaves[1]
        of_a = of_low.T @ inner.detach()
        of_gate, of_up = torch.autograd.grad(inner, leaves, of_inner)
        del inner, of_inner
        lows = low.split([len(a_gate), len(a_up)], dim=1)
        of_low_gate, of_b_gate = of_gate_layer.gradients(of_gate, lows[0], b_gate)
        of_low_up, of_b_up = of_up_layer.gradients(of_up, lows[1], b_up)
        of_lows = torch.cat([of_low_gate, of_low_up], dim=1)
        of_a_gate, of_a_up = (of_lows.T @ rows).split([len(a_gate), len(a_up)])
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_gate @ of_gate_layer.weight).addmm_(of_up, of_up_layer.weight)
            of_x = of_x.addmm_(of_lows, torch.cat([a_gate, a_up])).view(ctx.shape)
        of_trained = of_a_gate, of_b_gate, of_a_up, of_b_up, of_a, of_b
        return of_x, *of_trained, None, None, None, None


def _chosen(model: PreTrainedModel, settings: LoraOptions) -> dict[str, Any]:
    """Settings as peft takes them, the layers by the last part of their names."""
    linear = _linear(model)
    inside = _layers_of_text(model, linear)
    if settings.targets == "all-linear":
        targets = {name.rpartition(".")[2] for name in inside}
    else:
        targets = set(settings.targets)
        _check_names("targets", targets, inside)
    _check_saved(model, settings.modules_to_save)
    beside = [n for n in linear if n not in inside and any(_is_named(n, t) for t in targets)]
    return {
        "task_type": "CAUSAL_LM",
        "r": settings.r,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": sorted(targets),
        "exclude_modules": sorted(beside) or None,
        "modules_to_save": sorted(settings.modules_to_save) or None,
    }


def _linear(model: PreTrainedModel) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))]


def _layers_of_text(model: PreTrainedModel, linear: list[str]) -> list[str]:
    """Those of the part that reads text, without the output layer: no vision tower."""
    decoder = {id(m) for m in model.get_decoder().modules()}
    head = model.get_output_embeddings()
    modules = dict(model.named_modules())
    return [n for n in linear if id(modules[n]) in decoder and modules[n] is not head]


def _is_named(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _check_names(key: str, wanted: Any, there: list[str]) -> None:
    absent = sorted(name for name in wanted if not any(_is_named(m, name) for m in there))
    if absent:
        known = sorted({name.rpartition(".")[2] for name in there if name} - {""})
        shown = ", ".join(name for name in known if not name.isdigit())
        raise InputError(
            f"train.lora.{key} names {', '.join(absent)}, which the model has not; it has {shown}"
        )


def _check_saved(model: PreTrainedModel, wanted: Sequence[str]) -> None:
    modules = dict(model.named_modules())
    _check_names("modules_to_save", wanted, list(modules))
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if ends[1] is None or ends[0].weight is not ends[1].weight:
        return
    tied = [n for n in wanted for key, m in modules.items() if m in ends and _is_named(key, n)]
    if tied:
        # peft trains a copy of one of the two, and the merged model would not be the trained one
        raise InputError(
            f"train.lora.modules_to_save names {tied[0]}, whose weights are those of the input "
            "embedding and of the output layer at once in this model; leave it out"
        )


def _peft(what: str) -> Any:
    if importlib.util.find_spec("peft") is None:
        raise InputError(
            f"{what} needs the package peft, not installed here; install fortifai[peft]"
        )
    import peft

    return peft


def _settings(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / ADAPTER} could not be read ({_first(error)})") from error
    if not isinstance(told, dict):
        raise InputError(f"{folder / ADAPTER} is no mapping, so no adapter's; give peft's own file")
    return told


def _wrap(model: PreTrainedModel, settings: Mapping[str, Any], what: str) -> Any:
    """A model of peft around `model`, whose layers it replaces in place."""
    peft = _peft(what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft.PeftConfig.from_peft_type(**dict(settings))
            if config.is_prompt_learning:
                raise ValueError(f"{config.peft_type} has no weights to merge")
            return peft.get_peft_model(model, config)
    except Exception as error:  # whatever peft says of settings that do not fit
        raise InputError(
            f"the adapter of {what} does not fit {type(model).__name__} ({_first(error)}); give "
            "one that was trained on this model"
        ) from error


def _fill(wrapped: Any, adapter: Adapter, what: str) -> None:
    peft = _peft(what)
    wanted = set(_weights(wrapped))
    absent, others = sorted(wanted - set(adapter.weights)), sorted(set(adapter.weights) - wanted)
    if absent or others:
        told = f"{absent[0]} is missing" if absent else f"{others[0]} has no place"
        raise InputError(
            f"the adapter of {what} does not fit its base model ({told}); give one that was "
            "trained on this model"
        )
    try:
        peft.set_peft_model_state_dict(wrapped, dict(adapter.weights))
    except RuntimeError as error:
        raise InputError(
            f"the adapter of {what} does not fit its base model ({_first(error)}); give one that "
            "was trained on this model"
        ) from error


def _weights(wrapped: Any) -> dict[str, Tensor]:
    # "auto" asks the hub for the base model's vocabulary, and by its answer adds the embeddings
    peft = _peft("train.lora")
    weights: dict[str, Tensor] = peft.get_peft_model_state_dict(
        wrapped, save_embedding_layers=False
    )
    return weights


def _merge(wrapped: Any) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.merge_and_unload()


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has them, the same whatever the order of a set."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        value = getattr(value, "value", value)
        out[key] = sorted(value) if isinstance(value, (set, frozenset)) else value
    return json.loads(json.dumps(out, default=str))


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
