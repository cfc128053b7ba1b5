"""A corpus beside a reference: which measures differ, by how much, and what that is evidence of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai.audit import contamination, measures
from fortifai.audit.corpus import Corpus
from fortifai.audit.findings import Audit, Finding, Levels, Worse, finite, signed
from fortifai.audit.grown import Grown, grown
from fortifai.audit.overlap import Overlap, overlap
from fortifai.errors import InputError
from fortifai.stats.compare import holm
from fortifai.stats.sample import Interval, sample_mean
from fortifai.stats.scores import SCORES

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class CorpusAudit(Audit):
    """What was found of a corpus.

    Attributes:
        counts: Rows, documents, words and what was passed over, of the text and the reference.
        sources: Documents of each source of the text.
        overlaps: By source ("" is all), how far its vocabulary is the reference's.
        grown: The n-grams most over-represented against the reference, by source.
        deciles: By score, its deciles in the text and in the reference.
        distributions: By score, ``edges`` of equal bins, and how many sampled documents of the
            ``text`` and the ``reference`` are in each; the outermost hold all beyond them, too.
    """

    counts: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, int] = dataclasses.field(default_factory=dict)
    overlaps: Mapping[str, Overlap] = dataclasses.field(default_factory=dict)
    grown: tuple[Grown, ...] = ()
    deciles: Mapping[str, Mapping[str, Sequence[float]]] = dataclasses.field(default_factory=dict)
    distributions: Mapping[str, Mapping[str, Sequence[float]]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def comparable(self) -> bool:
        """Whether the whole text is of the reference's kind."""
        return "" not in self.overlaps or self.overlaps[""].alike

    @property
    def headline(self) -> str:
        """The verdict in a few words."""
        if not self.overlaps:
            return "no reference, so nothing is judged"
        if not self.comparable and not self.collapsed:
            return "cannot be compared: another kind of text"
        if self._only_contaminated:
            return "contaminated: documents are in the reference, too"
        return super().headline

    @property
    def _only_contaminated(self) -> bool:
        """Whether all evidence is what `contained` was judged for, which is no collapse."""
        return {found.family for found in self.evidence} == {"contamination"}

    @property
    def verdict(self) -> str:
        """What was found, in a sentence or three; `next_step` says what to do."""
        if not self.overlaps:
            return "Nothing to compare with, so nothing is judged."
        told = []
        if self.comparable or self.collapsed:
            told.append(self._judgement())
        for source, found in self.overlaps.items():
            if not found.alike:
                where = f" (source {source})" if source else ""
                told.append(
                    f"Another kind of text{where}: its words overlap with the reference's "
                    f"{found.ratio:.0%} as much as halves of the reference do with each other, so "
                    "differences say nothing of collapse."
                )
        shared = contamination.told(self.findings)
        return " ".join([*told, shared] if shared else told)

    @property
    def next_step(self) -> str:
        """What to do now, by the verdict, in a sentence."""
        if not self.overlaps:
            return "give a text of the same kind that is known to be good with --against."
        if self.collapsed and not self._only_contaminated:
            return (
                "see which phrases grew and (--by COLUMN) which sources they are in, find the "
                "documents of the worst scores (--scores FILE.parquet), drop or replace them and "
                "audit again; where there are no others, mix in real text and train with a cure "
                "(docs/cures.md)."
            )
        if not self.comparable:
            return "choose another reference with --against, one of the text's own kind."
        if self._only_contaminated or contamination.told(self.findings):
            return "take what both share out of either and audit again."
        return (
            "train on it, and audit the next version of it against the same reference; what is "
            "nearest to its level is what to watch."
        )

    def _judgement(self) -> str:
        whole = [found for found in self.evidence if not found.source]
        parts = sorted({found.source for found in self.evidence} - {""})
        if not whole and not parts:
            return super().verdict
        # the furthest first
        whole.sort(key=lambda found: -(found.way or 0))
        told = [
            f"{found.title} {signed(found.difference.value)}{found.unit and f' {found.unit}'} "
            f"({signed(found.difference.low)} to {signed(found.difference.high)}), "
            f"{found.way or 0:.1f} times its level"
            for found in whole
            if found.difference is not None
        ]
        told += [f"in source{'s' * (len(parts) > 1)} {', '.join(parts)}"] if parts else []
        count = sum(found.level is not None for found in self.findings)
        what = "contamination" if self._only_contaminated else "collapse"
        return f"Evidence of {what} in {len(self.evidence)} of {count} checks: {'; '.join(told)}."

    def record(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON; NaN is null."""
        out = super().record()
        more = {
            "headline": self.headline,
            "comparable": self.comparable,
            "counts": {name: dict(each) for name, each in self.counts.items()},
            "sources": dict(self.sources),
            "overlaps": {
                name: dataclasses.asdict(each) | {"alike": each.alike}
                for name, each in self.overlaps.items()
            },
            "grown": [dataclasses.asdict(each) for each in self.grown],
            "deciles": {
                name: {whose: list(values) for whose, values in each.items()}
                for name, each in self.deciles.items()
            },
            "distributions": {
                name: {what: list(values) for what, values in each.items()}
                for name, each in self.distributions.items()
            },
        }
        plain: dict[str, Any] = finite(out | more)
        return plain


# --- the audit --------------------------------------------------------------------------------


def audit_corpus(
    text: Corpus,
    against: Corpus | None = None,
    *,
    subject: str = "the text",
    reference: str = "the reference",
    levels: Levels | None = None,
    fail_on: Mapping[str, float] | None = None,
    seed: int = 0,
) -> CorpusAudit:
    """Compare a corpus with one of the same kind that is known to be good.

    Of either, documents of the samples are put one after the other and cut into blocks of equal
    numbers of words, as many words of both. Intervals are over blocks (jackknife) and documents
    (Welch's t), floors are what random halves of the reference differ by, p-values are corrected
    over all measures and sources (Holm 1979).

    Args:
        text: The corpus in question.
        against: The reference, read with ``Reading.grams``; None: values without a judgement.
        subject: What to call the one.
        reference: What to call the other.
        levels: What counts as evidence.
        fail_on: By measure, a difference that is judged instead of `levels`; its sign is the
            direction.
        seed: Of the random halves.

    Raises:
        InputError: A corpus is too small (with how many documents it takes), both hold the same
            documents, or `fail_on` names no measure.
    """
    remarks = _remarks(text, subject)
    if against is None:
        if fail_on is not None:
            raise InputError("--fail-on judges differences; give a reference with --against")
        return CorpusAudit(
            subject, "nothing", tuple(_alone(text)), _sampled(text), remarks=remarks,
            counts={"text": text.counts}, sources=text.sources,
            **_scores(text, None),
        )  # fmt: skip
    _check_different(text, against, subject, reference)
    remarks += _remarks(against, reference)
    made = measures.reference_of(against)
    parts = {"": (text.sample.documents, against.sample.documents)}
    for source, table in text.sample.by.items():
        parts[source] = table, against.sample.by.get(source, against.sample.documents)
    findings = contamination.finding(text, against, reference)
    overlaps: dict[str, Overlap] = {}
    phrases: list[Grown] = []
    for source, (own, other) in parts.items():
        try:
            blocks = measures.blocks_of(own, other, source or subject, reference)
        except InputError as error:
            if not source:
                raise
            remarks += (f"source {source} is not judged: {error}",)
            continue
        overlaps[source] = overlap(own["text"].tolist(), other["text"].tolist())
        findings += measures.by_types(blocks, source, reference, seed)
        findings += measures.copies(text, against, source, reference, seed)
        findings += measures.by_documents(own, other, made, source, reference, seed)
        phrases += grown(own["text"].tolist(), other["text"].tolist(), source)
    _known_measures(fail_on, {found.name for found in findings})
    findings = _judged(findings, overlaps, levels or Levels(), fail_on)
    return CorpusAudit(
        subject,
        reference,
        tuple(sorted(findings, key=lambda f: (f.source, f.level is None))),
        _sampled(text, against),
        ("whether what it says is true", "who wrote it: a narrow text can be human"),
        remarks + _floors(findings, against),
        counts={"text": text.counts, "reference": against.counts},
        sources=text.sources,
        overlaps=overlaps,
        grown=tuple(phrases),
        **_scores(text, against),
    )


def _judged(
    findings: Sequence[Finding],
    overlaps: Mapping[str, Overlap],
    levels: Levels,
    fail_on: Mapping[str, float] | None,
) -> list[Finding]:
    """Findings with Holm's p-values, and levels where they are to be judged."""
    # a share that no test is made of counts for none
    corrected = iter(holm([found.p for found in findings if found.p is not None]))
    out = []
    for found in findings:
        worse, level = found.worse, None
        if fail_on is not None:
            if found.name in fail_on:
                level, worse = abs(fail_on[found.name]), _direction(fail_on[found.name])
        elif worse and overlaps[found.source].alike and found.name in _LEVELS:
            level = getattr(levels, _LEVELS[found.name])
        p = None if found.p is None else next(corrected)
        out.append(dataclasses.replace(found, worse=worse, level=level, p=p))
    return out


_LEVELS = {row[0]: row[7] for row in measures.TYPES if row[7]} | {
    "rare": "tail",
    "repetition": "repetition",
    "exact": "copies",
    "near": "copies",
}


def _direction(level: float) -> Worse:
    return "higher" if level > 0 else "lower"


def _known_measures(fail_on: Mapping[str, float] | None, names: set[str]) -> None:
    for name in fail_on or ():
        if name not in names:
            raise InputError(
                f"--fail-on names no measure {name!r}; there are {', '.join(sorted(names))}"
            )


# --- what is said -----------------------------------------------------------------------------


def _alone(text: Corpus) -> list[Finding]:
    """Means of document scores and copies, without a reference."""
    out = []
    for source, table in {"": text.sample.documents, **text.sample.by}.items():
        for name in _scores_of(text):
            values = np.asarray(table[name], dtype=np.float64)
            values = values[~np.isnan(values)]
            if len(values) < 2:
                continue
            known = SCORES.get(name)
            title = known.title if known else "the detector's score"
            mean = sample_mean(values)
            key = name if name in ("repetition", "detector") else f"document.{name}"
            out.append(
                Finding(key, title, "", mean.value, None, mean, None, known.unit if known else "",
                        family="documents", source=source)
            )  # fmt: skip
        rows = measures.of_source(text, source)
        for name, title in (
            ("exact", "copies among documents"),
            ("near", "near copies among documents"),
        ):
            first, counts = measures.first_of(rows, name)
            share = 1 - float(first.sum() / counts.sum())
            reach = 1.96 * measures.ratio_error(first, counts) if len(first) > 1 else math.nan
            out.append(
                Finding(name, title, "", share, None,
                        Interval(share, share - reach, share + reach), None, "share",
                        family="duplication", source=source)
            )  # fmt: skip
    return out


def _scores_of(corpus: Corpus) -> list[str]:
    there = corpus.sample.documents
    return [
        name for name in (*SCORES, "detector") if name in there and name not in ("rare", "shared")
    ]


def _values(corpus: Corpus | None, name: str) -> Floats:
    """A score of the sampled documents, of those that have it."""
    table = corpus.sample.documents if corpus is not None else {}
    values = np.asarray(table.get(name, ()), dtype=np.float64)
    return values[~np.isnan(values)]


_BINS = 24


def _scores(text: Corpus, against: Corpus | None) -> dict[str, Any]:
    """Deciles and distributions of the scores of documents."""
    both = {"text": text} | ({} if against is None else {"reference": against})
    deciles = {
        name: {whose: _deciles(corpus, name) for whose, corpus in both.items()}
        for name in _scores_of(text)
    }
    return {"deciles": deciles, "distributions": _distributions(text, against)}


def _distributions(text: Corpus, against: Corpus | None) -> dict[str, dict[str, list[float]]]:
    """Histograms of scores, from the 1st to the 99th percentile of both."""
    out = {}
    for name in _scores_of(text):
        own, other = _values(text, name), _values(against, name)
        if not len(own):
            continue
        ends = [np.quantile(each, (0.01, 0.99)) for each in (own, other) if len(each)]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        if not low < high:
            continue
        edges = np.linspace(low, high, _BINS + 1)
        counts = [np.histogram(np.clip(each, low, high), edges)[0] for each in (own, other)]
        out[name] = {
            "edges": edges.tolist(),
            "text": counts[0].tolist(),
            "reference": counts[1].tolist(),
        }
    return out


def _deciles(corpus: Corpus, name: str) -> list[float]:
    values = _values(corpus, name)
    return np.quantile(values, np.linspace(0, 1, 11)).tolist() if len(values) else []


def _sampled(text: Corpus, against: Corpus | None = None) -> str:
    told = f"{text.documents:,} documents"
    if against is not None:
        told += f" beside {against.documents:,}"
    most = max(len(each.sample.documents["key"]) for each in (text, against or text))
    whole = max(text.documents, (against or text).documents)
    if most < whole:
        told += f"; measures of {most:,} of them drawn by hash, scores of all"
    return told


def _remarks(corpus: Corpus, name: str) -> tuple[str, ...]:
    counts = corpus.counts
    told = []
    for key, what in (
        ("missing", "without the field"),
        ("empty", "empty or null"),
        ("wordless", "without any word"),
        ("bad", "no rows, passed over"),
        ("long", "longer than a million characters, of which the first were measured"),
        ("spaceless", "in scripts without spaces, of which characters are counted for words"),
    ):
        if counts.get(key):
            told.append(f"{name}: {counts[key]:,} of {counts['rows']:,} rows are {what}")
    return tuple(told)


def _floors(findings: Sequence[Finding], against: Corpus) -> tuple[str, ...]:
    """Measures that cannot tell for noise, and how many documents would do."""
    told = []
    for found in findings:
        if found.level and found.floor and found.floor > found.level and not found.source:
            needs = math.ceil(against.documents * (found.floor / found.level) ** 2)
            told.append(
                f"{found.title}: its noise floor is above its level; it takes about {needs:,} "
                "documents of reference"
            )
    return tuple(told)


def _check_different(text: Corpus, against: Corpus, subject: str, reference: str) -> None:
    rows = text.sample.contents, against.sample.contents
    same = [
        np.array_equal(rows[0][name], rows[1][name])
        if len(rows[0][name]) == len(rows[1][name])
        else False
        for name in ("content", "count")
    ]
    if all(same) and text.documents == against.documents:
        raise InputError(
            f"{subject} and {reference} hold the same documents, so there is nothing to compare; "
            "give another reference"
        )
