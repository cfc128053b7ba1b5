"""One command for a GPU, of under eight minutes: is it right, how fast are the losses, and a stage.

1. The losses on hidden states, in plain PyTorch and in Triton's kernels, against float64 on logits:
   loss and gradients, with cap, sample weights and all terms of row losses, in float32 and bf16.
2. Forward and backward at the heads of LLaMA-3.2-1B (2,048 x 128,256) and Gemma-3-1B (1,152 x
   262,144), 8k and 32k tokens in bf16, of which 0, 30, 70 and 90 % are truncated, against PyTorch,
   TRL's head, Liger's (Triton, SM90), quack's and cut-cross-entropy as far as they import: times,
   and what the allocator grows by. What is left out says why.
3. A stage of a model of SmolLM2-135M's sizes (random weights): training by ConfidenceTrainer and by
   Trainer, rewriting, scoring; tokens a second.

It needs nothing from outside, writes ``gpu.json`` after every cell and ``gpu.md`` at the end, and
begins no cell after ``--minutes``. Exit code 1 where something of 1 is wrong. On a CPU it runs in a
small form, Triton's kernels where its interpreter is on (``TRITON_INTERPRET=1``).
Run ``python benchmarks/gpu.py --help``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import Trainer, TrainingArguments

import fortifai
import losses
from fortifai.lab.progress import Silent
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import RegenerateOptions, TrainOptions
from fortifai.weights import Focal, Truncate

TRITON = "fortifai, Triton"
HEADS = {"LLaMA-3.2-1B": (2048, 128256), "Gemma-3-1B": (1152, 262144)}
# of the root mean square of what is right: rounding of products of some hundred terms
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def triton_runs(device: str) -> bool:
    """Whether Triton's kernels can run there."""
    return device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def kernels(name: str) -> contextlib.AbstractContextManager[None]:
    """Those that a method of ours runs with."""
    return fortifai.triton_kernels() if name == TRITON else contextlib.nullcontext()


def correctness(device: str, small: bool) -> dict[str, dict[str, float]]:
    """Errors of loss and gradients, relative to their root mean square."""
    n, width, classes = (24, 8, 50) if small else (512, 256, 32000)
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(n, width, generator=generator)
    w = torch.randn(classes, width, generator=generator) * (3 / width**0.5)
    b = torch.randn(classes, generator=generator)
    target = torch.randint(0, classes, (n,), generator=generator)
    h[: n // 2] += w[target[: n // 2]] * (8 / 3)  # half of them known well
    target[::7] = -100
    sample = torch.rand(n, generator=generator) * (torch.arange(n) % 5 > 0)
    terms = {"label_smoothing": 0.1, "confidence_penalty": 0.1, "z_loss": 1e-3, "gem_beta": 0.7}
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "truncated": (Truncate(0.5), {}),
        "focal, kept": (Focal(2.0), {"normalize": "kept"}),
        "all terms, cap": (
            Focal(2.0),
            {**terms, "logit_softcap": 30.0, "sample_weight": sample.to(device)},
        ),
    }
    found: dict[str, dict[str, float]] = {}
    for method in (losses.OURS, *([TRITON] if triton_runs(device) else [])):
        for kind in TOLERANCE:
            dtype = getattr(torch, kind)
            leaves = [t.to(device, dtype).requires_grad_() for t in (h, w, b)]
            exact = [t.detach().double().requires_grad_() for t in leaves]
            goal = target.to(device)
            for name, (weight, options) in cases.items():
                with kernels(method):
                    loss = fortifai.linear_weighted_cross_entropy(
                        leaves[0], leaves[1], goal, linear_bias=leaves[2], weight=weight, **options
                    )
                    ours = [loss, *torch.autograd.grad(loss, leaves)]
                logits = F.linear(*exact)
                right = fortifai.weighted_cross_entropy(logits, goal, weight=weight, **options)
                theirs = [right, *torch.autograd.grad(right, exact)]
                found[f"{kind}: {method}, {name}"] = {
                    part: ((a.double() - c).square().mean() / c.square().mean()).sqrt().item()
                    for part, a, c in zip(("loss", "dh", "dW", "db"), ours, theirs, strict=True)
                }
    return found


def wrong(errors: dict[str, dict[str, float]]) -> list[str]:
    """What is further off than rounding; NaN is."""
    return [
        f"{case}: {part} is off by {error:.2g}"
        for case, parts in errors.items()
        for part, error in parts.items()
        if not error <= TOLERANCE[case.split(":")[0]]
    ]


def cells(args: argparse.Namespace) -> Iterator[tuple[str, losses.Size]]:
    """Heads, token counts and shares, by the name of the head."""
    heads = {"small": (16, 200)} if args.small else HEADS
    dtype = "float32" if args.device == "cpu" else "bfloat16"
    for tokens in (64,) if args.small else (8192, 32768):
        for name, (width, vocabulary) in heads.items():
            for share in (0.0, 0.7) if args.small else (0.7, 0.9, 0.0, 0.3):
                yield name, losses.Size(tokens, width, vocabulary, share, args.device, dtype)


def measured(size: losses.Size, name: str, loss: losses.Loss, turns: int) -> dict[str, Any]:
    """Seconds of each turn and what the allocator grows by, or what went wrong."""
    h, w, target = losses.problem(size)
    try:
        with kernels(name):
            losses.once(loss, h, w, target)  # compiles and tunes
            h.grad = w.grad = None
            before = 0
            if h.is_cuda:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            seconds = [losses.once(loss, h, w, target) for _ in range(turns)]
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if h.is_cuda else None
        return {"seconds": seconds, "peak_mib": peak}
    # a method that does not fit, or does not know the shape, is a finding and not the end
    except Exception as error:
        return {"left_out": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
    finally:
        del h, w, target
        if size.device == "cuda":
            torch.cuda.empty_cache()


def methods(device: str) -> dict[str, losses.Loss]:
    """Those of the other benchmark that are worth it here, and ours with Triton's kernels."""
    known = losses.methods(device)
    if triton_runs(device):
        known[TRITON] = known[losses.OURS]
    return {n: f for n, f in known.items() if "formula" not in n and "compile" not in n}


def stage(device: str, small: bool) -> dict[str, float]:
    """Tokens a second of training, rewriting and scoring."""
    words = [f"w{i % 97}" for i in range(4000)]
    tokenizer = scratch.train_tokenizer([" ".join(words)], 300)
    sizes: dict[str, Any] = {"hidden_size": 16, "layers": 2, "heads": 2, "vocab_size": 300}
    if not small:
        sizes = {
            "hidden_size": 576, "layers": 30, "heads": 9, "kv_heads": 3,
            "intermediate_size": 1536, "vocab_size": 49152,
        }  # fmt: skip
    block, rows, steps = (64, 4, 4) if small else (1024, 16, 20)
    ids = np.random.default_rng(0).integers(260, 300, block * rows * steps).astype(np.int32)

    def model() -> Any:
        built = scratch.build("llama", max_positions=max(1024, block), seed=0, **sizes)
        return built.to(device)

    found: dict[str, float] = {}
    lm = CausalLM(model(), tokenizer, device=device)
    train = TrainOptions(epochs=1, batch_size=rows, block=block, learning_rate=1e-4)
    with tempfile.TemporaryDirectory() as folder:

        def fit(samples: np.ndarray) -> None:
            lm.fit(samples, Truncate(0.9), train, seed=0, workdir=Path(folder), select=None,
                   progress=Silent())  # fmt: skip

        fit(ids[: 2 * block * rows])  # warms up
        found["training, ConfidenceTrainer"] = rate(len(ids), lambda: fit(ids), device)
        data = [
            {"input_ids": row, "labels": row}
            for row in torch.from_numpy(ids).long().view(-1, block)
        ]
        settings = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=rows, num_train_epochs=1,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=device == "cpu",
            bf16=device == "cuda", learning_rate=1e-4,
        )  # fmt: skip
        trainer = Trainer(model(), settings, train_dataset=data)
        found["training, Trainer"] = rate(len(ids), trainer.train, device)
    some = ids[: 640 if small else 16384]
    rewrite = RegenerateOptions()
    found["rewriting"] = rate(
        len(some), lambda: lm.regenerate(some, rewrite, seed=0, progress=Silent()), device
    )
    found["scoring"] = rate(len(ids), lambda: lm.log_prob(ids), device)
    return found


def rate(tokens: int, work: Callable[[], Any], device: str) -> float:
    """Tokens a second."""
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return tokens / (time.perf_counter() - began)


def table(result: dict[str, Any]) -> str:
    """The losses as Markdown: milliseconds and MiB, and ours over the best of the others."""
    lines = ["| head | tokens | truncated | method | ms | MiB | ours over it |",
             "| --- | ---: | ---: | --- | ---: | ---: | ---: |"]  # fmt: skip
    for cell in result["losses"]:
        times = {
            n: statistics.median(m["seconds"]) for n, m in cell["methods"].items() if "seconds" in m
        }
        ours = min((times[n] for n in (losses.OURS, TRITON) if n in times), default=float("nan"))
        for name, row in cell["methods"].items():
            head = f"| {cell['head']} | {cell['tokens']:,} | {cell['truncated']:.0%} | {name} | "
            if name in times:
                peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
                lines.append(f"{head}{times[name] * 1e3:.2f} | {peak} | {ours / times[name]:.2f} |")
            else:
                lines.append(f"{head}{row['left_out']} | | |")
    lines += ["", "| stage | tokens/s |", "| --- | ---: |"]
    lines += [f"| {name} | {value:,.0f} |" for name, value in result.get("stage", {}).items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Check, measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="the form for CPUs, the default there")
    parser.add_argument("--minutes", type=float, default=7.0, help="begin nothing after these")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    args = parser.parse_args()
    args.small = args.small or args.device == "cpu"
    until = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    known = methods(args.device)
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threshold": losses.THRESHOLD,
        "absent": {n: p for n, p in losses.peers().items() if isinstance(p, str)},
        "errors": correctness(args.device, args.small),
        "losses": [],
    }
    result["wrong"] = wrong(result["errors"])

    def save() -> None:
        (args.out / "gpu.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    save()
    if time.monotonic() < until:
        # before the losses, which would use up the time
        result["stage"] = stage(args.device, args.small)
    for head, size in cells(args):
        cell: dict[str, Any] = {"head": head, "tokens": size.tokens, "truncated": size.truncated}
        cell["methods"] = {}
        result["losses"].append(cell)
        for name, loss in known.items():
            if time.monotonic() < until:
                cell["methods"][name] = measured(size, name, loss, args.turns)
            else:
                cell["methods"][name] = {"left_out": "no time was left"}
            save()
    text = table(result)
    (args.out / "gpu.md").write_text(text, encoding="utf-8")
    print(json.dumps(result, indent=2))
    print(text)
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
