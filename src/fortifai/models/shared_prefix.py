"""Writing many continuations of texts that are read once.

The keys and values of a text are computed once, in one pass. Every row that is written after it
(blocks that begin at different places of it, or the beams of one search) attends to those of them
that stand before its beginning and to its own tokens, in one softmax; nothing is copied or gathered
for it.

This rests on what transformers offers to extend: a function registered in its attention interface,
a `Cache` of our own and position ids. Whether a model plays by these rules is tried, not looked up:
`served` compares what it answers with what it answers in the ordinary way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import warnings
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from fortifai.errors import kind_and_reason

NAME = "fortifai_shared_prefix"
"""Name of `attend` in transformers' attention interface."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest difference of logits, as a share of their spread, that is taken for rounding.

Rounding gives about 1e-6 in float32. In half precision it gives some per cent, hence `HALF`.
"""
HALF = 0.1

SPREAD = {"cpu": 256, "cuda": 2048}
"""Tokens by which the limits of rows in one product may differ: more is work for nothing, less is
more calls, which cost a GPU more than work does."""


@dataclasses.dataclass(frozen=True)
class Prefix:
    """Texts of one length, read once.

    Attributes:
        ids: (texts, length) int64 token ids.
        keys: Of each layer (texts, heads of keys, length, width).
        values: Of each layer, likewise.
        logits: (texts, places, vocabulary) float32, those after the places asked for.
    """

    ids: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    logits: Tensor


def cache_name(model: PreTrainedModel) -> str:
    """What a model's forward and its answer call keys and values.

    ``cache`` from transformers 5.24 on, which warns of the older ``past_key_values``.
    """
    return _cache_name(type(model).forward)


@functools.cache  # asked for at every token
def _cache_name(forward: Any) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


@torch.inference_mode()
def read(model: PreTrainedModel, ids: Tensor, places: Tensor) -> Prefix:
    """Read texts from their beginning.

    Args:
        model: In evaluation mode.
        ids: (texts, length) int64 token ids on the model's device.
        places: (places,) int64 positions whose logits are wanted, the same of every text.
    """
    # without the configuration, so that layers with a sliding window keep all of the text
    cache = DynamicCache()
    sparing = "logits_to_keep" in inspect.signature(model.forward).parameters
    more = {cache_name(model): cache} | ({"logits_to_keep": places} if sparing else {})
    logits = model(input_ids=ids, use_cache=True, **more).logits
    chosen = logits if sparing else logits[:, places]
    keys = [layer.keys for layer in cache.layers]
    return Prefix(ids, keys, [layer.values for layer in cache.layers], chosen.float())


@dataclasses.dataclass
class _Own:
    """How many tokens of its own each row has read, (all rows,) int64, and the most of these."""

    counts: Tensor
    most: int = 0


class _Layer(DynamicLayer):
    """Keys and values of one layer: of the texts, and of what each row has read after them.

    There may be room for more rows than are written; the last places are empty then.
    """

    def __init__(self, own: _Own, prefix_keys: Tensor, prefix_values: Tensor, room: int) -> None:
        super().__init__()
        self.own, self.prefix_keys, self.prefix_values = own, prefix_keys, prefix_values
        shape = (len(own.counts), prefix_keys.shape[1], room)
        self.keys = prefix_keys.new_zeros((*shape, prefix_keys.shape[-1]))
        self.values = prefix_values.new_zeros((*shape, prefix_values.shape[-1]))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put the keys and values of one more token of each row behind its others."""
        counts = self.own.counts
        every = torch.arange(len(counts), device=counts.device)
        self.keys[every, :, counts] = key_states.transpose(1, 2).flatten(0, 1)
        self.values[every, :, counts] = value_states.transpose(1, 2).flatten(0, 1)
        return self.keys[: len(counts)], self.values[: len(counts)]

    def get_seq_length(self) -> int:
        """Tokens that the longest row sees."""
        return self.prefix_keys.shape[-2] + self.own.most


class Rows(Cache):
    """Rows that are written side by side, several after each of some texts.

    Attributes:
        limits: (texts, rows a text) int64, how many tokens of its text each row sees; those of
            neighbours are close to each other.
        own: What each row has read of its own.
        pieces: Rows of every text that attend in one product.
    """

    def __init__(self, prefix: Prefix, limits: Tensor, room: int) -> None:
        """Rows after `prefix`, with `room` for so many tokens of their own each."""
        self.limits = limits
        self.own = _Own(torch.zeros(limits.numel(), dtype=torch.long, device=limits.device))
        self.pieces = _pieces(limits)
        self._unseen: dict[tuple[int, int | None], Tensor] = {}
        pairs = zip(prefix.keys, prefix.values, strict=True)
        super().__init__(layers=[_Layer(self.own, k, v, room) for k, v in pairs])

    @property
    def positions(self) -> Tensor:
        """(texts, rows a text) int64 position of each row's next token."""
        return self.limits + self.own.counts.view_as(self.limits)

    def advance(self) -> None:
        """Count the token that every row has read."""
        self.own.counts += 1
        self.own.most += 1
        self._unseen.clear()

    def reorder(self, kept: Tensor) -> None:
        """Replace every row's own tokens by those of row `kept` (all rows,) of the same text."""
        most = self.own.most
        for layer in self.layers:
            for own in (layer.keys, layer.values):
                own[:, :, :most] = own[kept, :, :most]

    def unseen(self, piece: _Piece, window: int | None) -> Tensor:
        """What is added to scores: -inf where a row may not attend to, 0 elsewhere.

        A row at position p sees the tokens of its text before its limit and its own up to now, of
        both those at positions above p - window.

        Returns:
            (texts, 1, 1, rows of the piece, tokens of the text in `piece.sees` + own) float32.
        """
        key = (piece.rows.start, window)
        if key not in self._unseen:
            limits = self.limits[:, piece.rows, None]
            counts = self.own.counts.view_as(self.limits)[:, piece.rows, None]
            seen = piece.sees(window)
            place = torch.arange(seen.start, seen.stop, device=limits.device)
            own = torch.arange(self.own.most + 1, device=limits.device)
            far, near = place >= limits, own > counts
            if window is not None:
                far = far | (place <= limits + counts - window)
                near = near | (own <= counts - window)
            hidden = torch.cat([far, near], dim=-1)[:, None, None]
            # added once to many heads: several times as fast as filling where a mask is true
            added = torch.zeros(hidden.shape, device=hidden.device)
            self._unseen[key] = added.masked_fill_(hidden, -torch.inf)
        return self._unseen[key]


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Neighbouring rows of every text, and the least and the largest of their limits."""

    rows: slice
    least: int
    most: int

    def sees(self, window: int | None) -> slice:
        """The tokens of a text that any of them sees, the first ones at the latest."""
        return slice(0 if window is None else max(0, self.least - window + 1), self.most)


def _pieces(limits: Tensor) -> list[_Piece]:
    """Cut (texts, rows a text) limits where those of a piece would lie too far apart."""
    if not len(limits):  # texts that join later, of which no row sees anything
        return [_Piece(slice(0, limits.shape[1]), 0, 0)]
    least, most = limits.amin(0).tolist(), limits.amax(0).tolist()
    spread = SPREAD.get(limits.device.type, SPREAD["cpu"])
    out: list[_Piece] = []
    for row, (low, high) in enumerate(zip(least, most, strict=True)):
        last = out[-1] if out else None
        if last and max(last.most, high) - min(last.least, low) < spread:
            rows = slice(last.rows.start, row + 1)
            out[-1] = _Piece(rows, min(last.least, low), max(last.most, high))
        else:
            out.append(_Piece(slice(row, row + 1), low, high))
    return out


_SCORED_BY = ("scaling", "softcap", "sliding_window", "s_aux")
"""What the attention of a layer may bring that changes its scores, by transformers' names."""


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared_prefix: Rows,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token of each row, as transformers' attention interface asks for it.

    Of the scores s = q k^T * `scaling`, capped to c tanh(s / c) where a `softcap` c is given, over
    the tokens that `Rows.unseen` leaves, and a column of `s_aux` (sinks) whose value is nothing.

    Args:
        module: The layer's attention; its `layer_idx` tells which.
        query: (texts, heads, rows a text, width).
        key: (all rows, heads of keys, room, width), the rows' own, as the cache gives them.
        value: Likewise.
        attention_mask: Not looked at: `shared_prefix` knows.
        shared_prefix: What was given to the model's forward under this name.
        kwargs: Those of `scaling` (1 / sqrt(width) if None), `softcap`, `sliding_window` of this
            layer and `s_aux` (heads,) that there are; and what other implementations take.

    Returns:
        (texts, rows a text, heads, width), and no weights.
    """
    layer = shared_prefix.layers[module.layer_idx]
    texts, heads, rows, width = query.shape
    kv, group, wide = key.shape[1], heads // key.shape[1], value.shape[-1]
    now = shared_prefix.own.most + 1
    scaling, softcap, window, s_aux = map(kwargs.get, _SCORED_BY)
    query = query.view(texts, kv, group, rows, width)
    own = query.permute(0, 3, 1, 2, 4).flatten(0, 1)
    near = (own @ key[:, :, :now].transpose(-1, -2)).view(texts, rows, kv, group, now)
    shares = torch.empty_like(near)
    out = query.new_empty(texts, rows, kv, group, wide)
    for piece in shared_prefix.pieces:
        seen, each = piece.sees(window), query[:, :, :, piece.rows]
        count, length = each.shape[3], seen.stop - seen.start
        far = each.reshape(texts, kv, group * count, width)
        far = far @ layer.prefix_keys[:, :, seen].transpose(-1, -2)
        far = far.view(texts, kv, group, count, length)
        scores = torch.cat([far, near[:, piece.rows].permute(0, 2, 3, 1, 4)], dim=-1)
        scores = scores.float().mul_(width**-0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        scores = scores.add_(shared_prefix.unseen(piece, window))
        if s_aux is not None:
            sink = s_aux.float().view(1, kv, group, 1, 1)
            scores = torch.cat([scores, sink.expand(texts, kv, group, count, 1)], dim=-1)
        weights = torch.softmax(scores, dim=-1).to(value.dtype)
        far = weights[..., :length].reshape(texts, kv, group * count, length)
        far = (far @ layer.prefix_values[:, :, seen]).view(texts, kv, group, count, wide)
        out[:, piece.rows] = far.permute(0, 3, 1, 2, 4)
        shares[:, piece.rows] = weights[..., length : length + now].permute(0, 3, 1, 2, 4)
    near = (shares.flatten(0, 1) @ value[:, :, :now]).view_as(out)
    return (out + near).view(texts, rows, heads, wide), None


AttentionInterface.register(NAME, attend)


@torch.inference_mode()
def step(model: PreTrainedModel, rows: Rows, tokens: Tensor) -> Tensor:
    """Read one more token of every row.

    Args:
        model: As `attending` has set it.
        rows: The rows; their counts grow by one.
        tokens: (all rows,) int64.

    Returns:
        (all rows, vocabulary) float32 logits of the next.
    """
    answer = model(
        input_ids=tokens.view_as(rows.limits),
        position_ids=rows.positions,
        use_cache=True,
        shared_prefix=rows,
        **{cache_name(model): rows},
    )
    rows.advance()
    return answer.logits.flatten(0, 1).float()


@contextlib.contextmanager
def attending(model: PreTrainedModel) -> Iterator[None]:
    """Let the model attend by `attend` for a while."""
    config = model.config
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    before: Any = config._attn_implementation
    if parts:
        before = {"": before} | {n: p._attn_implementation for n, p in parts.items() if p}
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


_served: WeakKeyDictionary[PreTrainedModel, float] = WeakKeyDictionary()
"""Longest text with which each model was found to be served; -1 for one that is not."""


def served(model: PreTrainedModel, ids: Tensor) -> bool:
    """Whether the model answers by way of `attend` as it does in the ordinary way, up to rounding.

    Tried once for each model and again for longer texts, where windows may end. One that is not
    served is warned of once, with the reason.

    Args:
        model: In evaluation mode.
        ids: (length,) int64, a text as long as will be read.
    """
    tried = _served.get(model)
    if tried is not None and (tried < 0 or tried >= len(ids)):
        return tried >= 0
    reason = _fault(model, ids.to(model.device)[None])
    _served[model] = -1 if reason else len(ids)
    if reason:
        warnings.warn(
            f"{type(model).__name__} cannot share what it has read between the texts it writes "
            f"({reason}), so every one of them is read anew: the text is the same, and it takes "
            "longer",
            stacklevel=3,
        )
    return not reason


MOVING_ROPES = frozenset({"dynamic", "longrope"})
"""Rotary embeddings, as transformers' configurations name them, that rescale by length."""


def _rope_types(config: Any) -> set[str]:
    """The rotary embeddings of a model; some tell one for each type of layer."""
    told = getattr(config, "rope_parameters", None) or {}
    each = [told, *(part for part in told.values() if isinstance(part, dict))]
    return {part["rope_type"] for part in each if "rope_type" in part}


def _fault(model: PreTrainedModel, ids: Tensor) -> str:
    """Why a model is not served; nothing if it is."""
    if not model._supports_attention_backend:
        return "it does not use transformers' attention interface"
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return "its layers keep something else than keys and values"
    if _rope_types(model.config.get_text_config(decoder=True)) & MOVING_ROPES:
        return "its rotary frequencies depend on the longest text that is read at a time"
    # two rows that read tokens of the text as their own: at its end, and in its middle
    length = ids.shape[1]
    again = min(2, length)
    ends = torch.tensor([length, max(again, length // 2)], device=ids.device)
    try:
        prefix = read(model, ids, ends - 1)
        rows = Rows(prefix, (ends - again)[None], again)
        with attending(model):
            for i in range(again):
                got = step(model, rows, ids[0, ends - again + i])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model of unknown making raises: it is not served
        return kind_and_reason(error)
    expected = prefix.logits[0]
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    apart = float(((got - expected).norm(dim=-1) / spread).max())
    if apart <= TOLERANCE.get(model.dtype, HALF):
        return ""
    return f"its logits come out different by {apart:.2g} of their spread"
