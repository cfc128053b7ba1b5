from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai.errors import InputError
from fortifai.lab import regimes
from fortifai.lab.domain import draw_share
from fortifai.lab.loop import ledger
from fortifai.lab.regimes import Part, Plan, Rewrite, check_plans


def test_fortifai_is_algorithm_1_written_out():
    assert regimes.Fortifai().plan(0, 6).train == (Part(0, 0),)
    plan = regimes.Fortifai().plan(2, 6)
    assert plan.train == (Part(0, 2), Part(1, 1), Part(2, 0))
    assert plan.rewrites == (
        Rewrite(Part(0, 2), 3),
        Rewrite(Part(1, 1), 2),
        Rewrite(Part(2, 0), 1),
    )


def test_the_papers_real_shares():
    # 2509.08972, section 3: 100, 50, 33, 25, 20 and (rounded down to 15 there) 17 %
    shares = []
    for i in range(6):
        parts = [(p, np.zeros(100)) for p in regimes.Fortifai().plan(i, 6).train]
        shares.append(round(100 * ledger(parts)["real_share"]))
    assert shares == [100, 50, 33, 25, 20, 17]


def test_replace_trains_on_the_last_rewriting_alone():
    assert regimes.Replace().plan(0, 2).train == (Part(0, 0), Part(1, 0))
    assert regimes.Replace().plan(3, 2).train == (Part(0, 3), Part(1, 3))


def test_accumulate_keeps_everything():
    assert set(regimes.Accumulate().plan(2, 2).train) == {
        Part(k, j) for k in (0, 1) for j in (0, 1, 2)
    }


def test_accumulate_subsample_has_the_size_of_the_real_data_and_no_place_twice():
    values = {j: np.full(1200, j) for j in range(4)}
    place = np.arange(1200)
    parts = regimes.AccumulateSubsample().plan(3, 1).train
    taken = [draw_share(place, p.between, 10, 5) for p in parts]
    assert sorted(np.concatenate(taken)) == list(range(1200))
    assert [p.generation for p in parts] == [0, 1, 2, 3]
    assert all(len(t) == 300 for t in taken)
    assert set(values) == {p.generation for p in parts}


def test_mix_alpha_parts_the_places_between_rewritten_and_real():
    plan = regimes.Mix(alpha=0.25).plan(3, 1)
    synthetic, real = plan.train
    assert (synthetic.generation, real.generation) == (3, 0)
    place = np.arange(640)
    drawn = [draw_share(place, p.between, 32, 1) for p in plan.train]
    assert len(drawn[0]) == 160
    assert sorted(np.concatenate(drawn)) == list(range(640))
    assert plan.rewrites == (Rewrite(Part(0, 0), 4),)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, {0}), (1.0, {3})])
def test_mix_alpha_at_its_ends(alpha, expected):
    assert {p.generation for p in regimes.Mix(alpha=alpha).plan(3, 2).train} == expected


def test_mix_keep_original_adds_real_data_on_top():
    plan = regimes.Mix(keep_original=0.1).plan(2, 1)
    assert plan.train == (Part(0, 2), Part(0, 0, between=(0.0, 0.1)))
    assert regimes.Mix(keep_original=0.0).plan(2, 1).train == (Part(0, 2),)


ALL = [
    regimes.Fortifai(),
    regimes.Replace(),
    regimes.Accumulate(),
    regimes.AccumulateSubsample(),
    regimes.Mix(alpha=0.5),
    regimes.Mix(keep_original=0.1),
]


def test_all_are_asked():
    assert {type(regime) for regime in ALL} == set(regimes.REGIMES), "name the new one in ALL"


@given(st.sampled_from(ALL), st.integers(0, 7), st.integers(1, 8))
def test_every_part_was_written_before_it_is_needed(regime, generation, splits):
    written = {(k, 0) for k in range(splits)}
    for i in range(generation + 1):
        plan = regime.plan(i, splits)
        assert plan.train
        assert all((p.split, p.generation) in written for p in plan.train)
        assert all((r.source.split, r.source.generation) in written for r in plan.rewrites)
        new = {(r.source.split, r.to) for r in plan.rewrites}
        assert not new & written, "a part would be written twice"
        written |= new


@given(st.integers(1, 300), st.integers(1, 40), st.floats(0, 1), st.integers(0, 3))
def test_draw_share_keeps_units_whole_and_in_order(size, unit, share, seed):
    place = np.arange(size)
    taken = draw_share(place, (0.0, share), unit, seed)
    rest = draw_share(place, (share, 1.0), unit, seed)
    assert (np.diff(taken) > 0).all()
    assert sorted([*taken, *rest]) == list(range(size))
    units = {int(t) // unit for t in taken}
    assert len(taken) == sum(min(unit, size - u * unit) for u in units)


def test_on_some_splits_alone_a_regime_sees_no_others():
    """The plan of a regime on two splits, with their numbers put in place of 0 and 1."""
    for generation in range(4):
        plan = regimes.Mix(alpha=0.25, splits=(3, 1)).plan(generation, 5)
        there = {0: 3, 1: 1}
        own = regimes.Mix(alpha=0.25).plan(generation, 2)
        assert plan.train == tuple(Part(there[p.split], p.generation, p.between) for p in own.train)
        assert plan.rewrites == tuple(
            Rewrite(Part(there[r.source.split], r.source.generation), r.to) for r in own.rewrites
        )
    with pytest.raises(ValueError, match="names split 5 and there are 5"):
        regimes.Mix(alpha=0.25, splits=(5,)).plan(0, 5)


class Planned(regimes.Regime):
    kind: str = "planned"
    of: ClassVar[dict[int, object]] = {}

    def plan(self, generation, splits):
        return self.of.get(generation, regimes.Replace().plan(generation, splits))


REAL_ONES = (Part(0, 0), Part(1, 0))
WRITTEN = tuple(Rewrite(part, 1) for part in REAL_ONES)


@pytest.mark.parametrize(
    ("of", "words"),
    [
        ({0: None}, "generation 0: plan returned NoneType; return a Plan"),
        ({0: Plan((), WRITTEN)}, "generation 0: the plan trains on nothing"),
        ({1: Plan(REAL_ONES, ())}, "generation 1: the plan rewrites nothing"),
        ({0: Plan((Part(0, 1),), WRITTEN)}, "generation 0: split 0 after 1 rewritings"),
        ({0: Plan((Part(9, 0),), WRITTEN)}, "generation 0: split 9 after 0 rewritings"),
        ({0: Plan(REAL_ONES, WRITTEN[:1])}, "generation 1: split 1 after 1 rewritings"),
        ({0: Plan(REAL_ONES, (Rewrite(Part(1, 3), 1),))}, "split 1 after 3 rewritings"),
    ],
)
def test_plans_of_what_is_not_there_are_found_before_a_run(monkeypatch, of, words):
    monkeypatch.setattr(Planned, "of", of)
    with pytest.raises(InputError, match=words):
        check_plans(Planned(), 2, 4)


def test_plans_of_the_package_are_whole():
    for regime in (regimes.Replace(), regimes.Accumulate(), regimes.Fortifai()):
        check_plans(regime, 6, 6)
