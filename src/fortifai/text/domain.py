"""Experiments on text: splits, questions, the base model, and a language model's chain."""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from fortifai.data.questions import Question
from fortifai.data.tokens import SpecialTokens
from fortifai.evals import benchmarks, formats, kr_test, passages
from fortifai.lab.domain import Family, fingerprint
from fortifai.lab.measures import Generation, Score
from fortifai.lab.progress import Progress
from fortifai.lab.store import committing, read_jsonl, write_json, write_jsonl
from fortifai.models.causal_lm import CausalLM
from fortifai.models.family import CausalLMFamily, from_config, saved_tokens
from fortifai.text import computed, exam, tables
from fortifai.text.spec import TextArm, TextExperiment

Tokens = NDArray[np.int32]
BENCHMARKS = "benchmarks"
"""Folder of benchmark items in `shared/`, and of their cached results in the run folder."""


@dataclasses.dataclass(frozen=True)
class TextDomain:
    """Text, read and checked: a `fortifai.lab.domain.Domain`.

    Attributes:
        config: The experiment.
        real: Tokens of each split.
        rest: Tokens of the text behind the splits; empty where they were loaded.
        held_out: Tokens that no generation trains on.
        questions: KR questions of each split.
        tokenizer: The base model's, or one trained on the corpus.
        special: The model's special tokens.
        base_model: Makes the base model of a seed, given a folder to work in and progress.
        parameters: Number of the model's parameters; 0 where it was loaded.
        fingerprint: SHA-256 of the corpus, the held-out text, the questions, the benchmarks and
            the exam; empty where they were loaded.
        notes: What a user should know about them.
        benchmarks: Published benchmarks with their items, or None.
        exam: Questions in several formats, or None.
        folder: Where it was loaded from.
        engine: What the engine that writes says of itself; empty where no arm asks for one.
    """

    config: TextExperiment
    real: tuple[Tokens, ...]
    rest: Tokens
    held_out: Tokens
    questions: tuple[tuple[Question, ...], ...]
    tokenizer: Any
    special: SpecialTokens
    base_model: Callable[[int, Path, Progress], CausalLM]
    parameters: int = 0
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    benchmarks: benchmarks.Suite | None = None
    exam: formats.Exam | None = None
    folder: Path | None = None
    engine: str = ""

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
        family = self.config.family
        epochs = family.scratch.pretrain.epochs if family.scratch and family.scratch.pretrain else 0
        asked = [len(part) for part in self.questions]
        suite, in_formats = self.benchmarks, self.exam
        often = "once for all" if len(self._bases) == 1 else "once a seed"
        return (
            ("model", f"{self.parameters:,} parameters"),
            ("beginning of text", self._beginning()),
            ("splits", f"{len(self.real)} of {len(self.real[0]):,} tokens"),
            ("questions", f"{sum(asked):,} (by split: {', '.join(f'{n:,}' for n in asked)})"),
            ("held out", f"{len(self.held_out):,} tokens"),
            ("pretraining", f"{len(self.rest) * epochs:,} tokens, {often}"),
            *((("benchmarks", suite.facts),) if suite else ()),
            *((("formats", exam.facts(in_formats)),) if in_formats else ()),
            *((("engine", self.engine),) if self.engine else ()),
        )

    def _beginning(self) -> str:
        bos = self.special.bos
        if bos is None:
            return "no token"
        spelled = self.tokenizer.convert_ids_to_tokens(bos)
        return f"{spelled} (id {bos}) before every sequence"

    def foundation(self, splits: int) -> str:
        """SHA-256 of the first splits, and of what the base model is pretrained on."""
        return fingerprint((*self.real[:splits], *((self.rest,) if self._pretrains else ())))

    def effort(self, arm: str, samples: int) -> tuple[int, int]:
        """Tokens read over all epochs, and optimizer steps."""
        train = self.config.arms[arm].train
        text = train.block - len(self.special.front)
        batch = text * train.batch_size * train.gradient_accumulation
        return round(samples * train.epochs), math.ceil(-(-samples // batch) * train.epochs)

    # --- in the run folder --------------------------------------------------------------------

    def save(self, folder: Path, progress: Progress, *, before: Path | None = None) -> None:
        """Write tokens, questions and the base model, pretrained if the YAML asks for it."""
        tokens = {f"split-{k}": part for k, part in enumerate(self.real)}
        save_file(tokens | {"held-out": self.held_out}, str(folder / "tokens.safetensors"))
        rows = [
            {"split": k, **dataclasses.asdict(question)}
            for k, asked in enumerate(self.questions)
            for question in asked
        ]
        write_jsonl(folder / "questions.jsonl", rows)
        if self.benchmarks:
            self.benchmarks.save(folder / BENCHMARKS)
        if self.exam:
            exam.save(self.exam, folder)
        for seed, name in self._bases.items():
            if before is not None:
                shutil.copytree(before / name, folder / name)
            elif not self._pretrains:
                self.base_model(seed, folder, progress).save(folder / name)
            elif not (folder / name).exists():
                # there for good, however many are still to be pretrained
                with committing(folder / name) as made:
                    self.base_model(seed, folder, progress).save(made)

    @property
    def _pretrains(self) -> bool:
        scratch = self.config.family.scratch
        return scratch is not None and scratch.pretrain is not None

    @property
    def _bases(self) -> dict[int, str]:
        """The folders of the base models, by the first seed that begins with each."""
        seeds, sizes = self.config.seeds, self.config.family.scratch
        if sizes is None or not sizes.base_each_seed:
            seeds = seeds[:1]
        return {seed: f"base-{seed}" if i else "base" for i, seed in enumerate(seeds)}

    # --- one chain ----------------------------------------------------------------------------

    def chain(self, arm: str, seed: Any, folder: Path) -> tuple[Family[Any], Sequence[Tokens]]:
        """The language model of one arm, and the splits."""
        assert self.folder is not None
        settings, base = self.config.arms[arm], self.folder / self._bases.get(seed, "base")
        family = CausalLMFamily(
            base=base,
            scratch=lambda seed: random_weights(CausalLM.load(base), seed),
            weight=settings.weight,
            train=settings.train,
            regenerate=settings.regenerate,
            select=self._select(settings),
            workdir=folder / "trainer.partial",
            special=self.special,
            untrained=self.config.family.untrained,
        )
        return family, self.real

    def _select(self, arm: TextArm) -> Callable[[CausalLM], float] | None:
        if arm.train.checkpoint == "best_held_out":
            return lambda lm: float(lm.log_prob(self.held_out).mean())
        if arm.train.checkpoint == "best_kr":
            asked = [question for part in self.questions for question in part]
            return lambda lm: float(kr_test.kr_test(lm, asked).right("mean").mean())
        return None

    def evaluate(self, generation: Generation[Any, Any], folder: Path) -> Sequence[Score]:
        """All scores, and the tables of questions, answers, passages and histograms."""
        scores = [score for measure in self.config.taken() for score in measure(generation)]
        if any(self.questions):
            splits = computed.question_splits(generation)
            table = kr_test.table(computed.knowledge(generation), splits)
            pq.write_table(pa.Table.from_pylist(table), folder / "questions.parquet")
        if self.benchmarks:
            items = pa.Table.from_pylist(list(computed.published(generation).items))
            pq.write_table(items, folder / "benchmarks.parquet")
        if self.exam:
            answers = pa.Table.from_pylist(formats.table(computed.outcomes(generation)))
            pq.write_table(answers, folder / "formats.parquet")
        if self.config.fluency.under_first:
            told = tables.perplexity_histograms(generation)
            write_json(folder / computed.PERPLEXITIES, told)
        if generation.model.lm.written_by is not None:
            write_json(folder / "engine.json", generation.model.lm.written_by)
        write_json(folder / "histograms.json", tables.histograms(generation))
        write_jsonl(folder / "passages.jsonl", tables.followed(generation))
        return scores

    # --- what measures ask of it --------------------------------------------------------------

    @property
    def cache(self) -> Path:
        """Folder of the benchmarks' results, in the run folder."""
        assert self.folder is not None
        return self.folder.parent / BENCHMARKS

    @property
    def vocab_size(self) -> int:
        """Number of token ids: some tokenizers leave some out, so the last lies beyond a count."""
        return int(max(self.tokenizer.get_vocab().values())) + 1

    @functools.cached_property
    def known_facts(self) -> Mapping[str, Mapping[str, str]]:
        """What is known of those the corpus tells of."""
        found: Mapping[str, Mapping[str, str]] = self.config.corpus.known_facts()
        return found

    @property
    def passage_starts(self) -> list[int]:
        """Where the followed passages begin in split 0."""
        context = max(arm.regenerate.first for arm in self.config.arms.values())
        told = self.config.passages
        return passages.choose(len(self.real[0]), context, told.count, told.tokens)


def load(config: TextExperiment, folder: Path) -> TextDomain:
    """Read back what `TextDomain.save` wrote."""
    tokens = load_file(str(folder / "tokens.safetensors"))
    count = sum(name.startswith("split-") for name in tokens)
    asked: list[list[Question]] = [[] for _ in range(count)]
    for row in read_jsonl(folder / "questions.jsonl"):
        asked[row.pop("split")].append(Question(**row))
    tokenizer, special = saved_tokens(folder / "base")
    suite = None
    if config.benchmarks:
        suite = benchmarks.Suite.load(config.benchmarks.values(), folder / BENCHMARKS)
    return TextDomain(
        config,
        real=tuple(tokens[f"split-{k}"] for k in range(count)),
        rest=np.zeros(0, dtype=np.int32),
        held_out=tokens["held-out"],
        questions=tuple(tuple(part) for part in asked),
        tokenizer=tokenizer,
        special=special,
        base_model=lambda *_: CausalLM.load(folder / "base"),
        benchmarks=suite,
        exam=exam.load(config.formats, folder) if config.formats else None,
        folder=folder,
    )


def random_weights(base: CausalLM, seed: int) -> CausalLM:
    """The base model's architecture and tokenizer with random weights."""
    return CausalLM(from_config(base.model.config, seed=seed), base.tokenizer, bos=base.bos)
