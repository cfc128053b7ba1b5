"""What several measures of a language model's generation need, computed once for each.

What is marked `once` is kept for as long as a generation is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fortifai.evals import benchmarks as benchmarks_
from fortifai.evals import fluency, kr_test
from fortifai.evals import formats as formats_
from fortifai.lab.measures import Generation, once

if TYPE_CHECKING:
    from fortifai.models.family import BoundLM
    from fortifai.text.domain import TextDomain

    TextGeneration = Generation[BoundLM, TextDomain]

Tokens = NDArray[np.int32]
MODEL = "model"
"""Folder of a generation's weights."""
PERPLEXITIES = "perplexities.json"
"""Histograms under generation 0, in each generation's folder."""


class Read(NamedTuple):
    """What one pass of the model over a text gives.

    Attributes:
        log_prob: (n,) log p of its tokens.
        entropy: (n,) entropy of the distribution of each; None where no measure asks for it.
    """

    log_prob: NDArray[np.float32]
    entropy: NDArray[np.float32] | None = None


@once
def reads(generation: TextGeneration) -> Mapping[str, Read]:
    """Each real split, rewritten part and the held-out text, each read once."""
    texts = {f"split-{k}": v for k, v in enumerate(generation.real)}
    texts |= {f"rewritten-{k}": v for k, v in generation.rewritten.items()}
    if len(generation.domain.held_out):
        texts["held-out"] = generation.domain.held_out
    asked = {*names_of(generation).values(), "held-out"}
    model, out = generation.model, {}
    for done, (name, values) in enumerate(texts.items()):
        if name in asked:
            out[name] = Read(*model.lm.log_prob_and_entropy(values))
        else:  # without the entropy, which costs the more the larger the vocabulary
            out[name] = Read(model.log_prob(values))
        generation.tick(done + 1, len(texts))
    return out


def log_prob(generation: TextGeneration) -> Mapping[str, NDArray[np.float32]]:
    """Log p of every token of each text of `reads`."""
    return {name: read.log_prob for name, read in reads(generation).items()}


@once
def knowledge(generation: TextGeneration) -> kr_test.KRResult:
    """The KR test on the questions of every split."""
    asked = [question for part in generation.domain.questions for question in part]
    return kr_test.kr_test(generation.model, asked)


def question_splits(generation: TextGeneration) -> list[int]:
    """The split of each question, in the order of `knowledge`."""
    return [k for k, part in enumerate(generation.domain.questions) for _ in part]


@once
def published(generation: TextGeneration) -> benchmarks_.Results:
    """The published benchmarks."""
    domain = generation.domain
    assert domain.benchmarks is not None
    return domain.benchmarks.run(generation.model.lm, cache=domain.cache, tick=generation.tick)


@once
def outcomes(generation: TextGeneration) -> list[formats_.Outcomes]:
    """The answers in every format."""
    exam = generation.domain.exam
    assert exam is not None
    return formats_.examine(generation.model.lm, exam, generation.tick)


@once
def compared(generation: TextGeneration) -> Mapping[str, Tokens]:
    """`written`: the first split that the arm works on, as it stands now; `real`: as it was.

    One split, so that the size is that of every other generation; the real one at generation 0
    alone, since it never changes.
    """
    first = min(generation.rewritten)
    texts = {"written": generation.rewritten[first]}
    return texts if generation.number else {"real": generation.real[first]} | texts


def names_of(generation: TextGeneration) -> dict[str, str]:
    """What the texts of `compared` are called in `reads`."""
    first = min(generation.rewritten)
    names = {"real": f"split-{first}", "written": f"rewritten-{first}"}
    return {on: names[on] for on in compared(generation)}


def own_log_prob(generation: TextGeneration) -> Mapping[str, NDArray[np.float32]]:
    """Log p of `compared` under the generation's own model."""
    found = log_prob(generation)
    return {on: found[name] for on, name in names_of(generation).items()}


@once
def under_first(generation: TextGeneration) -> Mapping[str, NDArray[np.float64]]:
    """Perplexity under generation 0 of each sequence of `compared`; empty if not asked for."""
    if not generation.domain.config.fluency.under_first:
        return {}
    if generation.number == 0:
        own = own_log_prob(generation)
        return {on: fluency.block_perplexity(p) for on, p in own.items()}
    first = generation.model.family.load(generation.origin / MODEL)
    texts = compared(generation)
    return {on: fluency.block_perplexity(first.log_prob(x)) for on, x in texts.items()}


@once
def unlikely(generation: TextGeneration) -> float:
    """Perplexity under generation 0 above which 1 % of the real sequences lie."""
    if generation.number:
        told = json.loads((generation.origin / PERPLEXITIES).read_text("utf-8"))
        return float(told["unlikely"])
    return float(np.quantile(under_first(generation)["real"], fluency.TAIL))


@once
def decoded(generation: TextGeneration) -> Mapping[str, str]:
    """The texts of `compared`."""
    decode = generation.domain.tokenizer.decode
    return {on: decode(tokens.tolist()) for on, tokens in compared(generation).items()}
