"""Rewriting a stream of tokens block by block: the M_i(D) of ForTIFAI's Algorithm 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fortifai.data.tokens import SpecialTokens
from fortifai.errors import InputError
from fortifai.lab.seeds import derive
from fortifai.models import shared_prefix, vllm_engine
from fortifai.models.generation import begun, rows_at_a_time, uniform, width, write, write_after
from fortifai.models.options import Beam
from fortifai.models.scoring import positions

if TYPE_CHECKING:
    from fortifai.lab.progress import Progress
    from fortifai.models.options import RegenerateOptions
    from fortifai.models.vllm_engine import Engine


@dataclasses.dataclass(frozen=True)
class Part:
    """One of several parts of things in a row, which are cut as evenly as can be.

    Attributes:
        number: From 0.
        count: Of all.
    """

    number: int = 0
    count: int = 1

    def of(self, things: int) -> range:
        """The numbers of those in this part."""
        return range(self.number * things // self.count, (self.number + 1) * things // self.count)


WHOLE = Part()


@dataclasses.dataclass(frozen=True)
class _Group:
    """Blocks of one size at the same places of several chunks.

    Attributes:
        chunks: (chunks,) their numbers.
        places: (places,) the blocks' numbers in each of them.
        size: Tokens of each block.
    """

    chunks: np.ndarray
    places: np.ndarray
    size: int

    @property
    def tokens(self) -> int:
        """Of all its blocks."""
        return len(self.chunks) * len(self.places) * self.size


def regenerate_blocks(
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
    """Rewrite every block of `new_tokens` tokens from the `context` before them.

    With x the stream as given, c the context and m = `new_tokens`, the tokens x[c+im : c+(i+1)m]
    are replaced by m tokens that the model writes after x[im : c+im], for every i; the last block
    may be shorter. Blocks are written from x, never from one another, so all are independent. The
    first c tokens stay. The end-of-text token is a token like any other: it may be written and
    stops nothing. (ForTIFAI, 2509.08972, Algorithm 1 and its code.)

    With a context of `at_least` c and `at_most` d, k = floor((d - c) / m) blocks share a chunk, and
    block i is written after x[floor(i/k) km : c+im], so after c to d - m tokens. A chunk is read
    once, where the model is served by `shared_prefix`; otherwise once for each of its blocks.

    For a model that reads bos, which the paper's code leaves out, bos takes the place of the first
    token of each chunk, or of each context of exactly c.

    Args:
        model: In evaluation mode.
        samples: (n,) token ids, n > c.
        settings: Context, new_tokens, decoding and batch size (None: by memory).
        special: The model's special tokens.
        seed: Of the random numbers that sampling uses. Each block has its own, so neither batch nor
            chunk chooses the text.
        progress: Told after each batch.
        part: Of the chunks, those that are rewritten; the others stay.
        engine: What writes instead of the model, and has its weights; by its own random numbers.

    Returns:
        (n,) of the same dtype.

    Raises:
        InputError: The model is too short for context and new_tokens, or the stream too short.
    """
    first, new = settings.first, settings.new_tokens
    _check_fits(model, settings)
    if len(samples) <= first:
        raise InputError(
            f"a part of {len(samples)} tokens is to be rewritten from a context of {first}, so "
            "nothing of it would change; lower regenerate.context or give a longer corpus"
        )
    if engine is not None:
        return _by_engine(engine, samples, settings, special, seed=seed, progress=progress)
    out = samples.copy()
    shared, rows = _way(model, samples, settings, special)
    chunks = max(1, rows // settings.blocks) if shared else rows
    groups = [*_groups(len(samples) - first, settings, chunks, part)]
    done, total = 0, sum(group.tokens for group in groups)
    for group in groups:
        begins = group.chunks * settings.blocks * new
        limits = first + group.places * new
        text = samples[begins[:, None] + np.arange(limits[-1])].astype(np.int64)
        ids = begun(torch.from_numpy(text), limits[-1], special).to(model.device)
        pieces = _together if shared else _apart
        for places, written in pieces(model, ids, group, settings, special, rows=rows, seed=seed):
            to = begins[:, None] + first + places * new
            out[to.reshape(-1, 1) + np.arange(group.size)] = written.numpy().astype(out.dtype)
            done += written.numel()
            progress.step("rewrite", done, total, tokens=done)
    return out


def _by_engine(
    engine: Engine,
    samples: np.ndarray,
    settings: RegenerateOptions,
    special: SpecialTokens,
    *,
    seed: int,
    progress: Progress,
) -> np.ndarray:
    """The same by an engine, which is given every context whole."""
    assert not isinstance(settings.decoding, Beam)
    out, first, new = samples.copy(), settings.first, settings.new_tokens
    total = len(samples) - first
    blocks = range(-(-total // new))
    for group in (blocks[a : a + vllm_engine.AT_A_TIME] for a in blocks[:: vllm_engine.AT_A_TIME]):
        rows = []
        for block in group:
            begin, limit = block // settings.blocks * settings.blocks * new, first + block * new
            text = torch.from_numpy(samples[None, begin:limit].astype(np.int64))
            prompt = begun(text, limit - begin, special)[0].tolist()
            size = min(new, len(samples) - limit)
            rows.append(vllm_engine.Row(prompt, size, derive(seed, "block", block)))
        written = engine.write(rows, settings.decoding, special.never_written)
        done = min((group[-1] + 1) * new, total)
        out[first + group[0] * new : first + done] = np.concatenate(written)
        progress.step("rewrite", done, total, tokens=done)
    return out


def _way(
    model: PreTrainedModel, samples: np.ndarray, settings: RegenerateOptions, special: SpecialTokens
) -> tuple[bool, int]:
    """Whether what is read is shared between blocks or beams, and the blocks written at a time."""
    several = settings.blocks * width(settings.decoding)
    reads = settings.first + (settings.blocks - 1) * settings.new_tokens
    text = torch.from_numpy(samples[None, :reads].astype(np.int64))
    if several > 1 and shared_prefix.served(model, begun(text, reads, special)[0]):
        # of each row its share of the text and its own tokens
        return True, rows_at_a_time(model, settings, -(-reads // several) + settings.new_tokens)
    return False, rows_at_a_time(model, settings, settings.longest)


def _groups(total: int, settings: RegenerateOptions, chunks: int, part: Part) -> Iterator[_Group]:
    """The blocks of `total` tokens, those of a part of the chunks, in groups of at most so many."""
    new, blocks = settings.new_tokens, settings.blocks
    full, over = divmod(total // new, blocks)
    rest = total % new
    mine = part.of(full + bool(over or rest))
    for at in range(mine.start, min(mine.stop, full), chunks):
        yield _Group(np.arange(at, min(at + chunks, mine.stop, full)), np.arange(blocks), new)
    if full not in mine:
        return
    if over:
        yield _Group(np.array([full]), np.arange(over), new)
    # The shorter last block by itself: a beam of fewer tokens is not a beam cut off.
    if rest:
        yield _Group(np.array([full]), np.array([over]), rest)


def _together(
    model: PreTrainedModel,
    ids: Tensor,
    group: _Group,
    settings: RegenerateOptions,
    special: SpecialTokens,
    *,
    rows: int,
    seed: int,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Places and what is written there, from chunks `ids` (chunks, length) that are read once."""
    limits = torch.from_numpy(settings.first + group.places * settings.new_tokens).to(ids.device)
    prefix = shared_prefix.read(model, ids, limits - 1)
    step = max(1, rows // len(ids))
    for at in range(0, len(limits), step):
        places = group.places[at : at + step]
        yield (
            places,
            write_after(
                model,
                prefix,
                limits[at : at + step].expand(len(ids), -1),
                prefix.logits[:, at : at + step],
                group.size,
                settings.decoding,
                _numbers(group, places, settings, seed),
                banned=special.never_written,
            ),
        )


def _apart(
    model: PreTrainedModel,
    ids: Tensor,
    group: _Group,
    settings: RegenerateOptions,
    special: SpecialTokens,
    *,
    rows: int,
    seed: int,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The same, from contexts that are read for each block."""
    for i, place in enumerate(group.places):
        places = group.places[i : i + 1]
        prompts = ids[:, : settings.first + place * settings.new_tokens]
        numbers = _numbers(group, places, settings, seed)
        banned = special.never_written
        yield places, write(model, prompts, group.size, settings.decoding, numbers, banned=banned)


def _numbers(
    group: _Group, places: np.ndarray, settings: RegenerateOptions, seed: int
) -> np.ndarray | None:
    """The random numbers of the blocks at these places of a group's chunks."""
    blocks = (group.chunks[:, None] * settings.blocks + places).ravel()
    return uniform(settings.decoding, seed, blocks, group.size)


def _check_fits(model: PreTrainedModel, settings: RegenerateOptions) -> None:
    limit, wanted = positions(model), settings.longest
    if wanted > limit:
        raise InputError(
            f"regenerate.{settings.told} is {wanted} tokens, but the model reads {limit} at most; "
            "make the context shorter"
        )
