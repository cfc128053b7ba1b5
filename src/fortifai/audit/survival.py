"""One filter stage: which documents of a corpus are still there after it."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from fortifai.audit.corpus import Corpus, both_hold
from fortifai.errors import InputError
from fortifai.stats.sample import Share, share
from fortifai.stats.scores import SCORES


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Documents that have something in common, and the share of them that is kept.

    Attributes:
        of: ``all``, ``source`` or the name of a score.
        name: The source, or the decile from 1, with its ends.
        kept: Share, with Wilson's interval over documents.
    """

    of: str
    name: str
    kept: Share


@dataclasses.dataclass(frozen=True)
class Survival:
    """What a stage keeps.

    Attributes:
        groups: All, each source, each decile of each score.
        sampled: What was looked at, in words.
        added: Share of the documents after the stage that were not there before.
    """

    groups: tuple[Group, ...]
    sampled: str
    added: float

    def record(self) -> dict[str, object]:
        """Everything as plain values, ready for JSON."""
        return dataclasses.asdict(self)


def survival(before: Corpus, after: Corpus) -> Survival:
    """Which documents are kept, by source and by decile of each score.

    Documents are the same where their texts are. Both corpora are sampled by content, so a
    document is in the sample after the stage if it is in that before it and has been kept; of
    copies, as many are kept as there are.

    Args:
        before: The corpus that goes into the stage.
        after: What comes out.

    Raises:
        InputError: Nothing of what comes out went in: the stage changes texts, or fields differ.
    """
    rows, others = before.sample.contents, after.sample.contents
    mine, theirs = both_hold(before, after)
    there = collections.Counter[int]()
    for content, count in zip(others["content"][theirs], others["count"][theirs], strict=True):
        there[int(content)] += int(count)
    left, kept = collections.Counter(there), []
    taken = np.flatnonzero(mine)
    for content, count in zip(rows["content"][taken], rows["count"][taken], strict=True):
        some = min(int(count), left[int(content)])
        left[int(content)] -= some
        kept.append((some, int(count)))
    if not any(some for some, _ in kept):
        raise InputError(
            "no document of --after stands in --before: the stage changes texts, or --field names "
            "another one; compare them with --text and --against"
        )
    groups = [Group("all", "", _share(kept, range(len(kept))))]
    sources = rows["source"][taken]
    for name in sorted(set(sources.tolist()) - {""}):
        groups.append(Group("source", name, _share(kept, np.flatnonzero(sources == name))))
    for name in (*SCORES, "detector"):
        if name in rows:
            groups += _deciles(name, np.asarray(rows[name][taken], dtype=np.float64), kept)
    total = sum(there.values())
    told = f"{sum(n for _, n in kept):,} of {before.documents:,} documents before, "
    told += f"{total:,} of {after.documents:,} after, drawn by content"
    return Survival(tuple(groups), told, sum(left.values()) / max(1, total))


def _deciles(name: str, values: np.ndarray, kept: list[tuple[int, int]]) -> list[Group]:
    known = np.flatnonzero(~np.isnan(values))
    if len(known) < 10:
        return []
    # by rank, so that each has its share though many values are equal
    order = known[np.argsort(values[known], kind="stable")]
    return [
        Group(name, f"{i}: {values[part[0]]:.3g} to {values[part[-1]]:.3g}", _share(kept, part))
        for i, part in enumerate(np.array_split(order, 10), start=1)
    ]


def _share(kept: list[tuple[int, int]], rows: object) -> Share:
    answers: list[float] = []
    for row in rows:  # type: ignore[attr-defined]  # a range, or an array of places
        some, count = kept[row]
        answers += [1.0] * some + [0.0] * (count - some)
    return share(answers)
