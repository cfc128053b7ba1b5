"""Imagination of Web: ForTIFAI's composite of facts, common sense and arithmetic.

2509.08972, section 4.1.1 and its authors' code: the first half of WikiText-2's lines, HellaSwag
items (context and right ending) and GSM8K items (question and answer), newlines stripped, each of
the three cut in six, and the pieces interleaved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fortifai.data.text import Corpus, Document
from fortifai.errors import InputError, nearest
from fortifai.file_formats import expand, hub_rows, read_rows

HELLASWAG_ITEMS = 3000
_TEXTS = frozenset({"ctx", "question", "answer"})


def imagination(wikitext: Corpus, hellaswag: Corpus, gsm8k: Corpus, *, pieces: int = 6) -> Corpus:
    """Interleave pieces of the three corpora; a document is one line of a source.

    A document keeps the line of WikiText that it came from, so that questions written on WikiText
    find their fact; those of the other two have none. Blank lines count when WikiText is cut and
    make no document.

    Args:
        wikitext: The first half of its lines, rounded down, is taken.
        hellaswag: One item a document; the first 3,000 are taken.
        gsm8k: One item a document.
        pieces: How many pieces each is cut in, 1 or more.

    Raises:
        InputError: A source has fewer lines than pieces, or `pieces` is below 1.
    """
    if pieces < 1:
        raise InputError(f"imagination cuts its sources in {pieces} pieces; it must be 1 or more")
    lines = _lines(wikitext)
    half = len(lines) // 2
    sources = [
        lines[:half],
        [_item(d) for d in hellaswag.documents[:HELLASWAG_ITEMS]],
        [_item(d) for d in gsm8k.documents],
    ]
    for name, source in zip(("wikitext", "hellaswag", "gsm8k"), sources, strict=True):
        if len(source) < pieces:
            raise InputError(
                f"corpus.{name} has {len(source)} lines, too few to be cut in {pieces} pieces"
            )
    documents: list[Document] = []
    for piece in range(pieces):
        for source in sources:
            start, stop = (len(source) * p // pieces for p in (piece, piece + 1))
            documents += [d for d in source[start:stop] if d.text]
    names = ", ".join(c.source for c in (wikitext, hellaswag, gsm8k))
    return Corpus(tuple(documents), f"Imagination of Web ({names})", half)


def hellaswag(
    *, root: Path, files: Sequence[str] = (), hub: Mapping[str, Any] | None = None
) -> Corpus:
    """HellaSwag items as documents: the context and its right ending.

    Args:
        root: Folder of relative paths.
        files: Files of rows with ``ctx``, ``endings`` and ``label``, or
        hub: ``dataset``, ``config`` and ``split``.

    Raises:
        InputError: The source cannot be read or lacks a field.
    """
    rows = _rows(files, hub, root, ("ctx", "endings", "label"), "HellaSwag")
    texts = [
        f"{row['ctx']} {_ending(row, f'HellaSwag, row {number},')}"
        for number, row in enumerate(rows, start=1)
    ]
    return Corpus(tuple(Document(text) for text in texts), "HellaSwag")


def _ending(row: Mapping[str, Any], where: str) -> str:
    """The right ending; `label` is an integer in some copies of the data and its digit in others.

    The hub's test split has empty labels: it does not tell.
    """
    endings, label = row["endings"], str(row["label"])
    if not isinstance(endings, list) or not all(isinstance(e, str) for e in endings):
        raise InputError(f"{where} has endings that are no list of texts")
    if not label.isdecimal() or int(label) >= len(endings):
        raise InputError(
            f"{where} has label {row['label']!r}; it must be the number of one of its "
            f"{len(endings)} endings, from 0 (take a split that has labels)"
        )
    return str(endings[int(label)])


def gsm8k(*, root: Path, files: Sequence[str] = (), hub: Mapping[str, Any] | None = None) -> Corpus:
    """GSM8K items as documents: the question and its answer; arguments as for `hellaswag`."""
    rows = _rows(files, hub, root, ("question", "answer"), "GSM8K")
    return Corpus(tuple(Document(f"{r['question']} {r['answer']}") for r in rows), "GSM8K")


def _rows(
    files: Sequence[str],
    hub: Mapping[str, Any] | None,
    root: Path,
    fields: tuple[str, ...],
    name: str,
) -> list[Any]:
    if hub is not None:
        rows = list(hub_rows(hub["dataset"], config=hub["config"], split=hub["split"]))
    else:
        rows = [row for path in expand(files, root) for row in read_rows(path)]
    if not rows:
        raise InputError(f"{name} has no rows; give a source with some")
    for number, row in enumerate(rows, start=1):
        missing = [field for field in fields if field not in row]
        if missing:
            raise InputError(
                f"{name}, row {number}, has no field {missing[0]!r}{nearest(missing[0], row)}; "
                f"needed are {', '.join(fields)}"
            )
        for field in _TEXTS.intersection(fields):
            if not isinstance(row[field], str):
                raise InputError(
                    f"{name}, row {number}: field {field!r} is a {type(row[field]).__name__}, not "
                    "text"
                )
    return rows


def _lines(corpus: Corpus) -> list[Document]:
    """Every line of a corpus, its blank ones too, as a document with the line it came from.

    Sources whose documents have no lines are counted from 1.
    """
    lines: list[Document] = []
    for document in corpus.documents:
        # the blank lines before the first heading are in no document but are lines of the source
        lines += [Document("", "", n) for n in range(len(lines) + 1, document.line)]
        first = document.line or len(lines) + 1
        texts = [" ".join(document.text.split("\n"))] if document.row else document.text.split("\n")
        lines += [Document(t.strip(), document.title, first + i) for i, t in enumerate(texts)]
    return lines


def _item(document: Document) -> Document:
    return Document(" ".join(document.text.split("\n")).strip())
