"""Items of published benchmarks in local files, as their authors publish them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fortifai.data.mmlu import mmlu_rows
from fortifai.errors import InputError
from fortifai.file_formats import Row, file_format
from fortifai.file_tables import as_table, read_table

KINDS = ("jsonl", "json", "csv", "parquet")
"""Formats of items; of several files that could be meant, the first one is."""

MMLU = "cais/mmlu"
FIELDS = {
    "nyu-mll/blimp": (("sentence_good", "sentence_bad"), "", ""),
    "Rowan/hellaswag": (("activity_label", "ctx_a", "ctx_b"), "endings", "label"),
    "openai/gsm8k": (("question", "answer"), "", ""),
    MMLU: (("question",), "choices", "answer"),
}
"""By data set: the fields that are texts; those of the answers and of the place of the right one.

Of other data sets whoever asks for their items finds out.
"""


def read_items(path: Path, dataset: str, task: str) -> Any:
    """The items in a file as a `pyarrow.Table`, each of them checked.

    Args:
        path: A file of one of the formats `KINDS`, perhaps packed.
        dataset: The data set on the hub whose fields they have, such as ``cais/mmlu``.
        task: What they are for, in messages.

    Raises:
        InputError: There are none, or one is not of this data set.
    """
    kind = file_format(path).kind
    if kind not in KINDS:
        raise InputError(
            f"{path} is of no known format; benchmark items are read from .jsonl, .ndjson, .json, "
            ".csv and .parquet files"
        )
    own = kind == "csv" and dataset == MMLU
    table = as_table(mmlu_rows(path), path) if own else read_table(path)
    if not table.num_rows:
        raise InputError(f"{path} holds no items; give the file of {task}")
    texts, *listed = FIELDS.get(dataset, ((), "", ""))
    known = [name for name in table.column_names if name in (*texts, *listed)]
    for number, row in enumerate(table.select(known).to_pylist(), start=1):
        for fault in _faults(row, texts, *listed):
            raise InputError(
                f"{path}, item {number}, is not one of {task}: {fault}; it has the "
                f"fields {', '.join(table.column_names)}"
            )
    return table


def _faults(row: Row, texts: Sequence[str], listed: str, right: str) -> Iterator[str]:
    """What is wrong with an item."""
    for name in texts:
        if not isinstance(row.get(name), str):
            yield f"the text {name!r} is missing"
    choices = row.get(listed) if listed else []
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        yield f"the list of texts {listed!r} is missing"
    elif listed and str(row.get(right)) not in map(str, range(len(choices))):
        yield f"{right!r} must be the place of the right one of {listed!r}, from 0"
