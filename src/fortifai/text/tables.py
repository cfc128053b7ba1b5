"""What is written down of a language model's generation besides its scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fortifai.evals import confidence as confidence_
from fortifai.evals import fluency, passages
from fortifai.text import computed

if TYPE_CHECKING:
    from fortifai.text.computed import TextGeneration


def followed(generation: TextGeneration) -> list[dict[str, Any]]:
    """The followed passages as this generation wrote them; generation 0 also as they were."""
    if 0 not in generation.rewritten:  # the arm works on other splits
        return []
    domain, real = generation.domain, generation.real[0]
    versions = {generation.number + 1: generation.rewritten[0]}
    if generation.number == 0:
        versions = {0: real} | versions
    length = domain.config.passages.tokens
    rows = []
    for times, tokens in versions.items():
        for start in domain.passage_starts:
            where = slice(start, start + length)
            row = passages.compare(real[where], tokens[where], domain.tokenizer.decode)
            rows.append({"split": 0, "start": int(start), "generation": times, **row})
    return rows


def histograms(generation: TextGeneration) -> dict[str, Any]:
    """Counts of the confidence p in equal bins of [0, 1], for each text (the paper's Fig. 1)."""
    found = computed.log_prob(generation)
    return {
        "bins": [float(edge) for edge in confidence_.BIN_EDGES],
        "counts": {on: confidence_.histogram(p).tolist() for on, p in found.items()},
    }


def perplexity_histograms(generation: TextGeneration) -> dict[str, Any]:
    """Counts of the sequences' perplexity under generation 0 (2305.17493)."""
    found = computed.under_first(generation)
    return {
        "bins": [float(edge) for edge in fluency.PERPLEXITY_EDGES],
        "counts": {on: fluency.histogram(x).tolist() for on, x in found.items()},
        "unlikely": computed.unlikely(generation),
    }
