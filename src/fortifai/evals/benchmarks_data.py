"""Benchmark items from local files, as the Arrow tables that tasks read them from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fortifai.data.mmlu import mmlu_rows
from fortifai.errors import InputError, nearest
from fortifai.file_formats import Row, file_format
from fortifai.file_tables import as_table, read_table

Rows = dict[str, dict[str, pa.Table]]
"""By task, by split: its items, in their order."""

KINDS = ("jsonl", "json", "csv", "parquet")
"""Formats of items; of several files that could be meant, the first one is."""

MMLU = "cais/mmlu"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark as it is asked for; the names are those of lm-evaluation-harness.

    Attributes:
        name: A task, group or tag of the harness, such as ``blimp`` or ``mmlu``.
        data: A local file or folder, or files by split. It has no default: None, said outright, has
            the harness fetch its own data set from the hub.
        limit: Items of each task, the first ones; None for all.
        only: Tasks or groups within `name` to take; empty for all.
        num_fewshot: Examples before each item; None for the task's own number.
        max_gen_toks: Tokens written per answer; None for the task's own number, or 256.
        apply_chat_template: Put prompts into the tokenizer's chat template.
        chat_template_args: What the template is told, such as ``{"enable_thinking": False}``.

    Raises:
        InputError: A setting is of another type, or a number too small.
    """

    name: str
    data: str | Mapping[str, str] | None
    limit: int | None = None
    only: tuple[str, ...] = ()
    num_fewshot: int | None = None
    max_gen_toks: int | None = None
    apply_chat_template: bool = False
    chat_template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        key, only = f"benchmarks.{self.name}", self.only
        paths = list(self.data.values()) if isinstance(self.data, Mapping) else [self.data]
        if not paths or not all(isinstance(p, str) and p for p in paths if self.data is not None):
            raise InputError(
                f"{key}.data is {self.data!r}; name a file, a folder, or files by split, as "
                "strings, or give None for the hub's data set"
            )
        if not isinstance(only, tuple):
            raise InputError(f"{key}.only is {only!r}; give a tuple, ({only!r},)")
        for name, least in (("limit", 1), ("num_fewshot", 0), ("max_gen_toks", 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise InputError(
                    f"{key}.{name} is {value!r}; give a whole number, {least} or more, or leave "
                    "it out"
                )


@dataclasses.dataclass(frozen=True)
class Source:
    """Which data a task reads: a part of a data set of the hub, or what stands in for it.

    Attributes:
        task: The task, such as ``mmlu_astronomy``.
        dataset: Its data set on the hub, such as ``cais/mmlu``.
        part: The part of it, such as ``astronomy``, or None.
        splits: The split that is evaluated, and the one that few-shot examples are drawn from.
    """

    task: str
    dataset: str
    part: str | None
    splits: tuple[str, ...]


def read_rows(benchmark: Benchmark, sources: Sequence[Source], root: Path) -> Rows:
    """The items of every task and split of a benchmark with local `data`, relative to `root`.

    Raises:
        InputError: A file is missing, empty, or not of this benchmark.
    """
    return {
        source.task: {
            split: _read(_find(benchmark, sources, source, split, root), source)
            for split in source.splits
        }
        for source in sources
    }


def save_rows(path: Path, rows: Rows) -> None:
    """Write items as one parquet table: ``task``, ``split`` and the items as an Arrow stream."""
    flat = [(t, s, _stream(table)) for t, splits in rows.items() for s, table in splits.items()]
    names = ("task", "split", "items")
    pq.write_table(pa.table([list(column) for column in zip(*flat, strict=True)], names), path)


def load_rows(path: Path) -> Rows:
    """Read back what `save_rows` wrote, or an earlier version, which wrote one row an item."""
    out: Rows = {}
    old: dict[tuple[str, str], list[Row]] = {}
    for row in pq.read_table(path).to_pylist():
        if "row" in row:
            old.setdefault((row["task"], row["split"]), []).append(json.loads(row["row"]))
        else:
            items = pa.ipc.open_stream(row["items"]).read_all()
            out.setdefault(row["task"], {})[row["split"]] = items
    for (task, split), rows in old.items():
        out.setdefault(task, {})[split] = as_table(rows, path)
    return out


def digest(rows: Rows) -> str:
    """SHA-256 of items."""
    told = {task: {s: t.to_pylist() for s, t in splits.items()} for task, splits in rows.items()}
    return sha256(told)


def sha256(data: Any) -> str:
    """SHA-256 of what JSON can tell of a value."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


# --- which file -------------------------------------------------------------------------------


def _find(
    benchmark: Benchmark, sources: Sequence[Source], source: Source, split: str, root: Path
) -> Path:
    """The file of a split: the one given, or the one in a folder that is named after the task."""
    name, data, task, evaluated = benchmark.name, benchmark.data, source.task, source.splits[0]
    key = f"benchmarks.{name}.data"
    wanted = f"{task} draws its few-shot examples from the split {split!r}"
    wanted = f"{task} is evaluated on it" if split == evaluated else wanted
    if isinstance(data, Mapping):
        known = sorted({s for each in sources for s in each.splits})
        for given in data.keys() - known:
            raise InputError(
                f"{key}: {name} reads no split {given!r}{nearest(given, known)}; it reads "
                f"{', '.join(known)}"
            )
        if split not in data:
            raise InputError(f"{key} names no file for the split {split!r}; {wanted}")
    path = root / (data[split] if isinstance(data, Mapping) else str(data))
    if path.is_file() and len(sources) > 1:
        raise InputError(
            f"{key}: {path} is one file and {name} has {len(sources)} tasks; give the folder of "
            "their files, or one task with only"
        )
    if path.is_file() and isinstance(data, str) and split != evaluated:
        raise InputError(
            f"{key} is one file, for the split {evaluated!r}, and {wanted}; give data: "
            f"{{{evaluated}: FILE, {split}: FILE}}, a folder with both, or num_fewshot: 0"
        )
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{key}: there is no file or folder {path}; give one that is there")
    names = dict.fromkeys(n for n in (source.part, task.removeprefix(f"{name}_"), task) if n)
    forms = (f"{split}/{{}}_{split}", f"{split}/{{}}", f"{{}}/{split}", f"{{}}_{split}")
    stems = [form.format(n) for n in names for form in forms]
    stems += names if len(source.splits) == 1 else []
    stems += [split] if len(sources) == 1 else []
    for found in filter(None, (_called(path / stem) for stem in stems)):
        return found
    raise InputError(
        f"{key}: {path} has no file for {task}, split {split!r} (such as {stems[-1]}.jsonl or "
        f"{stems[0]}.csv); add it"
        + (", or name the tasks that are there with only" if len(sources) > 1 else "")
    )


def _called(stem: Path) -> Path | None:
    """The file of items whose path is `stem` and a suffix; of several the first of `KINDS`."""
    there = stem.parent.iterdir() if stem.parent.is_dir() else ()
    named = [(file_format(path), path) for path in there]
    found = [
        (KINDS.index(form.kind), form.packed, path)
        for form, path in named
        if form.kind in KINDS and form.stem == stem.name and path.is_file()
    ]
    return min(found)[2] if found else None


# --- what is in it ----------------------------------------------------------------------------

_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, str] | None]] = {
    "nyu-mll/blimp": (("sentence_good", "sentence_bad"), None),
    "Rowan/hellaswag": (("activity_label", "ctx_a", "ctx_b"), ("endings", "label")),
    "openai/gsm8k": (("question", "answer"), None),
    MMLU: (("question",), ("choices", "answer")),
}
"""By data set: the fields that are texts; those of the answers and of the place of the right one.

Of other data sets the harness itself finds out.
"""


def _read(path: Path, source: Source) -> pa.Table:
    kind = file_format(path).kind
    if kind not in KINDS:
        raise InputError(
            f"{path} is of no known format; benchmark items are read from .jsonl, .ndjson, .json, "
            ".csv and .parquet files"
        )
    own = kind == "csv" and source.dataset == MMLU
    table = as_table(mmlu_rows(path), path) if own else read_table(path)
    if not table.num_rows:
        raise InputError(f"{path} holds no items; give the file of {source.task}")
    texts, listed = _FIELDS.get(source.dataset, ((), None))
    known = [name for name in table.column_names if name in (*texts, *(listed or ()))]
    for number, row in enumerate(table.select(known).to_pylist(), start=1):
        if fault := _fault(row, texts, listed):
            raise InputError(
                f"{path}, item {number}, is not one of {source.task}: {fault}; it has the fields "
                f"{', '.join(table.column_names)}"
            )
    return table


def _fault(row: Row, texts: Sequence[str], listed: tuple[str, str] | None) -> str:
    """What is wrong with an item, or nothing."""
    for name in texts:
        if not isinstance(row.get(name), str):
            return f"the text {name!r} is missing"
    if listed:
        choices, right = row.get(listed[0]), row.get(listed[1])
        if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
            return f"the list of texts {listed[0]!r} is missing"
        if str(right) not in map(str, range(len(choices))):
            return f"{listed[1]!r} must be the place of the right one of {listed[0]!r}, from 0"
    return ""
