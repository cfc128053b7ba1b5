"""Is a model, or a corpus, collapsing? What can be told from one look at it, with its noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fortifai.audit.compare import CorpusAudit, audit_corpus
from fortifai.audit.corpus import Corpus, Reading, read
from fortifai.audit.documents import Fields
from fortifai.audit.findings import Audit, Finding, Levels
from fortifai.audit.measures import reference_of
from fortifai.stats.scores import score

if TYPE_CHECKING:
    from fortifai.audit.model import ModelAudit, audit_model
    from fortifai.audit.threshold import Suggestion, suggest_threshold

__all__ = [
    "Audit",
    "Corpus",
    "CorpusAudit",
    "Fields",
    "Finding",
    "Levels",
    "ModelAudit",
    "Reading",
    "Suggestion",
    "audit_corpus",
    "audit_model",
    "read",
    "reference_of",
    "score",
    "suggest_threshold",
]


def __getattr__(name: str) -> Any:
    """What is of models is loaded when it is named: each process that reads a corpus comes here."""
    if name in ("ModelAudit", "audit_model"):
        from fortifai.audit import model

        return getattr(model, name)
    if name in ("Suggestion", "suggest_threshold"):
        from fortifai.audit import threshold

        return getattr(threshold, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
