"""Audit of a corpus beside another one, without a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fortifai.audit.findings import Audit, Finding, Levels, Worse, judged
from fortifai.errors import InputError
from fortifai.evals import diversity

Ids = NDArray[np.int64]

_WORD = re.compile(r"\w+|[^\w\s]")


def audit_texts(
    text: str,
    against: str,
    *,
    subject: str = "the text",
    reference: str = "the reference",
    windows: int = 1024,
    size: int = 64,
    seed: int = 0,
    levels: Levels | None = None,
) -> Audit:
    """Compare a text with one that is known to be human, by words.

    Words are runs of letters and digits, and single marks, whatever their case. As many windows of
    `size` words, evenly spread, are taken of the text as of the reference, and as many again of
    the reference for the noise floor. A text of another kind differs, too: compare like with like.

    Args:
        text: The text in question.
        against: The text to compare it with.
        subject: What to call the one.
        reference: What to call the other.
        windows: At most so many windows of the text.
        size: Words of a window.
        seed: Of the resampling.
        levels: What counts as a sign.

    Raises:
        InputError: One of them is too short.
    """
    levels = levels or Levels()
    words = [_WORD.findall(x.casefold()) for x in (text, against)]
    ids = _numbered(words)
    count = min(windows, len(ids[0]) // size, len(ids[1]) // size // 2)
    least = diversity.MIN_WINDOWS * size
    if count < diversity.MIN_WINDOWS:
        raise InputError(
            f"{subject} has {len(ids[0]):,} words and {reference} {len(ids[1]):,}; an audit needs "
            f"at least {least:,} and {2 * least:,}, give longer texts"
        )
    own = spread(ids[0], count, size)
    others = spread(ids[1], 2 * count, size)
    return Audit(
        subject,
        reference,
        breadths(own, others[::2], others[1::2], reference, levels, seed, unit="words"),
        f"{count:,} windows of {size} words of each, evenly spread",
        (
            "whether what it says is true",
            "who wrote it: a narrow text can be human, a broad one written by a model",
        ),
    )


def breadths(
    own: Ids,
    reference: Ids,
    more: Ids,
    against: str,
    levels: Levels,
    seed: int,
    *,
    unit: str,
) -> tuple[Finding, ...]:
    """Entropy, tail, repetition, sameness and divergence of windows of a text."""

    def repetition(own: Ids, reference: Ids, more: Ids, *, seed: int) -> diversity.Comparison:
        shares = (diversity.repetition(x) for x in (own, reference, more))
        return diversity.means(*shares, seed=seed)

    measures: tuple[
        tuple[str, str, Callable[..., diversity.Comparison], str, Worse | None], ...
    ] = (
        ("entropy", f"variety of {unit}, entropy", diversity.entropy, "nats", "lower"),
        ("tail", f"rare {unit}", diversity.tail, "share", "lower"),
        ("repetition", "repetition in a passage", repetition, "share", "higher"),
        ("sameness", "the same phrases everywhere", diversity.duplication, "share", "higher"),
        ("divergence", f"divergence of {unit}", diversity.divergence, "nats", None),
    )
    return tuple(
        judged(name, title, against, measure(own, reference, more, seed=seed), of, worse, levels)
        for name, title, measure, of, worse in measures
    )


def spread(ids: Ids, count: int, size: int) -> Ids:
    """(count, size): windows evenly spread over a stream, none overlapping another."""
    room = len(ids) // count
    starts = np.arange(count) * room + (room - size) // 2
    windows: Ids = ids[starts[:, None] + np.arange(size)]
    return windows


def _numbered(texts: Sequence[Sequence[str]]) -> list[Ids]:
    """Each different word as one number, the same in all texts."""
    numbers: dict[str, int] = {}
    return [
        np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int64)
        for words in texts
    ]
