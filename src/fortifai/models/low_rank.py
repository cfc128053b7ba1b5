"""The arithmetic of LoRA in few passes over memory, of peft's layers and of gated ones."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def in_few_passes(wrapped: Any) -> Iterator[None]:
    """Inside the block a model of peft computes the same with fewer passes over memory.

    Its linear layers without dropout compute by `_LowRank`, gated ones of them by `_Gated`.
    """
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
        # MKL is slower at grad.T @ low, by a third where there are 1,536 columns
        return (grad @ b).mul_(self.scale), (low.T @ grad).mul_(self.scale).T


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
        lows = torch.split(low, [len(a_gate), len(a_up)], dim=1)
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
        lows = torch.split(low, [len(a_gate), len(a_up)], dim=1)
        of_low_gate, of_b_gate = of_gate_layer.gradients(of_gate, lows[0], b_gate)
        of_low_up, of_b_up = of_up_layer.gradients(of_up, lows[1], b_up)
        of_lows = torch.cat([of_low_gate, of_low_up], dim=1)
        of_a_gate, of_a_up = torch.split(of_lows.T @ rows, [len(a_gate), len(a_up)])
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_gate @ of_gate_layer.weight).addmm_(of_up, of_up_layer.weight)
            of_x = of_x.addmm_(of_lows, torch.cat([a_gate, a_up])).view(ctx.shape)
        of_trained = of_a_gate, of_b_gate, of_a_up, of_b_up, of_a, of_b
        return of_x, *of_trained, None, None, None, None
