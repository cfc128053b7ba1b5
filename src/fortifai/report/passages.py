"""Followed passages: what each generation of each arm and seed made of the same text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fortifai.report.names import describe, headlines
from fortifai.report.records import Arm, Generation, Key, Passage
from fortifai.report.scene import Scene

CHANGED, DISTINCT = "tokens changed", "different pairs of tokens"
"""Scores of a passage itself, as shares; others are those of the model that wrote it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """A passage as it was written.

    Attributes:
        arm: Whose model wrote it.
        seed: Of which seed.
        times: How often the text had been generated then.
        pieces: The text, kept and changed by turns, kept first; spaces before a change are kept.
        scores: Those that `scores_of` names, in its order.
    """

    arm: Arm
    seed: int
    times: int
    pieces: tuple[str, ...]
    scores: tuple[float | None, ...]

    @property
    def changed(self) -> float:
        """The share of its tokens that differ from the real text's at the same place."""
        return self.scores[0] or 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A followed place of a run: its heading, the real text ("": not kept) and all its versions."""

    title: str
    real: str
    versions: tuple[Version, ...]


def scores_of(scene: Scene) -> dict[str, Key | None]:
    """What tells versions apart: scores of the passage itself, and headlines of its model."""
    keys = [key for key in headlines(scene.measures) if scene.has(key)]
    return {CHANGED: None, DISTINCT: None} | {describe(scene.measures, key): key for key in keys}


def places(scene: Scene) -> list[Place]:
    """Every followed place of every run, in order."""
    keys = [key for key in scores_of(scene).values() if key]
    out = []
    for run in scene.runs:
        found = [
            (arm, chain.seed, g, passage)
            for arm in run.arms
            for chain in arm.chains
            for g in chain.generations
            for passage in g.passages
        ]
        for split, start in sorted({(p.split, p.start) for *_, p in found}):
            here = [one for one in found if (one[3].split, one[3].start) == (split, start)]
            end = start + max(len(p.tokens) for *_, p in here) - 1
            title = f"Split {split}, tokens {start:,} to {end:,}"
            real = next((p for *_, p in here if p.generation == 0), None)
            out.append(
                Place(
                    f"{run.label}: {title}" if len(scene.runs) > 1 else title,
                    "".join(map(_visible, real.tokens)).strip() if real else "",
                    tuple(
                        Version(arm, seed, p.generation, _pieces(p), _scores(p, g, keys))
                        for arm, seed, g, p in here
                        if p.generation
                    ),
                )
            )
    return out


def _scores(passage: Passage, wrote: Generation, keys: Sequence[Key]) -> tuple[float | None, ...]:
    pairs = list(zip(passage.tokens, passage.tokens[1:], strict=False))
    return (
        sum(passage.changed) / max(1, len(passage.changed)),
        len(set(pairs)) / max(1, len(pairs)),
        *(wrote.value(key) for key in keys),
    )


def _pieces(passage: Passage) -> tuple[str, ...]:
    out = [""]
    for token, changed in zip(passage.tokens, passage.changed, strict=True):
        if changed != (len(out) % 2 == 0):
            out.append("")
        out[-1] += _visible(token)
    for i in range(1, len(out), 2):
        bare = out[i].lstrip(" ")
        out[i - 1] += out[i][: len(out[i]) - len(bare)]
        out[i] = bare
    return tuple(out)


def _visible(token: str) -> str:
    return token.replace("\n", "\u21b5 ")
