"""The losses in transformers: ``Trainer(..., compute_loss_func=loss(threshold=0.9))``."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fortifai.confidence import Focal, Truncate, Weight
from fortifai.errors import InputError
from fortifai.losses.functional import Normalize, weighted_cross_entropy


class ConfidenceLoss:
    """A `compute_loss_func` for causal language models.

    Shifts the labels by one, as the models do themselves, and divides by `num_items_in_batch` where
    the Trainer gives it, so that gradient accumulation and several processes change nothing.

    With ``normalize="kept"`` each micro-batch is divided by its own sum of weights and counts in
    proportion to its valid labels.
    """

    def __init__(
        self, weight: Weight, *, normalize: Normalize = "valid", ignore_index: int = -100
    ) -> None:
        self.weight = weight
        self.normalize: Normalize = normalize
        self.ignore_index = ignore_index
        self._kept: list[Tensor] = []
        self._valid: list[Tensor] = []

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss of a batch.

        Args:
            outputs: The model's, with ``logits`` (batch, length, vocabulary).
            labels: (batch, length) int64, the tokens themselves, `ignore_index` where none counts.
            num_items_in_batch: Valid labels of the whole batch, micro-batches and processes
                together; None: those of this micro-batch.
        """
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        # labels move instead of logits: a slice of the logits would copy them
        shifted = F.pad(labels, (0, 1), value=self.ignore_index)[..., 1:].to(logits.device)
        loss, stats = weighted_cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            shifted.reshape(-1),
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction="sum" if self.normalize == "valid" else "mean",
            normalize=self.normalize,
            return_stats=True,
        )
        self._kept.append(stats.kept)
        self._valid.append(stats.valid)
        items = stats.valid.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        if isinstance(items, Tensor):
            items = items.to(loss.device)
        return loss / items if self.normalize == "valid" else loss * stats.valid / items

    def pop_kept_share(self) -> float:
        """Kept share of all labels seen since the last call; NaN where there were none.

        Waits for the device once.
        """
        if not self._kept:
            return float("nan")
        kept = sum(float(k) for k in self._kept)
        valid = sum(int(v) for v in self._valid)
        self._kept.clear()
        self._valid.clear()
        return kept / valid if valid else float("nan")


def loss(
    weight: Weight | None = None,
    *,
    threshold: float | None = None,
    gamma: float | None = None,
    normalize: Normalize = "valid",
    ignore_index: int = -100,
) -> ConfidenceLoss:
    """A `compute_loss_func` from exactly one of a weight, a TCE threshold and a focal gamma.

    Raises:
        InputError: None or several are given, or the number is out of range.
    """
    given = [
        *([] if weight is None else [weight]),
        *([] if threshold is None else [Truncate(threshold)]),
        *([] if gamma is None else [Focal(gamma)]),
    ]
    if len(given) != 1:
        raise InputError(
            f"{len(given)} of weight, threshold and gamma are given; give exactly one, such as "
            "loss(threshold=0.9)"
        )
    return ConfidenceLoss(given[0], normalize=normalize, ignore_index=ignore_index)
