"""Processor time of `CollapseMonitor` at its defaults, as a share of that of the training.

A small LLaMA trains on tokens drawn at random, with transformers' Trainer; a reading stands before
the first step, every 1,000 steps and after the last.

Run ``python benchmarks/monitor.py --help``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, PrinterCallback, Trainer, TrainingArguments

from fortifai.integrations.monitor import CollapseMonitor
from fortifai.models import scratch


class Timed(CollapseMonitor):
    """Counts the processor time of its readings."""

    seconds = 0.0

    def _read(self, state: Any, control: Any) -> None:
        start = time.process_time()
        super()._read(state, control)
        self.seconds += time.process_time() - start


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=400)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # a model of noise narrows, or not: only time is asked
    words = {f"w{i}": i for i in range(args.vocab)}
    raw = Tokenizer(WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = Whitespace()
    model = scratch.build(
        "llama",
        hidden_size=args.hidden,
        layers=args.layers,
        heads=8,
        vocab_size=args.vocab,
        max_positions=2 * args.block,
        seed=0,
    )
    ids = torch.randint(0, args.vocab, (args.steps * args.batch, args.block))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                output_dir=folder,
                max_steps=args.steps,
                per_device_train_batch_size=args.batch,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=[{"input_ids": row, "labels": row} for row in ids],
            processing_class=PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="w0"),
        )
        trainer.remove_callback(PrinterCallback)
        texts = [" ".join(f"w{i}" for i in range(300))] * 4
        monitor = Timed([f"w{i} w{i + 1}" for i in range(4)], texts).attach(trainer)
        start = time.process_time()
        trainer.train()
        whole = time.process_time() - start
    result = {
        "benchmark": "monitor",
        "settings": vars(args),
        "readings": len(monitor.readings),
        "seconds_a_reading": round(monitor.seconds / len(monitor.readings), 3),
        "seconds_a_step": round((whole - monitor.seconds) / args.steps, 4),
        "share_of_processor_time": round(monitor.seconds / whole, 4),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
