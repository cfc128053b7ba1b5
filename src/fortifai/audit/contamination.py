"""How much of a text stands in its reference, word for word: what is shared cannot differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fortifai.audit.corpus import Corpus, both_hold
from fortifai.audit.findings import Finding
from fortifai.stats.sample import Share, share

NOTABLE_DOCUMENTS, NOTABLE_GRAMS = 0.01, 0.05
"""Shares from which the verdict tells of it: of documents, and of 8-grams above the reference's."""


def contained(text: Corpus, against: Corpus) -> Share | None:
    """Share of a text's documents that stand in the reference, too, with Wilson's interval.

    Copies count once, so that one document often there is not many that are shared. Of corpora
    that are sampled, those that both samples would hold are compared.

    Args:
        text: The corpus in question.
        against: The reference.

    Returns:
        None where no document can be compared.
    """
    rows, others = text.sample.contents, against.sample.contents
    some, _ = both_hold(text, against)
    if not some.any():
        return None
    # of one content there may be a row for each source
    contents = np.unique(rows["content"][some])
    return share(np.isin(contents, others["content"]).astype(float).tolist())


def finding(text: Corpus, against: Corpus, reference: str) -> list[Finding]:
    """What `contained` found, to be shown; of a text that can be compared."""
    found = contained(text, against)
    if found is None:
        return []
    title = "documents that are in the reference"
    return [
        Finding("contained", title, reference, found.value, None, found, None, "share",
                family="contamination")
    ]  # fmt: skip


def told(findings: Sequence[Finding]) -> str:
    """A sentence or two where a notable share is in the reference, too; else nothing.

    Args:
        findings: Of an audit; those of the whole text named ``contained`` and ``document.shared``.
    """
    whole = {found.name: found for found in findings if not found.source}
    said = []
    documents = whole.get("contained")
    if documents and documents.difference and documents.value >= NOTABLE_DOCUMENTS:
        around = documents.difference
        said.append(
            f"{documents.value:.1%} of its different documents ({around.low:.1%} to "
            f"{around.high:.1%}) are in the reference word for word"
        )
    grams = whole.get("document.shared")
    if grams and grams.difference:
        more = grams.difference
        if more.value >= NOTABLE_GRAMS and more.low > (grams.floor or 0.0):
            said.append(
                f"{grams.value:.1%} of the 8-grams of a document are in the reference, of those of "
                f"its own documents {grams.reference or 0.0:.1%} in another one (difference "
                f"{more.value:.1%}, {more.low:.1%} to {more.high:.1%})"
            )
    if not said:
        return ""
    return (
        f"Contamination: {'; '.join(said)}. What both share cannot differ, so this audit sees less "
        "of a collapse than there may be."
    )
