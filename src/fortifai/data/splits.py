"""Equal contiguous splits of a corpus, held-out text, and the questions of each split."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai.data.questions import Question
from fortifai.data.text import Corpus
from fortifai.errors import InputError

Tokens = NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class Splits:
    """A corpus as tokens, documents closed by the end-of-text token.

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
    offsets: list[list[int]]
    """For each document, the character where each of its tokens begins."""


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

    Args:
        corpus: The clean corpus.
        questions: Questions on it; `location` is a line of its source.
        tokenizer: A fast tokenizer with an end-of-text token.
        count: Number of splits.
        tokens_per_split: Size of each; None for all tokens over `count`.
        held_out: Another corpus, or the share of this one's tokens, at its end, to hold out.

    Raises:
        InputError: The corpus is too short, or a question's location is outside of it.
    """
    encoded = _encode(corpus, tokenizer)
    stream = encoded.tokens
    if isinstance(held_out, Corpus):
        kept, aside = stream, _encode(held_out, tokenizer).tokens
    else:
        cut = len(stream) - round(held_out * len(stream))
        kept, aside = stream[:cut], stream[cut:]
    size = tokens_per_split or len(kept) // count
    if size < 2 or size * count > len(kept):
        raise InputError(
            f"{corpus.source} has {len(kept):,} tokens besides the held-out text, too few for "
            f"{count} splits of {max(size, 2):,}; give more text, fewer splits or smaller ones"
        )
    parts = tuple(kept[k * size : (k + 1) * size] for k in range(count))
    asked, notes = _assign(corpus, questions, encoded, size, count)
    return Splits(parts, kept[size * count :], aside, asked, notes)


def _encode(corpus: Corpus, tokenizer: Any) -> _Encoded:
    end = tokenizer.eos_token_id
    end = tokenizer.bos_token_id if end is None else end
    batch = tokenizer(
        [document.text for document in corpus.documents],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    pieces, starts, offsets, at = [], [], [], 0
    for ids, spans in zip(batch["input_ids"], batch["offset_mapping"], strict=True):
        starts.append(at)
        offsets.append([span[0] for span in spans])
        pieces.append(np.array([*ids, end], dtype=np.int32))
        at += len(ids) + 1
    return _Encoded(np.concatenate(pieces), starts, offsets)


def _assign(
    corpus: Corpus, questions: Sequence[Question], encoded: _Encoded, size: int, count: int
) -> tuple[tuple[tuple[Question, ...], ...], tuple[str, ...]]:
    asked: list[list[Question]] = [[] for _ in range(count)]
    outside, beyond, disagreeing = [], 0, []
    for question in questions:
        place = corpus.find_line(question.location)
        if place is None:
            outside.append(question)
            continue
        document, offset = place
        title = corpus.documents[document].title
        if question.article and title and question.article != title:
            disagreeing.append(question)
        index = max(0, bisect.bisect_right(encoded.offsets[document], offset) - 1)
        split = (encoded.starts[document] + index) // size
        if split < count:
            asked[split].append(question)
        else:
            beyond += 1
    if outside:
        raise InputError(
            f"{len(outside)} of {len(questions)} questions have a location outside "
            f"{corpus.source}, the first at line {outside[0].location} ({outside[0].context[:60]!r}"
            "); give the questions that were written on this text"
        )
    notes = []
    if beyond:
        notes.append(
            f"{beyond:,} of {len(questions):,} questions stand outside the splits and are not asked"
        )
    if disagreeing:
        notes.append(
            f"{len(disagreeing):,} questions name another article than the one their location "
            f"stands in, the first {disagreeing[0].article!r}"
        )
    return tuple(tuple(part) for part in asked), tuple(notes)
