"""What was written when: D_k^(j), who writes it, who reads it last, and where it is now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import safe_open

from fortifai.lab.regimes import Plan
from fortifai.lab.store import SAMPLES

Samples = NDArray[Any]
Key = tuple[int, int]
"""A split and how often it was rewritten."""


def commits(last: int, every: int) -> list[int]:
    """The generations that are measured and committed: the first, the last, and every so many."""
    return sorted({0, last, *range(0, last, every)})


class History:
    """The samples of one chain.

    What the next generation reads stays in memory; the rest is read back from the commit that
    holds it. So memory does not grow with the generations, except where training sets do.

    Attributes:
        reached: The last generation that was trained and has written; -1 before the first.
    """

    def __init__(
        self,
        real: Sequence[Samples],
        plans: Callable[[int], Plan],
        intervals: Sequence[range],
        place: Callable[[int], Path],
    ) -> None:
        """Find out who writes and who reads what.

        Args:
            real: D_k^(0).
            plans: What a generation trains on and rewrites.
            intervals: The generations of each commit, which is named by the last of them.
            place: Folder of a commit.
        """
        self._real, self._plans, self._place = real, plans, place
        self._commit_of = {g: interval[-1] for interval in intervals for g in interval}
        self._last = intervals[-1][-1]
        self._written_by: dict[Key, int] = {}
        self._writes: list[list[Key]] = []
        self._last_reader: dict[Key, int] = {}
        for generation in range(self._last + 1):
            keys = [(r.source.split, r.to) for r in plans(generation).rewrites]
            self._writes.append(keys)
            self._written_by.update(dict.fromkeys(keys, generation))
            self._last_reader.update(dict.fromkeys(self._reads(generation), generation))
        self._needed_until: dict[int, int] = {}
        for key, writer in self._written_by.items():
            commit, reader = self._commit_of[writer], self._last_reader.get(key, -1)
            self._needed_until[commit] = max(reader, self._needed_until.get(commit, -1))
        self._near: dict[Key, Samples] = {}
        self.reached = -1

    def _reads(self, generation: int) -> set[Key]:
        plan = self._plans(generation)
        parts = [*plan.train, *(rewrite.source for rewrite in plan.rewrites)]
        return {(part.split, part.generation) for part in parts if part.generation}

    def sources(self, generation: int) -> set[int]:
        """The commits that hold what a generation reads."""
        return {self._commit_of[self._written_by[key]] for key in self._reads(generation)}

    def writer(self, split: int, rewritings: int) -> int:
        """The generation that writes D_split^(rewritings)."""
        return self._written_by[split, rewritings]

    def is_done_with(self, commit: int) -> bool:
        """Whether no generation that is still to come reads what a commit holds."""
        return self._needed_until.get(commit, -1) <= self.reached

    def add(self, generation: int, written: Mapping[Key, Samples]) -> None:
        """Take in what a generation wrote; forget what nobody will ask for soon."""
        commit = self._commit_of[generation]
        following = self._reads(generation + 1) if generation < self._last else set()

        def stays(key: Key) -> bool:
            # not saved yet, and somebody reads it later
            waits = self._commit_of[self._written_by[key]] == commit
            return key in following or (waits and self._last_reader.get(key, -1) > generation)

        self._near = {key: values for key, values in self._near.items() if stays(key)}
        self._near.update(written)
        self.reached = generation

    def to_keep(self, interval: range) -> dict[str, Samples]:
        """What a commit holds: all that its own generation wrote, and what is read behind it."""
        return {name: self._near[key] for name, key in self._held(interval).items()}

    def lacks(self, interval: range) -> bool:
        """Whether a commit on the disk has not all that it must hold.

        It was made when fewer generations were asked for, and what only later ones read is not in.
        """
        return not self._held(interval).keys() <= _names(self._place(interval[-1]))

    def _held(self, interval: range) -> dict[str, Key]:
        """What a commit must hold, by name in its file."""
        return {
            _name(key, writer, interval[-1]): key
            for key, writer in self._written_in(interval)
            if writer == interval[-1] or self._last_reader.get(key, -1) > interval[-1]
        }

    def _written_in(self, interval: range) -> list[tuple[Key, int]]:
        return [(key, writer) for writer in interval for key in self._writes[writer]]

    def can_take_up(self, interval: range, generation: int) -> bool:
        """Whether what was saved after `generation`, inside an interval, is enough to go on."""
        return self._saved(interval, generation).keys() <= _names(self._place(generation))

    def take_up(self, interval: range, generation: int) -> None:
        """Go on inside an interval, with what was saved after `generation` as its last one."""
        with safe_open(self._place(generation) / SAMPLES, framework="numpy") as file:
            for name, key in self._saved(interval, generation).items():
                self._near[key] = file.get_tensor(name)
        self.reached = generation

    def _saved(self, interval: range, generation: int) -> dict[str, Key]:
        """What generations up to this one wrote and later ones read, by name in its file."""
        return {
            _name(key, writer, generation): key
            for key, writer in self._written_in(range(interval[0], generation + 1))
            if self._last_reader.get(key, -1) > generation
        }

    def read(self, split: int, rewritings: int) -> Samples:
        """D_split^(rewritings)."""
        if rewritings == 0:
            return self._real[split]
        key = (split, rewritings)
        if key not in self._near:
            writer = self._written_by[key]
            commit = self._commit_of[writer]
            with safe_open(self._place(commit) / SAMPLES, framework="numpy") as file:
                self._near[key] = file.get_tensor(_name(key, writer, commit))
        return self._near[key]


def _name(key: Key, writer: int, commit: int) -> str:
    """What a commit calls something in its file: an inner generation's names the rewriting too."""
    return f"split-{key[0]}" if writer == commit else f"split-{key[0]}-rewritten-{key[1]}"


def _names(folder: Path) -> set[str]:
    with safe_open(folder / SAMPLES, framework="numpy") as file:
        return set(file.keys())
