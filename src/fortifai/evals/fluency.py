"""How fluent and how broad a text is: variety, repetition, surprise, and facts that are false.

Functions on arrays and texts. What depends on the length of a text may be compared at equal lengths
only; all splits of an experiment are of one length.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fortifai import stats
from fortifai.data import bios
from fortifai.evals import diversity as windows
from fortifai.lab.measures import Score, mean_score, share_score

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


def distinct_scores(tokens: Tokens, on: str) -> list[Score]:
    """distinct-1, distinct-2 and distinct-3 of a text, as far as it is long enough."""
    sizes = [n for n in (1, 2, 3) if len(tokens) >= n]
    return [Score(f"distinct.{n}", distinct(tokens, n), on, len(tokens) - n + 1) for n in sizes]


def unigram_entropy(tokens: Tokens, on: str) -> Score:
    """Entropy of the token frequencies of a text, in nats."""
    return Score("entropy.unigram", _entropy(tokens), on, len(tokens))


def _entropy(values: Tokens | NDArray[np.str_]) -> float:
    return stats.entropy(np.unique(values, return_counts=True)[1])


def word_entropy(text: str, on: str) -> Score | None:
    """Plug-in entropy of a text's words, in nats (2509.04796); None if it has none.

    Words are runs of letters and digits, whatever their case. Unlike that of tokens, the number
    does not depend on a tokenizer.
    """
    words = _WORD.findall(text.casefold())
    if not words:
        return None
    value = _entropy(np.array(words))
    return Score("entropy.word", value, on, len(words))


def sequences(tokens: Tokens, size: int = BLOCK) -> NDArray[np.integer]:
    """(n, size): a token stream cut into sequences; a shorter last one is left out."""
    whole = len(tokens) // size
    return np.asarray(tokens)[: whole * size].reshape(whole, size)


def repetition(tokens: Tokens, on: str) -> Score | None:
    """Share of 4-grams of a sequence that stand in it before: 1 - different / all, mean.

    Over sequences of 128 tokens (1908.04319, seq-rep-4); the standard error is that of the mean.
    None where the text is shorter than one sequence.
    """
    rows = sequences(tokens, 128)
    if not len(rows):
        return None
    return mean_score("repetition", windows.repetition(rows, ORDER), on)


def bleu_notes(draw: int) -> tuple[str, ...]:
    """What to say where self-BLEU of `draw` sequences is asked for and cannot be measured."""
    if not draw or importlib.util.find_spec("sacrebleu"):
        return ()
    return (
        "self-BLEU is not measured, for sacrebleu is not installed; pip install "
        "'fortifai[benchmarks]', or set fluency.self_bleu to 0",
    )


def self_bleu(texts: Sequence[str]) -> NDArray[np.float64]:
    """BLEU-4 of each text with all the others as references (1802.01886), by sacrebleu.

    Words are what white space parts. Where no n-gram of an order is found, 0.1 stands for the
    number of matches (Chen and Cherry's first method); a text of fewer than four words is judged
    by the orders that it has, and one without any match has 0. High: the texts are alike.

    Args:
        texts: Two or more texts.

    Returns:
        (n,) float64 in [0, 1].

    Raises:
        ValueError: Fewer than two texts.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.helpers import extract_all_word_ngrams

    if len(texts) < 2:
        raise ValueError(f"self-BLEU of {len(texts)} texts; give two or more")
    found = [extract_all_word_ngrams(text, 1, ORDER) for text in texts]
    # of each n-gram how often the text has it that has it most, and the next one: what the others
    # of any text have at most, without counting all of them anew for each
    most: dict[tuple[str, ...], tuple[int, int]] = {}
    for grams, _ in found:
        for gram, count in grams.items():
            first, second = most.get(gram, (0, 0))
            most[gram] = (count, first) if count > first else (first, max(second, count))
    out = np.zeros(len(texts))
    for i, (grams, length) in enumerate(found):
        matched, total = [0] * ORDER, [0] * ORDER
        for gram, count in grams.items():
            first, second = most[gram]
            total[len(gram) - 1] += count
            matched[len(gram) - 1] += min(count, second if count == first else first)
        others = [other for j, (_, other) in enumerate(found) if j != i]
        # the nearest length; of two as near the shorter one
        near = min(others, key=lambda other: (abs(other - length), other))
        out[i] = BLEU.compute_bleu(
            matched, total, length, near, "floor", SMOOTHING, effective_order=True
        ).score
    return out / 100


def self_bleu_score(texts: Sequence[str], on: str, *, draw: int, seed: int) -> Score | None:
    """Mean self-BLEU of at most `draw` texts drawn at random; None for fewer than two.

    The standard error takes the texts as independent, which they are not quite: each is also a
    reference of the others.
    """
    rng = np.random.default_rng(seed)
    taken = rng.choice(len(texts), min(draw, len(texts)), replace=False)
    if len(taken) < 2:
        return None
    values = self_bleu([texts[i] for i in sorted(taken)])
    return mean_score("self-bleu", values, on)


# --- surprise ---------------------------------------------------------------------------------


def block_perplexity(log_p: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n,) perplexity of each sequence of 64 tokens, exp(-mean log p); at most e^700.

    Args:
        log_p: (tokens,) log-probabilities in nats; a shorter last sequence is left out.
    """
    nll = -np.asarray(log_p, dtype=np.float64)
    means = nll[: len(nll) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(axis=1)
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
    return mean_score("surplexity", values, on) if len(values) else None


def next_token_entropy(entropies: NDArray[np.floating], on: str) -> Score:
    """Mean entropy of the model's own next-token distributions along a text, in nats.

    H = -1/T sum_t sum_v p(v | x_<t) log p(v | x_<t): read off the model, not off a text
    (2410.12341). A model that has collapsed puts all probability on one token: 0.

    Args:
        entropies: (tokens,) entropies in nats.
        on: Name of the text.
    """
    return mean_score("entropy.next", entropies, on)


def under_first(perplexities: NDArray[np.float64], on: str) -> Score:
    """Mean perplexity of a text's sequences under generation 0 (2305.17493)."""
    return mean_score("perplexity.first", perplexities, on)


def histogram(perplexities: NDArray[np.floating]) -> NDArray[np.int64]:
    """Counts in the bins of `PERPLEXITY_EDGES`; what lies above falls into the last."""
    inside = np.clip(perplexities, PERPLEXITY_EDGES[0], PERPLEXITY_EDGES[-1])
    return np.histogram(inside, bins=PERPLEXITY_EDGES)[0].astype(np.int64)


def tail(perplexities: NDArray[np.floating], limit: float, on: str) -> Score:
    """Share of sequences whose perplexity under generation 0 is above `limit`.

    The growing tail of sequences that the first model finds unlikely (2305.17493).
    """
    return share_score("perplexity.first.tail", perplexities > limit, on, chance=1 - TAIL)


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
    out = [Score("facts.claims", float(len(made)), on, len(made))]
    return out + [
        share_score(measure, marks, on)
        for measure, marks in (("facts.false", wrong), ("facts.unknown", strangers))
        if marks
    ]
