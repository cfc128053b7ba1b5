"""Beam search whose beams share what they have read: `generate`'s tokens, each prompt read once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fortifai.models import shared_prefix
from fortifai.models.options import Beam
from fortifai.models.shared_prefix import Prefix, Rows


@torch.inference_mode()
def search(
    model: PreTrainedModel,
    prefix: Prefix,
    limits: Tensor,
    first: Tensor,
    size: int,
    decoding: Beam,
    banned: Sequence[int] = (),
) -> Tensor:
    """The best of the texts of exactly `size` tokens that a beam search finds after each prompt.

    A text's score is the sum of its tokens' log p, where the log p of a token that stands in the
    prompt or in the text so far counts `repetition_penalty` times. At each step the `beams` best of
    all continuations go on. This is transformers' `generate` with `max_new_tokens` and
    `min_new_tokens` of `size`, `early_stopping` False and no end: all texts are of one length, so
    `length_penalty` orders none.

    Args:
        model: As `shared_prefix.attending` has set it.
        prefix: The prompts: the beginnings of its texts.
        limits: (texts, prompts a text) int64, the tokens of each prompt, at least 1.
        first: (texts, prompts a text, vocabulary) float32 logits after each.
        size: Tokens to write.
        decoding: Beams and repetition penalty.
        banned: Tokens that are never written.

    Returns:
        (texts * prompts a text, size) int64.
    """
    prompts, beams = limits.numel(), decoding.beams
    rows = Rows(prefix, limits.repeat_interleave(beams, dim=1), size)
    never = torch.tensor(banned, dtype=torch.long, device=limits.device)
    said = _prompts(prefix.ids, limits)
    # one beam until the first token is chosen
    scores = first.new_zeros(prompts, 1)
    written = said.new_empty(prompts, 1, 0)
    logits = first.reshape(prompts, -1)
    for left in range(size, 0, -1):
        scores, beam, token = _best(logits, scores, said, written, decoding, never)
        kept = written.gather(1, beam[..., None].expand(-1, -1, written.shape[-1]))
        written = torch.cat([kept, token[..., None]], dim=-1)
        if left == 1:
            break
        at = torch.arange(prompts, device=beam.device)[:, None] * beams
        rows.reorder((at + beam).flatten())
        logits = shared_prefix.step(model, rows, token.flatten())
    return written[:, 0]


def _prompts(ids: Tensor, limits: Tensor) -> Tensor:
    """(prompts, length) tokens of each prompt; what stands behind it is its first one again."""
    place = torch.arange(ids.shape[1], device=ids.device)
    inside = place < limits[..., None]
    return torch.where(inside, ids[:, None], ids[:, :1, None]).flatten(0, 1)


def _best(
    logits: Tensor,
    scores: Tensor,
    said: Tensor,
    written: Tensor,
    decoding: Beam,
    never: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, beams and tokens, each (prompts, beams), of the best continuations, best first.

    Args:
        logits: (prompts * beams before, vocabulary) float32; changed.
        scores: (prompts, beams before) float32.
        said: (prompts, length) the prompts' tokens.
        written: (prompts, beams before, tokens) those of the beams.
        decoding: Beams and repetition penalty.
        never: Tokens that are not chosen.
    """
    prompts, before = scores.shape
    log_p = torch.log_softmax(logits, dim=-1)
    seen = said[:, None].expand(-1, before, -1)
    seen = torch.cat([seen, written], dim=-1).flatten(0, 1)
    log_p = log_p.scatter_(1, seen, log_p.gather(1, seen) * decoding.repetition_penalty)
    log_p = log_p.index_fill_(1, never, -torch.inf)
    total = (log_p.view(prompts, before, -1) + scores[..., None]).flatten(1)
    best, place = total.topk(decoding.beams)
    vocabulary = logits.shape[-1]
    return best, place // vocabulary, place % vocabulary
