"""Published benchmarks on a model in memory, through lm-evaluation-harness.

Prompts, metrics, group means and standard errors are the harness's own: the numbers are those that
its command gives on the saved model. Nothing is fetched unless a benchmark's `data` is None.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fortifai import files
from fortifai.data.tokens import SpecialTokens
from fortifai.errors import InputError
from fortifai.evals import benchmarks_data
from fortifai.evals.benchmarks_data import Benchmark, Rows
from fortifai.evals.score import Score

if TYPE_CHECKING:
    from fortifai.evals.harness import InMemory, Tick
    from fortifai.evals.harness_tasks import Built

__all__ = ["Benchmark", "Model", "Results", "Suite", "read", "run_benchmarks"]

CHANCE_METRICS = frozenset({"acc", "acc_norm", "acc_bytes"})
"""Metrics that guessing among the answers gets right once in as many times as there are answers."""

VERSION = 1
"""Of the form of cached results."""

NOT_COUNTED = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")
"""Parts of a configuration that saving writes into it, or that say nothing the weights do not."""


class Model(Protocol):
    """A causal language model that can score and write: `fortifai.models.causal_lm.CausalLM`."""

    @property
    def model(self) -> Any:
        """The transformers model."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        ...

    @property
    def special(self) -> SpecialTokens:
        """Its special tokens."""
        ...

    def sequence_log_prob(
        self, encoded: Sequence[tuple[list[int], int]], tick: Callable[[int, int], None]
    ) -> list[float]:
        """Summed log p (nats) of the last tokens of token sequences."""
        ...

    def side_by_side(self, length: int) -> int:
        """How many sequences of so many tokens are written at a time."""
        ...


@dataclasses.dataclass(frozen=True)
class Results:
    """What a model got.

    Attributes:
        scores: Measures ``BENCHMARK.METRIC`` (with the harness's filter behind it, where it is
            not ``none``), on each task and group by its name in the harness.
        items: One row an item, task and measure: ``benchmark``, ``task``, ``item`` (its number in
            the data), ``measure`` and ``value``.
    """

    scores: tuple[Score, ...]
    items: tuple[dict[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Suite:
    """Benchmarks with their items, ready for any model.

    Attributes:
        benchmarks: What is asked for.
        rows: Local items by benchmark; those from the hub have none here.
    """

    benchmarks: tuple[Benchmark, ...]
    rows: Mapping[str, Rows]

    @functools.cached_property
    def built(self) -> tuple[Built, ...]:
        """The harness's tasks, built when they are first needed."""
        from fortifai.evals import harness_tasks

        return tuple(
            harness_tasks.build(b, harness_tasks.find(b), self.rows.get(b.name))
            for b in self.benchmarks
        )

    @property
    def facts(self) -> str:
        """Benchmarks with the number of their tasks and items."""
        return ", ".join(
            f"{b.benchmark.name} ({_counted(len(b.tasks), 'task')}, {_counted(b.items, 'item')})"
            for b in self.built
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all items."""
        return _sha256([_data_sum(b, self.rows.get(b.benchmark.name)) for b in self.built])

    def check(self, model: Any, tokenizer: Any, special: SpecialTokens) -> list[str]:
        """Whether a model can be asked, told before it is trained; returns what will be cut.

        Args:
            model: A transformers model of the right configuration, on any device (``meta`` too).
            tokenizer: Its tokenizer.
            special: Its special tokens.

        Raises:
            InputError: Items are not what a task needs, or do not fit the model.
        """
        from fortifai.evals import harness
        from fortifai.evals.harness_process import as_its_command

        with as_its_command():
            lm = harness.InMemory(
                model, tokenizer, special, lambda encoded, tick: [], lambda n: 1, _silent
            )
        return [note for built in self.built for note in harness.check(built, lm)]

    def save(self, folder: Path) -> None:
        """Write the local items into `folder`, from which `load` takes them."""
        folder.mkdir()
        for name, rows in self.rows.items():
            benchmarks_data.save_rows(folder / f"{name}.parquet", rows)

    @classmethod
    def load(cls, benchmarks: Iterable[Benchmark], folder: Path) -> Suite:
        """The suite that `save` wrote."""
        asked = tuple(benchmarks)
        local = [b.name for b in asked if b.data is not None]
        return cls(asked, {n: benchmarks_data.load_rows(folder / f"{n}.parquet") for n in local})

    def run(self, lm: Model, *, cache: Path | None = None, tick: Tick | None = None) -> Results:
        """Put all benchmarks to a model.

        Args:
            lm: The model.
            cache: Folder of results by the hash of weights, tokenizer, tasks, items and settings;
                a result that is there is not computed again. None: no cache.
            tick: Told how many of how many sequences of a benchmark are done.

        Raises:
            InputError: The model's weights are not finite.
        """
        from fortifai.evals import harness
        from fortifai.evals.harness_process import as_its_command

        with as_its_command():
            adapter = harness.InMemory(
                lm.model,
                lm.tokenizer,
                lm.special,
                lm.sequence_log_prob,
                lm.side_by_side,
                tick or _silent,
            )
        weights = f"{model_sum(lm.model, lm.tokenizer)} {lm.special.front}" if cache else ""
        found = [self._one(built, adapter, cache, weights) for built in self.built]
        return Results(
            tuple(score for result in found for score in result.scores),
            tuple(item for result in found for item in result.items),
        )

    def _one(self, built: Built, lm: InMemory, cache: Path | None, weights: str) -> Results:
        if cache is None:
            return _evaluated(built, lm)
        rows = self.rows.get(built.benchmark.name)
        key = _sha256(
            [
                VERSION,
                importlib.metadata.version("lm-eval"),
                weights,
                [_task_sum(task) for task in built.tasks.values()],
                [dict(group.to_dict() or {}) for group in built.groups.values()],
                _data_sum(built, rows),
                built.benchmark.settings,
            ]
        )
        path = cache / f"{key}.json"
        known = _read_cached(path)
        if known is None:
            known = _evaluated(built, lm)
            _write_cached(path, known)
        return known


def read(benchmarks: Iterable[Benchmark], root: Path) -> Suite:
    """Find the tasks, read local items and check both; nothing is run.

    Args:
        benchmarks: What is asked for.
        root: Folder that their paths are relative to.

    Raises:
        InputError: lm-evaluation-harness is not installed, a task is unknown, a file is missing,
            empty or of something else, or a setting is not for its task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            "benchmarks need lm-evaluation-harness, which is not installed; "
            "pip install 'fortifai[benchmarks]'"
        )
    from fortifai.evals import harness_tasks

    asked = tuple(benchmarks)
    rows: dict[str, Rows] = {}
    for benchmark in asked:
        nodes = harness_tasks.find(benchmark)
        if benchmark.data is not None:
            leaves = harness_tasks.leaves(benchmark, nodes)
            rows[benchmark.name] = benchmarks_data.read_rows(benchmark, leaves, root)
    suite = Suite(asked, rows)
    _ = suite.built  # so that what is wrong with a task is told now
    return suite


def run_benchmarks(
    lm: Model,
    benchmarks: Iterable[Benchmark],
    *,
    root: Path = Path(),
    cache: Path | None = None,
    tick: Tick | None = None,
) -> Results:
    """Put benchmarks to any model: read, check, run.

    Args:
        lm: The model, such as ``CausalLM.from_base(folder)``.
        benchmarks: What is asked for.
        root: Folder that their paths are relative to.
        cache: See `Suite.run`.
        tick: See `Suite.run`.

    Raises:
        InputError: See `read`, `Suite.check` and `Suite.run`.
    """
    suite = read(benchmarks, root)
    suite.check(lm.model, lm.tokenizer, lm.special)
    return suite.run(lm, cache=cache, tick=tick)


# --- scores -----------------------------------------------------------------------------------


def _evaluated(built: Built, lm: InMemory) -> Results:
    from fortifai.evals import harness
    from fortifai.evals.harness_process import as_its_command

    found = harness.evaluate(built, lm)
    with as_its_command():  # asking a task for its name draws a random number
        return _results(built, found)


def _results(built: Built, found: Mapping[str, Any]) -> Results:
    items = tuple(_items(built, found))
    shares = {
        measure
        for measure in {row["measure"] for row in items}
        if all(row["value"] in (0.0, 1.0) for row in items if row["measure"] == measure)
    }
    chances = _chances(built)
    scores = []
    for on, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, comma, _ = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            better = _better(built, found["higher_is_better"], on, metric)
            measure = _measure(built, key)
            scores.append(
                Score(
                    measure=measure,
                    value=float(value),
                    on=on,
                    n=int(metrics["sample_len"]),
                    stderr=_number(metrics.get(key.replace(",", "_stderr,", 1))),
                    unit="share" if measure in shares else "",
                    chance=chances.get((on, key)),
                    direction="none" if better is None else "higher" if better else "lower",
                )
            )
    return Results(tuple(scores), items)


def _better(
    built: Built, told: Mapping[str, Mapping[str, bool]], on: str, metric: str
) -> bool | None:
    """Whether higher is better: of a group, what all its tasks say."""
    group = built.groups.get(on)
    names = [on] if group is None else [task.task_name for task in group.get_all_tasks()]
    said = {told.get(name, {}).get(metric) for name in names}
    return said.pop() if len(said) == 1 else None


def _measure(built: Built, key: str) -> str:
    metric, _, chosen = key.partition(",")
    return f"{built.benchmark.name}.{metric}" + (f".{chosen}" if chosen != "none" else "")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _items(built: Built, found: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for task, samples in found["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                value = _number(sample[metric])
                if value is not None:  # a metric of the whole, such as F1, has none of an item
                    yield {
                        "benchmark": built.benchmark.name,
                        "task": task,
                        "item": int(sample["doc_id"]),
                        "measure": _measure(built, f"{metric},{sample['filter']}"),
                        "value": value,
                    }


def _chances(built: Built) -> dict[tuple[str, str], float]:
    """What guessing would give, by task or group and metric, averaged as the metric is."""
    by_task: dict[str, dict[str, Any]] = {}
    for name, task in built.tasks.items():
        metrics = {m.get("metric") for m in task.config.metric_list or ()}
        several = task.multiple_target or "acc_mutual_info" in metrics
        if task.config.output_type != "multiple_choice" or several:
            continue
        answers: dict[int, int] = {}
        for request in task.instances:
            answers[request.doc_id] = answers.get(request.doc_id, 0) + 1
        chance = sum(1 / n for n in answers.values()) / len(answers)
        by_task[name] = {f"{metric},none": chance for metric in CHANCE_METRICS & metrics}
        by_task[name]["sample_len"] = len(answers)
    for name, group in built.groups.items():
        if {task.task_name for task in group.get_all_tasks()} <= by_task.keys():
            by_task[name] = dict(group.aggregate(by_task))
    return {
        (name, key): value
        for name, metrics in by_task.items()
        for key, value in metrics.items()
        if key.split(",")[0] in CHANCE_METRICS
    }


# --- cache ------------------------------------------------------------------------------------


def model_sum(model: Any, tokenizer: Any) -> str:
    """SHA-256 of weights, configuration and tokenizer; the model's name and place do not count."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    for part in (model.config, model.generation_config):
        told = part.to_dict()
        for key in NOT_COUNTED:
            told.pop(key, None)
        digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    told = [tokenizer.special_tokens_map, tokenizer.chat_template, tokenizer.model_max_length]
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _task_sum(task: Any) -> str:
    """SHA-256 of a task's whole configuration, the source of its functions included."""
    config = task.dump_config()
    for data in ("custom_dataset", "process_docs"):
        config.pop(data, None)  # the items and the harness's version are counted for them
    return _sha256(config)


def _data_sum(built: Built, rows: Rows | None) -> str:
    if rows is not None:
        return benchmarks_data.digest(rows)
    return _sha256([list(task.task_docs) for task in built.tasks.values()])


def _sha256(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


def _read_cached(path: Path) -> Results | None:
    try:
        data = json.loads(path.read_text("utf-8"))
        columns = data["items"]
        items = tuple(
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        )
        return Results(tuple(Score(**row) for row in data["scores"]), items)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or not whole: it is computed again


def _write_cached(path: Path, results: Results) -> None:
    names = ("benchmark", "task", "item", "measure", "value")
    data = {
        "scores": [score.record() for score in results.scores],
        "items": {name: [row[name] for row in results.items] for name in names},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, json.dumps(data))  # chains share the folder


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _silent(done: int, total: int) -> None:
    """Nobody listens."""
