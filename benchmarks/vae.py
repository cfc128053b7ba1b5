"""Time of an epoch: `VAE.fit` against a bare PyTorch loop with cross entropy and KL.

Both train the same network from the same weights on the same images with the same optimizer (fused
Adam) and batches of one size, right after each other, several times; the ratio is the median of
those of the pairs. It is given by the clock and by the processor's time, which other work on the
machine disturbs less; on an accelerator only the clock counts. Run
``python benchmarks/vae.py --help``.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from fortifai.images.vae import VAE, VAEFamily, VAEOptions
from fortifai.lab.progress import Silent
from fortifai.weights import Focal, Keep, Truncate, Weight

WEIGHTS: dict[str, Weight] = {
    "keep": Keep(),
    "truncate-0.99": Truncate(0.99),
    "focal-2": Focal(2.0),
}
SIZE = (28, 28)


def blobs(n: int) -> np.ndarray:
    """(n, 28, 28) images of three bright spots each."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    centres = rng.uniform(6, 22, (n, 3, 2, 1, 1))
    squared = (y - centres[:, :, 0]) ** 2 + (x - centres[:, :, 1]) ** 2
    return np.exp(-squared / 8).max(1).astype(np.float32)


def bare(network: torch.nn.Module, samples: np.ndarray, config: VAEOptions) -> None:
    """One epoch of a plain loop."""
    device = next(network.parameters()).device
    images = torch.from_numpy(samples).to(device)
    optimizer = torch.optim.Adam(
        network.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    for index in torch.randperm(len(images), device=device).split(config.batch_size):
        x = images[index]
        hidden = network.encoder(x[:, None])
        mean, log_variance = hidden.chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        logits = network.decoder(z)[:, 0]
        crossed = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        loss = (crossed + kl) / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    loss.item()


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    began = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began[0], time.process_time() - began[1]


def pair(samples: np.ndarray, config: VAEOptions, weight: Weight) -> np.ndarray:
    """(bare or ours, clock or processor) seconds of one epoch each."""
    family = VAEFamily(config, weight, SIZE)
    plain, vae = (family.create("scratch", seed=0) for _ in range(2))
    return np.array(
        [
            seconds(lambda: bare(plain.module, samples, config)),
            seconds(lambda: vae.fit(samples, seed=0, progress=Silent())),
        ]
    )


def spread(values: np.ndarray) -> list[float]:
    """Least and largest."""
    return [round(float(v), 4) for v in (values.min(), values.max())]


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--latent", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5, help="how often each is run, in turn")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = VAEOptions(kind="vae", latent=args.latent, epochs=1, batch_size=args.batch)
    samples = blobs(args.images)
    times: dict[str, list[np.ndarray]] = {name: [] for name in WEIGHTS}
    for turn in range(args.pairs + 1):
        for name, weight in WEIGHTS.items():
            took = pair(samples, config, weight)
            if turn:  # the first turn warms up
                times[name].append(took)
    ratios = {name: np.array([t[1] / t[0] for t in took]) for name, took in times.items()}
    network = VAE.network(config, SIZE)
    on_gpu = torch.cuda.is_available()
    result = {
        "benchmark": "vae",
        "settings": vars(args),
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds_per_epoch": {
            name: dict(
                zip(("bare", "ours"), np.median(took, 0)[:, 0].round(3).tolist(), strict=True)
            )
            for name, took in times.items()
        },
        "clock_over_bare": {n: round(float(np.median(r[:, 0])), 4) for n, r in ratios.items()},
        "clock_spread": {n: spread(r[:, 0]) for n, r in ratios.items()},
        "processor_over_bare": {n: round(float(np.median(r[:, 1])), 4) for n, r in ratios.items()},
        "processor_spread": {n: spread(r[:, 1]) for n, r in ratios.items()},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "torch": torch.__version__,
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
