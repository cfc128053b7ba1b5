"""The losses in TRL's SFTTrainer: ``ConfidenceSFTTrainer(model, args, threshold=0.9, ...)``."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

try:
    from trl import SFTTrainer, pack_dataset
    from trl.trainer.utils import add_fused_lm_head  # noqa: F401  (since 1.15: what is built on)
except ImportError as error:
    raise ImportError(
        "fortifai.integrations.trl needs the package trl, 1.15 or later; "
        "pip install 'fortifai[trl]'"
    ) from error

import torch
from torch import Tensor, nn

from fortifai.errors import InputError
from fortifai.integrations.data_weights import COLUMN, check_column, row_weights
from fortifai.integrations.hidden_states import Ask
from fortifai.integrations.transformers import ConfidenceMixin


class ConfidenceSFTTrainer(ConfidenceMixin, SFTTrainer):
    """TRL's SFTTrainer with a confidence-weighted loss on hidden states, without logits.

        ConfidenceSFTTrainer("HuggingFaceTB/SmolLM2-135M", args, threshold=0.9, train_dataset=data)

    Takes what SFTTrainer takes, and what `ConfidenceTrainer` takes beside Trainer. SFTTrainer's own
    steps run as they are: packing, padding-free batches, masks of prompts, adapters by
    `peft_config`, what it logs. Only its fused head, which gives log-probabilities without logits,
    gives the weighted loss instead, whose truncated rows cost no backward. A `compute_loss_func`
    does not run in training. Which models are served, and what the loss is divided by:
    `HiddenStateLoss`.

    A column ``loss_weights`` of the data, a number for each sample or, where they are tokenized
    (``input_ids``), one for each token, is cut and packed with them.

    ``kept_share``, the sum of weights over valid labels, stands beside each training loss that is
    logged, with SFTTrainer's ``entropy`` and ``mean_token_accuracy`` over all labels (of a data
    weight above 0), truncated ones among them. Evaluation is SFTTrainer's own, plain cross entropy;
    its three measures are means over the labels of the whole evaluation set.

    Raises:
        InputError: As `ConfidenceTrainer`, or another `loss_type` is asked for.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.loss_type != "nll":
            raise InputError(
                f"loss_type is {self.args.loss_type!r}, a loss of TRL's own; leave it out, or take "
                "SFTTrainer (weight=fortifai.weights.DFT() is that loss here)"
            )
        # Trainer then counts the labels of the whole batch, whatever the model's forward takes
        self.model_accepts_loss_kwargs = True

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        """As SFTTrainer's; where the data have weights, what would drop them is done here."""
        prepare = super()._prepare_dataset
        rest = (formatting_func, dataset_name)
        # of a stream nobody knows the columns but from a row
        columns: Any = dataset.column_names or next(iter(dataset), {})
        if COLUMN not in columns or (packing and args.max_length is None):  # which it refuses
            return prepare(dataset, processing_class, args, packing, *rest)
        check_column(dataset)
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        dataset = prepare(dataset, processing_class, whole, False, *rest).map(_one_for_each)
        keys = ["input_ids", "labels", COLUMN]
        if args.max_length is not None and not packing:
            part = slice(args.max_length)
            if args.truncation_mode == "keep_end":
                part = slice(-args.max_length, None)
            dataset = dataset.map(lambda row: {key: row[key][part] for key in keys})
            dataset = dataset.filter(lambda row: any(label != -100 for label in row["labels"]))
        if args.shuffle_dataset:
            dataset = dataset.shuffle(seed=args.seed)
        if packing:
            dataset = pack_dataset(
                dataset.select_columns(keys), args.max_length, args.packing_strategy
            )
            dataset = dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset
        return dataset

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """SFTTrainer's own, whose fused head gives the weighted loss in training.

        Raises:
            InputError: As `ConfidenceMixin.compute_loss`.
        """
        if not torch.is_grad_enabled() or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        ask = Ask(self.confidence, num_items_in_batch, observe=True)
        asked = self.confidence.prepared(model, inputs, ask)
        with _outputs_of(model) as seen:
            # the loss is divided already
            value = SFTTrainer.compute_loss(self, model, asked, num_items_in_batch=torch.tensor(1))
        self.confidence.note(seen[0])
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


def _one_for_each(row: dict[str, Any]) -> dict[str, Any]:
    """The weights of a tokenized row, one for each token."""
    weights = row_weights(row, "of the training data")
    return {COLUMN: weights.expand(len(row["labels"])).tolist()}


@contextlib.contextmanager
def _outputs_of(model: nn.Module) -> Iterator[list[Any]]:
    """What the model gives within."""
    seen: list[Any] = []
    hook = model.register_forward_hook(lambda _, __, outputs: seen.append(outputs))
    try:
        yield seen
    finally:
        hook.remove()
