"""The measures of a language model's generation: one view, computed once, for all of them.

To add a measure: write a function from `LanguageView` to a list of scores, and name it in
`MEASURES`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai.data.questions import Question
from fortifai.evals import confidence as confidence_
from fortifai.evals import divergence, diversity, kr_test, passages, perplexity
from fortifai.evals.score import Score
from fortifai.evals.view import Stage

Tokens = NDArray[np.int32]


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
    """

    held_out: Tokens
    questions: Sequence[Sequence[Question]]
    vocab_size: int
    decode: Callable[[Sequence[int]], str]
    passage_starts: Sequence[int]
    passage_tokens: int


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
    return [score for on, values in texts.items() for score in diversity.diversity(values, on)]


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
)


def followed(view: LanguageView) -> list[dict[str, Any]]:
    """The followed passages as this generation wrote them; generation 0 also as they were."""
    stage, material = view.stage, view.material
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
