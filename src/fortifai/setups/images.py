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

from fortifai.config import (
    Digits,
    IdxImages,
    ImageArray,
    ImageFolder,
    ImagesExperiment,
    ImageSource,
)
from fortifai.data import images
from fortifai.data.images import Images
from fortifai.errors import InputError
from fortifai.evals import images as measures
from fortifai.evals import images_view
from fortifai.evals.score import Score
from fortifai.evals.view import Stage
from fortifai.loop.progress import Progress
from fortifai.loop.seeds import derive
from fortifai.models.vae import VAE, VAEFamily
from fortifai.setups.setup import Ground, fingerprint

Pixels = NDArray[np.float32]

ORDER_SEED = 1
"""Root of the order of the images: the same for all seeds of a run."""
CLASSIFIED = 6000
"""Labelled images that the classifier learns from, at most."""


@dataclasses.dataclass(frozen=True)
class ImagesInputs:
    """Everything read and checked, in memory: `fortifai.setups.Inputs`.

    Attributes:
        config: The experiment.
        real: Splits (n, H, W) float32 in [0, 1].
        held_out: (m, H, W).
        labelled: Images for the classifier and their labels, or None.
        source: Where the images come from.
        notes: What a user should know.
    """

    config: ImagesExperiment
    real: tuple[Pixels, ...]
    held_out: Pixels
    labelled: tuple[Pixels, NDArray[np.int64]] | None
    source: str
    notes: tuple[str, ...]

    @property
    def unit(self) -> str:
        """Images."""
        return "images"

    @property
    def splits(self) -> int:
        """How many splits there are."""
        return len(self.real)

    @property
    def split_size(self) -> int:
        """Images of one split."""
        return len(self.real[0])

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
            ("splits", f"{len(self.real)} of {self.split_size:,} images of {height} x {width}"),
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

    def write(self, folder: Path, progress: Progress, *, before: Path | None = None) -> None:
        """Write the images, and a classifier of them where they have labels."""
        arrays = {f"split-{k}": values for k, values in enumerate(self.real)}
        arrays |= {"held-out": self.held_out}
        arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
        save_file(arrays, folder / "images.safetensors")
        if self.labelled is not None:
            pixels, labels = self.labelled
            seed = derive(ORDER_SEED, "classifier")
            measures.fit_classifier(pixels, labels, seed=seed).save(folder / "classifier")


@dataclasses.dataclass(frozen=True)
class ImagesShared:
    """What `ImagesInputs.write` wrote: `fortifai.setups.Shared`."""

    config: ImagesExperiment
    real: tuple[Pixels, ...]
    held_out: Pixels
    classifier: measures.Classifier | None

    def ground(self, arm: str, seeds: tuple[int, ...], folder: Path) -> Ground:
        """The autoencoder of one arm, the images, and the measures."""
        settings = self.config.arms[arm]
        _, height, width = self.held_out.shape
        family = VAEFamily(settings.family, settings.weight.build(), (height, width))
        material = images_view.Material(self.held_out, self.classifier, family)
        return Ground(family, self.real, functools.partial(_evaluate, material=material))


def _evaluate(stage: Stage[Any], folder: Path, *, material: images_view.Material) -> list[Score]:
    view = images_view.ImagesView(stage, material)
    scores: list[Score] = []
    for done, measure in enumerate(images_view.MEASURES):
        scores += measure(view)
        stage.tick(done + 1, len(images_view.MEASURES))
    images_view.write_grid(view, folder / "grid.safetensors")
    return scores


# --- reading ----------------------------------------------------------------------------------


def read(config: ImagesExperiment, root: Path) -> ImagesInputs:
    """Read the images and cut them into splits.

    Raises:
        InputError: Anything about them is wrong.
    """
    found = _read(config.corpus.source, root)
    # files are often sorted by class; splits and held-out images must be alike
    order = np.random.default_rng(derive(ORDER_SEED, "order")).permutation(len(found.pixels))
    pixels = found.pixels[order]
    labels = None if found.labels is None else found.labels[order]
    if isinstance(config.corpus.held_out, float):
        aside = max(1, round(config.corpus.held_out * len(pixels)))
        held_out, rest = pixels[:aside], pixels[aside:]
        labels = None if labels is None else labels[aside:]
    else:
        held_out, rest = _read(config.corpus.held_out, root).pixels, pixels
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
    data = ImagesInputs(config, real, held_out, labelled, found.source, notes)
    data.parameters  # noqa: B018 - building the network checks that it takes images of this size
    return data


def _read(source: ImageSource, root: Path) -> Images:
    if isinstance(source, Digits):
        return images.digits()
    if isinstance(source, IdxImages):
        return images.read_idx(source.images, source.labels, root)
    if isinstance(source, ImageFolder):
        return images.read_folder(source.path, root)
    if isinstance(source, ImageArray):
        return images.read_array(source.file, root)
    return images.read_hub(
        source.dataset,
        config=source.config,
        split=source.split,
        image=source.image,
        label=source.label,
    )


def _size(pixels: Sequence[Any] | Pixels) -> str:
    _, height, width = np.shape(pixels)
    return f"{height} x {width}"


def load(config: ImagesExperiment, folder: Path) -> ImagesShared:
    """Read back what `ImagesInputs.write` wrote."""
    found = load_file(folder / "images.safetensors")
    count = sum(name.startswith("split-") for name in found)
    classifier = None
    if (folder / "classifier").is_dir():
        classifier = measures.Classifier.load(folder / "classifier")
    real = tuple(found[f"split-{k}"] for k in range(count))
    return ImagesShared(config, real, found["held-out"], classifier)
