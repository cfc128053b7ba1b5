from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fortifai import configuration
from fortifai.errors import InputError
from fortifai.lab.measures import Score
from fortifai.lab.spec import FailureLevel
from fortifai.report.compare import differences, kr_change, kr_difference, to_baseline
from fortifai.report.failure import failures, in_words, ratio
from fortifai.report.records import FIRST, KR, Answers, Arm, Chain, Generation, Run
from fortifai.text.measures import MEASURES


def _level(measure: str, on: str, level: float | str, direction: str) -> FailureLevel:
    told = {"measure": measure, "on": on, "level": level, "direction": direction}
    return FailureLevel.model_validate(told)


ABSOLUTE = _level(KR, FIRST, 0.75, "below")
HALF = _level(KR, FIRST, "half_gain", "below")
ABOVE = _level("perplexity", FIRST, 200.0, "above")


def _generation(number: int, kr: float, perplexity: float, asked: int) -> Generation:
    """`asked` questions of which exactly the share `kr` is answered rightly; none if 0."""
    answers = None
    if asked:
        right = (np.arange(asked) < round(kr * asked)).astype(np.float64)
        ids = tuple(f"q{i}" for i in range(asked))
        answers = Answers(ids, np.zeros(asked, np.int64), right)
    scores = {
        (KR, FIRST): Score(KR, kr, FIRST, asked, chance=0.5),
        ("perplexity", FIRST): Score("perplexity", perplexity, FIRST, 100),
    }
    return Generation(number, scores, answers=answers)


def _arm(
    name: str,
    curves: Sequence[Sequence[float]],
    *,
    perplexity: Sequence[float] = (),
    asked: int = 0,
) -> Arm:
    chains = tuple(
        Chain(
            seed,
            tuple(
                _generation(i, v, perplexity[i] if perplexity else 1.0, asked)
                for i, v in enumerate(curve)
            ),
            tuple(range(len(curve))),
        )
        for seed, curve in enumerate(curves)
    )
    return Arm(name, name, "run", name == "ce", {}, chains)


def _run(*arms: Arm, levels: tuple[FailureLevel, ...] = (ABSOLUTE,)) -> Run:
    return Run("run", "", "tokens", {}, MEASURES, (), levels, 5 * len(arms), arms)


def _cells(run: Run, arm: str, level: int = 0) -> tuple[str, str, str, str]:
    time, against = failures([run]).cells[arm][level]
    return time["text"], time["note"], against["text"], against["note"]


def test_times_and_ratio_by_hand() -> None:
    # ce: from 0.85 to 0.65 in one step: 0.75 lies half way. tce: 0.75 lies half way of step two.
    run = _run(_arm("ce", [[0.85, 0.65, 0.6]]), _arm("tce", [[0.9, 0.8, 0.7]]))
    assert _cells(run, "ce") == ("0.50", "", "1", "baseline")
    assert _cells(run, "tce") == ("1.50", "", "3.00", "")  # one seed, no questions: no interval
    level, crossings = failures([run]).drawn[KR, FIRST]
    assert level == 0.75
    assert crossings == pytest.approx({"ce": 0.5, "tce": 1.5}, abs=1e-12)


def test_mean_and_range_over_seeds() -> None:
    run = _run(_arm("ce", [[0.85, 0.65], [0.80, 0.70]]), _arm("tce", [[0.85, 0.65], [0.8, 0.6]]))
    assert _cells(run, "ce")[:2] == ("0.50", "0.50 to 0.50")
    assert _cells(run, "tce")[:2] == ("0.38", "0.25 to 0.50")


def test_what_did_not_fail_is_a_bound() -> None:
    run = _run(
        _arm("ce", [[0.85, 0.65, 0.6, 0.6, 0.6]] * 2),
        _arm("never", [[0.9, 0.9, 0.9, 0.8, 0.8]] * 2),
        _arm("half", [[0.85, 0.65, 0.6, 0.6, 0.6], [0.9, 0.9, 0.9, 0.8, 0.8]]),
    )
    assert _cells(run, "never")[:3] == ("> 4", "", "> 8.00")
    assert _cells(run, "half")[:3] == ("> 2.25", "1 of 2 seeds failed", "> 4.50")
    assert set(failures([run]).drawn[KR, FIRST][1]) == {
        "ce"
    }  # no ring for a time that is not known
    calm = _run(_arm("ce", [[0.9, 0.9]]), _arm("never", [[0.9, 0.9]]), _arm("x", [[0.9, 0.6]]))
    assert _cells(calm, "never")[2:] == ("\u2013", "neither failed in every seed")
    assert _cells(calm, "x")[2] == "< 0.50"


def test_a_baseline_that_fails_at_once_has_no_ratio() -> None:
    run = _run(_arm("ce", [[0.7, 0.6]]), _arm("tce", [[0.85, 0.65]]))
    assert _cells(run, "ce")[0] == "0.00"
    assert _cells(run, "tce")[2:] == ("\u2013", "baseline fails at once")


def test_half_of_the_gain_is_each_seeds_own() -> None:
    # gains over 0.5 of 0.4 and 0.2: failure at 0.7 and 0.6, half way down the first step of each
    run = _run(_arm("ce", [[0.9, 0.5], [0.7, 0.5]]), levels=(HALF,))
    assert _cells(run, "ce")[:2] == ("0.50", "0.50 to 0.50")
    assert failures([run]).drawn == {}


def test_a_rising_measure_fails_above_its_level() -> None:
    run = _run(_arm("ce", [[0.9] * 3], perplexity=[100, 150, 250]), levels=(ABOVE,))
    assert _cells(run, "ce")[0] == "1.50"


def test_a_measure_that_was_not_taken_is_said_to_be_so() -> None:
    level = _level("accuracy", FIRST, 0.5, "below")
    run = _run(_arm("ce", [[0.9, 0.6]]), _arm("tce", [[0.9, 0.6]]), levels=(level,))
    assert _cells(run, "tce") == ("\u2013", "not measured", "\u2013", "not measured in both")
    no_chance = _run(
        _arm("ce", [[0.9]]), levels=(_level("perplexity", FIRST, "half_gain", "below"),)
    )
    assert _cells(no_chance, "ce")[0] == "\u2013"


def test_the_ratio_takes_what_both_arms_have() -> None:
    short = _arm("ce", [[0.85, 0.65]])
    long = _arm("tce", [[0.9, 0.8, 0.7], [0.9, 0.9, 0.9]])
    found = ratio(long, short, ABSOLUTE)
    assert found is not None
    # seed 0 and generations 0 and 1 alone: tce has not failed by 1, ce at 0.5
    assert (found.value, found.bound, found.over) == (
        pytest.approx(2.0, abs=1e-12),
        "lower",
        "nothing",
    )


def test_questions_are_drawn_where_they_are_kept() -> None:
    curves = [[0.9, 0.6, 0.5]] * 2
    run = _run(_arm("ce", curves, asked=40), _arm("tce", [[0.9, 0.8, 0.5]] * 2, asked=40))
    found = ratio(run.arms[1], run.arms[0], ABSOLUTE)
    assert found is not None
    assert found.over == "seeds and questions"
    # by hand: tce at 1 + 0.05 / 0.3, ce at 0.15 / 0.3; the interval must hold it and be open
    assert found.value == pytest.approx((1 + 0.05 / 0.3) / 0.5, abs=1e-9)
    assert found.low is not None
    assert found.low < found.value


def test_questions_of_different_arms_that_are_not_the_same_are_not_paired() -> None:
    run = _run(_arm("ce", [[0.9, 0.6]], asked=40), _arm("tce", [[0.9, 0.6]], asked=20))
    found = ratio(run.arms[1], run.arms[0], ABSOLUTE)
    assert found is not None
    assert found.over == "nothing"


def test_differences_of_kr_are_paired_by_question() -> None:
    arm, base = _arm("tce", [[0.9, 0.8]] * 2, asked=40), _arm("ce", [[0.9, 0.6]] * 2, asked=40)
    gap = kr_difference(arm, base, 0, 1)
    assert gap is not None
    # 8 of 40 questions are right under one arm alone; unpaired, the interval would reach 0
    assert gap.value == pytest.approx(0.2, abs=1e-12)
    assert gap.sure
    assert 0.05 < gap.low < 0.2 < gap.high < 0.35
    same = kr_difference(arm, base, 0, 0)
    assert same is not None
    assert (same.value, same.low, same.high, same.sure) == (0, 0, 0, False)
    change = kr_change(base, 0, 0, 1)
    assert change is not None
    assert change.value == pytest.approx(-0.3, abs=1e-12)
    assert kr_difference(_arm("x", [[0.9]]), base, 0, 0) is None


def test_differences_are_corrected_for_the_number_of_arms() -> None:
    base = _arm("ce", [[0.9, 0.5]] * 3, asked=40)
    arms = [_arm("a", [[0.9, 0.7]] * 3, asked=40), _arm("b", [[0.9, 0.55]] * 3, asked=40)]
    found = {d.arm: d for d in differences(to_baseline(_run(base, *arms)), 0)}
    assert list(found) == ["a", "b"]
    alone = [differences(to_baseline(_run(base, arm)), 0)[0] for arm in arms]
    p = [d.gap.p for d in alone]
    assert [d.corrected for d in alone] == p  # one claim needs no correction
    assert p[0] < p[1]  # type: ignore[operator]
    # Holm by hand: the smaller p counts twice, the larger one once but no less than that
    assert found["a"].corrected == pytest.approx(2 * p[0])  # type: ignore[operator]
    assert found["b"].corrected == pytest.approx(max(2 * p[0], p[1]))  # type: ignore[operator]
    assert (found["a"].generation, found["a"].these.over) == (1, "questions")
    assert differences(to_baseline(_run(*arms)), 0) == []  # no baseline yet


def test_levels_that_nothing_can_be_held_to_are_told() -> None:
    elsewhere = _level("perplexity", "nowhere", 3.0, "above")
    chanceless = _level("perplexity", FIRST, "half_gain", "below")
    run = _run(_arm("ce", [[0.9, 0.5]]), levels=(ABSOLUTE, elsewhere, chanceless))
    assert list(failures([run]).unmeasured) == [
        "time_to_failure of perplexity on nowhere is not told: it was measured on split-0",
        "time_to_failure of perplexity on split-0 is not told: half_gain counts from what guessing "
        "gives, which perplexity has not",
    ]


def test_levels_of_several_runs_are_told_once() -> None:
    one = _run(_arm("ce", [[0.85, 0.65]]), levels=(ABSOLUTE, HALF))
    two = _run(_arm("tce", [[0.85, 0.65]]), levels=(ABSOLUTE, ABOVE))
    found = failures([one, two])
    assert list(found.levels) == [in_words(v, MEASURES) for v in (ABSOLUTE, HALF, ABOVE)]
    assert found.cells["tce"][0][1]["note"] == "no baseline yet"


@pytest.mark.parametrize(
    ("level", "words"),
    [
        (ABSOLUTE, "Knowledge Retention, first split < 0.75"),
        (HALF, "Knowledge Retention, first split: half of the gain lost"),
        (ABOVE, "Perplexity, first split > 200"),
        (_level("kl.unigram", "rewritten", 0.5, "above"), "KL of unigrams (unigram) > 0.5"),
    ],
)
def test_levels_in_words(level: FailureLevel, words: str) -> None:
    assert in_words(level, MEASURES) == words


@pytest.mark.parametrize(
    ("measure", "hint"),
    [("variance", "did you mean"), ("tail.9", ""), ("kr.mean", "name one of variance.ratio")],
)
def test_a_level_names_a_measure_that_is_taken(measure: str, hint: str) -> None:
    raw = {
        "name": "x", "baseline": "a", "arms": {"a": {}}, "family": {"kind": "gaussian"},
        "corpus": {"kind": "points", "source": {"kind": "gaussian"}, "samples": 50},
        "time_to_failure": [{"measure": measure, "level": 1.0}],
    }  # fmt: skip
    if not hint:  # a variant of one
        assert configuration.resolve(raw).time_to_failure[0].measure == measure
        return
    with pytest.raises(InputError, match=f"time_to_failure names '{measure}'.*{hint}"):
        configuration.resolve(raw)
