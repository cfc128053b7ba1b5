"""Published benchmarks on a model in memory, through lm-evaluation-harness.

Prompts, metrics, group means and standard errors are the harness's own: the numbers are those that
its command gives on the saved model. Nothing is fetched unless a benchmark's `data` is None.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai import files
from fortifai.data.tokens import SpecialTokens
from fortifai.errors import InputError
from fortifai.evals import benchmarks_data
from fortifai.evals.benchmarks_data import Benchmark, Rows
from fortifai.lab.measures import Score

if TYPE_CHECKING:
    from fortifai.evals.harness import Built
    from fortifai.models.causal_lm import CausalLM

__all__ = ["Benchmark", "Results", "Suite", "read", "run_benchmarks"]

CHANCE_METRICS = ("acc", "acc_norm", "acc_bytes")
"""Metrics that guessing among the answers gets right once in as many times as there are answers."""

NOT_COUNTED = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")
"""Parts of a configuration that saving writes into it, or that say nothing the weights do not."""


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
        """The harness's tasks, made when they are first needed."""
        from fortifai.evals import harness

        with harness.as_command():
            return tuple(
                harness.start(harness.find(b), self.rows.get(b.name)) for b in self.benchmarks
            )

    @property
    def facts(self) -> str:
        """Benchmarks with the number of their tasks and items."""
        told = []
        for b in self.built:
            sizes = [len(task.eval_docs) for task in b.tasks.values()]
            items = sum(min(size, b.benchmark.limit or size) for size in sizes)
            told.append(f"{b.benchmark.name} (tasks: {len(sizes):,}, items: {items:,})")
        return ", ".join(told)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all items."""
        return benchmarks_data.sha256([self._data_sum(built) for built in self.built])

    def _data_sum(self, built: Built) -> str:
        rows = self.rows.get(built.benchmark.name)
        if rows is not None:
            return benchmarks_data.digest(rows)
        return benchmarks_data.sha256([list(task.eval_docs) for task in built.tasks.values()])

    def _key(self, built: Built, weights: object) -> str:
        asked = dataclasses.asdict(built.benchmark) | {"data": self._data_sum(built)}
        return benchmarks_data.sha256([importlib.metadata.version("lm-eval"), weights, asked])

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

        with harness.as_command():
            lm = harness.Model(model, tokenizer, special, _silent)
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

    def run(
        self,
        lm: CausalLM,
        *,
        cache: Path | None = None,
        tick: Callable[[int, int], None] | None = None,
    ) -> Results:
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

        found = []
        with harness.as_command():
            model = harness.Model(lm.model, lm.tokenizer, lm.special, tick or _silent)
            weights = [model_sum(lm.model, lm.tokenizer), lm.special.front] if cache else []
            for built in self.built:
                path = cache and cache / f"{self._key(built, weights)}.json"
                result = _read_cached(path) if path else None
                if result is None:
                    result = _results(built, harness.evaluate(built, model))
                    if path:
                        _write_cached(path, result)
                found.append(result)
        return Results(
            tuple(score for result in found for score in result.scores),
            tuple(item for result in found for item in result.items),
        )


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
    from fortifai.evals import harness

    asked, rows = tuple(benchmarks), {}
    with harness.as_command():
        for benchmark in asked:
            tasks = harness.find(benchmark).tasks.values()
            if benchmark.data is not None:
                sources = [task.source(f"benchmarks.{benchmark.name}") for task in tasks]
                rows[benchmark.name] = benchmarks_data.read_rows(benchmark, sources, root)
    suite = Suite(asked, rows)
    _ = suite.built  # so that what is wrong with a task is told now
    return suite


def run_benchmarks(
    lm: CausalLM, benchmarks: Iterable[Benchmark], *, root: Path = Path(), cache: Path | None = None
) -> Results:
    """Put benchmarks to any model: `read`, `Suite.check` and `Suite.run`, which see."""
    suite = read(benchmarks, root)
    suite.check(lm.model, lm.tokenizer, lm.special)
    return suite.run(lm, cache=cache)


# --- scores -----------------------------------------------------------------------------------


def _results(built: Built, found: Mapping[str, Any]) -> Results:
    items = tuple(_items(built, found))
    broken = {row["measure"] for row in items if row["value"] not in (0.0, 1.0)}
    shares = {row["measure"] for row in items} - broken
    chances = _chances(built)
    scores = []
    for on, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            better = found["higher_is_better"].get(on, {}).get(metric)
            measure, stderr = _measure(built, key), metrics.get(f"{metric}_stderr,{chosen}")
            scores.append(
                Score(
                    measure=measure,
                    value=float(value),
                    on=on,
                    n=int(metrics["sample_len"]),
                    stderr=None if stderr in (None, "N/A") else float(stderr),
                    unit="share" if measure in shares else "",
                    chance=chances.get(on, {}).get(key),
                    direction="none" if better is None else "higher" if better else "lower",
                )
            )
    return Results(tuple(scores), items)


def _measure(built: Built, key: str) -> str:
    return f"{built.benchmark.name}.{key.removesuffix(',none').replace(',', '.')}"


def _items(built: Built, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task, samples in found["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                value = sample[metric]
                if isinstance(value, int | float):  # metrics of the whole, such as F1, have none
                    yield {
                        "benchmark": built.benchmark.name,
                        "task": task,
                        "item": int(sample["doc_id"]),
                        "measure": _measure(built, f"{metric},{sample['filter']}"),
                        "value": float(value),
                    }


def _chances(built: Built) -> dict[str, dict[str, Any]]:
    """What guessing would give, by task or group and metric, averaged as the metric is."""
    out: dict[str, dict[str, Any]] = {}
    for name, task in built.tasks.items():
        metrics = {m.get("metric") for m in task.config.metric_list or ()}
        several = task.multiple_target or "acc_mutual_info" in metrics
        if task.config.output_type == "multiple_choice" and not several:
            answers = collections.Counter(request.doc_id for request in task.instances)
            chance = sum(1 / n for n in answers.values()) / len(answers)
            out[name] = {f"{m},none": chance for m in CHANCE_METRICS if m in metrics}
            out[name]["sample_len"] = len(answers)
    for name, group in built.groups.items():
        if {task.task_name for task in group.get_all_tasks()} <= out.keys():
            out[name] = dict(group.aggregate(out))
    return out


# --- cache ------------------------------------------------------------------------------------


def model_sum(model: Any, tokenizer: Any) -> str:
    """SHA-256 of weights, configuration and tokenizer; the model's name and place do not count."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    told = [part.to_dict() for part in (model.config, model.generation_config)]
    settings = [{k: v for k, v in part.items() if k not in NOT_COUNTED} for part in told]
    spoken = [tokenizer.special_tokens_map, tokenizer.chat_template, tokenizer.model_max_length]
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(benchmarks_data.sha256([settings, spoken]).encode())
    return digest.hexdigest()


def _read_cached(path: Path) -> Results | None:
    try:
        data = json.loads(path.read_text("utf-8"))
        return Results(tuple(Score(**row) for row in data["scores"]), tuple(data["items"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or not whole: it is computed again


def _write_cached(path: Path, results: Results) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, json.dumps(dataclasses.asdict(results)))  # chains share the folder


def _silent(done: int, total: int) -> None:
    """Nobody listens."""
