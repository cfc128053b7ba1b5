"""Log-probabilities of a causal language model, in batches whose memory is bounded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fortifai.data.tokens import SpecialTokens

LOGITS_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
"""Memory for the fp32 logits of one batch; a CPU is fastest where they nearly fit its cache..."""

ROWS, ROWS_BYTES = 512, 128 * 2**20
"""...but where vocabularies are large those are so few positions that each product of matrices
waits for its weights: so many then, or as many as have logits of 128 MiB. With SmolLM2-135M 512
positions take 0.83 of the time that 85 take, which 16 MiB hold."""


CANDIDATE = np.dtype([("id", np.int32), ("log_p", np.float32)])
"""A token that may stand at a place, and its log-probability there."""


def logits_rows(model: PreTrainedModel, share: float = 1.0) -> int:
    """How many positions' logits (vocabulary x 4 bytes each) one batch may hold, at least 1.

    Args:
        model: Its vocabulary and device count.
        share: How many of the positions that are read have logits.
    """
    budget = LOGITS_BYTES.get(model.device.type, LOGITS_BYTES["cpu"])
    each = 4 * vocabulary(model)
    return max(1, budget // each, min(int(ROWS * share), ROWS_BYTES // each))


def positions(model: PreTrainedModel) -> int:
    """Longest sequence the model reads (1024 where its configuration does not say)."""
    config = model.config.get_text_config(decoder=True)
    return int(getattr(config, "max_position_embeddings", None) or 1024)


def vocabulary(model: PreTrainedModel) -> int:
    """Number of logits the model gives per position."""
    return int(model.config.get_text_config(decoder=True).vocab_size)


def token_log_prob(
    model: PreTrainedModel, samples: np.ndarray, special: SpecialTokens, *, block: int
) -> np.ndarray:
    """Log-probability of every token of a stream.

    The stream is read in windows of `block` tokens, each the next `block` - 1 behind a token that
    is context only, just as in training: bos, or, for a model that reads none, the token before
    them in the stream (before the first, the end of another text).

    Args:
        model: In evaluation mode.
        samples: (n,) token ids.
        special: The model's special tokens.
        block: Window size in tokens, at least 2.

    Returns:
        (n,) float32, log p in nats.
    """
    out = np.empty(len(samples), dtype=np.float32)
    return _in_windows(model, samples, _next_log_prob, special, block, out)


def candidates(
    model: PreTrainedModel, samples: np.ndarray, special: SpecialTokens, *, block: int, count: int
) -> np.ndarray:
    """The likeliest tokens at every place of a stream, given those before it there.

    Read in the same windows as `token_log_prob`. Ends of documents and tokens that are never
    written are no candidates; what they hold of the probability is not dealt out to the others.

    Args:
        model: In evaluation mode.
        samples: (n,) token ids.
        special: The model's special tokens.
        block: Window size in tokens, at least 2.
        count: How many, at most as many as there are.

    Returns:
        (n, count) of `CANDIDATE`: ``id`` and ``log_p`` in nats, the likeliest first.
    """
    out = np.empty((len(samples), count), dtype=CANDIDATE)
    banned = sorted({*special.never_written, special.end})
    read = functools.partial(_next_candidates, count=count, banned=banned)
    return _in_windows(model, samples, read, special, block, out)


def _in_windows(
    model: PreTrainedModel,
    samples: np.ndarray,
    read: Callable[[PreTrainedModel, np.ndarray], np.ndarray],
    special: SpecialTokens,
    block: int,
    out: np.ndarray,
) -> np.ndarray:
    """Fill `out` (n, ...) with what `read` gives of windows: (rows, t) ids, (rows, t - 1, ...)."""
    n, step = len(samples), block - 1
    stream = np.concatenate([[special.first], samples]).astype(np.int64)
    whole = n // step
    rows = max(1, logits_rows(model) // step)
    for start in range(0, whole, rows):
        stop = min(whole, start + rows)
        index = np.arange(start, stop)[:, None] * step + np.arange(block)
        found = read(model, _begun(stream[index], special))
        out[start * step : stop * step] = found.reshape(-1, *out.shape[1:])
    if n % step:
        out[whole * step :] = read(model, _begun(stream[None, whole * step :], special))[0]
    return out


def _begun(windows: np.ndarray, special: SpecialTokens) -> np.ndarray:
    """(w, t) windows, their first token replaced by bos where the model reads one."""
    windows = windows.copy()
    if special.bos is not None:
        windows[:, 0] = special.bos
    return windows


def log_prob_and_entropy(
    model: PreTrainedModel, samples: np.ndarray, special: SpecialTokens, *, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of every token of a stream, and the entropy of its distribution.

    -sum_v p(v | before) log p(v | before); what token stands there does not matter to it, only what
    stands before it. Both come from one pass over the same windows as in `token_log_prob`.

    Args:
        model: In evaluation mode.
        samples: (n,) token ids.
        special: The model's special tokens.
        block: Window size in tokens, at least 2.

    Returns:
        (n,) float32 log p, the same as `token_log_prob` gives, and (n,) float32 entropies, in nats.
    """
    out = np.empty((len(samples), 2), dtype=np.float32)
    log_p, entropy = _in_windows(model, samples, _next_both, special, block, out).T
    return np.ascontiguousarray(log_p), np.ascontiguousarray(entropy)


def window_log_prob(model: PreTrainedModel, windows: np.ndarray) -> np.ndarray:
    """(w, t) token ids -> (w, t - 1) float32: log p (nats) of each token given those before it."""
    step = max(1, logits_rows(model) // windows.shape[1])
    rows = [_next_log_prob(model, windows[i : i + step]) for i in range(0, len(windows), step)]
    return np.concatenate(rows)


@torch.inference_mode()
def _next_log_prob(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    """(rows, t) ids -> (rows, t - 1) float32: log p of each token given those before it."""
    tokens = torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)).to(model.device)
    # The last token is only predicted, never read; without it the logits need no slicing.
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return _gather(logits, tokens[:, 1:]).cpu().numpy()


@torch.inference_mode()
def _next_both(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    """(rows, t) ids -> (rows, t - 1, 2) float32: log p of what follows each, and its entropy."""
    tokens = torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)).to(model.device)
    log_p = torch.log_softmax(model(input_ids=tokens[:, :-1], use_cache=False).logits.float(), -1)
    taken = log_p.gather(-1, tokens[:, 1:, None])
    # p log p goes to 0 with p, but 0 times -inf is NaN; in place, as vocabularies are large
    terms = log_p.exp().mul_(log_p).nan_to_num_(nan=0.0)
    return torch.cat([taken, -terms.sum(-1, keepdim=True)], dim=-1).cpu().numpy()


@torch.inference_mode()
def _next_candidates(
    model: PreTrainedModel, ids: np.ndarray, *, count: int, banned: Sequence[int]
) -> np.ndarray:
    """(rows, t) ids -> (rows, t - 1, count) `CANDIDATE`: what may follow each but the last."""
    tokens = torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)).to(model.device)
    log_p = torch.log_softmax(model(input_ids=tokens[:, :-1], use_cache=False).logits.float(), -1)
    log_p[..., banned] = -torch.inf
    best = log_p.topk(count, dim=-1)
    out = np.empty(best.indices.shape, dtype=CANDIDATE)
    out["id"], out["log_p"] = best.indices.cpu().numpy(), best.values.cpu().numpy()
    return out


def _gather(logits: Tensor, target: Tensor) -> Tensor:
    """Log softmax in fp32 of `logits` (..., vocabulary) at `target` (...)."""
    # not x - logsumexp(x), which would save a copy: on a CPU it takes twice as long
    return torch.log_softmax(logits.float(), -1).gather(-1, target[..., None]).squeeze(-1)
