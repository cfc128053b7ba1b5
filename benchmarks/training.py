"""Training steps per second: `CausalLM.fit` against a bare PyTorch loop with plain cross entropy.

Both train the same model from the same weights on the same blocks with the same optimizer
(fused AdamW, clipping at 1), in turn, several times; the ratio is of the medians. Ours includes
what Trainer does once a fit, 0.2 s on our machine (a garbage collection, mostly), which short fits
feel. With ``--compile`` fits by cross entropy are measured with and without `train.compile`, in
turn and instead: processor seconds up to the end of the first step, in which layers are compiled
(after the first turn from the code that PyTorch keeps on disk), and the speed of the steps after
it. Run ``python benchmarks/training.py --help``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from fortifai.lab.progress import Silent
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import TrainOptions
from fortifai.weights import Focal, Keep, Truncate

WEIGHTS = {"keep": Keep(), "truncate-0.9": Truncate(0.9), "focal-2": Focal(2.0)}


def new_model(args: argparse.Namespace, device: torch.device) -> transformers.PreTrainedModel:
    """The model that both train, from the same weights each time."""
    return scratch.build(
        "llama",
        hidden_size=args.hidden,
        layers=args.layers,
        heads=4,
        vocab_size=args.vocab,
        max_positions=args.block,
        seed=0,
    ).to(device)


def bare(model: torch.nn.Module, samples: np.ndarray, train: TrainOptions, *, bf16: bool) -> float:
    """Seconds that a plain loop takes for one epoch."""
    device = next(model.parameters()).device
    rows = torch.from_numpy(samples.astype(np.int64)).view(-1, train.block)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=train.learning_rate, weight_decay=0.0, fused=True
    )
    model.train()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    for index in order.split(train.batch_size):
        ids = rows[index].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(input_ids=ids, use_cache=False).logits
        # the usual shift: labels padded by one, logits whole
        labels = F.pad(ids, (0, 1), value=-100)[:, 1:].reshape(-1)
        loss = F.cross_entropy(logits.float().view(-1, logits.shape[-1]), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    loss.item()
    return time.perf_counter() - began


def told(device: torch.device) -> dict[str, str]:
    """The machine and the versions."""
    return {
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


class Clock(Silent):
    """Notes when each step of a fit was done, by the processor."""

    def __init__(self) -> None:
        self.at = [time.process_time()]

    def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
        """See `Progress`."""
        self.at.append(time.process_time())


def compared(
    args: argparse.Namespace, samples: np.ndarray, train: TrainOptions, device: torch.device
) -> dict[str, object]:
    """Fits with and without `train.compile`, in turn; processor seconds."""
    tokenizer = scratch.train_tokenizer(["a"], 257)
    found: dict[str, list[tuple[float, float]]] = {"plain": [], "compiled": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.pairs):
            for name, each in found.items():
                clock = Clock()
                CausalLM(new_model(args, device), tokenizer, device=device).fit(
                    samples,
                    Keep(),
                    train.model_copy(update={"compile": name == "compiled"}),
                    seed=0,
                    workdir=Path(folder),
                    select=None,
                    progress=clock,
                )
                each.append((clock.at[1] - clock.at[0], clock.at[-1] - clock.at[1]))
    rates = {name: [(args.steps - 1) / rest for _, rest in each] for name, each in found.items()}
    ratios = [a / b for a, b in zip(rates["compiled"], rates["plain"], strict=True)]
    return {
        "seconds_to_first_step": {n: [round(s, 2) for s, _ in v] for n, v in found.items()},
        "steps_per_processor_second": {n: [round(r, 3) for r in v] for n, v in rates.items()},
        "compiled_over_plain": [round(r, 3) for r in ratios],
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60, help="steps a fit")
    parser.add_argument("--pairs", type=int, default=3, help="how often each is run, in turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="train.compile against without")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    train = TrainOptions(epochs=1, learning_rate=1e-3, batch_size=args.batch, block=args.block)
    rng = np.random.default_rng(0)
    samples = rng.integers(0, args.vocab, args.steps * args.batch * args.block).astype(np.int32)
    if args.compile:
        found = compared(args, samples, train, device)
        result = {"benchmark": "training", "settings": vars(args), **found, "machine": told(device)}
        print(json.dumps(result, indent=2))
        return
    tokenizer = scratch.train_tokenizer(["a"], 257)
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    seconds: dict[str, list[float]] = {name: [] for name in ("bare", *WEIGHTS)}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.pairs + 1):
            for name in seconds:
                model = new_model(args, device)
                if name == "bare":
                    took = bare(model, samples, train, bf16=bf16)
                else:
                    lm = CausalLM(model, tokenizer, device=device)
                    took = lm.fit(
                        samples,
                        WEIGHTS[name],
                        train,
                        seed=0,
                        workdir=Path(folder),
                        select=None,
                        progress=Silent(),
                    ).seconds
                if turn:  # the first turn warms up
                    seconds[name].append(took)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "benchmark": "training",
        "settings": vars(args),
        "parameters": model.num_parameters(),
        "steps_per_second": {n: round(args.steps / s, 3) for n, s in middle.items()},
        "spread": {
            n: [round(args.steps / s, 3) for s in (max(t), min(t))] for n, t in seconds.items()
        },
        "tokens_per_second": {n: round(len(samples) / s) for n, s in middle.items()},
        "ratio_to_bare": {n: round(middle["bare"] / s, 4) for n, s in middle.items()},
        "machine": told(device),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
