"""Measures of a corpus beside a reference, each with its interval and noise floor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fortifai.audit.corpus import GRAMS, Corpus
from fortifai.audit.findings import Finding, Worse
from fortifai.audit.sketch import Table, near_duplicates
from fortifai.errors import InputError
from fortifai.evals import diversity
from fortifai.evals.diversity import Comparison, Statistic
from fortifai.stats import scores
from fortifai.stats.sample import Interval, two_means
from fortifai.stats.scores import SCORES, Reference, Words

Floats = NDArray[np.float64]

MOST_BLOCKS, BLOCK_WORDS, MOST_WORDS = 64, 16_384, 64
"""Blocks of a sample at most, words of one at most, and of one at least."""

TYPES: tuple[tuple[str, str, Statistic, int, str, str, Worse | None, str | None], ...] = (
    ("entropy", "entropy of words", diversity.ENTROPY, 1, "nats", "diversity", "lower", "entropy"),
    ("vocabulary", "different words", diversity.DISTINCT, 1, "share", "diversity", "lower", None),
    ("distinct_2", "different 2-grams", diversity.DISTINCT, 2, "share", "diversity", "lower", None),
    (
        "distinct_3",
        "different 3-grams",
        diversity.DISTINCT,
        3,
        "share",
        "diversity",
        "lower",
        "duplication",
    ),
    ("growth", "growth of the vocabulary", diversity.GROWTH, 1, "share", "tails", "lower", None),
    ("zipf", "Zipf exponent", diversity.ZIPF, 1, "", "tails", "higher", None),
)
"""Name, title, statistic, n-grams, unit, family, which direction is worse, and its level's name."""


def reference_of(corpus: Corpus) -> Reference:
    """What documents are compared with, from a pass with `Reading.grams`."""
    grams = corpus.sample.grams
    keys: scores.Hashes = grams.get("key", np.zeros(0, dtype=np.uint64)).astype(np.uint64)
    texts = corpus.sample.documents["text"].tolist()
    # the other half is compared: what is rare is not read off what is judged by it
    common = _common(scores.encode(texts[1::2] or texts))
    limit = np.uint64(keys[-1]) if len(keys) >= GRAMS else np.uint64(2**64 - 1)
    return Reference(common, keys, keys[grams["count"] > 1] if len(keys) else keys, limit)


def _common(words: Words) -> scores.Hashes:
    """The words that make up four fifths of a text."""
    types, counts = np.unique(words.hashes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    enough = int(np.searchsorted(np.cumsum(counts[order]), 0.8 * counts.sum())) + 1
    return np.sort(types[order[:enough]])


# --- measures of types ------------------------------------------------------------------------

Blocks = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]


def blocks_of(own: Table, other: Table, subject: str, reference: str) -> Blocks:
    """(w, t) words of the text, of the reference, and as many more of the reference."""
    texts = own["text"].tolist(), other["text"].tolist()
    mine, compared, more = (
        scores.encode(part).hashes for part in (texts[0], texts[1][::2], texts[1][1::2])
    )
    size = min(len(mine), len(compared), len(more))
    documents = min(len(texts[0]), len(texts[1]) // 2)
    blocks = min(MOST_BLOCKS, documents, size // MOST_WORDS)
    if blocks < diversity.MIN_WINDOWS:
        sides = (texts[0], mine, subject, 1), (texts[1], compared, reference, 2)
        raise InputError(f"{_too_small(sides)}; give more text")
    length = min(BLOCK_WORDS, size // blocks)
    cut = tuple(part[: blocks * length].reshape(blocks, length) for part in (mine, compared, more))
    return cut[0], cut[1], cut[2]


def _too_small(sides: Iterable[tuple[Sequence[str], scores.Hashes, str, int]]) -> str:
    """Which of the texts are too small, each with how many such documents it takes."""
    said: dict[str, bool] = {}
    for texts, words, name, times in sides:
        mean = max(1.0, len(words) / max(1, len(texts) / times))
        least = max(diversity.MIN_WINDOWS, math.ceil(diversity.MIN_WINDOWS * MOST_WORDS / mean))
        has = f"{name} has {len(texts):,} documents of about {mean:,.0f} words"
        said[f"{has}, and an audit takes {times * least:,} such"] = len(texts) < times * least
    return " and ".join([one for one, lacks in said.items() if lacks] or said)


def by_types(blocks: Blocks, source: str, reference: str, seed: int) -> list[Finding]:
    """Measures of how often words and n-grams occur, at equal size."""
    own, other, more = _numbered(blocks)
    found = [
        _finding(
            name, title, diversity.compared(own, other, more, statistic, n=n, seed=seed),
            reference, source, unit, family, worse,
        )
        for name, title, statistic, n, unit, family, worse, _ in TYPES
    ]  # fmt: skip
    return [
        *found,
        _finding("rare", "rare words",
                 diversity.tail(own, other, more, seed=seed), reference, source, "share", "tails",
                 "lower"),
        _finding("divergence", "divergence of words",
                 diversity.divergence(own, other, more, seed=seed), reference, source, "nats",
                 "diversity", None),
    ]  # fmt: skip


def _numbered(blocks: Blocks) -> tuple[diversity.Ids, ...]:
    _, flat = np.unique(np.concatenate(blocks), return_inverse=True)
    return tuple(np.split(flat.reshape(-1, blocks[0].shape[1]), 3))


# --- measures of documents --------------------------------------------------------------------


def by_documents(
    own: Table, other: Table, made: Reference, source: str, reference: str, seed: int
) -> list[Finding]:
    """Means of the scores of sampled documents."""
    out = []
    columns = _columns(own, made, made.grams), _columns(other, made, made.twice)
    for name in columns[0]:
        if name not in columns[1]:  # a detector's scores, of the text alone
            continue
        mine, theirs = (column[name] for column in columns)
        mine, theirs = mine[~np.isnan(mine)], theirs[~np.isnan(theirs)]
        if min(len(mine), len(theirs)) < diversity.MIN_WINDOWS:
            continue
        found = Comparison(
            float(mine.mean()), float(theirs.mean()), two_means(mine, theirs),
            _mean_floor(theirs, len(mine), seed),
        )  # fmt: skip
        known = SCORES.get(name)
        repeated = name == "repetition"
        out.append(
            _finding(
                name if repeated or name == "detector" else f"document.{name}",
                known.title if known else "the detector's score",
                found,
                reference,
                source,
                known.unit if known else "",
                "repetition" if repeated else "documents",
                "higher" if repeated else None,
            )
        )
    return out


def _columns(table: Table, made: Reference, grams: scores.Hashes) -> dict[str, Floats]:
    """Scores of sampled documents; those that need a reference from the text that is kept."""
    names = [name for name in (*SCORES, "detector") if name in table]
    out = {name: np.asarray(table[name], dtype=np.float64) for name in names}
    words = scores.encode(table["text"].tolist())
    rare = ~scores.is_in(words.hashes, made.common)
    lengths = words.lengths.astype(np.float64)
    out["rare"] = np.bincount(words.documents[rare], minlength=len(lengths)) / np.maximum(
        1, lengths
    )
    # of the reference's own documents, what another one of it has, too
    out["shared"] = scores.shared(words, grams, made.limit)
    return out


def _mean_floor(values: Floats, size: int, seed: int) -> float:
    """What means of random halves differ by, in 95 of 100 cases, of samples as large as these."""
    rng = np.random.default_rng(seed)
    half = len(values) // 2
    gaps = np.empty(200)
    for i in range(200):
        mixed = rng.permutation(values)
        gaps[i] = mixed[:half].mean() - mixed[half : 2 * half].mean()
    scale = math.sqrt((1 / size + 1 / len(values)) / (2 / half))
    return float(np.quantile(np.abs(gaps), 0.95)) * scale


def copies(text: Corpus, against: Corpus, source: str, reference: str, seed: int) -> list[Finding]:
    """Documents that are copies of others, and those that nearly are."""
    own, other = of_source(text, source), of_source(against, source)
    out = []
    for name, title in (
        ("exact", "copies among documents"),
        ("near", "near copies among documents"),
    ):
        mine, theirs = first_of(own, name), first_of(other, name)
        if min(len(mine[0]), len(theirs[0])) < diversity.MIN_WINDOWS:
            continue
        shares = [1 - float(first.sum() / counts.sum()) for first, counts in (mine, theirs)]
        errors = [ratio_error(*each) for each in (mine, theirs)]
        difference, reach = shares[0] - shares[1], 1.96 * math.hypot(*errors)
        rng = np.random.default_rng(seed)
        gaps = []
        for _ in range(100):
            chosen = rng.random(len(theirs[0])) < 0.5
            halves = [
                theirs[0][some].sum() / max(1, theirs[1][some].sum()) for some in (chosen, ~chosen)
            ]
            gaps.append(halves[0] - halves[1])
        scale = math.sqrt((1 / len(mine[0]) + 1 / len(theirs[0])) / (4 / len(theirs[0])))
        floor = float(np.quantile(np.abs(gaps), 0.95)) * scale
        interval = Interval(difference, difference - reach, difference + reach)
        found = Comparison(shares[0], shares[1], interval, floor)
        out.append(
            _finding(name, title, found, reference, source, "share", "duplication", "higher")
        )
    return out


def of_source(corpus: Corpus, source: str) -> Table:
    """Different documents of one source; of all where it is "" or not there."""
    rows = corpus.sample.contents
    if not source or source not in corpus.sources:
        return rows
    mine = rows["source"] == source
    return {name: column[mine] for name, column in rows.items()}


def first_of(rows: Table, name: str) -> tuple[Floats, Floats]:
    """Of each different content, whether it is the first of its like, and how often it is there."""
    _, where, back = np.unique(rows["content"], return_index=True, return_inverse=True)
    counts = np.bincount(back, rows["count"], minlength=len(where)).astype(np.float64)
    if name == "exact":
        return np.ones(len(where)), counts
    order = np.sort(where)
    again = near_duplicates({key: column[order] for key, column in rows.items()})
    return (~again).astype(np.float64), counts[np.argsort(where)]


def ratio_error(first: Floats, counts: Floats) -> float:
    """Standard error of sum(first) / sum(counts), contents drawn with all of their copies."""
    n = len(first)
    left = first - first.sum() / counts.sum() * counts
    return float(np.sqrt(n / (n - 1) * np.square(left).sum()) / counts.sum())


def _finding(
    name: str,
    title: str,
    found: Comparison,
    reference: str,
    source: str,
    unit: str,
    family: str,
    worse: Worse | None,
) -> Finding:
    difference = found.difference
    error = (difference.high - difference.low) / 2 / 1.96
    # 0 where nothing varies: then any difference is sure, and none is none
    z = abs(difference.value) / error if error > 0 else math.inf if difference.value else 0.0
    return Finding(
        name, title, reference, found.own, found.reference, difference, found.floor, unit, worse,
        None, family, source, float(2 * special.ndtr(-z)),
    )  # fmt: skip
