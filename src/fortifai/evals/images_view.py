"""The measures of an image model's generation: one view, computed once, for all of them.

To add a measure: write a function from `ImagesView` to a list of scores, and name it in
`MEASURES`. The functions on arrays are in `fortifai.evals.images`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from fortifai.evals import images
from fortifai.evals.images import Classifier
from fortifai.evals.score import Score
from fortifai.evals.view import Stage
from fortifai.loop.recurse import Family

Pixels = NDArray[np.float32]

ORIGIN = "origin"
"""Folder of generation 0's model, whose encoder later generations are seen through."""
COMPARED = 2000
"""Images of either side in Fréchet distance, precision and recall: both move with their number."""
SHOWN = 48
"""Images of each generation that are kept for the report's grids."""


@dataclasses.dataclass(frozen=True)
class Material:
    """What the measures of all generations share.

    Attributes:
        held_out: (m, H, W) real images that no generation trains on.
        classifier: Trained on real images, or None where they have no labels.
        family: Loads generation 0's model back.
    """

    held_out: Pixels
    classifier: Classifier | None
    family: Family[Any]


class ImagesView:
    """A finished generation, and what generation 0's encoder makes of it."""

    def __init__(self, stage: Stage[Any], material: Material) -> None:
        self.stage, self.material = stage, material

    @functools.cached_property
    def rewritten(self) -> Pixels:
        """(n, H, W): all that this generation wrote."""
        written = [self.stage.rewritten[k] for k in sorted(self.stage.rewritten)]
        return np.concatenate(written)

    @functools.cached_property
    def real(self) -> Pixels:
        """(n, H, W): the real images of all splits."""
        return np.concatenate(list(self.stage.real))

    @functools.cached_property
    def encoder(self) -> Any:
        """Generation 0's model."""
        folder = self.stage.origin / ORIGIN
        if self.stage.generation == 0:
            self.stage.model.save(folder)
        return self.material.family.load(folder)

    @functools.cached_property
    def codes(self) -> NDArray[np.float32]:
        """Generation 0's encoder means of what was written, (n, latent)."""
        codes: NDArray[np.float32] = self.encoder.encode(self.rewritten)
        return codes

    @functools.cached_property
    def held_out_codes(self) -> NDArray[np.float32]:
        """The same of held-out real images."""
        codes: NDArray[np.float32] = self.encoder.encode(self.material.held_out)
        return codes

    @functools.cached_property
    def real_codes(self) -> NDArray[np.float32]:
        """The same of the real images that were trained on."""
        codes: NDArray[np.float32] = self.encoder.encode(self.real)
        return codes

    @property
    def compared(self) -> int:
        """How many images of either side are compared."""
        return min(COMPARED, len(self.rewritten), len(self.material.held_out), len(self.real))


def spread(view: ImagesView) -> list[Score]:
    """Standard deviation of generation 0's encoder means over what was written."""
    groups = {"rewritten": view.codes}
    if view.stage.generation == 0:
        groups["real"] = view.real_codes
    return [
        Score(
            "spread",
            images.spread(codes),
            on,
            len(codes),
            images.spread_stderr(codes),
            "sd of codes",
        )
        for on, codes in groups.items()
    ]


def likeness(view: ImagesView) -> list[Score]:
    """Fréchet distance, precision and recall against held-out real images, in code space.

    On ``real``: what real images that were trained on get, the best that can be had.
    """
    n = view.compared
    groups = {"rewritten": view.codes}
    if view.stage.generation == 0:
        groups["real"] = view.real_codes
    out = []
    for on, codes in groups.items():
        real = view.held_out_codes[:n]
        distance = images.frechet(real, codes[:n])
        precision, recall = images.precision_recall(real, codes[:n])
        out.append(Score("frechet", distance, on, n, unit="squared codes", direction="lower"))
        for name, share in (("precision", precision), ("recall", recall)):
            error = math.sqrt(share * (1 - share) / n)
            out.append(Score(name, share, on, n, error, "share", None, "higher"))
    return out


def classes(view: ImagesView) -> list[Score]:
    """Entropy over the predicted classes and mean certainty of a classifier of real images."""
    classifier = view.material.classifier
    if classifier is None:
        return []
    groups = {"rewritten": view.rewritten}
    if view.stage.generation == 0:
        groups["real"] = view.material.held_out
    out = []
    for on, pixels in groups.items():
        p = classifier.probabilities(pixels)
        error = images.class_entropy_stderr(p)
        sure, sure_error = images.certainty(p)
        n = len(pixels)
        out += [
            Score("classes.entropy", images.class_entropy(p), on, n, error, "nats", None, "higher"),
            Score("classes.certainty", sure, on, n, sure_error, "probability", None, "higher"),
        ]
    return out


def likelihood(view: ImagesView) -> list[Score]:
    """Log p of held-out real images at the encoder's mean code, summed over pixels, in nats."""
    held_out = view.material.held_out
    total = view.stage.model.log_prob(held_out).astype(np.float64).sum((1, 2))
    error = float(total.std(ddof=1) / math.sqrt(len(total)))
    return [
        Score(
            "reconstruction",
            float(total.mean()),
            "held-out",
            len(total),
            error,
            "nats per image",
            None,
            "higher",
        )
    ]


def training(view: ImagesView) -> list[Score]:
    """Share of pixels that training left out, and the training loss."""
    fit = view.stage.fit
    n = int(fit["images"])
    return [
        Score("train.truncated_share", float(fit["truncated_share"]), "train", n, unit="share"),
        Score("train.loss", float(fit["loss"]), "train", n, unit="nats per image"),
    ]


MEASURES: tuple[Callable[[ImagesView], list[Score]], ...] = (
    spread,
    likeness,
    classes,
    likelihood,
    training,
)


def grid(view: ImagesView) -> dict[str, NDArray[np.uint8]]:
    """The first images that were written, and of generation 0 also real ones, as bytes."""
    groups = {"rewritten": view.rewritten}
    if view.stage.generation == 0:
        groups["real"] = view.real
    return {name: np.round(255 * x[:SHOWN]).astype(np.uint8) for name, x in groups.items()}


def write_grid(view: ImagesView, path: Any) -> None:
    """Write `grid` as safetensors."""
    save_file(grid(view), path)
