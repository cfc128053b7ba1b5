"""Training in bf16 for dozens of steps: the loss must not make predictions surer by its rounding.

A gradient whose products are rounded chunk by chunk is off by no more than others in one step, but
its errors lean one way, and the entropy of the predictions drifts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fortifai import linear_weighted_cross_entropy
from fortifai.losses import chunks
from fortifai.weights import Keep

CLASSES, WIDTH, TOKENS, STEPS, CHUNK = 64, 16, 128, 50, 2
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(CLASSES, WIDTH)
        self.body = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)

    def hidden(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.body(self.embed(tokens)))


def entropies(loss: Loss, dtype: torch.dtype) -> Tensor:
    """Mean entropy of the predictions after each step, of master weights in float32 or float64.

    The forward and backward are in `dtype`, as mixed precision has it.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    master = Model().to(exact)
    optimizer = torch.optim.SGD(master.parameters(), lr=5.0)
    found = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, CLASSES, (TOKENS,), generator=generator)
        # of each token half are followed by its successor, the others by anything
        drawn = torch.randint(0, CLASSES, (TOKENS,), generator=generator)
        half = torch.rand(TOKENS, generator=generator) < 0.5
        target = torch.where(half, (tokens + 1) % CLASSES, drawn)
        model = copy.deepcopy(master).to(dtype)
        loss(model.hidden(tokens), model.head.weight, target).backward()
        for name, parameter in master.named_parameters():
            parameter.grad = model.get_parameter(name).grad.to(exact)
        optimizer.step()
        with torch.no_grad():
            logits = master.head(master.hidden(torch.arange(CLASSES))).double()
            found.append(torch.special.entr(torch.softmax(logits, 1)).sum(1).mean())
    return torch.stack(found)


def full(h: Tensor, w: Tensor, target: Tensor) -> Tensor:
    """Full logits, in float32 at least."""
    exact = torch.promote_types(h.dtype, torch.float32)
    return F.cross_entropy(F.linear(h.to(exact), w.to(exact)), target)


def ours(h: Tensor, w: Tensor, target: Tensor) -> Tensor:
    return linear_weighted_cross_entropy(h, w, target, weight=Keep(), chunk_size=CHUNK)


def drift(loss: Loss) -> float:
    """How far the entropy is from that of the run in float64, root mean square over the steps."""
    gap = entropies(loss, torch.bfloat16) - entropies(full, torch.float64)
    return gap.square().mean().sqrt().item()


def rounded(self: chunks.Gradients, head: chunks.Head, *args: Tensor) -> None:
    """`Gradients.add` with sums in bf16."""
    ADD(self, head, *args)
    assert self.weight is not None
    self.weight.copy_(self.weight.bfloat16())


ADD = chunks.Gradients.add


@pytest.mark.long
def test_entropy_drifts_no_further_than_with_full_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From 4.1 to 2.9 nats in these steps; sums of 64 chunks each."""
    theirs = drift(full)
    # gradients that differ by fp32's rounding round to other bf16 here and there: 0.99 was seen
    assert drift(ours) <= 1.25 * theirs
    monkeypatch.setattr(chunks.Gradients, "add", rounded)
    assert drift(ours) > 1.5 * theirs  # sums in bf16 would be seen: 1.8


def test_products_of_half_precision_are_summed_in_single(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on accelerators: operands are rounded to bf16, what they give is not."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(30, 16, generator=generator).bfloat16()
    gaps = torch.randn(100, 8, 30, generator=generator)
    rows = torch.randn(100, 8, 16, generator=generator).bfloat16()
    layer = chunks.Head(head, None, 1.0, None, torch.float32)
    exact = torch.einsum("nkc,nkd->cd", gaps.bfloat16().double(), rows.double())

    def error() -> float:
        gradients = chunks.Gradients.empty(layer, 800, (True, True, False))
        for n in range(100):
            where = torch.arange(8 * n, 8 * n + 8)
            gradients.add(layer, gaps[n], where, rows[n], torch.ones(8))
        assert gradients.input is not None
        assert gradients.weight is not None
        dx = gaps.bfloat16().double().flatten(0, 1) @ head.double()
        torch.testing.assert_close(gradients.input.double(), dx, rtol=1e-5, atol=1e-5)
        return ((gradients.weight - exact).abs().max() / exact.abs().max()).item()

    assert error() < 1e-6  # fp32's rounding, of sums of 800
    monkeypatch.setattr(chunks, "_wide_product", lambda a, b, dtype: torch.mm(a, b).to(dtype))
    with pytest.raises(AssertionError):  # products rounded to bf16 before: dx shows it
        error()
