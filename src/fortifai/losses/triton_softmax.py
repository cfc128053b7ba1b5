"""The softmax of the losses on hidden states as Triton kernels; imported where they are wanted.

For each row of logits x, one kernel takes max and sum of exponentials in a first pass over the row
and writes p in the second. The sums run lane by lane, so that rows are reduced once, at their end:
with m the largest so far, s = sum exp(x - m) and t = sum exp(x - m) (x - m), a new x moves them to

    m' = max(m, x),   s' = e s + exp(x - m'),   t' = e (t + (m - m') s) + exp(x - m') (x - m'),

where e = exp(m - m'); then lse = m + log s, and the entropy is log s - t / s.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fortifai.errors import InputError
from fortifai.losses.chunks import (
    Coefficients,
    Head,
    Predictions,
    Slopes,
    are_likeliest,
    entropy_of,
)

_LANES = 4096  # logits that a program holds at once


@triton.jit
def _softmax_kernel(
    x_ptr, stride, goal_ptr, log_p_ptr, lse_ptr, entropy_ptr, mean_ptr, classes, lanes: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * stride
    chosen = tl.load(x_row + tl.load(goal_ptr + row))
    lane = tl.arange(0, lanes)
    # finite: a lane that sees no logit must not become inf - inf
    top = tl.full((lanes,), -3.0e38, x_ptr.dtype.element_ty)
    s = tl.full((lanes,), 0.0, x_ptr.dtype.element_ty)
    t = tl.full((lanes,), 0.0, x_ptr.dtype.element_ty)
    plain = tl.full((lanes,), 0.0, x_ptr.dtype.element_ty)
    for start in range(0, classes, lanes):
        at = start + lane
        x = tl.load(x_row + at, mask=at < classes, other=-float("inf"))
        higher = tl.maximum(top, x)
        new = tl.exp(x - higher)
        old = tl.exp(top - higher)
        # where x is -inf, x log x is 0
        below = tl.where(new == 0, 0.0, x - higher)
        plain += tl.where(at < classes, x, 0.0)
        t = old * (t + (top - higher) * s) + new * below
        s = old * s + new
        top = higher
    most = tl.max(top, 0)
    by_lane = tl.exp(top - most)
    t = tl.sum(tl.where(s == 0, 0.0, by_lane * (t + (top - most) * s)), 0)
    total = tl.sum(by_lane * s, 0)
    lse = most + tl.log(total)
    tl.store(log_p_ptr + row, chosen - lse)
    tl.store(lse_ptr + row, lse)
    tl.store(entropy_ptr + row, tl.log(total) - t / total)
    tl.store(mean_ptr + row, tl.sum(plain, 0) / classes)
    for start in range(0, classes, lanes):
        at = start + lane
        x = tl.load(x_row + at, mask=at < classes, other=0.0)
        tl.store(x_row + at, tl.exp(x - lse), mask=at < classes)


@triton.jit
def _gaps_kernel(
    p_ptr, stride, slope_ptr, slope_stride, order_ptr, goal_ptr, pull_ptr, by_p_ptr, bent_ptr,
    level_ptr, classes, with_remainder: tl.constexpr, capped: tl.constexpr, lanes: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    p_row = p_ptr + row * stride
    of = tl.load(order_ptr + row)
    goal = tl.load(goal_ptr + of)
    pull = tl.load(pull_ptr + row)
    by_p = tl.load(by_p_ptr + row)
    bent = tl.load(bent_ptr + row)
    level = tl.load(level_ptr + row)
    lane = tl.arange(0, lanes)
    for start in range(0, classes, lanes):
        at = start + lane
        p = tl.load(p_row + at, mask=at < classes, other=0.0)
        gap = p * by_p
        if with_remainder:
            gap += bent * p * tl.log(tl.where(p > 0, p, 1.0)) - level
        gap -= tl.where(at == goal, pull, 0.0)
        if capped:
            gap *= tl.load(slope_ptr + of * slope_stride + at, mask=at < classes, other=0.0)
        tl.store(p_row + at, gap, mask=at < classes)


def softmax(head: Head, rows: Tensor, goals: Tensor, block: Tensor) -> Predictions:
    """`chunks.softmax` by kernels; see `chunks.Softmax`.

    Raises:
        InputError: The tensors are not on a GPU, and Triton's interpreter is not on.
    """
    if not block.is_cuda and not triton.knobs.runtime.interpret:
        raise InputError(
            f"inside triton_kernels() the hidden states are on {block.device.type}; Triton's "
            "kernels run on a GPU: move model and batch there, or leave triton_kernels() out"
        )
    p = block[:, : head.classes]
    terms = head.rows
    cap_slope = head.logits(rows, p)
    log_p, lse, entropies, means = (p.new_empty(len(p)) for _ in range(4))
    size = min(_LANES, triton.next_power_of_2(head.classes))
    _softmax_kernel[(len(p),)](
        p, p.stride(0), goals, log_p, lse, entropies, means, head.classes, lanes=size, num_warps=8
    )
    remainder = terms.remainder(lse, means, entropies) if terms.has_remainder else None

    def entropy(top_k: int | None) -> Tensor:
        if top_k is not None and top_k < head.classes:
            return entropy_of(p, top_k)
        return entropies / max(math.log(head.classes), 1e-9)

    def to_gaps(order: Tensor, slopes: Slopes) -> None:
        if cap_slope is None and slopes.pushes is None:
            at = goals[order].unsqueeze(1)
            p[: len(order)].scatter_add_(1, at, -slopes.pulls.unsqueeze(1))
            return
        if len(order) == 0:
            return
        none = torch.zeros_like(slopes.pulls)
        parts = Coefficients(slopes.pulls, None, None)
        if slopes.pushes is not None:
            parts = Coefficients.of(terms, slopes, lse[order], entropies[order], head.classes)
        slope = p if cap_slope is None else cap_slope  # not read where there is no cap
        _gaps_kernel[(len(order),)](
            p, p.stride(0), slope, slope.stride(0), order, goals, slopes.pulls, parts.by_p,
            none if parts.bent is None else parts.bent,
            none if parts.level is None else parts.level, head.classes,
            with_remainder=slopes.pushes is not None, capped=cap_slope is not None,
            lanes=size, num_warps=8,
        )  # fmt: skip

    return Predictions(log_p, entropy, lambda: are_likeliest(p, goals), remainder, to_gaps)
