"""Chains that are asked for more generations than they were made with."""

from __future__ import annotations

import shutil

import pytest

from fortifai.lab import regimes
from fortifai.lab.store import ChainStore
from tests.lab import toy
from tests.lab.test_intervals import REGIMES, EndingFamily
from tests.lab.test_loop import KilledError, digest, run

SPLITS = {name: {} if name == "fortifai" else {"splits": 2} for name in REGIMES}
"""`fortifai` has a split a generation; the others have the same ones however many follow."""


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """Hundreds of small chains: what reaches the disk when is not what is tested here."""
    monkeypatch.setattr("fortifai.files.sync", lambda path: None)


def counting(trained: list[int]):
    """`toy.evaluate` that notes which generations are measured."""

    def evaluate(stage, folder):
        trained.append(stage.number)
        return toy.evaluate(stage, folder)

    return evaluate


def dying_at(generation: int):
    def evaluate(stage, folder):
        if stage.number == generation:
            raise KilledError
        return toy.evaluate(stage, folder)

    return evaluate


@pytest.mark.long
@pytest.mark.parametrize("start", ["previous", "base"])
@pytest.mark.parametrize("keep_samples", ["all", "needed"])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("regime", REGIMES)
def test_a_chain_that_grew_has_the_bytes_of_one_that_was_asked_for_all(
    tmp_path, regime, every, keep_samples, start
):
    ask = {"regime": REGIMES[regime], "eval_every": every, "save_samples": keep_samples}
    ask |= {"init_from": start, **SPLITS[regime]}
    # with commits every 3, the short chains end on a commit of the long one (4) and inside (3, 6)
    whole = run(tmp_path / "whole", generations=9, **ask)
    for short in (1, 3, 4, 6):
        run(tmp_path / f"{short}", generations=short, **ask)
        grown = run(tmp_path / f"{short}", generations=9, **ask)
        assert digest(grown.folder) == digest(whole.folder), f"from {short}"


@pytest.mark.parametrize("start", ["previous", "base"])
@pytest.mark.parametrize("regime", ["replace", "accumulate", "fortifai"])
def test_what_was_finished_is_not_done_again(tmp_path, regime, start):
    ask = {"regime": REGIMES[regime], "init_from": start, **SPLITS[regime]}
    run(tmp_path, generations=4, **ask)
    trained: list[int] = []
    told: list[str] = []
    run(tmp_path, told, generations=7, evaluate=counting(trained), **ask)
    assert trained == [4, 5, 6]
    assert told == []


def test_a_chain_goes_on_inside_an_interval_of_commits(tmp_path):
    """Commits at 0, 4, 5; asked for 12 they are 0, 4, 8, 11: 5 has the weights, 4 has not."""
    ask = {"regime": regimes.Replace(), "eval_every": 4, "splits": 2}
    run(tmp_path / "grown", generations=6, **ask)
    fits: list[int] = []

    class Counted(toy.MeanFamily):
        def load(self, folder):
            fits.append(int(folder.parent.name.removeprefix("generation-")))
            return super().load(folder)

    told: list[str] = []
    run(tmp_path / "grown", told, generations=12, family=Counted(), **ask)
    assert fits == [5, 8], "the first new generation starts from 5"
    assert told == []
    run(tmp_path / "whole", generations=12, **ask)
    assert digest(tmp_path / "grown") == digest(tmp_path / "whole")


def test_what_was_dropped_is_made_again_and_told_before_work(tmp_path):
    """`accumulate` reads all that was written, and `needed` has dropped it at the end."""
    ask = {"regime": regimes.Accumulate(), "save_samples": "needed", "splits": 2}
    run(tmp_path / "grown", generations=4, **ask)
    told: list[str] = []
    trained: list[int] = []

    def evaluate(stage, folder):
        trained.append(stage.number)
        assert told, "told before work"
        return toy.evaluate(stage, folder)

    run(tmp_path / "grown", told, generations=6, evaluate=evaluate, **ask)
    assert trained == [0, 1, 2, 4, 5]
    (sentence,) = told
    assert "generations up to 2 are done again" in sentence
    assert "save_samples" in sentence
    run(tmp_path / "whole", generations=6, **ask)
    assert digest(tmp_path / "grown") == digest(tmp_path / "whole")


@pytest.mark.parametrize("regime", ["replace", "accumulate"])
@pytest.mark.parametrize("at", [8, 9])
def test_killed_while_it_grows_it_ends_with_the_same_bytes(tmp_path, regime, at):
    ask = {"regime": REGIMES[regime], "eval_every": 4, "splits": 2}
    run(tmp_path / "grown", generations=6, **ask)
    with pytest.raises(KilledError):
        run(tmp_path / "grown", generations=10, evaluate=dying_at(at), **ask)
    run(tmp_path / "grown", generations=10, **ask)
    run(tmp_path / "whole", generations=10, **ask)
    assert digest(tmp_path / "grown") == digest(tmp_path / "whole")


@pytest.mark.parametrize("at", [2, 5, 7])
def test_a_chain_that_ends_where_it_grows(tmp_path, at):
    """At 2 it had ended before; at 5 and 7 it ends in a generation that came with the growth."""
    ask = {"regime": regimes.Replace(), "eval_every": 4, "splits": 2}
    run(tmp_path / "whole", generations=12, family=EndingFamily(at), **ask)
    run(tmp_path / "grown", generations=5, family=EndingFamily(at), **ask)
    run(tmp_path / "grown", generations=12, family=EndingFamily(at), **ask)
    assert digest(tmp_path / "grown") == digest(tmp_path / "whole")


def test_a_mark_of_an_end_that_has_changed_is_told_and_taken_back(tmp_path):
    ask = {"generations": 12, "regime": regimes.Replace(), "eval_every": 4, "splits": 2}
    ask |= {"family": EndingFamily(6)}
    run(tmp_path / "whole", **ask)
    for text in ("{", '{"generation": 2, "reason": "x"}', '{"generation": "?", "reason": "x"}'):
        folder = tmp_path / "changed"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "ended.json").write_text(text)
        told: list[str] = []
        run(folder, told, **ask)
        assert "ended.json" in told[0]
        assert digest(folder) == digest(tmp_path / "whole")
        shutil.rmtree(folder)


def test_stale_generations_are_done_again(tmp_path):
    """Marked before the data grew; a kill in between leaves the rest marked."""
    run(tmp_path / "whole", generations=4)
    store = run(tmp_path / "stale", generations=4)
    store.set_stale([0, 1, 2, 3])
    trained: list[int] = []

    def evaluate(stage, folder):
        trained.append(stage.number)
        if trained == [0, 1, 2]:
            raise KilledError
        return toy.evaluate(stage, folder)

    with pytest.raises(KilledError):
        run(tmp_path / "stale", generations=4, evaluate=evaluate)
    assert ChainStore(tmp_path / "stale").stale() == {2, 3}
    run(tmp_path / "stale", generations=4, evaluate=counting(trained))
    assert trained == [0, 1, 2, 2, 3]
    assert digest(tmp_path / "stale") == digest(tmp_path / "whole")


def test_a_damaged_mark_makes_all_stale(tmp_path):
    store = run(tmp_path, generations=3)
    (tmp_path / "stale.json").write_text("[0, ")
    assert store.stale() == {0, 1, 2}
