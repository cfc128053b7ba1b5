"""How much is new in a text, word by word: its entropy rate by match lengths, without a model."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

MOST_WORDS = 1500
"""Words of a text that count, as in 2610.01493: the estimate rises with their number."""

LEAST_WORDS = 50
"""Texts with fewer have no entropy rate there: too little can have been seen before."""


def words_of(text: str) -> list[str]:
    """The words of a text as 2610.01493 counts them: runs of a-z and 0-9 in lower case."""
    return re.findall("[a-z0-9]+", text.lower())


def entropy_rate(words: Sequence[str]) -> float:
    """Entropy rate of a sequence of words, in bits per word (Kontoyiannis et al. 1998).

    n log2 n / sum of Lambda_i over i = 2..n, where Lambda_i is the length of the shortest run of
    words from i on that does not occur whole among the words before i; where all that is left
    does, that and one more, as in the code of 2610.01493. It is 0 for a single word, and about
    log2 n for words that are all different.

    Linear in the number of words: a suffix automaton grows with what has been read, and the match
    from the next word on is at most one word shorter than that from this one.

    Args:
        words: Any number from 1; see `words_of`, `MOST_WORDS` and `LEAST_WORDS`.

    Raises:
        ValueError: There is none.
    """
    if not words:
        raise ValueError("the entropy rate is that of at least one word")
    n = len(words)
    return n * math.log2(n) / max(1, sum(match + 1 for match in _matches(words)))


_LONG = 64
"""Words of a run from which on an automaton of its document is quicker than sorting runs."""


def entropy_rates(words: NDArray[np.uint64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """`entropy_rate` of many documents at once; several times as fast where runs are short.

    The sum of all matches is, over lengths L, the number of places from which on L words occur
    whole before: so runs are sorted, by one word more in each turn, those alone that occur twice.

    Args:
        words: (n,) a number for each word, the documents one after the other.
        lengths: (d,) words of each document, summing to n.

    Returns:
        (d,) bits per word; NaN for a document without words.

    Raises:
        ValueError: There are 2^21 words or more: give fewer documents at once.
    """
    count, total = len(lengths), len(words)
    if total >= 1 << 21:
        raise ValueError(f"{total:,} words came at once; give fewer than {1 << 21:,}")
    document = np.repeat(np.arange(count), lengths)
    ends = np.cumsum(lengths)
    _, ids = np.unique(words, return_inverse=True)
    bits = max(1, total.bit_length())
    matched = np.zeros(count, dtype=np.int64)
    place, group, size = np.arange(total), document, 1
    while len(place) and size <= _LONG:
        # by run, then by place; three numbers below n in 64 bits
        packed = (group << 2 * bits) | (ids[place + size - 1] << bits) | place
        packed.sort()
        place, run = packed & ((1 << bits) - 1), packed >> bits
        starts = np.flatnonzero(np.concatenate([[True], run[1:] != run[:-1]]))
        group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(run)))
        before = place - place[starts][group] >= size  # the first one is whole before this one
        matched += np.bincount(document[place[before]], minlength=count)
        kept = np.logical_or.reduceat(before, starts)[group]
        kept &= place + size < ends[document[place]]
        place, group, size = place[kept], group[kept], size + 1
    for d in np.unique(document[place]):
        matched[d] = sum(_matches(ids[ends[d] - lengths[d] : ends[d]].tolist()))
    n = np.asarray(lengths, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates: NDArray[np.float64] = n * np.log2(n) / np.maximum(1, matched + n - 1)
    return rates


def _matches(words: Sequence[Hashable]) -> Iterator[int]:
    """For each word but the first: how long a run from it on occurs whole among those before it."""
    # the automaton of words[:i]: each state is a class of runs that end at the same places, the
    # longest of `length` words; `link` leads to the longest of their ends that is in another one
    onward: list[dict[Hashable, int]] = [{}]
    length, link, last = [0], [-1], 0
    state = match = 0  # words[i : i + match], and where it lies
    for i in range(1, len(words)):
        word = words[i - 1]
        new = len(length)
        onward.append({})
        length.append(length[last] + 1)
        link.append(0)
        at, last = last, new
        while at >= 0 and word not in onward[at]:
            onward[at][word] = new
            at = link[at]
        if at >= 0:
            known = onward[at][word]
            if length[known] == length[at] + 1:
                link[new] = known
            else:
                copy = len(length)
                onward.append(onward[known].copy())
                length.append(length[at] + 1)
                link.append(link[known])
                link[known] = link[new] = copy
                while at >= 0 and onward[at].get(word) == known:
                    onward[at][word] = copy
                    at = link[at]
        match = max(0, match - 1)
        while state and length[link[state]] >= match:  # the shorter run, or its state was split
            state = link[state]
        while i + match < len(words) and (found := onward[state].get(words[i + match])) is not None:
            state, match = found, match + 1
        yield match
