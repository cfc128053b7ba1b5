from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from fortifai.data.questions import Question
from fortifai.errors import InputError
from fortifai.evals.kr_test import KRResult, kr_test, scores, table


def question(i: int, true: str = "true", false: str = "false") -> Question:
    return Question(context=f"context {i}", true=true, false=false, location=i + 1)


class Answers:
    """Gives what it was told to, by continuation, and keeps what it was asked."""

    def __init__(self, known: dict[str, tuple[float, int]]) -> None:
        self.known, self.asked = known, []

    def continuation_log_prob(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        self.asked.append(list(pairs))
        return [self.known[end] for _, end in pairs]


# sum and mean disagree on the first: -6 < -5, but -6/4 > -5/2
KNOWN = {"a": (-6.0, 4), "b": (-5.0, 2), "c": (-1.0, 1), "d": (-9.0, 3), "e": (-2.0, 2)}
QUESTIONS = [question(0, "a", "b"), question(1, "c", "d"), question(2, "d", "c")]


def test_mean_and_sum_log_probability_of_both_continuations():
    model = Answers(KNOWN)
    result = kr_test(model, QUESTIONS)
    np.testing.assert_array_equal(result.true["sum"], [-6, -1, -9])
    np.testing.assert_array_equal(result.false["sum"], [-5, -9, -1])
    np.testing.assert_array_equal(result.true["mean"], [-1.5, -1, -3])
    np.testing.assert_array_equal(result.false["mean"], [-2.5, -3, -1])
    np.testing.assert_array_equal(result.right("mean"), [1, 1, 0])
    np.testing.assert_array_equal(result.right("sum"), [0, 1, 0])
    assert result.ids == tuple(q.id for q in QUESTIONS)
    assert model.asked == [[(q.context, end) for q in QUESTIONS for end in (q.true, q.false)]]


def test_a_tie_counts_half_as_guessing_would():
    result = kr_test(Answers(KNOWN), [question(0, "c", "c"), question(1, "c", "e")])
    np.testing.assert_array_equal(result.right("sum"), [0.5, 1])
    np.testing.assert_array_equal(result.right("mean"), [0.5, 0.5])
    assert [row["correct"] for row in table(result, [0, 0])] == [False, False, False, True]


def test_impossible_continuations_tie_and_nan_is_refused():
    known = {"true": (-math.inf, 2), "false": (-math.inf, 3)}
    np.testing.assert_array_equal(kr_test(Answers(known), [question(0)]).right("mean"), [0.5])
    with pytest.raises(InputError, match="NaN"):
        kr_test(Answers({"true": (math.nan, 2), "false": (-1.0, 1)}), [question(0)])


def result_of(right: Sequence[float]) -> KRResult:
    """A result in which both variants are right as told."""
    true, false = np.array(right, dtype=float) - 1, np.full(len(right), -0.5)
    ids = tuple(f"{i:012x}" for i in range(len(right)))
    return KRResult(ids, {"mean": true, "sum": true}, {"mean": false, "sum": false})


def test_scores_on_splits_up_to_the_stage_and_in_total():
    right, splits = [1, 1, 0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1, 2, 2]
    got = {(s.measure, s.on): s for s in scores(result_of(right), splits, stage=1)}
    expected = {
        "split-0": (3 / 4, 4),
        "split-1": (0, 2),
        "split-2": (1 / 2, 2),
        "up-to-stage": (3 / 6, 6),
        "total": (4 / 8, 8),
    }
    assert set(got) == {(f"kr.{v}", on) for v in ("mean", "sum") for on in expected}
    for (_, on), score in got.items():
        value, n = expected[on]
        assert (score.value, score.n) == (value, n)
        assert score.stderr == pytest.approx(math.sqrt(value * (1 - value) / n))
        assert score.chance == 0.5


def test_sets_without_questions_have_no_score():
    got = scores(result_of([1, 0]), [3, 3], stage=1)
    assert {s.on for s in got} == {"split-3", "total"}


def test_no_questions_no_scores():
    result = kr_test(Answers({}), [])
    assert scores(result, [], stage=0) == []
    assert table(result, []) == []


def test_a_split_for_each_question_is_needed():
    with pytest.raises(ValueError, match="1 splits for 2 questions"):
        scores(result_of([1, 0]), [0], stage=0)


def test_table_has_a_row_per_question_and_variant():
    rows = table(kr_test(Answers(KNOWN), QUESTIONS), [0, 1, 1])
    assert len(rows) == 6
    assert rows[0] == {
        "id": QUESTIONS[0].id,
        "split": 0,
        "variant": "mean",
        "true_log_prob": -1.5,
        "false_log_prob": -2.5,
        "correct": True,
    }
    assert rows[3] == {
        "id": QUESTIONS[0].id,
        "split": 0,
        "variant": "sum",
        "true_log_prob": -6.0,
        "false_log_prob": -5.0,
        "correct": False,
    }
