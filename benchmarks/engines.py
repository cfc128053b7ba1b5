"""Greedy rewriting by transformers and by vLLM: the same text but for ties, and tokens per second.

    python benchmarks/engines.py MODEL TEXT [--context 512] [--at-most 0] [--blocks 8]

The ways, in turn, each in a process of its own that loads the model and first writes one block:

- `transformers`: `regenerate.engine: transformers`;
- `vllm`: `regenerate.engine: vllm`, which keeps prefixes where blocks share them (--at-most);
- `vllm-other`: the same with the opposite: prefixes kept where no two blocks share one, or not kept
  where they do.

Printed are tokens per second and per processor second (of all processes; vLLM's wait by spinning,
so it uses some for nothing), how long engines take to start and to close, and, for each way of
vLLM's, the blocks that differ from transformers', each with the gap at its first other token:
transformers' logit of its own token above that of vLLM's. A gap within rounding (1e-4 and less, in
float32) is a tie.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers

from fortifai.lab.progress import Silent
from fortifai.machine import machine
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import RegenerateOptions
from generation import spread

WAYS = ("transformers", "vllm", "vllm-other")


def settings(args: argparse.Namespace) -> RegenerateOptions:
    """How the way of this process rewrites."""
    span = {"at_least": args.context, "at_most": args.at_most}
    return RegenerateOptions.model_validate(
        {
            "context": span if args.at_most else args.context,
            "new_tokens": args.new,
            "engine": args.child.partition("-")[0],
        }
    )


def text(lm: CausalLM, args: argparse.Namespace) -> np.ndarray:
    """The tokens to work on."""
    tokens = args.context + args.new * args.blocks
    raw = Path(args.text).read_text(encoding="utf-8")[: 20 * tokens]
    return lm.encode(raw)[:tokens].astype(np.int32)


def processor_seconds() -> float:
    """Of this process and those that it started."""
    me = psutil.Process()
    times = [each.cpu_times() for each in (me, *me.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def child(args: argparse.Namespace) -> None:
    """Do one way once; print what it took and write what it wrote."""
    if args.child == "vllm-other":
        import vllm

        kept = not args.at_most
        ordinary = vllm.LLM
        vllm.LLM = lambda **asked: ordinary(**asked | {"enable_prefix_caching": kept})
    lm = CausalLM.from_base(args.model)
    ids, how = text(lm, args), settings(args)
    rewrite = functools.partial(lm.regenerate, settings=how, seed=0, progress=Silent())
    began = time.perf_counter()
    rewrite(ids[: args.context + args.new])
    started = time.perf_counter() - began
    began, used = time.perf_counter(), processor_seconds()
    out = rewrite(ids)
    took, used = time.perf_counter() - began, processor_seconds() - used
    began = time.perf_counter()
    lm.close_engine()
    np.save(args.out, out)
    result = {"start": started, "seconds": took, "processor": used}
    result["close"] = time.perf_counter() - began
    print(json.dumps(result | {"record": lm.written_by}))


@torch.inference_mode()
def differing(args: argparse.Namespace, ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """The blocks that differ, and the gaps at their first other token."""
    args.child = "transformers"
    lm = CausalLM.from_base(args.model)
    ids, how = text(lm, args), settings(args)
    gaps = {}
    for block in range(args.blocks):
        limit = args.context + block * args.new
        a, b = ours[limit : limit + args.new], theirs[limit : limit + args.new]
        if (a != b).any():
            first = int((a != b).argmax())
            begin = block // how.blocks * how.blocks * args.new
            read = np.concatenate([ids[begin:limit], a[:first]]).astype(np.int64)
            if lm.special.bos is not None:
                read[0] = lm.special.bos
            logits = lm.model(input_ids=torch.from_numpy(read)[None].to(lm.device)).logits[0, -1]
            gaps[block] = round(float(logits[int(a[first])] - logits[int(b[first])]), 7)
    return {"blocks": args.blocks, "differing": len(gaps), "gaps": gaps}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder or hub id")
    parser.add_argument("text", help="a text file")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--at-most", type=int, default=0, help="tokens of a chunk; 0: exactly")
    parser.add_argument("--new", type=int, default=32, help="tokens of a block")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        child(args)
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in args.ways}
    written: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in list(args.ways) * args.turns:
            out = Path(folder) / f"{way}.npy"
            asked = [f"--child={way}", f"--out={out}"]
            done = subprocess.run(
                [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], *asked],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            written[way] = np.load(out)
    tokens = args.blocks * args.new
    result = {
        "benchmark": "engines",
        "settings": {
            k: v for k, v in vars(args).items() if k not in ("child", "out", "model", "text")
        },
        "tokens": tokens,
        **{
            f"tokens_per_{name}": {
                way: spread([tokens / one[key] for one in each]) for way, each in found.items()
            }
            for name, key in (("second", "seconds"), ("processor_second", "processor"))
        },
        **{
            f"seconds_to_{key}": {
                way: spread([one[key] for one in each]) for way, each in found.items()
            }
            for key in ("start", "close")
        },
        "against_transformers": {
            way: differing(args, written["transformers"], theirs)
            for way, theirs in written.items()
            if way != "transformers" and "transformers" in written
        },
        "engines": {way: each[0]["record"] for way, each in found.items() if each[0]["record"]},
        "machine": machine()
        | {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
