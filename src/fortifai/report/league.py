"""The league of cures: run folders of frozen presets in, one table of what slows collapse out.

A track is a preset. An entry is a run folder of it that differs from the preset in its arms alone,
and in an arm only in what makes a cure: the weight and the terms of its loss, cures, the regime,
decoding, and what is done to a model behind its fit. Every entry holds the preset's baseline, on
the preset's seeds, and is judged against its own: in updates and in what is generated they are
equal, or, where the arm has more, it stands in a table of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fortifai import configuration
from fortifai.errors import InputError
from fortifai.lab.run_folder import difference, plain
from fortifai.lab.spec import FailureLevel
from fortifai.lab.store import read_manifest
from fortifai.losses.rows import RowLoss
from fortifai.report.compare import last_of, mean_at
from fortifai.report.failure import ratio, times_of
from fortifai.report.load import load
from fortifai.report.records import FIRST, KR, Arm, Run
from fortifai.stats import Ratio, TimesFirst, decay_rate, holm

TRACKS = tuple(name for name in configuration.preset_names() if name.startswith("league-"))
"""The presets that may be entered."""
KNOWLEDGE = FailureLevel(measure=KR, level="half_gain")
"""The failure that arms are ranked by."""
PERPLEXITY = FailureLevel(measure="perplexity", level=TimesFirst(3.0), direction="above")
CLOSED, REAL, HELPED = "closed loop", "with real data", "with outside help"
CLASSES = (CLOSED, REAL, HELPED)
"""What an arm may learn from behind generation 0: what it wrote, real data, another model."""
SLACK = 0.01
"""Budgets this close are equal: the last block of a generation may be shorter."""

_FREE = ("weight", "cures", "regime", "init_from", "after_fit", "regenerate.decoding")
_FREE_OF_TRAIN = (*(field.name for field in dataclasses.fields(RowLoss)), "normalize")
_ABSENT = object()
_PLACES = ("corpus.files", "corpus.held_out", "questions.files", "family.base")
"""Where files lie, which differs from machine to machine; their contents are compared instead."""


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """What an arm took, all generations of one seed together, the mean over seeds.

    Attributes:
        trained: Tokens trained on: updates times batch.
        generated: Tokens generated.
        scored: Tokens read for their probabilities, by cures and what is fitted to them.
    """

    trained: float
    generated: float
    scored: float


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One arm of one entry.

    Attributes:
        track: The preset.
        arm: Its name, that of the baseline too.
        baseline: Whether others are judged against it.
        cure: What makes it: the settings in which it differs from the baseline.
        group: One of `CLASSES`.
        larger: It was given more updates, or more generated tokens, than the baseline.
        seeds: How many.
        generations: How many all its seeds finished.
        diverged: Seeds that ended before the last generation.
        knowledge: KR on the first split at generation 0 and at the last one, mean over seeds.
        decay: Rate of KR's decay to chance a generation, with its interval.
        time: Mean time to `KNOWLEDGE`, and how many seeds had not failed by the end.
        longer: Times the baseline's time to `KNOWLEDGE`.
        fluent: The same of `PERPLEXITY`.
        corrected: p-value of `longer` after Holm's correction over the class.
        diversity: Distinct-3 of what it wrote last over that of the real text.
        budget: What it took.
        seconds: Of processors a generation, on the entry's machine; None: it was not written down.
        entry: Sums of what is frozen, of the data and of the run folder, with versions and machine.
    """

    track: str
    arm: str
    baseline: bool
    cure: Mapping[str, Any]
    group: str
    larger: bool
    seeds: int
    generations: int
    diverged: int
    knowledge: tuple[float, float] | None
    decay: tuple[float, float | None, float | None] | None
    time: tuple[float, int] | None
    longer: Ratio | None
    fluent: Ratio | None
    corrected: float | None
    diversity: float | None
    budget: Budget
    seconds: float | None
    entry: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A run folder that was entered: its track, what it holds, and what a row says of it."""

    track: str
    run: Run
    facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class League:
    """The table, and the runs that it was made from."""

    rows: tuple[Row, ...]
    entries: tuple[Entry, ...]

    @property
    def tracks(self) -> list[str]:
        """Those that were entered, in the order of `TRACKS`."""
        return [name for name in TRACKS if any(entry.track == name for entry in self.entries)]


def enter(folders: Sequence[Path]) -> League:
    """Check entries and judge their arms.

    Args:
        folders: Run folders of the league's presets.

    Raises:
        InputError: A folder is no whole and undamaged run of a track, or differs from its preset
            in what is frozen; one sentence says in what.
    """
    runs = load(folders)
    rows: list[Row] = []
    entries: list[Entry] = []
    texts: dict[str, tuple[Path, str]] = {}
    for folder, run in zip(map(Path, folders), runs, strict=True):
        config = yaml.safe_load(run.yaml)
        track, frozen = _track(folder, config)
        _check_whole(folder, run, config)
        _check_frozen(folder, track, frozen, config)
        facts = _facts(folder, run, frozen)
        first, data = texts.setdefault(track, (folder, facts["data"]))
        if data != facts["data"]:
            raise InputError(
                f"{folder} was run on another text, questions or base model than {first}; enter "
                f"runs on the same files, those of the preset {track}"
            )
        entries.append(Entry(track, run, facts))
        rows += _rows(entries[-1], frozen)
    return League(tuple(_corrected(rows)), tuple(entries))


# --- what is frozen ---------------------------------------------------------------------------


def _track(folder: Path, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The preset that a run says it is of, resolved."""
    name = str(config.get("name"))
    if name not in TRACKS:
        raise InputError(
            f"{folder} is a run of {name!r}, which is no track of the league; run one of "
            f"{', '.join(TRACKS)}"
        )
    raw, _ = configuration.read_raw(name)
    return name, plain(configuration.resolve(raw))


def frozen_sum(preset: Mapping[str, Any]) -> str:
    """SHA-256 of what must not differ between the entries of a track."""
    told = {k: v for k, v in preset.items() if k not in ("arms", "description", "times")}
    told["arm"] = _held(preset["arms"][preset["baseline"]])
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _held(arm: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an arm that no cure may change."""
    held = {key: value for key, value in arm.items() if key not in _FREE}
    train = {k: v for k, v in dict(held.get("train", {})).items() if k not in _FREE_OF_TRAIN}
    rewriting = {k: v for k, v in dict(held.get("regenerate", {})).items() if k != "decoding"}
    return held | {"train": train, "regenerate": rewriting}


def _made_of(arm: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a cure: the free settings that are not the baseline's."""
    out = {}
    for path in (*_FREE, *(f"train.{name}" for name in _FREE_OF_TRAIN)):
        mine = _at(arm, path)
        if mine is not _ABSENT and mine != _at(baseline, path):
            out[path] = mine
    return out


def _at(tree: Any, path: str) -> Any:
    """The value of a dotted key, or `_ABSENT`."""
    for key in path.split("."):
        tree = tree.get(key, _ABSENT) if isinstance(tree, Mapping) else _ABSENT
    return tree


def _check_frozen(
    folder: Path, track: str, frozen: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    baseline = str(frozen["baseline"])
    arms = config["arms"]
    if baseline not in arms:
        raise InputError(
            f"{folder} has no arm {baseline!r}, which others are judged against; run {track} with "
            "it beside your own"
        )
    own, its = dict(config) | {"arms": {}}, dict(frozen) | {"arms": {}}
    changed = _differing(own, its)
    changed += _differing(arms[baseline], frozen["arms"][baseline], f"arms.{baseline}")
    for name, arm in arms.items():
        changed += _differing(_held(arm), _held(frozen["arms"][baseline]), f"arms.{name}")
    if changed:
        raise InputError(
            f"{folder} differs from the preset {track} in {', '.join(dict.fromkeys(changed))}; in "
            f"an entry only arms may differ, and in an arm {', '.join(_FREE)} and the terms of "
            "its loss"
        )


def _differing(own: Mapping[str, Any], its: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys in which a run differs from its preset; one that it lacks is of a later version."""
    # measures of an entry's own change nothing of what is trained, nor what a track measures
    may = ("description", "name", "times", "measures", *_PLACES)
    found = [k for k in difference(its, own) if k not in may and _at(own, k) is not _ABSENT]
    return [f"{prefix}.{key}" if prefix else key for key in found]


def _check_whole(folder: Path, run: Run, config: Mapping[str, Any]) -> None:
    if run.damage:
        raise InputError(f"{folder} is damaged: {run.damage[0]}")
    if run.finished < run.planned:
        raise InputError(
            f"{folder} has {run.finished:,} of {run.planned:,} generations; start its run again to "
            "finish it"
        )
    missing = [name for name in config["arms"] if name not in [arm.name for arm in run.arms]]
    if missing:
        raise InputError(f"{folder} has nothing of arm {missing[0]!r}; start its run again")


def _facts(folder: Path, run: Run, frozen: Mapping[str, Any]) -> dict[str, Any]:
    shared = folder / "shared"
    data = str(json.loads((shared / "sources.json").read_text("utf-8"))["fingerprint"])
    if _at(frozen["arms"][frozen["baseline"]], "family.base") not in (None, _ABSENT):
        # a pretrained model is data too; one made from sizes differs from machine to machine
        kept, _ = read_manifest(shared)
        sums = [told.sha256 for name, told in sorted(kept.items()) if name.endswith(".safetensors")]
        data = hashlib.sha256(" ".join([data, *sums]).encode()).hexdigest()
    manifests = sorted(folder.rglob("manifest.json"))
    digest = hashlib.sha256()
    for path in manifests:
        digest.update(f"{path.relative_to(folder).as_posix()} ".encode() + path.read_bytes())
    return {
        "frozen": frozen_sum(frozen),
        "data": data,
        "folder": digest.hexdigest(),
        "seeds": list(frozen["seeds"]),
        **run.head,
    }


# --- judging ----------------------------------------------------------------------------------


def _rows(entry: Entry, frozen: Mapping[str, Any]) -> Iterator[Row]:
    run, baseline = entry.run, entry.run.baseline
    assert baseline is not None  # it was looked for, and the run is whole
    plain_arm = frozen["arms"][frozen["baseline"]]
    its = _budget(baseline)
    for arm in run.arms:
        budget = _budget(arm)
        diverged = sum(chain.ended is not None for chain in arm.chains)
        if not diverged and budget.trained < its.trained * (1 - SLACK):
            raise InputError(
                f"arm {arm.name!r} of {run.label} trained on {budget.trained:,.0f} tokens and its "
                f"baseline on {its.trained:,.0f}; arms of the league take equal updates, so give "
                "its cures refill"
            )
        last = last_of(arm, (KR, FIRST))
        ends = [mean_at(arm, (KR, FIRST), g) for g in (0, last)] if last is not None else []
        found = times_of(arm, KNOWLEDGE)
        yield Row(
            track=entry.track,
            arm=arm.name,
            baseline=arm.baseline,
            cure=_made_of(arm.settings, plain_arm),
            group=_group(arm),
            larger=budget.trained > its.trained * (1 + SLACK)
            or budget.generated > its.generated * (1 + SLACK),
            seeds=len(arm.chains),
            generations=0 if last is None else last + 1,
            diverged=diverged,
            knowledge=None if None in ends or not ends else (ends[0] or 0.0, ends[1] or 0.0),
            decay=_decay(arm),
            time=(float(np.mean([t.stage for t in found])), sum(t.censored for t in found))
            if found
            else None,
            longer=None if arm.baseline else ratio(arm, baseline, KNOWLEDGE),
            fluent=None if arm.baseline else ratio(arm, baseline, PERPLEXITY),
            corrected=None,
            diversity=_diversity(arm),
            budget=budget,
            seconds=_seconds(arm),
            entry=entry.facts,
        )


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """With Holm's correction over the arms of a track's class."""
    out = list(rows)
    tables = dict.fromkeys((row.track, row.group, row.larger) for row in rows)
    for table in tables:
        tested = {
            i: row.longer.p
            for i, row in enumerate(rows)
            if (row.track, row.group, row.larger) == table
            and row.longer
            and row.longer.p is not None
        }
        for i, p in zip(tested, holm(list(tested.values())), strict=True):
            out[i] = dataclasses.replace(rows[i], corrected=p)
    return out


def _group(arm: Arm) -> str:
    """By what its ledgers say behind generation 0."""
    later = [g.ledger for chain in arm.chains for g in chain.generations if g.number]
    if any(cure.get("outside") for ledger in later for cure in ledger.get("cures", ())):
        return HELPED
    return REAL if any(ledger.get("real") for ledger in later) else CLOSED


def _decay(arm: Arm) -> tuple[float, float | None, float | None] | None:
    curves = [chain.values((KR, FIRST)) for chain in arm.chains]
    length = min(map(len, curves))
    chance = next(
        (
            score.chance
            for chain in arm.chains
            if (score := chain.generations[0].scores.get((KR, FIRST))) is not None
        ),
        None,
    )
    # what never rose above chance has nothing that could decay
    if length < 3 or chance is None or np.mean([curve[0] for curve in curves]) <= chance:
        return None
    found = decay_rate([curve[:length] for curve in curves], chance)
    return found.value, found.low, found.high


def _diversity(arm: Arm) -> float | None:
    """Distinct-3 of the first split as it was written last, over that of the original."""
    name = "distinct.3"
    last = last_of(arm, (name, "rewritten-0"))
    if last is None:
        return None
    mine, real = (mean_at(arm, (name, on), last) for on in ("rewritten-0", FIRST))
    return None if mine is None or not real else mine / real


def _budget(arm: Arm) -> Budget:
    """All generations of a seed together, the mean over seeds."""
    told = [
        [
            sum(g.ledger["spent"][field.name] for g in chain.generations)
            for field in dataclasses.fields(Budget)
        ]
        for chain in arm.chains
    ]
    return Budget(*np.mean(told, axis=0).tolist())


def _seconds(arm: Arm) -> float | None:
    took = [g.took for chain in arm.chains for g in chain.generations if g.took]
    n = sum(one.generations for one in took)
    return sum(one.processor_seconds for one in took) / n if n else None


__all__ = ["CLASSES", "TRACKS", "Budget", "Entry", "League", "Row", "enter", "frozen_sum"]
