"""Commits every so many generations, samples that are dropped, chains that end, several seeds."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file

from fortifai.errors import Diverged, RunFailed
from fortifai.lab import regimes
from fortifai.lab.loop import Chain, recurse
from fortifai.lab.measures import Score
from fortifai.lab.progress import Silent
from fortifai.lab.store import ChainStore, inspect, read_jsonl
from fortifai.points.gaussian import GaussianFamily, GaussianOptions
from fortifai.weights import Truncate
from tests.lab import toy
from tests.lab.test_loop import KilledError, digest, run

REGIMES = {
    "fortifai": regimes.Fortifai(),
    "replace": regimes.Replace(),
    "accumulate": regimes.Accumulate(),
    "accumulate-subsample": regimes.AccumulateSubsample(),
    "mix": regimes.Mix(alpha=0.5),
    "keep-original": regimes.Mix(keep_original=0.25),
}
GENERATIONS = 8


def committed(store: ChainStore) -> list[int]:
    return [g for g in range(GENERATIONS) if inspect(store.path(g)).whole]


@pytest.mark.parametrize("start", ["previous", "base"])
@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES)
def test_fewer_commits_are_the_same_chain(tmp_path, regime, start):
    ask = {"generations": GENERATIONS, "regime": regime, "init_from": start}
    each = run(tmp_path / "each", **ask)
    some = run(tmp_path / "some", **ask, eval_every=3)
    assert committed(some) == [0, 3, 6, 7]
    for g in committed(some):
        told = [read_jsonl(store.path(g) / "scores.jsonl") for store in (each, some)]
        assert told[0] == told[1]
        written = [load_file(store.path(g) / "samples.safetensors") for store in (each, some)]
        for name, values in written[0].items():
            np.testing.assert_array_equal(values, written[1][name])
        ledgers = [(store.path(g) / "ledger.json").read_bytes() for store in (each, some)]
        assert ledgers[0] == ledgers[1]


def _dies_at_the(call):
    calls = []

    def evaluate(stage, folder):
        calls.append(stage.number)
        if len(calls) == call:
            raise KilledError
        return toy.evaluate(stage, folder)

    return evaluate


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("keep_samples", ["all", "needed"])
@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES)
def test_an_interrupted_chain_ends_with_the_same_bytes(tmp_path, regime, keep_samples, call):
    ask = {
        "generations": GENERATIONS,
        "regime": regime,
        "eval_every": 3,
        "save_samples": keep_samples,
    }
    whole = run(tmp_path / "whole", **ask)
    with pytest.raises(KilledError):
        run(tmp_path / "cut", **ask, evaluate=_dies_at_the(call))
    store = run(tmp_path / "cut", **ask)
    assert digest(store.folder) == digest(whole.folder)


@pytest.mark.parametrize(
    ("regime", "there"),
    [
        ("replace", [7]),  # nobody reads older ones again
        ("accumulate", [7]),  # all are read until the last generation has been
        ("mix", [7]),
    ],
)
def test_samples_that_nobody_needs_are_dropped(tmp_path, regime, there):
    ask = {"generations": GENERATIONS, "regime": REGIMES[regime], "save_samples": "needed"}
    seen = []

    def evaluate(stage, folder):
        parent = folder.parent
        seen.append(
            [g for g in range(8) if (parent / f"generation-{g:02d}/samples.safetensors").exists()]
        )
        return toy.evaluate(stage, folder)

    store = run(tmp_path, **ask, evaluate=evaluate)
    has = [g for g in range(8) if (store.path(g) / "samples.safetensors").exists()]
    assert has == there
    assert all(inspect(store.path(g)).whole for g in range(8))  # dropped is not damaged
    if regime == "replace":
        assert all(len(found) <= 2 for found in seen)
    if regime == "accumulate":
        assert seen[7] == list(range(7))


@pytest.mark.parametrize("generation", [0, 3, 6, 7])
@pytest.mark.parametrize("regime", ["replace", "accumulate", "fortifai"])
def test_damage_is_mended_where_samples_and_weights_are_gone(tmp_path, regime, generation):
    ask = {
        "generations": GENERATIONS,
        "regime": REGIMES[regime],
        "eval_every": 3,
        "save_samples": "needed",
    }
    store = run(tmp_path, **ask)
    before = digest(tmp_path)
    (store.path(generation) / "extra.txt").write_text("damaged")
    told: list[str] = []
    run(tmp_path, told, **ask)
    assert any("extra.txt" in sentence for sentence in told)
    assert digest(tmp_path) == before


# --- chains that end --------------------------------------------------------------------------


class EndingFamily(toy.MeanFamily):
    """Cannot be trained in generation `at`."""

    def __init__(self, at: int) -> None:
        self.at = at

    def create(self, start, *, seed):
        return EndingModel(super().create(start, seed=seed).mean, 0, self.at)

    def load(self, folder):
        model = super().load(folder)
        return EndingModel(model.mean, model.fits, self.at)


class EndingModel(toy.MeanModel):
    def __init__(self, mean: float, fits: int, at: int) -> None:
        super().__init__(mean, fits)
        self.at = at

    def fit(self, samples, *, seed, progress):
        if self.fits == self.at:
            raise Diverged("the variance is 1e+200")
        return super().fit(samples, seed=seed, progress=progress)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 7])
def test_a_chain_that_ends_keeps_what_it_reached(tmp_path, at):
    ask = {"generations": GENERATIONS, "regime": regimes.Replace(), "eval_every": 3}
    whole = run(tmp_path / "whole", generations=GENERATIONS, regime=regimes.Replace())
    told: list[str] = []
    store = run(tmp_path / "ended", told, **ask, family=EndingFamily(at))
    assert told == [f"ended at generation {at}: the variance is 1e+200"]
    assert committed(store) == sorted({0, at - 1, *(g for g in (3, 6) if g < at)})
    end = json.loads((store.folder / "ended.json").read_text())
    assert end == {"generation": at, "reason": "the variance is 1e+200"}
    for g in committed(store):
        assert read_jsonl(store.path(g) / "scores.jsonl") == read_jsonl(
            whole.path(g) / "scores.jsonl"
        )
    # the last one has its weights, and the same command again does nothing
    assert (store.path(at - 1) / "model").exists()
    before = digest(store.folder)
    run(tmp_path / "ended", **ask, family=EndingFamily(at))
    assert digest(store.folder) == before
    # damage before the end is mended, up to the end
    (store.path(0) / "extra.txt").unlink()
    run(tmp_path / "ended", **ask, family=EndingFamily(at))
    assert digest(store.folder) == before


def test_a_chain_killed_after_its_end_was_marked_goes_on_to_it(tmp_path):
    ask = {"generations": GENERATIONS, "regime": regimes.Replace(), "eval_every": 5}
    whole = run(tmp_path / "whole", **ask, family=EndingFamily(4))

    def dies_late(stage, folder):
        if stage.number == 3:
            raise KilledError
        return toy.evaluate(stage, folder)

    with pytest.raises(KilledError):
        run(tmp_path / "cut", **ask, family=EndingFamily(4), evaluate=dies_late)
    assert (tmp_path / "cut" / "ended.json").exists()
    run(tmp_path / "cut", **ask, family=EndingFamily(4))
    assert digest(tmp_path / "cut") == digest(whole.folder)


def test_a_first_generation_that_cannot_be_trained_is_a_failure(tmp_path):
    with pytest.raises(RunFailed, match="generation 0 could not be trained: the variance is"):
        run(tmp_path, family=EndingFamily(0))
    assert not (tmp_path / "ended.json").exists()


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.long
def test_memory_does_not_grow_with_the_generations(tmp_path):
    """Samples of 0.8 MB: fifty times as many generations must not need one more of them."""
    real = [np.random.default_rng(0).normal(size=100_000)]

    def peak(generations: int, every: int) -> int:
        chain = Chain(
            family=toy.MeanFamily(),
            regime=regimes.Replace(),
            init_from="previous",
            generations=generations,
            seed=0,
            real=real,
            evaluate=lambda stage, folder: [Score("mean", stage.model.mean, "train", 1)],
            eval_every=every,
            save_samples="needed",
        )
        tracemalloc.start()
        recurse(chain, ChainStore(tmp_path / f"{generations}-{every}"), Silent())
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many, stretched = peak(6, 1), peak(300, 100), peak(300, 299)
    assert max(many, stretched) < few + 800_000


# --- several seeds at once --------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES)
def test_a_seed_among_others_is_the_seed_alone(tmp_path, regime):
    real = [np.random.default_rng(k).normal(size=(50, 4, 1)) for k in range(6)]
    splits = 6 if regime.a_split_each else 1

    def chain(seeds: tuple[int, ...]) -> np.ndarray:
        folder = tmp_path / "-".join(map(str, seeds))
        built = Chain(
            family=GaussianFamily(GaussianOptions(kind="gaussian", bias=0.9), Truncate(0.99)),
            regime=regime,
            init_from="previous",
            generations=6,
            seed=seeds,
            real=[part[:, list(seeds)] for part in real[:splits]],
            evaluate=lambda stage, folder: [],
            eval_every=2,
        )
        recurse(built, ChainStore(folder), Silent())
        return load_file(folder / "generation-05" / "samples.safetensors")["split-0"]

    together = chain((0, 1, 2, 3))
    for seed in range(4):
        np.testing.assert_array_equal(chain((seed,))[:, 0], together[:, seed])
