"""Rewriting a text: blocks that share one reading of their chunk, against reading each context.

    python benchmarks/generation.py MODEL TEXT [--context 512] [--at-most 1536] [--beams 0]
    python benchmarks/generation.py MODEL TEXT --documents 16
    python benchmarks/generation.py MODEL TEXT --ways grown room --context 32 --new 256 --rows 32

The ways, in turn, each in a process of its own that loads the model and first writes a little:

- `authors`: transformers' `generate` on contexts of exactly so many tokens, as ForTIFAI's code;
- `exactly`: ours, on the same contexts;
- `shared`: ours, chunks of --at-most tokens read once, every block written from all of its chunk
  before it and at least --context tokens.

With --documents N, articles cut to the first of N equal parts, all but their first --keep tokens
written anew: `rounds`, a segment of as many as fit beside each other if all were as long as the
longest, and then the next, against `joining`, where the next article takes the place of a finished
one. Memory counts each token as N, so that as many articles fit as would of their whole length.

With --ways grown room, --new tokens after each of --rows prompts of --context tokens: keys and
values that are copied for each token, transformers' own, against room that was made before.

Printed are tokens per processor second (all threads), their ratios turn by turn, and by how much
the peak memory grew over the loaded model. That a model is tried once, which takes as long as one
chunk, is not counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from fortifai.lab.progress import Silent
from fortifai.models import documents, generation, kv_cache, shared_prefix
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import Greedy, RegenerateOptions

HEADING = re.compile(r"^ = [^=].* = $", re.MULTILINE)
"""The heading of an article in WikiText."""


def decoding(args: argparse.Namespace) -> dict[str, Any]:
    """The decoding as an experiment's YAML says it."""
    if args.beams:
        return {"kind": "beam", "beams": args.beams, "repetition_penalty": 3.0}
    return {"kind": "greedy"}


def ours(lm: CausalLM, ids: np.ndarray, args: argparse.Namespace, **asked: Any) -> np.ndarray:
    """The text rewritten by us."""
    settings = RegenerateOptions.model_validate(
        {"new_tokens": args.new, "decoding": decoding(args), "batch_size": args.rows, **asked}
    )
    return lm.regenerate(ids, settings, seed=0, progress=Silent())


@torch.inference_mode()
def authors(lm: CausalLM, ids: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """The text rewritten by `generate` in batches, every context of a batch read for each beam."""
    out, new = ids.copy(), args.new
    starts = np.arange(0, len(ids) - args.context, new)
    for at in range(0, len(starts), args.batch):
        rows = starts[at : at + args.batch]
        prompts = torch.from_numpy(ids[rows[:, None] + np.arange(args.context)].astype(np.int64))
        asked = {"num_beams": args.beams, "repetition_penalty": 3.0} if args.beams else {}
        found = lm.model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            **asked,
        )
        out[rows[:, None] + args.context + np.arange(new)] = found[:, args.context :].numpy()
    return out


def after(lm: CausalLM, ids: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """What is written after prompts of so many tokens each, side by side."""
    return lm.write(ids.reshape(-1, args.context), args.new, Greedy(kind="greedy"), seed=0)


def text(lm: CausalLM, args: argparse.Namespace) -> np.ndarray:
    """The tokens to work on: a stream, or articles with an end behind each."""
    raw = Path(args.text).read_text(encoding="utf-8")
    if not args.documents:
        return lm.encode(raw[: 40 * (args.context + args.new * args.blocks)]).astype(np.int32)
    places = [m.start() for m in HEADING.finditer(raw)]
    articles = [raw[a:b] for a, b in zip(places, [*places[1:], len(raw)], strict=True)]
    cut = [lm.encode(a)[: max(1, len(lm.encode(a)) // args.documents)] for a in articles]
    return np.concatenate([np.append(a, lm.special.end) for a in cut[: args.articles]]).astype(
        np.int32
    )


def as_if_whole(parts: int) -> Callable[..., int]:
    """`side_by_side` for articles of which so many parts were cut off."""
    found = generation.side_by_side
    return lambda model, length, *beams, **more: found(model, length * parts, *beams, **more)


def child(args: argparse.Namespace) -> None:
    """Do one way once; print its processor seconds, tokens and the growth of peak memory."""
    lm = CausalLM.from_base(args.model, device="cpu", bos="never")
    lm.model.generation_config = transformers.GenerationConfig()
    if args.positions:
        lm.model.config.max_position_embeddings = args.positions
    ids = text(lm, args)
    span = {"at_least": args.context, "at_most": args.at_most}
    ways = {
        "authors": lambda x: authors(lm, x, args),
        "exactly": lambda x: ours(lm, x, args, context=args.context),
        "shared": lambda x: ours(lm, x, args, context=span),
        "rounds": lambda x: ours(lm, x, args, mode="documents", keep=args.keep),
        "joining": lambda x: ours(lm, x, args, mode="documents", keep=args.keep),
        "grown": lambda x: after(lm, x, args),
        "room": lambda x: after(lm, x, args),
    }
    if args.child == "grown":
        kv_cache.with_room = lambda past, more: past
    if args.child == "rounds":
        shared_prefix.served = lambda model, ids: False
    if args.documents:
        generation.side_by_side = documents.side_by_side = as_if_whole(args.documents)
    if args.documents:
        sizes = np.diff(np.flatnonzero(np.append(ids == lm.special.end, True)), prepend=-1) - 1
        tokens = int(np.clip(sizes - args.keep, 0, None).sum())
        little = ids[-args.keep - 4 :]
    elif args.child in ("grown", "room"):
        tokens = args.rows * args.new
        ids, little = ids[: args.rows * args.context], ids[: args.context]
    else:
        blocks = args.peer_blocks if args.child != "shared" else args.blocks
        tokens = blocks * args.new
        ids = ids[: args.context + tokens]
        little = ids[: args.context + args.new]
    if args.child in ("shared", "joining"):
        shared_prefix.served(lm.model, torch.from_numpy(ids[: args.at_most].astype(np.int64)))
    ways[args.child](little)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    out = ways[args.child](ids)
    took = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    result = {"seconds": took, "tokens": tokens, "mib": (peak - before) / unit}
    if args.dump:
        np.save(f"{args.dump}-{args.child}.npy", out)
    print(json.dumps(result))


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder or hub id")
    parser.add_argument("text", help="a text file; with --documents WikiText's raw one")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--at-most", type=int, default=1536)
    parser.add_argument("--new", type=int, default=32, help="tokens of a block")
    parser.add_argument("--beams", type=int, default=0, help="0: greedy")
    parser.add_argument("--batch", type=int, default=16, help="contexts of `authors` at a time")
    parser.add_argument("--rows", type=int, help="blocks of ours at a time; by memory if left out")
    parser.add_argument("--blocks", type=int, default=128, help="blocks that `shared` writes")
    parser.add_argument("--peer-blocks", type=int, default=16, help="blocks that the others write")
    parser.add_argument("--documents", type=int, default=0, help="parts an article is cut into")
    parser.add_argument("--articles", type=int, default=62, help="articles taken, with --documents")
    parser.add_argument("--keep", type=int, default=32)
    parser.add_argument("--positions", type=int, help="as if the model had so many")
    parser.add_argument("--ways", nargs="+", help="which, in this order; all that apply otherwise")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dump", help="beginning of files for what was written")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        child(args)
        return
    blocks = ["authors", "exactly", "shared"]
    names = args.ways or (["rounds", "joining"] if args.documents else blocks)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.turns):
        for name in names:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], f"--child={name}"],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    rates = {n: [r["tokens"] / r["seconds"] for r in each] for n, each in found.items()}
    ratios = {
        f"{names[-1]} / {n}": [a / b for a, b in zip(rates[names[-1]], rates[n], strict=True)]
        for n in names[:-1]
    }
    result = {
        "benchmark": "generation",
        "settings": {k: v for k, v in vars(args).items() if k not in ("child", "model", "text")},
        "tokens": {n: each[0]["tokens"] for n, each in found.items()},
        "tokens_per_processor_second": {n: spread(v) for n, v in rates.items()},
        "ratios": {n: spread(v) for n, v in ratios.items()},
        "peak_memory_growth_mib": {
            n: round(statistics.median(r["mib"] for r in each)) for n, each in found.items()
        },
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    print(json.dumps(result, indent=2))


def spread(values: list[float]) -> list[float]:
    """Median, lowest and highest."""
    return [round(v, 2) for v in (statistics.median(values), min(values), max(values))]


if __name__ == "__main__":
    main()
