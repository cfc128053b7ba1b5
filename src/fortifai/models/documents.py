"""Rewriting documents behind their first tokens, as many at a time as memory holds."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from fortifai import machine
from fortifai.data.tokens import SpecialTokens
from fortifai.errors import InputError
from fortifai.lab.seeds import derive
from fortifai.models import shared_prefix, vllm_engine
from fortifai.models.blocks import WHOLE, Part
from fortifai.models.generation import (
    begun,
    chooser,
    memory_for_rows,
    rows_at_a_time,
    side_by_side,
    uniform,
    write,
)
from fortifai.models.options import Beam, Sample
from fortifai.models.scoring import positions
from fortifai.models.shared_prefix import Prefix, Rows

if TYPE_CHECKING:
    from fortifai.lab.progress import Progress
    from fortifai.models.options import RegenerateOptions
    from fortifai.models.vllm_engine import Engine

LONGEST_TRIAL = 1024
"""Tokens of a document that a model is tried on at most: a trial reads them all."""


@dataclasses.dataclass
class _Document:
    """A document that is being written.

    Attributes:
        place: Where it begins in the stream, which tells its random numbers from others'.
        text: (1 + tokens,) int64, what stands before a text and the document.
        have: How much of it is written.
        start: Where its segment starts.
        stop: Where its segment ends.
        numbers: What sampling draws with in this segment; empty otherwise.
    """

    place: int
    text: NDArray[np.int64]
    have: int
    start: int = 0
    stop: int = 0
    numbers: NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.empty(0))

    @property
    def left(self) -> int:
        """Tokens that are still to be written."""
        return len(self.text) - self.have

    def put(self, tokens: np.ndarray) -> int:
        """Write on, as far as the document goes; tells how many tokens that were."""
        fitting = min(len(tokens), self.left)
        self.text[self.have : self.have + fitting] = tokens[:fitting]
        self.have += fitting
        return fitting


Tell = Callable[[int], None]
"""Told how many more tokens were written."""


def regenerate_documents(
    model: PreTrainedModel,
    samples: np.ndarray,
    settings: RegenerateOptions,
    special: SpecialTokens,
    *,
    seed: int,
    progress: Progress,
    part: Part = WHOLE,
    engine: Engine | None = None,
) -> np.ndarray:
    """Keep the first `keep` tokens of every document and write the rest.

    A document ends with ``special.end``, which stays where it is and is never written inside, so
    documents keep their number and sizes. The model continues from bos (the end of another
    document, for a model that reads none), the kept tokens and its own output, in segments: half
    of the model's positions long (`new_tokens` under beam search, each segment a search of its
    own), each read from as many of the newest tokens as leave room for the segment, behind bos.
    Older tokens are out of sight.

    A document that is finished makes room for one that waits, shorter ones first.

    Args:
        model: In evaluation mode.
        samples: (n,) token ids.
        settings: Keep, new_tokens (beams only), decoding and batch size (None: by memory).
        special: The model's special tokens.
        seed: As in `blocks.regenerate_blocks`, for each document.
        progress: Told whenever documents or segments are finished.
        part: Of the documents, those that are rewritten; the others stay.
        engine: As in `blocks.regenerate_blocks`.

    Returns:
        (n,) of the same dtype.

    Raises:
        InputError: `keep` leaves no room to write in the model's positions.
    """
    _check_fits(model, settings)
    out = samples.copy()
    documents = _documents(samples, settings.keep, special, part)
    total, done = sum(document.left for document in documents), 0

    def tell(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress.step("rewrite", done, total, tokens=done)

    if documents and engine is not None:
        _by_engine(engine, positions(model), documents, settings, special, seed=seed, tell=tell)
    elif documents:
        shared = not isinstance(settings.decoding, Beam)
        most = min(LONGEST_TRIAL, positions(model) - _segment(model, settings))
        trial = torch.from_numpy(documents[-1].text[:most])
        if shared and shared_prefix.served(model, trial):
            _Writer(model, settings, special, seed, tell).write(documents)
        else:
            _in_rounds(model, documents, settings, special, seed, tell)
    for document in documents:
        out[document.place : document.place + len(document.text) - 1] = document.text[1:]
    return out


def _documents(
    samples: np.ndarray, keep: int, special: SpecialTokens, part: Part
) -> list[_Document]:
    """Those of a part that have something to write, the shortest first."""
    ends = np.append(np.flatnonzero(samples == special.end), len(samples))
    begins = np.concatenate([[0], ends[:-1] + 1])
    written = [(a, b) for a, b in zip(begins, ends, strict=True) if b - a > keep]
    mine = part.of(len(written))
    found = [
        _Document(int(a), np.insert(samples[a:b].astype(np.int64), 0, special.first), keep + 1)
        for a, b in written[mine.start : mine.stop]
    ]
    # stable, so that documents of one size stay in their order
    return sorted(found, key=lambda document: len(document.text))


def _segment(model: PreTrainedModel, settings: RegenerateOptions) -> int:
    """Tokens written before the context is read anew."""
    beams = isinstance(settings.decoding, Beam)
    return settings.new_tokens if beams else positions(model) // 2


def _window(document: _Document, most: int, special: SpecialTokens) -> Tensor:
    """(1, tokens) the newest tokens of what there is, at most so many."""
    return begun(torch.from_numpy(document.text[None, : document.have]), most, special)


def _banned(special: SpecialTokens) -> tuple[int, ...]:
    return (*special.never_written, special.end)


def _check_fits(model: PreTrainedModel, settings: RegenerateOptions) -> None:
    limit, segment = positions(model), _segment(model, settings)
    if settings.keep + 1 > limit - segment:
        raise InputError(
            f"regenerate.keep {settings.keep} leaves no room to write: the model reads {limit} "
            f"tokens at most and {segment} of them are for writing; lower keep to "
            f"{max(0, limit - segment - 1)} or less"
        )


def _in_rounds(
    model: PreTrainedModel,
    documents: list[_Document],
    settings: RegenerateOptions,
    special: SpecialTokens,
    seed: int,
    tell: Tell,
) -> None:
    """Write a segment of every document, then the next of those that are not finished."""
    limit, segment = positions(model), _segment(model, settings)
    rows = rows_at_a_time(model, settings, min(limit, len(documents[-1].text)))
    alive = documents
    while alive:
        for at in range(0, len(alive), rows):
            batch = alive[at : at + rows]
            have = batch[0].have  # the same of all: only what is finished was cut short
            # Under beams always the whole segment: a search cut short would depend on the batch.
            beams = isinstance(settings.decoding, Beam)
            size = segment if beams else min(segment, batch[-1].left)
            places = np.array([document.place for document in batch])
            numbers = uniform(settings.decoding, seed, places, size, have)
            text = torch.cat([_window(document, limit - segment, special) for document in batch])
            banned = _banned(special)
            written = write(model, text, size, settings.decoding, numbers, banned=banned)
            tell(sum(d.put(row) for d, row in zip(batch, written.numpy(), strict=True)))
        alive = [document for document in alive if document.left]


def _by_engine(
    engine: Engine,
    limit: int,
    documents: list[_Document],
    settings: RegenerateOptions,
    special: SpecialTokens,
    *,
    seed: int,
    tell: Tell,
) -> None:
    """The same by an engine, for a model of `limit` positions."""
    assert not isinstance(settings.decoding, Beam)
    segment, alive = limit // 2, documents
    while alive:
        for at in range(0, len(alive), vllm_engine.AT_A_TIME):
            batch = alive[at : at + vllm_engine.AT_A_TIME]
            rows = [
                vllm_engine.Row(
                    _window(document, limit - segment, special)[0].tolist(),
                    min(segment, document.left),
                    derive(seed, "document", document.place, document.have),
                )
                for document in batch
            ]
            written = engine.write(rows, settings.decoding, _banned(special))
            tell(sum(d.put(np.array(row)) for d, row in zip(batch, written, strict=True)))
        alive = [document for document in alive if document.left]


class _Pool(Rows):
    """Rows that join and leave, each with a text of its own."""

    def __init__(self, prefix: Prefix) -> None:
        """No rows yet, of the kind that `prefix` holds."""
        keys, values = ([x[:0, :, :0] for x in each] for each in (prefix.keys, prefix.values))
        bare = Prefix(prefix.ids, keys, values, prefix.logits)
        super().__init__(bare, prefix.ids.new_zeros(0, 1), 0)

    @property
    def room(self) -> int:
        """Most tokens of a row."""
        return int(self.layers[0].keys.shape[2])

    def join(self, prefix: Prefix, room: int, rows: int) -> None:
        """Add a row for each text of `prefix`, which has been read.

        Args:
            prefix: The texts.
            room: Tokens that each row of the pool needs room for.
            rows: Rows to hold room for, where more room is needed than there is.
        """
        counts, length = self.own.counts, prefix.ids.shape[1]
        before, after = len(counts), len(counts) + len(prefix.ids)
        joined = counts.new_full((after - before,), length)
        for layer, keys, values in zip(self.layers, prefix.keys, prefix.values, strict=True):
            for name, new in (("keys", keys), ("values", values)):
                held = getattr(layer, name)
                if after > len(held) or room > held.shape[2]:
                    larger = (max(after, rows), held.shape[1], room, held.shape[3])
                    grown = held.new_zeros(larger)
                    grown[:before, :, : held.shape[2]] = held[:before]
                    setattr(layer, name, grown)
                getattr(layer, name)[before:after, :, :length] = new
        self._keep(torch.cat([counts, joined]))

    def leave(self, places: list[int]) -> list[int]:
        """Drop the rows at these places; tells which row now stands at each place."""
        now = len(self.own.counts) - len(places)
        holes = [place for place in places if place < now]
        movers = sorted(set(range(now, len(self.own.counts))) - set(places))
        order = list(range(now))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
            for layer in self.layers:
                layer.keys[hole] = layer.keys[mover]
                layer.values[hole] = layer.values[mover]
        self._keep(self.own.counts[order])
        return order

    def _keep(self, counts: Tensor) -> None:
        self.own.counts = counts
        self.own.most = int(counts.max()) if len(counts) else 0
        self.limits = counts.new_zeros(len(counts), 1)
        for layer in self.layers:
            layer.prefix_keys = layer.keys[: len(counts), :, :0]
            layer.prefix_values = layer.values[: len(counts), :, :0]
        self._unseen.clear()


class _Writer:
    """Writes documents, a token of each at a time; one that waits takes a finished one's place."""

    def __init__(
        self,
        model: PreTrainedModel,
        settings: RegenerateOptions,
        special: SpecialTokens,
        seed: int,
        tell: Tell,
    ) -> None:
        self.model, self.settings, self.special = model, settings, special
        self.seed, self.tell = seed, tell
        self.limit, self.segment = positions(model), _segment(model, settings)
        # Asked once, before rows take any of it. Few documents of thousands of tokens would fit
        # into what blocks are content with, and a step reads all weights for however few; half of
        # what the machine has, since another chain may do the same.
        self.free = memory_for_rows(model.device, of_cpu=machine.free_memory() // 2)
        self.never = torch.tensor(_banned(special), dtype=torch.long, device=model.device)
        self.writing: list[_Document] = []
        self.waiting: deque[_Document] = deque()
        self.pool: _Pool | None = None

    def write(self, documents: list[_Document]) -> None:
        """Write documents to their ends."""
        self.waiting.extend(documents)
        while self.waiting or self.writing:
            while self._let_in():
                self._let_out()
            if not self.writing:
                break
            assert self.pool is not None
            with shared_prefix.attending(self.model):
                # until a segment is finished
                for _ in range(min(d.stop - d.have for d in self.writing)):
                    last = [document.text[document.have - 1] for document in self.writing]
                    tokens = torch.tensor(last, device=self.model.device)
                    logits = shared_prefix.step(self.model, self.pool, tokens)
                    self._put(self.writing, logits)
            self._let_out()

    def _room(self, document: _Document) -> int:
        """Tokens to hold for a document's next segment, its window among them.

        Up to a quarter more than it takes: each is longer than those before it, and more room for
        it is a copy of what all the others hold.
        """
        window = min(document.have, self.limit - self.segment)
        needed = window + min(self.segment, document.left)
        step = 1 << max(4, needed.bit_length() - 3)
        return min(self.limit, -(-needed // step) * step)

    def _let_in(self) -> bool:
        """Read as many of those that wait as fit beside the others; tells whether any did."""
        room = self.pool.room if self.pool else 0
        chosen: list[_Document] = []
        while self.waiting:
            needed = max(room, self._room(self.waiting[0]))
            side_by_side = len(self.writing) + len(chosen) + 1
            if 1 < side_by_side > self._rows(needed):
                break
            room = needed
            chosen.append(self.waiting.popleft())
        for _, alike in groupby(chosen, key=lambda document: document.have):
            self._join(list(alike), room)
        return bool(chosen)

    def _rows(self, room: int) -> int:
        if self.settings.batch_size is not None:
            return self.settings.batch_size
        return side_by_side(self.model, room, copies=1, free=self.free)

    def _join(self, documents: list[_Document], room: int) -> None:
        most = self.limit - self.segment
        ids = torch.cat([_window(document, most, self.special) for document in documents])
        ids = ids.to(self.model.device)
        prefix = shared_prefix.read(
            self.model, ids, torch.tensor([ids.shape[1] - 1], device=ids.device)
        )
        self.pool = self.pool or _Pool(prefix)
        waiting = len(self.writing) + len(documents) + len(self.waiting)
        self.pool.join(prefix, max(room, self.pool.room), min(self._rows(room), waiting))
        for document in documents:
            size = min(self.segment, document.left)
            document.start, document.stop = document.have, document.have + size
            if isinstance(self.settings.decoding, Sample):
                place = np.array([document.place])
                drawn = uniform(self.settings.decoding, self.seed, place, size, document.have)
                assert drawn is not None
                document.numbers = drawn[0]
        self.writing += documents
        self._put(documents, prefix.logits[:, 0])

    def _put(self, documents: list[_Document], logits: Tensor) -> None:
        """Choose the next token of each document, from (documents, vocabulary) logits."""
        decoding = self.settings.decoding
        assert not isinstance(decoding, Beam)
        numbers = None
        if isinstance(decoding, Sample):
            numbers = np.array([[d.numbers[d.have - d.start]] for d in documents])
        choose = chooser(decoding, numbers, self.model.device)
        chosen = choose(logits.index_fill(-1, self.never, -torch.inf), 0).cpu().numpy()
        for document, token in zip(documents, chosen, strict=True):
            document.put(token[None])

    def _let_out(self) -> None:
        """Make room where segments are finished; a document that goes on is the next to be read."""
        over = [i for i, document in enumerate(self.writing) if document.have == document.stop]
        if not over:
            return
        assert self.pool is not None
        finished = [self.writing[i] for i in over]
        self.writing = [self.writing[i] for i in self.pool.leave(over)]
        self.waiting.extendleft(document for document in reversed(finished) if document.left)
        self.tell(sum(document.stop - document.start for document in finished))
