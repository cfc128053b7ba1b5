"""What an experiment's YAML may say, whatever its kind of data.

Each kind of data has an experiment and an arm of its own, subclasses of `Experiment` and `Arm`
beside its models, so that no key is taken and then ignored.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar, Union

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fortifai.errors import InputError, blaming, is_outside, nearest
from fortifai.lab.after_fit import STEPS
from fortifai.lab.cures import CURES
from fortifai.lab.measures import Measure, renamed
from fortifai.lab.plugins import NONE, Plugins
from fortifai.lab.regimes import REGIMES, check_plans
from fortifai.lab.seeds import Seed
from fortifai.options import Options, one_of
from fortifai.stats.failure import TimesFirst
from fortifai.weights import WEIGHTS, Calibrated, Weight, check_range

if TYPE_CHECKING:
    from fortifai.lab.domain import Domain

MAX_COUNT = 100_000
"""Most generations, and most seeds: more would fill the memory before anything is trained."""

_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))]
)


def _fit_for_a_folder(name: str) -> str:
    # a run folder may be read on another system than it was written on
    rule = ""
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name):
        rule = (
            "letters of the alphabet, digits, dots, _ and -, at most 200, a letter or digit first"
        )
    elif name.partition(".")[0].casefold() in _DEVICES:
        rule = "another name, since Windows has a device of that one"
    elif name.endswith("."):
        rule = "a name without a dot at its end, which Windows leaves out"
    if rule:
        raise PydanticCustomError("folder_name", "Input should be {rule}", {"rule": rule})
    return name


Name = Annotated[str, AfterValidator(_fit_for_a_folder)]


def check_apart(names: Iterable[str], what: str) -> None:
    """Refuse names of folders that are one folder where case does not count.

    Raises:
        ValueError: Two of them differ in case alone.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise ValueError(
                f"{what} {other!r} and {name!r} differ in case alone, and some file systems take "
                "them for one; rename one"
            )


def _counted(value: Any) -> Any:
    """``{count: n}`` for the seeds 0 to n - 1."""
    if isinstance(value, dict) and value.keys() == {"count"} and isinstance(value["count"], int):
        if value["count"] > MAX_COUNT:
            raise ValueError(f"count is {value['count']}; it must be at most {MAX_COUNT:,}")
        return tuple(range(value["count"]))
    return value


Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_counted), Field(min_length=1)
]


class SplitsOptions(Options):
    """How the corpus is cut. `count` None: one split a generation, or 1 where the regime adds none.

    `tokens` None: all of the corpus, equally; otherwise the size of each split, the rest being
    left for pretraining. `held_out_tokens`: measure on so many tokens of the held-out text at most.
    """

    count: PositiveInt | None = None
    tokens: PositiveInt | None = None
    held_out_tokens: PositiveInt | None = None


class FailureLevel(Options):
    """A level whose crossing counts as failure; see `fortifai.stats.time_to_failure`.

    `level`: a number, ``half_gain``, or ``{times_first: 3}`` for three times generation 0's value.
    """

    measure: str
    on: str = "split-0"
    level: float | Literal["half_gain"] | TimesFirst
    direction: Literal["below", "above"] = "below"


class Arm(Options):
    """One arm, whole: everything that may differ between arms.

    `cures`: what a training set passes through between its writing and the fit on it. `after_fit`:
    what is done to the weights between the fit and the rewriting.
    """

    regime: one_of(*REGIMES)  # type: ignore[valid-type] # made from the list
    cures: tuple[one_of(*CURES), ...] = ()  # type: ignore[valid-type] # made from the list
    after_fit: tuple[one_of(*STEPS), ...] = ()  # type: ignore[valid-type] # made from the list
    data: ClassVar[str]
    """``text``, ``points`` or ``images``: which weights and corpora it takes."""

    if TYPE_CHECKING:  # each kind of data says which
        weight: Any
        init_from: Literal["previous", "base", "scratch"]
        family: Any


A = TypeVar("A", bound=Arm)


class Experiment(Options, Generic[A]):
    """What every experiment says, resolved: each arm stands by itself.

    `eval_every`: generations are measured and committed every so often, and the first and the last
    always; those between them are trained and forgotten. `save_weights`: those of the last
    committed generation or of all. `save_samples`: what the models wrote, all of it, or only as
    far as a later generation trains on it. `time_to_failure`: levels that count as failure.
    `measures`: measures of plugins that are taken besides those that always are. `times`: how long
    generations take is written down, in files that a rerun does not write byte by byte.
    """

    name: Name
    description: str = ""
    generations: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 6
    seeds: Seeds = (0,)
    threads: PositiveInt = 1
    eval_every: PositiveInt = 1
    save_weights: Literal["last", "all"] = "last"
    save_samples: Literal["all", "needed"] = "all"
    baseline: str
    splits: SplitsOptions = SplitsOptions()
    time_to_failure: tuple[FailureLevel, ...] = ()
    measures: tuple[str, ...] = ()
    times: bool = False
    arms: Annotated[dict[Name, A], Field(min_length=1)]

    only_reported: ClassVar[frozenset[str]] = frozenset(
        {"description", "baseline", "time_to_failure", "times"}
    )
    """Keys that change no result: they may change under a run. The report reads most of them."""
    arm: ClassVar[type[Arm]]
    unit: ClassVar[str]
    """What samples are counted in: tokens, points, images."""
    units: ClassVar[tuple[str, ...]]
    """What cures may work on; the first is what the family trains on."""
    accelerated: ClassVar[bool] = True
    """Whether chains use accelerators where there are any."""
    plugins: ClassVar[Plugins] = NONE

    @model_validator(mode="after")
    def _whole(self) -> Experiment[A]:
        check_apart(self.arms, "arms")
        if self.baseline not in self.arms:
            raise ValueError(
                f"baseline {self.baseline!r} is not an arm; the arms are {', '.join(self.arms)}"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} names a seed twice")
        known = [m.name for m in self.plugins.measures]
        for name in self.measures:
            if name not in known:
                raise ValueError(
                    f"measures names {name!r}, which no plugin has{nearest(name, known)}; those of "
                    f"the plugins are {', '.join(known) or 'none: give --plugin MODULE'}"
                )
        own = {measure.name for measure in self.built_in_measures()} if self.measures else set()
        if taken := sorted(own & set(self.measures)):
            raise ValueError(
                f"measures names {taken[0]!r}, which is also a measure of this package; give that "
                "of the plugin another name"
            )
        self._check_levels()
        for name, arm in self.arms.items():
            if arm.regime.a_split_each and self.split_count != self.generations:
                raise ValueError(
                    f"arm {name!r}: regime {arm.regime.kind!r} adds one clean split a generation, "
                    f"so splits.count ({self.split_count}) must equal generations "
                    f"({self.generations})"
                )
            try:
                self._check_outside(arm)
                arm.regime.check(self.split_count)
                self._check_cures(arm)
                self.check_arm(arm)
            except ValueError as error:
                raise ValueError(f"arm {name!r}: {error}") from error
        return self

    def _check_outside(self, arm: A) -> None:
        """What plugins brought is tried before work starts."""
        if is_outside(arm.regime):
            with blaming(f"the regime {arm.regime.kind!r}", arm.regime):
                check_plans(arm.regime, min(self.split_count, 1000), self.generations)
        # of points a weight is of log-densities, and their families say what they take
        calibrated = isinstance(arm.weight, Calibrated)
        if is_outside(arm.weight) and arm.data != "points" and not calibrated:
            check_range(arm.weight)

    def _check_cures(self, arm: A) -> None:
        for step in (*arm.cures, *arm.after_fit):
            if arm.data not in step.domains:
                raise ValueError(
                    f"{step.kind!r} works on {' and '.join(step.domains)}, not on {arm.data}"
                )
        few = min(self.split_count, 1000)  # enough to tell, whatever count a YAML may ask for
        real = any(part.generation == 0 for part in arm.regime.plan(1, few).train)
        for cure in arm.cures:
            if cure.needs_real and not real and self.generations > 1:
                raise ValueError(
                    f"cure {cure.kind!r} needs real data in every generation, and regime "
                    f"{arm.regime.kind!r} gives none; use accumulate, accumulate-subsample, mix or "
                    "fortifai"
                )
            if cure.unit is not None and cure.unit not in self.units:
                raise ValueError(
                    f"cure {cure.kind!r} has unit {cure.unit!r}; allowed are "
                    f"{', '.join(self.units)}"
                )

    def _check_levels(self) -> None:
        taken = self.taken() if self.time_to_failure else ()
        names = [measure.name for measure in taken]
        for level in self.time_to_failure:
            if not any(measure.owns(level.measure) for measure in taken):
                raise ValueError(
                    f"time_to_failure names {level.measure!r}, which is no score of a measure that "
                    f"is taken{nearest(level.measure, names)}; name one of {', '.join(names)}, "
                    "with a dot and a variant behind it where there are several"
                )

    def check_arm(self, arm: A) -> None:
        """What only this kind of experiment can say of an arm.

        Raises:
            ValueError: It cannot be run.
        """

    @property
    def split_count(self) -> int:
        """Number of splits the corpus is cut into."""
        if self.splits.count is not None:
            return self.splits.count
        grows = any(arm.regime.a_split_each for arm in self.arms.values())
        return self.generations if grows else 1

    @property
    def keep_first(self) -> bool:
        """Whether later generations are measured with the weights of generation 0, or use them."""
        return any(step.needs_first for arm in self.arms.values() for step in arm.after_fit)

    @property
    def processes(self) -> int:
        """Processes that a chain has at work at a time, its own or those that it starts."""
        return 1

    def chains(self) -> Mapping[str, Seed]:
        """The chains of every arm: the folder of each, and its seed."""
        return {f"seed-{seed}": seed for seed in self.seeds}

    @classmethod
    def without_plugins(cls) -> type[AnyExperiment]:
        """The experiment as this package has it."""
        return cls if cls.plugins == NONE else cls.__base__  # type: ignore[return-value] # made so

    def taken(self) -> tuple[Measure, ...]:
        """The measures that every generation takes."""
        extra = [m for m in self.plugins.measures if m.name in self.measures]
        return (*self.built_in_measures(), *extra)

    @classmethod
    @abstractmethod
    def corpus_with(cls, corpora: tuple[type[Options], ...]) -> Any:
        """The type of the key ``corpus`` where plugins have corpora of this kind of data."""

    @classmethod
    @abstractmethod
    def built_in_measures(cls) -> tuple[Measure, ...]:
        """Those that are always taken."""

    @abstractmethod
    def read(self, root: Path) -> Domain:
        """Read and check everything that can be checked before work starts; write nothing.

        Args:
            root: Folder that the experiment's file names are relative to.

        Raises:
            InputError: Anything about the data or the model is wrong.
        """

    @abstractmethod
    def load(self, folder: Path) -> Domain:
        """Read back what `Domain.save` wrote into `folder`."""


AnyExperiment = Experiment[Any]

_KEYS = {
    "every": "eval_every",
    "keep": "save_weights",
    "keep_samples": "save_samples",
    "start": "init_from",
    "certainty_lost": "confidence_lost",
}


def as_today(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run folder, whose keys and measures an earlier version named."""

    def named(part: Any) -> Any:
        return {_KEYS.get(k, k): v for k, v in part.items()} if isinstance(part, Mapping) else part

    out: dict[str, Any] = named(config)
    if "phases" in out:
        out["phases"] = named(out["phases"])
    if isinstance(arms := out.get("arms"), Mapping):
        out["arms"] = {name: named(arm) for name, arm in arms.items()}
    if isinstance(levels := out.get("time_to_failure"), list):
        told = out.get("benchmarks")
        names = [*map(str, told)] if isinstance(told, Mapping) else []
        out["time_to_failure"] = [
            level | {"measure": renamed(level["measure"], names)}
            if isinstance(level, dict) and isinstance(level.get("measure"), str)
            else level
            for level in levels
        ]
    return out


def weight_type(domain: str, more: Iterable[type[Weight]] = ()) -> Any:
    """The pydantic type of the weights of a kind of data: a union, told apart by ``kind``.

    Args:
        domain: ``text``, ``images`` or ``points``.
        more: Weights beside `WEIGHTS`; those that cannot weigh such data are left out.

    Raises:
        InputError: Two of them have one kind, or one has none.
    """
    found: dict[str, type[Weight]] = {}
    for weight in (*WEIGHTS, *more):
        kind = getattr(weight, "kind", "")
        if not kind:
            raise InputError(
                f"{weight.__name__} has no kind by which a YAML could name it; write such as "
                f"class {weight.__name__}(Weight, kind='mine')"
            )
        if found.setdefault(kind, weight) is not weight:
            both = " and ".join(f"{one.__module__}.{one.__name__}" for one in (weight, found[kind]))
            raise InputError(f"{both} are both weights of kind {kind!r}; give one of them another")
    fitting = tuple(weight for weight in found.values() if domain in weight.domains)
    union: Any = Union[fitting]  # noqa: UP007 (of a tuple)
    told_apart: Any = Annotated[union, Field(discriminator="kind")]
    return Annotated[told_apart, BeforeValidator(_short_for_fitted)]


def _short_for_fitted(value: Any) -> Any:
    """``{kind: truncate, threshold: fitted}`` in full."""
    short = {"kind": "truncate", "threshold": "fitted"}
    if isinstance(value, Mapping) and all(value.get(k) == v for k, v in short.items()):
        return {k: v for k, v in value.items() if k not in short} | {"kind": "fitted"}
    return value


def with_plugins(experiment: type[AnyExperiment], plugins: Plugins) -> type[AnyExperiment]:
    """The experiment, in whose YAML what plugins list can be named too."""
    if plugins == NONE:
        return experiment
    base = experiment.arm
    changed: dict[str, Any] = {
        "weight": weight_type(base.data, plugins.weights),
        "regime": one_of(*REGIMES, more=plugins.regimes),
        "cures": tuple[one_of(*CURES, more=plugins.cures), ...],  # type: ignore[misc] # made
        "after_fit": tuple[one_of(*STEPS, more=plugins.after_fit), ...],  # type: ignore[misc] # made
    }
    keys: dict[str, Any] = {k: (t, base.model_fields[k].default) for k, t in changed.items()}
    arm: Any = create_model(base.__name__, __base__=base, **keys)
    fields: dict[str, Any] = {
        "arms": (Annotated[dict[Name, arm], Field(min_length=1)], ...),
        "corpus": (
            experiment.corpus_with(
                tuple(corpus for corpus in plugins.corpora if corpus.data == base.data)
            ),
            ...,
        ),
    }
    made: type[AnyExperiment] = create_model(experiment.__name__, __base__=experiment, **fields)
    made.plugins, made.arm = plugins, arm
    return made
