"""`bios`: short synthetic biographies, whose facts are known exactly.

Person i of a seed is the same however many are drawn, so the corpus can be made any size. Every
fact can be told in six ways; each biography is written several times, each time with other
phrasings in another order, and questions are put in a phrasing that none of a person's biographies
used: a model that has only memorised word for word does not pass them.

Where an exam is asked for, the text also holds worksheets: the same facts as answered questions, in
the formats of `fortifai.data.exam`, so that a small model learns the formats with the facts.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from fortifai.data.exam import Format, Item, worksheet
from fortifai.data.questions import Question
from fortifai.data.text import Corpus, Document
from fortifai.errors import InputError, nearest


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ONSETS = _words("b d f g h j k l m n p r s t v w z br dr fr gr kr pr tr bl gl kl pl")
_VOWELS = _words("a e i o u")
_CODAS = _words("l n r s t")
_ENDINGS = _words("son sen ley ton man berg field well ford ski")

VALUES: dict[str, tuple[str, ...]] = {
    "born": tuple(str(year) for year in range(1900, 2000)),
    "city": _words(
        "Arlesby Bramholt Corvane Dunmere Estova Farlund Glenrath Halvik Istrand Jorvale Kelmont "
        "Lorwick Marsden Norhaven Ostrelle Pellworm Quenby Rosvale Selmare Tarvik Ulmstead "
        "Varnholm Westra Yarrow Zelmont Ashkirk Belford Carnmoor Delvin Elmhurst"
    ),
    "job": _words(
        "baker carpenter chemist composer dentist diver courier gardener farmer geologist judge "
        "librarian mason miner nurse painter pilot plumber poet potter sailor sculptor singer "
        "surgeon tailor teacher translator weaver welder zoologist"
    ),
    "school": _words(
        "Alder Birch Cedar Dogwood Elm Fir Ginkgo Hazel Ivy Juniper Larch Maple Oak Pine Rowan "
        "Spruce Tupelo Willow Yew Zelkova"
    ),
    "firm": _words(
        "Acton Borealis Cobalt Delphi Ember Falcon Granite Helix Indigo Jasper Krypton Lumen "
        "Meridian Nimbus Onyx Pylon Quartz Radian Saffron Tundra"
    ),
    "hobby": _words(
        "archery baking canoeing chess climbing cricket cycling dancing falconry fencing fishing "
        "gardening hiking juggling karate knitting origami rowing sailing skating skiing surfing "
        "swimming tennis yoga"
    ),
}
"""The values that each attribute of a person can take."""

PHRASINGS: dict[str, tuple[str, ...]] = {
    "born": (
        "{n} was born in {v}.",
        "The year of {n}'s birth is {v}.",
        "{n} came into the world in {v}.",
        "The birth of {n} fell in {v}.",
        "{n}'s life began in {v}.",
        "{n} first saw the light of day in {v}.",
    ),
    "city": (
        "{n} lives in {v}.",
        "The home of {n} is in {v}.",
        "{n} has a house in {v}.",
        "The town where {n} lives is {v}.",
        "{n} settled down in {v}.",
        "{n} makes a home in {v}.",
    ),
    "job": (
        "{n} works as a {v}.",
        "The profession of {n} is that of a {v}.",
        "{n} earns a living as a {v}.",
        "{n} is by trade a {v}.",
        "{n} makes money as a {v}.",
        "{n} became a {v}.",
    ),
    "school": (
        "{n} studied at {v} College.",
        "The degree of {n} is from {v} College.",
        "{n} went to {v} College.",
        "{n} is a graduate of {v} College.",
        "{n} was taught at {v} College.",
        "{n} took classes at {v} College.",
    ),
    "firm": (
        "{n} is employed by {v} Works.",
        "The employer of {n} is {v} Works.",
        "{n} has a post at {v} Works.",
        "{n} is on the staff of {v} Works.",
        "{n} signed on with {v} Works.",
        "{n} was hired by {v} Works.",
    ),
    "hobby": (
        "{n} spends weekends on {v}.",
        "The favourite pastime of {n} is {v}.",
        "{n} is fond of {v}.",
        "{n} likes nothing more than {v}.",
        "{n} relaxes with {v}.",
        "{n} has a passion for {v}.",
    ),
}
"""The ways in which each attribute can be told; {n} is the name, {v} the value."""

MAX_PHRASINGS = len(PHRASINGS["born"]) - 1

ASKED: dict[str, str] = {
    "born": "In which year was {n} born?",
    "city": "In which town does {n} live?",
    "job": "What is the profession of {n}?",
    "school": "At which college did {n} study?",
    "firm": "Which firm employs {n}?",
    "hobby": "Which pastime does {n} like best?",
}
"""How each attribute is asked for in words."""

OPTIONS = 4
"""Options of a question."""

QUESTIONS = 4
"""Questions on a worksheet."""

GROUP = 8
"""People whose worksheets are mixed: few, so that facts and worksheets stand close together."""


@dataclasses.dataclass(frozen=True, slots=True)
class Person:
    """A synthetic person.

    Attributes:
        name: First and last name, different for every person of a seed.
        facts: Attribute to value, in the order of `VALUES`.
    """

    name: str
    facts: dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """How a person's facts are told and asked for.

    Attributes:
        person: Whose they are.
        ways: Of each attribute the phrasings that the biographies use, and one more to ask in.
        biographies: All facts, once in each of these phrasings.
        questions: One on each attribute, located in line 1.
    """

    person: Person
    ways: Mapping[str, Sequence[int]]
    biographies: tuple[str, ...]
    questions: Mapping[str, Question]


def told(
    n_people: int, seed: int, phrasings: int, *, start: int = 0, asked: int = -1
) -> Iterator[Told]:
    """Each person's facts in words; `asked` is the place of the phrasing in which to ask."""
    for index, person in zip(range(start, start + n_people), people(seed, start), strict=False):
        rng = random.Random(f"fortifai bios text {seed} {index}")
        ways = {a: rng.sample(range(len(p)), phrasings + 1) for a, p in PHRASINGS.items()}
        texts = []
        for version in range(phrasings):
            order = rng.sample(list(PHRASINGS), len(PHRASINGS))
            texts.append(" ".join(tell(person, a, ways[a][version]) for a in order))
        questions = {a: _question(person, a, ways[a][asked], rng) for a in PHRASINGS}
        yield Told(person, ways, tuple(texts), questions)


def people(seed: int, start: int = 0) -> Iterator[Person]:
    """Person `start`, `start` + 1, ... of a seed, without end."""
    index = start
    while True:
        rng = random.Random(f"fortifai bios {seed} {index}")
        facts = {attribute: rng.choice(values) for attribute, values in VALUES.items()}
        yield Person(_name(rng, index), facts)
        index += 1


def _name(rng: random.Random, index: int) -> str:
    """A name that no other index gives: its last name spells the index."""
    first = f"{rng.choice(_ONSETS)}{rng.choice(_VOWELS)}{rng.choice(_CODAS)}{rng.choice(_VOWELS)}"
    syllables = []
    # onset and vowel are the digits of the index in base 140, so that names never repeat
    while True:
        index, digit = divmod(index, len(_ONSETS) * len(_VOWELS))
        syllables.append(_ONSETS[digit // len(_VOWELS)] + _VOWELS[digit % len(_VOWELS)])
        if index == 0:
            break
    return f"{first.capitalize()} {''.join(syllables).capitalize()}{rng.choice(_ENDINGS)}"


def bios(
    n_people: int,
    seed: int,
    *,
    phrasings: int = 3,
    question_phrasing: Literal["unseen", "seen"] = "unseen",
    start: int = 0,
    exam: int = 0,
) -> tuple[Corpus, list[Question]]:
    """Biographies of people and one question on each of their facts.

    A question's context ends where the value begins, and its continuations differ in the value
    alone. The false value is drawn as other people's are, evenly from all but the true one, so that
    a model that knows nothing of the person is right half of the time.

    Args:
        n_people: How many, 1 or more.
        seed: Of everything.
        phrasings: How many times each person's biography is written, 1 to 5; the documents of one
            person stand one after the other, and are numbered as the lines of the corpus.
        question_phrasing: Ask in a phrasing that none of the person's biographies used, or in that
            of the first.
        start: The first person.
        exam: Rounds of worksheets after the biographies of each eight people. In a round each fact
            is asked for twice in letters, each time with other options, and once in words.

    Returns:
        The corpus, and six questions a person; their location is the person's first biography.

    Raises:
        InputError: An argument is out of range.
    """
    check(n_people, phrasings, exam)
    documents: list[Document] = []
    questions: list[Question] = []

    def add(text: str, title: str = "") -> None:
        documents.append(Document(text, title, len(documents) + 1, row=True))

    asked = -1 if question_phrasing == "unseen" else 0
    everyone = told(n_people, seed, phrasings, start=start, asked=asked)
    for first in range(start, start + n_people, GROUP):
        group = list(itertools.islice(everyone, GROUP))
        for each in group:
            line = len(documents) + 1
            for text in each.biographies:
                add(text, each.person.name)
            questions += [dataclasses.replace(q, location=line) for q in each.questions.values()]
        key = f"{seed} {first + len(group) - 1}"
        for text in worksheets([each.person for each in group], tuple(PHRASINGS), exam, key):
            add(text)
    return Corpus(tuple(documents), "bios", len(documents)), questions


def check(n_people: int, phrasings: int, exam: int) -> None:
    """Refuse impossible sizes.

    Raises:
        InputError: One is out of range.
    """
    if n_people < 1:
        raise InputError(f"bios of {n_people} people; it must be 1 or more")
    if not 1 <= phrasings <= MAX_PHRASINGS:
        raise InputError(f"phrasings is {phrasings}; it must lie in [1, {MAX_PHRASINGS}]")
    if exam < 0:
        raise InputError(f"exam is {exam}; it must be 0 or more")


# --- exams ------------------------------------------------------------------------------------


def items(n_people: int, seed: int, *, phrasings: int = 3) -> dict[str, Item]:
    """A question with four options on each fact: what a model is examined with.

    The stem is the beginning of a sentence of the person's first biography (that a fact is known
    in other words too is what Knowledge Retention questions ask); the false options are drawn
    evenly from the attribute's other values. Options and their order are drawn anew, apart from
    those of the worksheets.

    Args:
        n_people: How many people.
        seed: As in `bios`.
        phrasings: As in `bios`.

    Returns:
        Each by the id of the Knowledge Retention question on its fact, in their order.
    """
    out = {}
    for index, each in enumerate(told(n_people, seed, phrasings)):
        rng = random.Random(f"fortifai bios exam {seed} {index}")
        for a in PHRASINGS:
            out[each.questions[a].id] = _item(each.person, a, each.ways[a][0], rng)
    return out


def check_attributes(names: Sequence[str]) -> tuple[str, ...]:
    """The names, if all of them are attributes of people.

    Raises:
        InputError: One is not.
    """
    for name in names:
        if name not in VALUES:
            raise InputError(
                f"{name!r} is no attribute of bios{nearest(name, VALUES)}; there are "
                f"{', '.join(VALUES)}"
            )
    return tuple(names)


def _item(person: Person, attribute: str, way: int, rng: random.Random) -> Item:
    true = person.facts[attribute]
    false = rng.sample([v for v in VALUES[attribute] if v != true], OPTIONS - 1)
    options = rng.sample([true, *false], OPTIONS)
    return Item(
        question=ASKED[attribute].format(n=person.name),
        stem=_before(person, attribute, way),
        options=tuple(options),
        answer=options.index(true),
        subject=attribute,
        variants=VALUES[attribute],
    )


def worksheets(
    group: Sequence[Person], attributes: Sequence[str], rounds: int, key: str
) -> Iterator[str]:
    """Texts of answered questions: each fact twice a round in letters and once in words.

    `key` tells the random numbers of one group and text from those of others.
    """
    # twice in letters: that the letter depends on the options takes many options to learn
    kinds: tuple[Format, ...] = ("multiple_choice", "short_answer", "multiple_choice")
    for round_ in range(rounds):
        rng = random.Random(f"fortifai bios sheets {key} {round_}")
        for kind in kinds:
            facts = [(person, a) for person in group for a in attributes]
            rng.shuffle(facts)
            asked = [_item(person, a, 0, rng) for person, a in facts]
            for i in range(0, len(asked), QUESTIONS):
                yield worksheet(asked[i : i + QUESTIONS], kind)


def tell(person: Person, attribute: str, way: int) -> str:
    """One fact in one of its phrasings."""
    return PHRASINGS[attribute][way].format(n=person.name, v=person.facts[attribute])


def _question(person: Person, attribute: str, way: int, rng: random.Random) -> Question:
    true = person.facts[attribute]
    false = rng.choice([v for v in VALUES[attribute] if v != true])
    after = PHRASINGS[attribute][way].partition("{v}")[2]
    before = _before(person, attribute, way)
    return Question(before, true + after, false + after, 1, person.name)


def _before(person: Person, attribute: str, way: int) -> str:
    """A phrasing as far as its value."""
    phrase = PHRASINGS[attribute][way].replace("{n}", person.name)
    return phrase.partition("{v}")[0].strip()


# --- what a text says of people ---------------------------------------------------------------


def claims(text: str) -> Iterator[tuple[str, str, str]]:
    """What a text says of people: name, attribute and value, in the order of attributes.

    Only sentences in one of `PHRASINGS` whose value is one of `VALUES` count, whoever they name.
    """
    for attribute, pattern in _patterns().items():
        for found in pattern.finditer(text):
            # one name and one value matched: those of the phrasing that is there
            told = {key[0]: said for key, said in found.groupdict().items() if said is not None}
            yield told["n"], attribute, told["v"]


@functools.cache
def _patterns() -> dict[str, re.Pattern[str]]:
    """For each attribute, its phrasings with any name and any of its values."""
    out = {}
    for attribute, phrasings in PHRASINGS.items():
        values = "|".join(sorted(map(re.escape, VALUES[attribute]), key=len, reverse=True))
        ways = []
        for i, phrasing in enumerate(phrasings):
            before, _, rest = phrasing.partition("{n}")
            middle, _, after = rest.partition("{v}")
            name, value = rf"(?P<n{i}>[A-Z]\w+ [A-Z]\w+)", rf"(?P<v{i}>{values})"
            parts = (re.escape(before), name, re.escape(middle), value, re.escape(after))
            ways.append("".join(parts))
        out[attribute] = re.compile("|".join(ways))
    return out


def known_facts(n_people: int, seed: int) -> dict[str, Mapping[str, str]]:
    """Name to attribute to value, of the people of a corpus."""
    return {p.name: p.facts for _, p in zip(range(n_people), people(seed), strict=False)}
