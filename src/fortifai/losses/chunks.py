"""The output layer and its softmax, some rows at a time: full logits never exist.

With the logits x_i = W h_i + b of row i and the one-hot target y_i, log p_i = x_i[t_i] - lse(x_i)
has the gradient y_i - p_i in the logits. A loss L of the log p alone therefore has, with
c_i = -dL/dlog p_i,

    dL/dh_i = c_i (p_i - y_i) W,
    dL/dW = sum_i (p_i - y_i)^T c_i h_i,
    dL/db = sum_i c_i (p_i - y_i).

Rows with c_i = 0 need none of this: only the rest pass through the two products of the backward.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fortifai.losses.weighing import normalized_entropy

# Below these log p is taken from logits computed anew, since p itself has lost its digits
_TINY = {torch.float32: 1e-30, torch.float64: 1e-290}
# Rows copied, computed anew or asked for their entropy at once: what stands beside the buffer
_FEW = 16


def _wide_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Product of half-precision matrices, given in float32."""
    if torch.__version__ >= "2.8":
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a, b).to(dtype)  # rounded on the way: earlier versions cannot do without


@dataclasses.dataclass(frozen=True)
class Head:
    """The output layer.

    Attributes:
        weight: (C, d), in the dtype of the products.
        bias: (C,) in `dtype`, or None.
        scale: Of the logits, before the cap.
        softcap: Cap of the logits, or None.
        dtype: Of logits, statistics and accumulated gradients: float32 or float64.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    dtype: torch.dtype

    @property
    def classes(self) -> int:
        """C."""
        return self.weight.shape[0]

    def logits(self, rows: Tensor, out: Tensor) -> Tensor | None:
        """Writes the logits of hidden states (m, d) to `out` (m, C).

        Returns:
            With a soft-cap its slope 1 - tanh^2 (m, C), else None.
        """
        transposed = self.weight.t()
        if self.weight.dtype != self.dtype:
            out.copy_(_wide_product(rows, transposed, self.dtype))
            if self.bias is not None:
                out += self.bias
        elif self.bias is None:
            torch.mm(rows, transposed, out=out)
        else:
            torch.addmm(self.bias, rows, transposed, out=out)
        if self.scale != 1:
            out.mul_(self.scale)
        if self.softcap is None:
            return None
        slope = out.div_(self.softcap).tanh_().square().neg_().add_(1)
        out.mul_(self.softcap)
        return slope


@dataclasses.dataclass
class Gradients:
    """Sums of gradients, in the dtype of the statistics; None for what nobody needs.

    Attributes:
        input: (N, d), zero where nothing was added.
        weight: (C, d).
        bias: (C,).
    """

    input: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def zeros(cls, head: Head, n: int, wanted: tuple[bool, bool, bool]) -> Gradients:
        """Gradients of n hidden states, of the head and of its bias, where `wanted`."""
        new = head.weight.new_zeros
        classes, width = head.weight.shape
        return cls(
            new((n, width), dtype=head.dtype) if wanted[0] else None,
            new((classes, width), dtype=head.dtype) if wanted[1] else None,
            new((classes,), dtype=head.dtype) if wanted[2] else None,
        )

    def scale_(self, factor: Tensor) -> None:
        """Multiplies all in place by a scalar."""
        for gradient in (self.input, self.weight, self.bias):
            if gradient is not None:
                gradient.mul_(factor)

    def to(self, dtypes: Sequence[torch.dtype | None]) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, head and bias in these dtypes."""
        found = zip((self.input, self.weight, self.bias), dtypes, strict=True)
        return tuple(None if gradient is None else gradient.to(dtype) for gradient, dtype in found)

    def add(self, head: Head, gaps: Tensor, where: Tensor, rows: Tensor, factors: Tensor) -> None:
        """Adds those of some rows.

        Args:
            head: The output layer.
            gaps: p - y, with the slope of the soft-cap (k, C).
            where: Which of the N hidden states these are, (k,).
            rows: The hidden states (k, d), in the dtype of the products.
            factors: c, (k,).
        """
        factors = factors * head.scale if head.scale != 1 else factors
        by_row = factors.unsqueeze(1)
        narrow = gaps.to(head.weight.dtype)
        mixed = narrow.dtype != head.dtype
        if self.input is not None:
            if mixed:
                product = _wide_product(narrow, head.weight, head.dtype)
            else:
                product = torch.mm(narrow, head.weight)
            self.input.index_copy_(0, where, product.mul_(by_row))
        if self.weight is not None:
            scaled = rows * by_row.to(rows.dtype)
            if mixed:
                self.weight += _wide_product(narrow.t(), scaled, head.dtype)
            else:
                self.weight.addmm_(narrow.t(), scaled)
        if self.bias is not None:
            self.bias.addmv_(gaps.t(), factors)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What some rows predict, while their p stand in a block (m, C).

    Attributes:
        log_p: Of the goals, (m,).
        entropy: Gives the normalized entropies (m,) for an ``entropy_top_k``, while p are there.
        to_gaps: Turns the p in the block into p - y, with the slope of the soft-cap.
    """

    log_p: Tensor
    entropy: Callable[[int | None], Tensor]
    to_gaps: Callable[[], None]


Softmax = Callable[[Head, Tensor, Tensor, Tensor], Predictions]
"""Gets the head, hidden states (m, d) in the dtype of the products, goals (m,) and rows of the
buffer (m, C or more) with room for p, in the order of the classes."""

Judge = Callable[[slice, Tensor, Callable[[int | None], Tensor]], Tensor | None]
"""Gets the place of some rows among all, their log p (m,), and what gives their normalized entropy
for an ``entropy_top_k``; returns their factors c (m,), or None where no gradient is wanted."""


def sweep(
    head: Head,
    input: Tensor,
    target: Tensor,
    which: Tensor | None,
    judge: Judge,
    gradients: Gradients | None,
    chunk_size: int,
    softmax: Softmax,
) -> None:
    """Passes rows through head and softmax, and adds the gradients of those that `judge` keeps.

    Kept rows of p - y stay in the buffer beside the next rows until half of it is full, so that the
    products of the backward are large even where few rows are kept.

    Args:
        head: The output layer.
        input: Hidden states (N, d).
        target: Class indices (N,), those of `which` in range.
        which: Rows to pass, (n,); None for all.
        judge: Called once for each chunk, in order.
        gradients: Where gradients are added; None for none.
        chunk_size: Rows of logits that exist at once.
        softmax: `softmax`, or another one that does the same.
    """
    n = len(input) if which is None else len(which)
    buffer = input.new_empty((min(chunk_size, n), _stride(head)), dtype=head.dtype)
    held: list[tuple[Tensor, Tensor]] = []  # where kept rows of p - y come from, and their factors
    full = 0  # rows of the buffer that they take

    start = 0
    while start < n:
        stop = min(n, start + len(buffer) - full)
        part = slice(start, stop)
        where = torch.arange(start, stop, device=input.device) if which is None else which[part]
        rows = input[part] if which is None else input.index_select(0, where)
        goals = target[part] if which is None else target.index_select(0, where)
        block = buffer[full : full + stop - start]
        found = softmax(head, rows.to(head.weight.dtype), goals, block)
        factors = judge(part, found.log_p, found.entropy)
        if factors is not None and gradients is not None:
            kept = factors.nonzero().squeeze(1)  # waits for the device
            found.to_gaps()
            kept = _move_to_front(block, kept)
            held.append((where[kept], factors[kept]))
            full += len(kept)
        start = stop
        if full and gradients is not None and (start == n or 2 * full >= len(buffer)):
            where, factors = (torch.cat(parts) for parts in zip(*held, strict=True))
            rows = input.index_select(0, where).to(head.weight.dtype)
            gradients.add(head, buffer[:full, : head.classes], where, rows, factors)
            held, full = [], 0


def _stride(head: Head) -> int:
    """Length of a row of the buffer: that of the classes and some more.

    Rows that begin on a line of the cache, and not all at the same place of its pages: with a
    vocabulary of 2^15 the products are a tenth faster so.
    """
    line, page = 64 // head.dtype.itemsize, 4096 // head.dtype.itemsize
    stride = -(-head.classes // line) * line
    return stride + line if stride % page == 0 else stride


def _fused(device: torch.device) -> bool:
    """Whether the softmax in place is safe and best.

    On the CPU it finishes a row while that is in the cache, where logsumexp and exp would pass the
    whole block through memory five times.
    """
    return device.type == "cpu"


def softmax(head: Head, rows: Tensor, goals: Tensor, block: Tensor) -> Predictions:
    """The softmax in plain PyTorch; see `Softmax`."""
    p = block[:, : head.classes]
    slope = head.logits(rows, p)
    log_p = (_softmax_in_cache if _fused(p.device) else _softmax_of)(head, rows, goals, block)

    def to_gaps() -> None:
        p.scatter_add_(1, goals.unsqueeze(1), p.new_full((len(goals), 1), -1.0))
        if slope is not None:
            p.mul_(slope)

    return Predictions(log_p, lambda top_k: entropy_of(p, top_k), to_gaps)


def _softmax_of(head: Head, _: Tensor, goals: Tensor, block: Tensor) -> Tensor:
    """Turns the logits in the block into p; returns log p of the goals."""
    logits = block[:, : head.classes]
    chosen = logits.gather(1, goals.unsqueeze(1))
    total = logits.logsumexp(1, keepdim=True)
    logits.sub_(total).exp_()
    return (chosen - total).squeeze(1)


def _softmax_in_cache(head: Head, rows: Tensor, goals: Tensor, block: Tensor) -> Tensor:
    """The same on the CPU."""
    at = goals.unsqueeze(1)
    block[:, head.classes :] = -math.inf
    torch.softmax(block, dim=1, out=block)
    p = block.gather(1, at).squeeze(1)
    log_p = p.log()
    lost = (p < _TINY[block.dtype]).nonzero().squeeze(1)
    for few in torch.split(lost, _FEW):
        again = block.new_empty((len(few), head.classes))
        head.logits(rows.index_select(0, few), again)
        log_p[few] = torch.log_softmax(again, dim=1).gather(1, at[few]).squeeze(1)
    return log_p


def entropy_of(p: Tensor, top_k: int | None) -> Tensor:
    """Normalized entropies of p (m, C), (m,), some rows at a time."""
    return torch.cat([normalized_entropy(few, top_k) for few in torch.split(p, _FEW)])


def _move_to_front(block: Tensor, kept: Tensor) -> Tensor:
    """Moves the kept rows to the front of the block; returns them in the order they stand there.

    Only those behind the first len(kept) places move, into places of rows that are not kept.
    """
    count = len(kept)
    if count == len(block):
        return kept
    order = torch.arange(count, device=block.device)
    stays = kept < count
    hole = torch.ones(count, dtype=torch.bool, device=block.device)
    hole[kept[stays]] = False
    holes, moves = hole.nonzero().squeeze(1), kept[~stays]
    for to, of in zip(torch.split(holes, _FEW), torch.split(moves, _FEW), strict=True):
        block.index_copy_(0, to, block.index_select(0, of))
    order[holes] = moves
    return order
