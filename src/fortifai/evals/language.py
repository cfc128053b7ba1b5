"""The measures of a language model's generation: one view, computed once, for all of them.

To add a measure: write a function from `LanguageView` to a list of scores, and name it in
`MEASURES`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai.data.questions import Question
from fortifai.evals import benchmarks as benchmarks_
from fortifai.evals import confidence as confidence_
from fortifai.evals import divergence, fluency, kr_test, passages, perplexity
from fortifai.evals import formats as formats_
from fortifai.evals.score import Score
from fortifai.evals.view import Stage

Tokens = NDArray[np.int32]
MODEL = "model"
"""Folder of a generation's weights."""
PERPLEXITIES = "perplexities.json"
"""Histograms under generation 0, in each generation's folder."""


@dataclasses.dataclass(frozen=True)
class Material:
    """What the measures of all generations share.

    Attributes:
        held_out: Tokens that no generation trains on.
        questions: KR questions of each split.
        vocab_size: Number of token ids.
        decode: Tokens to text.
        passage_starts: Where the followed passages begin in split 0.
        passage_tokens: How long they are.
        benchmarks: Published benchmarks, or None.
        cache: Folder of their results.
        exam: Questions in several formats, or None.
        known: What is known of people: name to attribute to value; empty if nothing.
        under_first: Judge what is written by generation 0 too.
        self_bleu: Sequences drawn for self-BLEU; 0: it is not measured.
    """

    held_out: Tokens
    questions: Sequence[Sequence[Question]]
    vocab_size: int
    decode: Callable[[Sequence[int]], str]
    passage_starts: Sequence[int]
    passage_tokens: int
    benchmarks: benchmarks_.Suite | None = None
    cache: Path | None = None
    exam: formats_.Exam | None = None
    known: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    under_first: bool = False
    self_bleu: int = 0


class LanguageView:
    """A finished generation with its log-probabilities, each computed once."""

    def __init__(self, stage: Stage[Any], material: Material) -> None:
        self.stage, self.material = stage, material

    @functools.cached_property
    def log_prob(self) -> Mapping[str, NDArray[np.float32]]:
        """Log p of every token of each real split, rewritten part and the held-out text."""
        texts = {f"split-{k}": v for k, v in enumerate(self.stage.real)}
        texts |= {f"rewritten-{k}": v for k, v in self.stage.rewritten.items()}
        if len(self.material.held_out):
            texts["held-out"] = self.material.held_out
        out = {}
        for done, (name, values) in enumerate(texts.items()):
            out[name] = self.stage.model.log_prob(values)
            self.stage.tick(done + 1, len(texts))
        return out

    @functools.cached_property
    def kr(self) -> kr_test.KRResult:
        """The KR test on the questions of every split."""
        asked = [question for part in self.material.questions for question in part]
        return kr_test.kr_test(self.stage.model, asked)

    @functools.cached_property
    def benchmarks(self) -> benchmarks_.Results:
        """The published benchmarks."""
        suite, lm = self.material.benchmarks, self.stage.model.lm
        assert suite is not None
        return suite.run(lm, cache=self.material.cache, tick=self.stage.tick)

    @functools.cached_property
    def outcomes(self) -> list[formats_.Outcomes]:
        """The answers in every format."""
        exam, lm = self.material.exam, self.stage.model.lm
        assert exam is not None
        return formats_.examine(lm, exam, self.stage.tick)

    @functools.cached_property
    def texts(self) -> Mapping[str, Tokens]:
        """`written`: the first split that the arm works on, as it stands now; `real`: as it was.

        One split, so that the size is that of every other generation; the real one at generation
        0 alone, since it never changes.
        """
        stage = self.stage
        first = min(stage.rewritten)
        texts = {"written": stage.rewritten[first]}
        return texts if stage.generation else {"real": stage.real[first]} | texts

    @functools.cached_property
    def own_log_prob(self) -> Mapping[str, NDArray[np.float32]]:
        """Log p of `texts` under the generation's own model."""
        first = min(self.stage.rewritten)
        names = {"real": f"split-{first}", "written": f"rewritten-{first}"}
        return {on: self.log_prob[names[on]] for on in self.texts}

    @functools.cached_property
    def under_first(self) -> Mapping[str, NDArray[np.float64]]:
        """Perplexity under generation 0 of each sequence of `texts`."""
        stage = self.stage
        if stage.generation == 0:
            return {on: fluency.block_perplexity(p) for on, p in self.own_log_prob.items()}
        first = stage.model.family.load(stage.origin / MODEL)
        return {on: fluency.block_perplexity(first.log_prob(x)) for on, x in self.texts.items()}

    @functools.cached_property
    def unlikely(self) -> float:
        """Perplexity under generation 0 above which 1 % of the real sequences lie."""
        if self.stage.generation:
            told = json.loads((self.stage.origin / PERPLEXITIES).read_text("utf-8"))
            return float(told["unlikely"])
        return float(np.quantile(self.under_first["real"], fluency.TAIL))

    @property
    def question_splits(self) -> list[int]:
        """The split of each question, in the order of `kr`."""
        return [k for k, part in enumerate(self.material.questions) for _ in part]


def knowledge(view: LanguageView) -> list[Score]:
    """KR by split, up to this stage, and in total."""
    if not any(view.material.questions):
        return []
    return kr_test.scores(view.kr, view.question_splits, view.stage.generation)


def perplexities(view: LanguageView) -> list[Score]:
    """Perplexity of each real split, rewritten part and the held-out text."""
    return [perplexity.perplexity(log_p, on) for on, log_p in view.log_prob.items()]


def confidences(view: LanguageView) -> list[Score]:
    """Mean confidence on the same texts."""
    return [confidence_.confidence(log_p, on) for on, log_p in view.log_prob.items()]


def divergences(view: LanguageView) -> list[Score]:
    """KL of unigram distributions, rewritten || real."""
    stage, vocab = view.stage, view.material.vocab_size
    order = sorted(stage.rewritten)
    written = np.concatenate([stage.rewritten[k] for k in order])
    source = np.concatenate([stage.real[k] for k in order])
    out = [
        divergence.unigram_kl(
            stage.rewritten[k], stage.real[k], vocab, on=f"rewritten-{k}", seed=stage.seed
        )
        for k in order
    ]
    out.append(divergence.unigram_kl(written, source, vocab, on="rewritten", seed=stage.seed))
    everything = np.concatenate(list(stage.real))
    out.append(divergence.unigram_kl_paper(written, everything, vocab, on="rewritten"))
    return out


def diversities(view: LanguageView) -> list[Score]:
    """distinct-1, -2, -3 and token entropy of the rewritten parts and the real splits."""
    texts = {f"split-{k}": v for k, v in enumerate(view.stage.real)} | {
        f"rewritten-{k}": v for k, v in view.stage.rewritten.items()
    }
    return [score for on, values in texts.items() for score in fluency.diversity(values, on)]


def in_formats(view: LanguageView) -> list[Score]:
    """Accuracy, adherence, certainty and the greedy share of each format."""
    return formats_.scores(view.outcomes) if view.material.exam else []


def breadth(view: LanguageView) -> list[Score]:
    """Word entropy, repetition, self-BLEU and false facts of what was written, and of real text."""
    stage, material = view.stage, view.material
    out: list[Score | None] = []
    for on, tokens in view.texts.items():
        text = material.decode(tokens.tolist())
        out += [fluency.word_entropy(text, on), fluency.repetition(tokens, on)]
        if material.self_bleu:
            parts = [material.decode(row) for row in fluency.sequences(tokens).tolist()]
            out.append(fluency.self_bleu_score(parts, on, draw=material.self_bleu, seed=stage.seed))
        if material.known:
            out += fluency.facts(text, material.known, on)
    return [score for score in out if score]


def surprises(view: LanguageView) -> list[Score]:
    """Surplexity, next-token entropy, and perplexity under generation 0."""
    lm, texts, log_prob = view.stage.model.lm, dict(view.texts), dict(view.own_log_prob)
    if len(view.material.held_out):
        texts["held-out"], log_prob["held-out"] = view.material.held_out, view.log_prob["held-out"]
    out = [fluency.surplexity(log_p, on) for on, log_p in log_prob.items()]
    out += [fluency.next_token_entropy(lm.next_token_entropy(x), on) for on, x in texts.items()]
    if view.material.under_first:
        for on, values in view.under_first.items():
            out += [fluency.under_first(values, on), fluency.tail(values, view.unlikely, on)]
    return [score for score in out if score]


def benchmarks(view: LanguageView) -> list[Score]:
    """Every metric of every task and group of the published benchmarks."""
    return list(view.benchmarks.scores) if view.material.benchmarks else []


def training(view: LanguageView) -> list[Score]:
    """Share of tokens truncated in training, and the training loss."""
    fit = view.stage.fit
    tokens = int(fit["tokens"])
    return [
        Score(
            "train.truncated_share", float(fit["truncated_share"]), "train", tokens, unit="share"
        ),
        Score("train.loss", float(fit["loss"]), "train", tokens, unit="nats", direction="lower"),
    ]


MEASURES: tuple[Callable[[LanguageView], list[Score]], ...] = (
    knowledge,
    perplexities,
    confidences,
    divergences,
    diversities,
    training,
    benchmarks,
    in_formats,
    breadth,
    surprises,
)


def followed(view: LanguageView) -> list[dict[str, Any]]:
    """The followed passages as this generation wrote them; generation 0 also as they were."""
    stage, material = view.stage, view.material
    if 0 not in stage.rewritten:  # the arm works on other splits
        return []
    real = stage.real[0]
    versions = {stage.generation + 1: stage.rewritten[0]}
    if stage.generation == 0:
        versions = {0: real} | versions
    rows = []
    for times, tokens in versions.items():
        for start in material.passage_starts:
            where = slice(start, start + material.passage_tokens)
            row = passages.compare(real[where], tokens[where], material.decode)
            rows.append({"split": 0, "start": int(start), "generation": times, **row})
    return rows


def histograms(view: LanguageView) -> dict[str, Any]:
    """Counts of the confidence p in equal bins of [0, 1], for each text (the paper's Fig. 1)."""
    return {
        "bins": [float(edge) for edge in confidence_.BIN_EDGES],
        "counts": {on: confidence_.histogram(p).tolist() for on, p in view.log_prob.items()},
    }


def perplexity_histograms(view: LanguageView) -> dict[str, Any]:
    """Counts of the sequences' perplexity under generation 0 (2305.17493)."""
    return {
        "bins": [float(edge) for edge in fluency.PERPLEXITY_EDGES],
        "counts": {on: fluency.histogram(x).tolist() for on, x in view.under_first.items()},
        "unlikely": view.unlikely,
    }
