"""The family `vae`: a convolutional variational autoencoder with Bernoulli pixels.

The network of 'The Curse of Recursion' (2305.17493); the confidence-weighted evidence lower bound
of ForTIFAI (2509.08972), section 4.8. Images have shape (n, H, W), float32, in [0, 1].
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fortifai.errors import Diverged, InputError
from fortifai.lab.budget import Spent
from fortifai.lab.domain import draw_share, even_edges
from fortifai.options import Options
from fortifai.weights import Dynamic, Keep, Truncate, Weight, keeps_all

if TYPE_CHECKING:
    from fortifai.lab.progress import Progress

Pixels = NDArray[np.float32]

_WEIGHTS, _SETTINGS = "model.safetensors", "vae.json"
_BATCH = 1024  # images that are decoded at once where nothing is trained
_TELL_EVERY = 10  # steps


class Network(nn.Module):
    """Encoder and decoder, two strided convolutions each.

    Args:
        size: Height and width of an image, multiples of 4.
        latent: Dimensions of the code.
        channels: Of the two convolutions.
    """

    def __init__(self, size: tuple[int, int], latent: int, channels: tuple[int, int]) -> None:
        super().__init__()
        first, second = channels
        grid = (second, size[0] // 4, size[1] // 4)
        self.encoder = nn.Sequential(
            nn.Conv2d(1, first, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(math.prod(grid), 2 * latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, math.prod(grid)),
            nn.ReLU(),
            nn.Unflatten(1, grid),
            nn.ConvTranspose2d(second, first, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(first, 1, 4, stride=2, padding=1),
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (n, latent), for images (n, H, W)."""
        mean, log_variance = self.encoder(images[:, None]).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, codes: Tensor) -> Tensor:
        """Logits of the pixels, (n, H, W), for codes (n, latent)."""
        logits: Tensor = self.decoder(codes)[:, 0]
        return logits

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits at z = mean + exp(log_variance / 2) * noise, then mean and log-variance."""
        mean, log_variance = self.encode(images)
        return self.decode(mean + torch.exp(0.5 * log_variance) * noise), mean, log_variance


class Bound(NamedTuple):
    """The negative evidence lower bound of a batch, scalars; all but `loss` are detached.

    Attributes:
        loss: What is minimised, nats per image.
        reconstruction: Sum over the pixels of -log p, without weights, nats per image.
        kl: KL(q(z|x) || N(0, I)), without beta, nats per image.
        kept_share: Mean weight of the pixels.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor
    kept_share: Tensor


def negative_elbo(
    logits: Tensor,
    images: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    *,
    weight: Weight,
    beta: float = 1.0,
) -> Bound:
    """The confidence-weighted negative evidence lower bound, mean over the images.

    Per image sum_i w(log p_i) (-log p_i) + beta * KL(q(z|x) || N(0, I)), where pixel i is a
    Bernoulli variable: log p_i = x_i log r_i + (1 - x_i) log(1 - r_i) with r = sigmoid(logits);
    for a grey pixel it is minus the cross entropy. The KL term is
    sum_j (mean_j^2 + exp(log_variance_j) - 1 - log_variance_j) / 2. ForTIFAI (2509.08972),
    section 4.8, truncates the pixels; with weight 1 it is the usual bound.

    Args:
        logits: (n, H, W), float32 or float64.
        images: Same shape, in [0, 1].
        mean: (n, latent), of q(z|x).
        log_variance: (n, latent), of q(z|x).
        weight: What each pixel counts, by its log p.
        beta: Weight of the KL term.
    """
    n = len(images)
    surprise = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
    reconstruction = surprise.detach().sum() / n
    if keeps_all(weight):
        weighted, kept_share = surprise.sum() / n, torch.ones_like(reconstruction)
    else:
        w = weight(-surprise)
        weighted, kept_share = (w * surprise).sum() / n, w.detach().mean()
    # expm1(v) - v does not cancel to something below 0 where v is near 0
    kl = 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance).sum() / n
    return Bound(weighted + beta * kl, reconstruction, kl.detach(), kept_share)


class VAEOptions(Options):
    """The variational autoencoder of 'The Curse of Recursion', with Bernoulli pixels.

    `samples`: what a generation writes, the decoder's means or Bernoulli draws of them.
    """

    kind: Literal["vae"] = "vae"
    latent: PositiveInt = 20
    channels: tuple[PositiveInt, PositiveInt] = (64, 128)
    beta: Annotated[float, Field(ge=0)] = 1.0
    epochs: PositiveInt = 30
    learning_rate: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    batch_size: PositiveInt = 256
    samples: Literal["means", "bernoulli"] = "means"


@dataclasses.dataclass(frozen=True)
class VAEFamily:
    """Makes the autoencoders of one arm.

    Attributes:
        config: Network and training.
        weight: What each pixel counts; a `Dynamic` is calibrated anew before every epoch.
        size: Height and width of the images.

    Raises:
        InputError: Height or width is not a multiple of 4.
    """

    config: VAEOptions
    weight: Weight | Dynamic
    size: tuple[int, int]

    def __post_init__(self) -> None:
        _check_size(self.size)

    def share(self, samples: Pixels, between: tuple[float, float], seed: int) -> Pixels:
        """See `fortifai.lab.domain.Family`."""
        return draw_share(samples, between, 1, seed)

    def edges(self, samples: Pixels, *, unit: str | None) -> NDArray[np.int64]:
        """Each image is a unit."""
        return even_edges(len(samples), 1)

    def create(self, start: Literal["base", "scratch"], *, seed: int) -> VAE:
        """An autoencoder with random weights from the seed; there is no pretrained base."""
        return VAE(self, VAE.network(self.config, self.size, seed=seed))

    def load(self, folder: Path) -> VAE:
        """The autoencoder that an earlier generation saved.

        Raises:
            InputError: It was made with another size, latent dimension or number of channels.
        """
        found = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        if found != self.settings():
            raise InputError(
                f"the autoencoder in {folder} has {found}, this family has {self.settings()}; "
                "they must be equal"
            )
        network = VAE.network(self.config, self.size)
        network.load_state_dict(load_file(folder / _WEIGHTS))
        return VAE(self, network)

    def settings(self) -> dict[str, Any]:
        """What decides the shapes of the weights, as JSON has it."""
        config = self.config
        return {
            "size": list(self.size),
            "latent": config.latent,
            "channels": list(config.channels),
        }


class VAE:
    """A variational autoencoder.

    Attributes:
        family: Its settings.
        device: Where the network is: the accelerator if there is one.
        module: The network.
    """

    def __init__(self, family: VAEFamily, module: Network) -> None:
        self.family, self.spent = family, Spent()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module = module.to(self.device).eval()

    @staticmethod
    def network(config: VAEOptions, size: tuple[int, int], *, seed: int = 0) -> Network:
        """The network with PyTorch's initial weights from `seed`, on the CPU.

        Raises:
            InputError: Height or width is not a multiple of 4.
        """
        _check_size(size)
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which would seed the accelerators as well
            torch.default_generator.manual_seed(seed)
            return Network(size, config.latent, config.channels)

    def fit(self, samples: Pixels, *, seed: int, progress: Progress) -> dict[str, Any]:
        """Train on `samples` with Adam; batches and noise are drawn from the seed.

        Args:
            samples: (n, H, W), in [0, 1].
            seed: Of both.
            progress: Told the steps.

        Returns:
            Of the last epoch, in nats per image, as means over the batches that it went through:
            ``loss``, ``reconstruction`` (without weights) and ``kl`` (without beta). Of the whole
            fit: ``truncated_share``, the mean of 1 - weight over the pixels, ``images``, the
            images read, and ``epochs``: the ``epoch`` from 1, its ``loss``, ``truncated_share``
            and ``threshold`` (None where the weight has none).

        Raises:
            InputError: The images have another shape, or values outside [0, 1].
            Diverged: The loss is not finite, or an epoch kept no pixel at all.
        """
        images = self._read(samples)
        config = self.family.config
        optimizer = torch.optim.Adam(
            self.module.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        generator = torch.Generator(self.device).manual_seed(seed)
        steps = -(-len(images) // config.batch_size)
        epochs: list[dict[str, Any]] = []
        for epoch in range(1, config.epochs + 1):
            order = torch.randperm(len(images), generator=generator, device=self.device)
            weight = self._calibrated(samples, order)
            terms: list[Tensor] = []
            for step, chosen in enumerate(torch.split(order, config.batch_size), 1):
                bound = self._step(images[chosen], weight, optimizer, generator)
                terms.append(len(chosen) * torch.stack([term.detach() for term in bound]))
                done = (epoch - 1) * steps + step
                if done % _TELL_EVERY == 0 or step == steps:
                    progress.step("train", done, steps * config.epochs, tokens=0)
            # read once an epoch: reading makes the host wait for an accelerator; and summed here,
            # in double precision, which some accelerators do not have
            sums = (sum(column) for column in zip(*torch.stack(terms).tolist(), strict=True))
            loss, reconstruction, kl, kept_share = (total / len(images) for total in sums)
            _check_epoch(epoch, loss, kept_share, self.module)
            threshold = weight.threshold if isinstance(weight, Truncate) else None
            told = {"loss": loss, "truncated_share": 1.0 - kept_share, "threshold": threshold}
            epochs.append({"epoch": epoch, **told})
        self.spent.trained += len(images) * config.epochs
        return {
            "loss": loss,
            "reconstruction": reconstruction,
            "kl": kl,
            "truncated_share": sum(e["truncated_share"] for e in epochs) / len(epochs),
            "images": len(images) * config.epochs,
            "epochs": epochs,
        }

    def weights(self) -> dict[str, Tensor]:
        """The parameters themselves."""
        return dict(self.module.named_parameters())

    def fit_plainly(self, samples: Pixels, epochs: int, *, seed: int, progress: Progress) -> None:
        """Train without a weight for so many epochs."""
        config = self.family.config.model_copy(update={"epochs": epochs})
        plain = dataclasses.replace(self.family, config=config, weight=Keep())
        brief = VAE(plain, self.module)
        brief.spent = self.spent
        brief.fit(samples, seed=seed, progress=progress)

    def _step(
        self,
        images: Tensor,
        weight: Weight,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> Bound:
        config = self.family.config
        noise = torch.randn(len(images), config.latent, generator=generator, device=self.device)
        with _deterministic():
            logits, mean, log_variance = self.module(images, noise)
            bound = negative_elbo(
                logits, images, mean, log_variance, weight=weight, beta=config.beta
            )
            bound.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return bound

    def _calibrated(self, samples: Pixels, order: Tensor) -> Weight:
        """The weight of one epoch; `order` says which images a `Dynamic` looks at."""
        weight = self.family.weight
        if not isinstance(weight, Dynamic):
            return weight
        log_p = self.log_prob(samples[order[: weight.rows].cpu().numpy()])
        if not np.isfinite(log_p).all():
            raise Diverged("the model has diverged: its log-probabilities are not finite")
        return weight.calibrate(np.exp(log_p.astype(np.float64)))

    def regenerate(self, samples: Pixels, *, seed: int, progress: Progress) -> Pixels:
        """As many new images, whatever stands in `samples`: codes from N(0, I), decoded.

        They are the decoder's means, or Bernoulli draws of them, as `VAEOptions.samples` says. Both
        come from the same codes if the seed is the same.

        Raises:
            InputError: `samples` has another shape than (n, H, W).
            Diverged: The decoder gives what is not a number.
        """
        self._check_shape(samples)
        generator = torch.Generator(self.device).manual_seed(seed)
        n, config = len(samples), self.family.config
        codes = torch.randn(n, config.latent, generator=generator, device=self.device)
        out = np.empty(samples.shape, dtype=samples.dtype)
        with torch.inference_mode(), _deterministic():
            for start in range(0, n, _BATCH):
                pixels = torch.sigmoid(self.module.decode(codes[start : start + _BATCH]))
                if pixels.isnan().any():
                    raise Diverged("the model has diverged: it writes pixels that are not numbers")
                if config.samples == "bernoulli":
                    pixels = torch.bernoulli(pixels, generator=generator)
                out[start : start + _BATCH] = pixels.cpu().numpy()
                progress.step("rewrite", min(start + _BATCH, n), n, tokens=0)
        self.spent.generated += n
        return out

    def log_prob(self, samples: Pixels) -> Pixels:
        """Log p of each pixel in nats at the encoder's mean code, (n, H, W) float32."""
        parts = []
        with torch.inference_mode(), _deterministic():
            for images in torch.split(self._read(samples), _BATCH):
                logits = self.module.decode(self.module.encode(images)[0])
                parts.append(-F.binary_cross_entropy_with_logits(logits, images, reduction="none"))
            log_p: Pixels = torch.cat(parts).cpu().numpy()
        self.spent.scored += len(samples)
        return log_p

    def encode(self, samples: Pixels) -> Pixels:
        """Mean codes, (n, latent) float32."""
        with torch.inference_mode(), _deterministic():
            batches = torch.split(self._read(samples), _BATCH)
            parts = [self.module.encode(images)[0] for images in batches]
            codes: Pixels = torch.cat(parts).cpu().numpy()
        return codes

    def save(self, folder: Path) -> None:
        """Write weights and settings into a new folder."""
        folder.mkdir(parents=True)
        state = {k: v.cpu().contiguous() for k, v in self.module.state_dict().items()}
        save_file(state, folder / _WEIGHTS)
        text = json.dumps(self.family.settings(), indent=2) + "\n"
        (folder / _SETTINGS).write_text(text, encoding="utf-8")

    def _read(self, samples: Pixels) -> Tensor:
        """The images on the device, checked."""
        self._check_shape(samples)
        # a copy: PyTorch warns of arrays that it must not write to
        images = torch.tensor(np.ascontiguousarray(samples, dtype=np.float32))
        low, high = (float(x) for x in images.aminmax())
        if not (low >= 0 and high <= 1):  # false for NaN, too
            raise InputError(
                f"pixels from {low:g} to {high:g} came; they must be finite and lie in [0, 1]; "
                "scale or clean the images"
            )
        return images.to(self.device)

    def _check_shape(self, samples: Pixels) -> None:
        size = self.family.size
        if samples.ndim != 3 or not len(samples) or samples.shape[1:] != size:
            raise InputError(
                f"images of shape {samples.shape} came; this autoencoder takes (n, {size[0]}, "
                f"{size[1]}) with n of 1 or more"
            )


def _check_size(size: tuple[int, int]) -> None:
    if any(side < 4 or side % 4 for side in size):
        raise InputError(
            f"images are {size[0]} x {size[1]}; height and width must be multiples of 4; pad or "
            "resize the images"
        )


def _check_epoch(epoch: int, loss: float, kept_share: float, module: Network) -> None:
    """Stop where there is nothing left to train, or to train on."""
    if kept_share == 0:
        raise Diverged(
            f"epoch {epoch} kept a share of 0 of the pixels: the model is too sure of every one"
        )
    if not math.isfinite(loss):
        raise Diverged(f"the model has diverged in epoch {epoch}: its loss is {loss:g}")
    # the last step of an epoch can break the weights after its loss was computed
    if not all(bool(p.isfinite().all()) for p in module.parameters()):
        raise Diverged(f"the model has diverged in epoch {epoch}: its weights are not finite")


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Let cuDNN use no algorithm with races, so that equal seeds give equal bits."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
