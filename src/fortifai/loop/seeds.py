"""Seeds of every step, derived so that no stream of random numbers is ever used twice.

A seed depends on the experiment's root seed, the generation and the step, never on the arm: arms
draw the same batches and the same noise, so that they differ by what is compared alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def derive(root: int, *path: int | str) -> int:
    """A 32-bit seed for one step, as from a random function of `root` and `path`.

    SHA-256 of the path, cut to 32 bits because NumPy's legacy seeding, which trainers still call,
    takes no more.

    Args:
        root: The experiment's seed.
        path: What the seed is for, such as ``(generation, "regenerate", split)``.
    """
    return derive_all((root,), *path)[0]


def derive_all(roots: Sequence[int], *path: int | str) -> tuple[int, ...]:
    """`derive` of each of several roots."""
    rest = "".join(f"\x1f{type(p).__name__}:{p}" for p in path)
    return tuple(
        int.from_bytes(hashlib.sha256(f"int:{root}{rest}".encode()).digest()[:4], "big")
        for root in roots
    )
