"""lm-evaluation-harness on a model in memory: its tasks, prompts, metrics and standard errors.

What is ours is where local items come from (`Task`) and how answers are read (`Model`). This
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
from lm_eval.api.registry import METRIC_REGISTRY
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.task import TaskConfig
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory

from fortifai.data.tokens import SpecialTokens, beginning, check_template, put_before
from fortifai.errors import InputError, kind_and_reason, nearest
from fortifai.evals.benchmarks import Benchmark
from fortifai.evals.benchmarks_data import Rows
from fortifai.models.continuations import continuation_log_prob
from fortifai.models.generation import side_by_side
from fortifai.models.training import random_state_kept

PYTHON_SEED, SEED = 0, 1234
"""The seeds of the harness's command; few-shot examples are drawn with the second."""

TASKS = Path(lm_eval.tasks.__file__).parent
"""The tasks of the harness, in folders."""

WHOLE = ("blimp", "mmlu")
"""Folders whose groups are of their own tasks alone, which not all groups are."""


@contextlib.contextmanager
def as_command() -> Iterator[None]:
    """Within: the seeds of the harness's command, no remarks of its own; then all is as before."""
    muted = logging.root.manager.disable
    with random_state_kept(), contextlib.redirect_stdout(io.StringIO()):
        logging.disable(logging.WARNING)
        random.seed(PYTHON_SEED)
        np.random.seed(SEED)  # noqa: NPY002 - tasks draw from it
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            logging.disable(muted)


# --- tasks ------------------------------------------------------------------------------------


class Task(ConfigurableTask):  # type: ignore[misc]  # the harness has no types
    """A task of the harness that is known by its configuration, and made when it gets its items."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = TaskConfig(**{k: v for k, v in config.items() if k != "class"})
        self._choices: dict[str, Any] = {}

    def start(self, rows: Mapping[str, Any] | None) -> None:
        """Make it with local items by split; None has it fetch its own data set."""
        if rows is not None:
            sets = {split: datasets.Dataset(table) for split, table in rows.items()}
            # few-shot examples are listed even where none are drawn
            whole = collections.defaultdict(lambda: next(iter(sets.values())), sets)
            self.config.custom_dataset = lambda **_: whole
        super().__init__(config=vars(self.config))

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

    @property
    def splits(self) -> tuple[str, ...]:
        """The split that is evaluated, and the one that few-shot examples are drawn from."""
        told, fewshot = self.config, self.config.fewshot_config
        evaluated = told.test_split or told.validation_split
        drawn = fewshot.split or told.training_split or told.validation_split or evaluated
        draws = told.num_fewshot and (fewshot.split or not fewshot.samples)
        return tuple(dict.fromkeys((evaluated, drawn) if draws else (evaluated,)))

    def set(self, benchmark: Benchmark) -> None:
        """Put the settings of a benchmark into the configuration, or raise `InputError`."""
        for fault in self._faults(benchmark):
            raise InputError(f"benchmarks.{benchmark.name}{fault}")
        told, shots = self.config, benchmark.num_fewshot
        if benchmark.max_gen_toks:
            told.generation_kwargs |= {"max_gen_toks": benchmark.max_gen_toks}
        told.num_fewshot = (told.num_fewshot or 0) if shots is None else shots

    def _faults(self, benchmark: Benchmark) -> Iterator[str]:
        told, name, asked = self.config, self.task_name, benchmark
        if asked.num_fewshot and told.num_fewshot == 0:
            what = f"is {asked.num_fewshot}; {name} is defined without examples"
            yield f".num_fewshot {what}, so leave it out"
        if asked.apply_chat_template and told.output_type == "loglikelihood_rolling":
            yield f".apply_chat_template: {name} reads whole texts, not prompts; leave it out"
        if asked.max_gen_toks and told.output_type != "generate_until":
            yield f".max_gen_toks: {name} has the model write nothing; leave it out"
        if asked.data is None:
            return
        if told.custom_dataset or not told.dataset_path:
            yield (
                f": {name} takes its items from code of its own, so local files cannot stand in "
                "for them; write hub: true and no data"
            )
        for metric in () if told.process_results else told.metric_list or ():
            known = callable(metric["metric"]) or metric["metric"] in METRIC_REGISTRY
            if metric.get("hf_evaluate") or not known:
                yield (
                    f": the metric {metric['metric']!r} of {name} is fetched from the hub; write "
                    "hub: true and no data"
                )
        if not self.splits[0]:
            yield f": lm-evaluation-harness names no split of {name} to evaluate"


@dataclasses.dataclass(frozen=True)
class Built:
    """A benchmark as tasks and groups of the harness, by name."""

    benchmark: Benchmark
    tasks: dict[str, Any]
    groups: Mapping[str, Group]


def find(benchmark: Benchmark) -> Built:
    """The tasks and groups of a benchmark, without their items, or `InputError`."""
    name, key = benchmark.name, f"benchmarks.{benchmark.name}"
    manager = _manager(name)
    index = manager.task_index
    if name not in index:
        raise InputError(
            f"{key}: lm-evaluation-harness knows no task {name!r}{nearest(name, index)}; "
            "`lm_eval ls tasks` lists them"
        )
    with _telling(benchmark, name, local=False):
        # what a group is overridden with, all its tasks are: here, their class
        found = TaskFactory().build(index[name], overrides={"class": Task}, registry=index)
        loaded = manager.load(found if isinstance(found, list) else [found])
    tasks, groups = loaded["tasks"], loaded["groups"]
    held = {each: {task.task_name for task in g.get_all_tasks()} for each, g in groups.items()}
    held |= {each: {each} for each in tasks}
    within = {each.removeprefix(f"{name}_"): held[each] for each in held if each != name}
    wanted = [each.removeprefix(f"{name}_") for each in benchmark.only]
    for each in set(wanted) - within.keys():
        raise InputError(
            f"{key}.only: there is no {each!r} in {name}{nearest(each, within)}"
            + ("" if within else "; it is a single task, so leave only out")
        )
    kept = set().union(*(within[each] for each in wanted)) if wanted else set(tasks)
    for group in groups.values():
        for child in group.child_names:
            if not kept & held[child]:
                group.pop(child)
    tasks = {each: task for each, task in tasks.items() if each in kept}
    for task in tasks.values():
        task.set(benchmark)
    # members before their groups, which get from them whether higher is better
    return Built(benchmark, tasks, {g: groups[g] for g in reversed(groups) if len(groups[g])})


def _manager(name: str) -> TaskManager:
    """What knows a task by its name: the tasks of one folder of the harness, or of all.

    Reading all 14,000 takes a quarter of a minute, so that a task is first looked for in the
    folder that is named as it is, or as it begins.
    """
    parts = name.split("_")
    for count in range(len(parts), 0, -1):
        folder = "_".join(parts[:count])
        if folder in _folders():
            found = _tasks_in(folder).task_index.get(name)
            if found and (found.kind.name.endswith("TASK") or folder in WHOLE):
                return _tasks_in(folder)
    return _tasks_in("")


@functools.cache
def _folders() -> frozenset[str]:
    return frozenset(path.name for path in TASKS.iterdir() if path.is_dir())


@functools.cache
def _tasks_in(folder: str) -> TaskManager:
    return TaskManager(include_defaults=False, include_path=str(TASKS / folder))


def start(built: Built, rows: Rows | None) -> Built:
    """Give the tasks their items, for None those that the harness fetches, or `InputError`."""
    # progress is shown only where something is fetched
    quiet = contextlib.nullcontext() if rows is None else contextlib.redirect_stderr(io.StringIO())
    manager = _manager(built.benchmark.name)
    for name, task in built.tasks.items():
        entry = manager.task_index.get(name)
        with quiet, _telling(built.benchmark, name, local=rows is not None):
            if entry and entry.kind.name == "PY_TASK":  # it has a class of its own
                own = manager.load([name])["tasks"][name]
                own.set_config("num_fewshot", task.config.num_fewshot)
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
        told, key = kind_and_reason(error), f"benchmarks.{benchmark.name}"
        raise InputError(
            f"{key}.data does not hold what {task} needs ({told}); give items with the fields of "
            "its data set on the hub"
            if local
            else f"{key}: {task} or its data set on the hub could not be had ({told}); see to the "
            "network and to what it needs, or give local files with data"
        ) from error


# --- the model --------------------------------------------------------------------------------


class Model(HFLM):  # type: ignore[misc]  # the harness has no types
    """The harness's own model class, which reads what several answers share only once.

    Args:
        model: A transformers model.
        tokenizer: Its tokenizer; a copy is used, since the harness may give it a pad token.
        special: Its special tokens.
        tick: Told how many of how many sequences are done.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        special: SpecialTokens,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
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
        self.tick = tick
        self.sums_suffice = False
        """No metric asks whether an answer is what greedy decoding would have written."""
        self.set_cache_hook(self)

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """Count an answer, of which the harness tells its cache."""
        self.done += 1
        self.tick(self.done, self.total)

    def loglikelihood(self, requests: list[Any], **_: Any) -> Any:
        """Summed log p (nats) of each continuation, and whether greedy decoding writes it."""
        self.done, self.total = 0, len(requests)
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> Any:
        """Summed log p (nats) of whole texts; see the harness."""
        self.done, self.total = 0, len(requests)
        # in larger batches it takes equal windows of two texts, cut at other places, for the same
        self.batch_size_per_gpu = 1
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], **_: Any) -> Any:
        """Texts written after prompts; see the harness."""
        self.done, self.total = 0, len(requests)
        self.batch_size_per_gpu = side_by_side(self.model, self.max_length)
        return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Sequence[Any], *_: Any, **__: Any) -> list[Any]:
        """The same of (texts, context tokens, continuation tokens), or `InputError`."""
        longest = self.max_length + 1  # the last token is only predicted, never read
        cut = [((head + tail)[-longest:], len(tail)) for _, head, tail in requests]
        # in half precision the harness rounds each log p, and rounding may decide an answer
        if not self.sums_suffice or self.model.dtype != torch.float32:
            each = 4 * max(len(ids) for ids, _ in cut) * len(self.tokenizer)
            self.batch_size_per_gpu = max(1, min(64, 256 * 2**20 // each))  # 256 MiB of logits
            return list(super()._loglikelihood_tokens(requests, disable_tqdm=True))
        sums = continuation_log_prob(self.model, cut, self.tick)
        if np.isnan(sums).any():
            raise InputError(
                "the model gives no log-probability (NaN) for a benchmark; its weights are not "
                "finite, so load or train another"
            )
        return [(total, False) for total in sums]


class Ruler(Model):
    """Gives of each answer not its log p, but how many tokens it and what stands before it have."""

    def _loglikelihood_tokens(self, requests: Sequence[Any], *_: Any, **__: Any) -> list[Any]:
        return [(len(head), len(tail)) for _, head, tail in requests]


# --- asking it --------------------------------------------------------------------------------


def check(built: Built, lm: Ruler) -> list[str]:
    """What is cut for a model of this length and tokenizer, or `InputError`: it cannot be asked."""
    benchmark, key, most = built.benchmark, f"benchmarks.{built.benchmark.name}", lm.max_length
    chat = benchmark.apply_chat_template
    if chat:
        check_template(lm.tokenizer, benchmark.chat_template_args, key=f"{key}.apply_chat_template")
    _prepare(built, lm)
    asked = []
    for name, task in built.tasks.items():
        with _telling(benchmark, name):
            task.build_all_requests(
                limit=benchmark.limit,
                apply_chat_template=chat,
                fewshot_as_multiturn=True,
                chat_template=lm.apply_chat_template if chat else None,
            )
        asked += task.instances
    sizes = []
    for context, answer in lm.loglikelihood(
        [r for r in asked if r.request_type == "loglikelihood"]
    ):
        if not 0 < answer <= most:
            raise InputError(
                f"{key}: an answer has {answer} tokens and the model reads {most} at most; use a "
                "model with more positions"
            )
        sizes.append(context + answer - 1)
    for prompt, how in (r.args for r in asked if r.request_type == "generate_until"):
        new = normalize_gen_kwargs(how, lm.max_gen_toks)["max_gen_toks"]
        if new >= most:
            raise InputError(
                f"{key}: an answer is up to {new} tokens long and the model has {most} positions, "
                "prompt included; set max_gen_toks lower or use a model with more positions"
            )
        sizes.append(len(lm.tok_encode(prompt)) + new)
    cut = sum(size > most for size in sizes)
    note = (
        f"benchmark {benchmark.name}: {cut:,} of {len(sizes):,} prompts with their answers are "
        f"longer than the model's {most} positions; they lose their beginning, as in "
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
