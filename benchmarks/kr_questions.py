"""Knowledge Retention questions: seconds of the commands, and whether a model of other text tells.

``fortifai kr build`` (swap), ``check`` and ``score`` as whole commands, start of Python and loading
included, on a text and a file of questions: by the clock (median), and in processor seconds (the
least), which other work on the machine lengthens less. The model that is scored is random. With
``--base``, a small model is then trained on that other text and put to all questions: what it finds
above or below one half, it finds by style alone. Run ``python benchmarks/kr_questions.py --help``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

from fortifai.data.questions import read_questions
from fortifai.data.text import read_text
from fortifai.evals.kr_test import VARIANTS, kr_test
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM
from fortifai.stats.sample import share


def command(threads: int, *arguments: object) -> tuple[float, float]:
    """Seconds of one `fortifai kr` command by the clock and of processors; exit code 3 is fine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "fortifai.cli", "kr", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr)
    took = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def random_model(folder: Path, text: str, args: argparse.Namespace) -> int:
    """Save a random LLaMA; its number of parameters."""
    tokenizer = scratch.train_tokenizer([text], args.vocab)
    model = scratch.build(
        "llama",
        hidden_size=args.hidden,
        layers=args.layers,
        heads=4,
        vocab_size=len(tokenizer),
        max_positions=512,
        seed=0,
    )
    CausalLM(model, tokenizer, device="cpu").save(folder)
    return sum(p.numel() for p in model.parameters())


def base_model(path: str, steps: int) -> CausalLM:
    """A LLaMA of a million parameters, trained from nothing on another text."""
    corpus = read_text([path], root=Path.cwd())
    tokenizer = scratch.train_tokenizer([d.text for d in corpus.documents], 3072)
    model = scratch.build(
        "llama",
        hidden_size=128,
        layers=3,
        heads=4,
        vocab_size=len(tokenizer),
        max_positions=256,
        seed=0,
    )
    ids = torch.tensor(tokenizer(corpus.text).input_ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        starts = torch.randint(0, len(ids) - 129, (16,), generator=generator)
        rows = torch.stack([ids[i : i + 129] for i in starts])
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return CausalLM(model, tokenizer, device="cpu")


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", required=True, help="such as wiki.test.raw")
    parser.add_argument("--questions", required=True, help="questions on it")
    parser.add_argument("--base", help="another text, such as wiki.valid.tokens")
    parser.add_argument("--steps", type=int, default=400, help="of training on --base")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = read_text([args.text], root=Path.cwd()).text
        size = random_model(folder / "model", text, args)
        swapped = folder / "swap.jsonl"
        commands = {
            "build": ["build", args.text, "--out", swapped],
            "check": ["check", args.questions, args.text],
            "score": ["score", folder / "model", args.questions, "--json", "--device", "cpu"],
        }
        seconds: dict[str, list[float]] = {key: [] for key in commands}
        processor: dict[str, list[float]] = {key: [] for key in commands}
        for _ in range(args.turns):
            swapped.unlink(missing_ok=True)
            for key, arguments in commands.items():
                took, used = command(args.threads, *arguments)
                seconds[key].append(took)
                processor[key].append(used)
        tells: dict[str, object] = {}
        if args.base:
            base = base_model(args.base, args.steps)
            for key, path in (("swap", swapped), ("questions", Path(args.questions))):
                result = kr_test(base, read_questions([path], root=Path.cwd())[0])
                tells[key] = {
                    v: dataclasses.asdict(share(result.right(v).tolist())) for v in VARIANTS
                }
    output = {
        "benchmark": "kr_questions",
        "settings": vars(args) | {"parameters": size},
        "seconds": {key: round(statistics.median(x), 2) for key, x in seconds.items()},
        "spread": {key: [round(min(x), 2), round(max(x), 2)] for key, x in seconds.items()},
        "processor_seconds": {key: round(min(x), 2) for key, x in processor.items()},
        "base_model": tells,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    print(json.dumps(output, indent=2))


if __name__ == "__main__":
    main()
