"""What a measure is, apart from any kind of data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from fortifai.errors import RunFailed
from fortifai.lab.measures import Generation, Score, mean_score, measure, once, share_score


def generation() -> Generation:
    return Generation(
        number=0,
        model=None,
        domain=None,
        real=[],
        rewritten={},
        fit={},
        seed=0,
        tick=lambda done, total: None,
        origin=Path(),
    )


def test_what_is_marked_once_is_computed_once_for_each_generation():
    calls = []

    @once
    def slow(seen):
        """The docstring stays."""
        calls.append(seen)
        return len(calls)

    first, second = generation(), generation()
    assert [slow(first), slow(first), slow(second), slow(first)] == [1, 1, 2, 1]
    assert slow.__doc__ == "The docstring stays."


def test_scores_must_be_named_after_their_measure():
    @measure("length", title="Length", panel="Length", unit="tokens")
    def length(seen):
        yield Score("length.most", 1.0, "train", 1)
        yield Score("lengths", 1.0, "train", 1)

    with pytest.raises(RunFailed, match="'length' gave a score named 'lengths'"):
        length(generation())


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Score("length", None, "train", 1), "whose value is None; give a real number"),
        (Score("length", "3", "train", 1), "whose value is '3'"),
        (Score("length", True, "train", 1), "whose value is True"),
        (Score("length", 1.0, "train", 1.5), "whose n is 1.5; give a whole number"),
        (Score("length", 1.0, "train", 1, stderr="0"), "whose stderr is '0'"),
        (3.0, r"gave 3.0; give Score\(...\)"),
    ],
)
def test_what_is_no_number_is_not_kept_for_good(found, words):
    @measure("length", title="Length", panel="Length")
    def length(seen):
        yield found

    with pytest.raises(RunFailed, match=words):
        length(generation())


def test_two_scores_of_one_name_are_refused_and_those_of_several_seeds_are_not():
    @measure("length", title="Length", panel="Length")
    def length(seen):
        yield Score("length", 1.0, "train", 1, seed=0)
        yield Score("length", 1.0, "train", 1, seed=1)
        yield Score("length", 1.0, "real", 1, seed=0)
        yield from seen.fit.get("more", ())

    assert len(length(generation())) == 3
    twice = dataclasses.replace(
        generation(), fit={"more": [Score("length", 2.0, "real", 1, seed=0)]}
    )
    with pytest.raises(RunFailed, match="two scores named 'length' on 'real'"):
        length(twice)


def test_what_a_measure_raises_is_told_as_its_fault():
    @measure("length", title="Length", panel="Length")
    def length(seen):
        yield 1 / seen.number

    told = r"the measure 'length' failed \(ZeroDivisionError: .*test_measures.py, line \d+\)"
    with pytest.raises(RunFailed, match=told):
        length(generation())


def test_numbers_of_numpy_are_numbers():
    """Not those of JSON, in which they are written down."""
    row = Score("a", np.float32(0.5), "train", np.int64(3), stderr=np.float64(0.25)).record()
    assert json.loads(json.dumps(row)) == Score("a", 0.5, "train", 3, stderr=0.25).record()


def test_a_record_says_what_there_is():
    assert Score("a", 1.0, "train", 3).record() == {
        "measure": "a",
        "value": 1.0,
        "on": "train",
        "n": 3,
        "stderr": None,
        "chance": None,
    }
    assert Score("a", 1.0, "train", 3, seed=0).record()["seed"] == 0


def test_standard_errors_of_means_and_shares():
    """By hand: 1, 2, 3, 6 has a sample variance of 14 / 3."""
    score = mean_score("a", [1, 2, 3, 6], "train")
    assert (score.value, score.n) == (3.0, 4)
    assert score.stderr == pytest.approx(np.sqrt(14 / 3 / 4))
    assert mean_score("a", [2], "train").stderr is None
    share = share_score("a", [1, 0, 0, 1], "train", chance=0.25)
    assert (share.value, share.stderr, share.chance) == (0.5, 0.25, 0.25)
    assert share_score("a", [1.0, 1.0], "train").stderr == 0
