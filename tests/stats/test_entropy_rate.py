"""The entropy rate of words by match lengths."""

from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest

from fortifai.stats.entropy_rate import (
    entropy_rate,
    entropy_rates,
    words_of,
)


def quadratic(words) -> float:
    """By the definition: for each place, run after run is looked for in all before it."""
    lengths = []
    for i in range(1, len(words)):
        size = 1
        while i + size <= len(words) and any(
            words[j : j + size] == words[i : i + size] for j in range(i - size + 1)
        ):
            size += 1
        lengths.append(size)
    return len(words) * math.log2(len(words)) / max(1, sum(lengths))


def test_by_hand():
    # b: 1, new; a: seen, "a b" seen, nothing left, so 3; b: seen, 2
    assert entropy_rate(["a", "b", "a", "b"]) == pytest.approx(4 * 2 / (1 + 3 + 2))
    # "a a" does not lie before the second a, but before the third
    assert entropy_rate(["a"] * 4) == pytest.approx(4 * 2 / (2 + 3 + 2))
    assert entropy_rate(["a"]) == 0


def test_the_lengths_that_are_known_of_another_implementation():
    """The example in the tests of ProcessEntropy, with which 2610.01493 made its numbers."""
    words = [str(n) for n in (1, 2, 3, 4, 5, 1, 2, 3, 1, 4, 5, 4, 4, 1, 2, 3)]
    lengths = [1, 1, 1, 1, 4, 3, 2, 2, 3, 2, 2, 2, 4, 3, 2]
    assert entropy_rate(words) == pytest.approx(16 * 4 / sum(lengths))


def test_against_the_definition_on_short_alphabets():
    """Where runs repeat and overlap, states of the automaton are split all the time."""
    for seed in range(500):
        draw = random.Random(seed)
        words = draw.choices("abcd"[: draw.randint(1, 4)], k=draw.randint(1, 40))
        assert entropy_rate(words) == quadratic(words), words


def test_words_that_differ_and_words_that_repeat():
    new = [str(i) for i in range(1024)]
    assert entropy_rate(new) == pytest.approx(10, rel=2e-3)  # n log2 n / (n - 1)
    # a page read twice: each place of the second reading matches to the end
    assert entropy_rate(new[:32] * 2) == pytest.approx(64 * 6 / (31 + sum(range(2, 34))))


def test_words_of_a_text_are_cut_and_few_are_refused():
    assert words_of("The cat's 3 mice, naïve ÉTÉ.") == [
        "the",
        "cat",
        "s",
        "3",
        "mice",
        "na",
        "ve",
        "t",
    ]
    theirs = re.sub(r"[^a-zA-Z0-9]", " ", "A-b_c\n2x!".lower()).split()
    assert words_of("A-b_c\n2x!") == theirs
    with pytest.raises(ValueError, match="at least one word"):
        entropy_rate([])


def test_time_is_linear_enough_for_long_texts():
    """Quadratic, these would be two hours of looking; a minute is far above any machine."""
    draw = random.Random(0)
    words = draw.choices("ab", k=100_000)
    # a fair coin has one bit; the estimate converges slowly, with log log n / log n
    assert entropy_rate(words) == pytest.approx(1, abs=0.15)


def test_many_documents_at_once_are_each_by_itself():
    """Also those with runs beyond 64 words, which an automaton takes over."""
    rng = np.random.default_rng(0)
    documents = [
        rng.integers(v, size=n).tolist()
        for n in (1, 2, 60, 300)
        for v in (1, 2, 5, 80)
        for _ in "ab"
    ]
    documents += [[], list(range(100)) * 3, list(range(40))]
    lengths = np.array([len(d) for d in documents])
    words = np.array([w for d in documents for w in d], dtype=np.uint64)
    known = [entropy_rate(d) if d else float("nan") for d in documents]
    # the same sums of whole numbers
    assert entropy_rates(words, lengths) == pytest.approx(known, nan_ok=True, rel=1e-12)
    with pytest.raises(ValueError, match="fewer than 2,097,152"):
        entropy_rates(np.zeros(1 << 21, dtype=np.uint64), np.array([1 << 21]))
