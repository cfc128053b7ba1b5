"""Where an experiment's text and questions come from: files, the hub, or the embedded corpus.

To add a corpus, write a subclass of `TextCorpus` with a ``kind``, and name it in `CORPORA`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from fortifai.data import bios, imagination, text
from fortifai.data.curriculum import curriculum
from fortifai.data.exam import Item
from fortifai.data.questions import Question
from fortifai.data.text import Corpus, Rows
from fortifai.errors import InputError
from fortifai.lab import plugins
from fortifai.options import Options

Files = Annotated[tuple[str, ...], Field(min_length=1)]
ShareHeldOut = Annotated[float, Field(gt=0, lt=1)]


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
    questions: Sequence[Question] = ()
    notes: Sequence[str] = ()

    def fingerprint(self) -> str:
        """SHA-256 of corpus, held-out text and questions."""
        digest = hashlib.sha256(self.corpus.text.encode())
        held_out = self.held_out
        digest.update(held_out.text.encode() if isinstance(held_out, Corpus) else b"")
        for question in self.questions:
            digest.update(json.dumps(dataclasses.astuple(question)).encode())
        return digest.hexdigest()


class TextCorpus(plugins.Corpus):
    """Text that generations train on, and held-out text."""

    data: ClassVar[str] = "text"

    @abstractmethod
    def read(self, root: Path) -> Sources:
        """The text.

        Args:
            root: Folder that file names are relative to.

        Raises:
            InputError: It is missing or something else.
        """

    def known_facts(self) -> Mapping[str, Mapping[str, str]]:
        """What is known of those the text tells of: name to attribute to value; most know none."""
        return {}

    def own_exam(self, subjects: Sequence[str], of_splits: Sequence[Question]) -> list[Item] | None:
        """Questions with several options of the corpus's own; None where it has none.

        Args:
            subjects: The attributes that are asked; empty for all.
            of_splits: Knowledge Retention questions of the corpus whose fact stands in a split.
        """
        return None


class TextFiles(TextCorpus):
    """Local files of text or of rows with a column of text.

    `rows`: whether rows are documents or WikiText's lines; not given: documents, but for a .parquet
    file that is plainly WikiText. See `fortifai.data.text.read_text`.
    """

    kind: Literal["text"] = "text"
    files: Files
    column: str = "text"
    rows: Rows | None = None
    held_out: Files | ShareHeldOut = 0.05

    def read(self, root: Path) -> Sources:
        """See `TextCorpus`."""
        held_out = self.held_out
        return Sources(
            self._read(self.files, root),
            held_out if isinstance(held_out, float) else self._read(held_out, root),
        )

    def _read(self, files: Sequence[str], root: Path) -> Corpus:
        return text.read_text(files, root=root, column=self.column, rows=self.rows)


class HubCorpus(TextCorpus):
    """A data set of the hub; `held_out_split` names the text no generation trains on.

    `rows`: whether rows are documents or WikiText's lines; not given: documents, but for a data set
    that is plainly WikiText.
    """

    kind: Literal["hub"] = "hub"
    dataset: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    rows: Rows | None = None
    held_out: ShareHeldOut | None = None
    held_out_split: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> HubCorpus:
        if self.held_out is not None and self.held_out_split is not None:
            raise ValueError("give one of held_out (a share) and held_out_split (a split's name)")
        return self

    def read(self, root: Path) -> Sources:
        """See `TextCorpus`."""
        aside = self.held_out_split
        return Sources(
            self._split(self.split), self._split(aside) if aside else self.held_out or 0.05
        )

    def _split(self, name: str) -> Corpus:
        return text.read_hub(
            self.dataset, config=self.config, split=name, column=self.column, rows=self.rows
        )


class BiosCorpus(TextCorpus):
    """The embedded corpus of synthetic biographies with exact questions.

    `exam`: rounds of answered questions in the text. `rehearsal`: how many more times the same
    facts are told behind the splits, for pretraining. `domain`: attributes that the first of two
    splits tells alone; see `fortifai.data.curriculum`.
    """

    kind: Literal["bios"] = "bios"
    people: PositiveInt = 400
    phrasings: Annotated[int, Field(ge=1, le=5)] = 3
    seed: int = 0
    held_out: ShareHeldOut = 0.1
    exam: Annotated[int, Field(ge=0)] = 0
    rehearsal: Annotated[int, Field(ge=0)] = 0
    domain: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> BiosCorpus:
        bios.check_attributes(self.domain)
        if self.domain and not self.rehearsal:
            raise ValueError("domain parts the text into splits; give rehearsal 1 or more with it")
        return self

    def read(self, root: Path) -> Sources:
        """See `TextCorpus`."""
        told: dict[str, Any] = {"phrasings": self.phrasings, "exam": self.exam}
        if self.rehearsal:
            told |= {"rehearsal": self.rehearsal, "domain": self.domain}
            corpus, asked = curriculum(self.people, self.seed, **told)
        else:
            corpus, asked = bios.bios(self.people, self.seed, **told)
        return Sources(corpus, self.held_out, asked)

    def known_facts(self) -> Mapping[str, Mapping[str, str]]:
        """The facts of the biographies."""
        return bios.known_facts(self.people, self.seed)

    def own_exam(self, subjects: Sequence[str], of_splits: Sequence[Question]) -> list[Item]:
        """Items on the facts that stand in the splits."""
        try:
            bios.check_attributes(subjects)
        except InputError as error:
            raise InputError(f"formats.subjects: {error}") from error
        items = bios.items(self.people, self.seed, phrasings=self.phrasings)
        there = {question.id for question in of_splits}
        return [
            item
            for id_, item in items.items()
            if id_ in there and (not subjects or item.subject in subjects)
        ]


class FileSource(Options):
    """Local files, as the corpus `text` reads them; globs allowed."""

    files: Files
    column: str = "text"
    rows: Rows | None = None

    def read(self, root: Path) -> Corpus:
        """The text."""
        return text.read_text(self.files, root=root, column=self.column, rows=self.rows)

    def rows_of(self) -> dict[str, Any]:
        """What `fortifai.data.imagination` reads rows from."""
        return {"files": self.files}


class HubSource(Options):
    """A data set of the hub; `rows` as in the corpus `hub`."""

    dataset: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    rows: Rows | None = None

    def read(self, root: Path) -> Corpus:
        """The text."""
        return text.read_hub(self.dataset, **self.model_dump(exclude={"dataset"}))

    def rows_of(self) -> dict[str, Any]:
        """What `fortifai.data.imagination` reads rows from."""
        return {"hub": self.model_dump()}


class ImaginationCorpus(TextCorpus):
    """ForTIFAI's composite of WikiText-2, HellaSwag and GSM8K."""

    kind: Literal["imagination"] = "imagination"
    wikitext: FileSource | HubSource
    hellaswag: FileSource | HubSource
    gsm8k: FileSource | HubSource
    pieces: PositiveInt = 6
    held_out: ShareHeldOut = 0.05

    def read(self, root: Path) -> Sources:
        """See `TextCorpus`."""
        corpus = imagination.imagination(
            self.wikitext.read(root),
            imagination.hellaswag(root=root, **self.hellaswag.rows_of()),
            imagination.gsm8k(root=root, **self.gsm8k.rows_of()),
            pieces=self.pieces,
        )
        return Sources(corpus, self.held_out)


CORPORA: tuple[type[TextCorpus], ...] = (TextFiles, HubCorpus, BiosCorpus, ImaginationCorpus)
