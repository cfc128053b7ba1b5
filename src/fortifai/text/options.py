"""The settings of what is asked of a language model's generations."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from fortifai.data.exam import FORMATS, Format
from fortifai.options import Options


class PassagesOptions(Options):
    """The passages of the first split that are followed through all generations."""

    count: Annotated[int, Field(ge=0)] = 3
    tokens: PositiveInt = 96


class MMLUOptions(Options):
    """MMLU's own CSV files: `data` holds ``test/SUBJECT_test.csv`` and ``dev/SUBJECT_dev.csv``."""

    data: str
    subjects: Annotated[tuple[str, ...], Field(min_length=1)]


class FormatsOptions(Options):
    """Questions put in several formats to every generation.

    They are MMLU's where `mmlu` is given, else those of the corpus: the exam of `bios`, or the
    Knowledge Retention questions as questions with two options. `questions`: the first so many of
    each subject of MMLU, or so many of the corpus' in all, evenly spread. `subjects`: of `bios`,
    the attributes that are asked. `shots`: answered questions before one in the format `few_shot`.
    `chat`: questions go into the tokenizer's chat template, which `chat_template_args` tells more,
    such as ``{enable_thinking: false}``. `answer_tokens`: tokens written where the answer is in
    words.
    """

    kinds: Annotated[tuple[Format, ...], Field(min_length=1)] = FORMATS
    questions: PositiveInt = 100
    subjects: tuple[str, ...] = ()
    shots: PositiveInt = 3
    chat: bool = False
    chat_template_args: dict[str, Any] = Field(default_factory=dict)
    answer_tokens: PositiveInt = 24
    mmlu: MMLUOptions | None = None

    @model_validator(mode="after")
    def _consistent(self) -> FormatsOptions:
        for name, given in (
            ("kinds", self.kinds),
            ("subjects", self.subjects),
            ("mmlu.subjects", self.mmlu.subjects if self.mmlu else ()),
        ):
            if len(set(given)) < len(given):
                raise ValueError(f"{name} {list(given)} names one twice")
        if self.chat_template_args and not self.chat:
            raise ValueError("chat_template_args need chat: true")
        if self.mmlu and self.subjects:
            raise ValueError(
                "subjects are those of the corpus' own questions; name MMLU's in mmlu.subjects"
            )
        return self


class FluencyOptions(Options):
    """How fluent and how broad what is written is.

    `under_first`: its perplexity under the chain's own generation 0, with histograms; the weights
    of that generation are then kept. `self_bleu`: sequences drawn for self-BLEU; 0: none.
    """

    under_first: bool = False
    self_bleu: Annotated[int, Field(ge=0)] = 100
