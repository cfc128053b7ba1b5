"""Is a model, or a corpus, collapsing? What can be told from one look at it, with its noise."""

from fortifai.audit.compare import CorpusAudit, audit_corpus
from fortifai.audit.corpus import Corpus, Reading, read
from fortifai.audit.documents import Fields
from fortifai.audit.findings import Audit, Finding, Levels
from fortifai.audit.measures import reference_of
from fortifai.audit.model import ModelAudit, audit_model
from fortifai.audit.threshold import Suggestion, suggest_threshold
from fortifai.stats.scores import score

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
