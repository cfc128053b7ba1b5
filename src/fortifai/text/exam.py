"""The questions that every generation of a language model is asked in several formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fortifai.data import exam
from fortifai.data.exam import Asked, Item
from fortifai.data.mmlu import mmlu_rows
from fortifai.data.questions import Question
from fortifai.errors import InputError, nearest
from fortifai.evals.formats import Exam
from fortifai.lab.store import read_jsonl, write_jsonl
from fortifai.text.options import FormatsOptions, MMLUOptions
from fortifai.text.spec import TextExperiment

FILE = "formats.jsonl"
"""The exam in `shared/`."""


def read(config: TextExperiment, root: Path, of_splits: Sequence[Question]) -> Exam | None:
    """The exam that a configuration asks for; None if it asks for none.

    Args:
        config: The experiment.
        root: Folder that its file names are relative to.
        of_splits: Knowledge Retention questions whose fact stands in a split.

    Raises:
        InputError: There are no questions, or no such subjects or files.
    """
    told = config.formats
    if told is None:
        return None
    if told.mmlu:
        return _exam(told, _mmlu(told, told.mmlu, root))
    pool: list[Item] | None = None
    if not config.questions.files:
        pool = config.corpus.own_exam(told.subjects, of_splits)
    if pool is None:
        if told.subjects:
            raise InputError(
                "formats.subjects names attributes of the corpus bios, and the questions are of "
                "another; leave subjects out"
            )
        pool = [exam.from_question(question) for question in of_splits]
    if not pool:
        raise InputError(
            "formats has no questions to ask: give questions.files, the corpus bios, or "
            "formats.mmlu"
        )
    return _exam(told, exam.with_examples(_spread(pool, told.questions), pool, told.shots))


def _exam(told: FormatsOptions, asked: Sequence[Asked]) -> Exam:
    return Exam(
        tuple(asked), told.kinds, told.chat, told.answer_tokens, dict(told.chat_template_args)
    )


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _mmlu(told: FormatsOptions, source: MMLUOptions, root: Path) -> list[Asked]:
    """The first questions of each subject, with the first of its examples before them."""
    folder = root / source.data
    there = sorted(
        path.name.removesuffix("_test.csv") for path in (folder / "test").glob("*_test.csv")
    )
    if not there:
        raise InputError(
            f"formats.mmlu.data: {folder} holds no test/SUBJECT_test.csv; give the folder of "
            "MMLU's own CSV files"
        )
    out = []
    for subject in source.subjects:
        if subject not in there:
            raise InputError(
                f"formats.mmlu.subjects: {subject!r} is no subject of {folder}"
                f"{nearest(subject, there)}; there are {', '.join(there)}"
            )
        items = _subject(folder / "test" / f"{subject}_test.csv", subject)
        examples: list[Item] = []
        if "few_shot" in told.kinds:
            examples = _subject(folder / "dev" / f"{subject}_dev.csv", subject)
            if len(examples) < told.shots:
                raise InputError(
                    f"formats.shots is {told.shots} and {subject} has {len(examples)} examples; "
                    "lower it"
                )
        out += [Asked(i, tuple(examples[: told.shots])) for i in items[: told.questions]]
    return out


def _subject(path: Path, subject: str) -> list[Item]:
    if not path.is_file():
        raise InputError(f"{path} is missing; give MMLU's own CSV files, dev and test")
    out = []
    for row in mmlu_rows(path):
        text = row["question"].strip()
        options = tuple(choice.strip() for choice in row["choices"])
        out.append(Item(text, text, options, row["answer"], subject))
    return out


# --- in the run folder ------------------------------------------------------------------------


def save(asked: Exam, folder: Path) -> None:
    """Write the questions into `shared/`."""
    write_jsonl(folder / FILE, rows(asked))


def rows(asked: Exam) -> list[dict[str, Any]]:
    """The questions as plain dictionaries."""
    return [exam.to_row(one) for one in asked.asked]


def load(told: FormatsOptions, folder: Path) -> Exam:
    """What `save` wrote."""
    return _exam(told, [exam.from_row(row) for row in read_jsonl(folder / FILE)])


def facts(asked: Exam) -> str:
    """The exam in a few words."""
    return f"{len(asked.asked):,} questions in {len(asked.kinds)} formats"
