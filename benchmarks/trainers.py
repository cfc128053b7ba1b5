"""Training steps per second: `ConfidenceTrainer` against transformers' Trainer with cross entropy.

A small LLaMA learns a Markov chain first: three tokens of ten (or what ``--drawn`` says) are drawn
from those in use, each of the others follows from the one before it. The model is then sure of
these and of nothing else, so that TCE truncates a known share. From these weights every method
trains in turn; the time is what Trainer reports as ``train_runtime``, all of its own work included.
One turn warms up; the median of the others, and their range.

Run ``python benchmarks/trainers.py --help``.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import tempfile
from collections.abc import Callable

import torch
import transformers
from transformers import PrinterCallback, Trainer, TrainingArguments

from fortifai.integrations.transformers import ConfidenceLoss, ConfidenceTrainer
from fortifai.models import scratch
from fortifai.weights import Keep

CROSS_ENTROPY = "Trainer, cross entropy"


def chain(rows: int, length: int, in_use: int, drawn: float, seed: int) -> torch.Tensor:
    """Rows of the chain, (rows, length) int64."""
    generator = torch.Generator().manual_seed(seed)
    following = torch.randperm(in_use, generator=torch.Generator().manual_seed(0))
    fresh = torch.randint(0, in_use, (rows, length), generator=generator)
    anew = torch.rand(rows, length, generator=generator) < drawn
    ids = fresh.clone()
    for at in range(1, length):
        ids[:, at] = torch.where(anew[:, at], fresh[:, at], following[ids[:, at - 1]])
    return ids


def trainers(threshold: float) -> dict[str, Callable[..., Trainer]]:
    """What is compared."""
    return {
        CROSS_ENTROPY: Trainer,
        "Trainer, ConfidenceLoss(threshold)": lambda *a, **k: Trainer(
            *a, compute_loss_func=ConfidenceLoss(threshold=threshold), **k
        ),
        "ConfidenceTrainer, keep": lambda *a, **k: ConfidenceTrainer(*a, weight=Keep(), **k),
        "ConfidenceTrainer, TCE": lambda *a, **k: ConfidenceTrainer(*a, threshold=threshold, **k),
    }


def arguments(args: argparse.Namespace, folder: str, rate: float, steps: int) -> TrainingArguments:
    """The same for all."""
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=args.batch,
        learning_rate=rate,
        lr_scheduler_type="constant",
        logging_steps=steps,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=args.device == "cpu",
        bf16=args.device == "cuda",
    )


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--drawn", type=float, default=0.3, help="share of tokens drawn anew")
    parser.add_argument("--in-use", type=int, default=64, help="tokens of the vocabulary in use")
    parser.add_argument("--learn", type=int, default=40, help="steps to learn the chain in")
    parser.add_argument("--steps", type=int, default=6, help="steps that are timed")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # half of what the model gives a token that follows: clearly above those drawn
    threshold = (1 - args.drawn) / 2

    def data(rows: int, seed: int) -> list[dict[str, torch.Tensor]]:
        ids = chain(rows, args.block, args.in_use, args.drawn, seed)
        return [{"input_ids": row, "labels": row} for row in ids]

    model = scratch.build(
        "llama",
        hidden_size=args.hidden,
        layers=args.layers,
        heads=8,
        vocab_size=args.vocab,
        max_positions=args.block,
        seed=0,
    )
    seconds: dict[str, list[float]] = {name: [] for name in trainers(threshold)}
    shares: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        learning = arguments(args, folder, 1e-3, args.learn)
        learner = Trainer(model, learning, train_dataset=data(args.learn * args.batch, 1))
        learner.remove_callback(PrinterCallback)
        learner.train()
        for turn in range(args.turns + 1):
            for name, make in trainers(threshold).items():
                trainer = make(
                    copy.deepcopy(model),
                    # too slow to change what the model is sure of
                    arguments(args, folder, 1e-6, args.steps),
                    train_dataset=data(args.steps * args.batch, 2),
                )
                trainer.remove_callback(PrinterCallback)
                took = trainer.train().metrics["train_runtime"]
                if "kept_share" in trainer.state.log_history[0]:
                    shares[name] = trainer.state.log_history[0]["kept_share"]
                if turn:
                    seconds[name].append(took)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "benchmark": "trainers",
        "settings": {**vars(args), "threshold": threshold},
        "parameters": model.num_parameters(),
        "kept_share": shares,
        "steps_per_second": {n: round(args.steps / s, 3) for n, s in middle.items()},
        "spread": {
            n: [round(args.steps / s, 3) for s in (max(t), min(t))] for n, t in seconds.items()
        },
        "times_cross_entropy": {n: round(middle[CROSS_ENTROPY] / s, 3) for n, s in middle.items()},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
