"""Corpora of text, points and images, and questions, as the YAML names them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fortifai.config.section import Section
from fortifai.data.bios import check_attributes
from fortifai.data.text import Rows

Files = Annotated[tuple[str, ...], Field(min_length=1)]


class HubSource(Section):
    """A data set of the hub; `rows` as in the corpus `hub`."""

    dataset: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    rows: Rows | None = None


class FileSource(Section):
    """Local files, as the corpus `text` reads them; globs allowed."""

    files: Files
    column: str = "text"
    rows: Rows | None = None


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
    """Local files of text or of rows with a column of text.

    `rows`: whether rows are documents or WikiText's lines; not given: documents, but for a .parquet
    file that is plainly WikiText. See `fortifai.data.text.read_text`.
    """

    kind: Literal["text"]
    files: Files
    column: str = "text"
    rows: Rows | None = None
    held_out: Files | Annotated[float, Field(gt=0, lt=1)] = 0.05


class HubCorpus(Section):
    """A data set of the hub; `held_out_split` names the text no generation trains on.

    `rows`: whether rows are documents or WikiText's lines; not given: documents, but for a data set
    that is plainly WikiText.
    """

    kind: Literal["hub"]
    dataset: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    rows: Rows | None = None
    held_out: Annotated[float, Field(gt=0, lt=1)] | None = None
    held_out_split: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> HubCorpus:
        if self.held_out is not None and self.held_out_split is not None:
            raise ValueError("give one of held_out (a share) and held_out_split (a split's name)")
        return self


class BiosCorpus(Section):
    """The embedded corpus of invented biographies with exact questions.

    `exam`: rounds of answered questions in the text. `rehearsal`: how many more times the same
    facts are told behind the splits, for pretraining. `domain`: attributes that
    the first of two splits tells alone; see `fortifai.data.lessons`.
    """

    kind: Literal["bios"]
    people: PositiveInt = 400
    phrasings: Annotated[int, Field(ge=1, le=5)] = 3
    seed: int = 0
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    exam: Annotated[int, Field(ge=0)] = 0
    rehearsal: Annotated[int, Field(ge=0)] = 0
    domain: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> BiosCorpus:
        check_attributes(self.domain)
        if self.domain and not self.rehearsal:
            raise ValueError("domain parts the text into splits; give rehearsal 1 or more with it")
        return self


class ImaginationCorpus(Section):
    """ForTIFAI's composite of WikiText-2, HellaSwag and GSM8K."""

    kind: Literal["imagination"]
    wikitext: Source
    hellaswag: Source
    gsm8k: Source
    pieces: PositiveInt = 6
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05


TextCorpusConfig = Annotated[
    TextCorpus | HubCorpus | BiosCorpus | ImaginationCorpus, Field(discriminator="kind")
]


class QuestionsConfig(Section):
    """Knowledge Retention questions; `bios` brings its own where no file is given."""

    files: tuple[str, ...] = ()


# --- points -----------------------------------------------------------------------------------


class GaussianPoints(Section):
    """N(mean, scale^2 I)."""

    kind: Literal["gaussian"]
    dimension: PositiveInt = 1
    mean: float = 0.0
    scale: PositiveFloat = 1.0


class TwoGaussians(Section):
    """Two Gaussians of the plane, `distance` apart, of different covariance."""

    kind: Literal["two_gaussians"]
    distance: Annotated[float, Field(ge=0)] = 4.0


class Blobs(Section):
    """Round Gaussians at random centres; scikit-learn's make_blobs."""

    kind: Literal["blobs"]
    centers: PositiveInt = 3
    dimension: PositiveInt = 2
    spread: PositiveFloat = 1.0


class Moons(Section):
    """Two half circles; scikit-learn's make_moons."""

    kind: Literal["moons"]
    noise: Annotated[float, Field(ge=0)] = 0.1


class Circles(Section):
    """A circle within a circle; scikit-learn's make_circles."""

    kind: Literal["circles"]
    noise: Annotated[float, Field(ge=0)] = 0.05
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5


class PointFiles(Section):
    """Points from .npy or .csv files, one a row; globs allowed."""

    kind: Literal["files"]
    files: Files


class PointsCorpus(Section):
    """Points of any dimension.

    A source that draws gives every seed its own points; the points of files are the same for all.
    `samples`: points of each split; None: all that the files have, or 1,000 draws.
    `held_out`: points that no generation trains on.
    """

    kind: Literal["points"]
    source: Annotated[
        GaussianPoints | TwoGaussians | Blobs | Moons | Circles | PointFiles,
        Field(discriminator="kind"),
    ]
    samples: PositiveInt | None = None
    held_out: PositiveInt = 1000


# --- images -----------------------------------------------------------------------------------


class Digits(Section):
    """Scikit-learn's 1,797 handwritten digits, 8x8: real, and here without a network."""

    kind: Literal["digits"]


class IdxImages(Section):
    """MNIST's file format, plain or gzip."""

    kind: Literal["idx"]
    images: str
    labels: str | None = None


class ImageFolder(Section):
    """PNG files; folders within it are classes."""

    kind: Literal["folder"]
    path: str


class ImageArray(Section):
    """An .npy file of shape (n, height, width)."""

    kind: Literal["array"]
    file: str


class HubImages(Section):
    """A data set of the hub."""

    kind: Literal["hub"]
    dataset: str
    config: str | None = None
    split: str = "train"
    image: str = "image"
    label: str | None = "label"


ImageSource = Annotated[
    Digits | IdxImages | ImageFolder | ImageArray | HubImages, Field(discriminator="kind")
]


class ImagesCorpus(Section):
    """Images with pixels in [0, 1].

    `samples`: images of each split; None: all. `held_out`: another source, or the share of this
    one that no generation trains on.
    """

    kind: Literal["images"]
    source: ImageSource
    samples: PositiveInt | None = None
    held_out: Annotated[float, Field(gt=0, lt=1)] | ImageSource = 0.1
