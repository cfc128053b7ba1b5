"""Log-probabilities of a causal language model, in batches whose memory is bounded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fortifai.errors import InputError

LOGITS_BYTES = 256 * 2**20
"""Memory allowed for the fp32 logits of one batch: rows x positions x vocabulary x 4 bytes."""

CACHE_LOGITS_BYTES = 32 * 2**20
"""The same on a CPU, where logits that stay near the cache are read several times faster."""


def logits_budget(device: torch.device) -> int:
    """Bytes of fp32 logits that one batch may hold on `device`."""
    return CACHE_LOGITS_BYTES if device.type == "cpu" else LOGITS_BYTES


def positions(model: PreTrainedModel) -> int:
    """Longest sequence the model reads (1024 where its configuration does not say)."""
    config = model.config.get_text_config(decoder=True)
    return int(getattr(config, "max_position_embeddings", None) or 1024)


def vocabulary(model: PreTrainedModel) -> int:
    """Number of logits the model gives per position."""
    return int(model.config.get_text_config(decoder=True).vocab_size)


def token_log_prob(
    model: PreTrainedModel, samples: np.ndarray, *, first: int, block: int
) -> np.ndarray:
    """Log-probability of every token of a stream.

    The stream, with `first` before it, is read in windows of `block` tokens that overlap by one,
    so a token is judged from at most `block` - 1 tokens before it: just as in training, where the
    first token of a block is context only.

    Args:
        model: In evaluation mode.
        samples: (n,) token ids.
        first: Token that is taken to stand before the stream, usually eos.
        block: Window size in tokens, at least 2.

    Returns:
        (n,) float32, log p in nats.
    """
    n, step = len(samples), block - 1
    stream = np.concatenate([[first], samples]).astype(np.int64)
    out = np.empty(n, dtype=np.float32)
    whole = n // step
    budget = logits_budget(model.device)
    rows = max(1, budget // (step * vocabulary(model) * 4))
    for start in range(0, whole, rows):
        stop = min(whole, start + rows)
        index = np.arange(start, stop)[:, None] * step + np.arange(block)
        out[start * step : stop * step] = _next_log_prob(model, stream[index]).ravel()
    if n % step:
        out[whole * step :] = _next_log_prob(model, stream[None, whole * step :]).ravel()
    return out


@torch.inference_mode()
def _next_log_prob(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    """(rows, t) ids -> (rows, t - 1) float32: log p of each token given those before it."""
    tokens = torch.from_numpy(np.ascontiguousarray(ids)).to(model.device)
    # The last token is only predicted, never read; without it the logits need no slicing.
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return _gather(logits, tokens[:, 1:]).cpu().numpy()


def _gather(logits: Tensor, target: Tensor) -> Tensor:
    """log softmax(logits)[target] in fp32: x_t - logsumexp(x), without a second copy of logits."""
    logits = logits.float()
    chosen = logits.gather(-1, target[..., None]).squeeze(-1)
    return chosen - torch.logsumexp(logits, dim=-1)


def encode_pairs(
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[str, str]],
    *,
    first: int,
    limit: int,
) -> list[tuple[list[int], int]]:
    """Token ids of each context with its continuation, and the number of tokens of the latter.

    The two are encoded apart, the continuation with one space before it: so the boundary is a
    token boundary by construction, and the true and the false continuation of a question stand
    after the very same context tokens. A beginning-of-text token stands in front where the
    tokenizer puts one by itself; an empty context is `first` alone. A context too long for the
    model loses its oldest tokens.

    Args:
        tokenizer: The model's.
        pairs: (context, continuation) texts.
        first: Token that stands for an empty context, usually eos.
        limit: Longest sequence the model reads, in tokens.

    Raises:
        InputError: A continuation is empty, or by itself longer than the model reads.
    """
    own = tokenizer("").input_ids
    bos = own[:1] if own and own[0] == tokenizer.bos_token_id else []
    starts = [context.rstrip() for context, _ in pairs]
    gaps = [continuation.strip() for _, continuation in pairs]
    tails = [f" {gap}" if start else gap for start, gap in zip(starts, gaps, strict=True)]
    # Each different text once: a question's context comes twice.
    texts = list(dict.fromkeys([*starts, *tails]))
    encoded = tokenizer(texts, add_special_tokens=False).input_ids if texts else []
    ids = dict(zip(texts, encoded, strict=True))
    out = []
    for start, gap, tail_text in zip(starts, gaps, tails, strict=True):
        head, tail = bos + ids[start] or [first], ids[tail_text]
        if not gap or not tail:
            raise InputError(
                f"the continuation of {start[:60]!r} is empty; every question needs a true and a "
                "false one"
            )
        room = limit - len(tail)
        if room < 1 + len(bos):
            raise InputError(
                f"the continuation {gap[:60]!r} has {len(tail)} tokens, but the model reads "
                f"{limit} at most, context included; shorten it or use a model with more positions"
            )
        if len(head) > room:
            head = bos + head[len(head) - room + len(bos) :]
        out.append((head + tail, len(tail)))
    return out


def continuation_log_prob(
    model: PreTrainedModel, encoded: Sequence[tuple[list[int], int]]
) -> list[float]:
    """Summed log-probability of the last tokens of each sequence, in the order given.

    Sequences are sorted by length and read in right-padded batches. Under causal attention no
    token sees what stands to its right, so the padding needs no mask and changes no answer.

    Args:
        model: In evaluation mode.
        encoded: (token ids, number of tokens at the end to score), as `encode_pairs` gives them.

    Returns:
        For each sequence the sum of log p, in nats, of its last tokens.
    """
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i][0]), encoded[i][1]))
    out = [0.0] * len(encoded)
    for batch in _batches(order, encoded, logits_budget(model.device) // (4 * vocabulary(model))):
        for i, value in zip(batch, _score(model, [encoded[i] for i in batch]), strict=True):
            out[i] = value
    return out


def _batches(
    order: Sequence[int], encoded: Sequence[tuple[list[int], int]], budget: int
) -> Iterator[list[int]]:
    """Cut `order` so that rows x positions stays within `budget` (one row at the least)."""
    batch: list[int] = []
    for i in order:
        # sorted by length: the newest is the longest of its batch
        if batch and (len(batch) + 1) * len(encoded[i][0]) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.inference_mode()
def _score(model: PreTrainedModel, rows: Sequence[tuple[list[int], int]]) -> list[float]:
    longest = max(len(ids) for ids, _ in rows)
    tokens = torch.zeros((len(rows), longest), dtype=torch.long)
    scored = torch.zeros((len(rows), longest), dtype=torch.bool)
    for r, (ids, count) in enumerate(rows):
        tokens[r, : len(ids)] = torch.tensor(ids)
        scored[r, len(ids) - count : len(ids)] = True
    tokens, scored = tokens.to(model.device), scored.to(model.device)
    # Logits before the first scored token of the batch are never made where the model allows it.
    begin = min(len(ids) - count for ids, count in rows) - 1
    keep = longest - 1 - begin
    logits = _last_logits(model)(tokens[:, :-1], keep)
    log_p = _gather(logits, tokens[:, begin + 1 :])
    # In fp64, so that the sum does not depend on how far the row was padded.
    total = torch.where(scored[:, begin + 1 :], log_p, 0.0).double().sum(-1)
    return [float(x) for x in total.tolist()]


def _last_logits(model: PreTrainedModel) -> Callable[[Tensor, int], Tensor]:
    """A function giving the logits of the last positions, skipping the others where it can."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return lambda ids, keep: model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
    return lambda ids, keep: model(input_ids=ids, use_cache=False).logits[:, -keep:]
