"""What an experiment's YAML may say: every key with its type, range and default.

There is one class of experiment for each kind of data (text, points, images): what they share
stands in `ExperimentConfig`, what only one of them knows in its own class, so that no key is
taken and then ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fortifai import theory
from fortifai.config.benchmarks import BenchmarkConfig
from fortifai.config.corpora import (
    ImagesCorpus,
    PointsCorpus,
    QuestionsConfig,
    SplitsConfig,
    TextCorpusConfig,
)
from fortifai.config.families import GaussianConfig, GMMConfig, VAEConfig
from fortifai.config.knowledge import FluencyConfig, FormatsConfig
from fortifai.config.language import CausalLMConfig, PassagesConfig, RegenerateConfig, TrainConfig
from fortifai.config.phases import PhasesConfig
from fortifai.config.regimes import FortifaiRegime, MixRegime, RegimeConfig, ReplaceRegime
from fortifai.config.section import Section
from fortifai.config.weights import (
    DensityWeightConfig,
    DynamicConfig,
    KeepConfig,
    PixelWeightConfig,
    TokenWeightConfig,
    TruncateConfig,
    TruncateQuantileConfig,
    TruncateTailsConfig,
)

MOST = 100_000
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


def _check_apart(names: Iterable[str], what: str) -> None:
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
        if value["count"] > MOST:
            raise ValueError(f"count is {value['count']}; it must be at most {MOST:,}")
        return tuple(range(value["count"]))
    return value


Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_counted), Field(min_length=1)
]


class FailureLevel(Section):
    """A level whose crossing counts as failure; see `fortifai.stats.time_to_failure`."""

    measure: str
    on: str = "split-0"
    level: float | Literal["half_gain"]
    direction: Literal["below", "above"] = "below"


# --- arms -------------------------------------------------------------------------------------


class LanguageArm(Section):
    """One arm of a language model, whole: everything that may differ between arms."""

    weight: TokenWeightConfig = KeepConfig()
    regime: RegimeConfig = FortifaiRegime()
    start: Literal["previous", "base", "scratch"] = "previous"
    family: CausalLMConfig
    train: TrainConfig = TrainConfig()
    regenerate: RegenerateConfig = RegenerateConfig()

    @model_validator(mode="after")
    def _carries_from_the_last(self) -> LanguageArm:
        if self.train.lora is not None and self.train.lora.carry and self.start != "previous":
            raise ValueError(
                f"train.lora.carry trains on the adapter of the generation before, but start is "
                f"{self.start!r}; set start to previous, or carry to false"
            )
        return self


class PointsArm(Section):
    """One arm of a density, whole.

    Each generation knows the one before: a point's weight comes from the density that the last
    model gives it, so generation 0 keeps every point.
    """

    weight: DensityWeightConfig = KeepConfig()
    regime: RegimeConfig = ReplaceRegime(kind="replace")
    family: Annotated[GaussianConfig | GMMConfig, Field(discriminator="kind")]
    start: ClassVar[Literal["previous"]] = "previous"


class ImagesArm(Section):
    """One arm of an image model, whole."""

    weight: PixelWeightConfig = KeepConfig()
    regime: RegimeConfig = ReplaceRegime(kind="replace")
    start: Literal["previous", "scratch"] = "scratch"
    family: VAEConfig


A = TypeVar("A", LanguageArm, PointsArm, ImagesArm)
Arm = LanguageArm | PointsArm | ImagesArm


# --- experiments ------------------------------------------------------------------------------


class ExperimentConfig(Section, Generic[A]):
    """What every experiment says, resolved: each arm stands by itself.

    `every`: generations are measured and committed every so often, and the first and the last
    always; those between them are trained and forgotten. `keep`: the weights of the last
    committed generation or of all. `keep_samples`: what the models wrote, all of it, or only as
    far as a later generation trains on it. `time_to_failure`: levels that count as failure.
    """

    name: Name
    description: str = ""
    generations: Annotated[int, Field(ge=1, le=MOST)] = 6
    seeds: Seeds = (0,)
    threads: PositiveInt = 1
    every: PositiveInt = 1
    keep: Literal["last", "all"] = "last"
    keep_samples: Literal["all", "needed"] = "all"
    baseline: str
    splits: SplitsConfig = SplitsConfig()
    time_to_failure: tuple[FailureLevel, ...] = ()
    arms: Annotated[dict[Name, A], Field(min_length=1)]
    only_reported: ClassVar[frozenset[str]] = frozenset(
        {"description", "baseline", "time_to_failure"}
    )
    """Keys that the report alone reads: they may change under a run."""

    @model_validator(mode="after")
    def _whole(self) -> ExperimentConfig[A]:
        _check_apart(self.arms, "arms")
        if self.baseline not in self.arms:
            raise ValueError(
                f"baseline {self.baseline!r} is not an arm; the arms are {', '.join(self.arms)}"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} names a seed twice")
        for name, arm in self.arms.items():
            if isinstance(arm.regime, FortifaiRegime) and self.split_count != self.generations:
                raise ValueError(
                    f"arm {name!r}: regime 'fortifai' adds one clean split a generation, so "
                    f"splits.count ({self.split_count}) must equal generations "
                    f"({self.generations})"
                )
            chosen = arm.regime.splits if isinstance(arm.regime, MixRegime) else None
            if chosen and max(chosen) >= self.split_count:
                raise ValueError(
                    f"arm {name!r}: regime.splits names split {max(chosen)} and there are "
                    f"{self.split_count}, from 0; set splits.count or choose another"
                )
            self._check_arm(name, arm)
        return self

    def _check_arm(self, name: str, arm: A) -> None:
        """What only this kind of experiment can say of an arm."""

    @property
    def split_count(self) -> int:
        """Number of splits the corpus is cut into."""
        if self.splits.count is not None:
            return self.splits.count
        grows = any(isinstance(arm.regime, FortifaiRegime) for arm in self.arms.values())
        return self.generations if grows else 1

    @property
    def keep_first(self) -> bool:
        """Whether later generations are measured with the weights of generation 0."""
        return False


AnyExperiment = ExperimentConfig[Any]


class LanguageExperiment(ExperimentConfig[LanguageArm]):
    """Recursive training of a language model."""

    corpus: TextCorpusConfig
    questions: QuestionsConfig = QuestionsConfig()
    passages: PassagesConfig = PassagesConfig()
    benchmarks: dict[Name, BenchmarkConfig] = Field(default_factory=dict)
    formats: FormatsConfig | None = None
    fluency: FluencyConfig = FluencyConfig()
    phases: PhasesConfig = PhasesConfig()
    only_reported: ClassVar[frozenset[str]] = ExperimentConfig.only_reported | {"phases"}
    time_to_failure: tuple[FailureLevel, ...] = (
        FailureLevel(measure="kr.mean", level=0.75),
        FailureLevel(measure="kr.mean", level="half_gain"),
    )

    @field_validator("benchmarks")
    @classmethod
    def _apart(cls, value: dict[str, BenchmarkConfig]) -> dict[str, BenchmarkConfig]:
        _check_apart(value, "benchmarks")
        return value

    def _check_arm(self, name: str, arm: LanguageArm) -> None:
        if arm.family != self.family:
            raise ValueError(f"arm {name!r}: all arms of one experiment share one family")
        if isinstance(arm.weight, DynamicConfig) and arm.train.gem_beta != 1:
            raise ValueError(
                f"arm {name!r}: weight 'dynamic' reads its threshold off the model's confidences, "
                f"and train.gem_beta {arm.train.gem_beta} truncates by those of logits over beta; "
                "give weight 'truncate' with a threshold, or leave gem_beta out"
            )
        limit = arm.family.scratch.max_positions if arm.family.scratch else None
        wanted = arm.regenerate.longest
        if limit is not None and arm.regenerate.mode == "blocks" and wanted > limit:
            raise ValueError(
                f"arm {name!r}: {arm.regenerate.told} is {wanted} tokens, longer than the model's "
                f"max_positions {limit}"
            )
        if limit is not None and arm.train.block > limit:
            raise ValueError(
                f"arm {name!r}: block {arm.train.block} is longer than the model's "
                f"max_positions {limit}"
            )

    @property
    def keep_first(self) -> bool:
        """Whether later generations are measured with the weights of generation 0."""
        return self.fluency.under_first

    @property
    def family(self) -> CausalLMConfig:
        """The family that all arms share."""
        return next(iter(self.arms.values())).family

    @property
    def positions(self) -> int:
        """Positions a scratch model needs: the longest block or context of any arm."""
        return max(max(arm.train.block, arm.regenerate.longest) for arm in self.arms.values())


class PointsExperiment(ExperimentConfig[PointsArm]):
    """Recursive fitting of a density to points."""

    corpus: PointsCorpus

    def _check_arm(self, name: str, arm: PointsArm) -> None:
        if arm.family.kind != next(iter(self.arms.values())).family.kind:
            raise ValueError(f"arm {name!r}: all arms of one experiment are of one family")
        if isinstance(arm.weight, TruncateTailsConfig) and not isinstance(
            arm.family, GaussianConfig
        ):
            raise ValueError(
                f"arm {name!r}: weight 'truncate_tails' needs one mean and one sigma, which only "
                "family 'gaussian' has; use truncate_quantile"
            )


class ImagesExperiment(ExperimentConfig[ImagesArm]):
    """Recursive training of an image model."""

    corpus: ImagesCorpus

    def _check_arm(self, name: str, arm: ImagesArm) -> None:
        if isinstance(arm.weight, TruncateConfig) and arm.weight.threshold == 0:
            raise ValueError(
                f"arm {name!r}: threshold 0 keeps a share of 0 of the pixels, since only those of "
                "probability 0 would count; give a threshold above 0"
            )


EXPERIMENTS: dict[str, type[AnyExperiment]] = {
    "causal_lm": LanguageExperiment,
    "gaussian": PointsExperiment,
    "gmm": PointsExperiment,
    "vae": ImagesExperiment,
}
"""The class of experiment for each family."""


def kept_share(weight: DensityWeightConfig, dimension: int) -> float:
    """The share of Gaussian points of this dimension that a weight keeps."""
    if isinstance(weight, TruncateTailsConfig):
        return theory.kept_share(weight.a, dimension)
    if isinstance(weight, TruncateQuantileConfig):
        return weight.quantile
    return 1.0
