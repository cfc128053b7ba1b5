"""What the YAML of an experiment on images may say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, create_model

from fortifai.images.sources import SOURCES
from fortifai.images.vae import VAEOptions
from fortifai.lab.measures import Measure
from fortifai.lab.regimes import REGIMES, Replace
from fortifai.lab.spec import Arm, Experiment, weight_type
from fortifai.options import Options, one_of
from fortifai.weights import Keep, Truncate

if TYPE_CHECKING:
    from fortifai.images.domain import ImagesDomain


class ImagesCorpus(Options):
    """Images with pixels in [0, 1].

    `samples`: images of each split; None: all. `held_out`: another source, or the share of this
    one that no generation trains on.
    """

    kind: Literal["images"] = "images"
    source: one_of(*SOURCES)  # type: ignore[valid-type] # made from the list
    samples: PositiveInt | None = None
    held_out: Annotated[float, Field(gt=0, lt=1)] | one_of(*SOURCES) = 0.1  # type: ignore[valid-type] # made from the list


class ImagesArm(Arm):
    """One arm of an image model, whole."""

    weight: weight_type("images") = Keep()  # type: ignore[valid-type] # made from the list
    regime: one_of(*REGIMES) = Replace()  # type: ignore[valid-type] # made from the list
    init_from: Literal["previous", "scratch"] = "scratch"
    family: VAEOptions
    data: ClassVar[str] = "images"


class ImagesExperiment(Experiment[ImagesArm]):
    """Recursive training of an image model."""

    corpus: ImagesCorpus
    arm: ClassVar[type[Arm]] = ImagesArm
    unit: ClassVar[str] = "images"
    units: ClassVar[tuple[str, ...]] = ("image",)

    def check_arm(self, arm: ImagesArm) -> None:
        """See `Experiment`."""
        if isinstance(arm.weight, Truncate) and arm.weight.threshold == 0:
            raise ValueError(
                "threshold 0 keeps a share of 0 of the pixels, since only those of probability 0 "
                "would count; give a threshold above 0"
            )

    @classmethod
    def corpus_with(cls, corpora: tuple[type[Options], ...]) -> Any:
        """See `Experiment`."""
        source: Any = one_of(*SOURCES, more=corpora)
        return create_model("ImagesCorpus", __base__=ImagesCorpus, source=(source, ...))

    @classmethod
    def built_in_measures(cls) -> tuple[Measure, ...]:
        """See `Experiment`."""
        from fortifai.images.measures import MEASURES

        return MEASURES

    def read(self, root: Path) -> ImagesDomain:
        """See `Experiment`."""
        from fortifai.images import domain

        return domain.read(self, root)

    def load(self, folder: Path) -> ImagesDomain:
        """See `Experiment`."""
        from fortifai.images import domain

        return domain.load(self, folder)
