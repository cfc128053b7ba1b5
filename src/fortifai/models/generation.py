"""Rewriting a corpus with a causal language model: the M_i(D) of ForTIFAI's Algorithm 1.

Greedy decoding and sampling run in a loop of our own, so nothing but the request decides what is
written. Beam search is transformers' own, run while the model's generation_config is put aside,
since `generate` takes from there whatever the request leaves open.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from fortifai.config import Beam, Greedy, Sample
from fortifai.data.tokens import SpecialTokens
from fortifai.errors import InputError
from fortifai.models.scoring import positions, vocabulary

if TYPE_CHECKING:
    from fortifai.config import RegenerateConfig
    from fortifai.loop.progress import Progress

MAX_ROWS = {"cpu": 128, "cuda": 512}
"""Most sequences written side by side; on a CPU wider batches are slower, out of its cache."""

Decoding = Greedy | Beam | Sample
Choose = Callable[[Tensor, int], Tensor]
"""(rows, vocabulary) fp32 logits and the step -> (rows,) tokens."""


def regenerate_blocks(
    model: PreTrainedModel,
    samples: np.ndarray,
    settings: RegenerateConfig,
    special: SpecialTokens,
    *,
    seed: int,
    progress: Progress,
) -> np.ndarray:
    """Rewrite every block of `new_tokens` tokens from the `context` tokens before it.

    With x the stream as given, c = `context` and m = `new_tokens`, the tokens x[c+im : c+(i+1)m]
    are replaced by m tokens that the model writes after x[im : c+im], for every i; the last block
    may be shorter. Blocks are written from x, never from one another, so all are independent. The
    first c tokens stay. The end-of-text token is a token like any other: it may be written and
    stops nothing. (ForTIFAI, 2509.08972, Algorithm 1 and its code.) For a model that reads bos,
    which the paper's code leaves out, bos takes the place of the oldest of the c tokens.

    Args:
        model: In evaluation mode.
        samples: (n,) token ids, n > `context`.
        settings: Context, new_tokens, decoding and batch size (None: by memory).
        special: The model's special tokens.
        seed: Of the random numbers that sampling uses. Each block has its own, so the batch size
            does not choose the text.
        progress: Told after each batch.

    Returns:
        (n,) of the same dtype.

    Raises:
        InputError: The model is too short for context and new_tokens, or the stream too short.
    """
    context, new = settings.context, settings.new_tokens
    check_fits(model, settings)
    if len(samples) <= context:
        raise InputError(
            f"a part of {len(samples)} tokens is to be rewritten from a context of {context}, so "
            "nothing of it would change; lower regenerate.context or give a longer corpus"
        )
    out, total = samples.copy(), len(samples) - context
    starts = np.arange(0, total, new)
    whole = total // new
    rows = _rows(model, settings, context + new)
    groups = [starts[i : min(i + rows, whole)] for i in range(0, whole, rows)]
    # The shorter last block is a batch of its own: a beam of fewer tokens is not a beam cut off.
    groups += [starts[whole:]] if total % new else []
    done = 0
    for group in groups:
        size = min(new, total - int(group[-1]))
        prompts = torch.from_numpy(samples[group[:, None] + np.arange(context)].astype(np.int64))
        prompts = _begun(prompts, context, special)
        numbers = _uniform(settings.decoding, seed, group // new, size)
        banned = special.never_written
        written = write(model, prompts, size, settings.decoding, numbers, banned=banned)
        out[group[:, None] + context + np.arange(size)] = written.numpy().astype(out.dtype)
        done += size * len(group)
        progress.step("rewrite", done, total, tokens=done)
    return out


def regenerate_documents(
    model: PreTrainedModel,
    samples: np.ndarray,
    settings: RegenerateConfig,
    special: SpecialTokens,
    *,
    seed: int,
    progress: Progress,
) -> np.ndarray:
    """Keep the first `keep` tokens of every document and write the rest.

    A document ends with ``special.end``, which stays where it is and is never written inside, so
    documents keep their number and sizes. The model continues from bos (the end of another
    document, for a model that reads none), the kept tokens and its own output, in segments: half
    of the model's positions long (`new_tokens` under beam search, each segment a search of its
    own), each read from as many of the newest tokens as leave room for the segment, behind bos.
    Older tokens are out of sight.

    Args:
        model: In evaluation mode.
        samples: (n,) token ids.
        settings: Keep, new_tokens (beams only), decoding and batch size (None: by memory).
        special: The model's special tokens.
        seed: As in `regenerate_blocks`, for each document.
        progress: Told after each segment of a batch.

    Returns:
        (n,) of the same dtype.

    Raises:
        InputError: `keep` leaves no room to write in the model's positions.
    """
    check_fits(model, settings)
    keep, limit = settings.keep, positions(model)
    out = samples.copy()
    ends = np.append(np.flatnonzero(samples == special.end), len(samples))
    begins = np.concatenate([[0], ends[:-1] + 1])
    long = np.flatnonzero(ends - begins > keep)
    # Stable, so that documents of one size stay in their order; longest last.
    long = long[np.argsort((ends - begins)[long], kind="stable")]
    total, done = int((ends - begins - keep)[long].sum()), 0
    rows = _rows(model, settings, min(limit, int((ends - begins).max()) + 1))
    for at in range(0, len(long), rows):
        batch = long[at : at + rows]
        first, sizes = begins[batch], (ends - begins)[batch]
        prompt = samples[first[:, None] + np.arange(keep)].astype(np.int64)
        text = torch.from_numpy(np.insert(prompt, 0, special.first, axis=1))
        while text.shape[1] <= sizes[-1]:
            before = text.shape[1] - 1
            text = _segment(model, text, first, sizes, settings, special, seed=seed)
            wrote = text.shape[1] - 1 - before
            done += int(np.clip(sizes - before, 0, wrote).sum())
            progress.step("rewrite", done, total, tokens=done)
        for row, size in enumerate(sizes):
            out[first[row] : first[row] + size] = text[row, 1 : 1 + size].numpy()
    return out


def _segment(
    model: PreTrainedModel,
    text: Tensor,
    first: np.ndarray,
    sizes: np.ndarray,
    settings: RegenerateConfig,
    special: SpecialTokens,
    *,
    seed: int,
) -> Tensor:
    """`text` (rows, t), which begins with `first`, and one more segment of unfinished documents.

    Finished rows are filled up with zeros. `first` and `sizes` are where the documents begin in
    the stream, which tells their random numbers apart, and how long they are; longest last.
    """
    limit = positions(model)
    segment = _segment_size(model, settings)
    # Under beams always the whole segment: a search cut short would depend on the batch.
    beams = isinstance(settings.decoding, Beam)
    size = segment if beams else min(segment, int(sizes[-1]) + 1 - text.shape[1])
    unfinished = sizes >= text.shape[1]
    rows = torch.from_numpy(unfinished)
    numbers = _uniform(settings.decoding, seed, first[unfinished], size, text.shape[1])
    window = _begun(text[rows], limit - segment, special)
    written = torch.zeros((len(text), size), dtype=torch.long)
    banned = (*special.never_written, special.end)
    written[rows] = write(model, window, size, settings.decoding, numbers, banned=banned)
    return torch.cat([text, written], dim=1)


def _begun(text: Tensor, most: int, special: SpecialTokens) -> Tensor:
    """The newest tokens of `text` (rows, t), at most `most`, the first of them bos if one is read.

    A `text` that begins with bos and is not longer than `most` stays as it is.
    """
    window = text[:, -most:]
    if special.bos is not None:
        window = window.clone()
        window[:, 0] = special.bos
    return window


def _segment_size(model: PreTrainedModel, settings: RegenerateConfig) -> int:
    """Tokens written before the context is read anew, in mode `documents`."""
    beams = isinstance(settings.decoding, Beam)
    return settings.new_tokens if beams else positions(model) // 2


def check_fits(model: PreTrainedModel, settings: RegenerateConfig) -> None:
    """Refuse settings that the model has too few positions for.

    Raises:
        InputError: What is asked, what the model has, and what to lower.
    """
    limit = positions(model)
    if settings.mode == "blocks":
        wanted = settings.context + settings.new_tokens
        if wanted > limit:
            raise InputError(
                f"regenerate.context {settings.context} + new_tokens {settings.new_tokens} is "
                f"{wanted} tokens, but the model reads {limit} at most; lower one of them"
            )
        return
    segment = _segment_size(model, settings)
    if settings.keep + 1 > limit - segment:
        raise InputError(
            f"regenerate.keep {settings.keep} leaves no room to write: the model reads {limit} "
            f"tokens at most and {segment} of them are for writing; lower keep to "
            f"{max(0, limit - segment - 1)} or less"
        )


def write(
    model: PreTrainedModel,
    prompts: Tensor,
    size: int,
    decoding: Decoding,
    numbers: np.ndarray | None = None,
    *,
    banned: Sequence[int] = (),
) -> Tensor:
    """Write exactly `size` tokens after each prompt.

    Args:
        model: In evaluation mode.
        prompts: (rows, context) int64 token ids, all of one length, so nothing is padded.
        size: Tokens to write.
        decoding: Greedy, beam or sample.
        numbers: (rows, size) float64 in [0, 1), what sampling draws with; None otherwise.
        banned: Tokens that are never written.

    Returns:
        (rows, size) int64 on the CPU.
    """
    prompts = prompts.to(model.device)
    if isinstance(decoding, Beam):
        return _beam(model, prompts, size, decoding, banned)
    if isinstance(decoding, Sample):
        assert numbers is not None
        drawn = torch.from_numpy(numbers).to(model.device)
        return _step_by_step(
            model, prompts, size, lambda x, t: sample(x, drawn[:, t], decoding), banned
        )
    return _step_by_step(model, prompts, size, lambda x, t: x.argmax(-1), banned)


def continue_rows(
    model: PreTrainedModel,
    prompts: np.ndarray,
    size: int,
    decoding: Decoding,
    *,
    seed: int,
    banned: Sequence[int] = (),
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """`write` in batches by memory: (rows, context) token ids -> (rows, size) int64.

    Args:
        model: In evaluation mode.
        prompts: (rows, context) token ids.
        size: Tokens to write.
        decoding: Greedy, beam or sample.
        seed: Each row has random numbers of its own, from seed and place.
        banned: Tokens that are never written.
        tick: Told how many of how many rows are done.
    """
    beams = decoding.beams if isinstance(decoding, Beam) else 1
    step = side_by_side(model, prompts.shape[1] + size, beams)
    out = []
    for first in range(0, len(prompts), step):
        rows = torch.from_numpy(prompts[first : first + step].astype(np.int64))
        numbers = _uniform(decoding, seed, np.arange(first, first + len(rows)), size)
        out.append(write(model, rows, size, decoding, numbers, banned=banned).numpy())
        tick(min(first + step, len(prompts)), len(prompts))
    return np.concatenate(out)


@torch.inference_mode()
def _step_by_step(
    model: PreTrainedModel, prompts: Tensor, size: int, choose: Choose, banned: Sequence[int]
) -> Tensor:
    last = (
        {"logits_to_keep": 1}
        if "logits_to_keep" in inspect.signature(model.forward).parameters
        else {}
    )
    out = torch.empty((len(prompts), size), dtype=torch.long, device=prompts.device)
    never = torch.tensor(banned, dtype=torch.long, device=prompts.device)
    feed, past = prompts, None
    for step in range(size):
        answer = model(input_ids=feed, past_key_values=past, use_cache=True, **last)
        past, logits = answer.past_key_values, answer.logits[:, -1].float()
        out[:, step] = choose(logits.index_fill_(-1, never, -torch.inf), step)
        feed = out[:, step : step + 1]
    return out.cpu()


@torch.inference_mode()
def write_greedily(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    size: int,
    banned: Sequence[int] = (),
) -> list[list[int]]:
    """The `size` most probable tokens, one after the other, after prompts of any lengths.

    Prompts of about one length are written side by side, the shorter ones filled up on the left
    with tokens that nothing sees and that take no position.

    Args:
        model: In evaluation mode.
        prompts: Token ids, at least one each; with `size` more they must fit the positions.
        size: Tokens to write, the end-of-text token being one like any other.
        banned: Tokens that are never written.

    Returns:
        `size` token ids for each prompt, in the order given.
    """
    out: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    at = 0
    while at < len(order):
        longest = len(prompts[order[min(at + MAX_ROWS["cuda"], len(order)) - 1]])
        batch = order[at : at + side_by_side(model, longest + size)]
        rows = _after([prompts[i] for i in batch], model, size, banned)
        for i, row in zip(batch, rows, strict=True):
            out[i] = row
        at += len(batch)
    return out


def _after(
    prompts: Sequence[Sequence[int]], model: PreTrainedModel, size: int, banned: Sequence[int]
) -> list[list[int]]:
    width = max(map(len, prompts))
    fill = [width - len(prompt) for prompt in prompts]
    feed = torch.tensor([[0] * n + list(p) for n, p in zip(fill, prompts, strict=True)])
    seen = (torch.arange(width) >= torch.tensor(fill)[:, None]).long().to(model.device)
    feed, past = feed.to(model.device), None
    takes = inspect.signature(model.forward).parameters
    never = torch.tensor(banned, dtype=torch.long, device=model.device)
    out = torch.empty((len(prompts), size), dtype=torch.long, device=model.device)
    for step in range(size):
        position = (seen.cumsum(-1) - 1).clamp(min=0)[:, -feed.shape[1] :]
        extra = {"position_ids": position, "logits_to_keep": 1}
        answer = model(
            input_ids=feed,
            attention_mask=seen,
            past_key_values=past,
            use_cache=True,
            **{name: value for name, value in extra.items() if name in takes},
        )
        past = answer.past_key_values
        logits = answer.logits[:, -1].float().index_fill_(-1, never, -torch.inf)
        out[:, step] = logits.argmax(-1)
        feed = out[:, step : step + 1]
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
    return [[int(t) for t in row] for row in out.cpu()]


def sample(logits: Tensor, numbers: Tensor, decoding: Sample) -> Tensor:
    """Draw one token a row by inverting the distribution function at given uniform numbers.

    p = softmax(logits / temperature), cut to the `top_k` most probable tokens, renormalised, then
    to the smallest set of most probable tokens whose p sums to `top_p` or more. Drawing with
    numbers made beforehand, rather than with the device's generator, gives the same text on every
    device and with every batch size, up to rounding.

    Args:
        logits: (rows, vocabulary) float.
        numbers: (rows,) float64 in [0, 1).
        decoding: Temperature, top_p, top_k (0: all).

    Returns:
        (rows,) int64.
    """
    if not decoding.top_k and decoding.top_p >= 1:
        return _invert(torch.softmax(logits.double() / decoding.temperature, dim=-1), numbers)
    ordered, token = logits.sort(dim=-1, descending=True, stable=True)
    p = torch.softmax(ordered.double() / decoding.temperature, dim=-1)
    if decoding.top_k:
        p[:, decoding.top_k :] = 0
        p = p / p.sum(-1, keepdim=True)
    before = p.cumsum(-1) - p
    p = torch.where((before < decoding.top_p) | (before == 0), p, 0.0)
    return token.gather(-1, _invert(p, numbers)[:, None]).squeeze(-1)


def _invert(p: Tensor, numbers: Tensor) -> Tensor:
    # in fp64: over a large vocabulary a sum of fp32 is off by more than rare tokens weigh
    total = p.cumsum(-1)
    # right=True skips tokens of probability 0; the scale makes up for p not summing to 1
    found = torch.searchsorted(total, numbers[:, None] * total[:, -1:], right=True).squeeze(-1)
    return found.clamp(max=p.shape[-1] - 1)


@torch.inference_mode()
def _beam(
    model: PreTrainedModel, prompts: Tensor, size: int, decoding: Beam, banned: Sequence[int]
) -> Tensor:
    settings = GenerationConfig(
        max_new_tokens=size,
        min_new_tokens=size,
        num_beams=decoding.beams,
        repetition_penalty=decoding.repetition_penalty,
        length_penalty=decoding.length_penalty,
        suppress_tokens=list(banned) or None,
        do_sample=False,
        early_stopping=False,
        use_cache=True,
    )
    with _blank_generation_config(model):
        answer = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), generation_config=settings
        )
    return answer[:, prompts.shape[1] :].cpu()


@contextlib.contextmanager
def _blank_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Put the model's own generation settings aside: `generate` fills every open one from them."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _uniform(
    decoding: Decoding, seed: int, items: np.ndarray, size: int, segment: int = 0
) -> np.ndarray | None:
    """(items, size) uniform numbers; each item's depend on seed, item and segment alone."""
    if not isinstance(decoding, Sample):
        return None
    rows = [np.random.default_rng((seed, int(i), segment)).random(size) for i in items]
    return np.stack(rows)


def _rows(model: PreTrainedModel, settings: RegenerateConfig, length: int) -> int:
    """Sequences written side by side: as asked, or what half of the free memory holds."""
    if settings.batch_size is not None:
        return settings.batch_size
    beams = settings.decoding.beams if isinstance(settings.decoding, Beam) else 1
    return side_by_side(model, length, beams)


def side_by_side(model: PreTrainedModel, length: int, beams: int = 1) -> int:
    """How many sequences of `length` tokens half of the free memory holds, at least 1."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_each = torch.finfo(model.dtype).bits // 8
    # keys and values of every layer, twice while the cache grows, and four copies of the logits
    cache = 4 * config.num_hidden_layers * heads * width * length * bytes_each
    per_row = beams * (cache + 16 * vocabulary(model))
    free = 2 * 2**30
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    most = MAX_ROWS.get(model.device.type, MAX_ROWS["cpu"])
    return int(max(1, min(most // beams, free // 2 // per_row)))
