"""What stands between a training set's writing and the fit on it."""

from __future__ import annotations

import dataclasses
import json
import types
from typing import ClassVar, Literal

import numpy as np
import pytest

from fortifai.errors import Diverged, RunFailed
from fortifai.lab.cures import (
    Context,
    Deduplicate,
    Edit,
    EntropyRate,
    GoldenRatio,
    KeepLikeliest,
    Oracle,
    Select,
    Surplexity,
    TokenEditing,
)
from fortifai.lab.loop import recurse
from fortifai.lab.progress import Silent
from fortifai.lab.regimes import Accumulate, Replace
from fortifai.lab.store import ChainStore
from fortifai.lab.units import REAL, Units
from tests.lab import toy
from tests.lab.test_loop import KilledError, digest


def units(*rows, origins=None, splits=None):
    lengths = [len(row) for row in rows]
    return Units(
        np.concatenate([np.asarray(row) for row in rows]),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.asarray(origins if origins is not None else [REAL] * len(rows)),
        np.asarray(splits if splits is not None else [0] * len(rows)),
    )


def rows(found: Units) -> list[list[int]]:
    return [found[i].tolist() for i in range(len(found))]


def context(log_prob=lambda x: x.astype(float)) -> Context:
    return Context(1, 0, family=None, model=types.SimpleNamespace(log_prob=log_prob))


def test_units_are_taken_with_repeats_and_lengths_of_their_own():
    some = units([1, 2], [3], [4, 5, 6], origins=[REAL, 0, 1])
    taken = some.take(np.array([2, 0, 2]))
    assert rows(taken) == [[4, 5, 6], [1, 2], [4, 5, 6]]
    assert taken.origins.tolist() == [1, REAL, 1]
    assert taken.counts() == {"real": 1, "generation-1": 2}
    assert taken.values() == (2, 8)
    assert rows(some.take(np.array([], dtype=np.int64))) == []


def test_units_are_cut_anew_within_an_origin():
    some = units([1, 2], [3], [4, 5, 6], [7], origins=[REAL, REAL, 0, 0])
    found = some.recut(lambda x: np.array([0, len(x)]))
    assert rows(found) == [[1, 2, 3], [4, 5, 6, 7]]
    assert found.origins.tolist() == [REAL, 0]
    pairs = some.recut(lambda x: np.append(np.arange(0, len(x), 2), len(x)))
    assert rows(pairs) == [[1, 2], [3], [4, 5], [6, 7]]


def test_units_are_cut_anew_within_a_split():
    some = units([1, 2], [3], [4], [5, 6], splits=[0, 1, 1, 0])
    found = some.recut(lambda x: np.array([0, len(x)]))
    assert rows(found) == [[1, 2], [3, 4], [5, 6]]
    assert found.splits.tolist() == [0, 1, 0]
    assert found.take(np.array([1])).splits.tolist() == [1]
    assert Units.join([found, some]).splits.tolist() == [0, 1, 0, 0, 1, 1, 0]


def test_deduplicate_keeps_the_first_of_equal_units():
    some = units([1, 2], [3], [1, 2], [2, 1], [3], origins=[REAL, REAL, 0, 0, 0])
    found, row = Deduplicate().apply(some, context())
    assert rows(found) == [[1, 2], [3], [2, 1]]
    assert row == {
        "read": {"real": 2, "generation-0": 3},
        "kept": {"real": 2, "generation-0": 1},
        "changed": {},
        "drawn_again": {},
    }


@pytest.mark.parametrize(
    ("cure", "expected"), [(KeepLikeliest, [[5, 7], [9]]), (Surplexity, [[1], [5, 7]])]
)
def test_a_share_is_kept_by_the_mean_log_probability(cure, expected):
    """The mean, not the sum: [5, 7] is between 1 and 9; -inf elsewhere spoils nothing."""
    some = units([1], [5, 7], [9])
    found, _ = cure(share=2 / 3).apply(some, context())
    assert rows(found) == expected
    never = units([1, 2], [5, 7], [9])
    found, _ = KeepLikeliest(share=0.5).apply(
        never, context(lambda x: np.where(x == 2, -np.inf, x.astype(float)))
    )
    assert rows(found) == [[5, 7], [9]]


class Twice(Select):
    kind: Literal["twice"] = "twice"

    def select(self, units, context):
        return np.repeat(np.arange(len(units)), 2)


class Never(Select):
    kind: Literal["never"] = "never"

    def select(self, units, context):
        return np.array([], dtype=np.int64)


class Shifted(Edit):
    kind: Literal["shifted"] = "shifted"

    def edit(self, units, context):
        changed = np.where(units.samples > 2, units.samples + 1, units.samples)
        return dataclasses.replace(units, samples=changed)


def test_what_is_drawn_again_and_what_is_changed_is_told():
    some = units([1], [3], [4], origins=[REAL, REAL, 0])
    found, row = Twice().apply(some, context())
    assert rows(found) == [[1], [1], [3], [3], [4], [4]]
    assert row["kept"] == row["drawn_again"] == {"real": 2, "generation-0": 1}
    found, row = Shifted().apply(some, context())
    assert rows(found) == [[1], [4], [5]]
    assert row["changed"] == {"real": 1, "generation-0": 1}
    with pytest.raises(Diverged, match="'never' keeps none of 3 units"):
        Never().apply(some, context())


class Beyond(Select):
    kind: Literal["beyond"] = "beyond"
    which: tuple[int, ...]

    def select(self, units, context):
        return np.array(self.which)


@pytest.mark.parametrize("which", [(0, 3), (-1, 2), (5,)])
def test_units_that_are_not_there_are_a_fault_of_the_cure(which):
    """Not NumPy's: -1 is no unit from the end. Nor is it a model that has diverged."""
    some = units([1], [3], [4])
    with pytest.raises(RunFailed, match=r"'beyond' selects units .*, and there are 3, from 0"):
        Beyond(which=which).apply(some, context())
    assert rows(Beyond(which=(2, 0)).apply(some, context())[0]) == [[4], [1]]


class Returns(Select):
    kind: Literal["returns"] = "returns"
    found: ClassVar[object] = None

    def select(self, units, context):
        return self.found


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (np.array([True, False, True]), r"returned bool of shape \(3,\).*flatnonzero\(marks\)"),
        ([False, True, False], r"returned bool of shape \(3,\)"),
        ([0.5, 0.2, 0.9], r"returned float64 of shape \(3,\)"),
        (np.array([0.0, np.nan]), r"returned float64 of shape \(2,\)"),
        ([[0], [1]], r"returned int64 of shape \(2, 1\)"),
        (1, r"returned int64 of shape \(\)"),
        (None, r"returned object of shape \(\)"),
    ],
)
def test_marks_and_scores_are_not_taken_for_numbers_of_units(monkeypatch, found, words):
    monkeypatch.setattr(Returns, "found", found)
    with pytest.raises(RunFailed, match=words):
        Returns().apply(units([1], [3], [4]), context())


@pytest.mark.parametrize("found", [[2, 0], np.array([2, 0], dtype=np.uint8)])
def test_whole_numbers_of_any_width_are_numbers_of_units(monkeypatch, found):
    monkeypatch.setattr(Returns, "found", found)
    assert rows(Returns().apply(units([1], [3], [4]), context())[0]) == [[4], [1]]


class Broken(Edit):
    kind: Literal["broken"] = "broken"
    how: ClassVar[object] = None

    def edit(self, units, context):
        return Broken.how(units)


def written_over(of):
    of.samples[0] = 9
    return of


def marked_real(of):
    return dataclasses.replace(of, origins=np.full(len(of), REAL))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda of: of.take(np.arange(len(of) - 1)), "returned 1 of 2 units"),
        (marked_real, "with other origins"),
        (lambda of: dataclasses.replace(of, splits=of.splits + 1), "with other splits"),
        (lambda of: dataclasses.replace(of, samples=of.samples / 2), "samples of float64"),
        (lambda of: dataclasses.replace(of, samples=of.samples[:, None]), r"shape \(2, 1\)"),
        (lambda of: None, "returned NoneType, not Units"),
    ],
)
def test_an_edit_leaves_what_the_ledger_tells(monkeypatch, how, words):
    monkeypatch.setattr(Broken, "how", how)
    with pytest.raises(RunFailed, match=words):
        Broken().apply(units([1], [2], origins=[REAL, 0]), context())


def test_an_edit_in_place_does_not_pass_for_none(tmp_path, monkeypatch):
    """What changed is told by comparing with what was read; the fault is named as the cure's."""
    monkeypatch.setattr(Broken, "how", written_over)
    some = units([1], [2])
    with pytest.raises(ValueError, match="read-only"):
        Broken().apply(some, context())
    assert rows(some) == [[1], [2]]
    told = (
        r"the cure 'broken' failed \(ValueError: .*read-only; .*test_cures.py, line \d+\); correct"
    )
    with pytest.raises(RunFailed, match=told):
        recurse(chain((Broken(),)), ChainStore(tmp_path), Silent())
    assert ChainStore(tmp_path).committed() == [0]  # what was finished stays


def test_a_cure_that_asks_without_saying_so_is_told(tmp_path):
    class Silently(KeepLikeliest):
        needs_model: ClassVar[bool] = False

    with pytest.raises(RunFailed, match="give its class needs_model = True"):
        recurse(chain((Silently(share=0.5),)), ChainStore(tmp_path), Silent())


class Asks(Select):
    """Keeps all, and remembers what the model thinks: that the right model is asked."""

    kind: Literal["asks"] = "asks"
    needs_model: ClassVar[bool] = True
    seen: ClassVar[list[float]] = []

    def select(self, units, context):
        # log p of the toy is -(x - mean)^2, so the mean can be read off two points
        a, b = context.log_prob(np.array([0.0, 1.0]))
        Asks.seen.append((b - a + 1) / 2)
        return np.arange(len(units))


def chain(cures, *, init_from="previous", generations=3, regime=None, **changes):
    changes |= {"regime": regime or Replace(), "cures": cures, "splits": 1}
    return toy.chain(generations, init_from=init_from, **changes)


def ledgers(folder):
    paths = sorted(folder.glob("generation-*/ledger.json"))
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize("start", ["previous", "scratch", "base"])
@pytest.mark.parametrize("every", [1, 3])
def test_the_model_that_wrote_is_asked(tmp_path, start, every):
    """Also where a new generation starts from another, and after a restart."""
    Asks.seen.clear()
    means = []

    def evaluate(stage, folder):
        means.append(stage.model.mean)
        return toy.evaluate(stage, folder)

    cured = chain((Asks(),), init_from=start, eval_every=every, generations=4, evaluate=evaluate)
    recurse(cured, ChainStore(tmp_path / "a"), Silent())
    assert len(Asks.seen) == 3  # not before the first generation
    if every == 1:
        np.testing.assert_allclose(Asks.seen, means[:3], atol=1e-6)  # log p is float32
        again = means.copy()
        cut = chain((Asks(),), init_from=start, generations=2, evaluate=evaluate)
        recurse(cut, ChainStore(tmp_path / "b"), Silent())
        recurse(cured, ChainStore(tmp_path / "b"), Silent())
        assert digest(tmp_path / "a") == digest(tmp_path / "b")
        assert again == means[:4]


def test_a_cured_chain_trains_on_less_and_writes_as_much(tmp_path):
    cured = chain((Surplexity(share=0.5), Twice()), regime=Accumulate())
    recurse(cured, ChainStore(tmp_path), Silent())
    first, second, third = ledgers(tmp_path)
    assert "cures" not in first
    assert [row["kind"] for row in second["cures"]] == ["surplexity", "twice"]
    keep, twice = third["cures"]
    assert keep["read"] == {"real": 16, "generation-0": 16, "generation-1": 16}
    assert sum(keep["kept"].values()) == 24
    assert twice["read"] == keep["kept"] == twice["kept"] == twice["drawn_again"]
    # 24 units of 4 values, twice
    assert third["real"] + third["generated"] == 24 * 4 * 2
    assert third["real_share"] == pytest.approx(keep["kept"].get("real", 0) / 24)
    assert [p["values"] for p in third["parts"]] == [64, 64, 64]


def test_a_cure_that_keeps_nothing_ends_the_chain(tmp_path):
    told: list[str] = []
    recurse(chain((Never(),)), ChainStore(tmp_path), Silent(), told.append)
    assert told == ["ended at generation 1: the cure 'never' keeps none of 16 units"]
    assert ChainStore(tmp_path).committed() == [0]


def test_killed_and_taken_up_again_it_is_the_same(tmp_path):
    cures = (Deduplicate(), KeepLikeliest(share=0.5))
    recurse(chain(cures, generations=4), ChainStore(tmp_path / "whole"), Silent())

    def killed(stage, folder):
        if stage.number == 2:
            raise KilledError
        return toy.evaluate(stage, folder)

    cut = chain(cures, generations=4, evaluate=killed)
    with pytest.raises(KilledError):
        recurse(cut, ChainStore(tmp_path / "cut"), Silent())
    recurse(chain(cures, generations=4), ChainStore(tmp_path / "cut"), Silent())
    assert digest(tmp_path / "whole") == digest(tmp_path / "cut")


class Words:
    """A family whose tokens are words: w3 w4..."""

    def text(self, samples):
        return " ".join(f"w{token}" for token in samples)


def reading(model=None) -> Context:
    return Context(1, 0, family=Words(), model=model)


@pytest.mark.parametrize(("cure", "kept"), [(Surplexity, 1), (KeepLikeliest, 0)])
def test_documents_are_scored_each_by_itself_and_cut(cure, kept):
    """-log p is a token's number here; the first document's last ones, 9, are not read any more."""
    asked = []

    class Model:
        def document_log_prob(self, documents):
            asked.extend(len(document) for document in documents)
            return np.array([-float(document.mean()) for document in documents])

    some = units([1] * 512 + [9] * 88, [2, 2], [1, 2])
    found, _ = cure(share=1 / 3, unit="document").apply(some, reading(Model()))
    assert asked == [512, 2, 2]
    assert rows(found) == [rows(some)[kept]]


def test_documents_of_the_highest_entropy_rate_are_kept_within_each_split():
    new, half, old = range(60), [*range(30), *range(30)], [1, 2] * 30
    some = units(new, old, half, half, old, splits=[0, 0, 0, 1, 1])
    found, row = EntropyRate(share=0.5).apply(some, reading())
    # 2 of the 3 of split 0, and 1 of the 2 of split 1, though split 1 has none as new
    assert rows(found) == [list(new), half, half]
    assert row["kept"] == {"real": 3}


def test_short_documents_rank_last_and_nothing_but_short_ones_is_refused():
    some = units(range(49), [1, 2] * 25, range(49))
    found, _ = EntropyRate(share=1 / 3).apply(some, reading())
    assert rows(found) == [[1, 2] * 25]
    found, _ = EntropyRate(share=1 / 3, least_words=49).apply(some, reading())
    assert rows(found) == [list(range(49))]
    with pytest.raises(RunFailed, match="documents of 50 words or more, and the longest has 49"):
        EntropyRate(share=0.5).apply(units(range(49)), reading())


def test_only_the_first_words_of_a_document_count():
    """Behind 1,500 words of its own one document repeats itself, the other does so before."""
    long = units([*range(1500), *[1] * 900], [*range(1400), *[1] * 100, *range(2000, 2900)])
    found, _ = EntropyRate(share=0.5).apply(long, reading())
    assert rows(found) == [rows(long)[0]]


def test_the_oracle_keeps_what_is_real():
    some = units([1], [2], [3], origins=[0, REAL, 1])
    found, row = Oracle().apply(some, reading())
    assert rows(found) == [[2]]
    assert row["kept"] == {"real": 1}


@pytest.mark.parametrize("real", [0.618, 0.2])
def test_the_golden_ratio_is_of_samples_and_draws_evenly(real):
    """30 real and 90 generated samples, in units of 1 to 3."""
    lengths = [1, 2, 3] * 20
    origins = ([REAL] * 15) + [0] * 45
    some = units(*([i] * n for i, n in enumerate(lengths)), origins=origins)
    found, row = GoldenRatio(real=real).apply(some, reading())
    taken, total = found.values()
    assert taken / 120 == pytest.approx(real, abs=3 / 120)  # less than a unit short
    assert 120 - 3 < total <= 120
    times = np.bincount([found[i][0] for i in range(len(found))], minlength=60)
    for of in (times[:15], times[15:]):
        assert of.max() - of.min() <= 1
    again, _ = GoldenRatio(real=real).apply(some, reading())
    assert rows(again) == rows(found)
    other, _ = GoldenRatio(real=real).apply(some, dataclasses.replace(reading(), seed=1))
    assert rows(other) != rows(found)
    assert set(row["drawn_again"]) == {"real" if real > 0.25 else "generation-0"}


def test_refilling_takes_as_many_updates_as_without_the_cure(tmp_path):
    """4 of 10 samples are chosen: each is trained on twice, and some of them once more."""
    some = units([1], [2, 2], [3, 3, 3], [4, 4], [5, 5])
    kept, row = KeepLikeliest(share=0.4, refill=True).apply(some, context(lambda x: x * 1.0))
    assert kept.values() == (10, 10)  # units 4 and 5 twice, and one of the two once more
    assert {tuple(r) for r in rows(kept)} == {(4, 4), (5, 5)}
    assert (row["kept"], row["drawn_again"]) == ({"real": 2}, {"real": 3})
    plain, _ = KeepLikeliest(share=0.4).apply(some, context(lambda x: x * 1.0))
    assert rows(plain) == [[4, 4], [5, 5]]
    recurse(chain((Surplexity(share=0.5, refill=True),)), ChainStore(tmp_path), Silent())
    assert len({told["spent"]["trained"] for told in ledgers(tmp_path)}) == 1


def test_what_knows_the_origin_is_judged_apart(tmp_path):
    recurse(chain((Oracle(), Deduplicate()), regime=Accumulate()), ChainStore(tmp_path), Silent())
    told = ledgers(tmp_path)[1]["cures"]
    assert [row.get("outside") for row in told] == [True, None]


@pytest.mark.parametrize(("origin", "lacking"), [(REAL, "generated"), (0, "real")])
def test_the_golden_ratio_of_one_thing_is_refused(origin, lacking):
    with pytest.raises(RunFailed, match=f"has no {lacking} ones"):
        GoldenRatio().apply(units([1], [2], origins=[origin] * 2), reading())


def test_what_a_generation_costs_is_counted(tmp_path):
    """Of 64 samples a split: each generation writes 64; the cure reads the pool, half is learnt."""
    cures = (Surplexity(share=0.5), Deduplicate())
    recurse(chain(cures, regime=Accumulate()), ChainStore(tmp_path), Silent())
    assert [told["spent"] for told in ledgers(tmp_path)] == [
        {"trained": 64, "generated": 64, "scored": 0},
        {"trained": 64, "generated": 64, "scored": 128},
        {"trained": 96, "generated": 64, "scored": 192},
    ]


class Base:
    """Sure of 7 where an odd token stands (p = 0.995), in doubt where an even one does."""

    def candidates(self, samples, count):
        assert count == 3
        out = np.empty((len(samples), 3), dtype=[("id", np.int32), ("log_p", np.float32)])
        even = samples % 2 == 0
        out["id"] = np.where(even[:, None], [5, 6, 9], [7, 8, 9])
        out["log_p"] = np.log(np.where(even[:, None], [0.6, 0.3, 0.05], [0.995, 0.003, 0.0003]))
        return out


@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_tokens_that_the_base_is_sure_of_are_drawn_anew(beta):
    """Only 7s, where 7 has p 0.995, and of real units: 5 and 3 are not what the base is sure of."""

    class Family:
        def create(self, start, *, seed):
            assert start == "base"
            return Base()

    real, generated = [7] * 5000 + [5, 6, 3], [7] * 50
    some = units(generated, real, origins=[0, REAL])
    context = Context(1, 3, family=Family(), model=None)
    found, row = TokenEditing(candidates=3, beta=beta).apply(some, context)
    assert rows(found)[0] == generated
    assert rows(found)[1][5000:] == [5, 6, 3]
    p = np.array([0.995, 0.003, 0.0003]) ** (1 / beta)
    expected = 5000 * p / p.sum()
    drawn = np.bincount(found[1][:5000], minlength=10)[7:]
    # five standard deviations of a count
    assert (abs(drawn - expected) <= 5 * np.sqrt(expected)).all()
    assert row["changed"] == {"real": 1}
    again, _ = TokenEditing(candidates=3, beta=beta).apply(some, context)
    assert rows(again) == rows(found)
    kept, row = TokenEditing(candidates=3, above=0.996).apply(some, context)
    assert rows(kept) == rows(some)
    assert row["changed"] == {}
