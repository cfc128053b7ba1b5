"""What the YAML of an experiment on points may say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PositiveInt, create_model

from fortifai.lab.measures import Measure
from fortifai.lab.regimes import REGIMES, Replace
from fortifai.lab.seeds import Seed
from fortifai.lab.spec import Arm, Experiment, weight_type
from fortifai.options import Options, one_of
from fortifai.points.gaussian import GaussianOptions
from fortifai.points.gmm import GMMOptions
from fortifai.points.sources import SOURCES
from fortifai.weights import Keep, TruncateTails

if TYPE_CHECKING:
    from fortifai.points.domain import PointsDomain


FAMILIES = (GaussianOptions, GMMOptions)
"""Options of families, such as those of `gmm`, the shorter example.

`make(weight)` gives the family. `needs(dimension)` gives the fewest points of a split and, for the
message, why: ``(2, "a Laplace density needs 2")``. `all_seeds`, a ClassVar: whether one model is
fitted to the points of all seeds at once.

A model's `fit` calls the weight on a tensor of log_prob of the points under the model as it was
before (the first fit keeps all), and returns ``points``, how many it was fitted to, and
``truncated_share``. It has `mixtures` besides, a `Mixture` a seed that the measures compare; a
family that is no mixture gives one component of its moments, and they compare that.
"""


class PointsCorpus(Options):
    """Points of any dimension.

    A source that draws gives every seed its own points; the points of files are the same for all.
    `samples`: points of each split; None: all that the files have, or 1,000 draws.
    `held_out`: points that no generation trains on.
    """

    kind: Literal["points"] = "points"
    source: one_of(*SOURCES)  # type: ignore[valid-type] # made from the list
    samples: PositiveInt | None = None
    held_out: PositiveInt = 1000


class PointsArm(Arm):
    """One arm of a density, whole.

    Each generation knows the one before: a point's weight comes from the density that the last
    model gives it, so generation 0 keeps every point.
    """

    weight: weight_type("points") = Keep()  # type: ignore[valid-type] # made from the list
    regime: one_of(*REGIMES) = Replace()  # type: ignore[valid-type] # made from the list
    family: one_of(*FAMILIES)  # type: ignore[valid-type] # made from the list
    init_from: ClassVar[Literal["previous"]] = "previous"  # type: ignore[misc] # no key of the YAML
    data: ClassVar[str] = "points"


class PointsExperiment(Experiment[PointsArm]):
    """Recursive fitting of a density to points."""

    corpus: PointsCorpus
    arm: ClassVar[type[Arm]] = PointsArm
    unit: ClassVar[str] = "points"
    units: ClassVar[tuple[str, ...]] = ("point",)
    accelerated: ClassVar[bool] = False

    def check_arm(self, arm: PointsArm) -> None:
        """See `Experiment`."""
        if arm.family.kind != next(iter(self.arms.values())).family.kind:
            raise ValueError("all arms of one experiment are of one family")
        if isinstance(arm.weight, TruncateTails) and not isinstance(arm.family, GaussianOptions):
            raise ValueError(
                "weight 'truncate_tails' needs one mean and one sigma, which only family "
                "'gaussian' has; use truncate_quantile"
            )

    @classmethod
    def corpus_with(cls, corpora: tuple[type[Options], ...]) -> Any:
        """See `Experiment`."""
        source: Any = one_of(*SOURCES, more=corpora)
        return create_model("PointsCorpus", __base__=PointsCorpus, source=(source, ...))

    def chains(self) -> Mapping[str, Seed]:
        """One chain of all seeds, where the family fits all of them at once."""
        if self.together:
            return {"seeds": self.seeds}
        several = any(a.family.all_seeds for a in self.arms.values())
        return {f"seed-{seed}": (seed,) if several else seed for seed in self.seeds}

    @property
    def together(self) -> bool:
        """Whether one chain holds all seeds of an arm.

        Cures may leave each seed points of another number, which then have no array in common.
        """
        return all(a.family.all_seeds and not a.cures for a in self.arms.values())

    @classmethod
    def built_in_measures(cls) -> tuple[Measure, ...]:
        """See `Experiment`."""
        from fortifai.points.measures import MEASURES

        return MEASURES

    def read(self, root: Path) -> PointsDomain:
        """See `Experiment`."""
        from fortifai.points import domain

        return domain.read(self, root)

    def load(self, folder: Path) -> PointsDomain:
        """See `Experiment`."""
        from fortifai.points import domain

        return domain.load(self, folder)
