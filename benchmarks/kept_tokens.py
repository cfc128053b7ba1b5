"""Which tokens truncated cross entropy keeps when a model reads its own biographies.

    fortifai run league-facts --set 'seeds=[5, 6]' --set save_weights=all --out facts
    python benchmarks/kept_tokens.py facts > kept.json

The text that a generation was trained on (real text for generation 0) is read, in the blocks of its
training, by the model that it started from (that of generation 0: by the fitted one): truncation
goes by that when the first epoch begins. A sentence in one of the corpus' phrasings has a value,
which is the person's own or is not; kept is what has p <= 0.9.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.numpy import load_file

from fortifai.data import bios
from fortifai.models.causal_lm import CausalLM

LEVEL = 0.9
NAME = r"(?P<name>[A-Z][a-z]+ [A-Z][a-z]+)"
CLASSES = ("true value", "false value", "other words", "no sentence of the corpus")


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Of every attribute each way to tell it, with the groups `name` and `value`."""
    for attribute, ways in bios.PHRASINGS.items():
        value = f"(?P<value>{'|'.join(bios.VALUES[attribute])})"
        for way in ways:
            told = re.escape(way).replace(r"\{n\}", NAME).replace(r"\{v\}", value)
            yield attribute, re.compile(told)


def classes(text: str, facts: dict[str, dict[str, str]]) -> np.ndarray:
    """The class of each character, by its place in `CLASSES`."""
    found = np.full(len(text), 3, dtype=np.int8)
    for attribute, pattern in patterns():
        for match in pattern.finditer(text):
            true = facts.get(match["name"], {}).get(attribute) == match["value"]
            found[slice(*match.span())] = 2
            found[slice(*match.span("value"))] = 0 if true else 1
    return found


def row(
    model: CausalLM, ids: np.ndarray, block: int, facts: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """By class: share of the tokens, share of it that is kept, share of all that is kept."""
    windows = ids[: len(ids) // block * block].reshape(-1, block)
    p = np.exp(model.window_log_prob(windows)).ravel()
    pieces = [str(model.tokenizer.decode([int(i)])) for i in windows.ravel()]
    ends = np.cumsum([len(piece) for piece in pieces])
    chars = classes("".join(pieces), facts)
    own = np.array([chars[max(0, end - 1)] for end in ends]).reshape(windows.shape)[:, 1:].ravel()
    kept = p <= LEVEL
    count, keeps = collections.Counter(own.tolist()), collections.Counter(own[kept].tolist())
    return {
        "truncated": round(float(1 - kept.mean()), 4),
        **{
            name: {
                "share": round(count[k] / len(own), 4),
                "kept": round(keeps[k] / max(1, count[k]), 4),
                "share of kept": round(keeps[k] / max(1, int(kept.sum())), 4),
            }
            for k, name in enumerate(CLASSES)
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line of JSON for each generation of each chain."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = yaml.safe_load((given.run / "config.yaml").read_text("utf-8"))
    people = bios.people(config["corpus"]["seed"])
    count = config["corpus"]["people"]
    facts = {one.name: one.facts for one, _ in zip(people, range(count), strict=False)}
    real = load_file(str(given.run / "shared" / "tokens.safetensors"))
    for chain in sorted(given.run.glob("arms/*/*")):
        read, last = real["split-0"], None
        block = config["arms"][chain.parent.name]["train"]["block"]
        for generation in sorted(chain.glob("generation-*")):
            model = CausalLM.load(generation / "model", device="cpu")
            found = row(last or model, read.astype(np.int32), block, facts)
            print(json.dumps({"chain": f"{chain.parent.name}/{chain.name}",
                              "generation": int(generation.name[-2:]), "tokens": found}),
                  flush=True)  # fmt: skip
            read, last = load_file(str(generation / "samples.safetensors"))["split-0"], model


if __name__ == "__main__":
    main(sys.argv[1:])
