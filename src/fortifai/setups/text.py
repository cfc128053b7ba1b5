"""Experiments on text: tokenizer, splits, questions, the base model, and a language model's chain.

`read` checks everything that can be checked before work starts and writes nothing; `write` makes
the run folder's `shared/`, which all arms and seeds read.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from fortifai.config import (
    BiosCorpus,
    KeepConfig,
    LanguageArm,
    LanguageExperiment,
    PretrainConfig,
    TextCorpusConfig,
    TrainConfig,
)
from fortifai.data import bios, splits
from fortifai.data.questions import Question
from fortifai.data.tokens import SpecialTokens, check_known, special_tokens
from fortifai.errors import InputError
from fortifai.evals import benchmarks, formats, kr_test, language, passages
from fortifai.evals.score import Score
from fortifai.evals.view import Stage
from fortifai.loop.progress import Progress
from fortifai.loop.seeds import derive
from fortifai.loop.store import read_jsonl, write_json, write_jsonl
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM
from fortifai.models.family import CausalLMFamily, count_parameters, from_config, saved_tokens
from fortifai.models.hub import exists
from fortifai.models.loading import describe
from fortifai.setups import exam
from fortifai.setups.setup import Ground, fingerprint
from fortifai.setups.sources import read_sources

Tokens = NDArray[np.int32]
BENCHMARKS = "benchmarks"
"""Folder of benchmark items in `shared/`, and of their cached results in the run folder."""


@dataclasses.dataclass(frozen=True)
class TextInputs:
    """Everything read and checked, in memory: `fortifai.setups.Inputs`.

    Attributes:
        config: The experiment.
        root: Folder that its file names are relative to.
        cut: Tokens of the splits, the rest and the held-out text; questions by split.
        tokenizer: The base model's, or one trained on the corpus.
        special: The model's special tokens.
        parameters: Number of the model's parameters.
        fingerprint: SHA-256 of the corpus, the held-out text, the questions, the benchmarks and
            the exam.
        notes: What a user should know about them.
        benchmarks: Published benchmarks with their items, or None.
        exam: Questions in several formats, or None.
    """

    config: LanguageExperiment
    root: Path
    cut: splits.Splits
    tokenizer: Any
    special: SpecialTokens
    parameters: int
    fingerprint: str
    notes: tuple[str, ...]
    benchmarks: benchmarks.Suite | None = None
    exam: formats.Exam | None = None

    @property
    def unit(self) -> str:
        """Tokens."""
        return "tokens"

    @property
    def splits(self) -> int:
        """How many splits there are."""
        return len(self.cut.parts)

    @property
    def split_size(self) -> int:
        """Tokens of one split."""
        return len(self.cut.parts[0])

    @property
    def sample_bytes(self) -> int:
        """A token is an int32."""
        return 4

    @property
    def model_bytes(self) -> int:
        """Four bytes a parameter."""
        return 4 * self.parameters

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Sizes of model and text."""
        cut, family = self.cut, self.config.family
        epochs = family.scratch.pretrain.epochs if family.scratch and family.scratch.pretrain else 0
        asked = [len(part) for part in cut.questions]
        asked_too = (("benchmarks", self.benchmarks.facts),) if self.benchmarks else ()
        return (
            ("model", f"{self.parameters:,} parameters"),
            ("beginning of text", self._beginning()),
            ("splits", f"{len(cut.parts)} of {self.split_size:,} tokens"),
            ("questions", f"{sum(asked):,} (by split: {', '.join(f'{n:,}' for n in asked)})"),
            ("held out", f"{len(cut.held_out):,} tokens"),
            ("pretraining", f"{len(cut.rest) * epochs:,} tokens, once for all"),
            *asked_too,
            *((("formats", exam.facts(self.exam)),) if self.exam else ()),
        )

    def foundation(self, splits: int) -> str:
        """SHA-256 of the first splits, and of what the base model is pretrained on."""
        family = self.config.family
        pretrained = family.scratch is not None and family.scratch.pretrain is not None
        return fingerprint((*self.cut.parts[:splits], *((self.cut.rest,) if pretrained else ())))

    def _beginning(self) -> str:
        bos = self.special.bos
        if bos is None:
            return "no token"
        spelled = self.tokenizer.convert_ids_to_tokens(bos)
        return f"{spelled} (id {bos}) before every sequence"

    def effort(self, arm: str, samples: int) -> tuple[int, int]:
        """Tokens read over all epochs, and optimizer steps."""
        train = self.config.arms[arm].train
        text = train.block - len(self.special.front)
        batch = text * train.batch_size * train.gradient_accumulation
        return round(samples * train.epochs), math.ceil(-(-samples // batch) * train.epochs)

    def write(self, folder: Path, progress: Progress, *, before: Path | None = None) -> None:
        """Write tokens, questions and the base model, pretrained if the YAML asks for it."""
        cut = self.cut
        tokens = {f"split-{k}": part for k, part in enumerate(cut.parts)}
        save_file(tokens | {"held-out": cut.held_out}, str(folder / "tokens.safetensors"))
        rows = [
            {"split": k, **dataclasses.asdict(question)}
            for k, asked in enumerate(cut.questions)
            for question in asked
        ]
        write_jsonl(folder / "questions.jsonl", rows)
        if self.benchmarks:
            self.benchmarks.save(folder / BENCHMARKS)
        if self.exam:
            exam.save(self.exam, folder)
        if before is not None:
            shutil.copytree(before / "base", folder / "base")
        else:
            _base_model(self, folder, progress).save(folder / "base")


@dataclasses.dataclass(frozen=True)
class TextShared:
    """What `TextInputs.write` wrote, as the chains read it back: `fortifai.setups.Shared`."""

    config: LanguageExperiment
    folder: Path
    real: tuple[Tokens, ...]
    held_out: Tokens
    questions: tuple[tuple[Question, ...], ...]

    @property
    def base(self) -> Path:
        """The base model's folder."""
        return self.folder / "base"

    def ground(self, arm: str, seeds: tuple[int, ...], folder: Path) -> Ground:
        """The language model of one arm, the splits, and the measures."""
        settings = self.config.arms[arm]
        _, special = saved_tokens(self.base)
        family = CausalLMFamily(
            base=self.base,
            scratch=lambda seed: random_weights(CausalLM.load(self.base), seed),
            weight=settings.weight.build(),
            train=settings.train,
            regenerate=settings.regenerate,
            select=_select(settings, self),
            workdir=folder / "trainer.partial",
            before=len(special.front),
        )
        return Ground(
            family, self.real, functools.partial(evaluate, material=_material(self.config, self))
        )


def read(config: LanguageExperiment, root: Path) -> TextInputs:
    """Read and check corpus, questions and model.

    Raises:
        InputError: Anything about them is wrong.
    """
    sources = read_sources(config, root)
    family = config.family
    if family.scratch:
        texts = [document.text for document in sources.corpus.documents]
        tokenizer = scratch.train_tokenizer(texts, family.scratch.vocab_size)
        with torch.device("meta"):
            model_config = _build(config, len(tokenizer), seed=0).config
        longest = family.scratch.max_positions or config.positions
    else:
        assert family.base is not None
        tokenizer, model_config = describe(_local(family.base, root))
        _check_positions(config, family.base, model_config)
        longest = _positions(model_config) or 1024
    parameters = count_parameters(lambda: from_config(model_config))
    special = special_tokens(tokenizer, model_config, bos=family.bos)
    cut = splits.split_corpus(
        sources.corpus,
        sources.questions,
        tokenizer,
        count=config.split_count,
        tokens_per_split=config.splits.tokens,
        held_out=sources.held_out,
    )
    _check(config, cut)
    rows = model_config.get_text_config(decoder=True).vocab_size
    for part in (*cut.parts, cut.rest, cut.held_out):
        check_known(tokenizer, part, rows)
    suite, cuts = _read_benchmarks(config, root, tokenizer, model_config, special)
    fingerprint = sources.fingerprint()
    if suite:
        fingerprint = hashlib.sha256(f"{fingerprint} {suite.fingerprint}".encode()).hexdigest()
    in_formats = exam.read(config, root, sources.questions, [q for k in cut.questions for q in k])
    if in_formats:
        in_formats.check(tokenizer, longest, special)
        told = json.dumps(exam.rows(in_formats))
        fingerprint = hashlib.sha256(f"{fingerprint} {told}".encode()).hexdigest()
    held_out = cut.held_out[: config.splits.held_out_tokens]
    return TextInputs(
        config,
        root,
        dataclasses.replace(cut, held_out=held_out),
        tokenizer,
        special,
        parameters,
        fingerprint,
        tuple(dict.fromkeys([*sources.notes, *cut.notes, *cuts])),
        suite,
        in_formats,
    )


def _read_benchmarks(
    config: LanguageExperiment,
    root: Path,
    tokenizer: Any,
    model_config: Any,
    special: SpecialTokens,
) -> tuple[benchmarks.Suite | None, list[str]]:
    """The benchmarks, and what of them is too long for the model."""
    if not config.benchmarks:
        return None, []
    suite = benchmarks.read((b.build(name) for name, b in config.benchmarks.items()), root)
    with torch.device("meta"):
        model = from_config(model_config)
    return suite, suite.check(model, tokenizer, special)


def _local(base: str, root: Path) -> str:
    """A folder or file relative to the YAML's, if there is one; else the name as it is."""
    return str(root / base) if exists(root / base) else base


def _build(config: LanguageExperiment, vocab_size: int, *, seed: int) -> Any:
    sizes = config.family.scratch
    assert sizes is not None
    return scratch.build(
        sizes.architecture,
        hidden_size=sizes.hidden_size,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        intermediate_size=sizes.intermediate_size,
        vocab_size=vocab_size,
        max_positions=sizes.max_positions or config.positions,
        tie_embeddings=sizes.tie_embeddings,
        seed=seed,
    )


def _positions(model_config: Any) -> int | None:
    """How many a model reads; that of text and images says it of its text part."""
    text = model_config.get_text_config(decoder=True)
    return getattr(text, "max_position_embeddings", None)


def _check_positions(config: LanguageExperiment, base: str, model_config: Any) -> None:
    positions = _positions(model_config)
    if positions is not None and config.positions > positions:
        raise InputError(
            f"{base} has {positions} positions and the experiment needs {config.positions} "
            "(train.block, or regenerate.context: its at_most, or it + new_tokens); make them "
            "shorter"
        )


def _check(config: LanguageExperiment, cut: splits.Splits) -> None:
    size = len(cut.parts[0])
    for name, arm in config.arms.items():
        if arm.train.block > size:
            raise InputError(
                f"arm {name!r}: train.block {arm.train.block} is longer than a split of {size} "
                "tokens; make the block shorter or the splits longer"
            )
        if arm.regenerate.mode == "blocks" and arm.regenerate.first >= size:
            raise InputError(
                f"arm {name!r}: regenerate.context {arm.regenerate.first} leaves nothing to "
                f"rewrite in a split of {size} tokens; make it shorter or the splits longer"
            )
        if arm.train.checkpoint == "best_kr" and not any(cut.questions):
            raise InputError(f"arm {name!r}: train.checkpoint best_kr needs questions")
    if config.questions.files and not any(cut.questions):
        raise InputError(
            "no question's fact stands in any split; give questions on this corpus, or larger "
            "splits"
        )
    scratch_ = config.family.scratch
    if scratch_ and scratch_.pretrain and not len(cut.rest):
        raise InputError(
            "family.scratch.pretrain trains on text outside the splits and there is none; set "
            "splits.tokens so that some text is left"
        )


# --- shared/ ----------------------------------------------------------------------------------


def _base_model(data: TextInputs, folder: Path, progress: Progress) -> CausalLM:
    config = data.config
    arm = next(iter(config.arms.values()))
    if arm.family.base is not None:
        return CausalLM.from_base(
            _local(arm.family.base, data.root), dtype=arm.family.dtype, bos=arm.family.bos
        )
    model = _build(config, len(data.tokenizer), seed=derive(config.seeds[0], "base"))
    lm = CausalLM(model, data.tokenizer, bos=arm.family.bos)
    assert arm.family.scratch is not None
    if arm.family.scratch.pretrain:
        lm.fit(
            data.cut.rest,
            KeepConfig().build(),
            _pretraining(arm, arm.family.scratch.pretrain),
            seed=derive(config.seeds[0], "pretrain"),
            workdir=folder / "pretrain.tmp",
            select=None,
            progress=_As(progress, "pretrain"),
        )
    return lm


def random_weights(base: CausalLM, seed: int) -> CausalLM:
    """The base model's architecture and tokenizer with random weights."""
    return CausalLM(from_config(base.model.config, seed=seed), base.tokenizer, bos=base.bos)


def _pretraining(arm: LanguageArm, pretrain: PretrainConfig) -> TrainConfig:
    return TrainConfig(
        epochs=pretrain.epochs,
        learning_rate=pretrain.learning_rate,
        batch_size=pretrain.batch_size,
        weight_decay=pretrain.weight_decay,
        warmup_share=pretrain.warmup_share,
        schedule="cosine",
        block=arm.train.block,
        precision=arm.train.precision,
    )


@dataclasses.dataclass(frozen=True)
class _As:
    """Progress under another stage's name."""

    progress: Progress
    stage: str

    def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
        self.progress.step(self.stage, done, total, tokens=tokens)

    def begin(self, generation: int) -> None:
        self.progress.begin(generation)

    def end(self, generation: int, scores: Sequence[Any]) -> None:
        self.progress.end(generation, scores)


def load(config: LanguageExperiment, folder: Path) -> TextShared:
    """Read back what `TextInputs.write` wrote."""
    tokens = load_file(str(folder / "tokens.safetensors"))
    count = sum(name.startswith("split-") for name in tokens)
    asked: list[list[Question]] = [[] for _ in range(count)]
    for row in read_jsonl(folder / "questions.jsonl"):
        asked[row.pop("split")].append(Question(**row))
    return TextShared(
        config,
        folder,
        tuple(tokens[f"split-{k}"] for k in range(count)),
        tokens["held-out"],
        tuple(tuple(part) for part in asked),
    )


# --- one chain --------------------------------------------------------------------------------


def _select(arm: LanguageArm, shared: TextShared) -> Callable[[CausalLM], float] | None:
    if arm.train.checkpoint == "best_held_out":
        return lambda lm: float(lm.log_prob(shared.held_out).mean())
    if arm.train.checkpoint == "best_kr":
        asked = [question for part in shared.questions for question in part]
        return lambda lm: float(kr_test.kr_test(lm, asked).right("mean").mean())
    return None


def _material(experiment: LanguageExperiment, shared: TextShared) -> language.Material:
    tokenizer, _ = saved_tokens(shared.base)
    followed = experiment.passages
    asked = [b.build(name) for name, b in experiment.benchmarks.items()]
    contexts = [arm.regenerate.first for arm in experiment.arms.values()]
    return language.Material(
        held_out=shared.held_out,
        questions=shared.questions,
        # some tokenizers leave ids out, so that the last id lies beyond their number of tokens
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        decode=tokenizer.decode,
        passage_starts=passages.choose(
            len(shared.real[0]), max(contexts), followed.count, followed.tokens
        ),
        passage_tokens=followed.tokens,
        benchmarks=benchmarks.Suite.load(asked, shared.folder / BENCHMARKS) if asked else None,
        cache=shared.folder.parent / BENCHMARKS,
        exam=exam.load(experiment.formats, shared.folder) if experiment.formats else None,
        known=_known(experiment.corpus),
        under_first=experiment.fluency.under_first,
        self_bleu=experiment.fluency.self_bleu,
    )


def _known(corpus: TextCorpusConfig) -> Mapping[str, Mapping[str, str]]:
    """The facts of the invented people, if the corpus tells of them."""
    if isinstance(corpus, BiosCorpus):
        return bios.known_facts(corpus.people, corpus.seed)
    return {}


def evaluate(stage: Stage[Any], folder: Path, *, material: language.Material) -> Sequence[Score]:
    """Measure a generation; tables that are not scores are written into `folder`."""
    view = language.LanguageView(stage, material)
    scores = [score for measure in language.MEASURES for score in measure(view)]
    if any(material.questions):
        table = kr_test.table(view.kr, view.question_splits)
        pq.write_table(pa.Table.from_pylist(table), folder / "questions.parquet")
    if material.benchmarks:
        items = pa.Table.from_pylist(list(view.benchmarks.items))
        pq.write_table(items, folder / "benchmarks.parquet")
    if material.exam:
        answers = pa.Table.from_pylist(formats.table(view.outcomes))
        pq.write_table(answers, folder / "formats.parquet")
    if material.under_first:
        write_json(folder / language.PERPLEXITIES, language.perplexity_histograms(view))
    write_json(folder / "histograms.json", language.histograms(view))
    write_jsonl(folder / "passages.jsonl", language.followed(view))
    return scores
