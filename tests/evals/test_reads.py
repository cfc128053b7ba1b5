"""What the measures of a generation need of its model is computed once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fortifai.lab.measures import Generation
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM
from fortifai.text import computed, measures, tables

LIKELIHOOD = (
    measures.perplexity,
    measures.confidence,
    measures.entropy,
    measures.surplexity,
    measures.under_generation_0,
    tables.histograms,
    tables.perplexity_histograms,
)
"""All that need log-probabilities of texts, or distributions along them."""


def made(tmp_path: Path, number: int) -> tuple[Any, list[int]]:
    """A generation of a tiny model, and the sizes of what its model reads."""
    tokenizer = scratch.train_tokenizer(["Ada was born in Rome and Bo in Oslo ."], 280)
    model = scratch.build(
        "llama", hidden_size=16, layers=1, heads=2, vocab_size=280, max_positions=16, seed=0
    )
    lm = CausalLM(model, tokenizer, device="cpu", block=16)
    read: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    rng = np.random.default_rng(0)

    def text(size: int) -> np.ndarray:
        return rng.integers(0, 280, size).astype(np.int32)

    domain = SimpleNamespace(
        held_out=text(150),
        config=SimpleNamespace(fluency=SimpleNamespace(under_first=True)),
        tokenizer=tokenizer,
    )
    bound = SimpleNamespace(lm=lm, log_prob=lm.log_prob, family=SimpleNamespace())
    bound.family.load = lambda folder: bound
    (tmp_path / computed.PERPLEXITIES).write_text('{"unlikely": 300.0}', "utf-8")
    return Generation(
        number, bound, domain, [text(130), text(140)], {0: text(130), 1: text(140)},
        fit={}, seed=0, tick=lambda done, total: None, origin=tmp_path,
    ), read  # fmt: skip


@pytest.mark.parametrize("number", [0, 1])
def test_every_text_is_read_once_for_all_measures(tmp_path: Path, number: int) -> None:
    """A window of n tokens and what stands before them costs n tokens: the last is not read."""
    generation, read = made(tmp_path, number)
    for measure in LIKELIHOOD:
        found = measure(generation)
        assert found if isinstance(found, dict) else list(found)
    texts = 2 * (130 + 140) + 150
    # by generation 0, which is another model, what was written is read as well
    assert sum(read) == texts + (130 if number else 0)


def test_entropies_are_those_of_the_texts_they_are_told_of(tmp_path: Path) -> None:
    generation, _ = made(tmp_path, 0)
    told = {s.on: s.value for s in measures.entropy(generation) if s.measure == "entropy.next"}
    texts = {
        "real": generation.real[0],
        "written": generation.rewritten[0],
        "held-out": generation.domain.held_out,
    }
    expected = {
        on: float(generation.model.lm.log_prob_and_entropy(text)[1].astype(np.float64).mean())
        for on, text in texts.items()
    }
    assert told == pytest.approx(expected, rel=1e-6)  # the same numbers, summed in fp64
