"""The recursive loop (ForTIFAI, Algorithm 1), the same for every family of models.

    for each generation i:
        the regime picks the training parts -> fit -> rewrite -> evaluate -> commit

The loop knows protocols, not families: a model is anything with fit, regenerate, log_prob, save.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from fortifai.evals.score import Score
from fortifai.evals.view import Stage
from fortifai.loop.progress import Progress
from fortifai.loop.regimes import Part, Regime
from fortifai.loop.seeds import derive
from fortifai.loop.store import MODEL, ChainStore, committing, inspect, write_json, write_jsonl

Samples = NDArray[Any]
"""An array whose first axis is the sample: tokens, pixels or points."""

SAMPLES = "samples.safetensors"

Start = Literal["previous", "base", "scratch"]


class Model(Protocol):
    """A generative model of one generation."""

    def fit(self, samples: Samples, *, seed: int, progress: Progress) -> Mapping[str, Any]:
        """Train on `samples`; returns what is worth writing down (loss, truncated share...)."""
        ...

    def regenerate(self, samples: Samples, *, seed: int, progress: Progress) -> Samples:
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

    def create(self, start: Literal["base", "scratch"], *, seed: int) -> M_co:
        """The base model, or a new one with random weights from `seed`."""
        ...

    def load(self, folder: Path) -> M_co:
        """The model that `Model.save` wrote."""
        ...


@dataclasses.dataclass(frozen=True)
class Chain(Generic[M]):
    """One arm and seed: everything the loop needs.

    Attributes:
        family: Makes the models.
        regime: Picks training sets.
        start: What each generation after the first starts from.
        generations: How many.
        seed: The root of all random numbers.
        real: D_k^(0), the splits.
        evaluate: Measures a finished generation; may write files into the folder given.
        keep: Keep the weights of the ``last`` generation or of ``all``.
    """

    family: Family[M]
    regime: Regime
    start: Start
    generations: int
    seed: int
    real: Sequence[Samples]
    evaluate: Callable[[Stage[M], Path], Sequence[Score]]
    keep: Literal["last", "all"] = "last"


def recurse(
    chain: Chain[M],
    store: ChainStore,
    progress: Progress,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Run the generations of `chain` that `store` does not hold whole yet.

    Deterministic on one machine: a run that was killed and taken up again writes the same bytes.
    A damaged generation is told through `tell` and done again; so are the generations between it
    and the last earlier one whose weights are still there, if it needs them.

    Args:
        chain: What to run.
        store: Where to.
        progress: Receives the steps.
        tell: Receives one sentence for each thing that a user should know.
    """
    store.sweep()
    todo = _missing(chain, store, tell)
    while todo:
        generation = todo.pop(0)
        before = store.sum_of(generation, SAMPLES)
        _run_generation(chain, store, generation, progress)
        later = range(generation + 1, chain.generations)
        stale = [g for g in later if g not in todo and store.path(g).exists()]
        if stale and before != store.sum_of(generation, SAMPLES):
            tell(
                f"generation {generation} came out different from the one that was damaged; "
                f"generations {stale[0]} to {stale[-1]} are done again"
            )
            todo = sorted({*todo, *stale})
        if chain.keep == "last":
            for old in range(generation):
                store.drop_model(old)
    if chain.keep == "last":
        for old in range(chain.generations - 1):
            store.drop_model(old)


def _missing(chain: Chain[M], store: ChainStore, tell: Callable[[str], None]) -> list[int]:
    health = [inspect(store.path(g)) for g in range(chain.generations)]
    for g, h in enumerate(health):
        for fault in h.faults:
            tell(f"{fault}; generation {g} is done again")
    todo = {g for g, h in enumerate(health) if not h.whole}
    if chain.start == "previous":
        for g in sorted(todo):
            # the weights before g are needed: walk back to where they still are
            before = g - 1
            while before >= 0 and before not in todo and not health[before].has_model:
                todo.add(before)
                before -= 1
    return sorted(todo)


def _run_generation(
    chain: Chain[M], store: ChainStore, generation: int, progress: Progress
) -> None:
    progress.begin(generation)
    plan = chain.regime(generation, len(chain.real))
    history = _History(chain, store)
    model = _start(chain, store, generation)
    parts = [(part, history.take(part, generation)) for part in plan.train]
    fit = model.fit(
        np.concatenate([values for _, values in parts]),
        seed=derive(chain.seed, generation, "fit"),
        progress=progress,
    )
    rewritten: dict[int, Samples] = {}
    for rewrite in plan.rewrites:
        source = history.read(rewrite.source.split, rewrite.source.generation)
        rewritten[rewrite.source.split] = model.regenerate(
            source,
            seed=derive(chain.seed, generation, "regenerate", rewrite.source.split),
            progress=progress,
        )
    stage = Stage(
        generation=generation,
        model=model,
        real=chain.real,
        rewritten=rewritten,
        fit=fit,
        seed=derive(chain.seed, generation, "evaluate"),
        tick=lambda done, total: progress.step("measure", done, total),
    )
    with committing(store.path(generation)) as folder:
        scores = chain.evaluate(stage, folder)
        write_jsonl(folder / "scores.jsonl", [score.record() for score in scores])
        write_json(folder / "ledger.json", ledger(parts))
        write_json(folder / "fit.json", dict(fit))
        named = {f"split-{k}": np.ascontiguousarray(v) for k, v in rewritten.items()}
        save_file(named, str(folder / SAMPLES))
        model.save(folder / MODEL)
    progress.end(generation, scores)


def _start(chain: Chain[M], store: ChainStore, generation: int) -> M:
    if chain.start == "scratch":
        return chain.family.create("scratch", seed=derive(chain.seed, generation, "weights"))
    if chain.start == "base" or generation == 0:
        return chain.family.create("base", seed=derive(chain.seed, generation, "weights"))
    return chain.family.load(store.path(generation - 1) / MODEL)


class _History:
    """Reads D_k^(j) from the real splits or from the generation that wrote it."""

    def __init__(self, chain: Chain[Any], store: ChainStore) -> None:
        self._chain, self._store = chain, store

    def read(self, split: int, rewritings: int) -> Samples:
        if rewritings == 0:
            return self._chain.real[split]
        chain = self._chain
        for generation in range(chain.generations):
            for rewrite in chain.regime(generation, len(chain.real)).rewrites:
                if (rewrite.source.split, rewrite.to) == (split, rewritings):
                    path = self._store.path(generation) / SAMPLES
                    values: Samples = load_file(str(path))[f"split-{split}"]
                    return values
        raise AssertionError(f"no generation writes D_{split}^({rewritings})")

    def take(self, part: Part, generation: int) -> Samples:
        values = self.read(part.split, part.generation)
        if part.between == (0.0, 1.0):
            return values
        chain = self._chain
        order = np.random.default_rng(derive(chain.seed, generation, "draw", part.split))
        return draw_share(values, part.between, chain.family.unit, order)


def draw_share(
    values: Samples, between: tuple[float, float], unit: int, rng: np.random.Generator
) -> Samples:
    """A random share of the units of `values`, in their order.

    Args:
        values: Samples; the first axis is cut into units of `unit` values, the last one shorter.
        between: Stretch of the random order of units to take, as shares in [0, 1]. Stretches that
            part [0, 1] also part the units, given generators in equal states.
        unit: Values that stay together.
        rng: Draws the order.
    """
    n = -(-len(values) // unit)
    first, last = (round(share * n) for share in between)
    taken = np.sort(rng.permutation(n)[first:last])
    pieces = [values[u * unit : (u + 1) * unit] for u in taken]
    return np.concatenate(pieces) if pieces else values[:0]


def ledger(parts: Sequence[tuple[Part, Samples]]) -> dict[str, Any]:
    """How much real and how much rewritten data a generation trained on, in values."""
    rows = [
        {
            "split": part.split,
            "generation": part.generation,
            "values": len(values),
            "origin": "rewritten" if part.generation else "real",
        }
        for part, values in parts
    ]
    real = sum(len(values) for part, values in parts if part.generation == 0)
    total = sum(len(values) for _, values in parts)
    return {"parts": rows, "real": real, "rewritten": total - real, "real_share": real / total}
