"""lm-evaluation-harness on a model in memory: its tasks, prompts, metrics and standard errors.

What is ours is where local items come from (`Task`) and how sequences are read (`Model`). This
module imports the harness, so it is imported where a benchmark is asked for.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import functools
import io
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.api.group import Group
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import METRIC_REGISTRY
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.task import TaskConfig
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from fortifai.data.tokens import SpecialTokens, beginning, check_template, put_before
from fortifai.errors import InputError, nearest
from fortifai.evals.benchmarks_data import Benchmark, Rows, Source
from fortifai.models import generation
from fortifai.models.continuations import continuation_log_prob

PYTHON_SEED, SEED = 0, 1234
"""The seeds of the harness's command; few-shot examples are drawn with the second."""

FOLDERS = ("blimp", "hellaswag", "gsm8k", "mmlu")
"""Folders whose tasks stand in them alone: reading all 14,000 of the harness takes seconds."""

Tick = Callable[[int, int], None]


@contextlib.contextmanager
def as_command() -> Iterator[None]:
    """Within: the seeds of the harness's command, no remarks of its own; then all is as before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - tasks draw from it
    muted = logging.root.manager.disable
    logging.disable(logging.WARNING)
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices), contextlib.redirect_stdout(io.StringIO()):
        random.seed(PYTHON_SEED)
        np.random.seed(SEED)  # noqa: NPY002
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            logging.disable(muted)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


# --- tasks ------------------------------------------------------------------------------------


class Task(ConfigurableTask):  # type: ignore[misc]  # the harness has no types
    """A task of the harness: known by its whole configuration, made when it gets its items."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.given = {key: value for key, value in config.items() if key != "class"}
        self._config = TaskConfig(task=config["task"])
        self._choices: dict[str, Any] = {}

    def start(self, rows: Mapping[str, Any] | None) -> None:
        """Make it with local items by split; None has it fetch its own data set."""
        self._rows = rows
        super().__init__(config=dict(self.given))

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Make the data set; called by `start`."""
        if self._rows is None:
            super().download(dataset_kwargs, **kwargs)
            return
        sets = {split: datasets.Dataset(table) for split, table in self._rows.items()}
        evaluated = next(iter(sets.values()))
        # the harness lists few-shot examples even where none are drawn
        self.dataset = collections.defaultdict(lambda: evaluated, sets)

    @functools.cached_property
    def eval_docs(self) -> Any:
        """The items; the harness would prepare them each time that it looks at them."""
        return super().eval_docs

    def doc_to_choice(self, doc: Any, doc_to_choice: Any = None) -> Any:
        """The answers of an item; the harness would compile its template three times for each."""
        key = repr((doc, doc_to_choice))
        if key not in self._choices:
            self._choices[key] = super().doc_to_choice(doc, doc_to_choice)
        return self._choices[key]

    def build_all_requests(self, **kwargs: Any) -> None:
        """Write the prompts, without a progress bar."""
        with contextlib.redirect_stderr(io.StringIO()):
            super().build_all_requests(**kwargs)

    def set(self, benchmark: Benchmark) -> None:
        """Put the settings of a benchmark into the configuration.

        Raises:
            InputError: One is not for this task.
        """
        key, name, told = f"benchmarks.{benchmark.name}", self.task_name, self.given
        own, asked, kind = told.get("num_fewshot"), benchmark.num_fewshot, told.get("output_type")
        if own == 0 and asked:
            raise InputError(
                f"{key}.num_fewshot is {asked}; {name} is defined without examples, so leave it out"
            )
        if benchmark.apply_chat_template and kind == "loglikelihood_rolling":
            raise InputError(
                f"{key}.apply_chat_template: {name} reads whole texts, not prompts; leave it out"
            )
        most = benchmark.max_gen_toks
        if most is not None and kind not in (None, "generate_until"):
            raise InputError(
                f"{key}.max_gen_toks: {name} has the model write nothing; leave it out"
            )
        if most is not None:
            how = TaskConfig(**told).generation_kwargs
            told["generation_kwargs"] = {**how, "max_gen_toks": most}
        told["num_fewshot"] = int(own or 0) if asked is None else asked

    def source(self, key: str) -> Source:
        """Which local data it reads; `key` is what asks for it, in messages.

        Raises:
            InputError: It takes its items or a metric from elsewhere, or evaluates no split.
        """
        told, name = self.given, self.task_name
        if told.get("custom_dataset") or not told.get("dataset_path"):
            raise InputError(
                f"{key}: {name} takes its items from code of its own, so local files cannot stand "
                "in for them; write hub: true and no data"
            )
        for metric in () if told.get("process_results") else told.get("metric_list") or ():
            called = metric["metric"]
            own = callable(called) or called in METRIC_REGISTRY
            if metric.get("hf_evaluate") or not own:
                raise InputError(
                    f"{key}: the metric {called!r} of {name} is fetched from the hub; write hub: "
                    "true and no data"
                )
        evaluated = told.get("test_split") or told.get("validation_split")
        if not evaluated:
            raise InputError(f"{key}: lm-evaluation-harness names no split of {name} to evaluate")
        splits, fewshot = {evaluated: None}, told.get("fewshot_config") or {}
        if told["num_fewshot"] and not fewshot.get("samples"):
            kinds = ("fewshot_split", "training_split", "validation_split")
            named = (fewshot.get("split"), *map(told.get, kinds), evaluated)
            splits[next(filter(None, named))] = None
        return Source(name, told["dataset_path"], told.get("dataset_name"), tuple(splits))


@dataclasses.dataclass(frozen=True)
class Built:
    """A benchmark as tasks and groups of the harness, by name."""

    benchmark: Benchmark
    tasks: dict[str, Any]
    groups: Mapping[str, Group]


def find(benchmark: Benchmark) -> Built:
    """The tasks and groups of a benchmark, without their items.

    Raises:
        InputError: There is no such task, or none such within it, or a setting is not for one.
    """
    name, key = benchmark.name, f"benchmarks.{benchmark.name}"
    index = _manager(name).task_index
    if name not in index:
        raise InputError(
            f"{key}: lm-evaluation-harness knows no task {name!r}{nearest(name, index)}; "
            "`lm_eval ls tasks` lists them"
        )
    with _telling(benchmark, name, local=False):
        tasks, groups = _load(name)
    held = {each: {task.task_name for task in g.get_all_tasks()} for each, g in groups.items()}
    held |= {each: {each} for each in tasks}
    short = {each: each.removeprefix(f"{name}_") for each in held}
    wanted = {each.removeprefix(f"{name}_") for each in benchmark.only}
    known = set(short.values()) - {name}
    for each in wanted - known:
        raise InputError(
            f"{key}.only: there is no {each!r} in {name}{nearest(each, known)}"
            + ("" if known else "; it is a single task, so leave only out")
        )
    kept = {task for each in held if not wanted or short[each] in wanted for task in held[each]}
    for group in groups.values():
        for child in group.child_names:
            if not kept & held[child]:
                group.pop(child)
    # members before their groups, which get from them whether higher is better
    groups = {each: group for each, group in reversed(groups.items()) if len(group)}
    built = Built(benchmark, {each: t for each, t in tasks.items() if each in kept}, groups)
    for task in built.tasks.values():
        task.set(benchmark)
    return built


def _load(name: str) -> tuple[dict[str, Any], dict[str, Group]]:
    """Tasks, each as `Task`, and groups, as the harness puts them together."""
    manager = _manager(name)
    entry = manager.task_index[name]
    word = "group" if entry.kind.name == "GROUP" else "task"
    names = sorted(entry.tags) if entry.kind.name == "TAG" else [name]
    # what a group sets, all its tasks get: here, their class
    config = {"group": "", "task": [{word: each, "class": Task} for each in names]}
    own = dataclasses.replace(entry, name="", kind=type(entry.kind).GROUP, yaml_path=None)
    manager.task_index[""] = dataclasses.replace(own, cfg=config)
    try:
        found = manager.load([""])
    finally:
        del manager.task_index[""]
    del found["groups"][""]
    return found["tasks"], found["groups"]


def _manager(name: str) -> TaskManager:
    """What knows a task by its name: the tasks of one folder of the harness, or of all."""
    folder = name.split("_")[0]
    known = folder in FOLDERS and name in _tasks_in(folder).task_index
    return _tasks_in(folder if known else "")


@functools.cache
def _tasks_in(folder: str) -> TaskManager:
    where = str(Path(lm_eval.tasks.__file__).parent / folder)
    return TaskManager(include_defaults=not folder, include_path=where if folder else None)


def start(built: Built, rows: Rows | None) -> Built:
    """Give the tasks their local items, or for None have the harness fetch them.

    Raises:
        InputError: The items are not what a task needs, or cannot be fetched.
    """
    # progress is shown only where something is fetched
    quiet = contextlib.nullcontext() if rows is None else contextlib.redirect_stderr(io.StringIO())
    for name, task in built.tasks.items():
        entry = _manager(built.benchmark.name).task_index.get(name)
        with quiet, _telling(built.benchmark, name, local=rows is not None):
            if entry and entry.kind.name == "PY_TASK":  # it has a class of its own
                own = _manager(built.benchmark.name).load([name])["tasks"][name]
                own.set_config("num_fewshot", task.given["num_fewshot"])
                built.tasks[name] = own
            else:
                task.start(rows and rows[name])
    return built


@contextlib.contextmanager
def _telling(benchmark: Benchmark, task: str, *, local: bool = True) -> Iterator[None]:
    """Within: what a task's own code raises, which may be anything, is told as bad input."""
    try:
        yield
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0][:200]
        told, key = f"{type(error).__name__}: {line}", f"benchmarks.{benchmark.name}"
        raise InputError(
            f"{key}.data does not hold what {task} needs ({told}); give items with the fields of "
            "its data set on the hub"
            if local
            else f"{key}: {task} or its data set on the hub could not be had ({told}); see to the "
            "network and to what it needs, or give local files with data"
        ) from error


# --- the model --------------------------------------------------------------------------------


class _Progress(CacheHook):  # type: ignore[misc]  # the harness has no types
    """Told by the harness of each answer."""

    def __init__(self, tick: Tick, total: int) -> None:
        super().__init__(None)
        self.tick, self.total, self.done = tick, total, 0

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """Count one."""
        self.done += 1
        self.tick(self.done, self.total)


class Model(HFLM):  # type: ignore[misc]  # the harness has no types
    """The harness's own model class, which reads what several answers share only once.

    Args:
        model: A transformers model.
        tokenizer: Its tokenizer; a copy is used, since the harness may give it a pad token.
        special: Its special tokens.
        tick: Told how many of how many sequences are done.
    """

    def __init__(self, model: Any, tokenizer: Any, special: SpecialTokens, tick: Tick) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=beginning(copy.deepcopy(tokenizer), special),
            batch_size=1,
            # it reads answers that are one text, but for where they begin, at the wrong tokens
            logits_cache=False,
            # None: what the harness does by default, which is what the tokenizer does
            add_bos_token=None if special.bos == put_before(tokenizer) else special.bos is not None,
            # None: the harness's own choice
            prefix_token_id=special.bos,
        )
        self._tick = tick
        self.sums_suffice = False
        """No metric asks whether an answer is what greedy decoding would have written."""

    def encode(self, requests: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
        """(context, continuation) tokens of each request, as the harness encodes them."""
        out = []
        for context, continuation in (request.args for request in requests):
            if context:
                out.append(self._encode_pair(context, continuation))
            else:
                ids = self.tok_encode(continuation, add_special_tokens=False)
                begun = ids[:1] == [self.prefix_token_id]
                out.append((ids[:1], ids[1:]) if begun else ([self.prefix_token_id], ids))
        return out

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """Summed log p (nats) of each continuation, and whether it is what greedy decoding writes.

        Raises:
            InputError: One is not a number.
        """
        encoded = self.encode(requests)
        # in half precision the harness rounds each log p, and rounding may decide an answer
        if not self.sums_suffice or self.model.dtype != torch.float32:
            self._begin(len(requests), max(len(head) + len(tail) for head, tail in encoded))
            return list(super().loglikelihood(list(requests), disable_tqdm=True))
        longest = self.max_length + 1  # the last token is only predicted, never read
        cut = [((head + tail)[-longest:], len(tail)) for head, tail in encoded]
        sums = continuation_log_prob(self.model, cut, self._tick)
        if np.isnan(sums).any():
            raise InputError(
                "the model gives no log-probability (NaN) for a benchmark; its weights are not "
                "finite, so load or train another"
            )
        return [(total, False) for total in sums]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Summed log p (nats) of whole texts; see the harness."""
        self._begin(len(requests), self.max_length)
        # in larger batches it takes equal windows of two texts, cut at other places, for the same
        self.batch_size_per_gpu = 1
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars cannot be turned off
            return list(super().loglikelihood_rolling(list(requests), disable_tqdm=True))

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Texts written after prompts; see the harness."""
        self._begin(len(requests), self.max_length)
        self.batch_size_per_gpu = generation.side_by_side(self.model, self.max_length)
        return list(super().generate_until(list(requests), disable_tqdm=True))

    def _begin(self, total: int, width: int) -> None:
        """Count `total` answers, each read in at most `width` tokens, and choose the batch."""
        each = 4 * min(width, self.max_length) * len(self.tokenizer)
        self.batch_size_per_gpu = max(1, min(64, 256 * 2**20 // each))  # 256 MiB of logits
        self.set_cache_hook(_Progress(self._tick, total))


# --- asking it --------------------------------------------------------------------------------


def check(built: Built, lm: Model) -> list[str]:
    """Whether a model of this length and tokenizer can be asked; returns what is cut.

    Raises:
        InputError: An item is not what the task needs, or an answer does not fit the model.
    """
    benchmark, key = built.benchmark, f"benchmarks.{built.benchmark.name}"
    chat = benchmark.apply_chat_template
    if chat:
        check_template(lm.tokenizer, benchmark.chat_template_args, key=f"{key}.apply_chat_template")
    _prepare(built, lm)
    for name, task in built.tasks.items():
        with _telling(benchmark, name):
            task.build_all_requests(
                limit=benchmark.limit,
                apply_chat_template=chat,
                fewshot_as_multiturn=True,
                chat_template=lm.apply_chat_template if chat else None,
            )
    asked = [request for task in built.tasks.values() for request in task.instances]
    sizes = []
    for context, answer in lm.encode([r for r in asked if r.request_type == "loglikelihood"]):
        if not answer or len(answer) > lm.max_length:
            raise InputError(
                f"{key}: an answer has {len(answer)} tokens and the model reads {lm.max_length} at "
                "most; use a model with more positions"
            )
        sizes.append(len(context) + len(answer) - 1)
    for prompt, how in (r.args for r in asked if r.request_type == "generate_until"):
        new = normalize_gen_kwargs(how, lm.max_gen_toks)["max_gen_toks"]
        if new >= lm.max_length:
            raise InputError(
                f"{key}: an answer is up to {new} tokens long and the model has {lm.max_length} "
                "positions, prompt included; set max_gen_toks lower or use a model with more "
                "positions"
            )
        sizes.append(len(lm.tok_encode(prompt)) + new)
    cut = sum(size > lm.max_length for size in sizes)
    note = (
        f"benchmark {benchmark.name}: {cut:,} of {len(sizes):,} prompts with their answers are "
        f"longer than the model's {lm.max_length} positions; they lose their beginning, as in "
        "lm-evaluation-harness"
    )
    return [note] if cut else []


def evaluate(built: Built, lm: Model) -> dict[str, Any]:
    """The harness's results, with one record for each item, as its command would give them."""
    _prepare(built, lm)
    found = evaluator.evaluate(
        lm,
        {"tasks": dict(built.tasks), "groups": dict(built.groups)},
        limit=built.benchmark.limit,
        log_samples=True,
        apply_chat_template=built.benchmark.apply_chat_template,
        fewshot_as_multiturn=True,
    )
    return dict(found)


def _prepare(built: Built, lm: Model) -> None:
    lm.chat_template_args = dict(built.benchmark.chat_template_args)
    lm.sums_suffice = True
    for task in built.tasks.values():
        task.set_fewshot_seed(seed=SEED)  # drawn from in each evaluation
        told, metrics = task.config, {m.get("metric") for m in task.config.metric_list or ()}
        own = told.process_results is not None or "exact_match" in metrics
        lm.sums_suffice &= told.output_type == "multiple_choice" and not own
