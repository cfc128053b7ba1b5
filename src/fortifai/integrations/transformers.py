"""The losses in transformers: ``Trainer(..., compute_loss_func=loss(threshold=0.9))``."""

from __future__ import annotations

from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fortifai.confidence import Focal, Truncate, Weight
from fortifai.errors import InputError
from fortifai.losses.functional import Normalize, check_choice, weighted_cross_entropy


class ConfidenceLoss:
    """A `compute_loss_func` for causal language models.

    Shifts the labels by one, as the models do themselves, and divides by `num_items_in_batch` where
    the Trainer gives it, so that gradient accumulation and several processes change nothing. With
    a weight that keeps everything it is the Trainer's own loss to the last bit.

    With ``normalize="kept"`` each micro-batch is divided by its own sum of weights and counts in
    proportion to its valid labels: the sum over the whole batch is not known until its end.

    What a model adds to its loss by itself (the router loss of mixtures of experts) is not added:
    Trainer does not let such a function see it.
    """

    def __init__(
        self, weight: Weight, *, normalize: Normalize = "valid", ignore_index: int = -100
    ) -> None:
        check_choice("normalize", normalize, get_args(Normalize))
        self.weight = weight
        self.normalize: Normalize = normalize
        self.ignore_index = ignore_index
        self._kept: Tensor | None = None
        self._valid: Tensor | None = None

    def __call__(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss of a micro-batch.

        Args:
            outputs: The model's, with ``logits`` (batch, length, vocabulary).
            labels: (batch, length) int64, the tokens themselves, `ignore_index` where none counts.
            num_items_in_batch: Valid labels of the whole batch, micro-batches and processes
                together; None: those of this micro-batch.

        Raises:
            InputError: No labels or logits, labels that do not stand beside the logits one for one,
                or the outputs of an encoder-decoder, whose labels must not be shifted.
        """
        logits = _logits(outputs)
        if labels is None:
            raise InputError(
                "the batch has no labels; have the data collator add them, such as "
                "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
            )
        if labels.shape != logits.shape[:-1]:
            raise InputError(
                f"logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}; there must be "
                "one label, not shifted, for each position of the logits"
            )
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
        if torch.is_grad_enabled():  # evaluation passes through here, too, but trains on nothing
            self._count(stats.kept, stats.valid)
        items = stats.valid if num_items_in_batch is None else num_items_in_batch
        items = items.to(loss.device).clamp(min=1) if isinstance(items, Tensor) else max(items, 1)
        return loss / items if self.normalize == "valid" else loss * stats.valid / items

    def _count(self, kept: Tensor, valid: Tensor) -> None:
        # float64 holds sums of weights over any number of tokens; Apple's GPUs have none
        kept = kept if kept.device.type == "mps" else kept.double()
        self._kept = kept if self._kept is None else self._kept + kept
        self._valid = valid if self._valid is None else self._valid + valid

    def pop_kept_share(self) -> float:
        """Sum of weights over valid labels, of all trained on since the last call; NaN for none.

        Evaluation does not count. Of several processes each has its own. Waits for the device once;
        the steps in between do not.
        """
        if self._kept is None or self._valid is None:
            return float("nan")
        share = (self._kept / self._valid).item()  # 0 / 0, nothing valid, is NaN
        self._kept = self._valid = None
        return share


def _logits(outputs: Any) -> Tensor:
    if isinstance(outputs, dict):
        if "encoder_last_hidden_state" in outputs:
            raise InputError(
                "the model is an encoder-decoder, whose labels stand in place already; this loss "
                "shifts them and is for causal language models: use fortifai.losses there"
            )
        if "logits" not in outputs:
            raise InputError(
                f"the model's outputs have no logits, only {', '.join(outputs) or 'nothing'}; give "
                "a model with a language-modelling head"
            )
        logits = outputs["logits"]
    else:
        logits = outputs[0]
    assert isinstance(logits, Tensor)
    return logits


def loss(
    weight: Weight | None = None,
    *,
    threshold: float | None = None,
    gamma: float | None = None,
    normalize: Normalize = "valid",
    ignore_index: int = -100,
) -> ConfidenceLoss:
    """A `compute_loss_func` for Trainer from a weight, a TCE threshold or a focal gamma.

    Args:
        weight: Maps log p_t to [0, 1]; see `fortifai.confidence`.
        threshold: Short for ``Truncate(threshold)``.
        gamma: Short for ``Focal(gamma)``.
        normalize: ``valid``: per valid label, as ForTIFAI's code does; ``kept``: see
            `ConfidenceLoss`.
        ignore_index: Labels with this value count nothing. Trainer counts those other than -100 in
            `num_items_in_batch`, whatever this is.

    Raises:
        InputError: Not exactly one of weight, threshold and gamma is given, or it is out of range.
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
    if not callable(given[0]):
        raise InputError(
            f"weight is {given[0]!r}; give a weight such as fortifai.confidence.Truncate(0.9), or "
            "threshold=0.9"
        )
    return ConfidenceLoss(given[0], normalize=normalize, ignore_index=ignore_index)
