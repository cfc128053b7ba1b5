"""Log-probability of continuations, reading what several of them have in common only once.

A question's true and false sentence share the context and often most of their words. Where the
architecture is known to take an attention mask of our own, a row holds the common beginning once
and the different ends after it, and each end sees the beginning and itself alone:

    context + common words | end of the true sentence | end of the false sentence

Elsewhere each continuation is a row of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fortifai.models.scoring import logits_rows

Encoded = tuple[list[int], int]
"""Token ids, and how many at their end are to be scored."""

TREE_MODELS = frozenset(
    {
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "llama",
        "mistral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
    }
)
"""Model types tested to honour a mask and positions of our own."""

MAX_SHARING = 8
"""Most continuations in one row: the mask grows with the square of the row."""

SCORED = 0.5
"""About how many of the positions that a question takes have logits: the rest is its context."""


@dataclasses.dataclass
class _Row:
    """Continuations of one context, packed."""

    tokens: list[int]
    position: list[int]
    end: list[int]  # 0: common beginning; k: end of the k-th continuation
    first: int  # the first column whose prediction is needed
    source: list[int]  # columns that predict a scored token...
    target: list[int]  # ...the token...
    owner: list[int]  # ...and the sequence it counts for


def continuation_log_prob(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Summed log-probability of the last tokens of each sequence, in the order given.

    Rows are sorted by length and read in right-padded batches: under causal attention no token
    sees what stands to its right, so padding changes no answer. Only the logits that are needed
    are made, and a batch holds no more of them than `scoring.logits_rows` says.

    Args:
        model: In evaluation mode.
        encoded: What `scoring.encode_pairs` gives.
        tick: Told after each batch how many of how many rows are done.

    Returns:
        For each sequence the sum of log p, in nats, of its last tokens.
    """
    share = _shares(model, encoded)
    rows = _packed(encoded, share)
    rows.sort(key=lambda row: (len(row.tokens), row.first))
    out = [0.0] * len(encoded)
    done = 0
    for batch in _batches(rows, logits_rows(model, SCORED)):
        _score(model, batch, share, out)
        done += len(batch)
        tick(done, len(rows))
    return out


def _shares(model: PreTrainedModel, encoded: Sequence[Encoded]) -> bool:
    config = model.config.get_text_config(decoder=True)
    if config.model_type not in TREE_MODELS or getattr(
        config, "_attn_implementation", None
    ) not in ("sdpa", "eager"):
        return False
    # a window counts columns, which in a shared row are not positions: it must hold them all
    window = getattr(config, "sliding_window", None)
    return window is None or all(len(r.tokens) <= window for r in _packed(encoded, share=True))


def _packed(encoded: Sequence[Encoded], share: bool) -> list[_Row]:
    return [_pack(encoded, group) for group in _groups(encoded, share)]


def _groups(encoded: Sequence[Encoded], share: bool) -> list[list[int]]:
    """Indices of sequences that go into one row: those with the same context."""
    if not share:
        return [[i] for i in range(len(encoded))]
    same: dict[tuple[int, ...], list[int]] = {}
    for i, (ids, count) in enumerate(encoded):
        same.setdefault(tuple(ids[: len(ids) - count]), []).append(i)
    return [
        members[i : i + MAX_SHARING]
        for members in same.values()
        for i in range(0, len(members), MAX_SHARING)
    ]


def _pack(encoded: Sequence[Encoded], group: Sequence[int]) -> _Row:
    members = [encoded[i][0] for i in group]
    begin = len(members[0]) - encoded[group[0]][1]  # the same for all: they share the context
    # The last token of a sequence is only predicted, never read.
    common = min(_common(members), max(map(len, members)) - 1)
    row = _Row(members[0][:common], list(range(common)), [0] * common, begin - 1, [], [], [])
    if len(row.tokens) < common:  # the first member is itself a beginning of another
        row.tokens = max(members, key=len)[:common]
    for k, (i, ids) in enumerate(zip(group, members, strict=True), start=1):
        shared = min(len(ids), common + 1)
        row.source += range(begin - 1, shared - 1)
        row.source += range(len(row.tokens), len(row.tokens) + len(ids) - shared)
        row.target += ids[begin:]
        row.owner += [i] * (len(ids) - begin)
        read = ids[common:-1]
        row.tokens += read
        row.position += range(common, common + len(read))
        row.end += [k] * len(read)
    return row


def _common(members: Sequence[list[int]]) -> int:
    """Length of the longest common beginning."""
    # what the first and the last in dictionary order have in common, all have
    first, last = min(members), max(members)
    for at, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return at
    return len(first)


def _batches(rows: Sequence[_Row], budget: int) -> Iterator[list[_Row]]:
    """Cut sorted `rows` so that each batch has at most `budget` positions with logits.

    The cut also bounds the activations, as no row is read for fewer logits than 1 in 8 positions
    are worth.
    """
    batch: list[_Row] = []
    used = 0
    for row in rows:
        need = max(len(row.tokens) - row.first, len(row.tokens) // 8)
        if batch and used + need > budget:
            yield batch
            batch, used = [], 0
        batch.append(row)
        used += need
    if batch:
        yield batch


@torch.inference_mode()
def _score(model: PreTrainedModel, rows: Sequence[_Row], share: bool, out: list[float]) -> None:
    """Add the log p of every scored token of `rows` to its owner's place in `out`."""
    width = max(len(row.tokens) for row in rows)
    tokens = _padded([row.tokens for row in rows], width, 0)
    needed = torch.zeros((len(rows), width), dtype=torch.bool)
    for r, row in enumerate(rows):
        needed[r, row.first : len(row.tokens)] = True
    # where the logits of (row, column) stand among the needed ones
    place = (needed.flatten().cumsum(0) - 1).view(needed.shape)
    source = torch.cat([place[r, row.source] for r, row in enumerate(rows)])
    target = torch.tensor([t for row in rows for t in row.target])
    extra: dict[str, Tensor] = {}
    if share:
        end = _padded([row.end for row in rows], width, -1)
        extra["position_ids"] = _padded([row.position for row in rows], width, 0)
        extra["attention_mask"] = _tree_mask(end, model.dtype)
    device = model.device
    extra = {name: value.to(device) for name, value in extra.items()}
    with _only(model, needed.to(device)):
        logits = model(input_ids=tokens.to(device), use_cache=False, **extra).logits
    log_p = torch.log_softmax(logits.float(), -1)[source.to(device), target.to(device)]
    owners = [i for row in rows for i in row.owner]
    # summed in fp64 and in a row's own order, so no sum depends on the rest of the batch
    for owner, value in zip(owners, log_p.double().tolist(), strict=True):
        out[owner] += value


def _padded(rows: Sequence[list[int]], width: int, fill: int) -> Tensor:
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def _tree_mask(end: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows, t) ends -> (rows, 1, t, t) additive mask: causal, each end blind to the others."""
    t = end.shape[1]
    sees = (end[:, None, :] == 0) | (end[:, None, :] == end[:, :, None])
    sees &= torch.ones(t, t, dtype=torch.bool).tril()
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
    return mask[:, None]


@contextlib.contextmanager
def _only(model: PreTrainedModel, needed: Tensor) -> Iterator[None]:
    """Within: the model makes logits (n, vocabulary) at the `needed` (rows, t) positions alone.

    The output layer is handed the chosen hidden states; whatever else the model does to its
    logits (scaling, soft-capping) goes on as ever.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, args: (args[0][needed], *args[1:]))
    try:
        yield
    finally:
        hook.remove()
