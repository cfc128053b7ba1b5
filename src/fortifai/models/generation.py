"""Writing after prompts: decoding, random numbers, and how many rows memory holds.

Greedy decoding and sampling run in a loop of our own, so nothing but the request decides what is
written. So does beam search, where the model is served by `shared_prefix`; elsewhere it is
transformers' own, run while the model's generation_config is put aside, since `generate` takes from
there whatever the request leaves open.
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

from fortifai.data.tokens import SpecialTokens
from fortifai.models import beams, kv_cache, shared_prefix
from fortifai.models.options import Beam, Greedy, Sample
from fortifai.models.scoring import vocabulary
from fortifai.models.shared_prefix import Prefix, Rows

if TYPE_CHECKING:
    from fortifai.models.options import RegenerateOptions

MAX_ROWS = {"cpu": 128, "cuda": 512}
"""Most sequences written side by side; on a CPU wider batches are slower, out of its cache."""

Decoding = Greedy | Beam | Sample
Choose = Callable[[Tensor, int], Tensor]
"""(rows, vocabulary) fp32 logits and the step -> (rows,) tokens."""


def begun(text: Tensor, most: int, special: SpecialTokens) -> Tensor:
    """The newest tokens of `text` (rows, t), at most `most`, the first of them bos if one is read.

    A `text` that begins with bos and is not longer than `most` stays as it is.
    """
    window = text[:, -most:]
    if special.bos is not None:
        window = window.clone()
        window[:, 0] = special.bos
    return window


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
    if not isinstance(decoding, Beam):
        choose = chooser(decoding, numbers, model.device)
        return _step_by_step(model, prompts, size, choose, banned)
    if not shared_prefix.served(model, prompts[0]):
        return _generate(model, prompts, size, decoding, banned)
    length = prompts.shape[1]
    limits = torch.full((len(prompts), 1), length, device=model.device)
    prefix = shared_prefix.read(model, prompts, limits[0] - 1)
    return write_after(model, prefix, limits, prefix.logits, size, decoding, banned=banned)


@torch.inference_mode()
def write_after(
    model: PreTrainedModel,
    prefix: Prefix,
    limits: Tensor,
    first: Tensor,
    size: int,
    decoding: Decoding,
    numbers: np.ndarray | None = None,
    *,
    banned: Sequence[int] = (),
) -> Tensor:
    """Write exactly `size` tokens after several beginnings of texts that have been read.

    Args:
        model: In evaluation mode, one that `shared_prefix` serves.
        prefix: The texts.
        limits: (texts, rows a text) int64, the tokens of each beginning.
        first: (texts, rows a text, vocabulary) float32 logits after each.
        size: Tokens to write.
        decoding: Greedy, beam or sample.
        numbers: (all rows, size) float64 in [0, 1), what sampling draws with; None otherwise.
        banned: Tokens that are never written.

    Returns:
        (all rows, size) int64 on the CPU, the rows of a text one after the other.
    """
    with shared_prefix.attending(model):
        if isinstance(decoding, Beam):
            return beams.search(model, prefix, limits, first, size, decoding, banned).cpu()
        choose = chooser(decoding, numbers, model.device)
        never = torch.tensor(banned, dtype=torch.long, device=model.device)
        rows = Rows(prefix, limits, size)
        logits = first.flatten(0, 1)
        out = torch.empty((len(logits), size), dtype=torch.long, device=model.device)
        for i in range(size):
            out[:, i] = choose(logits.index_fill(-1, never, -torch.inf), i)
            if i + 1 < size:
                logits = shared_prefix.step(model, rows, out[:, i])
        return out.cpu()


def chooser(decoding: Greedy | Sample, numbers: np.ndarray | None, device: torch.device) -> Choose:
    """How a token is chosen; `numbers` (rows, steps) are what sampling draws with."""
    if isinstance(decoding, Greedy):
        return lambda logits, i: logits.argmax(-1)
    assert numbers is not None
    drawn = torch.from_numpy(numbers).to(device)
    return lambda logits, i: sample(logits, drawn[:, i], decoding)


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
    step = side_by_side(model, prompts.shape[1] + size, width(decoding))
    out = []
    for first in range(0, len(prompts), step):
        rows = torch.from_numpy(prompts[first : first + step].astype(np.int64))
        numbers = uniform(decoding, seed, np.arange(first, first + len(rows)), size)
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
    feed, past, name = prompts, None, shared_prefix.cache_name(model)
    for step in range(size):
        answer = model(input_ids=feed, use_cache=True, **{name: past}, **last)
        past = answer[name] if step else kv_cache.with_room(answer[name], size - 1)
        logits = answer.logits[:, -1].float()
        out[:, step] = choose(logits.index_fill_(-1, never, -torch.inf), step)
        feed = out[:, step : step + 1]
    return out.cpu()


def write_apart(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    size: int,
    decoding: Greedy | Sample,
    numbers: np.ndarray | None = None,
    *,
    banned: Sequence[int] = (),
    ends: frozenset[int] = frozenset(),
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[int]]:
    """Up to `size` tokens after each of several prompts of any lengths.

    Prompts of about one length are written side by side, the shorter ones filled up on the left
    with tokens that nothing sees and that take no position.

    Args:
        model: In evaluation mode.
        prompts: Token ids, at least one each; with `size` more they must fit the positions.
        size: Most tokens to write.
        decoding: Greedy or sample.
        numbers: (prompts, size) float64 in [0, 1), what sampling draws with; None otherwise.
        banned: Tokens that are never written.
        ends: Tokens with which a row ends; without them each row has `size` tokens.
        tick: Told how many of how many rows are done.

    Returns:
        Token ids for each prompt, in the order given; the last one may be of `ends`.
    """
    out: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    at = 0
    while at < len(order):
        longest = len(prompts[order[min(at + MAX_ROWS["cuda"], len(order)) - 1]])
        batch = order[at : at + side_by_side(model, longest + size)]
        drawn = None if numbers is None else numbers[batch]
        choose = chooser(decoding, drawn, model.device)
        rows = _after([prompts[i] for i in batch], model, size, choose, banned, ends)
        for i, row in zip(batch, rows, strict=True):
            out[i] = row
        at += len(batch)
        tick(at, len(order))
    return out


@torch.inference_mode()
def _after(
    prompts: Sequence[Sequence[int]],
    model: PreTrainedModel,
    size: int,
    choose: Choose,
    banned: Sequence[int],
    ends: frozenset[int],
) -> list[list[int]]:
    width = max(map(len, prompts))
    fill = [width - len(prompt) for prompt in prompts]
    feed = torch.tensor([[0] * n + list(p) for n, p in zip(fill, prompts, strict=True)])
    seen = (torch.arange(width) >= torch.tensor(fill)[:, None]).long().to(model.device)
    feed, past = feed.to(model.device), None
    takes, cache = inspect.signature(model.forward).parameters, shared_prefix.cache_name(model)
    never = torch.tensor(banned, dtype=torch.long, device=model.device)
    closing = torch.tensor(sorted(ends), dtype=torch.long, device=model.device)
    out = torch.empty((len(prompts), size), dtype=torch.long, device=model.device)
    ended, written = torch.zeros(len(prompts), dtype=torch.bool, device=model.device), size
    for step in range(size):
        position = (seen.cumsum(-1) - 1).clamp(min=0)[:, -feed.shape[1] :]
        extra = {"position_ids": position, "logits_to_keep": 1}
        answer = model(
            input_ids=feed,
            attention_mask=seen,
            use_cache=True,
            **{cache: past},
            **{name: value for name, value in extra.items() if name in takes},
        )
        past = answer[cache] if step else kv_cache.with_room(answer[cache], size - 1)
        logits = answer.logits[:, -1].float().index_fill_(-1, never, -torch.inf)
        out[:, step] = choose(logits, step)
        ended |= torch.isin(out[:, step], closing)
        if ended.all():
            written = step + 1
            break
        feed = out[:, step : step + 1]
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
    return [_until(row, ends) for row in out[:, :written].tolist()]


def _until(row: list[int], ends: frozenset[int]) -> list[int]:
    """A row up to the first of `ends`, that one included."""
    stop = next((i for i, token in enumerate(row) if token in ends), len(row))
    return row[: stop + 1]


def sample(logits: Tensor, numbers: Tensor, decoding: Sample) -> Tensor:
    """Draw one token a row by inverting the distribution function at given uniform numbers.

    Of the logits, those under max - `top_n_sigma` sigma are cut, with sigma their own standard
    deviation (tokens that are never written left out; over n - 1, as in PyTorch). Then
    p = softmax(logits / temperature), cut to the `top_k` most probable tokens, renormalised, then
    to the smallest set of most probable tokens whose p sums to `top_p` or more, then to those of
    at least `min_p` times the highest p: the order of transformers. Drawing with numbers made
    beforehand, rather than with the device's generator, gives the same text on every device and
    with every batch size, up to rounding.

    Args:
        logits: (rows, vocabulary) float.
        numbers: (rows,) float64 in [0, 1).
        decoding: Temperature and cuts.

    Returns:
        (rows,) int64.
    """
    if decoding.top_n_sigma is not None:
        logits = _within_sigmas(logits, decoding.top_n_sigma)
    if not decoding.top_k and decoding.top_p >= 1:
        p = torch.softmax(logits.double() / decoding.temperature, dim=-1)
        return _invert(_above(p, decoding.min_p), numbers)
    ordered, token = logits.sort(dim=-1, descending=True, stable=True)
    p = torch.softmax(ordered.double() / decoding.temperature, dim=-1)
    if decoding.top_k:
        p[:, decoding.top_k :] = 0
        p = p / p.sum(-1, keepdim=True)
    before = p.cumsum(-1) - p
    p = torch.where((before < decoding.top_p) | (before == 0), p, 0.0)
    p = _above(p, decoding.min_p)
    return token.gather(-1, _invert(p, numbers)[:, None]).squeeze(-1)


def _within_sigmas(logits: Tensor, n: float) -> Tensor:
    z = logits.double()
    there = z > -torch.inf
    count = there.sum(-1, keepdim=True)
    mean = torch.where(there, z, 0.0).sum(-1, keepdim=True) / count
    squares = torch.where(there, z - mean, 0.0).square().sum(-1, keepdim=True)
    sigma = (squares / (count - 1).clamp(min=1)).sqrt()
    return logits.masked_fill(z < z.amax(-1, keepdim=True) - n * sigma, -torch.inf)


def _above(p: Tensor, share: float) -> Tensor:
    """Probabilities, 0 where they are under that share of the highest of their row."""
    return torch.where(p >= share * p.amax(-1, keepdim=True), p, 0.0) if share else p


def _invert(p: Tensor, numbers: Tensor) -> Tensor:
    # in fp64: over a large vocabulary a sum of fp32 is off by more than rare tokens weigh
    total = p.cumsum(-1)
    # right=True skips tokens of probability 0; the scale makes up for p not summing to 1
    found = torch.searchsorted(total, numbers[:, None] * total[:, -1:], right=True).squeeze(-1)
    return found.clamp(max=p.shape[-1] - 1)


@torch.inference_mode()
def _generate(
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


def uniform(
    decoding: Decoding, seed: int, items: np.ndarray, size: int, segment: int = 0
) -> np.ndarray | None:
    """(items, size) uniform numbers; each item's depend on seed, item and segment alone."""
    if not isinstance(decoding, Sample):
        return None
    rows = [np.random.default_rng((seed, int(i), segment)).random(size) for i in items]
    return np.stack(rows)


def width(decoding: Decoding) -> int:
    """Sequences that are written for each one that is asked for."""
    return decoding.beams if isinstance(decoding, Beam) else 1


def rows_at_a_time(model: PreTrainedModel, settings: RegenerateOptions, length: int) -> int:
    """Blocks or documents written side by side: as asked, or what memory holds."""
    if settings.batch_size is not None:
        return settings.batch_size
    return side_by_side(model, length, width(settings.decoding))


def memory_for_rows(device: torch.device, of_cpu: int = 0) -> int:
    """Bytes that writing may count on: what a GPU has free; of a CPU 2 GiB, or `of_cpu` if more."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return max(2 * 2**30, of_cpu)


def side_by_side(
    model: PreTrainedModel,
    length: int,
    beams: int = 1,
    *,
    copies: int = 2,
    free: int | None = None,
) -> int:
    """How many sequences of `length` tokens half of the free memory holds, at least 1.

    Args:
        model: The model.
        length: Tokens of each, prompt and all.
        beams: Of each sequence.
        copies: Of keys and values; 2 where the cache grows by being copied.
        free: Bytes; None for what `memory_for_rows` says.
    """
    # keys and values of every layer, and four copies of the logits
    per_row = beams * (copies * cache_bytes(model, length) + 16 * vocabulary(model))
    if free is None:
        free = memory_for_rows(model.device)
    most = MAX_ROWS.get(model.device.type, MAX_ROWS["cpu"])
    return int(max(1, min(most // beams, free // 2 // per_row)))


def cache_bytes(model: PreTrainedModel, length: int) -> int:
    """Bytes of the keys and values of `length` tokens in all layers."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_each = torch.finfo(model.dtype).bits // 8
    return int(2 * config.num_hidden_layers * heads * size * length * bytes_each)
