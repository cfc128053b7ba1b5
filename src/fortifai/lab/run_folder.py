"""The head of a run folder: what was asked for, on what machine, and the sums of those files.

    config.yaml  run.json  plan.json  notes.json  measures.json  manifest.json

A run that is taken up again may ask for more generations than it was started with, and for other
levels and phases in its report; everything else must be as it was. The configuration on the disk is
read as today's would be, so that a key which is newer than the run has its default.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fortifai import __version__, files
from fortifai.errors import InputError
from fortifai.lab.domain import Domain
from fortifai.lab.plan import plan
from fortifai.lab.spec import AnyExperiment, as_today
from fortifai.lab.store import LOCK, MANIFEST, inspect, read_manifest
from fortifai.machine import machine, source_commit

CONFIG, RUN, PLAN, NOTES = "config.yaml", "run.json", "plan.json", "notes.json"
MEASURES = "measures.json"


def read_config(folder: Path, kind: type[AnyExperiment]) -> AnyExperiment:
    """The resolved configuration of a run folder.

    Args:
        folder: The run folder.
        kind: The experiment that it is one of.

    Raises:
        InputError: It is not a run folder, or its configuration cannot be read as such.
    """
    path = folder / CONFIG
    try:
        return kind.model_validate(read_plain(folder))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors()]
        raise InputError(
            f"{path} cannot be read as a run of {kind.unit} by this version of fortifai "
            f"({'; '.join(faults[:3])}); choose another --out, or go on with the version that "
            "started the run"
        ) from error


def read_plain(folder: Path) -> dict[str, Any]:
    """The same, as plain lists, mappings and numbers, whatever the kind of experiment.

    Raises:
        InputError: It is not a run folder, or its configuration is no YAML mapping.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder} is not a run folder: it has no {CONFIG}")
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as YAML; choose another --out") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path} holds no configuration; choose another --out")
    return as_today(raw)


def plain(experiment: AnyExperiment) -> dict[str, Any]:
    """The resolved configuration as plain lists, mappings and numbers."""
    out: dict[str, Any] = experiment.model_dump(mode="json")
    return out


def dump(experiment: AnyExperiment) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(plain(experiment), sort_keys=False, allow_unicode=True, width=100)


def difference(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys in which two plain configurations differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [
            name
            for k in keys
            for name in difference(old.get(k), new.get(k), f"{prefix}.{k}" if prefix else str(k))
        ]
    return [] if old == new else [prefix]


def earlier(experiment: AnyExperiment, out: Path) -> AnyExperiment | None:
    """The configuration that `out` was last run with; None where it is new.

    Raises:
        InputError: `out` holds something else, or a run that cannot go on as `experiment`.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; a run is a folder, so choose another --out")
    if _written_sum(out) == hashlib.sha256(dump(experiment).encode("utf-8")).hexdigest():
        return experiment  # whatever has become of the file since, which is then written anew
    if not (out / CONFIG).exists():
        left = set(out.iterdir()) - set(_left(out)) if out.exists() else set()
        if any(not path.name.startswith(LOCK) for path in left):
            raise InputError(f"{out} holds other files and is not a run; choose another --out")
        return None
    found = read_config(out, type(experiment))
    if found.generations > experiment.generations:
        raise InputError(
            f"{out} was started with {found.generations} generations and {experiment.generations} "
            f"are asked for; ask for {found.generations} or more, or choose another --out"
        )
    keys = [
        key
        for key in difference(plain(found), plain(experiment))
        if key.partition(".")[0] not in experiment.only_reported
    ]
    if found.generations < experiment.generations:
        may_grow = {"generations"}
        if found.split_count == found.generations and _a_split_each(experiment):
            may_grow.add("splits.count")
        keys = [key for key in keys if key not in may_grow]
    if keys:
        raise InputError(
            f"{out} was started with another configuration; these keys differ: {', '.join(keys)}; "
            f"restore them or choose another --out{_damage(out)}"
        )
    return found


def _written_sum(out: Path) -> str | None:
    """What the manifest says of the configuration that was written."""
    try:
        return read_manifest(out)[0][CONFIG].sha256
    except (OSError, ValueError, KeyError):
        return None


def _a_split_each(experiment: AnyExperiment) -> bool:
    return any(arm.regime.a_split_each for arm in experiment.arms.values())


def _damage(out: Path) -> str:
    told = [fault for fault in inspect(out).faults if CONFIG in fault]
    return f" ({told[0]})" if told else ""


# --- writing ----------------------------------------------------------------------------------


def sweep(out: Path) -> None:
    """Remove files of the head that a killed process left half-written."""
    for path in _left(out):
        path.unlink()


def _left(out: Path) -> list[Path]:
    names = (CONFIG, RUN, PLAN, NOTES, MEASURES, MANIFEST)
    return [path for name in names for path in out.glob(f"{name}.*.partial")]


def write_head(experiment: AnyExperiment, data: Domain, out: Path) -> None:
    """Write the head of a new run; the configuration first, for it makes the folder a run."""
    texts = _texts(experiment, data)
    for name in reversed(texts):
        files.write_whole(out / name, texts[name])
    _write_sums(texts, out)


def renew_head(
    experiment: AnyExperiment,
    before: AnyExperiment,
    data: Domain,
    out: Path,
    tell: Callable[[str], None],
) -> None:
    """Write anew what has changed of the head, is damaged, or is missing."""
    texts = _texts(experiment, data)
    found = inspect(out).faults
    for fault in found:
        tell(f"{fault}; it is written anew")
    for name in _changed_plugins(experiment, out):
        tell(
            f"the plugin {name} is another one than this run began with; generations that are "
            "whole stay as they were made, so start a new run if it made them differently"
        )
    changed = {name for name in texts if any(f"{out / name} " in fault for fault in found)}
    changed |= {name for name in texts if not (out / name).exists()}
    if plain(before) != plain(experiment):
        changed |= {PLAN, NOTES, MEASURES, CONFIG}
    for name in (n for n in texts if n in changed):
        files.write_whole(out / name, texts[name])
    there = {name: (out / name).read_bytes().decode("utf-8") for name in texts}
    if changed or found or not (out / MANIFEST).exists():
        _write_sums(there, out)


def _changed_plugins(experiment: AnyExperiment, out: Path) -> list[str]:
    try:
        began = json.loads((out / RUN).read_text("utf-8")).get("plugins", {})
    except (OSError, ValueError, AttributeError):
        return []  # which the sums tell of
    sums = experiment.plugins.sums()
    return [name for name, told in sums.items() if began.get(name, told) != told]


def _texts(experiment: AnyExperiment, data: Domain) -> dict[str, str]:
    """The files of the head; the configuration last, which says that the others are renewed."""
    return {
        RUN: _json(_made_by(experiment)),
        NOTES: _json(list(data.notes)),
        MEASURES: _json([measure.record() for measure in experiment.taken()]),
        PLAN: _json(dataclasses.asdict(plan(experiment, data))),
        CONFIG: dump(experiment),
    }


def _write_sums(texts: dict[str, str], out: Path) -> None:
    sums = {}
    for name, text in sorted(texts.items()):
        data = text.encode("utf-8")
        sums[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files.write_whole(out / MANIFEST, _json({"files": sums, "droppable": {}}))


def _json(data: Any) -> str:
    return json.dumps(data, indent=1) + "\n"


def _made_by(experiment: AnyExperiment) -> dict[str, Any]:
    packages = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "scikit-learn")
    return {
        "name": experiment.name,
        "version": __version__,
        "commit": source_commit(),
        "versions": {
            "python": platform.python_version(),
            **{p: importlib.metadata.version(p) for p in packages},
        },
        "machine": machine(accelerated=experiment.accelerated),
        **({"plugins": experiment.plugins.sums()} if experiment.plugins.names else {}),
    }
