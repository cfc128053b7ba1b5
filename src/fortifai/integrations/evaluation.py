"""Evaluation losses of trainers as means over all tokens, not means of the means of batches.

Trainer takes the mean of each batch, and of those the mean by rows: a label in a row with few of
them counts more than one in a row with many, by how much depends on the batch size, and a row
without labels pulls the result towards 0.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100


class TokenMeans:
    """Makes ``eval_loss`` of a Trainer the mean over all tokens; put it before a subclass of it.

    Sums are gathered by row, so that those which several processes see twice, to fill up the last
    batch, count once. An evaluation set without a single label has the loss NaN, and a warning.
    """

    accelerator: Any
    gather_function: Any
    _rows: list[Tensor] | None = None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As Trainer's, with the loss over all tokens in its metrics."""
        outer, self._rows = self._rows, []
        try:
            # of a mixin mypy does not know what it is mixed into
            output = super().evaluation_loop(  # type: ignore[misc]
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            rows = self._rows
        finally:
            self._rows = outer
        if rows:
            # added up in float64, which not every device has
            sums = torch.cat(rows).cpu().double().sum(0)
            self.take_means(output.metrics, metric_key_prefix, sums)
        return output

    def take_means(self, metrics: dict[str, float], prefix: str, sums: Tensor) -> None:
        """Puts the means into the metrics, from what `row_sums` gave, added up."""
        metrics[f"{prefix}_loss"] = mean_or_warning(f"{prefix}_loss", sums[0], sums[1])

    def tally(self, sums: Tensor) -> None:
        """Adds a batch's `row_sums`; does nothing outside of an evaluation."""
        if self._rows is not None:
            self._rows.append(self.gather_function(sums))

    def row_sums(self, outputs: Any, labels: Tensor) -> Tensor:
        """Cross entropy and number of labels of each row, (batch, 2).

        Args:
            outputs: Of the model, with logits (batch, length, classes).
            labels: (batch, length), moved beside the logits, -100 where none counts.
        """
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        labels = labels.to(logits.device)
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        by_row = losses.view(labels.shape).sum(-1)
        return torch.stack((by_row, (labels != IGNORED).sum(-1).to(by_row)), dim=-1)

    @contextlib.contextmanager
    def watched(self, model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Tallies what the model gives for these inputs at its first call within, in evaluation."""
        # now, since Trainer takes the labels out
        target, labels = inputs.get("shift_labels"), inputs.get("labels")
        if target is None and labels is not None:
            target = moved(labels)
        if self._rows is None or target is None:
            yield
            return
        seen: list[Any] = []
        hook = model.register_forward_hook(lambda _, __, outputs: seen.append(outputs))
        try:
            yield
        finally:
            hook.remove()
        if seen:
            with torch.no_grad():
                self.tally(self.row_sums(seen[0], target))


def moved(labels: Tensor) -> Tensor:
    """Labels one to the left, beside the logits that predict them."""
    return F.pad(labels, (0, 1), value=IGNORED)[..., 1:]


def mean_or_warning(name: str, total: Tensor, count: Tensor) -> float:
    """Total over count; NaN and a warning where the count is 0."""
    if count > 0:
        return (total / count).item()
    warnings.warn(
        f"{name} is NaN: no label of the evaluation set counts, all are {IGNORED}; look at what "
        "masks them (a prompt that fills the whole length, for one)",
        stacklevel=2,
    )
    return float("nan")
