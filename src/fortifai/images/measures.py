"""The measures of an image model's generation, on a `Generation` of `ImagesDomain`.

To add one, write a function with its metadata and name it in `MEASURES`. The functions on arrays
are in `fortifai.images.distances`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fortifai.images import distances
from fortifai.lab.measures import Generation, Headline, Line, Measure, Score, measure, once

if TYPE_CHECKING:
    from fortifai.images.domain import ImagesDomain
    from fortifai.images.vae import VAE

    ImagesGeneration = Generation[VAE, ImagesDomain]

Pixels = NDArray[np.float32]
Codes = NDArray[np.float32]

ORIGIN = "origin"
"""Folder of generation 0's model, whose encoder later generations are seen through."""
COMPARED = 2000
"""Images of either side in Fréchet distance, precision and recall: both move with their number."""
SHOWN_IMAGES = 48
"""Images of each generation that are kept for the report's grids."""


@once
def rewritten(generation: ImagesGeneration) -> Pixels:
    """(n, H, W): all that this generation wrote."""
    return np.concatenate([generation.rewritten[k] for k in sorted(generation.rewritten)])


@once
def encoder(generation: ImagesGeneration) -> VAE:
    """Generation 0's model."""
    folder = generation.origin / ORIGIN
    if generation.number == 0:
        generation.model.save(folder)
    return generation.model.family.load(folder)


@once
def codes(generation: ImagesGeneration) -> Mapping[str, Codes]:
    """Generation 0's encoder means, (n, latent), of what was written, and of real images once."""
    groups = {"rewritten": rewritten(generation)}
    if generation.number == 0:
        groups["real"] = np.concatenate(list(generation.real))
    return {on: encoder(generation).encode(pixels) for on, pixels in groups.items()}


@measure(
    "spread",
    title="Spread of the codes",
    panel="Diversity",
    unit="standard deviation",
    real=True,
    headlines=[Headline("spread", "spread", "rewritten", ".3f")],
)
def spread(generation: ImagesGeneration) -> Iterator[Score]:
    """Standard deviation of generation 0's encoder means over what was generated."""
    for on, found in codes(generation).items():
        value, error = distances.spread(found)
        yield Score("spread", value, on, len(found), error)


@once
def compared(generation: ImagesGeneration) -> tuple[Codes, Mapping[str, Codes]]:
    """Codes of as many held-out real images as of what is held against them."""
    held_out, groups = generation.domain.held_out, codes(generation)
    real = sum(len(part) for part in generation.real)
    n = min(COMPARED, len(groups["rewritten"]), len(held_out), real)
    return encoder(generation).encode(held_out)[:n], {on: x[:n] for on, x in groups.items()}


@measure(
    "frechet",
    title="Fréchet distance",
    panel="Likeness to held-out images",
    unit="squared codes",
    direction="lower",
    real=True,
    caption="To held-out real images, in the code space of generation 0's encoder; of real data: "
    "those that were trained on, the best to be had.",
    headlines=[Headline("Fréchet", "frechet", "rewritten", ".3f")],
)
def frechet(generation: ImagesGeneration) -> Iterator[Score]:
    """Fréchet distance to held-out real images, in code space.

    On ``real``: what real images that were trained on get, the best that can be had.
    """
    real, groups = compared(generation)
    for on, found in groups.items():
        yield Score("frechet", distances.frechet(real, found), on, len(real))


@once
def neighbours(generation: ImagesGeneration) -> Mapping[str, tuple[float, float]]:
    """Precision and recall, in code space."""
    real, groups = compared(generation)
    return {on: distances.precision_recall(real, found) for on, found in groups.items()}


def _shares(generation: ImagesGeneration, name: str, which: int) -> Iterator[Score]:
    n = len(compared(generation)[0])
    for on, found in neighbours(generation).items():
        share = found[which]
        yield Score(name, share, on, n, math.sqrt(share * (1 - share) / n))


@measure(
    "precision",
    title="Precision",
    panel="Likeness to held-out images",
    unit="share of generated images",
    direction="higher",
    real=True,
)
def precision(generation: ImagesGeneration) -> Iterator[Score]:
    """Share of generated images that lie among held-out real ones, by neighbours in code space."""
    yield from _shares(generation, "precision", 0)


@measure(
    "recall",
    title="Recall",
    panel="Likeness to held-out images",
    unit="share of real images",
    direction="higher",
    real=True,
    headlines=[Headline("recall", "recall", "rewritten", ".2f")],
)
def recall(generation: ImagesGeneration) -> Iterator[Score]:
    """Share of held-out real images that lie among what was generated, likewise."""
    yield from _shares(generation, "recall", 1)


@once
def predictions(generation: ImagesGeneration) -> Mapping[str, NDArray[np.float64]]:
    """Class probabilities by a classifier of real images, (n, classes); empty without one."""
    classifier = generation.domain.classifier
    if classifier is None:
        return {}
    groups = {"rewritten": rewritten(generation)}
    if generation.number == 0:
        groups["real"] = generation.domain.held_out
    return {on: classifier.probabilities(pixels) for on, pixels in groups.items()}


@measure(
    "classes.entropy",
    title="Entropy over classes",
    panel="Classes",
    unit="nats",
    direction="higher",
    real=True,
)
def class_entropy(generation: ImagesGeneration) -> Iterator[Score]:
    """Over the classes that a classifier of real images predicts."""
    for on, p in predictions(generation).items():
        entropy, error = distances.class_entropy(p)
        yield Score("classes.entropy", entropy, on, len(p), error)


@measure(
    "classes.confidence",
    title="Confidence of the classifier",
    panel="Classes",
    unit="probability",
    direction="higher",
    real=True,
)
def class_confidence(generation: ImagesGeneration) -> Iterator[Score]:
    """Its mean probability of the class that it predicts."""
    for on, p in predictions(generation).items():
        mean, error = distances.mean_confidence(p)
        yield Score("classes.confidence", mean, on, len(p), error)


@measure(
    "reconstruction",
    title="Log-likelihood of held-out images",
    panel="Likeness to held-out images",
    unit="nats per image",
    direction="higher",
    lines=[Line("Held-out images", "reconstruction", "held-out", unit="log p of all pixels, nats")],
)
def reconstruction(generation: ImagesGeneration) -> Iterator[Score]:
    """Log p of held-out real images at the encoder's mean code, summed over pixels, in nats."""
    total = generation.model.log_prob(generation.domain.held_out).astype(np.float64).sum((1, 2))
    error = float(total.std(ddof=1) / math.sqrt(len(total)))
    yield Score("reconstruction", float(total.mean()), "held-out", len(total), error)


@measure(
    "train.truncated_share",
    title="Truncated share",
    panel="Training",
    unit="share of pixels",
    headlines=[Headline("truncated", "train.truncated_share", "train", ".0%")],
)
def truncated(generation: ImagesGeneration) -> Iterator[Score]:
    """1 minus the mean weight of a pixel in training: the share truncated, 0 where all are kept."""
    share, n = float(generation.fit["truncated_share"]), int(generation.fit["images"])
    yield Score("train.truncated_share", share, "train", n)


@measure(
    "train.loss", title="Training loss", panel="Training", unit="nats per image", direction="lower"
)
def loss(generation: ImagesGeneration) -> Iterator[Score]:
    """The mean over the last epoch."""
    n = int(generation.fit["images"]) // len(generation.fit["epochs"])
    yield Score("train.loss", float(generation.fit["loss"]), "train", n)


MEASURES: tuple[Measure, ...] = (
    *(spread, frechet, precision, recall, class_entropy, class_confidence, reconstruction),
    *(truncated, loss),
)


def grid(generation: ImagesGeneration) -> dict[str, NDArray[np.uint8]]:
    """The first images that were written, and of generation 0 also real ones, as bytes."""
    groups = {"rewritten": rewritten(generation)}
    if generation.number == 0:
        groups["real"] = np.concatenate(list(generation.real))
    return {name: np.round(255 * x[:SHOWN_IMAGES]).astype(np.uint8) for name, x in groups.items()}
