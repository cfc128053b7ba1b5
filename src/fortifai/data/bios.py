"""`bios`: short biographies of invented people, whose facts are known exactly.

Person i of a seed is the same however many are drawn, so the corpus can be made any size. Every
fact can be told in six ways; each biography is written several times, each time with other
phrasings in another order, and questions are put in a phrasing that none of a person's biographies
used: a model that has only memorised word for word does not pass them.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Literal

from fortifai.data.questions import Question
from fortifai.data.text import Corpus, Document
from fortifai.errors import InputError


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


@dataclasses.dataclass(frozen=True, slots=True)
class Person:
    """An invented person.

    Attributes:
        name: First and last name, different for every person of a seed.
        facts: Attribute to value, in the order of `VALUES`.
    """

    name: str
    facts: dict[str, str]


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

    Returns:
        The corpus, and six questions a person; their location is the person's first biography.

    Raises:
        InputError: An argument is out of range.
    """
    if n_people < 1:
        raise InputError(f"bios of {n_people} people; it must be 1 or more")
    if not 1 <= phrasings <= MAX_PHRASINGS:
        raise InputError(f"phrasings is {phrasings}; it must lie in [1, {MAX_PHRASINGS}]")
    asked = -1 if question_phrasing == "unseen" else 0
    documents: list[Document] = []
    questions: list[Question] = []
    for index, person in zip(range(start, start + n_people), people(seed, start), strict=False):
        rng = random.Random(f"fortifai bios text {seed} {index}")
        line = len(documents) + 1
        ways = {a: rng.sample(range(len(p)), phrasings + 1) for a, p in PHRASINGS.items()}
        for version in range(phrasings):
            order = rng.sample(list(PHRASINGS), len(PHRASINGS))
            told = " ".join(_tell(person, a, ways[a][version]) for a in order)
            documents.append(Document(told, person.name, len(documents) + 1, row=True))
        for attribute in PHRASINGS:
            questions.append(_question(person, attribute, ways[attribute][asked], line, rng))
    return Corpus(tuple(documents), "bios", len(documents)), questions


def _tell(person: Person, attribute: str, way: int) -> str:
    return PHRASINGS[attribute][way].format(n=person.name, v=person.facts[attribute])


def _question(person: Person, attribute: str, way: int, line: int, rng: random.Random) -> Question:
    true = person.facts[attribute]
    false = rng.choice([v for v in VALUES[attribute] if v != true])
    phrase = PHRASINGS[attribute][way].replace("{n}", person.name)
    before, after = phrase.split("{v}")
    return Question(before.strip(), true + after, false + after, line, person.name)
