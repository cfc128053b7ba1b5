"""The output layer and its softmax, some rows at a time: full logits never exist.

With the logits x_i = W h_i + b of row i, z_i = x_i / beta and the one-hot target y_i, the gradient
of log p_i = z_i[t_i] - lse(z_i) in z_i is y_i - p_i, and that of the remainder R_i is r_i (see
`rows`). A loss L of the log p and R alone therefore has, with a_i = -dL/dlog p_i and
e_i = dL/dR_i, the slopes g_i = (a_i (p_i - y_i) + e_i r_i) / beta in x_i, and

    dL/dh_i = g_i W,    dL/dW = sum_i g_i^T h_i,    dL/db = sum_i g_i.

Rows with a_i = e_i = 0 need none of this: only the rest pass through the two products of the
backward.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fortifai.losses.rows import RowLoss
from fortifai.losses.weighing import normalized_entropy

# Below these log p is taken from logits computed anew, since p itself has lost its digits
_TINY = {torch.float32: 1e-30, torch.float64: 1e-290}
# Rows copied, computed anew or asked for their entropy at once: what stands beside the buffer
_FEW = 16


def _wide_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Product of half-precision matrices, in float32 and not rounded before.

    Rounded to half precision, products of chunks would add up to gradients whose errors lean one
    way: no single step shows it, and over some dozens the predictions lose entropy.
    """
    if a.device.type == "cuda" and torch.__version__ >= "2.8":
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a.to(dtype), b.to(dtype))


@dataclasses.dataclass(frozen=True)
class Head:
    """The output layer.

    Attributes:
        weight: (C, d), in the dtype of the products.
        bias: (C,) in `dtype`, or None.
        scale: Of the logits, before the cap.
        softcap: Cap of the logits, or None.
        dtype: Of logits, statistics and accumulated gradients: float32 or float64.
        rows: What a row of logits loses; its beta divides them after the cap.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    dtype: torch.dtype
    rows: RowLoss = RowLoss()  # noqa: RUF009 - frozen

    @property
    def classes(self) -> int:
        """C."""
        return self.weight.shape[0]

    def logits(self, rows: Tensor, out: Tensor) -> Tensor | None:
        """Writes the logits of hidden states (m, d), over beta, to `out` (m, C).

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
        if self.softcap is None:
            if self.slope != 1:
                out.mul_(self.slope)
            return None
        slope = out.mul_(self.scale / self.softcap).tanh_().square().neg_().add_(1)
        out.mul_(self.softcap / self.rows.gem_beta)
        return slope

    @property
    def slope(self) -> float:
        """Of z in what the product and the bias give, but for that of the cap."""
        return self.scale / self.rows.gem_beta


class Gradients:
    """Sums of gradients, in the dtype of the statistics; None for what nobody needs.

    Attributes:
        input: (N, d), zero where nothing was added.
        weight: (C, d).
        bias: (C,).
    """

    def __init__(self, input: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> None:
        self.input, self.weight, self.bias = input, weight, bias
        self._added = False  # until then `weight` holds nothing, not even zeros

    @classmethod
    def empty(cls, head: Head, n: int, wanted: tuple[bool, bool, bool]) -> Gradients:
        """Gradients of n hidden states, of the head and of its bias, where `wanted`."""
        classes, width = head.weight.shape
        new = functools.partial(head.weight.new_zeros, dtype=head.dtype)
        return cls(
            new((n, width)) if wanted[0] else None,
            head.weight.new_empty((classes, width), dtype=head.dtype) if wanted[1] else None,
            new((classes,)) if wanted[2] else None,
        )

    def finish(self) -> None:
        """To be called when all is added."""
        if not self._added and self.weight is not None:
            self.weight.zero_()

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
            gaps: g over the factors and the slope of `head` (k, C).
            where: Which of the N hidden states these are, (k,).
            rows: The hidden states (k, d), in the dtype of the products.
            factors: (k,).
        """
        factors = factors * head.slope if head.slope != 1 else factors
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
                product = _wide_product(narrow.t(), scaled, head.dtype)
                self.weight = self.weight.add_(product) if self._added else product
            else:
                # nothing is read of it the first time
                self.weight.addmm_(narrow.t(), scaled, beta=int(self._added))
        if self.bias is not None:
            self.bias.addmv_(gaps.t(), factors)
        self._added = True


@dataclasses.dataclass(frozen=True)
class Slopes:
    """What a loss changes by with what rows lose.

    Attributes:
        pulls: a, minus the slope in log p, (m,).
        pushes: e, the slope in R, (m,); None where there is no R.
    """

    pulls: Tensor
    pushes: Tensor | None

    def normalized(self) -> tuple[Tensor, Slopes]:
        """Factors (m,), 0 for rows that need no gradient, and slopes over them."""
        if self.pushes is None:
            return self.pulls, Slopes(torch.ones_like(self.pulls), None)
        factors = torch.maximum(self.pulls.abs(), self.pushes.abs())  # NaN stays NaN
        over = torch.where(factors == 0, 1.0, factors)
        return factors, Slopes(self.pulls / over, self.pushes / over)

    def __getitem__(self, which: Tensor) -> Slopes:
        """Those of some rows."""
        return Slopes(self.pulls[which], None if self.pushes is None else self.pushes[which])


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What some rows predict, while their p stand in a block (m, C).

    Attributes:
        log_p: Of the goals, (m,).
        entropy: Gives the normalized entropies (m,) for an ``entropy_top_k``, while p are there.
        likeliest: Gives which goals are the likeliest class, ties among them, (m,) bool, likewise.
        remainder: R of the rows, (m,); None where there is none.
        to_gaps: Gets which of the rows (k,) stand in the first k places of the block by now, and
            their slopes; turns their p into a (p - y) + e r, with the slope of the soft-cap.
    """

    log_p: Tensor
    entropy: Callable[[int | None], Tensor]
    likeliest: Callable[[], Tensor]
    remainder: Tensor | None
    to_gaps: Callable[[Tensor, Slopes], None]


Softmax = Callable[[Head, Tensor, Tensor, Tensor], Predictions]
"""Gets the head, hidden states (m, d) in the dtype of the products, goals (m,) and rows of the
buffer (m, C or more) with room for p, in the order of the classes."""

Judge = Callable[[slice, Predictions], Slopes | None]
"""Gets the place of some rows among all and what they predict; returns the slopes of the loss, or
None where no gradient is wanted."""


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

    What is kept of a chunk stays in the buffer beside the next rows until half of it is full, so
    that the products of the backward are large even where few rows are kept.

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
    held: list[tuple[Tensor, Tensor]] = []  # where kept rows come from, and their factors
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
        slopes = judge(part, found)
        if slopes is not None and gradients is not None:
            factors, slopes = slopes.normalized()
            kept = factors.nonzero().squeeze(1)  # waits for the device
            kept = _move_to_front(block, kept)
            found.to_gaps(kept, slopes[kept])
            held.append((where[kept], factors[kept]))
            full += len(kept)
        start = stop
        if full and gradients is not None and (start == n or 2 * full >= len(buffer)):
            where, factors = (torch.cat(parts) for parts in zip(*held, strict=True))
            rows = input.index_select(0, where).to(head.weight.dtype)
            gradients.add(head, buffer[:full, : head.classes], where, rows, factors)
            held, full = [], 0
    if gradients is not None:
        gradients.finish()


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
    terms = head.rows
    cap_slope = head.logits(rows, p)
    mean = p.mean(1) if terms.label_smoothing else None
    log_p, lse = (_softmax_in_cache if _fused(p.device) else _softmax_of)(head, rows, goals, block)
    nats = None
    if terms.confidence_penalty:
        nats = entropy_of(p, None) * math.log(head.classes)
    remainder = terms.remainder(lse, mean, nats) if terms.has_remainder else None

    def to_gaps(order: Tensor, slopes: Slopes) -> None:
        gaps = p[: len(order)]
        some = tuple(None if t is None else t[order] for t in (lse, nats))
        _to_gaps(terms, gaps, goals[order], slopes, *some)
        if cap_slope is not None:
            for part, which in zip(torch.split(gaps, _FEW), torch.split(order, _FEW), strict=True):
                part.mul_(cap_slope.index_select(0, which))

    return Predictions(
        log_p,
        lambda top_k: entropy_of(p, top_k),
        lambda: are_likeliest(p, goals),
        remainder,
        to_gaps,
    )


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """What the slopes in z of some rows are made of: p (by_p + bent log p) - a y - level.

    From a (p - y) + e r with r = p (s + c (log p + H) + 2 k lse) - s / C.

    Attributes:
        by_p: (k,).
        bent: (k,); None where c is 0.
        level: (k,); None where s is 0.
    """

    by_p: Tensor
    bent: Tensor | None
    level: Tensor | None

    @classmethod
    def of(
        cls, terms: RowLoss, slopes: Slopes, lse: Tensor | None, nats: Tensor | None, classes: int
    ) -> Coefficients:
        """From the slopes of rows of a remainder, their lse z and their entropies H in nats."""
        assert slopes.pushes is not None
        by_p, bent, level = slopes.pulls, None, None
        if terms.label_smoothing:
            spread = terms.label_smoothing * slopes.pushes
            by_p, level = by_p + spread, spread / classes
        if terms.confidence_penalty:
            assert nats is not None
            bent = terms.confidence_penalty * slopes.pushes
            by_p = by_p + bent * nats
        if terms.z_loss:
            assert lse is not None
            by_p = by_p + 2 * terms.z_loss * slopes.pushes * lse
        return cls(by_p, bent, level)


def _to_gaps(
    terms: RowLoss,
    p: Tensor,
    goals: Tensor,
    slopes: Slopes,
    lse: Tensor | None,
    nats: Tensor | None,
) -> None:
    """Turns p of some rows (k, C) into a (p - y) + e r, some of them at a time."""
    if slopes.pushes is not None:
        parts = Coefficients.of(terms, slopes, lse, nats, p.shape[1])
        for start in range(0, len(p), _FEW):
            few = slice(start, start + _FEW)
            rows, by_p = p[few], parts.by_p[few].unsqueeze(1)
            if parts.bent is None:
                rows.mul_(by_p)
            else:
                surprise = torch.special.entr(rows)  # -p log p, 0 where p is
                rows.mul_(by_p).sub_(surprise.mul_(parts.bent[few].unsqueeze(1)))
            if parts.level is not None:
                rows.sub_(parts.level[few].unsqueeze(1))
    p.scatter_add_(1, goals.unsqueeze(1), -slopes.pulls.unsqueeze(1))


def _softmax_of(
    head: Head, _: Tensor, goals: Tensor, block: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Turns the logits in the block into p; returns log p of the goals, and lse."""
    logits = block[:, : head.classes]
    chosen = logits.gather(1, goals.unsqueeze(1))
    total = logits.logsumexp(1, keepdim=True)
    logits.sub_(total).exp_()
    return (chosen - total).squeeze(1), total.squeeze(1)


def _softmax_in_cache(
    head: Head, rows: Tensor, goals: Tensor, block: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The same on the CPU; lse is None where it is not needed."""
    at = goals.unsqueeze(1)
    likeliest = block[:, : head.classes].max(1, keepdim=True) if head.rows.needs_lse else None
    block[:, head.classes :] = -math.inf
    torch.softmax(block, dim=1, out=block)
    p = block.gather(1, at).squeeze(1)
    log_p = p.log()
    lost = (p < _TINY[block.dtype]).nonzero().squeeze(1)
    for few in torch.split(lost, _FEW):
        again = block.new_empty((len(few), head.classes))
        head.logits(rows.index_select(0, few), again)
        log_p[few] = torch.log_softmax(again, dim=1).gather(1, at[few]).squeeze(1)
    if likeliest is None:
        return log_p, None
    lse = likeliest.values - block.gather(1, likeliest.indices).log()
    return log_p, lse.squeeze(1)


def entropy_of(p: Tensor, top_k: int | None) -> Tensor:
    """Normalized entropies of p (m, C), (m,), some rows at a time."""
    return torch.cat([normalized_entropy(few, top_k) for few in torch.split(p, _FEW)])


def are_likeliest(p: Tensor, goals: Tensor) -> Tensor:
    """Whether no class has more p (m, C) than the goals (m,)."""
    return p.gather(1, goals.unsqueeze(1)).squeeze(1) >= p.amax(1)


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
