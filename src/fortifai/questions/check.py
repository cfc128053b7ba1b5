"""What is wrong with a set of questions: row by row, and as a whole.

Row by row: the answer stands in the context, the two sentences are equal or differ in length or
negation alone, the question stands twice, its fact does not stand at its location. As a whole:
the true sentence is the longer one too often, or its wording tells it from the false one without
any knowledge of the text.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from fortifai.data.questions import Question
from fortifai.data.text import Corpus
from fortifai.evals.kr_test import VARIANTS, Scorer, kr_test
from fortifai.questions.passages import HEADING
from fortifai.questions.vocabulary import words
from fortifai.questions.wording import wording_share
from fortifai.stats.sample import Share, share

Rule = Literal[
    "equal", "duplicate", "contradiction", "negation", "length", "given-away", "location"
]
RULES: dict[Rule, str] = {
    "equal": "true and false are the same but for case and punctuation",
    "duplicate": "stands in an earlier row",
    "contradiction": "an earlier row calls the true sentence false",
    "negation": "true and false differ in a negation alone",
    "length": "one is the other with words left out",
    "given-away": "the context has the words that tell true from false",
    "location": "the fact does not stand at its line",
}

NEGATORS = words("not no non never none nor neither nothing nobody nowhere without cannot")
_SUPPORT = words("do does did any either can ca will wo")
_NEGATIVE = ("un", "in", "im", "ir", "il", "dis", "non")
_STOP = words(
    "the a an and or but of in on at to for from by with as is was are were be been being has have "
    "had it its he she his her they them their that this these those which who whom whose there "
    "when where than then into over under about after before during while not no did does do so "
    "can could may might will would such one some any all both each most more less very also only "
    "just"
)
_WORD = re.compile(r"(?:(?<!\S)-(?=\d))?[^\W_]+(?:[.,]\d+)*")  # a number has its sign
_ENOUGH = 1 / 3
"""Share of a reworded fact's telling words that its paragraph must have."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with one question.

    Attributes:
        row: Its row, from 1.
        rule: Which of `RULES`.
        why: What was seen.
    """

    row: int
    rule: Rule
    why: str


@dataclasses.dataclass(frozen=True)
class Tell:
    """How often something that knows nothing of the text finds the true sentence.

    Attributes:
        name: What it goes by.
        share: How often, with its interval.
        problem: Why this is a fault of the questions; empty if it is none.
    """

    name: str
    share: Share
    problem: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        rows: Number of rows.
        different: Number of different questions.
        findings: By row.
        tells: Of the whole set, each different question counted once.
        located: Whether the text was there to look up locations.
    """

    rows: int
    different: int
    findings: tuple[Fault, ...]
    tells: tuple[Tell, ...]
    located: bool

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings and not any(tell.problem for tell in self.tells)

    def faulty(self) -> set[int]:
        """Rows with a finding."""
        return {finding.row for finding in self.findings}


def check(
    questions: Sequence[Question],
    *,
    corpus: Corpus | None = None,
    model: Scorer | None = None,
    name: str = "model",
) -> Report:
    """Look for everything that `RULES` and the tells name.

    Args:
        questions: Every row of a file, duplicates and all.
        corpus: The text; without it locations are not looked up.
        model: One that has not been trained on the text. Without it the cross-validated classifier
            of `wording.wording_share` stands in.
        name: Of the model, for the report.
    """
    findings: list[Fault] = []
    first: dict[str, int] = {}
    sides: dict[tuple[str, str], int] = {}
    for row, question in enumerate(questions, start=1):
        if question.id in first:
            findings.append(Fault(row, "duplicate", f"as row {first[question.id]:,}"))
            continue
        first[question.id] = row
        against = sides.get((question.context, question.true))
        if against:
            findings.append(Fault(row, "contradiction", f"row {against:,} says the opposite"))
        sides.setdefault((question.context, question.false), row)
        findings += [Fault(row, rule, why) for rule, why in faults(question)]
        if corpus is not None and (why := misplaced(question, corpus)):
            findings.append(Fault(row, "location", why))
    distinct = [questions[row - 1] for row in first.values()]
    return Report(
        rows=len(questions),
        different=len(distinct),
        findings=tuple(findings),
        tells=(longer(distinct), *_told(distinct, model, name)),
        located=corpus is not None,
    )


# --- one question -----------------------------------------------------------------------------


def faults(question: Question) -> list[tuple[Rule, str]]:
    """What is wrong with a question that shows without the text."""
    true, false = _words(question.true), _words(question.false)
    if true == false:
        return [("equal", f"{question.true!r} and {question.false!r}")]
    found: list[tuple[Rule, str]] = []
    if _negated(true, false):
        only = collections.Counter(true)
        only.subtract(false)
        odd = ", ".join(sorted(w for w, n in only.items() if n))
        found.append(("negation", f"they differ in {odd}"))
    elif _within(true, false) or _within(false, true):
        more, less = (true, false) if len(true) > len(false) else (false, true)
        left = collections.Counter(more) - collections.Counter(less)
        found.append(("length", f"only one has {' '.join(left)!r}"))
    said = {_stem(w) for w in _words(question.context)}
    mine, other = _telling(question.true, question.false), _telling(question.false, question.true)
    if mine and mine <= said and not (other and other <= said):
        seen = sorted({w for w in true if _stem(w) in mine})
        found.append(("given-away", f"the context has {', '.join(seen)}"))
    return found


def misplaced(question: Question, corpus: Corpus) -> str:
    """Why a fact does not stand at its location; empty if it does. See `unsupported`.

    A location at an article's heading, as the authors write it, stands for the whole article.
    """
    found = corpus.find_line(question.location)
    if found is None:
        return f"the text has no line {question.location:,}"
    why = unsupported(question, _passage(corpus, *found))
    return f"line {question.location:,} {why}" if why else ""


def unsupported(question: Question, passage: str) -> str:
    """What a passage lacks that the true sentence says; empty if it seems to bear it out.

    The names and numbers that only the true sentence has must stand in it (Mexico may stand there
    as Mexican). Where there are none, a third of the telling words of the context and the true
    sentence must.
    """
    there = {_stem(w) for w in _words(passage)}
    own = _telling(question.true, question.false)
    sure = {_stem(w.lower()) for w in _names(question.true)} & own
    missing = {w for w in sure - there if not _akin(w, there)}
    if missing:
        names = {w.lower() for w in _names(question.true) if _stem(w.lower()) in missing}
        return f"says nothing of {', '.join(sorted(names))}"
    said = {_stem(w) for w in _words(f"{question.context} {question.true}") if _tells(w)}
    if not sure and said and len(said & there) < _ENOUGH * len(said):
        return f"has {len(said & there)} of its {len(said)} telling words"
    return ""


def _akin(name: str, there: Iterable[str]) -> bool:
    """Whether a word begins as a name does, in four letters at least and two thirds of it."""
    if name[0].isdigit() or len(name) < 4:
        return False
    begin = name[: max(4, -(-2 * len(name) // 3))]
    return any(word.startswith(begin) for word in there)


def _passage(corpus: Corpus, index: int, offset: int) -> str:
    document = corpus.documents[index]
    if document.row:
        return f"{document.title}\n{document.text}"
    line = document.text[offset:].split("\n", 1)[0]
    # the authors locate a question at its article's heading
    return document.text if HEADING.match(line) else f"{document.title}\n{line}"


def _words(text: str) -> list[str]:
    joined = re.sub(r" @([-.,])@ ", r"\1", text)  # as WikiText writes 3,500 and well-known
    # wasn't: was not
    whole = re.sub(r"(?i)\b([a-z]+?) ?n ?['’] ?t\b", r"\1 not", joined)  # noqa: RUF001
    return [w.lower() for w in _WORD.findall(whole)]


def _names(text: str) -> list[str]:
    """Numbers, and words with a capital that do not begin the text."""
    found = _WORD.findall(re.sub(r" @([-.,])@ ", r"\1", text))
    return [w for i, w in enumerate(found) if w[0].isdigit() or (w[0].isupper() and i)]


def _tells(word: str) -> bool:
    return word not in _STOP and (len(word) > 2 or word[0].isdigit())


def _telling(one: str, other: str) -> set[str]:
    """Stems of the telling words that only the first text has."""
    rest = {_stem(w) for w in _words(other)}
    return {s for w in _words(one) if _tells(w) and (s := _stem(w)) not in rest}


def _stem(word: str) -> str:
    """A word without common endings, so that "named" and "names" are one."""
    for ending in ("ing", "ies", "ied", "ed", "es", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _within(short: Sequence[str], long: Sequence[str]) -> bool:
    """Whether `short` is `long` with words left out."""
    rest = iter(long)
    return len(short) < len(long) and all(word in rest for word in short)


def _negated(true: Sequence[str], false: Sequence[str]) -> bool:
    plain = [[_stem(w) for w in x if w not in NEGATORS | _SUPPORT] for x in (true, false)]
    signs = [sum(w in NEGATORS for w in x) for x in (true, false)]
    if plain[0] == plain[1]:
        return signs[0] != signs[1]
    if len(true) != len(false):
        return False
    odd = [(a, b) for a, b in zip(true, false, strict=True) if a != b]
    return all(a == p + b or b == p + a for a, b in odd for p in [_prefix(a, b)])


def _prefix(a: str, b: str) -> str:
    """The negative prefix by which two words differ, or what neither begins with."""
    return next((p for p in _NEGATIVE if p + b == a or p + a == b), "\0")


# --- the whole set ----------------------------------------------------------------------------


def longer(questions: Sequence[Question]) -> Tell:
    """How often the true sentence is the longer one, in characters; equal ones count half."""
    sizes = [(len(q.true), len(q.false)) for q in questions]
    found = share(float(np.sign(a - b) + 1) / 2 for a, b in sizes)
    side = "longer" if found.value > 0.5 else "shorter"
    problem = "" if found.holds(0.5) else f"the true sentence is too often the {side} one"
    return Tell("the longer sentence", found, problem)


def _told(questions: Sequence[Question], model: Scorer | None, name: str) -> Iterable[Tell]:
    if model is None:
        found = wording_share(questions)
        # below 1/2 a classifier has learnt nothing: it met the same words on the other side
        problem = "the wording of true and false sentences differs" if found.low > 0.5 else ""
        yield Tell("wording (cross-validated)", found, problem)
        return
    result = kr_test(model, questions)
    for variant in VARIANTS:
        found = share(result.right(variant))
        problem = ""
        if not found.holds(0.5):
            side = "true" if found.value > 0.5 else "false"
            problem = f"{name} tells them apart: it takes the {side} sentence too often"
        yield Tell(f"{name}, kr.{variant}", found, problem)
