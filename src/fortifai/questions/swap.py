"""The writer `swap`: true and false sentences from a corpus alone, by exchanging values in pairs.

If the value *a* of one sentence is replaced by *b* of another, then *b* of that one is replaced by
*a*. So over all questions every value is as often true as false, and whatever looks at values
alone (their length, frequency, spelling) answers exactly half of the questions rightly.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import random
from collections.abc import Iterable, Sequence

from fortifai.data.questions import Question
from fortifai.data.text import Corpus
from fortifai.errors import InputError
from fortifai.questions.passages import Paragraph, Sentence, paragraphs, tokens
from fortifai.questions.values import KINDS, Kind, Value, find_values, is_year
from fortifai.questions.vocabulary import DAYS, MONTHS, NATIONS, PLACES

MAX_WORDS = 45
MIN_WORDS = 8
_PER_SENTENCE = 2
_PER_VALUE = 2
_TRIED = 400
"""Most partners that are looked at for one value, so that time grows with the corpus, not with
its square."""
_YEARS_APART = 12
_DAYS_APART = 62
_NUMBERS_APART = math.log(2)
_TIME: tuple[Kind, ...] = ("date", "year")
_SIZED: tuple[Kind, ...] = ("date", "year", "number", "ordinal")


@dataclasses.dataclass(frozen=True)
class Swapped:
    """What a writer made.

    Attributes:
        questions: In the order of the text.
        kinds: Number of questions by kind of value.
        paragraphs: Number of paragraphs of the corpus.
        asked: Number of those that have a question.
    """

    questions: tuple[Question, ...]
    kinds: dict[str, int]
    paragraphs: int
    asked: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Fact:
    """A value in its sentence, and all that decides what may take its place."""

    value: Value
    sentence: Sentence
    paragraph: Paragraph
    place: tuple[int, int]  # paragraph, sentence
    context: str
    near: frozenset[str]  # words of the sentence and its context
    anchors: frozenset[str]  # names and numbers of the sentence, without the value and the title
    times: tuple[tuple[float, ...], ...]  # the other dates of the sentence and its context
    before: str
    after: str


def write(corpus: Corpus, *, per_paragraph: int = 5, seed: int = 0) -> Swapped:
    """Make questions by swapping values between sentences of the corpus.

    A question's context is the sentence before, with the document's title in front where neither
    names its subject; for a paragraph's first sentence it is the title. Neither value stands in the
    context, the false one nowhere in the paragraph.

    Args:
        corpus: The text that a model will be trained on.
        per_paragraph: Most questions of one paragraph.
        seed: Another one gives another choice; the same gives the same questions, byte for byte.

    Raises:
        InputError: The corpus has no paragraph, or not a single pair to swap.
    """
    found = list(paragraphs(corpus))
    if not found:
        raise InputError(
            f"{corpus.source} has no paragraph of 20 words or more; questions need running text, "
            "one paragraph a line"
        )
    corpus_words = _Words(found)
    facts = [
        fact
        for i, paragraph in enumerate(found)
        for fact in _facts(paragraph, i)
        if not corpus_words.common(fact.value)
    ]
    pairs = _pair(facts, corpus_words, per_paragraph, random.Random(seed))
    if not pairs:
        raise InputError(
            f"{corpus.source} has {len(facts)} names, numbers, dates and places that the rules of "
            "swap know, and no two of one kind to exchange; give a longer text, or use the writer "
            "llm"
        )
    both = [*pairs, *((b, a) for a, b in pairs)]
    both.sort(key=lambda pair: (pair[0].place, pair[0].value.start))
    kinds = collections.Counter(fact.value.kind for fact, _ in both)
    return Swapped(
        questions=tuple(_question(fact, other.value.text) for fact, other in both),
        kinds={kind: kinds[kind] for kind in KINDS if kinds[kind]},
        paragraphs=len(found),
        asked=len({fact.place[0] for fact, _ in both}),
    )


def _question(fact: _Fact, false: str) -> Question:
    text, value = fact.sentence.text, fact.value
    return Question(
        context=fact.context,
        true=text,
        false=text[: value.start] + false + text[value.end :],
        location=fact.paragraph.line,
        article=fact.paragraph.title,
    )


# --- facts ------------------------------------------------------------------------------------


def _facts(paragraph: Paragraph, number: int) -> list[_Fact]:
    """The values of a paragraph that can be asked for: not said elsewhere in it."""
    out = []
    before: Sentence | None = None
    everywhere = collections.Counter(t.text.lower() for s in paragraph.sentences for t in s.tokens)
    for k, sentence in enumerate(paragraph.sentences):
        context = _context(paragraph, before, sentence)
        if context and _fit(sentence):
            around = tokens(context)
            for value in find_values(sentence):
                if fact := _fact(paragraph, (number, k), sentence, context, around, value):
                    out.append(fact)
        before = sentence
    # a value that the paragraph says twice would be asked, and answered, twice
    return [f for f in out if _once(f.value, f.sentence, everywhere)]


def _once(value: Value, sentence: Sentence, everywhere: collections.Counter[str]) -> bool:
    inside = [word.lower() for word in _telling(value)]
    here = collections.Counter(t.text.lower() for t in sentence.tokens)
    if value.kind in ("number", "ordinal", "year", "nation"):
        return all(here[word] == 1 for word in inside)
    if value.kind == "date":
        return all(here[word] == 1 for word in inside if word.title() in MONTHS)
    return all(everywhere[word] == 1 for word in inside)


def _fit(sentence: Sentence) -> bool:
    words = sum(t.word for t in sentence.tokens)
    return MIN_WORDS <= words <= MAX_WORDS and _whole(sentence)


def _whole(sentence: Sentence) -> bool:
    """Whether it reads as one whole sentence, not as what a heading or a quotation cut off."""
    text = sentence.text
    return (text[0] in '"“' or (text[0].isupper() and sentence.tokens[0].word)) and (
        text[-1] in '.!?"”'
        and text.count('"') % 2 == 0
        and text.count("(") == text.count(")")
        and sum(t.text == "'" for t in sentence.tokens) % 2 == 0
        and not any(
            t.text == "." and after.text.islower()
            for t, after in itertools.pairwise(sentence.tokens)
        )
        and "http" not in text
        and "<unk>" not in text
    )


def _context(paragraph: Paragraph, before: Sentence | None, sentence: Sentence) -> str:
    title = paragraph.title.strip()
    if before is None:
        return title
    if not _whole(before) or len(before.tokens) > 2 * MAX_WORDS:
        return ""
    named = {t.text.lower() for t in tokens(title) if t.capital and len(t.text) > 2}
    said = {t.text.lower() for t in (*before.tokens, *sentence.tokens)}
    if not title or named & said:
        return before.text
    return (
        f"{title}{' :' if ' ,' in paragraph.text or ' .' in paragraph.text else ':'} {before.text}"
    )


def _fact(
    paragraph: Paragraph,
    place: tuple[int, int],
    sentence: Sentence,
    context: str,
    around: Sequence[object],
    value: Value,
) -> _Fact | None:
    t = sentence.tokens
    i = next(k for k, token in enumerate(t) if token.start >= value.start)
    j = next(k for k, token in enumerate(t) if token.end >= value.end) + 1
    context_words = {x.text.lower() for x in tokens(context)}
    title_words = {x.text.lower() for x in tokens(paragraph.title)}
    others = [x for k, x in enumerate(t) if not i <= k < j and k > 0]
    near = frozenset(context_words | {x.text.lower() for x in others} | title_words)
    if _hinted(value, near):
        return None
    anchors = {
        x.text
        for x in others
        if (x.capital or x.text[0].isdigit())
        and x.text.lower() not in title_words
        and x.text not in DAYS
        and len(x.text) > 1
    }
    return _Fact(
        value=value,
        sentence=sentence,
        paragraph=paragraph,
        place=place,
        context=context,
        near=near,
        anchors=frozenset(anchors),
        times=_times(context, sentence, value) if value.kind in _TIME else (),
        before=t[i - 1].text.lower() if i else "",
        after=t[j].text if j < len(t) else "",
    )


def _telling(value: Value) -> list[str]:
    """The words of a value that say which one it is: not "the", not the Road of "Park Road"."""
    head = value.slot[0].split() if value.kind == "name" else []
    return [
        t.text
        for t in tokens(value.text)
        if t.text not in head
        and (t.text[0].isdigit() or len(t.text) > 3 or (t.capital and len(t.text) > 1))
    ]


def _hinted(value: Value, near: frozenset[str]) -> bool:
    """Whether a word near a value tells of it: "Paisleyites" of Paisley, "French" of France."""
    for word in map(str.lower, _telling(value)):
        if word in near or (
            len(word) > 4
            and any(n.startswith(word) or word.startswith(n) for n in near if len(n) > 4)
        ):
            return True
    region = _REGIONS.get(value.text.lower())
    return region is not None and any(
        _REGIONS.get(word) == region and word[0] == value.text[0].lower() for word in near
    )


_REGIONS = {name.lower(): region for name, region in (PLACES["country"] | NATIONS).items()}


def _times(context: str, sentence: Sentence, value: Value) -> tuple[tuple[float, ...], ...]:
    """(year, month, day), 0 where not said, of every date in the context and the sentence."""
    out: list[tuple[float, ...]] = []
    text = sentence.text
    for part in (context, text[: value.start], text[value.end :]):
        words = [t.text for t in tokens(part)]
        for i, word in enumerate(words):
            month = float(MONTHS.get(word, 0))
            if month:
                days = [w for w in words[max(0, i - 1) : i + 2] if w.isdigit() and len(w) <= 2]
                out.append((0.0, month, float(days[0]) if days else 0.0))
            elif is_year(word):
                out.append((float(word), 0.0, 0.0))
    return tuple(out)


# --- pairs ------------------------------------------------------------------------------------


class _Words:
    """Which words stand where in the corpus."""

    def __init__(self, found: Sequence[Paragraph]) -> None:
        self.count: collections.Counter[str] = collections.Counter()
        self.in_paragraph: list[frozenset[str]] = []
        self.by_document: dict[int, list[int]] = collections.defaultdict(list)
        for i, paragraph in enumerate(found):
            words = [t.text for s in paragraph.sentences for t in s.tokens if t.word]
            self.count.update(words)
            self.in_paragraph.append(frozenset(words))
            self.by_document[paragraph.document].append(i)
        often = {w for w, _ in self.count.most_common(300)}
        self.topic = {
            document: frozenset(
                w
                for w, n in collections.Counter(
                    # sorted: the order of a set changes from run to run
                    w
                    for i in numbers
                    for w in sorted(self.in_paragraph[i])
                ).most_common(400)
                if w.islower() and w not in often and n > 1 and len(w) > 3
            )
            for document, numbers in self.by_document.items()
        }

    def common(self, value: Value) -> bool:
        """Whether a name is made of common words: "Football Stadium", where the text has football.

        Such a name is one of its place only.
        """
        words = _telling(value)
        return value.kind == "name" and all(
            self.count[word.lower()] > self.count[word] for word in words
        )

    def alike(self, one: int, other: int) -> float:
        """How much two documents speak of the same, from 0 to 1 (one document with itself)."""
        if one == other:
            return 1.0
        a, b = self.topic[one], self.topic[other]
        return len(a & b) / math.sqrt(len(a) * len(b)) if a and b else 0.0

    def said(self, fact: _Fact, false: Value) -> bool:
        """Whether the text may bear out the sentence with the false value.

        A number or date may stand elsewhere in the document; a name only where nothing else of
        what the sentence names stands in the same paragraph.
        """
        words = _telling(false)
        paragraph = self.in_paragraph[fact.place[0]]
        if not words or any(w in paragraph for w in words) or _hinted(false, fact.near):
            return True
        if false.kind in _SIZED:
            return False
        for i in self.by_document[fact.paragraph.document]:
            there = self.in_paragraph[i]
            if any(w in there for w in words) and (not fact.anchors or fact.anchors & there):
                return True
        return False


def _pair(
    facts: Sequence[_Fact], words: _Words, per_paragraph: int, rng: random.Random
) -> list[tuple[_Fact, _Fact]]:
    """Facts in pairs that exchange their values; greedy, the rarest kinds first."""
    slots: dict[tuple[str, ...], list[_Fact]] = collections.defaultdict(list)
    for fact in facts:
        slots[(fact.value.kind, *fact.value.slot)].append(fact)
    asked: collections.Counter[int] = collections.Counter()
    in_sentence: collections.Counter[tuple[int, int]] = collections.Counter()
    of_value: collections.Counter[tuple[int, str]] = collections.Counter()
    used: set[int] = set()

    def free(fact: _Fact) -> bool:
        return (
            id(fact) not in used
            and asked[fact.place[0]] < per_paragraph
            and in_sentence[fact.place] < _PER_SENTENCE
            and of_value[fact.paragraph.document, fact.value.text] < _PER_VALUE
        )

    pairs: list[tuple[_Fact, _Fact]] = []
    for kind in KINDS:
        for slot in sorted(s for s in slots if s[0] == kind):
            bucket = slots[slot]
            rng.shuffle(bucket)
            for i, fact in enumerate(bucket):
                if not free(fact):
                    continue
                others = itertools.islice((f for f in bucket[i + 1 :] if free(f)), _TRIED)
                best = _best(fact, others, words)
                if best is None:
                    continue
                pairs.append((fact, best))
                for one in (fact, best):
                    used.add(id(one))
                    asked[one.place[0]] += 1
                    in_sentence[one.place] += 1
                    of_value[one.paragraph.document, one.value.text] += 1
    return pairs


def _best(fact: _Fact, others: Iterable[_Fact], words: _Words) -> _Fact | None:
    scored = ((_cost(fact, other, words), other) for other in others)
    best, chosen = math.inf, None
    for cost, other in scored:
        if cost < best and not (words.said(fact, other.value) or words.said(other, fact.value)):
            best, chosen = cost, other
    return chosen


def _cost(a: _Fact, b: _Fact, words: _Words) -> float:
    """How badly two values fit into each other's place; infinite where they cannot stand there."""
    if a.place[0] == b.place[0] or a.value.text == b.value.text:
        return math.inf
    one, other = a.value.text, b.value.text
    far = _distance(a, b) if a.value.kind in _SIZED else 0.0
    if math.isinf(far):
        return far
    lengths = abs(len(one) - len(other))
    if lengths > 6 or abs(len(one.split()) - len(other.split())) > 1:
        return math.inf
    counts = [math.log1p(min(words.count[w] for w in x.split())) for x in (one, other)]
    return (
        far
        + lengths / 6
        + 0.5 * abs(len(one.split()) - len(other.split()))
        + 0.3 * abs(counts[0] - counts[1])
        + 0.3 * (a.before != b.before)
        + 0.1 * (a.after != b.after)
        + 2.0 * (1 - words.alike(a.paragraph.document, b.paragraph.document))
    )


def _distance(a: _Fact, b: _Fact) -> float:
    """How far two sizes are apart; infinite where the order of events would tell them apart."""
    x, y = a.value.size, b.value.size
    if a.value.kind == "year":
        near = abs(x[0] - y[0]) / _YEARS_APART
        kept = _keeps(a, (x[0], 0, 0), (y[0], 0, 0)) and _keeps(b, (y[0], 0, 0), (x[0], 0, 0))
        return near if near <= 1 and kept else math.inf
    if a.value.kind == "date":
        days = abs((x[1] - y[1]) * 30 + x[2] - y[2])
        near = min(days, 360 - days) / _DAYS_APART + abs(x[0] - y[0]) / _YEARS_APART
        kept = _keeps(a, x, y) and _keeps(b, y, x)
        return near if near <= 1 and kept else math.inf
    near = abs(math.log(x[0] / y[0])) / _NUMBERS_APART if x[0] and y[0] else math.inf
    return near if near <= 1 else math.inf


def _keeps(fact: _Fact, true: Sequence[float], false: Sequence[float]) -> bool:
    """Whether the false date stands to each date around as the true one does: before or after."""
    return all(_order(true, t) == _order(false, t) for t in fact.times)


def _order(one: Sequence[float], other: Sequence[float]) -> int:
    """-1, 0 or 1 as `one` is before, at or after `other`, by what both say."""
    for a, b in zip(one, other, strict=True):
        if a and b and a != b:
            return -1 if a < b else 1
    return 0
