"""Experiments on images: a variational autoencoder, trained again and again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from fortifai.errors import InputError
from fortifai.images import distances, measures
from fortifai.images.distances import Classifier
from fortifai.images.spec import ImagesExperiment
from fortifai.images.vae import VAE, VAEFamily
from fortifai.lab.domain import Family, fingerprint
from fortifai.lab.measures import Generation, Score
from fortifai.lab.progress import Progress
from fortifai.lab.seeds import derive

Pixels = NDArray[np.float32]

ORDER_SEED = 1
"""Root of the order of the images: the same for all seeds of a run."""
CLASSIFIED = 6000
"""Labelled images that the classifier learns from, at most."""


@dataclasses.dataclass(frozen=True)
class ImagesDomain:
    """Images, read and checked: a `fortifai.lab.domain.Domain`.

    Attributes:
        config: The experiment.
        real: Splits (n, H, W) float32 in [0, 1].
        held_out: (m, H, W).
        classifier: Trained on real images when they are saved, or None without labels.
        labelled: Images for the classifier and their labels, or None; not loaded again.
        source: Where the images come from.
        notes: What a user should know.
    """

    config: ImagesExperiment
    real: tuple[Pixels, ...]
    held_out: Pixels
    classifier: Classifier | None = None
    labelled: tuple[Pixels, NDArray[np.int64]] | None = None
    source: str = ""
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        _, height, width = self.real[0].shape
        return height, width

    @property
    def sample_bytes(self) -> int:
        """Four bytes a pixel."""
        return 4 * self.size[0] * self.size[1]

    @functools.cached_property
    def parameters(self) -> int:
        """Parameters of the largest model of any arm."""
        return max(
            sum(int(p.numel()) for p in VAE.network(arm.family, self.size).parameters())
            for arm in self.config.arms.values()
        )

    @property
    def model_bytes(self) -> int:
        """Four bytes a parameter."""
        return 4 * self.parameters

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Sizes of model and data."""
        height, width = self.size
        labels = "labelled" if self.labelled else "without labels: no classifier"
        return (
            ("model", f"{self.parameters:,} parameters"),
            ("splits", f"{len(self.real)} of {len(self.real[0]):,} images of {height} x {width}"),
            ("images", f"{self.source}, {labels}"),
            ("held out", f"{len(self.held_out):,} images"),
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all pixels."""
        return fingerprint((*self.real, self.held_out))

    def foundation(self, splits: int) -> str:
        """SHA-256 of the first splits."""
        return fingerprint(self.real[:splits])

    def effort(self, arm: str, samples: int) -> tuple[int, int]:
        """Images read over all epochs, and optimizer steps."""
        family = self.config.arms[arm].family
        return samples * family.epochs, -(-samples // family.batch_size) * family.epochs

    def save(self, folder: Path, progress: Progress, *, before: Path | None = None) -> None:
        """Write the images, and a classifier of them where they have labels."""
        arrays = {f"split-{k}": values for k, values in enumerate(self.real)}
        arrays |= {"held-out": self.held_out}
        arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
        save_file(arrays, folder / "images.safetensors")
        if self.labelled is not None:
            pixels, labels = self.labelled
            seed = derive(ORDER_SEED, "classifier")
            distances.fit_classifier(pixels, labels, seed=seed).save(folder / "classifier")

    def chain(self, arm: str, seed: Any, folder: Path) -> tuple[Family[Any], Sequence[Pixels]]:
        """The autoencoder of one arm, and the images."""
        settings = self.config.arms[arm]
        return VAEFamily(settings.family, settings.weight, self.size), self.real

    def evaluate(self, generation: Generation[Any, Any], folder: Path) -> list[Score]:
        """All scores, and a grid of what was written."""
        scores: list[Score] = []
        taken = self.config.taken()
        for done, measure in enumerate(taken):
            scores += measure(generation)
            generation.tick(done + 1, len(taken))
        save_file(measures.grid(generation), folder / "grid.safetensors")
        return scores


# --- reading ----------------------------------------------------------------------------------


def read(config: ImagesExperiment, root: Path) -> ImagesDomain:
    """Read the images and cut them into splits.

    Raises:
        InputError: Anything about them is wrong.
    """
    found = config.corpus.source.read(root)
    # files are often sorted by class; splits and held-out images must be alike
    order = np.random.default_rng(derive(ORDER_SEED, "order")).permutation(len(found.pixels))
    pixels = found.pixels[order]
    labels = None if found.labels is None else found.labels[order]
    if isinstance(config.corpus.held_out, float):
        aside = max(1, round(config.corpus.held_out * len(pixels)))
        held_out, rest = pixels[:aside], pixels[aside:]
        labels = None if labels is None else labels[aside:]
    else:
        held_out, rest = config.corpus.held_out.read(root).pixels, pixels
    if held_out.shape[1:] != rest.shape[1:]:
        raise InputError(
            f"the held-out images are {_size(held_out)} and the others {_size(rest)}; they must be "
            "of one size"
        )
    count = config.split_count
    size = config.corpus.samples or len(rest) // count
    if size < 2 or size * count > len(rest):
        raise InputError(
            f"{found.source} has {len(rest):,} images besides the held-out ones, too few for "
            f"{count} splits of {max(size, 2):,}; give more images, fewer splits or smaller ones"
        )
    labelled: tuple[Pixels, NDArray[np.int64]] | None = None
    notes: tuple[str, ...] = ()
    if labels is not None:
        labelled = (rest[:CLASSIFIED], labels[:CLASSIFIED])
        if len(np.unique(labelled[1])) < 2:
            labelled, notes = None, (f"all labels of {found.source} are one: no classifier",)
    real = tuple(rest[k * size : (k + 1) * size] for k in range(count))
    data = ImagesDomain(config, real, held_out, None, labelled, found.source, notes)
    data.parameters  # noqa: B018 - building the network checks that it takes images of this size
    return data


def _size(pixels: Sequence[Any] | Pixels) -> str:
    _, height, width = np.shape(pixels)
    return f"{height} x {width}"


def load(config: ImagesExperiment, folder: Path) -> ImagesDomain:
    """Read back what `ImagesDomain.save` wrote."""
    found = load_file(folder / "images.safetensors")
    count = sum(name.startswith("split-") for name in found)
    there = (folder / "classifier").is_dir()
    classifier = Classifier.load(folder / "classifier") if there else None
    real = tuple(found[f"split-{k}"] for k in range(count))
    return ImagesDomain(config, real, found["held-out"], classifier)
