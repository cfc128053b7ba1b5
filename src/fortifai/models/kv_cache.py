"""Keys and values that are written into room which was made before.

transformers' own cache is copied whole, in every layer, for each token that is written. Where it is
known how many tokens come, one buffer takes them all. Layers of other kinds stay as they are, and
so do windows that slide before the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class _Room:
    """A buffer of (rows, heads, all tokens, width) and the part of it that is written."""

    def __init__(self, written: Tensor, more: int) -> None:
        rows, heads, tokens, width = written.shape
        self._buffer = written.new_empty(rows, heads, tokens + more, width)
        self._buffer[:, :, :tokens] = written
        self._tokens = tokens

    def add(self, new: Tensor) -> Tensor:
        """All that is written, `new` behind it; `RuntimeError` where there is no room for it."""
        # a slice would end with the buffer, and take nothing of what is behind it
        self._buffer.narrow(2, self._tokens, new.shape[2]).copy_(new)
        self._tokens += new.shape[2]
        return self.written()

    def written(self) -> Tensor:
        """A view of what is written."""
        return self._buffer[:, :, : self._tokens]


class _InRoom:
    """A layer of transformers with all that it knows, whose keys and values have room."""

    _layer_type = None  # it takes no place in transformers' list of layers

    def __init__(self, layer: DynamicLayer, more: int) -> None:
        self.__dict__.update(vars(layer))
        keys, values = self._room = _Room(layer.keys, more), _Room(layer.values, more)
        self.keys, self.values = keys.written(), values.written()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens; those of all tokens."""
        keys, values = self._room
        self.keys, self.values = keys.add(key_states), values.add(value_states)
        return self.keys, self.values


class _Full(_InRoom, DynamicLayer):
    """Sees every token."""


class _Sliding(_InRoom, DynamicSlidingWindowLayer):
    """Sees a window, which holds every token that there will be."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As of others; it counts, too."""
        self.cumulative_length += key_states.shape[-2]
        return super().update(key_states, value_states)


@torch.inference_mode()
def with_room(past: Any, more: int) -> Any:
    """The cache that a model gave after a prompt, with room for so many tokens more.

    Args:
        past: A cache of transformers, changed in place; what is none is given back as it is.
        more: Tokens that are still read, at most.
    """
    layers = getattr(past, "layers", [])
    for i, layer in enumerate(layers):
        if type(layer) is DynamicLayer and layer.get_seq_length():
            layers[i] = _Full(layer, more)
        elif type(layer) is DynamicSlidingWindowLayer and _stays_in_window(layer, more):
            layers[i] = _Sliding(layer, more)
    return past


def _stays_in_window(layer: DynamicSlidingWindowLayer, more: int) -> bool:
    """Whether no token leaves it: a layer keeps all but one of the tokens that it sees."""
    tokens = layer.get_seq_length()
    return tokens > 0 and bool(tokens + more < layer.sliding_window)
