"""Scores of documents: one row of numbers each, from words alone, without a model."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fortifai.stats.entropy_rate import LEAST_WORDS, MOST_WORDS, entropy_rates

Hashes = NDArray[np.uint64]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]

LONGEST = 1_000_000
"""Characters of a document that are looked at; of longer ones, the first."""

_DOCUMENTS = 512
"""Documents that are scored at once."""

_WINDOW = 128
"""Words within which a 4-gram is repetition."""

# scripts that are written without spaces, of which characters are counted: Thai to Tibetan,
# Burmese, Khmer, kana, bopomofo, Han and the halfwidth forms
_ALONE = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u312f\u31a0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
# with the marks of Indic scripts, which are no letters to Python and stand within words
_LETTER = "[\\w\u0300-\u036f\u0900-\u0dff]"
_ASCII_WORD = re.compile("[a-z0-9]+")
_WORD = re.compile(f"{_LETTER}+")
_CHARACTER = re.compile(f"[{_ALONE}]")
_EITHER = re.compile(f"[{_ALONE}]|(?:(?![{_ALONE}]){_LETTER})+")

ODD, ALL = np.uint64(0x9E3779B97F4A7C15), np.uint64(2**64 - 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """What a column of scores is.

    Attributes:
        title: In words.
        unit: Of its numbers.
        digits: Behind the point, in print.
    """

    title: str
    unit: str
    digits: int = 2


SCORES = {
    "words": Score("words in a document", "words", 0),
    "entropy": Score("entropy of a document's words", "nats"),
    "distinct_2": Score("different 2-grams in a document", "share"),
    "distinct_3": Score("different 3-grams in a document", "share"),
    "repetition": Score(f"4-grams repeated within {_WINDOW} words", "share"),
    "entropy_rate": Score("entropy rate", "bits a word"),
    "compression": Score("compression ratio", "times"),
    "rare": Score("rare words in a document", "share"),
    "shared": Score("8-grams shared with the reference", "share"),
}
"""The columns of `score`, in order; the last two need a reference."""


# --- words ------------------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, whatever their case.

    Of scripts that are written without spaces, each character is one.
    """
    text = text.casefold()
    if text.isascii():
        return _ASCII_WORD.findall(text)
    return (_EITHER if _CHARACTER.search(text) else _WORD).findall(text.replace("_", " "))


def mixed(values: Hashes) -> Hashes:
    """A one-to-one mixing of all bits (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# of a byte of UTF-8: whether it belongs to a word, where `words_of` has parted what is not ASCII,
# and a number by chance
_IN_WORD = np.arange(256) >= 128
_IN_WORD[list(b"abcdefghijklmnopqrstuvwxyz0123456789")] = True
_OF_BYTE = mixed(np.arange(1, 257, dtype=np.uint64) * ODD)


@dataclasses.dataclass(frozen=True, slots=True)
class Words:
    """The words of some documents, one document after the other.

    Attributes:
        hashes: (n,) a number for each word, the same in every process: over its bytes of UTF-8,
            sum number(byte) * odd^place modulo 2^64, mixed. Two words share one once in 2^64, but
            for words of a thousand letters that are made to.
        lengths: (d,) words of each document.
        spaceless: (d,) whether most of its words are characters of scripts without spaces.
    """

    hashes: Hashes
    lengths: Counts
    spaceless: NDArray[np.bool_]

    @property
    def documents(self) -> Counts:
        """(n,) the document of each word."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def of(self, documents: Counts) -> Words:
        """The words of some documents, whose places rise."""
        taken = np.zeros(len(self.lengths), dtype=bool)
        taken[documents] = True
        hashes = self.hashes[np.repeat(taken, self.lengths)]
        return Words(hashes, self.lengths[taken], self.spaceless[taken])

    def grams(self, n: int) -> tuple[Hashes, Counts]:
        """Hashes of the n-grams within documents, in order, and the word at which each begins."""
        size = max(0, len(self.hashes) - n + 1)
        found = np.zeros(size, dtype=np.uint64)
        for k in range(n):
            found *= ODD
            found += self.hashes[k : k + size]
        documents = self.documents
        at = np.flatnonzero(documents[:size] == documents[n - 1 : n - 1 + size])
        return found[at], at


def encode(texts: Sequence[str]) -> Words:
    """The words of documents, of each the first `LONGEST` characters."""
    parts: list[bytes] = []
    spaceless = np.zeros(len(texts), dtype=bool)
    for i, text in enumerate(texts):
        text = text[:LONGEST]
        folded = text.casefold()
        if not folded.isascii():
            found = words_of(text)
            spaceless[i] = 2 * len(_CHARACTER.findall(text)) > len(found)
            folded = " ".join(found)
        parts.append(folded.encode())
    ends = np.cumsum([0, *(len(part) + 1 for part in parts)])
    data = np.frombuffer(b" ".join([*parts, b""]), dtype=np.uint8)
    inside = np.zeros(len(data) + 2, dtype=np.int8)
    inside[1:-1] = _IN_WORD[data]
    edges = np.flatnonzero(np.diff(inside))  # where words begin and end, by turns
    starts, sizes = edges[::2], edges[1::2] - edges[::2]
    lengths = np.diff(np.searchsorted(starts, ends))
    return Words(_hashes(data[inside[1:-1] > 0], sizes), lengths, spaceless)


def _hashes(data: NDArray[np.uint8], sizes: Counts) -> Hashes:
    """A number for each word, of so many bytes each, one after the other."""
    if not len(sizes):
        return np.zeros(0, dtype=np.uint64)
    begins = np.cumsum(sizes) - sizes
    powers = np.multiply.accumulate(np.full(sizes.max(), ODD))
    terms = powers[np.arange(len(data)) - np.repeat(begins, sizes)]
    terms *= _OF_BYTE[data]
    return mixed(np.add.reduceat(terms, begins))


# --- scores -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """What documents are compared with, word by word and phrase by phrase.

    Attributes:
        common: Sorted hashes of the words that make up four fifths of the reference.
        grams: Sorted hashes of its 8-grams: all of them, or those up to `limit`.
        twice: Of them, those that stand in two of its documents or more.
        limit: The largest hash that would be among `grams`.
    """

    common: Hashes
    grams: Hashes
    twice: Hashes
    limit: np.uint64 = ALL


def score(texts: Iterable[str | None], reference: Reference | None = None) -> Columns:
    """Scores of documents, a column each: for `datasets.Dataset.map(batched=True)` and for pandas.

    Words are those of `words_of`. A score that a document is too short for is NaN: n-grams need n
    words, the entropy rate 50; a null is an empty document.

    - ``words``: how many there are.
    - ``entropy``: -sum p log p of the document's words, nats.
    - ``distinct_2``, ``distinct_3``: different n-grams over all (1510.03055).
    - ``repetition``: share of the 4-grams that begin within 128 words of where they began before.
    - ``entropy_rate``: n log2 n / sum Lambda_i of the first 1,500 words, bits (2610.01493; see
      `fortifai.stats.entropy_rate`).
    - ``compression``: bytes of UTF-8 over bytes packed by zlib, level 6 (2403.00553).
    - ``rare``: share of the words outside those that make up four fifths of the reference.
    - ``shared``: share of the 8-grams that the reference has; of a large one, of those that fall
      into its sample of 8-grams, NaN where none does.

    Args:
        texts: The documents, of each the first million characters.
        reference: That of a corpus (`fortifai.audit.reference_of`); else no ``rare``, ``shared``.

    Returns:
        A column of one number a document for each of `SCORES`; int64 ``words``, float64 else.
    """
    parts = [scored(part, encode(part), reference) for part in batches(texts)]
    names = parts[0] if parts else scored([], encode([]), reference)
    return {name: np.concatenate([part[name] for part in parts or [names]]) for name in names}


def batches(texts: Iterable[str | None]) -> Iterator[list[str]]:
    """Documents in lists that are scored at once, bounded in number and in characters."""
    part: list[str] = []
    size = 0
    for text in texts:
        # pandas says NaN where there is no text
        text = text[:LONGEST] if isinstance(text, str) else ""
        if part and (len(part) >= _DOCUMENTS or size + len(text) > LONGEST):
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part


def scored(texts: Sequence[str], words: Words, reference: Reference | None) -> Columns:
    """As `score`, of documents whose words are known and whose number is small."""
    count, documents = len(texts), words.documents
    out = scored_types(words)
    out["entropy_rate"] = entropy_rate(words)
    out["compression"] = np.array([_compression(text) for text in texts], dtype=np.float64)
    if reference is not None:
        rare = ~is_in(words.hashes, reference.common)
        out["rare"] = _share(np.bincount(documents[rare], minlength=count), words.lengths)
        out["shared"] = shared(words, reference.grams, reference.limit)
    return out


def scored_types(words: Words) -> Columns:
    """The scores that count words and n-grams: the first five of `score`."""
    count, documents = len(words.lengths), words.documents
    out: Columns = {"words": words.lengths, "entropy": _entropy(words)}
    for n in (2, 3):
        hashes, at = words.grams(n)
        runs, _ = _runs(hashes, documents[at], count)
        out[f"distinct_{n}"] = _share(
            np.bincount(runs, minlength=count), np.maximum(0, words.lengths - n + 1)
        )
    out["repetition"] = _repetition(words)
    return out


def shared(words: Words, grams: Hashes, limit: np.uint64) -> Floats:
    """Of each document, the share of its 8-grams up to `limit` that are among `grams`."""
    hashes, at = words.grams(8)
    hashes = mixed(hashes)
    taken = hashes <= limit
    documents, found = words.documents[at[taken]], is_in(hashes[taken], grams)
    count = len(words.lengths)
    inside = np.bincount(documents[found], minlength=count)
    return _share(inside, np.bincount(documents, minlength=count))


def is_in(values: Hashes, among: Hashes) -> NDArray[np.bool_]:
    """Whether each of the values is among sorted ones."""
    if not len(among):
        return np.zeros(len(values), dtype=bool)
    at = np.minimum(np.searchsorted(among, values), len(among) - 1)
    found: NDArray[np.bool_] = among[at] == values
    return found


def _share(part: Counts, whole: Counts) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.asarray(part / whole, dtype=np.float64)
    return found


def _runs(hashes: Hashes, documents: Counts, count: int) -> tuple[Counts, Counts]:
    """The document of each different hash of a document, and how often it is there.

    The document stands in the upper bits, so that sorting numbers is all; a hash keeps the 40 bits
    and more that are left, of which two of a million meet by chance about once.
    """
    # as many for a part of a batch as for all of it, so that the parts' numbers are those of all
    bits = np.uint64(64 - max(_DOCUMENTS, count).bit_length())
    packed = np.sort((documents.astype(np.uint64) << bits) | (hashes >> (np.uint64(64) - bits)))
    starts = np.flatnonzero(np.concatenate([packed[:1] == packed[:1], packed[1:] != packed[:-1]]))
    return (packed[starts] >> bits).astype(np.int64), np.diff(starts, append=len(packed))


def _entropy(words: Words) -> Floats:
    count = len(words.lengths)
    runs, sizes = _runs(words.hashes, words.documents, count)
    n = words.lengths.astype(np.float64)
    inner = np.bincount(runs, special.xlogy(sizes, sizes), minlength=count)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.log(n) - inner / n
    return np.where(n > 0, np.maximum(found, 0.0), np.nan)


def _repetition(words: Words) -> Floats:
    hashes, at = words.grams(4)
    count, documents = len(words.lengths), words.documents
    keys = mixed(hashes ^ mixed(documents[at].astype(np.uint64)))  # of a 4-gram of a document
    order = np.argsort(keys)
    ranks = np.cumsum(np.diff(keys[order], prepend=keys[order][:1]) != 0)
    # by rank and place: quicker than a stable sort of the keys
    packed = np.sort((ranks << 32) | at[order])
    again = (np.diff(packed >> 32) == 0) & (np.diff(packed) <= _WINDOW)
    seen = documents[packed[1:][again] & 0xFFFFFFFF]
    return _share(np.bincount(seen, minlength=count), np.maximum(0, words.lengths - 3))


def entropy_rate(words: Words) -> Floats:
    """Of each document of 50 words and more, that of its first 1,500."""
    starts = np.cumsum(words.lengths) - words.lengths
    lengths = np.where(words.lengths >= LEAST_WORDS, np.minimum(words.lengths, MOST_WORDS), 0)
    places = np.arange(len(words.hashes)) - np.repeat(starts, words.lengths)
    kept = places < np.repeat(lengths, words.lengths)
    return entropy_rates(words.hashes[kept], lengths)


def _compression(text: str) -> float:
    data = text.encode("utf-8", "replace")
    return len(data) / len(zlib.compress(data, 6)) if data else float("nan")
