"""Weights that come with the data: the column ``loss_weights`` of a data set, or key of a batch.

A number for each sample, or one for each token, beside its label: it multiplies what predicting
that token loses, whatever the model's confidence says of it besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fortifai.errors import InputError
from fortifai.losses.checks import check_weights

COLUMN = "loss_weights"
IGNORED = -100


def row_weights(example: Mapping[str, Any], row: int | str) -> Tensor:
    """The weights of an example, (length,) float32 of its labels; () for one of all of it.

    Args:
        example: With ``loss_weights``, and ``labels`` or ``input_ids`` where it has one for each.
        row: What the sentence calls it by.

    Raises:
        InputError: They are missing, no numbers, negative, not finite, or of another length.
    """
    given = example.get(COLUMN)
    if given is None:
        raise InputError(
            f"row {row} has no {COLUMN}, and others have; give every row a weight, such as 1.0"
        )
    try:
        weights = torch.as_tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{COLUMN} of row {row} is {given!r:.80}; give a number, or one for each label"
        ) from error
    check_weights(f"{COLUMN} of row {row}", weights)
    tokens = next((example[key] for key in ("labels", "input_ids") if key in example), None)
    if weights.dim() > 1 or (weights.dim() and (tokens is None or len(tokens) != len(weights))):
        labels = "none" if tokens is None else len(tokens)
        raise InputError(
            f"{COLUMN} of row {row} is {tuple(weights.shape)} and its labels are {labels}; give "
            "one weight for the row, or one for each label"
        )
    return weights


def check_column(dataset: Any) -> None:
    """Raise `InputError` that names the first row whose ``loss_weights`` are wrong.

    Looks at data sets of the package datasets and at lists of rows; at others nobody can look
    without reading them, and their rows are checked when they are batched.
    """
    columns = getattr(dataset, "column_names", None)
    if columns is not None and hasattr(dataset, "with_format") and hasattr(dataset, "__len__"):
        if COLUMN in columns:
            wanted = [c for c in ("labels", "input_ids") if c in columns][:1]
            _check_rows(_rows_of(dataset.select_columns([COLUMN, *wanted]).with_format("arrow")))
    elif isinstance(dataset, Sequence) and any(_has_weights(example) for example in dataset):
        _check_rows(enumerate(dataset))


def _has_weights(example: Any) -> bool:
    return isinstance(example, Mapping) and COLUMN in example


def _check_rows(rows: Iterator[tuple[int, Mapping[str, Any]]]) -> None:
    for row, example in rows:
        row_weights(example, row)


def _rows_of(dataset: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a table, with NumPy's views of their lists instead of Python's."""
    row = 0
    for table in dataset.iter(1024):
        for i in range(len(table)):
            scalars = {name: table[name][i] for name in table.column_names}
            yield row, {name: _plain(scalar) for name, scalar in scalars.items()}
            row += 1


def _plain(scalar: Any) -> Any:
    values = getattr(scalar, "values", None)
    if values is None or values.null_count:
        return scalar.as_py()
    return values.to_numpy(zero_copy_only=False).copy()


class WithWeights:
    """A data collator that lays ``loss_weights`` beside the labels of another's batch.

    The other does not see them: most would not know what to do with them. What it pads has weight
    0; where it puts rows one after another into one (padding-free), so are the weights.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, examples: Any) -> Any:
        """The other's batch, with ``loss_weights`` (batch, length) where examples have them.

        Raises:
            InputError: See `row_weights`; or rows were made shorter than their weights.
        """
        if isinstance(examples, Tensor) or not any(map(_has_weights, examples)):
            return self.collate(examples)
        weights = [row_weights(example, f"{i} of a batch") for i, example in enumerate(examples)]
        lengths = [_length(example) for example in examples]
        batch = self.collate([{k: v for k, v in e.items() if k != COLUMN} for e in examples])
        labels = batch.get("labels")
        if not isinstance(labels, Tensor):
            raise InputError(
                f"the data have {COLUMN} and the batch no labels to lay them beside; have the data "
                "collator add labels, such as DataCollatorForLanguageModeling(tokenizer, mlm=False)"
            )
        whole = [w.expand(n) if n is not None else w for w, n in zip(weights, lengths, strict=True)]
        if len(labels) == len(examples):
            masks = batch.get("attention_mask")
            rows = [
                _laid(w, labels.shape[-1], None if masks is None else masks[i])
                for i, w in enumerate(whole)
            ]
            batch[COLUMN] = torch.stack(rows)
        else:  # all in one row
            batch[COLUMN] = _laid(torch.cat(whole), labels.shape[-1], None)[None]
        return batch


def _length(example: Mapping[str, Any]) -> int | None:
    """Of a tokenized example; None for others, which have one weight for all of a row."""
    return next((len(example[key]) for key in ("labels", "input_ids") if key in example), None)


def _laid(weights: Tensor, length: int, mask: Tensor | None) -> Tensor:
    """Weights in a row of a batch, 0 where it is padded."""
    if weights.dim() == 0:
        return weights.expand(length)
    if len(weights) == length:
        return weights
    if mask is not None and mask.dim() == 1 and int(mask.sum()) == len(weights):
        return weights.new_zeros(length).masked_scatter(mask.bool(), weights)
    if len(weights) > length:
        raise InputError(
            f"the data collator made {length} labels of a row with {len(weights)} {COLUMN}, which "
            "cannot follow; cut the rows, labels and weights, before"
        )
    return F.pad(weights, (0, length - len(weights)))


def beside_labels(inputs: Mapping[str, Any]) -> Tensor | None:
    """The ``loss_weights`` of a batch beside its labels, of their shape; None where it has none.

    Args:
        inputs: With ``labels`` (batch, length), or ``shift_labels``, which are taken where both are
            there; ``loss_weights`` beside them, or (batch,).

    Raises:
        InputError: They are no tensor, negative, not finite, or of another length.
    """
    weights = inputs.get(COLUMN)
    if weights is None:
        return None
    labels = _labels(inputs)
    if not isinstance(weights, Tensor):
        raise InputError(f"{COLUMN} is of type {type(weights).__name__}; give a torch.Tensor")
    if weights.shape == labels.shape[:1]:
        weights = weights.unsqueeze(1).expand(labels.shape)
    if weights.shape != labels.shape:
        raise InputError(
            f"{COLUMN} is {tuple(weights.shape)} and labels {tuple(labels.shape)}; give one weight "
            "for each label, or one for each row"
        )
    check_weights(COLUMN, weights)
    return weights


def _labels(inputs: Mapping[str, Any]) -> Tensor:
    shifted = inputs.get("shift_labels")
    labels: Tensor = inputs["labels"] if shifted is None else shifted
    return labels


def weight_sum(inputs: Mapping[str, Any]) -> Tensor:
    """Sum of the data's weights over the labels of a batch that count; 1 for each without any."""
    labels = _labels(inputs)
    weights = beside_labels(inputs)
    counts = labels != IGNORED
    if inputs.get("shift_labels") is None:
        counts = F.pad(counts[..., 1:], (1, 0))  # the first label of a row is no target
    return counts.sum() if weights is None else torch.where(counts, weights, 0.0).sum()
