"""How far the chains of a run folder are, for any machine that sees it; never loads a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from fortifai import files
from fortifai.errors import InputError
from fortifai.lab.history import commits
from fortifai.lab.run_folder import PLAN, read_plain
from fortifai.lab.store import LOCK, STATE, ChainStore, inspect

State = Literal["finished", "running", "waiting", "failed"]


@dataclasses.dataclass(frozen=True, slots=True)
class ChainStatus:
    """How far one chain is.

    Attributes:
        chain: Its arm and its name, such as ``ce/seed-0``.
        state: What is with it. A chain whose process was killed has failed.
        done: Generations that are committed and whole.
        due: Generations that it commits in all.
        told: Who works on it and since when, why it failed or ended, what is damaged.
    """

    chain: str
    state: State
    done: int
    due: int
    told: str = ""


def read(folder: Path) -> list[ChainStatus]:
    """The chains of a run, arm by arm. Every file is held against its sum, as the report does.

    Raises:
        InputError: It is not a run folder.
    """
    config = read_plain(folder)
    try:
        count, every = int(config["generations"]), int(config.get("eval_every", 1))
        arms = [str(arm) for arm in config["arms"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder} is not a run folder of fortifai; give that of a run") from error
    return [
        _chain(folder / "arms" / arm / name, count, every)
        for arm in arms
        for name in _names(folder, arm, config)
    ]


def _names(folder: Path, arm: str, config: dict[str, Any]) -> list[str]:
    try:
        return [str(name) for name in json.loads((folder / PLAN).read_text("utf-8"))["chains"]]
    except (OSError, ValueError, KeyError, TypeError):  # of an earlier version, or damaged
        found = sorted(p.name for p in (folder / "arms" / arm).glob("seed*"))
        return found or [f"seed-{seed}" for seed in config.get("seeds", [0])]


def _chain(folder: Path, count: int, every: int) -> ChainStatus:
    store = ChainStore(folder)
    try:
        ended = store.ended()
    except ValueError:  # a mark that the next run takes back
        ended = None
    due = commits((count if ended is None else ended.generation) - 1, every)
    health = [inspect(store.path(generation)) for generation in due]
    done = sum(found.whole for found in health)
    faults = [fault for found in health for fault in found.faults]
    name, state = f"{folder.parent.name}/{folder.name}", _state(folder)
    if (holder := files.holder(folder / LOCK)) and holder.alive:
        since = f" since {state['since']}" if "since" in state else ""
        return ChainStatus(name, "running", done, len(due), f"{holder}{since}")
    if "failed" in state:
        return ChainStatus(name, "failed", done, len(due), str(state["failed"]))
    if state:
        gone = f"{holder or 'its process'} is gone (killed, or out of memory?)"
        return ChainStatus(name, "failed", done, len(due), gone)
    if done == len(due) and not store.stale():
        told = "" if ended is None else f"ended at generation {ended.generation}: {ended.reason}"
        return ChainStatus(name, "finished", done, len(due), told)
    return ChainStatus(name, "waiting", done, len(due), "; ".join(faults))


def _state(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / STATE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
