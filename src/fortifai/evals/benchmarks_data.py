"""Benchmark items from local files, in the form that the hub's data sets have.

What is asked of a benchmark is a `Benchmark`; its items are `Rows`: by task and split, a list of
objects. They are kept whole in a run folder, so that a run needs its source files only once.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import decimal
import hashlib
import io
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fortifai.data.files import Row, file_format, read_utf8
from fortifai.data.files import read_rows as read_objects
from fortifai.errors import InputError, nearest

Rows = dict[str, dict[str, list[Row]]]
"""By task, by split: its items, in their order."""

KINDS = ("jsonl", "json", "csv", "parquet")
"""Formats of items; of several files that could be meant, the first one is."""


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
    """Write items as one parquet table: ``task``, ``split`` and the item as JSON.

    What JSON has no form for (dates, decimals, bytes) is an object with the key `_TAG`.
    """
    flat = [
        (task, split, json.dumps(row, ensure_ascii=False, default=_tagged))
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
        out.setdefault(task, {}).setdefault(split, []).append(
            json.loads(row, object_hook=_untagged)
        )
    # what an earlier version wrote has items without the fields that they lack
    return {
        task: {split: _filled(items) for split, items in splits.items()}
        for task, splits in out.items()
    }


def digest(rows: Rows) -> str:
    """SHA-256 of items."""
    told = json.dumps(rows, sort_keys=True, default=_tagged)
    return hashlib.sha256(told.encode("utf-8")).hexdigest()


_TAG = "\0kind"
"""No field of a data set has a name with a NUL."""


def _tagged(value: Any) -> dict[str, Any]:
    """A value that JSON has no form for, as an object; its inverse is `_untagged`."""
    kind, told = type(value).__name__, str(value)
    if isinstance(value, bytes):
        told = value.hex()
    elif isinstance(value, datetime.timedelta):
        told = str(value // datetime.timedelta(microseconds=1))
    elif not isinstance(value, decimal.Decimal):
        told = value.isoformat()
    return {_TAG: kind, "value": told}


_READ: dict[str, Callable[[str], Any]] = {
    "bytes": bytes.fromhex,
    "timedelta": lambda told: datetime.timedelta(microseconds=int(told)),
    "Decimal": decimal.Decimal,
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
}
"""What reads each kind of value back."""


def _untagged(row: dict[str, Any]) -> Any:
    return _READ[row[_TAG]](row["value"]) if _TAG in row else row


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
        if there := _called(path / stem):
            return there[0]
    raise InputError(
        f"benchmarks.{name}.data: {path} has no file for {leaf.name}, split {split!r} (such as "
        f"{stems[-1]}.jsonl or {stems[0]}.csv); add it"
        + (", or name the tasks that are there with only" if len(leaves) > 1 else "")
    )


def _called(stem: Path) -> list[Path]:
    """The files of items whose path is `stem` and a suffix; of the first kind first."""
    if not stem.parent.is_dir():
        return []
    named = [(file_format(path), path) for path in sorted(stem.parent.iterdir())]
    found = [
        (KINDS.index(form.kind), form.packed, path)
        for form, path in named
        if form.kind in KINDS and form.stem == stem.name and path.is_file()
    ]
    return [path for *_, path in sorted(found)]


def _wanted(leaf: Leaf, split: str) -> str:
    if split == leaf.split:
        return f"{leaf.name} is evaluated on it"
    return f"{leaf.name} draws its few-shot examples from the split {split!r}"


# --- what is in it ----------------------------------------------------------------------------


def _read(path: Path, leaf: Leaf) -> list[Row]:
    kind = file_format(path).kind
    if kind not in KINDS:
        raise InputError(
            f"{path} is of no known format; benchmark items are read from .jsonl, .ndjson, .json, "
            ".csv and .parquet files"
        )
    if kind == "csv":
        rows = mmlu_rows(path) if leaf.dataset in _MMLU else _csv_rows(path)
    else:
        rows = read_objects(path)
    if kind == "parquet":
        rows = [{k: _plain(v, f"{path}, field {k!r}") for k, v in row.items()} for row in rows]
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
    return _columns(rows, path)


def _columns(rows: Sequence[Row], path: Path) -> list[Row]:
    """The items with the fields of all of them, None where one has not, each of one kind."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        try:
            pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(
                f"{path}: the field {name!r} is not of one kind in all items ({reason}); give it "
                "one, or leave it out"
            ) from error
    return _filled(rows)


def _filled(rows: Sequence[Row]) -> list[Row]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


_KEPT = (type(None), bool, int, float, str, bytes, decimal.Decimal, datetime.date, datetime.time)


def _plain(value: Any, where: str) -> Any:
    """A value of a parquet file as Python's own; moments with a zone are told in UTC."""
    if isinstance(value, dict):
        return {name: _plain(each, where) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, where) for each in value]
    if hasattr(value, "to_pydatetime"):  # pandas', whose nanoseconds Python's have not
        value = value.to_pydatetime(warn=False)
    elif hasattr(value, "to_pytimedelta"):
        value = value.to_pytimedelta()
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return value.astimezone(datetime.UTC)
    if isinstance(value, uuid.UUID):
        return str(value)
    if not isinstance(value, (*_KEPT, datetime.timedelta)):
        raise InputError(f"{where} holds a {type(value).__name__}; leave that field out")
    return value


def _csv_rows(path: Path) -> list[Row]:
    lines = _table(path)
    if lines and len(set(lines[0])) < len(lines[0]):
        twice = next(name for name in lines[0] if lines[0].count(name) > 1)
        raise InputError(f"{path} has two columns {twice!r}; rename one")
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
