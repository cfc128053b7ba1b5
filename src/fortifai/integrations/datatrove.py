"""Scores of documents in pipelines of datatrove 0.10 or later: a block of statistics, and a filter.

They are those of `fortifai.audit.score`, without a reference. Install with ``fortifai[datatrove]``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.stats.base import BaseStats

from fortifai.errors import InputError
from fortifai.stats.scores import SCORES, score

_BATCH = 512


class DiversityStats(BaseStats):
    """Entropy, distinct n-grams, repetition, entropy rate and compression of each document.

    Written by datatrove as sums, counts and histograms by group, and into each document's metadata;
    a score that a document is too short for is left out.

    Args:
        output_folder: Where the statistics go.
        **more: As of datatrove's `BaseStats`, such as ``groups_to_compute``.
    """

    name = "Diversity stats"

    def __init__(self, output_folder: Any, **more: Any) -> None:
        super().__init__(output_folder, **more)

    def extract_stats(self, doc: Document) -> dict[str, int | float]:
        """The scores of one document."""
        return _known(score([doc.text]), 0)


class DiversityFilter(BaseFilter):
    """Keep documents whose scores lie within bounds, such as ``repetition=(None, 0.2)``.

    A score that a document is too short for keeps it. Dropped documents have the score's name as
    their reason.

    Args:
        bounds: By score, the least and the most, either of them None.
        exclusion_writer: As of datatrove's `BaseFilter`.

    Raises:
        InputError: No bounds, a name that is no score, or bounds that are none.
    """

    name = "Diversity filter"

    def __init__(
        self,
        bounds: Mapping[str, tuple[float | None, float | None]],
        exclusion_writer: Any = None,
    ) -> None:
        there = [name for name in SCORES if name not in ("rare", "shared")]
        for name, (low, high) in bounds.items():
            if name not in there:
                raise InputError(f"{name!r} is no score; there are {', '.join(there)}")
            if low is not None and high is not None and not low <= high:
                raise InputError(f"bounds of {name} are {low} to {high}; the least comes first")
        if not bounds:
            raise InputError("no bounds, so nothing would be dropped; give one, by score")
        super().__init__(exclusion_writer, batch_size=_BATCH)
        self.bounds = dict(bounds)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether one document is kept."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        """Whether each document is kept; its scores go into its metadata."""
        columns = score([doc.text for doc in batch])
        out: list[bool | tuple[bool, str]] = []
        for i, doc in enumerate(batch):
            known = _known(columns, i)
            doc.metadata.update(known)
            beyond = [name for name in self.bounds if not self._inside(name, known.get(name))]
            out.append((False, beyond[0]) if beyond else True)
        return out

    def _inside(self, name: str, value: float | None) -> bool:
        low, high = self.bounds[name]
        return value is None or ((low is None or value >= low) and (high is None or value <= high))


def _known(columns: Mapping[str, Any], row: int) -> dict[str, int | float]:
    values = {name: column[row].item() for name, column in columns.items()}
    return {name: value for name, value in values.items() if not math.isnan(value)}
