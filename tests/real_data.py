"""Real data for some tests: `make data` puts them where these look; without them they skip.

No package of a registry holds them. They are public: `SOURCES` says which data set a file is, and
by what name its files go here.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
"""A folder beside the project that may hold them."""

SOURCES: dict[str, str] = {
    "wikitext2/wiki.test.raw": "WikiText-2, raw, the test split (Salesforce/wikitext on the hub)",
    "wikitext2/wiki.valid.tokens": "WikiText-2, with <unk>, the validation split (the same)",
    "kr_test/kt_dataset_full.json": "the Knowledge Retention questions of ForTIFAI's authors "
    "(2509.08972)",
    "kr_test/wikitext2-test.jsonl": "questions in their form on wiki.test.raw: `fortifai kr build`",
    "blimp": "BLiMP, a .jsonl.gz a paradigm (github.com/alexwarstadt/blimp)",
    "hellaswag/validation-1000.jsonl": "HellaSwag, the first 1,000 items of its validation split "
    "(Rowan/hellaswag on the hub)",
    "gsm8k/train.jsonl": "GSM8K (openai/gsm8k on the hub)",
    "gsm8k/test.jsonl": "GSM8K (openai/gsm8k on the hub)",
    "mmlu/dev": "MMLU's own CSV files (github.com/hendrycks/test)",
    "mmlu/test": "MMLU's own CSV files (github.com/hendrycks/test)",
    "mnist/train-18k-images-idx3-ubyte.gz": "MNIST, the first 18,000 images of the training set",
    "mnist/train-18k-labels-idx1-ubyte.gz": "MNIST, the labels of these",
}


def folder() -> Path:
    """Where they are: $FORTIFAI_DATA, or ~/.cache/fortifai/data."""
    return Path(os.environ.get("FORTIFAI_DATA") or "~/.cache/fortifai/data").expanduser()


def missing(place: Path) -> list[str]:
    """What a folder lacks, each with where it comes from."""
    return [f"{name}: {told}" for name, told in SOURCES.items() if not (place / name).exists()]


def fetch(source: Path, into: Path) -> None:
    """Copy what `source` has and `into` has not."""
    for name in SOURCES:
        here, there = source / name, into / name
        if not here.exists() or there.exists():
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        if here.is_dir():
            shutil.copytree(here, there, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(here, there)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]) if sys.argv[1:] else BESIDE, folder())
    print(folder())
    for line in missing(folder()):
        print(f"missing: {line}")
