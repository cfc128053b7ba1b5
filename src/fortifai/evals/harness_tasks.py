"""The tasks of lm-evaluation-harness, with local items in place of the hub's.

Names, groups and tags are the harness's, and so are the task objects; only what they read may be
ours. This module imports the harness, so it is imported where a benchmark is asked for.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import lm_eval.tasks
from lm_eval.api.group import Group
from lm_eval.api.registry import METRIC_REGISTRY
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import GroupConfig
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from fortifai.data.files import Row
from fortifai.errors import InputError, nearest
from fortifai.evals.benchmarks_data import Benchmark, Leaf, Rows
from fortifai.evals.harness_process import as_its_command, muted

GROUP_FIELDS = frozenset(field.name for field in dataclasses.fields(GroupConfig))
SINGLE_FOLDERS = ("blimp", "hellaswag", "gsm8k", "mmlu")
"""Folders whose tasks stand in them alone: reading all 14,000 of the harness takes seconds."""


# --- which tasks ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TaskNode:
    """A task of the harness: its name, and its configuration with what groups add to it."""

    name: str
    config: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class GroupNode:
    """A group of the harness, which takes the mean over its members."""

    name: str
    config: Mapping[str, Any]
    members: tuple[TaskNode | GroupNode, ...]

    @property
    def leaves(self) -> tuple[TaskNode, ...]:
        """The tasks in it, those of inner groups included."""
        return tuple(leaf for member in self.members for leaf in _leaves(member))


Node = TaskNode | GroupNode


def find(benchmark: Benchmark) -> tuple[Node, ...]:
    """The tasks and groups of a benchmark; several where its name is a tag.

    Raises:
        InputError: The harness has no such task, or no such one within it.
    """
    name = benchmark.name
    index = _index_for(name)
    if name not in index:
        raise InputError(
            f"benchmarks.{name}: lm-evaluation-harness knows no task {name!r}"
            f"{nearest(name, index)}; `lm_eval ls tasks` lists them"
        )
    try:
        nodes = _expand(name, {}, index, frozenset())
    except (ImportError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"benchmarks.{name}: lm-evaluation-harness cannot set it up ({told(error)}); install "
            "what it needs or leave it out"
        ) from error
    return _only(benchmark, nodes) if benchmark.only else nodes


def _index_for(name: str) -> Mapping[str, Any]:
    for folder in SINGLE_FOLDERS:
        if name == folder or name.startswith(f"{folder}_"):
            index = _index(folder)
            if name in index:
                return index
    return _index("")


def _index(folder: str) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], _manager(folder).task_index)


@functools.cache
def _manager(folder: str) -> TaskManager:
    """What knows the tasks of one folder of the harness, or of all."""
    with muted():
        if not folder:
            return TaskManager()
        path = Path(lm_eval.tasks.__file__).parent / folder
        return TaskManager(include_defaults=False, include_path=str(path))


def _expand(
    name: str, overrides: Mapping[str, Any], index: Mapping[str, Any], above: frozenset[str]
) -> tuple[Node, ...]:
    if name in above:
        raise ValueError(f"the group {name!r} holds itself")
    entry = index[name]
    kind = entry.kind.name
    if kind == "TAG":
        names = sorted(entry.tags)
        return tuple(node for n in names for node in _expand(n, overrides, index, above | {name}))
    own = load_yaml(entry.yaml_path) if entry.yaml_path else dict(entry.cfg or {})
    if kind == "GROUP":
        return (_group(name, {**own, **overrides}, index, above | {name}),)
    return (TaskNode(name, {**own, **overrides, "task": name}),)


def _group(
    name: str, config: Mapping[str, Any], index: Mapping[str, Any], above: frozenset[str]
) -> GroupNode:
    inherited = {k: v for k, v in config.items() if k not in GROUP_FIELDS}
    members: list[Node] = []
    listed = config.get("task") or ()
    for item in [listed] if isinstance(listed, str) else listed:
        if isinstance(item, str):
            members += _expand(item, inherited, index, above)
        elif "group" in item and item["group"] not in index:
            members.append(_group(f"{name}::{item['group']}", {**inherited, **item}, index, above))
        else:
            inner = {k: v for k, v in item.items() if k not in ("group", "task")}
            members += _expand(item.get("group") or item["task"], inherited | inner, index, above)
    own = {k: v for k, v in config.items() if k in GROUP_FIELDS} | {"group": name}
    return GroupNode(name, own, tuple(members))


def _leaves(node: Node) -> tuple[TaskNode, ...]:
    return (node,) if isinstance(node, TaskNode) else node.leaves


def _only(benchmark: Benchmark, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """The tasks and groups named in `only`, by full or short name."""
    known: set[str] = set()
    for node in nodes:
        known |= _short_names(node, benchmark.name)
    known -= {benchmark.name}
    for wanted in benchmark.only:
        if wanted.removeprefix(f"{benchmark.name}_") not in known:
            raise InputError(
                f"benchmarks.{benchmark.name}.only: there is no {wanted!r} in {benchmark.name}"
                f"{nearest(wanted, known)}"
                + ("" if known else "; it is a single task, so leave only out")
            )
    wanted_short = {name.removeprefix(f"{benchmark.name}_") for name in benchmark.only}
    kept = (_prune(node, benchmark.name, wanted_short) for node in nodes)
    return tuple(node for node in kept if node is not None)


def _short_names(node: Node, above: str) -> set[str]:
    own = {node.name.removeprefix(f"{above}_")}
    if isinstance(node, TaskNode):
        return own
    return own.union(*(_short_names(member, above) for member in node.members))


def _prune(node: Node, above: str, wanted: set[str]) -> Node | None:
    if node.name.removeprefix(f"{above}_") in wanted:
        return node
    if isinstance(node, TaskNode):
        return None
    members = tuple(m for member in node.members if (m := _prune(member, above, wanted)))
    return dataclasses.replace(node, members=members) if members else None


# --- tasks with their data --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Built:
    """A benchmark ready to be evaluated.

    Attributes:
        benchmark: What was asked for.
        tasks: The harness's tasks by name, in their order.
        groups: Its groups by name.
    """

    benchmark: Benchmark
    tasks: Mapping[str, Any]
    groups: Mapping[str, Group]

    @property
    def items(self) -> int:
        """Items that are evaluated, over all tasks."""
        sizes = (len(task.task_docs) for task in self.tasks.values())
        return sum(min(size, self.benchmark.limit or size) for size in sizes)


def leaves(benchmark: Benchmark, nodes: Sequence[Node]) -> list[Leaf]:
    """What data the tasks of a benchmark read.

    Raises:
        InputError: One takes them from code of its own, or `num_fewshot` is not for it to set.
    """
    return [_leaf(task, benchmark) for node in nodes for task in _leaves(node)]


def _leaf(node: TaskNode, benchmark: Benchmark) -> Leaf:
    config, name = node.config, benchmark.name
    if "class" in config or config.get("custom_dataset") or not config.get("dataset_path"):
        raise InputError(
            f"benchmarks.{name}: {node.name} takes its items from code of its own, so local files "
            "cannot stand in for them; write hub: true and no data"
        )
    shots = _shots(node, benchmark)
    split = config.get("test_split") or config.get("validation_split")
    if not split:
        raise InputError(
            f"benchmarks.{name}: lm-evaluation-harness names no split of {node.name} to evaluate"
        )
    examples = None
    fewshot = config.get("fewshot_config") or {}
    if shots and not fewshot.get("samples"):
        order = (fewshot.get("split"), config.get("fewshot_split"), config.get("training_split"))
        examples = next(filter(None, (*order, config.get("validation_split"), split)))
    return Leaf(node.name, config["dataset_path"], config.get("dataset_name"), split, examples)


def _shots(node: TaskNode, benchmark: Benchmark) -> int:
    own, asked = node.config.get("num_fewshot"), benchmark.num_fewshot
    if own == 0 and asked:
        raise InputError(
            f"benchmarks.{benchmark.name}.num_fewshot is {asked}, and {node.name} is defined "
            "without examples; leave it out"
        )
    return int(own or 0) if asked is None else asked


def build(benchmark: Benchmark, nodes: Sequence[Node], rows: Rows | None) -> Built:
    """The harness's tasks with their data.

    Args:
        benchmark: What was asked for.
        nodes: From `find`.
        rows: Local items; None to let the harness fetch its own data set.

    Raises:
        InputError: The items are not what the task needs, or cannot be fetched.
    """
    tasks: dict[str, Any] = {}
    groups: dict[str, Group] = {}

    def add(node: Node) -> Any:
        if isinstance(node, TaskNode):
            tasks[node.name] = _task(node, benchmark, None if rows is None else rows[node.name])
            return tasks[node.name]
        group = groups[node.name] = Group.from_config(dict(node.config))
        for member in node.members:
            group.add(add(member))
        return group

    with as_its_command(bars=rows is None):
        for node in nodes:
            add(node)
    return Built(benchmark, tasks, groups)


def _task(node: TaskNode, benchmark: Benchmark, rows: Mapping[str, list[Row]] | None) -> Any:
    config = {k: v for k, v in node.config.items() if k not in ("tag", "group", "task_list")}
    shots = _shots(node, benchmark)
    if rows is not None:
        _check_metrics(node, benchmark)
        config = _local(config, rows)
    try:
        if "class" in config:
            task = _manager("").load([node.name])["tasks"][node.name]
        else:
            task = ConfigurableTask(config=copy.copy(config))
        if rows is not None and task.config.process_docs is not None:
            _process_once(task)
    except Exception as error:
        # a task's configuration is code: what it raises on foreign items is anything
        if rows is None:
            raise InputError(
                f"benchmarks.{benchmark.name}: the data set of {node.name} could not be had from "
                f"the hub ({told(error)}); see to the network, or give local files with data"
            ) from error
        raise foreign(benchmark, node.name, error) from error
    task.set_config(key="num_fewshot", value=shots)
    if benchmark.apply_chat_template and task.config.output_type == "loglikelihood_rolling":
        raise InputError(
            f"benchmarks.{benchmark.name}.apply_chat_template: {node.name} reads whole texts and "
            "has no prompts; leave it out"
        )
    if benchmark.max_gen_toks is not None:
        if task.config.output_type != "generate_until":
            raise InputError(
                f"benchmarks.{benchmark.name}.max_gen_toks: {node.name} has the model write "
                "nothing; leave it out"
            )
        wanted = {"max_gen_toks": benchmark.max_gen_toks}
        task.set_config(key="generation_kwargs", value=wanted, update=True)
    return task


def _check_metrics(node: TaskNode, benchmark: Benchmark) -> None:
    """The harness fetches a metric that it does not know from the hub, which nobody asked for."""
    if callable(node.config.get("process_results")):
        return
    for metric in node.config.get("metric_list") or ():
        name = metric["metric"]
        if metric.get("hf_evaluate") or (isinstance(name, str) and name not in METRIC_REGISTRY):
            raise InputError(
                f"benchmarks.{benchmark.name}: the metric {name!r} of {node.name} is fetched from "
                "the hub; write hub: true and no data"
            )


def _local(config: Mapping[str, Any], rows: Mapping[str, list[Row]]) -> dict[str, Any]:
    """A task's configuration with local items, and without the splits that are not there."""
    out = dict(config)

    def local(**_: Any) -> Any:
        # not from_list, which takes the fields of the first item for those of all
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict({k: [i[k] for i in items] for k in items[0]})
                for split, items in rows.items()
            }
        )

    out["custom_dataset"] = local
    for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if out.get(key) not in rows:
            out[key] = None
    fewshot = out.get("fewshot_config")
    if isinstance(fewshot, Mapping) and fewshot.get("split") not in rows:
        out["fewshot_config"] = {k: v for k, v in fewshot.items() if k != "split"}
    return out


def _process_once(task: Any) -> None:
    """Prepare documents now; the harness would do it each time that it looks at them."""
    split = task.config.test_split or task.config.validation_split
    task.dataset[split] = task.task_docs
    task.config.process_docs = None


def foreign(benchmark: Benchmark, task: str, error: Exception) -> InputError:
    """Local items on which a task's own code failed, told as bad input."""
    return InputError(
        f"benchmarks.{benchmark.name}.data does not hold what {task} needs ({told(error)}); give "
        "items with the fields of its data set on the hub"
    )


def told(error: BaseException) -> str:
    """An error's kind and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
