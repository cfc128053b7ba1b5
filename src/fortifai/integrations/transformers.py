"""The losses in transformers' Trainer.

``ConfidenceTrainer(model, args, threshold=0.9, ...)`` makes no logits in training;
``Trainer(..., compute_loss_func=ConfidenceLoss(threshold=0.9))`` serves every causal model, on its
logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from fortifai.errors import InputError
from fortifai.integrations.arguments import check_arguments, warn_of_vanishing_steps
from fortifai.integrations.counting import (
    ARGUMENTS,
    Counted,
    KeptShare,
    check_labels,
    share_of,
)
from fortifai.integrations.data_weights import COLUMN, WithWeights, check_column, weight_sum
from fortifai.integrations.evaluation import TokenMeans, mean_or_warning
from fortifai.integrations.hidden_states import HiddenStateLoss
from fortifai.losses.functional import logits_loss
from fortifai.losses.weighing import LossStats
from fortifai.weights import AnyWeight, Keep


class ConfidenceLoss(Counted):
    """A `compute_loss_func` for causal language models.

    Shifts the labels by one, as the models do themselves, and divides by `num_items_in_batch` where
    the Trainer gives it, so that gradient accumulation and several processes change nothing. With
    a weight that keeps everything it is the Trainer's own loss to the last bit.

    With ``normalize="kept"`` each micro-batch is divided by its own sum of weights and counts in
    proportion to its valid labels: the sum over the whole batch is not known until its end.

    What a model adds to its loss by itself (the router loss of mixtures of experts) is not added:
    Trainer does not let such a function see it, nor the data's ``loss_weights``, which
    `ConfidenceTrainer` takes.

    Args:
        weight: Maps log p_t to [0, 1]; see `fortifai.weights`.
        ignore_index: Labels with this value count nothing. Trainer counts those other than -100 in
            `num_items_in_batch`, whatever this is.
        **options: Those of `Counted`: ``threshold`` or ``gamma`` in place of the weight,
            ``normalize``, ``label_smoothing`` and the other terms of a row's loss.

    Attributes:
        evaluations: Told, where no gradient is wanted, of each batch's loss by the reduction of
            `options` and its stats.

    Raises:
        InputError: As `Counted`.
    """

    def __init__(
        self, weight: AnyWeight | None = None, *, ignore_index: int = -100, **options: Any
    ) -> None:
        super().__init__(weight, **options)
        self.options = dataclasses.replace(self.options, ignore_index=ignore_index)
        self.evaluations: list[Callable[[Tensor, LossStats], None]] = []

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
        if logits.dim() != 3 or labels.shape != logits.shape[:-1]:
            raise InputError(
                f"logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}; for logits "
                "(batch, length, vocabulary) there must be one label, not shifted, for each "
                "position"
            )
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            check_labels(labels, logits.shape[-1], self.options.ignore_index)
        # labels move instead of logits: a slice of the logits would copy them
        shifted = F.pad(labels, (0, 1), value=self.options.ignore_index)[..., 1:].to(logits.device)
        loss, stats = logits_loss(
            logits.reshape(-1, logits.shape[-1]),
            shifted.reshape(-1),
            weight=self.weight,
            options=self.options,
        )
        self.count(stats)
        if not torch.is_grad_enabled():
            for tell in self.evaluations:
                tell(loss, stats)
        return self.divided(loss, stats, num_items_in_batch)


def _logits(outputs: Any) -> Tensor:
    logits: Any
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
        logits = outputs[0] if isinstance(outputs, Sequence) and outputs else outputs
    if not isinstance(logits, Tensor):
        raise InputError(
            f"the model's logits are of type {type(logits).__name__}; they must be a tensor "
            "(batch, length, vocabulary): is something set that keeps the model from giving them?"
        )
    return logits


class LogKeptShare(TrainerCallback):
    """Puts ``kept_share`` beside the training losses that Trainer logs; for `ConfidenceLoss`.

        compute = ConfidenceLoss(threshold=0.9)
        Trainer(..., compute_loss_func=compute, callbacks=[LogKeptShare(compute)])

    It is that of all processes since the last log, and stands in `trainer.state.log_history` and
    on the console. Trainer tells the services of `report_to` before its users' callbacks, so there
    it is missing: set ``report_to="none"`` and give their callbacks behind this one, such as
    ``callbacks=[LogKeptShare(compute), TensorBoardCallback()]``. `ConfidenceTrainer` logs it
    everywhere.
    """

    def __init__(self, compute: Counted) -> None:
        self._share = KeptShare()
        compute.shares.append(self._share)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Adds the share since the last training log."""
        if logs is None or "loss" not in logs:
            return
        sums = self._share.pop()
        if sums is None:
            sums = torch.zeros(2, device=args.device)
        share = share_of(reduce(sums, "sum"))
        logs["kept_share"] = state.log_history[-1]["kept_share"] = share


class EvalLossByToken(TrainerCallback):
    """Makes ``eval_loss`` of a Trainer with a `ConfidenceLoss` the mean over all tokens.

        compute = ConfidenceLoss(threshold=0.9)
        Trainer(..., compute_loss_func=compute, callbacks=[EvalLossByToken(compute)])

    Trainer's is the mean of the means of batches. This replaces it in what `evaluate` and `predict`
    return, in `trainer.state.log_history` and for `metric_for_best_model`; for the services of
    `report_to` see `LogKeptShare`. On several processes the rows that fill up the last batch count
    twice, since the loss is told of batches, not of rows. `ConfidenceTrainer` needs it not.
    """

    def __init__(self, compute: ConfidenceLoss) -> None:
        self._normalize = compute.options.normalize
        self._seen: list[Tensor] = []
        compute.evaluations.append(self._add)

    def _add(self, loss: Tensor, stats: LossStats) -> None:
        by_kept = self._normalize == "kept"
        total = (loss * stats.kept, stats.kept) if by_kept else (loss, stats.valid.to(loss))
        self._seen.append(torch.stack(total))

    def _replace(self, metrics: dict[str, Any], logged: dict[str, Any]) -> None:
        prefix = next((k.removesuffix("_runtime") for k in metrics if k.endswith("_runtime")), None)
        if not self._seen or prefix is None:
            return
        # added up in float64, which not every device has
        sums = torch.stack(self._seen).cpu().double().sum(0).to(self._seen[0])
        self._seen = []
        total, count = reduce(sums, "sum")
        key = f"{prefix}_loss"
        metrics[key] = mean_or_warning(key, total, count)
        if key in logged:
            logged[key] = metrics[key]

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Replaces the loss of the evaluation that has just been; `evaluate` returns these logs."""
        if logs is not None and "loss" not in logs:
            self._replace(logs, state.log_history[-1])

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        """The same for `predict`, which logs nothing."""
        self._replace(metrics, {})


class ConfidenceMixin(TokenMeans):
    """What `ConfidenceTrainer` adds to a Trainer; put it before any subclass of Trainer.

    Attributes:
        confidence: The loss; its `pop_kept_share` counts by itself, whatever is logged.
    """

    model: Any
    args: Any
    is_deepspeed_enabled: bool
    is_fsdp_enabled: bool
    train_dataset: Any
    data_collator: Any
    _signature_columns: list[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in ARGUMENTS if name in kwargs}
        Counted(**options)  # which checks them before a model is loaded
        if kwargs.get("compute_loss_func") is not None:
            raise InputError(
                f"{type(self).__name__} brings its own loss; leave compute_loss_func out, or give "
                "it to transformers' Trainer"
            )
        super().__init__(*args, **kwargs)
        check_arguments(type(self).__name__, self.args, self.accelerator)
        check_column(self.train_dataset)
        self.data_collator = WithWeights(self.data_collator)
        self.confidence = HiddenStateLoss(self.model, **options)
        self._since_log = KeptShare()
        self.confidence.shares.append(self._since_log)
        # This loss shifts, whatever that of the model is called
        self._loss_shifts_labels = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted loss in training; the Trainer's own, cross entropy, in evaluation.

        Raises:
            InputError: Outputs are asked for in training, where no logits are made; or the batch
                has no labels.
        """
        if not torch.is_grad_enabled():
            inputs.pop(COLUMN, None)
            with self.watched(model, inputs):
                # of a mixin mypy does not know what it is mixed into: Trainer, here and below
                return super().compute_loss(  # type: ignore[misc]
                    model,
                    inputs,
                    return_outputs=return_outputs,
                    num_items_in_batch=num_items_in_batch,
                )
        if return_outputs:
            raise InputError(
                "outputs are asked for in training, where no logits are made; use transformers' "
                "Trainer with compute_loss_func=ConfidenceLoss(...) of this package"
            )
        value = self.confidence(model, inputs, num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # gradients are averaged over processes
            value = value * self.accelerator.num_processes
        return value

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, with a warning where steps would vanish in half precision."""
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        # what shards the model keeps weights of its own in float32
        elsewhere = self.is_deepspeed_enabled or (
            self.is_fsdp_enabled and self.accelerator.mixed_precision != "no"
        )
        if optimizer is not None and not elsewhere:
            warn_of_vanishing_steps(optimizer)
        return optimizer

    def _get_num_items_in_batch(
        self, batch_samples: list[Any], device: torch.device
    ) -> Tensor | int | None:
        # The first label of a row has nothing before it, and is no target. Older versions of
        # Trainer count it; without it all count the same
        samples = [_without_first_labels(batch) for batch in batch_samples]
        count: Tensor | int | None = super()._get_num_items_in_batch(samples, device)  # type: ignore[misc]
        if count is None or self.confidence.options.normalize != "weight_sum":
            return count
        total = torch.stack([weight_sum(batch).float() for batch in batch_samples]).sum().to(device)
        if self.args.average_tokens_across_devices:  # as Trainer counts
            total = self.accelerator.reduce(total, reduction="sum")
        return total

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc] # as in compute_loss
        if COLUMN not in self._signature_columns:
            self._signature_columns.append(COLUMN)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with ``kept_share`` beside the training loss: of all processes, since the last."""
        if "loss" in logs and "learning_rate" in logs:  # where all processes come by
            sums = self._since_log.pop()
            if sums is None:
                sums = torch.zeros(2, device=self.args.device)
            logs["kept_share"] = share_of(self.accelerator.reduce(sums, reduction="sum"))
        super().log(logs, start_time)  # type: ignore[misc]


class ConfidenceTrainer(ConfidenceMixin, Trainer):
    """transformers' Trainer with a confidence-weighted loss on hidden states, without logits.

        ConfidenceTrainer(model, args, threshold=0.9, train_dataset=data)

    Takes what Trainer takes, and one of `weight`, `threshold`, `gamma`; `normalize`; and
    `label_smoothing`, `confidence_penalty`, `z_loss`, `gem_beta` (`fortifai.losses.rows.RowLoss`).
    Which models it serves, and what the loss is divided by: `HiddenStateLoss`. The loss is divided
    by the labels of the whole batch, or with ``normalize="weight_sum"`` by the data's weights of
    it, so gradient accumulation and several processes change nothing; with ``"kept"`` they do,
    since the sum of weights is known by micro-batch only.

    The training data may have a column ``loss_weights``: a number for each row, or one for each
    label, finite and 0 or more. What has weight 0 costs the output layer nothing. The data
    collator's batch gets them, whatever it pads or joins.

    ``kept_share``, the sum of weights over valid labels (over the data's weights, if any), stands
    beside each training loss that is logged. Evaluation gives plain cross entropy, whatever the
    weights: ``eval_loss`` compares models, its exponential is the perplexity, and the best
    checkpoint is not the one that is surest of itself. It is the mean over all labels of the
    evaluation set, whatever the batch size and the number of processes; NaN, with a warning, where
    there are none. It makes logits only where `compute_metrics` wants them.

    Warns:
        UserWarning: Trained parameters are in half precision, and the optimizer keeps no float32
            copies of them.

    Raises:
        InputError: Not exactly one of weight, threshold and gamma is given, or one of the others is
            out of range; ``loss_weights`` are wrong, or missing in some rows; the model cannot be
            served; `label_smoothing_factor`, `compute_loss_func`, several GPUs in one
            process (DataParallel), or parallelism within a row is asked for.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plain = HiddenStateLoss(self.model, Keep())
        # For evaluation with logits. Beside it, it tells Trainer to count labels for each model
        self.compute_loss_func = ConfidenceLoss(Keep())

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """As Trainer's, without logits where only the loss is wanted."""
        labelled = any(inputs.get(name) is not None for name in ("labels", "shift_labels"))
        inputs = {key: value for key, value in inputs.items() if key != COLUMN}
        if not prediction_loss_only or not labelled:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            sums = self._plain.by_row(model, inputs)
        self.tally(sums)
        total, labels = sums.sum(0)
        return total / labels.clamp(min=1), None, None


def _without_first_labels(batch: Any) -> Any:
    if not isinstance(batch, Mapping):
        return batch
    labels, shifted = batch.get("labels"), batch.get("shift_labels")
    if isinstance(shifted, Tensor):  # which the loss takes where both are there
        labels = F.pad(shifted, (1, 0), value=-100)
    elif isinstance(labels, Tensor):
        labels = labels.clone()
        labels[..., 0] = -100
    else:
        return batch
    return {**batch, "labels": labels}
