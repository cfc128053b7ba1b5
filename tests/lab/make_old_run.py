"""Writes the run folders of `tests/lab/old_runs`: what a version of fortifai left on a disk.

    python tests/lab/make_old_run.py FOLDER

The folders in the repository were written once, by the revision that their README names, and are
never written again: later versions must go on reading them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import yaml

from fortifai import configuration
from fortifai.lab import experiment

GAUSSIAN = """
name: old-gaussian
description: two arms, commits every second generation
generations: 6
eval_every: 2
seeds: [0, 1]
baseline: mle
corpus: {kind: points, source: {kind: gaussian}, samples: 40, held_out: 50}
regime: {kind: replace}
family: {kind: gaussian, estimator: mle}
arms:
  mle: {}
  held: {weight: {kind: truncate_tails, a: 0.3}}
"""

LANGUAGE = """
name: old-language
generations: 2
seeds: [0]
baseline: tce
corpus: {kind: bios, people: 30, phrasings: 2}
splits: {tokens: 256, held_out_tokens: 128}
regime: {kind: fortifai}
family: {kind: causal_lm, scratch: {hidden_size: 16, layers: 1, heads: 2, vocab_size: 300}}
train: {epochs: 1, learning_rate: 1.0e-3, batch_size: 4, block: 32}
regenerate: {context: 16, new_tokens: 16, decoding: {kind: greedy}}
passages: {count: 2, tokens: 16}
arms:
  tce: {weight: {kind: truncate, threshold: 0.01}}
"""


def main(folder: Path) -> None:
    """Run both experiments into `folder`, without their reports."""
    for text in (GAUSSIAN, LANGUAGE):
        raw = yaml.safe_load(text)
        out = folder / raw["name"].removeprefix("old-")
        experiment.run(configuration.resolve(raw), Path.cwd(), out, workers=1)
        for lock in out.rglob(".lock"):
            lock.unlink()
        shutil.rmtree(out / "benchmarks", ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
