"""Is a model, or a corpus, collapsing? What can be told from one look at it, with its noise."""

from fortifai.audit.findings import Audit, Finding, Levels
from fortifai.audit.model import audit_model
from fortifai.audit.texts import audit_texts
from fortifai.audit.threshold import Suggestion, suggest_threshold

__all__ = [
    "Audit",
    "Finding",
    "Levels",
    "Suggestion",
    "audit_model",
    "audit_texts",
    "suggest_threshold",
]
