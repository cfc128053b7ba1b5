"""What vLLM itself writes, in a process of its own: it changes torch where it is imported.

python -m tests.real_vllm          # compares with transformers and prints what it found
python -m tests.real_vllm stay     # starts an engine, says so, and waits to be killed
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Any

import numpy as np
import psutil
import torch

from fortifai.lab.progress import Silent
from fortifai.models import scratch, vllm_engine
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import RegenerateOptions

WAYS: dict[str, dict[str, Any]] = {
    "exactly": {"context": 12},
    "span": {"context": {"at_least": 12, "at_most": 40}},
    "documents": {"mode": "documents", "keep": 5},
}
ABSENT = (7, 8, 9)


def model() -> CausalLM:
    """A scratch model whose heads are as wide as vLLM's attention takes them (32 and up)."""
    tokenizer = scratch.train_tokenizer(["Ada was born in Rome and painted ships . " * 300], 300)
    lm = CausalLM(
        scratch.build(
            "llama",
            hidden_size=128,
            layers=2,
            heads=2,
            kv_heads=1,
            vocab_size=320,  # more than the tokenizer's
            max_positions=64,
            tie_embeddings=False,
            seed=3,
        ),
        tokenizer,
    )
    with torch.no_grad():
        lm.model.lm_head.weight *= 20.0
    lm.special = dataclasses.replace(lm.special, absent=(*lm.special.absent, *ABSENT))
    return lm


def main() -> None:
    """Print what was found as one JSON object."""
    lm = model()
    known = [i for i in range(len(lm.tokenizer)) if i not in ABSENT and i != lm.special.end]
    stream = np.random.default_rng(5).choice(known, 217).astype(np.int32)
    stream[100] = lm.special.end

    def write(seed: int = 0, **changes: Any) -> np.ndarray:
        asked = {"context": 12, "new_tokens": 7, "engine": "vllm", **changes}
        settings = RegenerateOptions.model_validate(asked)
        return lm.regenerate(stream, settings, seed=seed, progress=Silent())

    if sys.argv[1:] == ["stay"]:
        write()
        print("started", flush=True)
        time.sleep(600)
    found: dict[str, Any] = {"absent": len(lm.special.absent)}
    for way, asked in WAYS.items():
        got, expected = write(**asked), write(**asked, engine="transformers")
        new = got[got != stream]
        found[way] = {
            "differing": int((got != expected).sum()),
            "new": len(new),
            "absent": int(np.isin(new, lm.special.absent).sum()),
        }
    sampled = {"decoding": {"kind": "sample", "temperature": 0.8, "top_k": 50}}
    whole, vllm_engine.AT_A_TIME = write(**sampled), 4
    found["another_batch"] = int((write(**sampled) != whole).sum())
    found["another_seed"] = int((write(seed=1, **sampled) != whole).sum())
    found["record"] = lm.written_by
    lm.close_engine()
    left = psutil.Process().children(recursive=True)
    # all but the resource tracker of Python's own
    found["left"] = [child.name() for child in left if "python" not in child.name()]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
