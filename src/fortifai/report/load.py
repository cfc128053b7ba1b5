"""Reads run folders into plain records. Finished generations only; never a model."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError
from safetensors.numpy import load as load_safetensors

from fortifai.configuration import KINDS, experiment_type
from fortifai.errors import InputError
from fortifai.evals.phases import PhaseRule
from fortifai.lab.history import commits
from fortifai.lab.measures import About, Score, renamed
from fortifai.lab.spec import FailureLevel, as_today
from fortifai.lab.store import ChainStore, End, inspect, read_manifest
from fortifai.lab.times import times
from fortifai.report.records import (
    Answers,
    Arm,
    Chain,
    FormatAnswers,
    Generation,
    Passage,
    Run,
)
from fortifai.report.text import neutral

_AGAIN = "Start the run again to have"
_SCORES, _FORMATS, _PASSAGES = "scores.jsonl", "formats.parquet", "passages.jsonl"
_QUESTIONS, _GRID = "questions.parquet", "grid.safetensors"
_PLAIN = {
    name: f"{name}.json" for name in ("ledger", "histograms", "perplexities", "picture", "engine")
}
_FILES = (_SCORES, _FORMATS, _PASSAGES, _QUESTIONS, _GRID, *_PLAIN.values())


def load(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Read run folders.

    Args:
        folders: At least one run folder, none of them twice.

    Returns:
        One record a folder. Generations without a manifest are left out; so is what is damaged,
        with a note that names the file. Every file is held against its sum, whether it is read
        or not.

    Raises:
        InputError: No folder, one that is not a run, one named twice, or a run in which no
            generation is finished yet.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise InputError("no run folder was given; name at least one, such as runs/demo")
    for i, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:i]]:
            raise InputError(f"{path} was given twice; name each run folder once")
    runs = [_Reading(path, _read_config(path)) for path in paths]
    labels = _labels(paths, [str(run.config.get("name") or run.path.name) for run in runs])
    return tuple(
        run.run(neutral(label), prefix=len(runs) > 1)
        for run, label in zip(runs, labels, strict=True)
    )


def _labels(paths: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Names of the runs; where two are equal, the folders' names, or else numbers."""
    for candidate in (list(names), [p.resolve().name for p in paths]):
        if len(set(candidate)) == len(candidate):
            return candidate
    return [f"{name} ({i})" for i, name in enumerate(names, start=1)]


# --- the configuration ------------------------------------------------------------------------


def _read_config(path: Path) -> Mapping[str, Any]:
    file = path / "config.yaml"
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; give the folder of a run, such as runs/demo")
    if not file.is_file():
        raise InputError(
            f"{path} is not a run folder: it has no config.yaml; give the folder that "
            "'fortifai run' wrote"
        )
    try:
        config = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as YAML; {path} is not a whole run") from error
    if not isinstance(config, Mapping) or not isinstance(config.get("arms"), Mapping):
        raise InputError(f"{file} declares no arms; {path} is not a run folder of fortifai")
    for name in map(str, config["arms"]):
        if name in ("", ".", "..") or Path(name).name != name:
            raise InputError(f"arm {name!r} of {path} is not a plain name; it must be one")
    return as_today(config)


def _measures(told: Sequence[Any], arms: Mapping[str, Any]) -> tuple[About, ...]:
    """What the run measured; of an older one, what the kind of its family always does."""
    try:
        found = tuple(About.of(row) for row in told)
    except (KeyError, TypeError, AttributeError):  # of a version that says it otherwise
        found = ()
    for settings in arms.values():
        family = settings.get("family") if isinstance(settings, Mapping) else None
        kind = family.get("kind") if isinstance(family, Mapping) else None
        if not found and isinstance(kind, str) and kind in KINDS:
            found = experiment_type(kind).built_in_measures()
    return found


def _declared(config: Mapping[str, Any], file: Path) -> tuple[PhaseRule, tuple[FailureLevel, ...]]:
    """The rule of phases, and the levels of failure."""
    try:
        levels = [FailureLevel.model_validate(row) for row in config.get("time_to_failure") or ()]
        return PhaseRule.model_validate(config.get("phases") or {}), tuple(levels)
    except (ValidationError, TypeError, KeyError) as error:
        names = ", ".join(PhaseRule.model_fields)
        raise InputError(
            f"{file}: time_to_failure must be a list of measure, on, level (a number, half_gain or "
            f"times_first) and direction (below or above), and phases a mapping of {names} to "
            "shares"
        ) from error


# --- one run ----------------------------------------------------------------------------------


class _Reading:
    """One run folder as it is read, with what is told of it on the way."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path, self.config = path, config
        self.seeds = [int(seed) for seed in config.get("seeds", [0])]
        told = config.get("benchmarks")
        self.benchmarks = list(map(str, told)) if isinstance(told, Mapping) else []
        self.notes: list[str] = []
        self.damage: list[str] = []

    def run(self, label: str, *, prefix: bool) -> Run:
        """All of it."""
        file, declared = self.path / "config.yaml", self.config["arms"]
        faults = (*inspect(self.path).faults, *inspect(self.path / "shared").faults)
        for fault in faults:
            what = "read as it is" if fault.startswith(f"{file} ") else "left out"
            self.damage.append(f"{fault}; it is {what}. {_AGAIN} it written anew.")
        head = {
            name: self._head(f"{name}.json", kind, faults)
            for name, kind in (
                *(("notes", list), ("plan", dict), ("run", dict), ("measures", list)),
                ("shared/prediction", dict),
            )
        }
        self.notes += [str(note) for note in head["notes"]]
        arms = []
        for name, settings in declared.items():
            chains = tuple(self._chains(self.path / "arms" / str(name)))
            if chains:
                shown = neutral(f"{label}/{name}" if prefix else str(name))
                plain = settings if isinstance(settings, Mapping) else {}
                baseline = str(name) == str(self.config.get("baseline"))
                arms.append(Arm(str(name), shown, label, baseline, plain, chains))
        if not arms:
            whole = f"whole generation yet ({self.damage[0]})" if self.damage else ""
            raise InputError(
                f"{self.path} has no {whole or 'finished generation yet'}; wait for the first one, "
                "or start its run again"
            )
        self.notes += _engines(arms)
        rule, levels = _declared(self.config, file)
        known = [chain for arm in arms for chain in arm.chains]
        unknown = len(declared) * len(self.seeds) - len(known)
        return Run(
            label=label,
            yaml=file.read_text("utf-8"),
            unit=str(head["plan"].get("unit", "tokens")),
            head=head["run"],
            measures=_measures(head["measures"], declared),
            prediction=head["shared/prediction"],
            levels=levels,
            planned=sum(len(chain.due) for chain in known) + unknown * len(self._due(None)),
            arms=tuple(arms),
            rule=rule,
            notes=(*self.notes, *self.damage),
            damage=tuple(self.damage),
        )

    def _head(self, name: str, kind: type[Any], faults: Sequence[str]) -> Any:
        """A JSON file of no generation; an empty value where it is not there, or damaged."""
        path = self.path / name
        if not path.is_file() or any(fault.startswith(f"{path} ") for fault in faults):
            return kind()
        try:
            value = json.loads(path.read_text("utf-8"))
        except ValueError:
            self.damage.append(f"{path} is not JSON; it is left out. {_AGAIN} it written anew.")
            return kind()
        return value if isinstance(value, kind) else kind()

    def _due(self, ended: End | None) -> tuple[int, ...]:
        """The generations that a complete chain has measured."""
        count = int(self.config.get("generations", 1)) if ended is None else ended.generation
        every = int(self.config.get("eval_every", 1))
        return tuple(commits(count - 1, every))

    def _chains(self, folder: Path) -> Iterable[Chain]:
        """The chains of an arm: one a seed, or one that holds all seeds."""
        found = [] if not folder.is_dir() else sorted(folder.glob("seed-*"), key=_seed_of)
        for path in (p for p in found if _seed_of(p) >= 0 and p.is_dir()):
            yield from self._chain(path, f"{folder.name}, seed {_seed_of(path)}", [_seed_of(path)])
        yield from self._chain(folder / "seeds", folder.name, self.seeds)

    def _chain(self, path: Path, where: str, seeds: Sequence[int]) -> Iterable[Chain]:
        ended = self._ended(path, where)
        due = self._due(ended)
        found = tuple(self._generations(path, where, due))
        took = times(path)
        for seed in seeds if found else ():
            own = []
            for generation, scores in found:
                keyed = {(s.measure, s.on): s for s in scores if s.seed in (None, seed)}
                one = dataclasses.replace(
                    generation, scores=keyed, took=took.get(generation.number)
                )
                if seed != seeds[0]:  # pictures are of the first seed
                    one = dataclasses.replace(one, picture={}, grid={})
                own.append(one)
            yield Chain(seed, tuple(own), due, ended)

    def _ended(self, path: Path, where: str) -> End | None:
        try:
            found = ChainStore(path).ended()
        except ValueError as fault:
            told = f"{fault}; that arm {where} ended is left out. Start the run again."
            self.damage.append(told)
            return None
        if found is not None:
            self.notes.append(
                f"Arm {where} ended before generation {found.generation}: {found.reason}. What it "
                "had reached is shown."
            )
        return found

    def _generations(
        self, path: Path, where: str, due: Sequence[int]
    ) -> Iterable[tuple[Generation, list[Score]]]:
        """The generations of a chain, each with all its scores, of whatever seed."""
        for number in ChainStore(path).committed():
            place = ChainStore(path).path(number)
            if number not in due:
                continue  # the last one of a chain that is growing
            faults = list(inspect(place).faults)
            needed = tuple(f"{place / name} " for name in _FILES)
            left_out = next((fault for fault in faults if fault.startswith(needed)), None)
            if left_out is None:
                try:
                    yield _generation(number, place, self.seeds, self.benchmarks)
                except _UNREADABLE as error:
                    left_out = f"it cannot be read ({type(error).__name__})"
            if left_out is not None:
                told = f"Generation {number} of {where} is left out: {left_out}"
                self.damage.append(f"{told}. {_AGAIN} it done anew.")
            self.damage += [
                f"{fault}. {_AGAIN} generation {number} of {where} done anew."
                for fault in faults
                if fault != left_out
            ]


def _engines(arms: Sequence[Arm]) -> list[str]:
    """Which arms were written by an engine whose texts depend on more than the seed."""
    found: dict[str, dict[str, None]] = {}
    for arm in arms:
        for told in (g.engine for chain in arm.chains for g in chain.generations):
            if told.get("batch_invariant") is False:
                name = f"{told.get('engine')} {told.get('version')} on {told.get('device')}"
                found.setdefault(name, {})[arm.name] = None
    return [
        f"{', '.join(names)}: written by {name}, which was not batch-invariant: how rows fell into "
        "batches may have changed the rounding of sums, so the texts may differ from run to run."
        for name, names in found.items()
    ]


def _seed_of(path: Path) -> int:
    """The seed that a chain's folder is named after; -1: it is none's."""
    found = re.fullmatch(r"seed-(\d+)", path.name)
    return int(found[1]) if found else -1


# --- files ------------------------------------------------------------------------------------

_UNREADABLE = (OSError, KeyError, TypeError, ValueError, AttributeError, pa.ArrowException)


def _generation(
    number: int, folder: Path, seeds: Sequence[int], benchmarks: Sequence[str]
) -> tuple[Generation, list[Score]]:
    told, _ = read_manifest(folder)
    files = {name: (folder / name).read_bytes() for name in _FILES if name in told}
    generation = Generation(
        number,
        scores={},
        **{field: json.loads(files.get(name, b"{}")) for field, name in _PLAIN.items()},
        grid=load_safetensors(files[_GRID]) if _GRID in files else {},
        passages=tuple(_passage(row) for row in _rows(files.get(_PASSAGES, b""))),
        answers=_answers(files[_QUESTIONS]) if _QUESTIONS in files else None,
        formats=_format_answers(files[_FORMATS]) if _FORMATS in files else {},
    )
    rows = [row | {"measure": renamed(row["measure"], benchmarks)} for row in _rows(files[_SCORES])]
    return generation, [score for row in rows for score in _scores(row, seeds)]


def _rows(data: bytes) -> list[dict[str, Any]]:
    # not splitlines: that would also cut at U+2028 and others inside a model's text
    return [json.loads(line) for line in data.decode("utf-8").split("\n") if line]


def _scores(row: dict[str, Any], seeds: Sequence[int]) -> list[Score]:
    values = row.pop("by_seed", None)  # earlier versions put those of all seeds into one row
    if values is None:
        return [Score(**row)]
    row["stderr"] = None
    return [
        Score(**row | {"value": value, "seed": seed})
        for seed, value in zip(seeds, values, strict=True)
    ]


def _passage(row: Mapping[str, Any]) -> Passage:
    tokens = tuple(str(token) for token in row["tokens"])
    changed = tuple(bool(c) for c in row["changed"])
    if len(tokens) != len(changed):
        raise ValueError("as many marks as tokens are needed")
    return Passage(int(row["split"]), int(row["start"]), int(row["generation"]), tokens, changed)


def _answers(data: bytes) -> Answers:
    columns = ["id", "split", "variant", "true_log_prob", "false_log_prob"]
    table = pq.read_table(io.BytesIO(data), columns=columns, filters=[("variant", "==", "mean")])
    true, false = (table[name].to_numpy() for name in columns[3:])
    return Answers(
        ids=tuple(map(str, table["id"].to_pylist())),
        split=table["split"].to_numpy().astype(np.int64),
        right=np.where(true == false, 0.5, (true > false).astype(np.float64)),
    )


def _format_answers(data: bytes) -> dict[str, FormatAnswers]:
    """The answers by format."""
    names = ["id", "format", "right", "adherent", "confidence", "chance"]
    table = pq.read_table(io.BytesIO(data))
    if "certainty" in table.column_names:  # what earlier versions called it
        table = table.rename_columns({"certainty": "confidence"})
    out = {}
    for kind in dict.fromkeys(table["format"].to_pylist()):
        part = table.filter(pc.equal(table["format"], kind))
        right, adherent, confidence, chance = (
            part[name].to_numpy().astype(np.float64) for name in names[2:]
        )
        ids = tuple(map(str, part["id"].to_pylist()))
        out[str(kind)] = FormatAnswers(ids, right, adherent, confidence, float(chance.mean()))
    return out
