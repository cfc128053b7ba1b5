"""How fluent and how broad a text is: variety, repetition, surprise, and facts that are false.

Functions on arrays and texts. What depends on the length of a text may be compared at equal lengths
only; all splits of an experiment are of one length.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fortifai.data import bios
from fortifai.evals import breadth as windows
from fortifai.evals.score import Direction, Score

Tokens = NDArray[np.integer]

BLOCK = 64
"""Tokens of one sequence, as in The Curse of Recursion (2305.17493)."""

PERPLEXITY_EDGES: NDArray[np.float64] = np.geomspace(1.0, 1e6, 121)
"""Bins of the histograms of perplexity: twenty to a decade; the last takes all that lies above."""

TAIL = 0.99
"""Quantile of the real text's perplexities beyond which a sequence counts as unlikely."""

ORDER = 4
"""Longest n-gram of self-BLEU, and the n-gram of repetition."""

SMOOTHING = 0.1
"""What stands for no match at all of an order in BLEU (Chen and Cherry's first method)."""

_WORD = re.compile(r"\w+")


# --- variety ----------------------------------------------------------------------------------


def distinct(tokens: Tokens, n: int) -> float:
    """Share of different ones among all n-grams of a token stream (1510.03055); NaN if none."""
    if len(tokens) < n:
        return float("nan")
    grams = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens), n)
    return len(np.unique(grams, axis=0)) / len(grams)


def entropy(values: Tokens | NDArray[np.str_]) -> float:
    """Plug-in entropy of a sample, -sum p log p over its different values, in nats."""
    _, counts = np.unique(values, return_counts=True)
    p = counts / counts.sum()
    return float(-np.sum(p * np.log(p))) + 0.0


def diversity(tokens: Tokens, on: str) -> list[Score]:
    """distinct-1, distinct-2, distinct-3 and the token entropy of a text."""
    out = [
        Score(
            f"distinct-{n}",
            distinct(tokens, n),
            on,
            len(tokens) - n + 1,
            None,
            "share",
            None,
            "higher",
        )
        for n in (1, 2, 3)
        if len(tokens) >= n
    ]
    out.append(
        Score("entropy.unigram", entropy(tokens), on, len(tokens), None, "nats", None, "higher")
    )
    return out


def word_entropy(text: str, on: str) -> Score | None:
    """Plug-in entropy of a text's words, in nats (2509.04796); None if it has none.

    Words are runs of letters and digits, whatever their case. Unlike that of tokens, the number
    does not depend on a tokenizer.
    """
    words = _WORD.findall(text.casefold())
    if not words:
        return None
    value = entropy(np.array(words))
    return Score("entropy.word", value, on, len(words), None, "nats", None, "higher")


def sequences(tokens: Tokens, size: int = BLOCK) -> NDArray[np.integer]:
    """(n, size): a token stream cut into sequences; a shorter last one is left out."""
    whole = len(tokens) // size
    return np.asarray(tokens)[: whole * size].reshape(whole, size)


def repetition(tokens: Tokens, on: str, size: int = 128) -> Score | None:
    """Share of 4-grams of a sequence that stand in it before: 1 - different / all, mean.

    Over sequences of 128 tokens (1908.04319, seq-rep-4); the standard error is that of the mean.
    None where the text is shorter than one sequence.
    """
    rows = sequences(tokens, size)
    if not len(rows):
        return None
    return _mean("repetition", windows.repetition(rows, ORDER), on, "share", "lower")


def self_bleu(texts: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """BLEU-4 of each text with all the others as references (1802.01886).

    exp(mean over n of log p_n) times the brevity penalty, p_n the share of the text's n-grams that
    another text has, each counted at most as often as the text that has it most; n up to 4, or to
    the text's length. Where no n-gram of an order is found, 0.1 stands for the number of matches.
    High: the texts are alike.

    Args:
        texts: Two or more texts as lists of words.

    Returns:
        (n,) float64 in [0, 1]; 0 for a text without words.

    Raises:
        ValueError: Fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError(f"self-BLEU of {len(texts)} texts; give two or more")
    counts = [[_grams(text, n) for n in range(1, ORDER + 1)] for text in texts]
    most = [_two_most([row[n] for row in counts]) for n in range(ORDER)]
    lengths = np.array([len(text) for text in texts])
    out = np.zeros(len(texts))
    for i, row in enumerate(counts):
        logs = []
        for n, grams in enumerate(row):
            total = sum(grams.values())
            if not total:
                break
            found = sum(
                min(count, most[n][gram][1] if most[n][gram][2] == i else most[n][gram][0])
                for gram, count in grams.items()
            )
            logs.append(math.log((found or SMOOTHING) / total))
        if logs:
            others = np.delete(lengths, i)
            # the nearest length; of two as near the shorter one
            near = min(others.tolist(), key=lambda m: (abs(m - lengths[i]), m))
            penalty = min(0.0, 1 - near / lengths[i])
            out[i] = math.exp(penalty + sum(logs) / len(logs))
    return out


_Gram = tuple[str, ...]


def _grams(words: Sequence[str], n: int) -> collections.Counter[_Gram]:
    return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _two_most(
    counts: Sequence[collections.Counter[_Gram]],
) -> dict[_Gram, tuple[int, int, int]]:
    """For each n-gram: how often the text has it that has it most, the next one, and the former."""
    out: dict[_Gram, tuple[int, int, int]] = {}
    for i, grams in enumerate(counts):
        for gram, count in grams.items():
            first, second, which = out.get(gram, (0, 0, -1))
            if count > first:
                out[gram] = (count, first, i)
            elif count > second:
                out[gram] = (first, count, which)
    return out


def self_bleu_score(texts: Sequence[str], on: str, *, draw: int, seed: int) -> Score | None:
    """Mean self-BLEU of at most `draw` texts drawn at random; None for fewer than two.

    The standard error takes the texts as independent, which they are not quite: each is also a
    reference of the others.
    """
    rng = np.random.default_rng(seed)
    taken = rng.choice(len(texts), min(draw, len(texts)), replace=False)
    if len(taken) < 2:
        return None
    values = self_bleu([texts[i].split() for i in sorted(taken)])
    return _mean("self-bleu", values, on, "share", "lower")


# --- surprise ---------------------------------------------------------------------------------


def block_perplexity(log_p: NDArray[np.floating], size: int = BLOCK) -> NDArray[np.float64]:
    """(n,) perplexity of each sequence of 64 tokens, exp(-mean log p); at most e^700.

    Args:
        log_p: (tokens,) log-probabilities in nats.
        size: Tokens of a sequence; a shorter last one is left out.
    """
    nll = -np.asarray(log_p, dtype=np.float64)
    means = nll[: len(nll) // size * size].reshape(-1, size).mean(axis=1)
    out: NDArray[np.float64] = np.exp(np.minimum(means, 700.0))
    return out


def surplexity(log_p: NDArray[np.floating], on: str) -> Score | None:
    """How much a text surprises a model: the mean perplexity of its sequences (2410.12341).

    Of a sequence x under model M: S(x; M) = exp(-1/|x| sum_t log p_M(x_t | x_<t)); here of
    sequences of 64 tokens, with the standard error of their mean. The paper holds that a model
    collapses on text that does not surprise it; measured on what a model wrote, under that model,
    it is what the next generation is offered to learn. It differs from `perplexity` in that
    sequences, not tokens, are averaged, so a few that surprise it much weigh more. None where the
    text is shorter than one sequence.
    """
    values = block_perplexity(log_p)
    return _mean("surplexity", values, on, "perplexity", "none") if len(values) else None


def next_token_entropy(entropies: NDArray[np.floating], on: str) -> Score:
    """Mean entropy of the model's own next-token distributions along a text, in nats.

    H = -1/T sum_t sum_v p(v | x_<t) log p(v | x_<t): read off the model, not off a text
    (2410.12341). A model that has collapsed puts all probability on one token: 0.

    Args:
        entropies: (tokens,) entropies in nats.
        on: Name of the text.
    """
    return _mean("entropy.next", np.asarray(entropies, np.float64), on, "nats", "none")


def under_first(perplexities: NDArray[np.float64], on: str) -> Score:
    """Mean perplexity of a text's sequences under generation 0 (2305.17493)."""
    return _mean("perplexity.first", perplexities, on, "perplexity", "lower")


def histogram(perplexities: NDArray[np.floating]) -> NDArray[np.int64]:
    """Counts in the bins of `PERPLEXITY_EDGES`; what lies above falls into the last."""
    inside = np.clip(perplexities, PERPLEXITY_EDGES[0], PERPLEXITY_EDGES[-1])
    return np.histogram(inside, bins=PERPLEXITY_EDGES)[0].astype(np.int64)


def tail(perplexities: NDArray[np.floating], limit: float, on: str) -> Score:
    """Share of sequences whose perplexity under generation 0 is above `limit`.

    The growing tail of sequences that the first model finds unlikely (2305.17493).
    """
    share, n = float((perplexities > limit).mean()), len(perplexities)
    error = math.sqrt(share * (1 - share) / n)
    return Score("perplexity.first.tail", share, on, n, error, "share", 1 - TAIL, "lower")


# --- facts ------------------------------------------------------------------------------------


def facts(text: str, known: Mapping[str, Mapping[str, str]], on: str) -> list[Score]:
    """How much of what a text says of `bios` people is false.

    A claim is a sentence in one of the corpus' phrasings that names a person and a value of the
    attribute's kind (`fortifai.data.bios.claims`); sentences that are damaged are no claims.

    Args:
        text: What was written.
        known: Name to attribute to value.
        on: Name of the text.

    Returns:
        ``facts.false``: of the claims on people who are known, the share that contradicts what is
        known; ``facts.unknown``: of all claims, the share on people who are not; ``facts.claims``:
        how many there are. The shares are left out where there is nothing to count.
    """
    made = list(bios.claims(text))
    wrong = [known[name][what] != value for name, what, value in made if name in known]
    strangers = [name not in known for name, _, _ in made]
    out = [Score("facts.claims", float(len(made)), on, len(made), None, "claims")]
    for measure, marks in (("facts.false", wrong), ("facts.unknown", strangers)):
        if marks:
            share = sum(marks) / len(marks)
            error = math.sqrt(share * (1 - share) / len(marks))
            out.append(Score(measure, share, on, len(marks), error, "share", None, "lower"))
    return out


def _mean(
    measure: str, values: NDArray[np.float64], on: str, unit: str, better: Direction
) -> Score:
    n = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return Score(measure, float(values.mean()), on, n, error, unit, None, better)
