"""The phases of knowledge collapse: kept, confidently wrong, no longer following instructions.

'Knowledge Collapse' (2509.04796) tells three stages of a model that learns from its own text,
generation by generation: A, knowledge is kept; B, accuracy falls while answers keep their format
and their confidence; C, the format breaks. The paper has no numeric rule for entering B or C. The
one here is declared, with its error, and tested on curves whose onsets are known.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from fortifai.errors import InputError
from fortifai.options import Options
from fortifai.stats import Spread, quantile, spread_of_mean

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Phase = Literal["A", "B", "C", "unsure", "unknown"]


Lost = Annotated[float, Field(gt=0, lt=1)]


class PhaseRule(Options):
    """When a phase begins, as the YAML declares it.

    What is lost is counted from generation 0's own level down to the floor: for accuracy its
    chance level, for adherence 0, for confidence the floor given with it. All shares are one half:
    a loss of half is also what time to failure counts (2509.08972, section 4.5), and with 200
    questions it is statistically significant where a quarter often is not.

    Attributes:
        accuracy_lost: Phase B begins where this share of the accuracy above chance is lost.
        adherence_lost: Phase C begins where this share of the format adherence is lost.
        confidence_lost: A model that has lost this share of its confidence is no longer
            confidently wrong: its phase is ``unsure`` instead of B.
        error: Probability of any false onset in one format whose curves are flat; the intervals
            of onsets cover with 1 - error.
    """

    accuracy_lost: Lost = 0.5
    adherence_lost: Lost = 0.5
    confidence_lost: Lost = 0.5
    error: Annotated[float, Field(gt=0, le=0.5)] = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class Curves:
    """What one format measured. Each array has shape (seeds, generations, questions).

    Seeds may be one. Questions are the same, in the same order, in all seeds and generations:
    generation g is compared with generation 0 question by question.

    Attributes:
        right: Whether the answer was right: 0, 1, or what lies between (a tie, an expected score).
        adherent: Whether it had the format that was asked for. 0 or 1.
        chance: Accuracy of guessing: 1 / choices, or 0 where the answer is free.
        confidence: The model's probability of its answer, in [0, 1]; None where not measured.
        confidence_floor: The least it can be, such as 1 / choices for the largest of their
            probabilities.
    """

    right: ArrayLike
    adherent: ArrayLike
    chance: float
    confidence: ArrayLike | None = None
    confidence_floor: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Onset:
    """The generation from which on something is lost.

    Attributes:
        generation: The first one, to the end of the run.
        low: The earliest that its interval allows.
        high: The latest; None where it may also lie after the last generation, as when the loss
            is statistically significant but the level is not surely passed.
    """

    generation: int
    low: int
    high: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Phases:
    """The phases of one format.

    Attributes:
        by_generation: The phase of each generation measured. ``unsure``: accuracy is lost and
            confidence too. ``unknown``: generation 0 is not above chance, so that A and B cannot be
            told apart.
        b: Onset of B; None where no generation is in B.
        c: Onset of C; None where the format is kept.
        knowledge: Onset of the loss of accuracy, whatever phase it is in. With `b` None and this
            not, accuracy was lost when the format or the confidence already was.
        note: What a reader must know, or empty.
    """

    by_generation: tuple[Phase, ...]
    b: Onset | None
    c: Onset | None
    knowledge: Onset | None
    note: str


def phases(
    formats: Mapping[str, Curves],
    rule: PhaseRule | None = None,
    *,
    generations: Sequence[int] | None = None,
) -> dict[str, Phases]:
    """The phase of every generation and the onsets of B and C, for each format.

    For a curve x (accuracy, adherence, confidence) with floor f and a share s of it to lose,

        loss_g = x_0 - x_g,    beyond_g = (1 - s) x_0 + s f - x_g

    are means of numbers taken question by question. The onset is the first generation from which,
    to the last one, (1) every loss is significant, loss > 0 at the one-sided level error / 2, and
    (2) the level is passed, beyond >= 0 in the monotone least-squares fit over the generations.

    The tests go backwards from the last generation and stop at the first that fails, so their
    level needs no further correction: on a flat curve an onset is claimed only if the very first of
    them errs. Two curves, accuracy and adherence, can set a phase off, with error / 2 each. The
    interval of an onset comes of the same kind of tests of beyond_g < 0 forwards from generation 1
    (before `low` the level was not passed) and of beyond_g > 0 backwards from the end (from `high`
    on it was), error / 2 each; it takes the true curve to be monotone.

    Noise is that of questions and, with several seeds, of seeds: onsets are those of the mean over
    seeds. The seeds' part of the variance is pooled over generations, since S - 1 degrees of
    freedom in each would hide all that two seeds can show. G of them, each minus generation 0,
    count as 4 G / (G + 3) independent ones: so it is where seeds wobble independently from
    generation to generation.

    Args:
        formats: The curves of each format, by its name. Formats are judged one by one.
        rule: The levels; None: those of `PhaseRule`.
        generations: Numbers of the generations measured; None: 0, 1, 2, ...

    Raises:
        InputError: Shapes that do not fit, a value that is not in [0, 1], less than two
            generations, or a question count of one.
    """
    rule = rule or PhaseRule()
    return {name: _phases(name, curves, rule, generations) for name, curves in formats.items()}


def _phases(
    name: str, curves: Curves, rule: PhaseRule, generations: Sequence[int] | None
) -> Phases:
    right = _checked(name, "right", curves.right, None)
    adherent = _checked(name, "adherent", curves.adherent, right.shape)
    count = right.shape[1]
    numbers = list(range(count)) if generations is None else [int(g) for g in generations]
    if len(numbers) != count or any(b <= a for a, b in itertools.pairwise(numbers)):
        raise InputError(
            f"{name}: {count} generations were measured but their numbers are {numbers}; give as "
            "many, rising"
        )
    level = rule.error / 2
    above = _is_above(right, curves.chance, level)
    lost = _onset(right, curves.chance, rule.accuracy_lost, level) if above else None
    broken = None
    if _is_above(adherent, 0.0, level):
        broken = _onset(adherent, 0.0, rule.adherence_lost, level)
    doubt = None
    if curves.confidence is not None:
        confidence = _checked(name, "confidence", curves.confidence, right.shape)
        if _is_above(confidence, curves.confidence_floor, level):
            doubt = _onset(confidence, curves.confidence_floor, rule.confidence_lost, level)
    found = tuple(
        _phase(g, lost=lost, broken=broken, doubt=doubt, above=above) for g in range(count)
    )
    note = ""
    if not above:
        note = f"generation 0 is not significantly above chance ({curves.chance:g})"
    elif curves.confidence is None and "B" in found:
        note = "confidence was not measured: B says wrong in the right format, not confidently so"
    return Phases(
        by_generation=found,
        b=_numbered(lost, numbers) if "B" in found else None,
        c=_numbered(broken, numbers),
        knowledge=_numbered(lost, numbers),
        note=note,
    )


def _phase(
    g: int, *, lost: Onset | None, broken: Onset | None, doubt: Onset | None, above: bool
) -> Phase:
    if broken is not None and g >= broken.generation:
        return "C"
    if not above:
        return "unknown"
    if lost is None or g < lost.generation:
        return "A"
    return "unsure" if doubt is not None and g >= doubt.generation else "B"


def _numbered(onset: Onset | None, numbers: Sequence[int]) -> Onset | None:
    if onset is None:
        return None
    high = None if onset.high is None else numbers[onset.high]
    return Onset(numbers[onset.generation], numbers[onset.low], high)


def _checked(name: str, what: str, values: ArrayLike, shape: tuple[int, ...] | None) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 3 or x.shape[0] < 1 or x.shape[1] < 2 or x.shape[2] < 2:
        raise InputError(
            f"{name}: {what} has shape {x.shape}; it must be (seeds, generations, questions) with "
            "two generations and two questions at least"
        )
    if shape is not None and x.shape != shape:
        raise InputError(f"{name}: {what} has shape {x.shape}, but right has {shape}; equal ones")
    if not ((x >= 0) & (x <= 1)).all():  # false for NaN too
        raise InputError(f"{name}: {what} holds a value outside [0, 1]; leave out what failed")
    return x


# --- one curve --------------------------------------------------------------------------------


def _onset(x: Floats, floor: float, share: float, level: float) -> Onset | None:
    """Where a curve is lost, as a place in its generations; see `phases`."""
    from scipy.optimize import isotonic_regression  # here: it takes a fifth of a second to import

    first, later = x[:, :1], x[:, 1:]
    loss, beyond = first - later, (1 - share) * first + share * floor - later
    noisy, passed = _t_values(loss, level), _t_values(beyond, level)
    reached = isotonic_regression(beyond.mean((0, 2))).x >= 0
    at = _start(_to_the_end(noisy > 1) & reached)
    if at is None:
        return None
    not_yet = passed < -1
    low = len(not_yet) if not_yet.all() else int(np.argmin(not_yet))
    high = _start(_to_the_end(passed > 1))
    # + 1: what is counted from here starts with generation 1
    return Onset(at + 1, min(low, at) + 1, None if high is None else max(high, at) + 1)


def _is_above(x: Floats, floor: float, level: float) -> bool:
    """Whether generation 0 lies significantly above the floor.

    Of these very models: whether they have something to lose does not turn on other seeds.
    """
    return bool(_t_values((x[:, :1] - floor).mean(0, keepdims=True), level)[0] > 1)


def _t_values(x: Floats, level: float) -> Floats:
    """Means of (seeds, generations, questions) over their one-sided critical value at `level`.

    Above 1: significantly more than 0; below -1: less. Shape (generations,).
    """
    spread, n = spread_of_mean(x), x.shape[1]
    if spread.n_seeds > 1:
        spread = Spread(
            seeds=np.full(n, spread.seeds.mean()),
            items=spread.items,
            both=spread.both,
            n_seeds=spread.n_seeds,
            n_items=spread.n_items,
            seeds_df=(spread.n_seeds - 1) * 4 * n / (n + 3),
        )
    variance, df = spread.total()
    mean, bound = x.mean((0, 2)), quantile(1 - level, df) * np.sqrt(variance)
    certain = np.where(mean > 1e-12, math.inf, np.where(mean < -1e-12, -math.inf, 0.0))
    ratio: Floats = np.divide(mean, bound, out=certain, where=bound > 1e-12)
    return ratio


def _to_the_end(flags: Flags) -> Flags:
    """Where all flags from here to the last one are set."""
    out: Flags = np.logical_and.accumulate(flags[::-1])[::-1]
    return out


def _start(flags: Flags) -> int | None:
    return int(np.argmax(flags)) if flags.any() else None
