"""The card of an audit: a section of markdown for a data set's README and for a summary of CI."""

from __future__ import annotations

import re
from pathlib import Path

from fortifai import __version__, files
from fortifai.audit import CorpusAudit
from fortifai.report.audit import CARD, row
from fortifai.report.text import neutral

_GROWN = 10


def write_card(audit: CorpusAudit, path: Path) -> None:
    """Write the card; an older one is replaced.

    Raises:
        RunFailed: It could not be written.
    """
    with files.writing("the card", path, "another file with --card"):
        files.write_whole(path, card(audit))


def card(audit: CorpusAudit) -> str:
    """The verdict, what is judged, and what grew, as markdown in which no text can act."""
    lines = [
        f"{CARD}{_plain(audit.headline)}",
        "",
        f"{_plain(audit.subject)} against {_plain(audit.reference)}: {audit.sampled}. "
        f"{_plain(audit.verdict)}",
        "",
        f"Next: {_plain(audit.next_step)}",
        "",
    ]
    judged = [found for found in audit.findings if found.level is not None and not found.source]
    rows = judged or [found for found in audit.findings if not found.source]
    if rows:
        lines += [
            "| measure | value | reference | difference (95 %) | noise floor | evidence is | |",
            "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
    for found in rows:
        told = row(found)
        verdict = "**evidence**" if found.evidence else "sound" if told["judged"] else ""
        difference = f"{told['difference']} ({told['interval']})" if told["interval"] else ""
        lines.append(
            f"| {_plain(told['title'])} | {told['value']} | {told['reference']} | {difference} "
            f"| {told['floor']} | {told['level']} | {verdict} |"
        )
    grown = [_plain(each.words) for each in audit.grown if not each.source][:_GROWN]
    if grown:
        lines += ["", f"What grew most against the reference: {'; '.join(grown)}."]
    lines += [f"\n- {_plain(remark)}" for remark in audit.remarks]
    return "\n".join([*lines, "", f"Measured by fortifai {__version__}.", ""])


def _plain(text: str) -> str:
    """Text of strangers that markdown and the HTML within it leave as it is."""
    text = neutral(text).replace("\n", " ")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # a mention, an address or a mark of markdown: each behind a backslash or in an entity
    text = re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", text)
    return text.replace("@", "&#64;").replace("://", "&#58;//")
