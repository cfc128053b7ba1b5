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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, PositiveInt

from fortifai import files
from fortifai.data.tokens import SpecialTokens
from fortifai.errors import InputError
from fortifai.evals import benchmarks_data
from fortifai.evals.benchmarks_data import Rows
from fortifai.lab.measures import Score

if TYPE_CHECKING:
    from fortifai.evals.harness import Built
    from fortifai.models.causal_lm import CausalLM

CHANCE_METRICS = ("acc", "acc_norm", "acc_bytes")
"""Metrics that guessing among the answers gets right once in as many times as there are answers."""
KEY = "the key"
"""What tells a benchmark's name in a YAML, where it is no setting."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark as it is asked for; the names are those of lm-evaluation-harness.

    Attributes:
        name: A task, group or tag of the harness, such as ``blimp``; of a YAML, the key.
        data: A local file or folder, or files by split. It has no default: None, said outright (in
            a YAML by ``hub: true``), has the harness fetch its own data set from the hub.
        limit: Items of each task, the first ones; None for all.
        only: Tasks or groups within `name` to take; empty for all.
        num_fewshot: Examples before each item; None for the task's own number.
        max_gen_toks: Tokens written per answer; None for the task's own number, or 256.
        apply_chat_template: Put prompts into the tokenizer's chat template.
        chat_template_args: What the template is told, such as ``{"enable_thinking": False}``.
        hub: Whether `data` is None; need not be said but in a YAML.

    Raises:
        InputError: A setting is of another type, or a number too small.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Annotated[str, Field(alias=KEY, exclude=True)] = dataclasses.field(metadata={KEY: True})
    data: str | dict[str, str] | None
    limit: PositiveInt | None = None
    only: tuple[str, ...] = ()
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    max_gen_toks: PositiveInt | None = None
    apply_chat_template: bool = False
    chat_template_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    hub: bool | None = None

    def __post_init__(self) -> None:
        if self.hub is None:
            self._check_types()
            object.__setattr__(self, "hub", self.data is None)
        elif self.data in ("", {}):
            raise InputError("data is empty; name a file, a folder, or files by split")
        elif self.hub != (self.data is None):
            raise InputError(
                "a benchmark takes exactly one of data (local files) and hub: true (its own data "
                "set, fetched from the hub)"
            )
        elif self.chat_template_args and not self.apply_chat_template:
            raise InputError("chat_template_args need apply_chat_template: true")

    def _check_types(self) -> None:
        """What pydantic does for a YAML."""
        key, only = f"benchmarks.{self.name}", self.only
        paths = list(self.data.values()) if isinstance(self.data, dict) else [self.data]
        if self.data is not None and not all(isinstance(p, str) and p for p in paths or [None]):
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


def _named(entries: Any) -> Any:
    """Entries of a YAML, each with its key, and with what it leaves out where Python may not."""
    if not isinstance(entries, Mapping):
        return entries
    out = dict(entries)
    for key, entry in entries.items():
        if isinstance(entry, dict):
            # only Python may leave open whether the hub is meant
            hub = {"hub": entry.get("hub") or False}
            out[key] = {"data": None, **entry, **hub, KEY: key}
    return out


Named = BeforeValidator(_named)
"""Makes each `Benchmark` of a mapping in a YAML know its name."""


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
        return _sha256([self._data_sum(built) for built in self.built])

    def _data_sum(self, built: Built) -> str:
        local = self.rows.get(built.benchmark.name)
        if local is None:
            return _sha256([list(task.eval_docs) for task in built.tasks.values()])
        return _sha256({t: {s: local[t][s].to_pylist() for s in local[t]} for t in local})

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
            lm = harness.Ruler(model, tokenizer, special)
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
        tick: Callable[[int, int], None] = lambda done, total: None,
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

        scores: list[Score] = []
        items: list[dict[str, Any]] = []
        with harness.as_command():
            model = harness.Model(lm.model, lm.tokenizer, lm.special, tick)
            weights = [lm.sha256(), lm.special.front] if cache else []
            for built in self.built:
                path = cache and cache / f"{self._key(built, weights)}.json"
                found = _read_cached(path) if path else None
                if found is None:
                    found = _results(built, harness.evaluate(built, model))
                    if path:  # chains share the folder
                        path.parent.mkdir(parents=True, exist_ok=True)
                        files.write_whole(path, json.dumps(dataclasses.asdict(found)))
                scores += found.scores
                items += found.items
        return Results(tuple(scores), tuple(items))

    def _key(self, built: Built, weights: object) -> str:
        asked = dataclasses.asdict(built.benchmark) | {"data": self._data_sum(built)}
        del asked["hub"]  # which `data` says
        return _sha256([importlib.metadata.version("lm-eval"), weights, asked])


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
            tasks = list(harness.find(benchmark).tasks.values())
            if benchmark.data is not None:
                rows[benchmark.name] = benchmarks_data.read_rows(benchmark, tasks, root)
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


def _sha256(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


def _read_cached(path: Path) -> Results | None:
    try:
        data = json.loads(path.read_text("utf-8"))
        return Results(tuple(Score(**row) for row in data["scores"]), tuple(data["items"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or not whole: it is computed again


# --- scores -----------------------------------------------------------------------------------


def _results(built: Built, found: Mapping[str, Any]) -> Results:
    """What the harness found, with what it does not tell: unit and chance."""
    name, items = built.benchmark.name, []
    for task, samples in found["samples"].items():
        for sample in samples:
            told = {"benchmark": name, "task": task, "item": int(sample["doc_id"])}
            values = {_measure(name, m, sample["filter"]): sample[m] for m in sample["metrics"]}
            items += [
                told | {"measure": measure, "value": float(value)}
                for measure, value in values.items()
                if isinstance(value, int | float)  # metrics of the whole, such as F1, have none
            ]
    broken = {row["measure"] for row in items if row["value"] not in (0.0, 1.0)}
    shares = {row["measure"] for row in items} - broken
    chances = _chances(built, found["samples"])
    scores = []
    for on, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            better = found["higher_is_better"].get(on, {}).get(metric)
            stderr = metrics.get(f"{metric}_stderr,{chosen}")
            measure = _measure(name, metric, chosen)
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
    return Results(tuple(scores), tuple(items))


def _measure(benchmark: str, metric: str, chosen: str) -> str:
    return f"{benchmark}.{metric}" + ("" if chosen == "none" else f".{chosen}")


def _chances(built: Built, samples: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What guessing would give, by task or group and metric, averaged as the metric is."""
    out: dict[str, dict[str, Any]] = {}
    for name, task in built.tasks.items():
        # with mutual information, half of what is asked is no answer
        mutual = any(m.get("metric") == "acc_mutual_info" for m in task.config.metric_list or ())
        if task.config.output_type == "multiple_choice" and not (task.multiple_target or mutual):
            each = [1 / len(sample["arguments"]) for sample in samples[name]]
            out[name] = {f"{metric},none": fmean(each) for metric in CHANCE_METRICS}
            out[name]["sample_len"] = len(each)
    for name, group in built.groups.items():
        if {task.task_name for task in group.get_all_tasks()} <= out.keys():
            out[name] = dict(group.aggregate(out))
    return out
