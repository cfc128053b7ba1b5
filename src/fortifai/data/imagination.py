"""Imagination of Web: ForTIFAI's composite of facts, common sense and arithmetic.

2509.08972, section 4.1.1 and its authors' code: the first half of WikiText-2's lines, HellaSwag
items (context and right ending) and GSM8K items (question and answer), newlines stripped, each of
the three cut in six, and the pieces interleaved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fortifai.data.text import Corpus, Document, expand, hub_rows, jsonl_rows, parquet_rows
from fortifai.errors import InputError

HELLASWAG_ITEMS = 3000


def imagination(wikitext: Corpus, hellaswag: Corpus, gsm8k: Corpus, *, pieces: int = 6) -> Corpus:
    """Interleave pieces of the three corpora; a document is one line of a source.

    A document keeps the line of WikiText that it came from, so that questions written on WikiText
    find their fact; those of the other two have none.

    Args:
        wikitext: Cut to the first half of its lines here.
        hellaswag: One item a document; the first 3,000 are taken.
        gsm8k: One item a document.
        pieces: How many pieces each is cut in.

    Raises:
        InputError: A source has fewer lines than pieces.
    """
    lines = _lines(wikitext)
    sources = [
        lines[: (len(lines) + 1) // 2],
        [_flat(d, 0) for d in hellaswag.documents[:HELLASWAG_ITEMS]],
        [_flat(d, 0) for d in gsm8k.documents],
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
    return Corpus(tuple(documents), f"Imagination of Web ({names})")


def hellaswag(*, root: Path, files: Sequence[str] = (), hub: Mapping[str, Any] | None = None) -> Corpus:
    """HellaSwag items as documents: the context and its right ending.

    Args:
        root: Folder of relative paths.
        files: .jsonl or .parquet files with ``ctx``, ``endings`` and ``label``, or
        hub: ``dataset``, ``config`` and ``split``.

    Raises:
        InputError: The source cannot be read or lacks a field.
    """
    rows = _rows(files, hub, root, ("ctx", "endings", "label"), "HellaSwag")
    return Corpus(
        tuple(Document(f"{r['ctx']} {r['endings'][int(r['label'])]}") for r in rows), "HellaSwag"
    )


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
        rows = [
            row
            for path in expand(files, root)
            for row in (parquet_rows(path) if path.suffix == ".parquet" else jsonl_rows(path))
        ]
    for number, row in enumerate(rows, start=1):
        missing = [field for field in fields if field not in row]
        if missing:
            raise InputError(
                f"{name}, row {number}, has no field {missing[0]!r}; needed are {', '.join(fields)}"
            )
    return rows


def _lines(corpus: Corpus) -> list[Document]:
    return [
        _flat(Document(line, document.title), document.line + i)
        for document in corpus.documents
        for i, line in enumerate(document.text.split("\n"))
    ]


def _flat(document: Document, line: int) -> Document:
    return Document(" ".join(document.text.split("\n")).strip(), document.title, line)
