"""What a measure is, what it sees, and what it says.

A measure is a plain function from a `Generation` to scores, with what the terminal, the report and
time to failure need to know of it written on it by the decorator `measure`:

    @measure("distinct", title="Distinct n-grams", panel="Diversity", unit="share",
             direction="higher", real=True)
    def distinct(generation): ...

The function's docstring is what a figure's caption says of it.

What several measures need is computed once for each generation by functions marked `once`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fortifai.errors import RunFailed, blaming

Direction = Literal["higher", "lower", "none"]

M = TypeVar("M")
D = TypeVar("D")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """One measured number.

    Attributes:
        measure: The measure's name, or that and a variant behind a dot, such as ``kr.mean``.
        value: The number.
        on: The data it was measured on: ``split-0`` (the real text of split 0), ``rewritten-0``,
            ``held-out``, ``up-to-stage``, ``total``, ``train``, or ``model`` for what is read off
            the model's parameters.
        n: How many items (questions, tokens) stand behind it.
        stderr: Standard error of `value`, or None where none is defined.
        chance: What guessing would give, or None.
        seed: The seed it is of where a chain holds several, else None.
        unit: Where its measure has several, as published benchmarks have; None: the measure's.
        direction: The same of the direction.
    """

    measure: str
    value: float
    on: str
    n: int
    stderr: float | None = None
    chance: float | None = None
    seed: int | None = None
    unit: str | None = None
    direction: Direction | None = None

    def record(self) -> dict[str, Any]:
        """The score as a plain dictionary, ready for JSON."""
        out = dataclasses.asdict(self)
        # NumPy's numbers are no JSON
        out |= {"n": int(self.n)} | {
            k: float(out[k]) for k in ("value", "stderr", "chance") if out[k] is not None
        }
        absent = ("seed", "unit", "direction")
        return {k: v for k, v in out.items() if v is not None or k not in absent}


_RENAMED = {
    **{f"distinct-{n}": f"distinct.{n}" for n in (1, 2, 3)},
    "classes.certainty": "classes.confidence",
    "format.certainty": "format.confidence",
}


def renamed(score: str, benchmarks: Iterable[str] = ()) -> str:
    """The name of a score, where an earlier version had another.

    Args:
        score: What it is called.
        benchmarks: Names of the run's published benchmarks, by which their scores went alone.
    """
    if score.partition(".")[0] in benchmarks:
        return f"benchmark.{score}"
    return _RENAMED.get(score, score)


@dataclasses.dataclass(frozen=True)
class Generation(Generic[M, D]):
    """A generation that was trained and has rewritten its data: what measures see.

    Attributes:
        number: i, from 0.
        model: M_i.
        domain: The data that all generations share: held-out data, questions...
        real: D_k^(0), the splits as they were.
        rewritten: What M_i wrote, by split.
        fit: What training reported, such as ``loss``, ``tokens`` and ``truncated_share``.
        seed: For measures that draw at random.
        tick: Tells how many of how many steps of measuring are done.
        origin: Folder of generation 0, for measures that compare with it: generation 0 writes
            there what the later ones read back.
    """

    number: int
    model: M
    domain: D
    real: Sequence[NDArray[Any]]
    rewritten: Mapping[int, NDArray[Any]]
    fit: Mapping[str, Any]
    seed: int
    tick: Callable[[int, int], None]
    origin: Path
    _known: dict[Callable[..., Any], Any] = dataclasses.field(default_factory=dict, repr=False)


def once(function: Callable[[Generation[Any, Any]], T]) -> Callable[[Generation[Any, Any]], T]:
    """Have a function of a generation computed once for each."""

    @functools.wraps(function)
    def known(generation: Generation[Any, Any]) -> T:
        if function not in generation._known:
            generation._known[function] = function(generation)
        value: T = generation._known[function]
        return value

    return known


@dataclasses.dataclass(frozen=True, slots=True)
class Headline:
    """A score that the terminal tells of each generation.

    Attributes:
        label: What it is called there.
        score: The score's name.
        on: The data it was measured on.
        form: How the number is written, as Python's format says it.
    """

    label: str
    score: str
    on: str
    form: str


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A panel of the report: one score by generation, a line for each arm.

    Attributes:
        title: The panel's heading.
        score: The score's name.
        on: The data it was measured on.
        real: The data whose value at generation 0 is drawn as a dashed line; "": none.
        unit: What stands under the heading; "": the measure's unit.
    """

    title: str
    score: str
    on: str
    real: str = ""
    unit: str = ""


@dataclasses.dataclass(frozen=True)
class About:
    """What the terminal, the report and time to failure know of a measure.

    Attributes:
        name: Its scores are named so, with a dot and a variant behind it where there are several.
        title: What a heading says of it.
        panel: The figure of the report that it is drawn in, with others of that name.
        unit: What its values are in.
        direction: Whether ``higher`` or ``lower`` is better, or ``none``.
        real: Whether real data have a value, which is drawn beside those of the generations.
        lines: What the report draws; None: each of its scores, on the most telling data.
        log: Whether it is drawn on a logarithmic axis.
        caption: What the figure's caption says of it.
        headlines: Scores that the terminal tells of each generation, and the report's summary; the
            first one of all measures leads the report.
    """

    name: str
    title: str
    panel: str
    unit: str = ""
    direction: Direction = "none"
    real: bool = False
    lines: tuple[Line, ...] | None = None
    log: bool = False
    caption: str = ""
    headlines: tuple[Headline, ...] = ()

    def owns(self, score: str) -> bool:
        """Whether a score of that name is one of this measure."""
        return score == self.name or score.startswith(f"{self.name}.")

    def record(self) -> dict[str, Any]:
        """As a plain dictionary, ready for JSON."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(About)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> About:
        """What `record` gave, of this version or another.

        Raises:
            TypeError, KeyError, AttributeError: It is no such record.
        """
        known = {f.name: record[f.name] for f in dataclasses.fields(About) if f.name in record}
        lines, headlines = known.get("lines"), known.get("headlines", ())
        known["lines"] = None if lines is None else tuple(Line(**line) for line in lines)
        known["headlines"] = tuple(Headline(**line) for line in headlines)
        return About(**known)


def _plain(value: Any) -> Any:
    return [dataclasses.asdict(one) for one in value] if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure(About):
    """A measure: call it with a `Generation`, and it gives its scores.

    Attributes:
        function: What computes it.
    """

    function: Callable[[Generation[Any, Any]], Iterable[Score]]

    def __call__(self, generation: Generation[Any, Any]) -> list[Score]:
        """The scores of a generation.

        Raises:
            RunFailed: One of them is not named after the measure, is no number, or is there twice.
        """
        with blaming(f"the measure {self.name!r}", self.function):
            scores = list(self.function(generation))
        seen: set[tuple[str, str, int | None]] = set()
        for score in scores:
            fault = _fault(score)
            if fault is None and not self.owns(score.measure):
                fault = (
                    f"a score named {score.measure!r}; name it {self.name!r}, or that with a dot "
                    "and a variant behind it"
                )
            elif fault is None and (key := (score.measure, score.on, score.seed)) in seen:
                fault = f"two scores named {key[0]!r} on {key[1]!r}; name one of them otherwise"
            if fault:
                raise RunFailed(f"the measure {self.name!r} gave {fault}")
            seen.add((score.measure, score.on, score.seed))
        return scores


def _fault(score: Any) -> str | None:
    """What is wrong with the numbers of a score, which are kept for good; those may be NaN."""
    if not isinstance(score, Score):
        return f"{score!r}; give Score(...)"
    numbers: dict[str, Any] = {
        "value": score.value,
        "n": score.n,
        "stderr": score.stderr,
        "chance": score.chance,
    }
    for name, number in numbers.items():
        if number is None and name in ("stderr", "chance"):
            continue
        wanted, told = (Integral, "whole") if name == "n" else (Real, "real")
        if isinstance(number, bool) or not isinstance(number, wanted):
            return f"a score whose {name} is {number!r}; give a {told} number"
    return None


def measure(
    name: str, *, title: str, panel: str, **about: Any
) -> Callable[[Callable[[Any], Iterable[Score]]], Measure]:
    """Make a function from a `Generation` to scores a `Measure`.

    Args:
        name: See `About`.
        title: See `About`.
        panel: See `About`.
        about: More of the attributes of `About`; a caption is the function's docstring if none is
            given.
    """

    def made(function: Callable[[Any], Iterable[Score]]) -> Measure:
        text = " ".join((inspect.getdoc(function) or "").replace("`", "").split())
        told = {"caption": text} | about
        for key in ("lines", "headlines"):
            if told.get(key) is not None:
                told[key] = tuple(told[key])
        return Measure(name, title, panel, **told, function=function)

    return made


def mean_score(measure: str, values: ArrayLike, on: str) -> Score:
    """The mean of (n,) independent values with its standard error, None of a single one."""
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    stderr = float(x.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return Score(measure, float(x.mean()), on, n, stderr)


def share_score(measure: str, marks: ArrayLike, on: str, *, chance: float | None = None) -> Score:
    """The mean of (n,) marks in [0, 1] with the binomial standard error, sqrt(p (1 - p) / n)."""
    x = np.asarray(marks, dtype=np.float64)
    p, n = float(x.mean()), len(x)
    return Score(measure, p, on, n, math.sqrt(max(0.0, p * (1 - p)) / n), chance)
