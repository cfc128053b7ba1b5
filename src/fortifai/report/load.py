"""Reads run folders into plain records. Finished generations only; never a model."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import load as load_safetensors

from fortifai.errors import InputError
from fortifai.evals.score import Score
from fortifai.loop.store import ChainStore, End, FileSum, inspect, read_manifest
from fortifai.report import answers
from fortifai.report.records import (
    DEFAULT_LEVELS,
    FIRST,
    Answers,
    Arm,
    Chain,
    Generation,
    Level,
    Passage,
    Run,
)
from fortifai.report.text import neutral

_SCORES, _LEDGER, _HISTOGRAMS = "scores.jsonl", "ledger.json", "histograms.json"
_DIRECTIONS = {"below": "below", "above": "above"}
_PASSAGES, _QUESTIONS = "passages.jsonl", "questions.parquet"
_PICTURE, _GRID = "picture.json", "grid.safetensors"
_FILES = (
    *(_SCORES, _LEDGER, _HISTOGRAMS, _PASSAGES, _QUESTIONS, _PICTURE, _GRID),
    *(answers.FORMATS, answers.PERPLEXITIES),
)


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
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise InputError(f"{path} was given twice; name each run folder once")
        seen.add(path.resolve())
    configs = [_read_config(path) for path in paths]
    names = [str(c.get("name") or p.name) for c, p in zip(configs, paths, strict=True)]
    labels = [neutral(label) for label in _labels(paths, names)]
    return tuple(
        _run(path, config, label, prefix=len(paths) > 1)
        for path, config, label in zip(paths, configs, labels, strict=True)
    )


def _labels(paths: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Names of the runs; where two are equal, the folders' names, or else numbers."""
    for candidate in (list(names), [p.resolve().name for p in paths]):
        if len(set(candidate)) == len(candidate):
            return candidate
    return [f"{name} ({i})" for i, name in enumerate(names, start=1)]


def _run(path: Path, config: Mapping[str, Any], label: str, *, prefix: bool) -> Run:
    declared = config["arms"]
    damage: list[str] = []
    head = _Head(path, damage)
    notes = [str(note) for note in head.read("notes.json", list)]
    seeds = [int(s) for s in config.get("seeds", [0])]
    arms = []
    for name, settings in declared.items():
        if str(name) in ("", ".", "..") or Path(str(name)).name != str(name):
            raise InputError(f"arm {str(name)!r} of {path} is not a plain name; it must be one")
        chains = tuple(_chains(path / "arms" / str(name), config, seeds, notes, damage))
        if chains:
            arms.append(
                Arm(
                    name=str(name),
                    label=neutral(f"{label}/{name}" if prefix else str(name)),
                    run=label,
                    baseline=str(name) == str(config.get("baseline")),
                    settings=settings if isinstance(settings, Mapping) else {},
                    chains=chains,
                )
            )
    if not arms:
        raise InputError(
            f"{path} has no {'whole' if damage else 'finished'} generation yet"
            f"{f' ({damage[0]})' if damage else ''}; wait for the first one, or start its run again"
        )
    known = sum(len(c.due) - len(_due(config, None)) for arm in arms for c in arm.chains)
    return Run(
        label=label,
        yaml=(path / "config.yaml").read_text("utf-8"),
        unit=str(head.read("plan.json", dict).get("unit", "tokens")),
        head=head.read("run.json", dict),
        prediction=head.read("shared/prediction.json", dict),
        levels=_levels(path, config.get("time_to_failure")),
        planned=len(declared) * len(seeds) * len(_due(config, None)) + known,
        arms=tuple(arms),
        rule=answers.rule(config.get("phases"), str(path / "config.yaml")),
        # what was read above has been told by now
        notes=(*notes, *damage),
        damage=tuple(damage),
    )


def _due(config: Mapping[str, Any], ended: End | None) -> tuple[int, ...]:
    """The generations that a complete chain has measured."""
    last = int(config.get("generations", 1)) - 1 if ended is None else ended.generation - 1
    return tuple(sorted({0, last, *range(0, last, int(config.get("every", 1)))}))


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
    return config


def _levels(path: Path, declared: Any) -> tuple[Level, ...]:
    if declared is None:
        return DEFAULT_LEVELS
    try:
        return tuple(
            Level(
                str(row["measure"]),
                str(row.get("on", FIRST)),
                "half_gain" if row["level"] == "half_gain" else float(row["level"]),
                _DIRECTIONS[row.get("direction", "below")],
            )
            for row in declared
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path / 'config.yaml'}: time_to_failure must be a list of measure, on, level (a "
            "number or half_gain) and direction (below or above)"
        ) from error


class _Head:
    """The files of a run that belong to no generation, without those that are damaged."""

    def __init__(self, path: Path, damage: list[str]) -> None:
        self._path, self._damage = path, damage
        self._faults = (*inspect(path).faults, *inspect(path / "shared").faults)
        for fault in self._faults:
            config = fault.startswith(f"{path / 'config.yaml'} ")
            what = "it is read as it is" if config else "it is left out"
            damage.append(f"{fault}; {what}. Start the run again to have it written anew.")

    def read(self, name: str, kind: type[Any]) -> Any:
        """A JSON file, or an empty value where it is not written yet, or damaged."""
        path = self._path / name
        if not path.is_file() or any(fault.startswith(f"{path} ") for fault in self._faults):
            return kind()
        try:
            value = json.loads(path.read_text("utf-8"))
        except ValueError:
            self._damage.append(
                f"{path} is not JSON; it is left out. Start the run again to have it written anew."
            )
            return kind()
        return value if isinstance(value, kind) else kind()


# --- generations ------------------------------------------------------------------------------


def _chains(
    folder: Path,
    config: Mapping[str, Any],
    seeds: Sequence[int],
    notes: list[str],
    damage: list[str],
) -> Iterable[Chain]:
    for seed, path in _numbered(folder, r"seed-(\d+)"):
        where = f"{folder.name}, seed {seed}"
        ended = _ended(path, where, notes, damage)
        due = _due(config, ended)
        found = tuple(_generations(path, where, due, damage))
        if found:
            yield Chain(seed, found, due, ended)
    path = folder / "seeds"  # all seeds in one chain
    ended = _ended(path, folder.name, notes, damage)
    due = _due(config, ended)
    together = tuple(_generations(path, folder.name, due, damage))
    for i, seed in enumerate(seeds if together else ()):
        yield Chain(seed, tuple(_of_seed(g, i) for g in together), due, ended)


def _generations(
    path: Path, where: str, due: Sequence[int], damage: list[str]
) -> Iterable[Generation]:
    for number in ChainStore(path).committed():
        place = ChainStore(path).path(number)
        if number not in due:
            continue  # the last one of a chain that is growing
        faults = list(inspect(place).faults)
        try:
            yield _generation(number, place)
        except _Damaged as found:
            if found.name is not None:
                faults = [f for f in faults if not f.startswith(f"{place / found.name} ")]
            damage.append(
                f"Generation {number} of {where} is left out: {found}. "
                "Start the run again to have it done anew."
            )
        damage += [
            f"{fault}. Start the run again to have generation {number} of {where} done anew."
            for fault in faults
        ]


def _ended(path: Path, where: str, notes: list[str], damage: list[str]) -> End | None:
    try:
        found = ChainStore(path).ended()
    except ValueError as fault:
        damage.append(f"{fault}; that arm {where} ended is left out. Start the run again.")
        return None
    if found is not None:
        notes.append(
            f"Arm {where} ended before generation {found.generation}: {found.reason}. What it had "
            "reached is shown."
        )
    return found


def _of_seed(generation: Generation, i: int) -> Generation:
    """One seed's part of a generation that holds all seeds; pictures are of the first seed."""
    scores = {
        key: score
        if score.by_seed is None
        else dataclasses.replace(score, value=score.by_seed[i], stderr=None, by_seed=None)
        for key, score in generation.scores.items()
    }
    if i:
        return dataclasses.replace(generation, scores=scores, picture={}, grid={})
    return dataclasses.replace(generation, scores=scores)


def _numbered(folder: Path, pattern: str) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(re.fullmatch(pattern, p.name), p) for p in folder.iterdir() if p.is_dir()]
    return sorted((int(m.group(1)), p) for m, p in found if m)


class _Damaged(Exception):  # noqa: N818 - caught here, told as a note
    """A generation's files are not what its manifest says.

    Attributes:
        name: The first of them, or None where they are whole and cannot be read.
    """

    def __init__(self, told: str, name: str | None = None) -> None:
        super().__init__(told)
        self.name = name


def _generation(number: int, folder: Path) -> Generation:
    try:
        told, _ = read_manifest(folder)
        files = {name: _checked(folder, name, told[name]) for name in _FILES if name in told}
        histograms = json.loads(files.get(_HISTOGRAMS, b"{}"))
        scores = [_score(row) for row in _rows(files[_SCORES])]
        return Generation(
            number=number,
            scores={(score.measure, score.on): score for score in scores},
            ledger=json.loads(files.get(_LEDGER, b"{}")),
            bins=tuple(float(edge) for edge in histograms.get("bins", ())),
            counts={
                str(on): tuple(int(n) for n in counts)
                for on, counts in histograms.get("counts", {}).items()
            },
            passages=tuple(_passage(row) for row in _rows(files.get(_PASSAGES, b""))),
            answers=_answers(files[_QUESTIONS]) if _QUESTIONS in files else None,
            picture=json.loads(files.get(_PICTURE, b"{}")),
            grid=load_safetensors(files[_GRID]) if _GRID in files else {},
            formats=answers.format_answers(files.get(answers.FORMATS)),
            perplexities=answers.perplexities(files.get(answers.PERPLEXITIES)),
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise _Damaged(f"it cannot be read ({type(error).__name__})") from error


def _score(row: dict[str, Any]) -> Score:
    by_seed = row.get("by_seed")
    return Score(**row | {"by_seed": tuple(by_seed) if by_seed is not None else None})


def _checked(folder: Path, name: str, told: FileSum) -> bytes:
    path = folder / name
    if not path.is_file():
        raise _Damaged(f"{name} is missing", name)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != told.sha256:
        raise _Damaged(f"{name} has changed (its SHA-256 differs from the manifest's)", name)
    return data


def _rows(data: bytes) -> list[dict[str, Any]]:
    # not splitlines: that would also cut at U+2028 and others inside a model's text
    return [json.loads(line) for line in data.decode("utf-8").split("\n") if line]


def _passage(row: Mapping[str, Any]) -> Passage:
    tokens = tuple(str(token) for token in row["tokens"])
    changed = tuple(bool(c) for c in row["changed"])
    if len(tokens) != len(changed):
        raise ValueError("as many marks as tokens are needed")
    return Passage(int(row["split"]), int(row["start"]), int(row["generation"]), tokens, changed)


def _answers(data: bytes) -> Answers:
    columns = ["id", "split", "variant", "true_log_prob", "false_log_prob"]
    table = pq.read_table(io.BytesIO(data), columns=columns).to_pydict()
    rows = [i for i, variant in enumerate(table["variant"]) if variant == "mean"]
    true = np.array([table["true_log_prob"][i] for i in rows], dtype=np.float64)
    false = np.array([table["false_log_prob"][i] for i in rows], dtype=np.float64)
    return Answers(
        ids=tuple(str(table["id"][i]) for i in rows),
        split=np.array([table["split"][i] for i in rows], dtype=np.int64),
        right=np.where(true == false, 0.5, (true > false).astype(np.float64)),
    )
