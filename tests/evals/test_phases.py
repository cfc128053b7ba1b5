from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from fortifai.errors import InputError
from fortifai.evals.phases import Curves, Onset, PhaseRule, phases

CHANCE = 0.25
COUNT = 12


def fall(middle: float, width: float, top: float, floor: float) -> np.ndarray:
    """A curve that falls from `top` to `floor` about a generation."""
    return floor + (top - floor) / (1 + np.exp((np.arange(COUNT) - middle) / width))


def answers(
    rng: np.random.Generator, curve: np.ndarray, seeds: int, n: int = 200, wobble: float = 0.0
) -> np.ndarray:
    """Answers to n questions of which in the mean the share `curve` is right.

    A question is as hard in every generation, but which side it falls on changes now and then, as
    models' answers do; each seed and generation is better or worse by `wobble`.
    """
    hard = rng.uniform(size=(1, 1, n))
    noise = rng.normal(0, 0.15, (seeds, len(curve), n))
    lift = rng.normal(0, wobble, (seeds, len(curve), 1))
    # uniform after folding, so that the share below c is c whatever the noise
    place = np.abs((hard + noise) % 2)
    place = np.where(place > 1, 2 - place, place)
    return (place < curve[None, :, None] + lift).astype(float)


def true_onset(curve: np.ndarray, floor: float, share: float = 0.5) -> int:
    """The first generation that has lost the share, from the curve itself."""
    return next(g for g in range(len(curve)) if curve[0] - curve[g] >= share * (curve[0] - floor))


@pytest.mark.long
@pytest.mark.parametrize(("seeds", "wobble"), [(1, 0.0), (2, 0.02), (3, 0.02)])
def test_onsets_are_right_within_one_generation(seeds: int, wobble: float) -> None:
    """1,000 simulated collapses of 200 questions for each number of seeds."""
    rng = np.random.default_rng(seeds)
    sims, right, held = 1000, 0, np.zeros(2)
    for _ in range(sims):
        width, middle = rng.uniform(0.5, 1.5), rng.uniform(2, 6)
        know = fall(middle, width, rng.uniform(0.6, 0.9), CHANCE)
        form = fall(middle + rng.uniform(2.5, 4), width, rng.uniform(0.85, 1.0), 0.02)
        curves = Curves(
            answers(rng, know, seeds, wobble=wobble),
            answers(rng, form, seeds, wobble=wobble),
            CHANCE,
        )
        found = phases({"mc": curves})["mc"]
        truth = (true_onset(know, CHANCE), true_onset(form, 0.0))
        if found.b is None or found.c is None:
            continue
        right += all(
            abs(o.generation - t) <= 1 for o, t in zip((found.b, found.c), truth, strict=True)
        )
        held += [
            o.low <= t <= (COUNT if o.high is None else o.high)
            for o, t in zip((found.b, found.c), truth, strict=True)
        ]
    assert right / sims >= 0.95
    # 95 % by construction, more in practice since whole generations are wide
    assert (held / sims >= 0.95).all()


@pytest.mark.long
@pytest.mark.parametrize("share", [0.5, 0.001])
@pytest.mark.parametrize(("seeds", "wobble"), [(1, 0.0), (2, 0.02), (3, 0.02)])
def test_flat_curves_have_no_onset(share: float, seeds: int, wobble: float) -> None:
    """A share of a thousandth leaves the test against noise alone to prevent one."""
    rng = np.random.default_rng([seeds, int(1000 * share)])
    sims, rule = 1000, PhaseRule(accuracy_lost=share, adherence_lost=share)
    false = 0
    for _ in range(sims):
        level = np.full(COUNT, rng.uniform(0.4, 0.9))
        curves = Curves(
            answers(rng, level, seeds, wobble=wobble),
            answers(rng, level, seeds, wobble=wobble),
            CHANCE,
        )
        found = phases({"mc": curves}, rule)["mc"]
        false += found.knowledge is not None or found.c is not None
    # at most 5 %; two binomial standard errors of 1,000 (0.7 points) for the bare test
    assert false / sims <= (0.05 if share == 0.5 else 0.064)


def test_without_the_test_against_noise_flat_curves_would_have_onsets() -> None:
    """The test above can fail: the level alone, at a thousandth, is passed all the time."""
    rng = np.random.default_rng(0)
    passed = [
        (answers(rng, np.full(COUNT, 0.6), 1).mean(2)[0][[0, -1]] @ [1, -1]) > 0 for _ in range(100)
    ]
    assert np.mean(passed) > 0.3


# --- by hand ----------------------------------------------------------------------------------


def block(*shares: float, n: int = 100, seeds: int = 1) -> np.ndarray:
    """Exactly the first share of n questions right in each generation."""
    rows = [(np.arange(n) < round(s * n)).astype(float) for s in shares]
    return np.stack([np.stack(rows)] * seeds)


GOOD = (0.9,) * 5


def test_the_three_phases_by_hand() -> None:
    # accuracy above chance 0.25: 0.60; half is lost at 0.55. Adherence 0.9: half at 0.45
    found = phases(
        {"mc": Curves(block(0.85, 0.84, 0.5, 0.3, 0.25), block(0.9, 0.9, 0.9, 0.8, 0.1), CHANCE)}
    )["mc"]
    assert found.by_generation == ("A", "A", "B", "B", "C")
    assert found.b is not None
    assert found.c is not None
    assert (found.b.generation, found.c) == (2, Onset(4, 4, 4))
    # 0.50 is 5 questions of 100 past the level, within its noise of 4: it may be generation 3 too
    assert (found.b.low, found.b.high) == (2, 3)
    assert "confidence was not measured" in found.note


def test_generations_are_told_by_their_numbers() -> None:
    curves = Curves(block(0.85, 0.84, 0.3, 0.3, 0.25), block(*GOOD), CHANCE)
    found = phases({"mc": curves}, generations=[0, 2, 4, 8, 15])["mc"]
    assert found.b == Onset(4, 4, 4)
    assert found.c is None


def test_a_loss_that_does_not_last_is_none() -> None:
    back = Curves(block(0.85, 0.3, 0.3, 0.3, 0.85), block(*GOOD), CHANCE)
    assert phases({"mc": back})["mc"].knowledge is None


def test_a_dip_back_over_the_level_puts_the_onset_off() -> None:
    """What counts is the monotone fit: what comes back further than it fell was not lost."""
    # level 0.55: 0.02 beyond it, then 0.05 short of it; together short
    far = Curves(block(0.85, 0.84, 0.53, 0.60, 0.3), block(*GOOD), CHANCE)
    # 0.10 beyond it, then 0.05 short of it; together beyond
    near = Curves(block(0.85, 0.84, 0.45, 0.60, 0.3), block(*GOOD), CHANCE)
    onsets = [found.knowledge for found in phases({"far": far, "near": near}).values()]
    assert [onset and onset.generation for onset in onsets] == [4, 2]


def test_a_loss_short_of_the_level_is_none() -> None:
    short = Curves(block(0.85, 0.7, 0.6, 0.6, 0.6), block(*GOOD), CHANCE)
    assert phases({"mc": short})["mc"].b is None
    earlier = phases({"mc": short}, PhaseRule(accuracy_lost=0.3))["mc"]
    assert earlier.b is not None
    assert earlier.b.generation == 2  # 0.85 - 0.3 * 0.6 = 0.67


def test_a_loss_at_the_very_end_has_an_open_interval() -> None:
    late = Curves(block(0.85, 0.85, 0.85, 0.85, 0.54), block(*GOOD), CHANCE)
    found = phases({"mc": late})["mc"].b
    assert found == Onset(4, 4, None)


def test_format_that_breaks_first_leaves_no_b() -> None:
    curves = Curves(block(0.85, 0.8, 0.3, 0.3, 0.3), block(0.9, 0.1, 0.1, 0.1, 0.1), CHANCE)
    found = phases({"mc": curves})["mc"]
    assert found.by_generation == ("A", "C", "C", "C", "C")
    assert found.b is None
    assert found.knowledge == Onset(2, 2, 2)


def test_wrong_but_unsure_is_not_confidently_wrong() -> None:
    right, form = block(0.85, 0.3, 0.3, 0.3, 0.3), block(*GOOD)
    confidence = np.broadcast_to(np.array([0.9, 0.9, 0.9, 0.3, 0.3])[:, None], (1, 5, 100))
    found = phases({"mc": Curves(right, form, CHANCE, confidence, CHANCE)})["mc"]
    assert found.by_generation == ("A", "B", "B", "unsure", "unsure")
    assert found.note == ""
    sure = phases({"mc": Curves(right, form, CHANCE, np.full((1, 5, 100), 0.9), CHANCE)})["mc"]
    assert set(sure.by_generation) == {"A", "B"}
    never = phases({"mc": Curves(right, form, CHANCE, confidence[:, [0, 3, 3, 3, 3]], CHANCE)})[
        "mc"
    ]
    assert never.b is None
    assert never.by_generation[1:] == ("unsure",) * 4


def test_nothing_known_cannot_be_lost() -> None:
    curves = Curves(block(0.27, 0.2, 0.2, 0.2, 0.1), block(0.9, 0.9, 0.9, 0.9, 0.1), CHANCE)
    found = phases({"mc": curves})["mc"]
    assert found.by_generation == ("unknown",) * 4 + ("C",)
    assert found.knowledge is None
    assert "is not significantly above chance" in found.note


def test_each_format_is_judged_by_itself() -> None:
    lost = Curves(block(0.85, 0.3, 0.3, 0.3, 0.3), block(*GOOD), CHANCE)
    kept = Curves(block(*(0.85,) * 5), block(*GOOD), CHANCE)
    found = phases({"short": lost, "few": kept})
    assert list(found) == ["short", "few"]
    assert found["few"].by_generation == ("A",) * 5
    assert found["short"] == phases({"short": lost})["short"]


def test_the_order_of_seeds_and_questions_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    know, form = (answers(rng, fall(4, 1, top, floor), 3) for top, floor in ((0.8, 0.25), (1, 0)))
    seeds, questions = rng.permutation(3), rng.permutation(200)
    one = phases({"mc": Curves(know, form, CHANCE)})
    mixed = [x[seeds][..., questions] for x in (know, form)]
    assert phases({"mc": Curves(*mixed, CHANCE)}) == one


# --- wrong input and the YAML -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "adherent", "words"),
    [
        (np.ones((5, 100)), block(*GOOD), "must be"),
        (block(*GOOD)[:, :1], block(*GOOD), "two generations"),
        (block(*GOOD), block(*GOOD)[:, 1:], "equal ones"),
        (block(*GOOD) * 2, block(*GOOD), "outside"),
        (block(*GOOD) * np.nan, block(*GOOD), "outside"),
    ],
)
def test_wrong_arrays(right: np.ndarray, adherent: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=f"mc: .*{words}"):
        phases({"mc": Curves(right, adherent, CHANCE)})


def test_wrong_generations_and_rules() -> None:
    curves = Curves(block(*GOOD), block(*GOOD), CHANCE)
    for numbers in ([0, 1], [0, 1, 2, 4, 3]):
        with pytest.raises(InputError, match="rising"):
            phases({"mc": curves}, generations=numbers)
    with pytest.raises(ValidationError, match=r"adherence_lost\n.*input_value=1\.5"):
        PhaseRule(adherence_lost=1.5)
    with pytest.raises(ValidationError, match=r"error\n.*input_value=0"):
        PhaseRule(error=0)


def test_the_yaml_gives_the_rule() -> None:
    told = PhaseRule.model_validate({"accuracy_lost": 0.3, "error": 0.01})
    assert told == PhaseRule(accuracy_lost=0.3, error=0.01)
    for wrong in ({"accuracy_lost": 0}, {"error": 0.9}, {"accuracy": 0.5}):
        with pytest.raises(ValidationError):
            PhaseRule.model_validate(wrong)
