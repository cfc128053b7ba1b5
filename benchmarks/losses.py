"""Time and peak memory of the losses on hidden states against other cross entropies, in one table.

Forward and backward from hidden states and head to the gradients of both. In each turn every
method runs once; the times are medians, and the fastest and slowest turn stand beside them. Peak
memory is what the process (on a GPU: its allocator) grows by above inputs and head, gradients
included, each method in a process of its own. A share of the rows is truncated: their hidden states
point at their class. ``limit`` is what arithmetic allows against cross entropy: one product for all
rows and two for those kept, of three.

Run ``python benchmarks/losses.py --help``. Results are added to those that are in ``--out``
already, so that shares can be run one by one.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fortifai
from fortifai.losses.linear import linear_loss
from fortifai.losses.options import LinearOptions
from fortifai.weights import Truncate

THRESHOLD = 0.9
OURS, FULL = "fortifai", "cross entropy, full logits"
# what TRL's SFTTrainer computes, and ConfidenceSFTTrainer in its place: entropy and accuracy, too
TRL, OURS_IN_TRL = "TRL's head", "fortifai in TRL"
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Size:
    """One problem."""

    tokens: int
    width: int
    vocabulary: int
    truncated: float
    device: str
    dtype: str


def cross_entropy(h: Tensor, w: Tensor, target: Tensor) -> Tensor:
    """What models of transformers do: logits, upcast, cross entropy."""
    return F.cross_entropy(F.linear(h, w).float(), target)


def formula(h: Tensor, w: Tensor, target: Tensor) -> Tensor:
    """Truncated cross entropy as the paper writes it, on full logits."""
    logits = F.linear(h, w).float()
    p = torch.softmax(logits, dim=-1).gather(1, target.unsqueeze(1)).squeeze(1)
    kept = (p <= THRESHOLD).to(logits.dtype)
    return (kept.detach() * F.cross_entropy(logits, target, reduction="none")).mean()


def chunked(h: Tensor, w: Tensor, target: Tensor) -> Tensor:
    """PyTorch's chunked one, with the settings that it chooses."""
    return F.linear_cross_entropy(h, w, target, options=torch.nn.LinearCrossEntropyOptions())


def trl_head(h: Tensor, w: Tensor, target: Tensor) -> Tensor:
    """TRL's fused head, as its SFTTrainer calls it."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer import utils

    outputs = ("log_probs", "entropy", "is_top1")
    width = utils._CHUNKED_LOGPROB_CHUNK_SIZE
    log_p = ChunkedLogProbFunction.apply(h, w, None, target, 1.0, width, None, 1.0, outputs)[0]
    return -log_p.sum() / len(target)


def ours_in_trl(h: Tensor, w: Tensor, target: Tensor) -> Tensor:
    """What ConfidenceSFTTrainer puts in its place."""
    return linear_loss(
        h,
        w,
        target,
        weight=Truncate(THRESHOLD),
        options=LinearOptions(),
        observe=True,
    )[0]


def peers() -> dict[str, Loss | str]:
    """Fused cross entropies of other packages for CUDA, or why one cannot be had."""
    places = {
        "Liger, Triton": (
            "liger_kernel.transformers.functional",
            "liger_fused_linear_cross_entropy",
        ),
        "Liger, SM90": (
            "liger_kernel.ops.cutedsl.ops.fused_linear_cross_entropy_sm90",
            "LigerFusedLinearCrossEntropySM90Function",
        ),
        "quack": ("quack.linear_cross_entropy", "chunked_linear_cross_entropy"),
        "cut-cross-entropy": ("cut_cross_entropy", "linear_cross_entropy"),
    }
    found: dict[str, Loss | str] = {}
    for name, (module, function) in places.items():
        try:
            loss = getattr(importlib.import_module(module), function)
        # whatever it is that a package for one device cannot do on another
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
        else:
            found[name] = getattr(loss, "apply", loss)
    return found


def methods(device: str) -> dict[str, Loss]:
    """Those that run here; ours first."""
    found: dict[str, Loss] = {
        OURS: lambda h, w, t: fortifai.linear_truncated_cross_entropy(h, w, t, threshold=THRESHOLD),
        FULL: cross_entropy,
        "the same, torch.compile": torch.compile(cross_entropy),
    }
    if hasattr(F, "linear_cross_entropy"):
        found["F.linear_cross_entropy"] = lambda h, w, t: F.linear_cross_entropy(h, w, t)
        found["the same, chunked"] = chunked
    if device == "cuda":
        found |= {name: peer for name, peer in peers().items() if callable(peer)}
    if importlib.util.find_spec("trl"):
        found[TRL] = trl_head
        found[OURS_IN_TRL] = ours_in_trl
    found["TCE's formula, full logits"] = formula
    return found


# not cross entropies, so not what ours must be faster than
TRUNCATED = (OURS, OURS_IN_TRL, "TCE's formula, full logits")


def problem(size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and targets."""
    generator = torch.Generator(size.device).manual_seed(0)
    drawn: dict[str, Any] = {"generator": generator, "device": size.device}
    w = torch.randn(size.vocabulary, size.width, **drawn) * 0.05
    target = torch.randint(0, size.vocabulary, (size.tokens,), **drawn)
    h = torch.randn(size.tokens, size.width, **drawn) * 0.5
    rows = torch.randperm(size.tokens, **drawn)
    rows = rows[: round(size.truncated * size.tokens)]
    # a logit of 20 for the right class, where the other 2^15 to 2^18 have some 1 each
    h[rows] = w[target[rows]] * (20 / w[target[rows]].square().sum(dim=1, keepdim=True))
    dtype = getattr(torch, size.dtype)
    return h.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), target


def once(
    loss: Loss, h: Tensor, w: Tensor, target: Tensor, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one forward and backward."""
    h.grad = w.grad = None
    wait = torch.cuda.synchronize if h.is_cuda else (lambda: None)
    wait()
    began = clock()
    loss(h, w, target).backward()
    wait()
    return clock() - began


def turns(
    size: Size, count: int, known: dict[str, Loss], clock: Callable[[], float]
) -> Iterator[dict[str, float]]:
    """Seconds of each method, turn by turn; a turn before them warms up."""
    h, w, target = problem(size)
    for turn in range(count + 1):
        found = {name: once(loss, h, w, target, clock) for name, loss in known.items()}
        if turn:
            yield found


def peak(size: Size, name: str) -> float:
    """MiB that one call grows memory by; to be called in a fresh process."""
    small = dataclasses.replace(size, tokens=64, vocabulary=512)
    loss = methods(size.device)[name]
    once(loss, *problem(small))  # loads libraries, makes threads and compiles
    if "compile" in name:
        # compiled for these shapes, too: the compiler's own memory is not the loss's
        once(loss, *problem(size))
    h, w, target = problem(size)
    if size.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(loss, h, w, target)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = status("VmRSS")
    once(loss, h, w, target)
    return (status("VmHWM") - before) / 1024


def status(field: str) -> int:
    """KiB of a field of this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise LookupError(f"/proc/self/status has no {field}; peak memory is measured on Linux")


def peak_elsewhere(size: Size, name: str, threads: int) -> float:
    """`peak` in a process of its own."""
    code = (
        f"import sys, torch; sys.path.insert(0, {str(Path(__file__).parent)!r}); import losses; "
        f"torch.set_num_threads({threads}); "
        f"print(losses.peak(losses.Size(**{dataclasses.asdict(size)!r}), {name!r}))"
    )
    # memory that glibc keeps for itself would count for what ran before
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    return float(done.stdout.split()[-1])


def table(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines: list[str] = []
    for what, unit, digits in (("seconds", "s", 3), ("peak_mib", "MiB", 0)):
        rows = {s: row for s, row in result["shares"].items() if any(row.get(what, {}).values())}
        if not rows:
            continue
        names = list(next(iter(rows.values()))[what])
        best = "fastest" if what == "seconds" else "leanest"
        lines += [
            "| truncated | " + " | ".join(f"{n}, {unit}" for n in names),
            "| ---: " + "| ---: " * len(names),
        ]
        lines[-2] += f" | of the {best} | limit | in TRL, of its head |"
        lines[-1] += "| ---: | ---: | ---: |"
        for share, row in sorted(rows.items(), key=lambda item: float(item[0])):
            found = {n: statistics.median(v) for n, v in row[what].items()}
            others = [v for n, v in found.items() if n not in TRUNCATED]
            cells = [f"{float(share):.0%}", *(f"{v:.{digits}f}" for v in found.values())]
            limit = (1 + 2 * row["kept"]) / 3
            cells += [
                f"{found[OURS] / min(others):.2f}" if others and OURS in found else "",
                f"{limit:.2f}" if what == "seconds" else "",
                f"{found[OURS_IN_TRL] / found[TRL]:.2f}" if TRL in found else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048, help="for times")
    parser.add_argument("--memory-tokens", type=int, default=4096, help="for peak memory")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--only", nargs="+", help="of the methods, by name")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.3, 0.7, 0.9])
    parser.add_argument("--turns", type=int, default=5, help="0 leaves times out")
    parser.add_argument("--memory", action="store_true", help="measure peak memory, too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="of the process, not wall-clock: with --threads 1, where other work runs beside it",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="bfloat16 on a GPU, float32 elsewhere")
    parser.add_argument("--out", type=Path, default=Path("runs/losses"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    settings = {
        "tokens": args.tokens,
        "memory_tokens": args.memory_tokens,
        "width": args.width,
        "vocabulary": args.vocabulary,
        "dtype": dtype,
        "threads": args.threads,
        "clock": "processor" if args.processor_time else "wall",
        "threshold": THRESHOLD,
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "losses.json"
    result: dict[str, Any] = {"benchmark": "losses", "settings": settings, "shares": {}}
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["settings"] != settings:
            parser.error(f"{file} has results of other settings; give another --out")
        result = before
    known = {n: f for n, f in methods(args.device).items() if n in (args.only or [n])}
    clock = time.process_time if args.processor_time else time.perf_counter
    for share in args.shares:
        size = Size(args.tokens, args.width, args.vocabulary, share, args.device, dtype)
        row = result["shares"].setdefault(str(share), {})
        with torch.no_grad():
            row["kept"] = fortifai.linear_truncated_cross_entropy(
                *problem(size), threshold=THRESHOLD, return_stats=True
            )[1].kept_share.item()
        seconds = row.setdefault("seconds", {name: [] for name in known})
        for turn in turns(size, args.turns, known, clock) if args.turns else ():
            for name, took in turn.items():
                seconds[name].append(took)
            file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if args.memory:
            large = dataclasses.replace(size, tokens=args.memory_tokens)
            row["peak_mib"] = {n: [peak_elsewhere(large, n, args.threads)] for n in known}
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text = table(result)
    (args.out / "losses.md").write_text(text, encoding="utf-8")
    print(json.dumps(result, indent=2))
    print(text)


if __name__ == "__main__":
    main()
