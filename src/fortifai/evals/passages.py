"""The same few passages followed through all generations (ForTIFAI, Table E6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def choose(n_tokens: int, context: int, count: int, length: int) -> list[int]:
    """Where the passages start: evenly spread over the part of a text that is rewritten.

    Args:
        n_tokens: Length of the text.
        context: Tokens at its beginning that are never rewritten.
        count: Passages wanted; fewer if they would overlap.
        length: Tokens of each.
    """
    room = n_tokens - context
    fitting = min(count, room // length) if length else 0
    if fitting <= 0:
        return []
    gap = room // fitting
    return [context + i * gap for i in range(fitting)]


def compare(
    real: NDArray[np.integer],
    now: NDArray[np.integer],
    decode: Callable[[Sequence[int]], str],
) -> dict[str, Any]:
    """A passage as it stands, with a mark at each token that differs from the real one's.

    Args:
        real: (n,) tokens of the real text.
        now: (n,) tokens at the same place.
        decode: Tokens to text.

    Returns:
        ``text``, ``tokens`` (one string each) and ``changed`` (one bool each).
    """
    ids = [int(t) for t in now]
    return {
        "text": decode(ids),
        "tokens": [decode([t]) for t in ids],
        "changed": [bool(c) for c in np.asarray(now) != np.asarray(real)],
    }
