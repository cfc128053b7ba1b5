"""The recursive loop (ForTIFAI, Algorithm 1), the same for every family of models.

    for each generation i:
        the regime picks the training parts -> fit -> rewrite
        every so many generations: evaluate -> commit

The loop knows protocols, not families: a model is anything with fit, regenerate, log_prob, save.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from fortifai.errors import RunFailed
from fortifai.evals.score import Score
from fortifai.evals.view import Stage
from fortifai.loop.ended import Ended
from fortifai.loop.history import History, ledger
from fortifai.loop.progress import Progress
from fortifai.loop.regimes import Part, Regime
from fortifai.loop.seeds import derive_all
from fortifai.loop.store import (
    MODEL,
    SAMPLES,
    ChainStore,
    Health,
    committing,
    inspect,
    write_json,
    write_jsonl,
)

Samples = NDArray[Any]
"""An array whose first axis is the sample: tokens, images or points.

In a chain of several seeds the second axis is the seed.
"""

Start = Literal["previous", "base", "scratch"]


class Model(Protocol):
    """A generative model of one generation.

    `seeds` has one seed for each repetition that the model holds at once: one for most families,
    all seeds of an arm for those that are vectorised over them.
    """

    def fit(
        self, samples: Samples, *, seeds: Sequence[int], progress: Progress
    ) -> Mapping[str, Any]:
        """Train on `samples`; returns what is worth writing down (loss, truncated share...).

        Raises:
            Ended: The model has diverged or collapsed so far that it cannot go on.
        """
        ...

    def regenerate(self, samples: Samples, *, seeds: Sequence[int], progress: Progress) -> Samples:
        """M(D): `samples` as this model writes them; same shape and dtype."""
        ...

    def log_prob(self, samples: Samples) -> NDArray[np.float32]:
        """Log-probability in nats, one number per token, pixel or point."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights and what `Family.load` needs into `folder`."""
        ...


M = TypeVar("M", bound=Model)
M_co = TypeVar("M_co", bound=Model, covariant=True)


class Family(Protocol[M_co]):
    """Makes models."""

    @property
    def unit(self) -> int:
        """Values that stay together when a share is drawn: a block of tokens, or one point."""
        ...

    def create(self, start: Literal["base", "scratch"], *, seeds: Sequence[int]) -> M_co:
        """The base model, or a new one with random weights from the seeds."""
        ...

    def load(self, folder: Path) -> M_co:
        """The model that `Model.save` wrote."""
        ...


@dataclasses.dataclass(frozen=True)
class Chain(Generic[M]):
    """One arm and seed, or one arm and all its seeds: everything the loop needs.

    Attributes:
        family: Makes the models.
        regime: Picks training sets.
        start: What each generation after the first starts from.
        generations: How many.
        seeds: The roots of all random numbers, one for each repetition.
        real: D_k^(0), the splits.
        evaluate: Measures a finished generation; may write files into the folder given.
        every: Generations between two that are measured and committed.
        keep: Keep the weights of the ``last`` committed generation or of ``all``.
        keep_samples: Keep ``all`` that was written, or what is ``needed`` to go on.
        keep_first: Keep generation 0's weights too: later ones are measured with them.
    """

    family: Family[M]
    regime: Regime
    start: Start
    generations: int
    seeds: tuple[int, ...]
    real: Sequence[Samples]
    evaluate: Callable[[Stage[M], Path], Sequence[Score]]
    every: int = 1
    keep: Literal["last", "all"] = "last"
    keep_samples: Literal["all", "needed"] = "all"
    keep_first: bool = False

    def derive(self, *path: int | str) -> tuple[int, ...]:
        """The seeds of one step."""
        return derive_all(self.seeds, *path)


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

    A chain whose model raises `Ended` stops there: the generation before is committed, whether it
    was due or not, and the reason is written down.

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

    A stretch is the generations from one commit to the next; it is named by its last one.
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
            plans=lambda generation: chain.regime(generation, len(chain.real)),
            stretches=self.stretches(),
            place=self.store.path,
        )

    def stretches(self) -> list[range]:
        """The generations between commits, each with the committed one as its last."""
        ended = self.store.ended()
        last = self.chain.generations - 1 if ended is None else ended.generation - 1
        commits = sorted({0, last, *range(0, last, self.chain.every)})
        return [range(a + 1, b + 1) for a, b in zip([-1, *commits], commits, strict=False)]

    def run(self) -> None:
        todo = self._missing()
        while todo:
            stretch = todo.pop(0)
            before = self.store.sum_of(stretch[-1], SAMPLES)
            try:
                self._run(stretch)
            except Ended as reason:
                self._end(stretch, reason)
                todo = [s for s in self._missing() if s[0] >= stretch[0]]
                continue
            later = [s for s in self.stretches() if s[0] > stretch[-1]]
            stale = [s for s in later if s not in todo and self.store.path(s[-1]).exists()]
            if stale and before != self.store.sum_of(stretch[-1], SAMPLES):
                self.tell(
                    f"generation {stretch[-1]} came out different from the one that was damaged; "
                    f"generations {stale[0][0]} to {stale[-1][-1]} are done again"
                )
                todo = sorted([*todo, *stale], key=lambda s: s[0])
            self._drop(stretch[0] - 1)
        self._tidy()

    def _tidy(self) -> None:
        """All is there: remove what was needed on the way alone."""
        self.history.reached = self.stretches()[-1][-1]
        for stretch in self.stretches()[:-1]:
            self._drop(stretch[-1])
        commits = {stretch[-1] for stretch in self.stretches()}
        for generation in set(self.store.committed()) - commits:
            self.store.forget(generation)
        self.store.set_stale(())

    def _missing(self) -> list[range]:
        """The stretches to run: those that are not whole, and those before that they need."""
        health: dict[int, Health] = {}
        todo: set[int] = set()
        stretches = {s[-1]: s for s in self.stretches()}
        for commit, stretch in stretches.items():
            health[commit] = inspect(self.store.path(commit))
            for fault in health[commit].faults:
                self.tell(f"{fault}; generation {commit} is done again")
            if not health[commit].whole or commit in self.stale:
                todo.add(commit)
            elif SAMPLES in health[commit].there and self.history.lacks(stretch):
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
                    for needed, what in self._needs(stretches[commit])
                    if what not in health[needed].there
                }
        again = sorted(todo - wanted)
        if again and not any(found.faults for found in health.values()):
            self.tell(
                f"generations up to {again[-1]} are done again: their weights or samples, which "
                "later ones need, were not kept (keep, keep_samples)"
            )
        return [stretches[commit] for commit in sorted(todo)]

    def _needs(self, stretch: range) -> set[tuple[int, str]]:
        """Which earlier commit's weights or samples a stretch reads."""
        left = self._left(stretch)
        out = {(commit, SAMPLES) for g in left for commit in self.history.sources(g)}
        out = {(commit, what) for commit, what in out if commit < stretch[0]}
        if self.chain.start == "previous" and left == stretch and stretch[0] > 0:
            out.add((stretch[0] - 1, MODEL))
        if self.chain.keep_first and stretch[0] > 0:
            out.add((0, MODEL))
        return out

    def _left(self, stretch: range) -> range:
        """The generations of a stretch that must be trained.

        A chain that has grown may have its old last generation inside a stretch, where it goes on.
        """
        there = [g for g in self.store.committed() if g in stretch[:-1] and g not in self.stale]
        for generation in reversed(there):
            health = inspect(self.store.path(generation))
            needed = {SAMPLES, MODEL} if self.chain.start == "previous" else {SAMPLES}
            if (
                health.whole
                and needed <= health.there
                and self.history.can_take_up(stretch, generation)
            ):
                return range(generation + 1, stretch.stop)
        return stretch

    def _drop(self, commit: int) -> None:
        """Remove what of a committed generation nobody needs any more."""
        if commit < 0:
            return
        if self.chain.keep == "last" and not (self.chain.keep_first and commit == 0):
            self.store.drop(commit, MODEL)
        if self.chain.keep_samples == "needed" and self.history.is_done_with(commit):
            self.store.drop(commit, SAMPLES)

    def _end(self, stretch: range, reason: Ended) -> None:
        generation = max(self.history.reached + 1, stretch[0])
        if generation == 0:
            raise RunFailed(f"generation 0 could not be trained: {reason}") from reason
        for behind in [g for g in self.store.committed() if g >= generation]:
            self.store.forget(behind)
        self.store.end(generation, str(reason))
        self.history = self._history()
        self.tell(f"ended at generation {generation}: {reason}")

    def _run(self, stretch: range) -> None:
        model: M | None = None
        left = self._left(stretch)
        if left != stretch:
            self.history.take_up(stretch, left[0] - 1)
        for generation in left:
            self.progress.begin(generation)
            model = self._start(generation, model)
            parts, fit = self._fit(model, generation)
            rewritten = self._rewrite(model, generation)
        assert model is not None
        self._commit(stretch, model, parts, fit, rewritten)

    def _start(self, generation: int, model: M | None) -> M:
        chain = self.chain
        if chain.start == "previous" and model is not None:
            return model
        weights = chain.derive(generation, "weights")
        if chain.start == "scratch":
            return chain.family.create("scratch", seeds=weights)
        if chain.start == "base" or generation == 0:
            return chain.family.create("base", seeds=weights)
        return chain.family.load(self.store.path(generation - 1) / MODEL)

    def _fit(
        self, model: M, generation: int
    ) -> tuple[list[tuple[Part, Samples]], Mapping[str, Any]]:
        chain = self.chain
        plan = chain.regime(generation, len(chain.real))
        parts = [(part, self._take(part, generation)) for part in plan.train]
        values = [v for _, v in parts]
        fit = model.fit(
            values[0] if len(values) == 1 else np.concatenate(values),
            seeds=chain.derive(generation, "fit"),
            progress=self.progress,
        )
        return parts, fit

    def _take(self, part: Part, generation: int) -> Samples:
        values = self.history.read(part.split, part.generation)
        if part.between == (0.0, 1.0):
            return values
        chain = self.chain
        seeds = chain.derive(generation, "draw", part.split)
        if len(seeds) == 1:
            return draw_share(values, part.between, chain.family.unit, seeds[0])
        drawn = [
            draw_share(values[:, i], part.between, chain.family.unit, seed)
            for i, seed in enumerate(seeds)
        ]
        return np.stack(drawn, axis=1)

    def _rewrite(self, model: M, generation: int) -> dict[int, Samples]:
        chain = self.chain
        rewritten: dict[int, Samples] = {}
        written: dict[tuple[int, int], Samples] = {}
        for rewrite in chain.regime(generation, len(chain.real)).rewrites:
            split = rewrite.source.split
            rewritten[split] = model.regenerate(
                self.history.read(split, rewrite.source.generation),
                seeds=chain.derive(generation, "regenerate", split),
                progress=self.progress,
            )
            written[split, rewrite.to] = rewritten[split]
        self.history.add(generation, written)
        return rewritten

    def _commit(
        self,
        stretch: range,
        model: M,
        parts: list[tuple[Part, Samples]],
        fit: Mapping[str, Any],
        rewritten: Mapping[int, Samples],
    ) -> None:
        generation, chain = stretch[-1], self.chain
        droppable = (MODEL, SAMPLES) if chain.keep_samples == "needed" else (MODEL,)
        with committing(self.store.path(generation), droppable) as folder:
            stage = Stage(
                generation=generation,
                model=model,
                real=chain.real,
                rewritten=rewritten,
                fit=fit,
                seed=chain.derive(generation, "evaluate")[0],
                tick=lambda done, total: self.progress.step("measure", done, total),
                origin=self.store.path(0) if generation else folder,
            )
            scores = chain.evaluate(stage, folder)
            write_jsonl(folder / "scores.jsonl", [score.record() for score in scores])
            write_json(folder / "ledger.json", ledger(parts))
            write_json(folder / "fit.json", dict(fit))
            named = self.history.to_keep(stretch)
            save_file({k: np.ascontiguousarray(v) for k, v in named.items()}, folder / SAMPLES)
            model.save(folder / MODEL)
        if self.stale:
            self.stale.discard(generation)
            self.store.set_stale(self.stale)
        self.progress.end(generation, scores)


def draw_share(values: Samples, between: tuple[float, float], unit: int, seed: int) -> Samples:
    """A random share of the units of `values`, in their order.

    Args:
        values: Samples; the first axis is cut into units of `unit` values, the last one shorter.
        between: Stretch of the random order of units to take, as shares in [0, 1]. Stretches that
            part [0, 1] also part the units, given equal seeds.
        unit: Values that stay together.
        seed: Of the order.
    """
    n = -(-len(values) // unit)
    first, last = (round(share * n) for share in between)
    taken = np.sort(np.random.default_rng(seed).permutation(n)[first:last])
    places = (taken[:, None] * unit + np.arange(unit)).ravel()
    chosen: Samples = values[places[places < len(values)]]
    return chosen
