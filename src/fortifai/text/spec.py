"""What the YAML of an experiment on text may say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from fortifai.evals.benchmarks import Benchmark, Named
from fortifai.evals.phases import PhaseRule
from fortifai.lab.measures import Measure
from fortifai.lab.regimes import REGIMES, Fortifai
from fortifai.lab.spec import Arm, Experiment, FailureLevel, Name, check_apart, weight_type
from fortifai.losses.weighing import carries_gradient
from fortifai.models.options import CausalLMOptions, RegenerateOptions, TrainOptions
from fortifai.options import Options, one_of
from fortifai.text.options import FluencyOptions, FormatsOptions, PassagesOptions
from fortifai.text.sources import CORPORA
from fortifai.weights import Calibrated, Keep

if TYPE_CHECKING:
    from fortifai.text.domain import TextDomain


class QuestionsOptions(Options):
    """Knowledge Retention questions; `bios` brings its own where no file is given."""

    files: tuple[str, ...] = ()


class TextArm(Arm):
    """One arm of a language model, whole: everything that may differ between arms."""

    weight: weight_type("text") = Keep()  # type: ignore[valid-type] # made from the list
    regime: one_of(*REGIMES) = Fortifai()  # type: ignore[valid-type] # made from the list
    init_from: Literal["previous", "base", "scratch"] = "previous"
    family: CausalLMOptions
    train: TrainOptions = TrainOptions()
    regenerate: RegenerateOptions = RegenerateOptions()
    data: ClassVar[str] = "text"

    @model_validator(mode="after")
    def _counts_in_processes(self) -> TextArm:
        if self.train.parallel is None or self.train.normalize != "kept":
            return self
        if not isinstance(self.weight, Calibrated) and carries_gradient(self.weight):
            raise ValueError(
                f"train.normalize 'kept' divides by the weights of all processes, and those of "
                f"{self.weight.kind!r} carry a gradient, which stays in each; set normalize to "
                "valid, or leave train.parallel out"
            )
        return self

    @model_validator(mode="after")
    def _carries_from_the_last(self) -> TextArm:
        if self.train.lora is not None and self.train.lora.carry and self.after_fit:
            raise ValueError(
                "train.lora.carry trains the same adapter on, and after_fit changes weights beside "
                "it; set carry to false, or leave after_fit out"
            )
        if self.train.lora is not None and self.train.lora.carry and self.init_from != "previous":
            raise ValueError(
                "train.lora.carry trains on the adapter of the generation before, but init_from "
                f"is {self.init_from!r}; set init_from to previous, or carry to false"
            )
        return self


class TextExperiment(Experiment[TextArm]):
    """Recursive training of a language model."""

    corpus: one_of(*CORPORA)  # type: ignore[valid-type] # made from the list
    questions: QuestionsOptions = QuestionsOptions()
    passages: PassagesOptions = PassagesOptions()
    benchmarks: Annotated[dict[Name, Benchmark], Named] = Field(default_factory=dict)
    formats: FormatsOptions | None = None
    fluency: FluencyOptions = FluencyOptions()
    phases: PhaseRule = PhaseRule()
    time_to_failure: tuple[FailureLevel, ...] = (
        FailureLevel(measure="kr.mean", level=0.75),
        FailureLevel(measure="kr.mean", level="half_gain"),
    )

    only_reported: ClassVar[frozenset[str]] = Experiment.only_reported | {"phases"}
    arm: ClassVar[type[Arm]] = TextArm
    unit: ClassVar[str] = "tokens"
    units: ClassVar[tuple[str, ...]] = ("block", "document")

    @field_validator("benchmarks")
    @classmethod
    def _apart(cls, value: dict[str, Benchmark]) -> dict[str, Benchmark]:
        check_apart(value, "benchmarks")
        return value

    def check_arm(self, arm: TextArm) -> None:
        """See `Experiment`."""
        if arm.family != self.family:
            raise ValueError("all arms of one experiment share one family")
        fresh = arm.init_from == "scratch" or (arm.init_from == "base" and arm.family.untrained)
        if isinstance(arm.weight, Calibrated) and arm.weight.own and fresh:
            raise ValueError(
                f"weight {arm.weight.kind!r} reads its threshold off what the model writes before "
                f"its fit, and with init_from {arm.init_from!r} its weights are random then; set "
                "it to previous"
            )
        if isinstance(arm.weight, Calibrated) and arm.train.gem_beta != 1:
            raise ValueError(
                f"weight {arm.weight.kind!r} reads its threshold off the model's confidences, and "
                f"train.gem_beta {arm.train.gem_beta} truncates by those of logits over beta; give "
                "weight 'truncate' with a number, or leave gem_beta out"
            )
        for cure in arm.cures:
            if cure.needs_base and arm.family.untrained:
                raise ValueError(
                    f"cure {cure.kind!r} asks the base model, which has random weights; give "
                    "family.scratch a pretrain section, or name a base"
                )
        limit = arm.family.scratch.max_positions if arm.family.scratch else None
        wanted = arm.regenerate.longest
        if limit is not None and arm.regenerate.mode == "blocks" and wanted > limit:
            raise ValueError(
                f"{arm.regenerate.told} is {wanted} tokens, longer than the model's max_positions "
                f"{limit}"
            )
        if limit is not None and arm.train.block > limit:
            raise ValueError(
                f"block {arm.train.block} is longer than the model's max_positions {limit}"
            )

    @property
    def keep_first(self) -> bool:
        """Whether later generations are measured with the weights of generation 0, or use them."""
        return self.fluency.under_first or super().keep_first

    @property
    def processes(self) -> int:
        """See `Experiment`; those of `train.parallel`, of the arm that has most."""
        return max(
            arm.train.parallel.processes if arm.train.parallel else 1 for arm in self.arms.values()
        )

    @property
    def family(self) -> CausalLMOptions:
        """The family that all arms share."""
        return next(iter(self.arms.values())).family

    @property
    def positions(self) -> int:
        """Positions a scratch model needs: the longest block or context of any arm."""
        return max(max(arm.train.block, arm.regenerate.longest) for arm in self.arms.values())

    @classmethod
    def corpus_with(cls, corpora: tuple[type[Options], ...]) -> Any:
        """See `Experiment`."""
        return one_of(*CORPORA, more=corpora)

    @classmethod
    def built_in_measures(cls) -> tuple[Measure, ...]:
        """See `Experiment`."""
        from fortifai.text.measures import MEASURES

        return MEASURES

    def read(self, root: Path) -> TextDomain:
        """See `Experiment`."""
        from fortifai.text import reading

        return reading.read(self, root)

    def load(self, folder: Path) -> TextDomain:
        """See `Experiment`."""
        from fortifai.text import domain

        return domain.load(self, folder)
