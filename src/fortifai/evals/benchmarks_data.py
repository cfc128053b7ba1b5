"""Benchmark items from local files, as the Arrow tables that tasks read them from."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from fortifai.data.published import KINDS, read_items
from fortifai.errors import InputError, nearest
from fortifai.file_formats import file_format
from fortifai.file_tables import as_table

if TYPE_CHECKING:
    from fortifai.evals.benchmarks import Benchmark
    from fortifai.evals.harness import Task

Rows = dict[str, dict[str, pa.Table]]
"""By task, by split: its items, in their order."""


def read_rows(benchmark: Benchmark, tasks: Sequence[Task], root: Path) -> Rows:
    """The items of every task and split of a benchmark with local `data`, or `InputError`.

    Args:
        benchmark: What is asked for.
        tasks: Its tasks.
        root: Folder that `data` is relative to.
    """
    out: Rows = {}
    for task in tasks:
        paths = {split: _find(benchmark, tasks, task, split, root) for split in task.splits}
        name, dataset = task.task_name, task.config.dataset_path
        out[name] = {split: read_items(path, dataset, name) for split, path in paths.items()}
    return out


def _find(benchmark: Benchmark, tasks: Sequence[Task], task: Task, split: str, root: Path) -> Path:
    """The file of a split of a task: the one given, or that in a folder named after the task."""
    name, data, own, first = benchmark.name, benchmark.data, task.task_name, task.splits[0]
    key, known = f"benchmarks.{name}.data", sorted({s for each in tasks for s in each.splits})
    use = f"{own} draws its few-shot examples from the split {split!r}"
    use = f"{own} is evaluated on it" if split == first else use
    by_split = data if isinstance(data, dict) else dict.fromkeys(known, str(data))
    for given in by_split.keys() - known:
        raise InputError(
            f"{key}: {name} reads no split {given!r}{nearest(given, known)}; it reads "
            f"{', '.join(known)}"
        )
    if split not in by_split:
        raise InputError(f"{key} names no file for the split {split!r}; {use}")
    path = root / by_split[split]
    if path.is_file() and len(tasks) > 1:
        raise InputError(
            f"{key}: {path} is one file and {name} has {len(tasks)} tasks; give the folder of "
            "their files, or one task with only"
        )
    if path.is_file() and by_split is not data and split != first:
        raise InputError(
            f"{key} is one file, for the split {first!r}, and {use}; give data: "
            f"{{{first}: FILE, {split}: FILE}}, a folder with both, or num_fewshot: 0"
        )
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{key}: there is no file or folder {path}; give one that is there")
    called = (task.config.dataset_name, own.removeprefix(f"{name}_"), own)
    names = dict.fromkeys(filter(None, called))
    forms = (f"{split}/{{}}_{split}", f"{split}/{{}}", f"{{}}/{split}", f"{{}}_{split}")
    stems = [form.format(n) for n in names for form in forms]
    stems += names if len(task.splits) == 1 else []
    stems += [split] if len(tasks) == 1 else []
    for found in itertools.chain.from_iterable(_called(path / stem) for stem in stems):
        return found
    raise InputError(
        f"{key}: {path} has no file for {own}, split {split!r} (such as {stems[-1]}.jsonl or "
        f"{stems[0]}.csv); add it"
        + (", or name the tasks that are there with only" if len(tasks) > 1 else "")
    )


def _called(stem: Path) -> list[Path]:
    """Files of items whose path is `stem` and a suffix, in the order of `KINDS`."""
    there = stem.parent.iterdir() if stem.parent.is_dir() else ()
    formats = {path: file_format(path) for path in there}
    found = [p for p, f in formats.items() if f.kind in KINDS and f.stem == stem.name]
    order = {path: (KINDS.index(formats[path].kind), formats[path].packed, path) for path in found}
    return sorted(filter(Path.is_file, found), key=order.__getitem__)


def save_rows(path: Path, rows: Rows) -> None:
    """Write items as one parquet table: ``task``, ``split`` and the items as an Arrow stream."""
    out = []
    for task, split, table in ((t, s, rows[t][s]) for t in rows for s in rows[t]):
        with io.BytesIO() as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
            stream.close()
            out.append({"task": task, "split": split, "items": sink.getvalue()})
    pq.write_table(pa.Table.from_pylist(out), path)


def load_rows(path: Path) -> Rows:
    """Read back what `save_rows` wrote, or an earlier version, which wrote one row an item."""
    out: Rows = {}
    saved = pq.read_table(path).to_pylist()
    for (task, split), group in itertools.groupby(saved, lambda row: (row["task"], row["split"])):
        first, *more = group
        out.setdefault(task, {})[split] = (
            pa.ipc.open_stream(first["items"]).read_all()
            if "items" in first
            else as_table([json.loads(row["row"]) for row in (first, *more)], path)
        )
    return out
