"""What the parts of one generation of a pretrained model take, in processor seconds.

    python benchmarks/stage.py MODEL TEXT QUESTIONS [--tokens 4096] [--lora]

Fit (three epochs, cross entropy), regeneration (greedy, 32 tokens from 96), log-probabilities of
the split, of what was written and of as much more text, and the Knowledge Retention test on 70
questions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fortifai.data.questions import read_questions
from fortifai.data.text import read_text
from fortifai.evals.kr_test import kr_test
from fortifai.lab.progress import Silent
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import LoraOptions, RegenerateOptions, TrainOptions
from fortifai.weights import Keep

QUESTIONS = 70


def timed(what: str, work: Callable[[], Any]) -> Any:
    """Do something and print what it took."""
    clock, used = time.perf_counter(), time.process_time()
    out = work()
    wall, processor = time.perf_counter() - clock, time.process_time() - used
    print(f"{what:18} {processor:7.1f} s of processor, {wall:7.1f} s by the clock")
    return out


def main() -> None:
    """Print a line for each part."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("model")
    arguments.add_argument("text")
    arguments.add_argument("questions")
    arguments.add_argument("--tokens", type=int, default=4096)
    arguments.add_argument("--lora", action="store_true", help="Adapters of rank 16.")
    arguments.add_argument("--threads", type=int, default=1)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    lm = timed("load", lambda: CausalLM.from_base(given.model, device="cpu"))
    text = read_text([given.text], root=Path()).text
    ids = lm.encode(text[: 12 * given.tokens]).astype(np.int32)
    split, more = ids[: given.tokens], ids[given.tokens : 2 * given.tokens]
    asked, _ = read_questions([given.questions], root=Path())
    lora = LoraOptions() if given.lora else None
    train = TrainOptions(epochs=3, learning_rate=1e-4, batch_size=8, block=128, lora=lora)
    with tempfile.TemporaryDirectory() as folder:
        timed(
            "fit",
            lambda: lm.fit(
                split,
                Keep(),
                train,
                seed=0,
                workdir=Path(folder),
                select=None,
                progress=Silent(),
            ),
        )
    ask = RegenerateOptions(context=96, new_tokens=32)
    written = timed("regenerate", lambda: lm.regenerate(split, ask, seed=0, progress=Silent()))
    timed("log-probabilities", lambda: [lm.log_prob(part) for part in (split, written, more)])
    timed("next-token entropy", lambda: [lm.next_token_entropy(part) for part in (written, more)])
    timed("KR test", lambda: kr_test(lm, asked[:QUESTIONS]))


if __name__ == "__main__":
    main()
