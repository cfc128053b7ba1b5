"""A corpus as paragraphs and sentences that know which line they stand on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from fortifai.data.text import Corpus, Document

# WikiText writes 3,500 as "3 @,@ 500" and well-known as "well @-@ known"
# ruff: noqa: RUF001 - typographic quotes and dashes are meant
_TOKEN = re.compile(
    r"(?P<number>\d+(?:(?:\ @[.,]@\ |[.,])\d+)*(?:st|nd|rd|th|s)?\b)"
    r"|(?P<word>(?:[^\W\d_]\.){2,}|[^\W\d_]+(?:['’-][^\W\d_]+)*\.?|['’]s\b)"
    r"|(?P<mark>@-@|\.\.\.|[^\w\s])",
    re.VERBOSE,
)
HEADING = re.compile(r"^ ?=.*= ?$")
# a full stop behind these ends no sentence
_ABBREVIATION = re.compile(
    r"^(?:[^\W\d_]|(?:[^\W\d_]\.)+[^\W\d_]?|Mr|Mrs|Ms|Dr|St|Jr|Sr|Prof|Gen|Col|Lt|Sgt|Capt|Maj|Rev"
    r"|Hon|Gov|Sen|Rep|Mt|Ft|No|Nos|vs|v|c|ca|cf|ed|eds|pp|p|vol|etc|al|Inc|Ltd|Co|Corp|Bros|fl"
    r"|approx|Jan|Feb|Mar|Apr|Aug|Sept|Sep|Oct|Nov|Dec)$"
)
MIN_WORDS = 20
"""Of a paragraph."""

_CLOSING = "\"”’')]"


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """A word, number or mark.

    Attributes:
        text: As it stands.
        start: Offset in the sentence.
        end: Offset behind it.
    """

    text: str
    start: int
    end: int

    @property
    def capital(self) -> bool:
        """Whether it begins with a capital letter."""
        return self.text[0].isupper()

    @property
    def word(self) -> bool:
        """Whether it is a word or a number, not a mark."""
        return self.text[0].isalnum()


@dataclasses.dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a paragraph, as it stands, and its tokens."""

    text: str
    tokens: tuple[Token, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Paragraph:
    """A line of running text.

    Attributes:
        text: The line, without white space around it.
        line: Its number in the corpus (1-based), what a question's ``location`` says.
        document: Index of its document.
        title: Of its document.
        sentences: Its sentences.
    """

    text: str
    line: int
    document: int
    title: str
    sentences: tuple[Sentence, ...]


def tokens(text: str) -> tuple[Token, ...]:
    """Words, numbers and marks of a text; a full stop that ends a word is a token of its own."""
    out = []
    for found in _TOKEN.finditer(text):
        word, start, end = found.group(), found.start(), found.end()
        stopped = found.lastgroup == "word" and word[-1] == "." and "." not in word[:-1]
        if stopped and not _ABBREVIATION.match(word[:-1]):
            out += [Token(word[:-1], start, end - 1), Token(".", end - 1, end)]
        else:
            out.append(Token(word, start, end))
    return tuple(out)


def sentences(text: str) -> tuple[Sentence, ...]:
    """Cut a paragraph where a sentence ends: never within quotes or brackets."""
    out: list[Sentence] = []
    all_tokens = tokens(text)
    begin, first, depth, quoted = 0, 0, 0, False
    for i, token in enumerate(all_tokens):
        if token.text in "([":
            depth += 1
        elif token.text in ")]":
            depth = max(0, depth - 1)
        elif token.text in '"“”':
            quoted = token.text == "“" or (token.text == '"' and not quoted)
        if depth or quoted or not _ends(all_tokens, i):
            continue
        out.append(_sentence(text, all_tokens[first : i + 1], begin, token.end))
        begin, first = token.end, i + 1
    if first < len(all_tokens):
        out.append(_sentence(text, all_tokens[first:], begin, len(text)))
    return tuple(out)


def _ends(all_tokens: tuple[Token, ...], i: int) -> bool:
    """Whether token `i` is the last one of a sentence."""
    stop = i
    while stop > 0 and all_tokens[stop].text in _CLOSING:
        stop -= 1
    if all_tokens[stop].text not in (".", "!", "?"):
        return False
    if i + 1 == len(all_tokens):
        return True
    after = all_tokens[i + 1]
    # white space, then what can begin a sentence
    begins = after.capital or after.text[0].isdigit() or after.text in '"“(['
    return begins and after.start > all_tokens[i].end


def _sentence(text: str, part: tuple[Token, ...], begin: int, end: int) -> Sentence:
    raw = text[begin:end]
    shift = begin + len(raw) - len(raw.lstrip())
    moved = tuple(Token(t.text, t.start - shift, t.end - shift) for t in part)
    return Sentence(raw.strip(), moved)


def paragraphs(corpus: Corpus) -> Iterator[Paragraph]:
    """The paragraphs of a corpus that have at least 20 words, in order.

    Headings are no paragraphs. All lines of a row (of .jsonl or .parquet) have the row's number.
    """
    for index, document in enumerate(corpus.documents):
        for line, text in _lines(document):
            if len(text.split()) >= MIN_WORDS and not HEADING.match(text):
                yield Paragraph(text, line, index, document.title, sentences(text))


def _lines(document: Document) -> Iterator[tuple[int, str]]:
    for offset, text in enumerate(document.text.split("\n")):
        yield document.line + (0 if document.row else offset), text.strip()
