"""Seconds of processor that a GGUF file takes to load: by transformers as it is, and by fortifai.

    python benchmarks/gguf_loading.py gemma-3-270m-q4_k_m.gguf

Configuration, tokenizer and dense weights in float32, on one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fortifai.models import gguf_files, loading
from fortifai.models.hub import locate


def as_it_is(file: Path) -> None:
    """Configuration, tokenizer and dense model as transformers' documentation has them."""
    how = {"gguf_file": file.name, "local_files_only": True}
    with loading.quiet():
        config = AutoConfig.from_pretrained(file.parent, **how)
        AutoTokenizer.from_pretrained(file.parent, **how)
        dense = gguf_files.dense(locate(str(file)))
        AutoModelForCausalLM.from_pretrained(file.parent, config=config, **how, **dense)


def seconds(load: Callable[[], object]) -> float:
    """Of all threads of this process."""
    begin = time.process_time()
    load()
    return round(time.process_time() - begin, 1)


def main() -> None:
    """Load it both ways, in turns, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--turns", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {"transformers": [], "fortifai": []}
    for _ in range(args.turns):
        times["transformers"].append(seconds(lambda: as_it_is(args.file)))
        loading._described.clear()
        times["fortifai"].append(seconds(lambda: loading.read(args.file, "float32")))
    print(json.dumps({"benchmark": "gguf_loading", "file": args.file.name, "seconds": times}))


if __name__ == "__main__":
    main()
