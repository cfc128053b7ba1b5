"""The losses in TRL's SFTTrainer: ``ConfidenceSFTTrainer(model, args, threshold=0.9, ...)``."""

from __future__ import annotations

from typing import Any

try:
    from trl import SFTTrainer
except ImportError as error:
    raise ImportError(
        "fortifai.integrations.trl needs the package trl; pip install 'fortifai[trl]'"
    ) from error

import torch
from torch import Tensor, nn

from fortifai.errors import InputError
from fortifai.integrations.transformers import ConfidenceMixin


class ConfidenceSFTTrainer(ConfidenceMixin, SFTTrainer):
    """TRL's SFTTrainer with a confidence-weighted loss on hidden states, without logits.

        ConfidenceSFTTrainer("HuggingFaceTB/SmolLM2-135M", args, threshold=0.9, train_dataset=data)

    Takes what SFTTrainer takes, and one of `weight`, `threshold`, `gamma`; and `normalize`. What
    SFTTrainer does to data stays: packing, padding-free batches, masks of prompts, adapters by
    `peft_config`. Its own loss, and one given as `compute_loss_func`, does not run in training.
    Which models are served, and what the loss is divided by: `HiddenStateLoss`.

    ``kept_share``, the sum of weights over valid labels, stands beside each training loss that is
    logged. ``entropy`` and ``mean_token_accuracy`` of training are not: they would need the
    logits. Evaluation is SFTTrainer's own, plain cross entropy, with both; all three are means over
    the labels of the whole evaluation set.

    Raises:
        InputError: As `ConfidenceTrainer`, or another `loss_type` is asked for.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.loss_type != "nll":
            raise InputError(
                f"loss_type is {self.args.loss_type!r}, a loss of TRL's own; leave it out, or take "
                "SFTTrainer (weight=fortifai.confidence.DFT() is that loss here)"
            )
        # Trainer then counts the labels of the whole batch, whatever the model's forward takes
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted loss in training; SFTTrainer's own, cross entropy, in evaluation.

        Raises:
            InputError: As `ConfidenceMixin.compute_loss`.
        """
        if not torch.is_grad_enabled():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs["use_cache"] = False  # as SFTTrainer: a cache and checkpointing exclude each other
        value = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        mask = inputs.get("attention_mask")  # padding-free batches have none: all is read
        read = inputs["input_ids"].new_tensor(inputs["input_ids"].numel()) if mask is None else mask
        tokens = self.accelerator.gather_for_metrics(read.sum()).sum().item()
        self._total_train_tokens += tokens
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return value

    def row_sums(self, outputs: Any, labels: Tensor) -> Tensor:
        """Of each row cross entropy, labels, entropy, and how many were the likeliest: (batch, 4).

        From what SFTTrainer's own forward gives for each token in place of logits, (batch, 4); from
        versions that have logits the first two.
        """
        log_p = getattr(outputs, "log_probs", None)
        if log_p is None:
            return super().row_sums(outputs, labels)
        # all are 0 where no label counts
        parts = (-log_p, outputs.label_mask, outputs.entropy, outputs.is_top1)
        return torch.stack([part.sum(-1).to(log_p.dtype) for part in parts], dim=-1)

    def tally(self, sums: Tensor) -> None:
        """As of all trainers; but batches without padding are one row, which must not be cut."""
        if self._rows is not None and getattr(self, "padding_free", False):
            self._rows.append(self.accelerator.gather(sums))
        else:
            super().tally(sums)

    def take_means(self, metrics: dict[str, float], prefix: str, sums: Tensor) -> None:
        """The loss, and SFTTrainer's own measures, which it would log as means of means, too."""
        super().take_means(metrics, prefix, sums)
        for name, total in zip(("entropy", "mean_token_accuracy"), sums[2:], strict=False):
            self._metrics["eval"][name] = [(total / sums[1].clamp(min=1)).item()]
