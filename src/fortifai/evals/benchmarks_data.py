"""Benchmark items from local files, in the form that the hub's data sets have.

What is asked of a benchmark is a `Benchmark`; its items are `Rows`: by task and split, a list of
objects. They are kept whole in a run folder, so that a run needs its source files only once.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fortifai.data.text import jsonl_rows, parquet_rows, read_utf8
from fortifai.errors import InputError, nearest

Row = dict[str, Any]
Rows = dict[str, dict[str, list[Row]]]
"""By task, by split: its items, in their order."""

ENDINGS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark as it is asked for; the names are those of lm-evaluation-harness.

    Attributes:
        name: A task, group or tag of the harness, such as ``blimp``, ``hellaswag``, ``gsm8k``,
            ``mmlu``.
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
        self._check_data()
        only: object = self.only
        if isinstance(only, str):
            raise InputError(f"benchmarks.{self.name}.only is {only!r}; give a tuple, ({only!r},)")
        for name, least in (("limit", 1), ("num_fewshot", 0), ("max_gen_toks", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= least):
                raise InputError(
                    f"benchmarks.{self.name}.{name} is {value!r}; give a whole number, {least} or "
                    "more, or leave it out"
                )

    def _check_data(self) -> None:
        if isinstance(self.data, Mapping):
            named = list(self.data.values())
        else:
            named = [] if self.data is None else [self.data]
        if self.data == {} or not all(isinstance(path, str) and path for path in named):
            raise InputError(
                f"benchmarks.{self.name}.data is {self.data!r}; name a file, a folder, or files by "
                "split, as strings, or give None for the hub's data set"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What, beside weights, tasks and data, decides the result."""
        out = dataclasses.asdict(self)
        del out["data"]
        return out


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What of a task's configuration decides which data it reads.

    Attributes:
        name: The task, such as ``mmlu_astronomy``.
        dataset: Its data set on the hub.
        part: The data set's part, such as ``astronomy``, or None.
        split: The split that is evaluated.
        examples: The split that few-shot examples are drawn from, or None where none are.
    """

    name: str
    dataset: str
    part: str | None
    split: str
    examples: str | None

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it reads."""
        return tuple(dict.fromkeys(s for s in (self.split, self.examples) if s is not None))


def read_rows(benchmark: Benchmark, leaves: Sequence[Leaf], root: Path) -> Rows:
    """The items of every task and split of a benchmark with local data.

    Args:
        benchmark: With `data`.
        leaves: Its tasks.
        root: Folder that its paths are relative to.

    Raises:
        InputError: A file is missing, empty, or not of this benchmark.
    """
    return {
        leaf.name: {
            split: _read(_find(benchmark, leaves, leaf, split, root), leaf) for split in leaf.splits
        }
        for leaf in leaves
    }


def save_rows(path: Path, rows: Rows) -> None:
    """Write items as one parquet table: ``task``, ``split`` and the item as JSON."""
    flat = [
        (task, split, json.dumps(row, ensure_ascii=False))
        for task, splits in rows.items()
        for split, items in splits.items()
        for row in items
    ]
    columns = list(zip(*flat, strict=True))
    pq.write_table(pa.table(dict(zip(("task", "split", "row"), columns, strict=True))), path)


def load_rows(path: Path) -> Rows:
    """Read back what `save_rows` wrote."""
    out: Rows = {}
    table = pq.read_table(path).to_pydict()
    for task, split, row in zip(table["task"], table["split"], table["row"], strict=True):
        out.setdefault(task, {}).setdefault(split, []).append(json.loads(row))
    return out


def digest(rows: Rows) -> str:
    """SHA-256 of items."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode("utf-8")).hexdigest()


# --- which file -------------------------------------------------------------------------------


def _find(benchmark: Benchmark, leaves: Sequence[Leaf], leaf: Leaf, split: str, root: Path) -> Path:
    data, name = benchmark.data, benchmark.name
    assert data is not None
    if not isinstance(data, str):
        known = {s for each in leaves for s in each.splits}
        for given in data:
            if given not in known:
                raise InputError(
                    f"benchmarks.{name}.data: {name} reads no split {given!r}"
                    f"{nearest(given, known)}; it reads {', '.join(sorted(known))}"
                )
        if split not in data:
            raise InputError(
                f"benchmarks.{name}.data names no file for the split {split!r}; "
                f"{_wanted(leaf, split)}"
            )
        return _in(root / data[split], benchmark, leaves, leaf, split)
    return _in(root / data, benchmark, leaves, leaf, split)


def _in(path: Path, benchmark: Benchmark, leaves: Sequence[Leaf], leaf: Leaf, split: str) -> Path:
    """The file itself, or the one in the folder that is named after the task and the split."""
    name = benchmark.name
    if path.is_file():
        if len(leaves) > 1:
            raise InputError(
                f"benchmarks.{name}.data: {path} is one file and {name} has {len(leaves)} tasks; "
                "give the folder of their files, or one task with only"
            )
        if isinstance(benchmark.data, str) and split != leaf.split:
            raise InputError(
                f"benchmarks.{name}.data is one file, for the split {leaf.split!r}, and "
                f"{_wanted(leaf, split)}; give data: {{{leaf.split}: FILE, {split}: FILE}}, a "
                "folder with both, or num_fewshot: 0"
            )
        return path
    if not path.is_dir():
        raise InputError(
            f"benchmarks.{name}.data: there is no file or folder {path}; give one that is there"
        )
    short = leaf.name.removeprefix(f"{name}_")
    keys = dict.fromkeys(key for key in (leaf.part, short, leaf.name) if key)
    stems = [
        stem
        for key in keys
        for stem in (f"{split}/{key}_{split}", f"{split}/{key}", f"{key}/{split}", f"{key}_{split}")
    ]
    stems += keys if split == leaf.split and len(leaf.splits) == 1 else []
    stems += [split] if len(leaves) == 1 else []
    for stem in stems:
        for ending in ENDINGS:
            if (path / f"{stem}{ending}").is_file():
                return path / f"{stem}{ending}"
    raise InputError(
        f"benchmarks.{name}.data: {path} has no file for {leaf.name}, split {split!r} (such as "
        f"{stems[-1]}.jsonl or {stems[0]}.csv); add it"
        + (", or name the tasks that are there with only" if len(leaves) > 1 else "")
    )


def _wanted(leaf: Leaf, split: str) -> str:
    if split == leaf.split:
        return f"{leaf.name} is evaluated on it"
    return f"{leaf.name} draws its few-shot examples from the split {split!r}"


# --- what is in it ----------------------------------------------------------------------------


def _read(path: Path, leaf: Leaf) -> list[Row]:
    if path.name.endswith(".parquet"):
        rows = parquet_rows(path)
    elif path.name.removesuffix(".gz").endswith(".csv"):
        rows = mmlu_rows(path) if leaf.dataset in _MMLU else _csv_rows(path)
    elif path.name.removesuffix(".gz").endswith((".jsonl", ".json")):
        rows = jsonl_rows(path)
    else:
        raise InputError(
            f"{path} is of no known format; benchmark items are read from "
            f"{', '.join(ENDINGS)} files"
        )
    if not rows:
        raise InputError(f"{path} holds no items; give the file of {leaf.name}")
    check = _CHECKS.get(leaf.dataset)
    for number, row in enumerate(rows, start=1):
        fault = check(row) if check else ""
        if fault:
            raise InputError(
                f"{path}, item {number}, is not one of {leaf.name}: {fault}; it has the fields "
                f"{', '.join(map(str, row)) or '(none)'}"
            )
    return rows


def _csv_rows(path: Path) -> list[Row]:
    lines = _table(path)
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]] if lines else []


def mmlu_rows(path: Path) -> list[Row]:
    """MMLU's own files: question, four choices, answer (a letter, or 0 to 3); a header or none."""
    lines = _table(path)
    if lines and lines[0][-1].strip().lower() == "answer":
        lines = lines[1:]
    rows = []
    for number, line in enumerate(lines, start=1):
        answer = line[-1].strip()
        place = "ABCD".find(answer) if len(answer) == 1 and answer.isalpha() else -1
        place = int(answer) if answer in ("0", "1", "2", "3") else place
        if len(line) != 6 or place < 0:
            raise InputError(
                f"{path}, item {number}, is not one of MMLU: it must be a question, four choices "
                "and an answer, A to D or 0 to 3"
            )
        rows.append({"question": line[0], "choices": line[1:5], "answer": place})
    return rows


def _table(path: Path) -> list[list[str]]:
    try:
        lines = [line for line in csv.reader(io.StringIO(read_utf8(path)), strict=True) if line]
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as CSV ({error}); give it again") from error
    for number, line in enumerate(lines, start=1):
        if len(line) != len(lines[0]):
            raise InputError(
                f"{path}, row {number}, has {len(line)} columns and the first {len(lines[0])}; "
                "all rows must have as many"
            )
    return lines


def _texts(row: Row, *names: str) -> str:
    for name in names:
        if not isinstance(row.get(name), str):
            return f"the text {name!r} is missing"
    return ""


def _blimp(row: Row) -> str:
    return _texts(row, "sentence_good", "sentence_bad")


def _gsm8k(row: Row) -> str:
    return _texts(row, "question", "answer")


def _hellaswag(row: Row) -> str:
    fault = _texts(row, "activity_label", "ctx_a", "ctx_b")
    return fault or _one_of(row, "endings", "label")


def _mmlu(row: Row) -> str:
    return _texts(row, "question") or _one_of(row, "choices", "answer")


def _one_of(row: Row, choices: str, right: str) -> str:
    found = row.get(choices)
    if not isinstance(found, list) or not found or not all(isinstance(c, str) for c in found):
        return f"the list of texts {choices!r} is missing"
    if str(row.get(right)) not in map(str, range(len(found))):
        return f"{right!r} must be the place of the right one of {choices!r}, counted from 0"
    return ""


_MMLU = frozenset({"cais/mmlu", "hails/mmlu_no_train"})
_CHECKS: dict[str, Callable[[Row], str]] = {
    "nyu-mll/blimp": _blimp,
    "Rowan/hellaswag": _hellaswag,
    "hellaswag": _hellaswag,
    "openai/gsm8k": _gsm8k,
    "gsm8k": _gsm8k,
    **dict.fromkeys(_MMLU, _mmlu),
}
"""By data set, what is wrong with an item, or nothing. Of others the harness itself finds out."""
