"""The measures of a language model's generation, on a `Generation` of `TextDomain`.

To add one, write a function with its metadata and name it in `MEASURES`; what several need stands
in `computed`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from fortifai.evals import confidence as confidence_
from fortifai.evals import divergence, fluency, kr_test
from fortifai.evals import formats as formats_
from fortifai.evals import perplexity as perplexity_
from fortifai.lab.measures import Headline, Line, Measure, Score, measure
from fortifai.text import computed

if TYPE_CHECKING:
    from fortifai.text.computed import TextGeneration, Tokens

_GENERATED = "Perplexity of generated text"
_diversity = functools.partial(measure, panel="Diversity", real=True)


def _on_texts(score: str) -> list[Line]:
    texts = ("Real first split", "Held-out text", "First split as generated")
    data = ("split-0", "held-out", "rewritten-0")
    return [Line(title, score, on) for title, on in zip(texts, data, strict=True)]


# --- knowledge --------------------------------------------------------------------------------


@measure(
    "kr",
    title="Knowledge Retention",
    panel="Knowledge Retention",
    unit="share of questions",
    direction="higher",
    lines=[
        Line("First split", "kr.mean", "split-0"),
        Line("All splits so far", "kr.mean", "up-to-stage"),
        Line("All splits", "kr.mean", "total"),
    ],
    headlines=[Headline("KR split 0", "kr.mean", "split-0", ".3f")],
)
def kr(generation: TextGeneration) -> list[Score]:
    """Share of questions whose true continuation is likelier, per token, than the false one."""
    if not any(generation.domain.questions):
        return []
    splits = computed.question_splits(generation)
    return kr_test.scores(computed.knowledge(generation), splits, generation.number)


@measure(
    "format",
    title="Answers by format",
    panel="Knowledge by format",
    unit="share",
    direction="higher",
    lines=(),
)
def formats(generation: TextGeneration) -> list[Score]:
    """Accuracy, adherence, confidence and the greedy share of each format."""
    return formats_.scores(computed.outcomes(generation)) if generation.domain.exam else []


@measure(
    "benchmark", title="Published benchmarks", panel="Published benchmarks", unit="share", lines=()
)
def benchmarks(generation: TextGeneration) -> Iterator[Score]:
    """Every metric of every task and group of the published benchmarks."""
    if generation.domain.benchmarks:
        for score in computed.published(generation).scores:
            yield dataclasses.replace(score, measure=f"benchmark.{score.measure}")


@measure(
    "facts",
    title="Facts of synthetic biographies",
    panel="Facts",
    unit="share of claims",
    real=True,
    lines=[
        Line("False facts", "facts.false", "written", "real"),
        Line("Facts about nobody known", "facts.unknown", "written", "real"),
    ],
)
def facts(generation: TextGeneration) -> Iterator[Score]:
    """Of sentences with a name and a value: the share that is false, and that about strangers."""
    known = generation.domain.known_facts
    if known:
        for on, text in computed.decoded(generation).items():
            yield from fluency.facts(text, known, on)


# --- likelihood -------------------------------------------------------------------------------


@measure(
    "perplexity",
    title="Perplexity",
    panel="Perplexity",
    unit="perplexity",
    direction="lower",
    log=True,
    lines=_on_texts("perplexity"),
    headlines=[
        Headline("perplexity split 0", "perplexity", "split-0", ",.1f"),
        Headline("held-out", "perplexity", "held-out", ",.1f"),
    ],
)
def perplexity(generation: TextGeneration) -> Iterator[Score]:
    """Exponential of the mean negative log-likelihood of a token."""
    for on, log_p in computed.log_prob(generation).items():
        yield perplexity_.perplexity(log_p, on)


@measure(
    "perplexity.first",
    title="Perplexity under generation 0",
    panel=_GENERATED,
    unit="perplexity",
    real=True,
    lines=[
        Line("Under generation 0", "perplexity.first", "written", "real"),
        Line("Unlikely sequences", "perplexity.first.tail", "written", "real", "share"),
    ],
)
def under_generation_0(generation: TextGeneration) -> Iterator[Score]:
    """Mean over sequences of 64 tokens, and the share less likely than 99 % of real ones."""
    for on, values in computed.under_first(generation).items():
        yield fluency.under_first(values, on)
        yield fluency.tail(values, computed.unlikely(generation), on)


@measure(
    "confidence.mean",
    title="Mean confidence",
    panel="Mean confidence",
    unit="probability",
    lines=_on_texts("confidence.mean"),
)
def confidence(generation: TextGeneration) -> Iterator[Score]:
    """Mean probability of the target token."""
    for on, log_p in computed.log_prob(generation).items():
        yield confidence_.confidence(log_p, on)


@measure("surplexity", title="Surplexity", panel=_GENERATED, unit="perplexity", real=True)
def surplexity(generation: TextGeneration) -> Iterator[Score]:
    """Mean perplexity of sequences of 64 tokens under the generation that wrote them."""
    found = dict(computed.own_log_prob(generation))
    if len(generation.domain.held_out):
        found["held-out"] = computed.log_prob(generation)["held-out"]
    for on, log_p in found.items():
        score = fluency.surplexity(log_p, on)
        if score:
            yield score


# --- diversity --------------------------------------------------------------------------------


@_diversity(
    "entropy",
    title="Entropy",
    unit="nats",
    direction="higher",
    lines=[
        Line("Token entropy", "entropy.unigram", "rewritten-0", "split-0"),
        Line("Word entropy", "entropy.word", "written", "real"),
        Line("Next-token entropy", "entropy.next", "written", "real"),
    ],
)
def entropy(generation: TextGeneration) -> Iterator[Score]:
    """Of the frequencies of tokens and of words, and of the model's next-token distributions."""
    for on, values in _all_texts(generation).items():
        yield fluency.unigram_entropy(values, on)
    for on, text in computed.decoded(generation).items():
        score = fluency.word_entropy(text, on)
        if score:
            yield score
    found = computed.reads(generation)
    names = computed.names_of(generation) | (
        {"held-out": "held-out"} if "held-out" in found else {}
    )
    for on, name in names.items():
        entropies = found[name].entropy
        assert entropies is not None
        yield fluency.next_token_entropy(entropies, on)


@_diversity(
    "distinct",
    title="Distinct n-grams",
    unit="share",
    direction="higher",
    lines=[
        Line("distinct-1", "distinct.1", "rewritten-0", "split-0", "share of tokens"),
        Line("distinct-2", "distinct.2", "rewritten-0", "split-0", "share of pairs"),
        Line("distinct-3", "distinct.3", "rewritten-0", "split-0", "share of triples"),
    ],
)
def distinct(generation: TextGeneration) -> Iterator[Score]:
    """Different n-grams of tokens as a share of all n-grams."""
    for on, values in _all_texts(generation).items():
        yield from fluency.distinct_scores(values, on)


def _all_texts(generation: TextGeneration) -> dict[str, Tokens]:
    texts = {f"split-{k}": v for k, v in enumerate(generation.real)}
    return texts | {f"rewritten-{k}": v for k, v in generation.rewritten.items()}


@_diversity("repetition", title="Repetition", unit="share of 4-grams", direction="lower")
def repetition(generation: TextGeneration) -> Iterator[Score]:
    """Share of 4-grams that stand in the same 128 tokens before."""
    for on, tokens in computed.compared(generation).items():
        score = fluency.repetition(tokens, on)
        if score:
            yield score


@_diversity("self-bleu", title="Self-BLEU", unit="BLEU, 0 to 1", direction="lower")
def self_bleu(generation: TextGeneration) -> Iterator[Score]:
    """Mean BLEU of a sequence of 64 tokens against the others."""
    draw, decode = generation.domain.config.fluency.self_bleu, generation.domain.tokenizer.decode
    if not draw or fluency.bleu_notes(draw):
        return
    for on, tokens in computed.compared(generation).items():
        parts = [decode(row) for row in fluency.sequences(tokens).tolist()]
        score = fluency.self_bleu_score(parts, on, draw=draw, seed=generation.seed)
        if score:
            yield score


@measure(
    "kl",
    title="KL of unigrams",
    panel="Drift of the token distribution",
    unit="nats",
    direction="lower",
    lines=[
        Line("First split", "kl.unigram", "rewritten-0", unit="nats, equal sizes"),
        Line("All generated text", "kl.unigram", "rewritten", unit="nats, equal sizes"),
        Line("Against all real text", "kl.unigram_paper", "rewritten", unit="nats"),
    ],
)
def kl(generation: TextGeneration) -> Iterator[Score]:
    """KL(generated || real) of unigram token distributions.

    At equal sizes, and against all real text: the paper's form, whose estimate also moves with the
    size of the generated text.
    """
    vocab, seed = generation.domain.vocab_size, generation.seed
    order = sorted(generation.rewritten)
    for k in order:
        written, real = generation.rewritten[k], generation.real[k]
        yield divergence.unigram_kl(written, real, vocab, on=f"rewritten-{k}", seed=seed)
    written = np.concatenate([generation.rewritten[k] for k in order])
    source = np.concatenate([generation.real[k] for k in order])
    yield divergence.unigram_kl(written, source, vocab, on="rewritten", seed=seed)
    everything = np.concatenate(list(generation.real))
    yield divergence.unigram_kl_paper(written, everything, vocab, on="rewritten")


# --- training ---------------------------------------------------------------------------------


@measure(
    "train.truncated_share",
    title="Truncated share",
    panel="Training",
    unit="share of tokens",
    headlines=[Headline("truncated", "train.truncated_share", "train", ".0%")],
)
def truncated(generation: TextGeneration) -> Iterator[Score]:
    """1 minus the mean weight of a token in training: the share truncated, 0 where all are kept."""
    share, tokens = float(generation.fit["truncated_share"]), int(generation.fit["tokens"])
    yield Score("train.truncated_share", share, "train", tokens)


@measure("train.loss", title="Training loss", panel="Training", unit="nats", direction="lower")
def loss(generation: TextGeneration) -> Iterator[Score]:
    """The mean over the last epoch."""
    tokens = int(generation.fit["epochs"][-1]["tokens"])
    yield Score("train.loss", float(generation.fit["loss"]), "train", tokens)


MEASURES: tuple[Measure, ...] = (
    *(kr, perplexity, confidence, distinct, entropy, repetition, self_bleu, kl),
    *(surplexity, under_generation_0, facts, formats, benchmarks, truncated, loss),
)
"""In the order in which the report draws them."""
