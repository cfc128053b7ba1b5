"""Where an experiment's text and questions come from: files, the hub, or the embedded corpus."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from fortifai.config import (
    BiosCorpus,
    FileSource,
    HubCorpus,
    HubSource,
    ImaginationCorpus,
    LanguageExperiment,
    TextCorpus,
    TextCorpusConfig,
)
from fortifai.data import bios, imagination, lessons, questions, text
from fortifai.data.questions import Question
from fortifai.data.text import Corpus


@dataclasses.dataclass(frozen=True)
class Sources:
    """What was read.

    Attributes:
        corpus: The text.
        held_out: Text that nothing trains on, or the share of the corpus to hold out.
        questions: Knowledge Retention questions.
        notes: What a user should know of them.
    """

    corpus: Corpus
    held_out: Corpus | float
    questions: list[Question]
    notes: list[str]

    def fingerprint(self) -> str:
        """SHA-256 of corpus, held-out text and questions."""
        digest = hashlib.sha256(self.corpus.text.encode())
        held_out = self.held_out
        digest.update(held_out.text.encode() if isinstance(held_out, Corpus) else b"")
        for question in self.questions:
            digest.update(json.dumps(dataclasses.astuple(question)).encode())
        return digest.hexdigest()


def read_sources(config: LanguageExperiment, root: Path) -> Sources:
    """Read the text and the questions that an experiment names.

    Raises:
        InputError: A file is missing or of something else.
    """
    corpus, held_out, asked = _read_corpus(config.corpus, root)
    notes: list[str] = []
    if config.questions.files:
        asked, notes = questions.read_questions(config.questions.files, root=root)
    return Sources(corpus, held_out, asked, notes)


def _read_corpus(
    config: TextCorpusConfig, root: Path
) -> tuple[Corpus, Corpus | float, list[Question]]:
    if isinstance(config, TextCorpus):
        read = functools.partial(text.read_text, root=root, column=config.column, rows=config.rows)
        corpus = read(config.files)
        if isinstance(config.held_out, float):
            return corpus, config.held_out, []
        return corpus, read(config.held_out), []
    if isinstance(config, HubCorpus):
        return _read_hub(config)
    if isinstance(config, BiosCorpus):
        corpus, asked = _read_bios(config)
        return corpus, config.held_out, asked
    assert isinstance(config, ImaginationCorpus)
    corpus = imagination.imagination(
        _source(config.wikitext, root),
        imagination.hellaswag(root=root, **_files_or_hub(config.hellaswag)),
        imagination.gsm8k(root=root, **_files_or_hub(config.gsm8k)),
        pieces=config.pieces,
    )
    return corpus, config.held_out, []


def _read_bios(config: BiosCorpus) -> tuple[Corpus, list[Question]]:
    people, seed, phrasings, rounds = config.people, config.seed, config.phrasings, config.exam
    if not config.rehearsal:
        return bios.bios(people, seed, phrasings=phrasings, exam=rounds)
    return lessons.lessons(
        people,
        seed,
        phrasings=phrasings,
        exam=rounds,
        rehearsal=config.rehearsal,
        domain=config.domain,
    )


def _source(config: FileSource | HubSource, root: Path) -> Corpus:
    if isinstance(config, FileSource):
        return text.read_text(config.files, root=root, column=config.column, rows=config.rows)
    return text.read_hub(
        config.dataset,
        config=config.config,
        split=config.split,
        column=config.column,
        rows=config.rows,
    )


def _files_or_hub(config: FileSource | HubSource) -> dict[str, Any]:
    if isinstance(config, FileSource):
        return {"files": config.files}
    return {"hub": config.model_dump()}


def _read_hub(config: HubCorpus) -> tuple[Corpus, Corpus | float, list[Question]]:
    def split(name: str) -> Corpus:
        return text.read_hub(
            config.dataset,
            config=config.config,
            split=name,
            column=config.column,
            rows=config.rows,
        )

    if config.held_out_split is not None:
        return split(config.split), split(config.held_out_split), []
    return split(config.split), config.held_out or 0.05, []
