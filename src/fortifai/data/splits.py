"""Equal contiguous splits of a corpus, held-out text, and the questions of each split."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai.data.questions import Question
from fortifai.data.text import Corpus
from fortifai.data.tokens import document_end, encode
from fortifai.errors import InputError

Tokens = NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class Splits:
    """A corpus as tokens, int32 and one-dimensional, documents closed by the end-of-text token.

    Attributes:
        parts: D_0 .. D_N, of equal size.
        rest: What stands behind them and is not held out: for pretraining.
        held_out: What no generation trains on.
        questions: Of each split, those whose fact stands in it.
        notes: What a user should know.
    """

    parts: tuple[Tokens, ...]
    rest: Tokens
    held_out: Tokens
    questions: tuple[tuple[Question, ...], ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Encoded:
    tokens: Tokens
    starts: list[int]
    """Where each document's tokens begin in the stream."""
    offsets: list[Tokens]
    """For each document, the character where each of its tokens begins."""

    def index(self, document: int, offset: int) -> int:
        """Position in the stream of the token that holds a character of a document."""
        within = int(np.searchsorted(self.offsets[document], offset, side="right")) - 1
        return self.starts[document] + max(0, within)


def split_corpus(
    corpus: Corpus,
    questions: Sequence[Question],
    tokenizer: Any,
    *,
    count: int,
    tokens_per_split: int | None,
    held_out: Corpus | float,
) -> Splits:
    """Tokenise a corpus and cut it.

    The token stream is parts, then rest, then the held-out share, with nothing left out and
    nothing twice. Of a corpus with `sections` each part is the beginning of a section, the rest is
    what is left of each and what stands behind them, and held out is a share of the latter. A
    question belongs to the split in which the line of its `location` begins. Where a cut runs
    through that line, it belongs to the split that has the words by which its true continuation
    differs from the false one, if the line has them.

    Args:
        corpus: The clean corpus.
        questions: Questions on it; `location` is a line of its source.
        tokenizer: A fast tokenizer with an end-of-text token.
        count: Number of splits, 1 or more.
        tokens_per_split: Size of each; None for all tokens over `count`, rounded down.
        held_out: Another corpus, or the share of this one's tokens, at its end, to hold out, in
            [0, 1).

    Raises:
        InputError: An argument is out of range, the corpus is too short, or a question's location
            is outside of it.
    """
    if count < 1:
        raise InputError(f"the number of splits is {count}; it must be 1 or more")
    if tokens_per_split is not None and tokens_per_split < 2:
        raise InputError(f"a split has {tokens_per_split} tokens; it must have 2 or more")
    if not isinstance(held_out, Corpus) and not 0 <= held_out < 1:
        raise InputError(f"the held-out share is {held_out}; it must lie in [0, 1)")
    encoded = _encode(corpus, tokenizer)
    told = _encode(held_out, tokenizer).tokens if isinstance(held_out, Corpus) else held_out
    if corpus.sections:
        return _split_sections(corpus, questions, encoded, count, tokens_per_split, told)
    stream = encoded.tokens
    if not isinstance(told, float | int):
        kept, aside = stream, told
    else:
        cut = len(stream) - round(told * len(stream))
        kept, aside = stream[:cut], stream[cut:]
    size = len(kept) // count if tokens_per_split is None else tokens_per_split
    if size < 2 or size * count > len(kept):
        wanted = max(size, 2)
        raise InputError(
            f"{corpus.source} has {len(kept):,} tokens besides the held-out text, too few for "
            f"{count} splits of {wanted:,}, which need {wanted * count:,}; give more text, fewer "
            "splits or smaller ones"
        )
    starts = [k * size for k in range(count)]
    asked, notes = _assign(corpus, questions, encoded, size, starts)
    return Splits(*_cut(kept, size, starts), aside, asked, notes)


def _cut(kept: Tokens, size: int, starts: Sequence[int]) -> tuple[tuple[Tokens, ...], Tokens]:
    """The splits, and what stands between and behind them."""
    parts = tuple(kept[start : start + size] for start in starts)
    ends = [0, *(start + size for start in starts)]
    between = [kept[a:b] for a, b in zip(ends, [*starts, len(kept)], strict=True)]
    return parts, np.concatenate(between)


def _split_sections(
    corpus: Corpus,
    questions: Sequence[Question],
    encoded: _Encoded,
    count: int,
    tokens_per_split: int | None,
    held_out: Tokens | float,
) -> Splits:
    """One split a section, each its first `size` tokens; held out is a share of what is no split's.

    Held-out text never comes from a section that a split is cut from.
    """
    begins = [
        encoded.starts[i] if i < len(encoded.starts) else len(encoded.tokens)
        for i in corpus.sections
    ]
    if count != len(begins) - 1:
        raise InputError(
            f"splits.count is {count} and {corpus.source} has {len(begins) - 1} sections, one for "
            f"each split; set splits.count to {len(begins) - 1}"
        )
    room = min(b - a for a, b in itertools.pairwise(begins))
    size = room if tokens_per_split is None else tokens_per_split
    if size > room:
        raise InputError(
            f"the smallest section of {corpus.source} has {room:,} tokens, too few for a split of "
            f"{size:,}; make splits.tokens smaller or give more text"
        )
    stream = encoded.tokens
    if not isinstance(held_out, float | int):
        kept, aside = stream, held_out
    else:
        cut = len(stream) - round(held_out * (len(stream) - begins[-1]))
        kept, aside = stream[:cut], stream[cut:]
    asked, notes = _assign(corpus, questions, encoded, size, begins[:-1])
    return Splits(*_cut(kept, size, begins[:-1]), aside, asked, notes)


def _encode(corpus: Corpus, tokenizer: Any) -> _Encoded:
    end = np.array([document_end(tokenizer)], dtype=np.int32)
    found = encode(tokenizer, [document.text for document in corpus.documents])
    if not found:
        raise InputError(f"{corpus.source} holds no documents; give some text")
    stream = np.concatenate([ids for text in found for ids in (text.ids, end)])
    starts = [0, *np.cumsum([len(text.ids) + 1 for text in found])[:-1].tolist()]
    return _Encoded(stream, starts, [text.begins for text in found])


def _assign(
    corpus: Corpus,
    questions: Sequence[Question],
    encoded: _Encoded,
    size: int,
    starts: Sequence[int],
) -> tuple[tuple[tuple[Question, ...], ...], tuple[str, ...]]:
    asked: list[list[Question]] = [[] for _ in starts]
    outside: list[Question] = []
    disagreeing: list[Question] = []
    for question in questions:
        place = corpus.find_line(question.location)
        if place is None:
            outside.append(question)
            continue
        title = corpus.documents[place[0]].title
        if question.article and title and question.article != title:
            disagreeing.append(question)
        fact = _fact(corpus, question, encoded, place)
        split = bisect.bisect_right(starts, fact) - 1
        if split >= 0 and fact < starts[split] + size:
            asked[split].append(question)
    if outside:
        lines = f", which has {corpus.lines:,} lines" if corpus.lines else ""
        raise InputError(
            f"{len(outside):,} of {len(questions):,} questions have a location outside "
            f"{corpus.source}{lines}, the first at line {outside[0].location} "
            f"({outside[0].context[:60]!r}); give the questions that were written on this text"
        )
    notes = []
    beyond = len(questions) - sum(map(len, asked))
    if beyond:
        notes.append(
            f"{beyond:,} of {len(questions):,} questions stand outside the splits and are not asked"
        )
    if disagreeing:
        notes.append(
            f"{len(disagreeing):,} of {len(questions):,} questions name another article than the "
            f"one their location stands in, the first {disagreeing[0].article!r}"
        )
    return tuple(tuple(part) for part in asked), tuple(notes)


def _fact(corpus: Corpus, question: Question, encoded: _Encoded, place: tuple[int, int]) -> int:
    """Position in the stream of a question's fact: of its words, or else of its line."""
    document, offset = place
    text = corpus.documents[document].text
    end = len(text) if corpus.documents[document].row else text.find("\n", offset)
    words = _difference(question.true, question.false)
    if words:
        # whole words: "Elm" is not in "Elmhurst"
        said = re.compile(rf"(?<!\w){re.escape(words)}(?!\w)")
        found = said.search(text, offset, end if end >= 0 else len(text))
        offset = found.start() if found else offset
    return encoded.index(document, offset)


def _difference(true: str, false: str) -> str:
    """The words of one text that stand between what it has in common with another at both ends."""
    a, b = true.split(), false.split()
    head = 0
    while head < min(len(a), len(b)) and a[head] == b[head]:
        head += 1
    tail = 0
    while tail < min(len(a), len(b)) - head and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    return " ".join(a[head : len(a) - tail]).strip(".,;:!?\"'()")
