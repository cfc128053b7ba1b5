"""How small a share of generated text an audit finds, by model and decoding.

    python benchmarks/audit_power.py write MODEL TEXT OUT   # hours; goes on where it stopped
    python benchmarks/audit_power.py judge OUT              # minutes; prints JSON

The text is cut into windows. Of every second one the model reads a beginning and writes the rest;
documents are the rests. The reference is the human rests of the other windows. The text in question
has a share of generated documents, the others are human; which they are is drawn ten times. Found
is "evidence of collapse".
"""

from __future__ import annotations

import argparse
import collections
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from audit_alarms import audit

PROMPT, REST = 64, 96
"""Tokens of a window that are read, and that are written."""

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
MIXES = 10
ROWS = 64
"""Windows written at a time."""


def decodings() -> dict[str, Any]:
    """By name."""
    from fortifai.models.options import Greedy, Sample

    return {
        "greedy": Greedy(kind="greedy"),
        "temperature 1": Sample(kind="sample"),
        "min-p 0.1": Sample(kind="sample", min_p=0.1),
    }


def write(model: str, text: Path, out: Path) -> None:
    """Human and generated rests of all windows, a file a decoding."""
    import torch

    from fortifai.models.causal_lm import CausalLM

    torch.set_num_threads(1)
    lm = CausalLM.from_base(model, device="cpu")
    ids = lm.encode(text.read_text("utf-8"))
    count = len(ids) // (PROMPT + REST)
    windows = ids[: count * (PROMPT + REST)].reshape(count, PROMPT + REST)
    out.mkdir(parents=True, exist_ok=True)

    def save(name: str, rows: np.ndarray) -> None:
        texts = [str(lm.tokenizer.decode(row.tolist())) for row in rows]
        (out / f"{name}.json").write_text(json.dumps(texts), encoding="utf-8")

    save("reference", windows[::2, PROMPT:])
    save("human", windows[1::2, PROMPT:])
    prompts = windows[1::2, :PROMPT]
    for name, decoding in decodings().items():
        parts = []
        for start in range(0, len(prompts), ROWS):
            part = out / f".{name} {start}.npy"
            if not part.exists():
                rows = lm.write(prompts[start : start + ROWS], REST, decoding, seed=start)
                np.save(part, rows)
            parts.append(np.load(part))
        save(name, np.concatenate(parts))


def judge(out: Path) -> None:
    """How often each share is found, and by which measures."""
    reference, human = (json.loads((out / f"{n}.json").read_text()) for n in ("reference", "human"))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in decodings():
            if not (out / f"{name}.json").exists():
                continue
            generated = json.loads((out / f"{name}.json").read_text())
            for share in SHARES:
                by: collections.Counter[str] = collections.Counter()
                found = 0
                mixes = MIXES if share < 1 else 1
                for mix in range(mixes):
                    rng = np.random.default_rng(mix)
                    chosen = set(rng.permutation(len(human))[: round(share * len(human))].tolist())
                    text = [(generated if i in chosen else human)[i] for i in range(len(human))]
                    done = audit(Path(folder), text, reference)
                    found += bool(done.evidence)
                    by.update(each.name for each in done.evidence)
                results.append(
                    {"decoding": name, "share": share, "found": found, "of": mixes, "by": dict(by)}
                )
    print(json.dumps({"documents": len(human), "results": results}, indent=1))


def main() -> None:
    """Write or judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("model")
    writing.add_argument("text", type=Path)
    writing.add_argument("out", type=Path)
    judging = commands.add_parser("judge")
    judging.add_argument("out", type=Path)
    args = parser.parse_args()
    if args.command == "write":
        write(args.model, args.text, args.out)
    else:
        judge(args.out)


if __name__ == "__main__":
    main()
