"""Corpora and questions, as the YAML names them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from fortifai.config.section import Section

Files = Annotated[tuple[str, ...], Field(min_length=1)]


class HubSource(Section):
    """A data set of the hub."""

    dataset: str
    config: str | None = None
    split: str = "train"
    column: str = "text"


class FileSource(Section):
    """Local files: text, .jsonl, .parquet, gzip of these; globs allowed."""

    files: Files
    column: str = "text"


Source = FileSource | HubSource


class SplitsConfig(Section):
    """How the corpus is cut. `count` None: one split a generation, or 1 where the regime adds none.

    `tokens` None: all of the corpus, equally; otherwise the size of each split, the rest being
    left for pretraining. `held_out_tokens`: measure on so many tokens of the held-out text at most.
    """

    count: PositiveInt | None = None
    tokens: PositiveInt | None = None
    held_out_tokens: PositiveInt | None = None


class TextCorpus(Section):
    """Local text files."""

    kind: Literal["text"]
    files: Files
    column: str = "text"
    held_out: Files | Annotated[float, Field(gt=0, lt=1)] = 0.05


class HubCorpus(Section):
    """A data set of the hub; `held_out_split` names the text no generation trains on."""

    kind: Literal["hub"]
    dataset: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    held_out: Annotated[float, Field(gt=0, lt=1)] | None = None
    held_out_split: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> HubCorpus:
        if self.held_out is not None and self.held_out_split is not None:
            raise ValueError("give one of held_out (a share) and held_out_split (a split's name)")
        return self


class BiosCorpus(Section):
    """The embedded corpus of invented biographies with exact questions."""

    kind: Literal["bios"]
    people: PositiveInt = 400
    phrasings: Annotated[int, Field(ge=1, le=5)] = 3
    seed: int = 0
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1


class ImaginationCorpus(Section):
    """ForTIFAI's composite of WikiText-2, HellaSwag and GSM8K."""

    kind: Literal["imagination"]
    wikitext: Source
    hellaswag: Source
    gsm8k: Source
    pieces: PositiveInt = 6
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05


CorpusConfig = Annotated[
    TextCorpus | HubCorpus | BiosCorpus | ImaginationCorpus, Field(discriminator="kind")
]


class QuestionsConfig(Section):
    """Knowledge Retention questions; `bios` brings its own where no file is given."""

    files: tuple[str, ...] = ()
