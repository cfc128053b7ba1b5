"""Finding what can be swapped in a sentence: names, places, years, dates and numbers, by rules.

Each value has a `kind`, and a `slot` that says what it can be exchanged for: two values of one slot
are of the same type, number, gender and form, and stand in the same grammatical place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from fortifai.questions import vocabulary as v
from fortifai.questions.passages import Sentence, Token

Kind = Literal["person", "place", "name", "nation", "title", "date", "year", "number", "ordinal"]
KINDS: tuple[Kind, ...] = (
    "person",
    "place",
    "name",
    "nation",
    "title",
    "date",
    "number",
    "ordinal",
    "year",
)
"""From the rarest to the commonest, the order in which questions are made."""

# ruff: noqa: RUF001 - typographic quotes and dashes are meant
_VOWELS = frozenset("aeiouAEIOU")
_IN_TIME = v.words("in since until during around")
_OPEN = v.words("by before after past beyond")  # what is true by 1946 is true by 1949
_SEASONS = v.words("spring summer autumn fall winter early late mid")
_MARKS = v.words("– — - / @-@ @/@ $ £ € # . @.@ @,@")
_LINKS = v.words("to and or through until")
_DEFINITE = v.words(
    "the these those his her its their both all other another last first next final top only "
    "same over within than least most under nearly almost my our your No Nos. No. no chapter "
    "section part volume number act page grade class"
)
_PLACE_BEFORE = v.words(
    "in to from of at near across through into throughout with against for around outside "
    "visited left reached toward towards via"
)
_TITLED = v.words(
    "called titled entitled named renamed nicknamed dubbed song songs single singles track "
    "episode episodes album book poem story novel essay play film movie character ship name words "
    "title article series painting chapter"
)
_PLACE_AFTER = v.words(
    "in on at from to and or for with by as during after before where when who which that was were "
    "is are had has would until since under against because while but through via over into around "
    "about between within without he she they it"
)
_NO_PLURAL = v.words(
    "as is was has this its his thus us always perhaps besides unless across towards whereas "
    "afterwards sometimes minus plus versus times"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """A part of a sentence that could say something else.

    Attributes:
        kind: What it is.
        slot: Values with equal slots can take each other's place.
        start: Offset in the sentence.
        end: Offset behind it.
        text: As it stands.
        size: Its date (year, month, day; 0 where not said), year or number; empty for names.
    """

    kind: Kind
    slot: tuple[str, ...]
    start: int
    end: int
    text: str
    size: tuple[float, ...] = ()


def find_values(sentence: Sentence) -> list[Value]:
    """The values of a sentence that the rules are sure of, from left to right, none overlapping."""
    t = sentence.tokens
    found: list[Value] = []
    taken = 0  # offset behind the last value
    for value in sorted(_all(sentence, t), key=lambda x: (x.start, -x.end)):
        if value.start >= taken:
            found.append(value)
            taken = value.end
    return found


def _all(sentence: Sentence, t: Sequence[Token]) -> Iterator[Value]:
    dated = list(_dates(sentence, t))
    yield from dated
    for i in range(len(t)):
        if any(d.start <= t[i].start < d.end for d in dated):
            continue
        yield from _year(t, i)
        yield from _number(t, i)
        yield from _ordinal(t, i)
        yield from _nation(t, i)
    for i, j in _name_spans(t):
        yield from _named(sentence, t, i, j)
    yield from _quoted(sentence, t)


def _text(t: Sequence[Token], i: int) -> str:
    return t[i].text if 0 <= i < len(t) else ""


def _ranged(t: Sequence[Token], first: int, last: int) -> bool:
    """Whether tokens `first` to `last` are one end of a range, "5 – 10" or "from 1914 to 1918"."""
    before, after = _text(t, first - 1), _text(t, last + 1)
    return (
        before in _MARKS
        or after in _MARKS - {"."}
        or before == "between"
        or (before in _LINKS and _sized(_text(t, first - 2)))
        or (after in _LINKS and _sized(_text(t, last + 2)))
    )


def _sized(text: str) -> bool:
    return text[:1].isdigit() or text in v.MONTHS or text in v.NUMBER_WORDS


def _article(t: Sequence[Token], i: int) -> str:
    """What ``a`` or ``an`` before token `i` demands of it."""
    if _text(t, i - 1).lower() not in ("a", "an"):
        return ""
    return "vowel" if t[i].text[0] in _VOWELS else "consonant"


# --- time -------------------------------------------------------------------------------------


def is_year(text: str) -> bool:
    """Whether a word is a year of a text: 1000 to 2030."""
    return len(text) == 4 and text.isdigit() and 1000 <= int(text) <= 2030


def _year(t: Sequence[Token], i: int) -> Iterator[Value]:
    if not is_year(t[i].text):
        return
    before, after = _text(t, i - 1).lower(), _text(t, i + 1)
    if before not in _IN_TIME | _SEASONS or _ranged(t, i, i) or after == "(":
        return
    if after and after[0].isalpha() and after.endswith("s") and after not in _NO_PLURAL:
        return  # "in 1500 houses", "the 1998 elections"
    if after[:1].isupper() and i != 1:
        return  # "in 1964 Summer Olympics": there were none in 1965
    yield Value("year", ("year",), t[i].start, t[i].end, t[i].text, (float(t[i].text),))


def _dates(sentence: Sentence, t: Sequence[Token]) -> Iterator[Value]:
    """``May 5 , 1990``, ``May 5``, ``5 May 1990``, ``5 May``, ``May 1990`` and ``in May``."""
    for i, token in enumerate(t):
        month = v.MONTHS.get(token.text)
        if month is None:
            continue
        first, last, form, day, year = i, i, "", 0, 0
        if i and _is_day(_text(t, i - 1)):
            first, form, day = i - 1, "D ", int(t[i - 1].text)
        form += "M"
        if not day and _is_day(_text(t, i + 1)):
            last, form, day = i + 1, form + " D", int(t[i + 1].text)
        if day and form == "M D" and _text(t, last + 1) == "," and is_year(_text(t, last + 2)):
            last, form, year = last + 2, form + ", Y", int(t[last + 2].text)
        elif form != "M D" and is_year(_text(t, last + 1)):
            last, form, year = last + 1, form + " Y", int(t[last + 1].text)
        if form == "M" and _text(t, i - 1).lower() not in _IN_TIME | _SEASONS | {"mid"}:
            continue  # a verb, a woman, or part of something else
        if _ranged(t, first, last) or _text(t, first - 1).lower() in _OPEN:
            continue
        if _text(t, last + 1).startswith(("'", "’")):
            continue
        start, end = t[first].start, t[last].end
        size = (float(year), float(month), float(day))
        yield Value("date", ("date", form), start, end, sentence.text[start:end], size)


def _is_day(text: str) -> bool:
    return text.isdigit() and len(text) <= 2 and 1 <= int(text) <= 31


# --- numbers ----------------------------------------------------------------------------------


def _number(t: Sequence[Token], i: int) -> Iterator[Value]:
    unit = _text(t, i + 1)
    plain = t[i].text.replace(" @,@ ", "").replace(",", "").replace(" @.@ ", ".")
    word = v.NUMBER_WORDS.get(t[i].text)
    try:
        size = float(word) if word else float(plain)
    except ValueError:
        return
    if not (t[i].text[0].isdigit() or word) or size < 2 or not _counted(unit):
        return
    if _ranged(t, i, i) or _text(t, i - 1).lower() in _DEFINITE or _text(t, i - 2) == "up":
        return
    if i > 1 and t[i - 1].capital:
        return  # "NY 93 splits"
    if _near_conversion(t, i):
        return
    if _text(t, i + 2) in ("and", "or", "@-@", "–", "-", "of") and size < 5:
        return  # "two sons and two daughters": its parts are named
    if word and word < 5 and any(x.text in ("and", ":", ";", "one") for x in t[i + 2 :]):
        return  # "two films, A and B": counting tells
    form = "word" if word else _digits(t[i].text)
    yield Value("number", (form, unit), t[i].start, t[i].end, t[i].text, (size,))


def _counted(unit: str) -> bool:
    if unit in v.COUNTED:
        return True
    plural = unit.isalpha() and unit.islower() and len(unit) > 3 and unit.endswith("s")
    return plural and not unit.endswith(("ss", "us", "is")) and unit not in _NO_PLURAL


def _digits(text: str) -> str:
    """The form of a number, such as ``0,000``: equal forms have equal lengths."""
    return "".join("0" if c.isdigit() else c for c in text)


def _near_conversion(t: Sequence[Token], i: int) -> bool:
    """Whether a bracket says the same in other units, "5 miles ( 8 km )", or holds this number."""
    near = [x.text for x in t[i + 1 : i + 6]]
    if "(" in near:
        return True
    opened = [x.text for x in t[:i] if x.text in ("(", ")")]
    return bool(opened) and opened[-1] == "("


def _ordinal(t: Sequence[Token], i: int) -> Iterator[Value]:
    size, noun = v.ORDINALS.get(t[i].text), _text(t, i + 1)
    if size is None or not (noun.isalpha() and noun.islower() and len(noun) > 3):
        return
    before = _text(t, i - 1).lower()
    if before not in ("his", "her", "its", "their", "the", "a", "an", "in") or noun == "half":
        return
    if noun in ("largest", "time", "most", "best", "highest", "only", "half", "millennium"):
        return
    yield Value("ordinal", (noun, _article(t, i)), t[i].start, t[i].end, t[i].text, (float(size),))


# --- names ------------------------------------------------------------------------------------


def _nation(t: Sequence[Token], i: int) -> Iterator[Value]:
    after = _text(t, i + 1)
    if i == 0 or t[i].text not in v.NATIONS or not (after.isalpha() and after.islower()):
        return
    if _text(t, i - 1) in ("and", "or", "@-@", "-", ",", "/") or _text(t, i - 1)[:1].isupper():
        return
    if after in ("and", "or") or (after in ("in", "of") and _text(t, i - 1).lower() != "the"):
        return
    # a people, "the British had", or an adjective, "a British film"
    noun = after if after in ("in", "as", "had", "were") else ""
    slot = (v.NATIONS[t[i].text], noun, _article(t, i))
    yield Value("nation", slot, t[i].start, t[i].end, t[i].text)


def _name_spans(t: Sequence[Token]) -> Iterator[tuple[int, int]]:
    """Runs [i, j) of capitalised words, links such as ``of`` between them included.

    A run that begins the sentence is left out: there every word has a capital.
    """
    i = 0
    while i < len(t):
        if not _capital(t[i]):
            i += 1
            continue
        j = i + 1
        while j < len(t):
            linked = t[j].text in v.NAME_LINKS and j + 1 < len(t) and _capital(t[j + 1])
            if not (_capital(t[j]) or linked):
                break
            j += 2 if linked else 1
        if i > 0 and t[i - 1].text.isalpha() and t[i - 1].text.islower():
            yield i, j
        i = j


def _capital(token: Token) -> bool:
    return token.capital and token.text not in ("I",) and token.text not in v.MONTHS


def _named(sentence: Sentence, t: Sequence[Token], i: int, j: int) -> Iterator[Value]:
    if _text(t, j) in ("@-@", "&", "/", "’", "'") or _text(t, i - 1) in ("@-@", "&", "/"):
        return
    if t[j - 1].text.endswith(("'s", "’s")) or _text(t, j)[:1].isdigit():
        return
    if _text(t, j) == "," and _text(t, j + 1) in ("Jr.", "Sr.", "Inc.", "Ltd."):
        return
    begin = i
    while begin < j - 2 and t[begin].text in v.TITLES:
        begin += 1
    words = [x.text for x in t[begin:j]]
    text = sentence.text[t[begin].start : t[j - 1].end]
    span = (t[begin].start, t[j - 1].end, text)
    named = _person(words) or _headed(t, begin, words)
    if named:
        yield Value(named[0], named[1], *span)
    elif (slot := _place(text)) and begin == i and _text(t, i - 1) in _PLACE_BEFORE:
        if _text(t, j) in (",", "(") and _text(t, j + 1)[:1].isupper():
            return  # "Plymouth , England": the country tells
        if _text(t, j).isalpha() and _text(t, j) not in _PLACE_AFTER:
            return  # "of Portland stone" is no place
        yield Value("place", slot, *span)


def _person(words: Sequence[str]) -> tuple[Kind, tuple[str, ...]] | None:
    if not 2 <= len(words) <= 3 or any(w in v.NAME_LINKS or w in v.HEADS for w in words):
        return None
    if len(words[-1]) < 3 or not words[-1][1:3].islower():
        return None  # "Mark VIc", "John F."
    men, women = words[0] in v.MEN, words[0] in v.WOMEN
    if men == women or _place(words[-1]) or words[-1] in v.NATIONS:
        return None
    return "person", ("man" if men else "woman", str(len(words)))


def _headed(
    t: Sequence[Token], begin: int, words: Sequence[str]
) -> tuple[Kind, tuple[str, ...]] | None:
    """A name whose first or last word says what it names; and whether ``the`` stands before it."""
    before = _text(t, begin - 1).lower()
    determined = before if before in ("the", "a", "an") else ""
    article = _article(t, begin)
    if len(words) == 3 and words[0] in v.OF_HEADS and words[1] == "of":
        return "name", (f"{words[0]} of", determined, article)
    if 2 <= len(words) <= 4 and words[-1] in v.HEADS and "of" not in words:
        if words[0] in v.NATIONS or words[0] in v.MEN | v.WOMEN | {"The", "National", "World"}:
            return None  # a person, or words that say nothing of their own
        return "name", (words[-1], determined, article)
    return None


def _place(text: str) -> tuple[str, ...]:
    """Kind and region of a place, empty for what is none."""
    return next(((kind, names[text]) for kind, names in v.PLACES.items() if text in names), ())


def _quoted(sentence: Sentence, t: Sequence[Token]) -> Iterator[Value]:
    """Quoted titles and parts, ``the song " Gone "``: all their longer words have capitals."""
    marks = [i for i, token in enumerate(t) if token.text in '"“”']
    for i, j in zip(marks[::2], marks[1::2], strict=False):
        inside, before = t[i + 1 : j], _text(t, i - 1)
        if not 1 <= len(inside) <= 5 or not (before.isalpha() and before.islower()):
            continue
        if not all(x.word and (x.capital or len(x.text) < 4) for x in inside):
            continue
        if not inside[0].capital or before not in _TITLED or sum(len(x.text) for x in inside) < 4:
            continue
        start, end = inside[0].start, inside[-1].end
        yield Value("title", (before,), start, end, sentence.text[start:end])
