"""`bios` in sections: the text that an experiment trains on, and text to learn the same facts from.

An experiment on knowledge collapse wants a model that knows facts, in several formats, before its
first generation: so the same people stand again behind the splits, in `rehearsal` text that only
pretraining reads. Where a domain is named there are two splits of one size in tokens: the first
tells the domain's facts alone, the second all facts, for experiments that compare the two at an
equal budget (2509.04796, domain-specific training).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

from fortifai.data import bios
from fortifai.data.bios import GROUP, PHRASINGS, Told
from fortifai.data.questions import Question
from fortifai.data.text import Corpus, Document
from fortifai.errors import InputError


def curriculum(
    n_people: int,
    seed: int,
    *,
    phrasings: int = 3,
    exam: int = 1,
    rehearsal: int = 1,
    domain: Sequence[str] = (),
) -> tuple[Corpus, list[Question]]:
    """Biographies and worksheets in sections, and one Knowledge Retention question on each fact.

    A section tells everybody's facts in `phrasings` rounds of biographies and `exam` rounds of
    worksheets, by turns, so that the first part of a section already speaks of everybody. A section
    of d of the six attributes has 6 / d times as many rounds, which makes it about as long.

    Args:
        n_people: How many, 1 or more.
        seed: Of everything; people are those of `bios.bios`.
        phrasings: Phrasings of each fact, 1 to 5; the questions use another one.
        exam: Rounds of worksheets.
        rehearsal: How many sections of everybody's facts stand behind the splits, 1 or more.
        domain: Attributes of the first section; empty for no such section.

    Returns:
        The corpus with its `sections`, and six questions a person, located where the first section
        that tells the fact first does.

    Raises:
        InputError: An argument is out of range, or there is no such attribute.
    """
    bios.check(n_people, phrasings, exam)
    if rehearsal < 1:
        raise InputError(f"rehearsal is {rehearsal}; it must be 1 or more")
    own = bios.check_attributes(domain)
    everyone = list(bios.told(n_people, seed, phrasings))
    plans = [(own, "domain")] if own else []
    plans += [(tuple(PHRASINGS), "general")]
    plans += [(tuple(PHRASINGS), f"rehearsal {i}") for i in range(rehearsal)]
    documents: list[Document] = []
    begins = []
    for attributes, name in plans:
        begins.append(len(documents))
        more = len(PHRASINGS) / len(attributes)
        text = _Section(everyone, attributes, phrasings, f"{seed} {name}")
        for words, title in text.written(round(phrasings * more), round(exam * more)):
            documents.append(Document(words, title, len(documents) + 1, row=True))
    splits = len(begins) - rehearsal
    corpus = Corpus(tuple(documents), "bios", len(documents), tuple(begins[: splits + 1]))
    return corpus, _located(everyone, own, corpus)


@dataclasses.dataclass(frozen=True)
class _Section:
    everyone: Sequence[Told]
    attributes: tuple[str, ...]
    phrasings: int
    key: str

    def written(self, versions: int, worksheets: int) -> Iterator[tuple[str, str]]:
        """Texts and whose they are, in rounds."""
        for turn in range(max(versions, worksheets)):
            for first in range(0, len(self.everyone), GROUP):
                group = self.everyone[first : first + GROUP]
                if turn < versions:
                    for i, each in enumerate(group):
                        yield self._biography(each, first + i, turn), each.person.name
                if turn < worksheets:
                    key = f"{self.key} {first} {turn}"
                    persons = [each.person for each in group]
                    for text in bios.worksheets(persons, self.attributes, 1, key):
                        yield text, ""

    def _biography(self, each: Told, index: int, turn: int) -> str:
        rng = random.Random(f"fortifai lessons {self.key} {index} {turn}")
        order = rng.sample(self.attributes, len(self.attributes))
        way = turn % self.phrasings
        return " ".join(bios.tell(each.person, a, each.ways[a][way]) for a in order)


def _located(everyone: Sequence[Told], domain: Sequence[str], corpus: Corpus) -> list[Question]:
    """The people's questions, each with the line of the document that first tells its fact."""
    first: dict[tuple[str, bool], int] = {}
    general = corpus.sections[1] if domain else 0
    for i, document in enumerate(corpus.documents):
        if document.title:
            first.setdefault((document.title, i < general), document.line)
    return [
        dataclasses.replace(question, location=first[each.person.name, a in domain])
        for each in everyone
        for a, question in each.questions.items()
    ]
