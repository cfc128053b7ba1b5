"""The recursive loop (ForTIFAI, Algorithm 1), the same for every kind of data.

    for each generation i:
        the regime picks the training parts -> cures -> fit -> rewrite
        every so many generations: evaluate -> commit

The loop knows protocols, not families: a model is anything with fit, regenerate, log_prob, save.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from safetensors.numpy import save_file

from fortifai.errors import Diverged, RunFailed, blaming
from fortifai.lab.after_fit import AfterFit, Fitted
from fortifai.lab.budget import Spent
from fortifai.lab.cures import Context, Cure
from fortifai.lab.domain import Family, Model, Samples
from fortifai.lab.history import History, commits
from fortifai.lab.measures import Generation, Score
from fortifai.lab.progress import Progress
from fortifai.lab.regimes import Part, Regime
from fortifai.lab.seeds import Seed, derive
from fortifai.lab.store import (
    MODEL,
    SAMPLES,
    ChainStore,
    Health,
    committing,
    inspect,
    write_json,
    write_jsonl,
)
from fortifai.lab.units import REAL, Units

Start = Literal["previous", "base", "scratch"]
Evaluate = Callable[[Generation[Any, Any], Path], Sequence[Score]]
M = TypeVar("M", bound=Model)


@dataclasses.dataclass(frozen=True)
class Chain(Generic[M]):
    """One arm and seed: everything the loop needs.

    Attributes:
        family: Makes the models.
        regime: Picks training sets.
        cures: What a training set passes through.
        after_fit: What is done to the weights of a model that was fitted.
        init_from: What each generation after the first starts from.
        generations: How many.
        seed: The root of all random numbers.
        real: D_k^(0), the splits.
        domain: What measures may want to know of the data.
        evaluate: Measures a finished generation; may write files into the folder given.
        eval_every: Generations between two that are measured and committed.
        save_weights: Keep the weights of the ``last`` committed generation or of ``all``.
        save_samples: Keep ``all`` that was written, or what is ``needed`` to go on.
        keep_first: Keep generation 0's weights too: later ones are measured with them, or use
            them.
    """

    family: Family[M]
    regime: Regime
    init_from: Start
    generations: int
    seed: Seed
    real: Sequence[Samples]
    evaluate: Evaluate
    domain: Any = None
    cures: Sequence[Cure] = ()
    after_fit: Sequence[AfterFit] = ()
    eval_every: int = 1
    save_weights: Literal["last", "all"] = "last"
    save_samples: Literal["all", "needed"] = "all"
    keep_first: bool = False

    def derive(self, *path: int | str) -> Seed:
        """The seed of one step."""
        return derive(self.seed, *path)

    def derive_one(self, *path: int | str) -> int:
        """The same for what needs one seed, however many the chain holds."""
        seed = self.derive(*path)
        return seed if isinstance(seed, int) else seed[0]

    @property
    def needs_last(self) -> bool:
        """Whether a generation needs the model of the one before."""
        return self.init_from == "previous" or any(cure.needs_model for cure in self.cures)


def recurse(
    chain: Chain[M],
    store: ChainStore,
    progress: Progress,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Run the generations of `chain` that `store` does not hold whole yet.

    Deterministic on one machine: a run that was killed and taken up again writes the same bytes.
    A damaged generation is told through `tell` and done again; so are those before it whose
    weights or samples it needs and which are gone.

    A chain whose model raises `Diverged` stops there: the generation before is committed, whether
    it was due or not, and the reason is written down.

    Args:
        chain: What to run.
        store: Where to.
        progress: Receives the steps.
        tell: Receives one sentence for each thing that a user should know.

    Raises:
        RunFailed: The first generation could not be trained.
    """
    store.sweep()
    _Recursion(chain, store, progress, tell).run()


class _Recursion(Generic[M]):
    """The loop at work on one chain.

    An interval is the generations from one commit to the next; it is named by its last one.
    """

    def __init__(
        self,
        chain: Chain[M],
        store: ChainStore,
        progress: Progress,
        tell: Callable[[str], None],
    ) -> None:
        self.chain, self.store, self.progress, self.tell = chain, store, progress, tell
        self.stale = store.stale()
        try:
            store.ended()
        except ValueError as fault:
            self.tell(f"{fault}; the chain goes on from its last whole generation")
            store.go_on()
        self.history = self._history()

    def _history(self) -> History:
        chain = self.chain
        return History(
            real=chain.real,
            plans=lambda generation: chain.regime.plan(generation, len(chain.real)),
            intervals=self.intervals(),
            place=self.store.path,
        )

    def intervals(self) -> list[range]:
        """The generations between commits, each with the committed one as its last."""
        ended = self.store.ended()
        last = self.chain.generations - 1 if ended is None else ended.generation - 1
        ends = commits(last, self.chain.eval_every)
        return [range(a + 1, b + 1) for a, b in zip([-1, *ends], ends, strict=False)]

    def run(self) -> None:
        todo = self._missing()
        kept = set(self.store.committed())  # by earlier runs
        while todo:
            interval = todo.pop(0)
            before = self.store.sum_of(interval[-1], SAMPLES)
            try:
                self._run(interval)
            except Diverged as reason:
                self._end(interval, reason)
                todo = [s for s in self._missing() if s[0] >= interval[0]]
                continue
            later = {c for c in kept if c > interval[-1]}
            stale: list[range] = []
            if later:  # so that a new chain does not look at all generations behind each
                stale = [s for s in self.intervals() if s[-1] in later and s not in todo]
            if stale and before != self.store.sum_of(interval[-1], SAMPLES):
                why = "came out different from the one that was damaged" if before else "was lost"
                self.tell(
                    f"generation {interval[-1]} {why}; generations {stale[0][0]} to "
                    f"{stale[-1][-1]}, which build on it, are done again"
                )
                todo = sorted([*todo, *stale], key=lambda s: s[0])
            self._drop(interval[0] - 1)
        self._tidy()

    def _tidy(self) -> None:
        """All is there: remove what was needed on the way alone."""
        self.history.reached = self.intervals()[-1][-1]
        for interval in self.intervals()[:-1]:
            self._drop(interval[-1])
        due = {interval[-1] for interval in self.intervals()}
        for generation in set(self.store.committed()) - due:
            self.store.forget(generation)
        self.store.set_stale(())

    def _missing(self) -> list[range]:
        """The intervals to run: those that are not whole, and those before that they need."""
        health: dict[int, Health] = {}
        todo: set[int] = set()
        intervals = {s[-1]: s for s in self.intervals()}
        for commit, interval in intervals.items():
            health[commit] = inspect(self.store.path(commit))
            for fault in health[commit].faults:
                self.tell(f"{fault}; generation {commit} is done again")
            if not health[commit].whole or commit in self.stale:
                todo.add(commit)
            elif SAMPLES in health[commit].there and self.history.lacks(interval):
                self.tell(
                    f"generation {commit} was the last and holds less than later ones read; it is "
                    "done again"
                )
                todo.add(commit)
        wanted = set(todo)
        looked_at: set[int] = set()
        while found := todo - looked_at:
            looked_at |= found
            for commit in found:
                todo |= {
                    needed
                    for needed, what in self._needs(intervals[commit])
                    if what not in health[needed].there
                }
        again = sorted(todo - wanted)
        if again and not any(found.faults for found in health.values()):
            self.tell(
                f"generations up to {again[-1]} are done again: their weights or samples, which "
                "later ones need, were not kept (save_weights, save_samples)"
            )
        return [intervals[commit] for commit in sorted(todo)]

    def _needs(self, interval: range) -> set[tuple[int, str]]:
        """Which earlier commit's weights or samples a interval reads."""
        left = self._left(interval)
        out = {(commit, SAMPLES) for g in left for commit in self.history.sources(g)}
        out = {(commit, what) for commit, what in out if commit < interval[0]}
        if self.chain.needs_last and left == interval and interval[0] > 0:
            out.add((interval[0] - 1, MODEL))
        if self.chain.keep_first and interval[0] > 0:
            out.add((0, MODEL))
        return out

    def _left(self, interval: range) -> range:
        """The generations of an interval that must be trained.

        A chain that has grown may have its old last generation inside one, where it goes on.
        """
        if len(interval) == 1:
            return interval
        there = [g for g in self.store.committed() if g in interval[:-1] and g not in self.stale]
        for generation in reversed(there):
            health = inspect(self.store.path(generation))
            needed = {SAMPLES, MODEL} if self.chain.needs_last else {SAMPLES}
            if (
                health.whole
                and needed <= health.there
                and self.history.can_take_up(interval, generation)
            ):
                return range(generation + 1, interval.stop)
        return interval

    def _drop(self, commit: int) -> None:
        """Remove what of a committed generation nobody needs any more."""
        if commit < 0:
            return
        if self.chain.save_weights == "last" and not (self.chain.keep_first and commit == 0):
            self.store.drop(commit, MODEL)
        if self.chain.save_samples == "needed" and self.history.is_done_with(commit):
            self.store.drop(commit, SAMPLES)

    def _end(self, interval: range, reason: Diverged) -> None:
        generation = max(self.history.reached + 1, interval[0])
        if generation == 0:
            raise RunFailed(f"generation 0 could not be trained: {reason}") from reason
        for behind in [g for g in self.store.committed() if g >= generation]:
            self.store.forget(behind)
        self.store.end(generation, str(reason))
        self.history = self._history()
        self.tell(f"ended at generation {generation}: {reason}")

    def _run(self, interval: range) -> None:
        model: M | None = None
        left = self._left(interval)
        if left != interval:
            self.history.take_up(interval, left[0] - 1)
        for generation in left:
            self.progress.begin(generation)
            spent = Spent()
            if generation and self.chain.needs_last and model is None:
                model = self.chain.family.load(self.store.path(generation - 1) / MODEL)
            training, told = self._training_set(generation, model, spent)
            model = self._start(generation, model)
            model.spent = spent
            fit = model.fit(
                training, seed=self.chain.derive(generation, "fit"), progress=self.progress
            )
            fit = {**fit, **self._after_fit(model, generation, training)}
            rewritten = self._rewrite(model, generation)
            told |= {"spent": dataclasses.asdict(spent)}
            told |= {"threshold": fit["threshold"]} if "threshold" in fit else {}
        assert model is not None
        self._commit(interval, model, told, fit, rewritten)

    def _start(self, generation: int, model: M | None) -> M:
        chain = self.chain
        if chain.init_from == "previous" and model is not None:
            return model
        start: Literal["base", "scratch"] = "scratch" if chain.init_from == "scratch" else "base"
        return chain.family.create(start, seed=chain.derive(generation, "weights"))

    def _training_set(
        self, generation: int, last: M | None, spent: Spent
    ) -> tuple[Samples, dict[str, Any]]:
        """What a generation trains on, and its ledger; `last` wrote the newest of it."""
        chain = self.chain
        plan = chain.regime.plan(generation, len(chain.real))
        parts = [(part, self._take(part, generation)) for part in plan.train]
        if generation == 0 or not chain.cures:
            values = [v for _, v in parts]
            return values[0] if len(values) == 1 else np.concatenate(values), ledger(parts)
        if last is not None:
            last.spent = spent
        units, rows = self._units(parts, chain.cures[0].unit), []
        for i, cure in enumerate(chain.cures):
            if i and cure.unit != chain.cures[i - 1].unit:
                units = units.recut(functools.partial(chain.family.edges, unit=cure.unit))
            context = Context(
                generation=generation,
                seed=chain.derive_one(generation, "cure", i),
                family=chain.family,
                model=last if cure.needs_model else None,
                spent=spent,
            )
            with blaming(f"the cure {cure.kind!r}", cure):
                units, row = cure.apply(units, context)
            rows.append({"kind": cure.kind, **row, **({"outside": True} if cure.outside else {})})
        return units.samples, ledger(parts, units) | {"cures": rows}

    def _units(self, parts: Sequence[tuple[Part, Samples]], unit: str | None) -> Units:
        """The parts cut into units, each with the generation that wrote it."""
        joined = []
        for part, values in parts:
            edges = self.chain.family.edges(values, unit=unit)
            origin = self.history.writer(part.split, part.generation) if part.generation else REAL
            n = len(edges) - 1
            joined.append(Units(values, edges, np.full(n, origin), np.full(n, part.split)))
        return Units.join(joined)

    def _take(self, part: Part, generation: int) -> Samples:
        values = self.history.read(part.split, part.generation)
        if part.between == (0.0, 1.0):
            return values
        seed = self.chain.derive(generation, "draw", part.split)
        return self.chain.family.share(values, part.between, seed)

    def _after_fit(self, model: M, generation: int, samples: Samples) -> dict[str, Any]:
        chain, rows = self.chain, []
        for i, step in enumerate(chain.after_fit):
            fitted = Fitted(
                generation=generation,
                seed=chain.derive(generation, "after_fit", i),
                samples=samples,
                share=chain.family.share,
                first=lambda: chain.family.load(self.store.path(0) / MODEL),
                progress=self.progress,
            )
            rows.append(step.row(model, fitted))
        return {"after_fit": rows} if rows else {}

    def _rewrite(self, model: M, generation: int) -> dict[int, Samples]:
        chain = self.chain
        rewritten: dict[int, Samples] = {}
        written: dict[tuple[int, int], Samples] = {}
        for rewrite in chain.regime.plan(generation, len(chain.real)).rewrites:
            split = rewrite.source.split
            rewritten[split] = model.regenerate(
                self.history.read(split, rewrite.source.generation),
                seed=chain.derive(generation, "regenerate", split),
                progress=self.progress,
            )
            written[split, rewrite.to] = rewritten[split]
        self.history.add(generation, written)
        return rewritten

    def _commit(
        self,
        interval: range,
        model: M,
        told: Mapping[str, Any],
        fit: Mapping[str, Any],
        rewritten: Mapping[int, Samples],
    ) -> None:
        generation, chain = interval[-1], self.chain
        droppable = (MODEL, SAMPLES) if chain.save_samples == "needed" else (MODEL,)
        with committing(self.store.path(generation), droppable) as folder:
            seen = Generation(
                number=generation,
                model=model,
                domain=chain.domain,
                real=chain.real,
                rewritten=rewritten,
                fit=fit,
                seed=chain.derive_one(generation, "evaluate"),
                tick=lambda done, total: self.progress.step("measure", done, total),
                origin=self.store.path(0) if generation else folder,
            )
            scores = chain.evaluate(seen, folder)
            write_jsonl(folder / "scores.jsonl", [score.record() for score in scores])
            write_json(folder / "ledger.json", dict(told))
            write_json(folder / "fit.json", dict(fit))
            named = self.history.to_keep(interval)
            save_file({k: np.ascontiguousarray(v) for k, v in named.items()}, folder / SAMPLES)
            model.save(folder / MODEL)
        if self.stale:
            self.stale.discard(generation)
            self.store.set_stale(self.stale)
        self.progress.end(generation, scores)


def ledger(parts: Sequence[tuple[Part, Samples]], units: Units | None = None) -> dict[str, Any]:
    """How much real and how much generated data a generation trained on, in values.

    Args:
        parts: What the regime picked.
        units: What is left of them behind the cures, if there are any.
    """
    rows = [
        {
            "split": part.split,
            "generation": part.generation,
            "values": len(values),
            "origin": "generated" if part.generation else "real",
        }
        for part, values in parts
    ]
    real = sum(len(values) for part, values in parts if part.generation == 0)
    total = sum(len(values) for _, values in parts)
    if units is not None:
        real, total = units.values()
    return {"parts": rows, "real": real, "generated": total - real, "real_share": real / total}
