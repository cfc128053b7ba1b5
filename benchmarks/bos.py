"""Perplexity of a text under a pretrained model, with its beginning-of-text token and without.

    python benchmarks/bos.py MODEL TEXT [--tokens 16384] [--window 128]

Windows of so many tokens, one after the other; each token is judged from those before it in its
window. With bos, bos takes the first place of each window.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import get_args

import numpy as np

from fortifai.data.text import read_text
from fortifai.data.tokens import Bos
from fortifai.errors import InputError
from fortifai.evals.perplexity import perplexity
from fortifai.models.causal_lm import CausalLM


def main() -> None:
    """Print a line for each way to begin."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("model")
    arguments.add_argument("text")
    arguments.add_argument("--tokens", type=int, default=16_384)
    arguments.add_argument("--window", type=int, default=128)
    given = arguments.parse_args()
    text = read_text([given.text], root=Path()).text
    read = CausalLM.from_base(given.model)
    for bos in get_args(Bos):
        try:
            lm = CausalLM(read.model, read.tokenizer, block=given.window, bos=bos)
        except InputError as error:
            print(f"bos {bos:6}: {error}")
            continue
        ids = lm.encode(text[: 10 * given.tokens])[: given.tokens]
        found = perplexity(lm.log_prob(ids.astype(np.int32)), "text")
        half = 1.96 * (found.stderr or math.nan)
        told = "none" if lm.special.bos is None else lm.tokenizer.decode([lm.special.bos])
        print(
            f"bos {bos:6} ({told}): perplexity {found.value:.2f} "
            f"({found.value - half:.2f} to {found.value + half:.2f}), {found.n:,} tokens"
        )


if __name__ == "__main__":
    main()
