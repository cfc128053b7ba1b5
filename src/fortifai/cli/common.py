"""What several commands share: reading models and texts that the user named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from fortifai.cli.plain import Lines, draws_bars
from fortifai.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fortifai.data.text import Corpus
    from fortifai.data.tokens import Bos
    from fortifai.models.causal_lm import CausalLM

FOUND = 3
"""Exit code of a check that found something."""

Column = Annotated[str, typer.Option(help="Column of rows that holds the text.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
BosOption = Annotated[
    # spelled out: a command line starts without the modules that know of tokens
    Literal["auto", "always", "never"] | None,
    typer.Option(
        "--bos",
        help="Begin every sequence with the beginning-of-text token: auto (where the model was "
        "trained so), always or never.",
    ),
]

_CONFIGS = ("config.json", "adapter_config.json")

out_console = Console()
err_console = Console(stderr=True)


def say(line: str) -> None:
    """Print a line of text that may hold anything."""
    out_console.print(Text(line), soft_wrap=True)


def read_corpus(text: str, column: str) -> Corpus:
    """A text file, a table's column, or all that a glob names."""
    from fortifai.data.text import read_text

    return read_text([text], root=Path.cwd(), column=column)


def load_model(name: str, device: str | None, bos: Bos | None = None) -> CausalLM:
    """A model that fortifai saved, another folder, or a hub id.

    Args:
        name: The model.
        device: Where to put it; None: an accelerator if there is one.
        bos: Whether sequences begin with bos; None: as the model was saved, else ``auto``.

    Raises:
        InputError: There is none, or no such device.
    """
    _check_folder(name)
    from fortifai.models.causal_lm import SETTINGS_FILE, CausalLM

    saved = (Path(name) / SETTINGS_FILE).is_file()
    if device is not None:
        import torch

        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"--device is {device!r}, which is not here; use cpu, or leave it out"
            ) from error
    if saved:
        return CausalLM.load(Path(name), device=device, bos=bos)
    return CausalLM.from_base(name, device=device, bos=bos or "auto")


def _check_folder(name: str) -> None:
    """Refuse a folder that is not a model's, with the nearest that is."""
    from fortifai.models.hub import locate

    folder = Path(name)
    # one with an adapter alone names its base model in it
    if not folder.is_dir() or any((folder / file).is_file() for file in _CONFIGS):
        return
    if locate(name).gguf is not None:
        return
    found = sorted(
        path.parent
        for where in ("model", "arms/*/seed-*/generation-*/model")
        for file in _CONFIGS
        for path in folder.glob(f"{where}/{file}")
    )
    what = "is a run, not a model" if (folder / "arms").is_dir() else "holds no model"
    if found:
        raise InputError(f"{name} {what}; give one of its models, such as {found[-1]}")
    raise InputError(
        f"{name} {what}: there is no config.json; give a model's folder, a GGUF file or a hub id"
    )


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each thing that is being done, gone at the end; lines without a terminal.

    The lines are few: see `fortifai.cli.plain`.
    """
    if not draws_bars(err_console):
        line = Lines(err_console)
        yield lambda what, done, total: line(what, f"{done:,} of {total:,}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err_console, transient=True) as progress:
        tasks: dict[str, list[int]] = {}

        def tick(what: str, done: int, total: int) -> None:
            open_ = tasks.setdefault(what, [])
            # the same thing a second time (the base model) is a bar of its own
            if not open_ or progress.tasks[open_[-1]].finished:
                open_.append(progress.add_task(what, total=total))
            progress.update(progress.tasks[open_[-1]].id, completed=done, total=total)

        yield tick
