"""Seeds of every step, derived so that no stream of random numbers is ever used twice.

A seed depends on the experiment's root seed, the generation and the step, never on the arm: arms
draw the same batches and the same noise, so that they differ by what is compared alone.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

Seed = int | tuple[int, ...]
"""The random numbers of one chain: one seed, or all those that its family works on at once."""

S = TypeVar("S", int, tuple[int, ...], Seed)


def derive(root: S, *path: int | str) -> S:
    """A 32-bit seed for one step, as from a random function of `root` and `path`.

    SHA-256 of the path, cut to 32 bits because NumPy's legacy seeding, which trainers still call,
    takes no more.

    Args:
        root: The experiment's seed, or several, of which each is derived.
        path: What the seed is for, such as ``(generation, "regenerate", split)``.
    """
    rest = "".join(f"\x1f{type(p).__name__}:{p}" for p in path)
    if isinstance(root, tuple):
        return tuple(_cut(one, rest) for one in root)
    return _cut(root, rest)


def _cut(root: int, rest: str) -> int:
    return int.from_bytes(hashlib.sha256(f"int:{root}{rest}".encode()).digest()[:4], "big")
