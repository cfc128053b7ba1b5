"""The command `fortifai`."""

from __future__ import annotations

import os
import sys
import traceback
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fortifai.cli import kr
from fortifai.cli.audit import audit, threshold
from fortifai.cli.common import Debug
from fortifai.cli.doctor import doctor
from fortifai.cli.stopping import stoppable
from fortifai.errors import FortifaiError, InputError, Stopped
from fortifai.report.text import neutral

if TYPE_CHECKING:
    from fortifai.lab.executor import Executor
    from fortifai.lab.spec import AnyExperiment

app = typer.Typer(
    name="fortifai",
    help="Recursive training of generative models: how fast it collapses, and what slows that.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(kr.app)
app.command()(audit)
app.command()(threshold)
app.command()(doctor)
out_console = Console()
err_console = Console(stderr=True)

Source = Annotated[str, typer.Argument(metavar="PRESET_OR_FILE", help="A preset or a YAML file.")]
Plugin = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE",
        help="A Python module whose PLUGIN lists weights, measures, cures, regimes, corpora, steps "
        "after a fit that the YAML may name; may be repeated.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one key; may be repeated."),
]


def main() -> None:
    """Entry point: `app` with errors told in one sentence."""
    _guarded(lambda: app(standalone_mode=True), debug="--debug" in sys.argv)


def _guarded(command: Callable[[], Any], *, debug: bool) -> None:
    try:
        command()
    except FortifaiError as error:
        if debug:
            traceback.print_exc()
        word = "error" if error.exit_code == 2 else "failed"
        err_console.print(Text(f"{word}: {error}"), soft_wrap=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        err_console.print(
            Text(
                f"failed: {type(error).__name__}: {error}; this is a fault of fortifai, "
                "--debug shows where"
            ),
            soft_wrap=True,
        )
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        from fortifai import __version__

        out_console.print(f"fortifai {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Recursive training of generative models: how fast it collapses, and what slows that."""


@app.command()
def run(
    source: Source,
    out: Annotated[
        Path | None,
        typer.Option(help="The run folder; runs/NAME if not given. A run is taken up again."),
    ] = None,
    set_: Set = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Arms and seeds at a time; as many as have accelerators of their own, else the "
            "cores' number, if not given.",
        ),
    ] = None,
    devices_per_chain: Annotated[
        int | None, typer.Option(min=1, help="Accelerators of each; 1 if not given.")
    ] = None,
    chain: Annotated[
        str | None,
        typer.Option(
            metavar="ARM/SEED",
            help="Run this one alone, such as ce/seed-0; others may run elsewhere.",
        ),
    ] = None,
    executor: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Where they run: processes of this machine, or a Ray cluster."),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The Ray cluster, of which this machine is a node, or auto; one is started here "
            "for this run if not given.",
        ),
    ] = None,
    plugin: Plugin = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, do nothing.")
    ] = False,
    slurm: Annotated[
        bool,
        typer.Option("--slurm", help="Print a job array for SLURM, a task a chain; do nothing."),
    ] = False,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of that array; may be repeated."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Train, rewrite and measure generation after generation, then write the report."""
    with _left_on_signals():
        from fortifai import configuration
        from fortifai.lab import plugins

        raw, root = configuration.read_raw(source)
        parts = plugins.load(plugin or [])
        resolved = configuration.resolve(configuration.apply_set(raw, set_ or []), parts)
        _quiet_libraries()
        from fortifai.cli import terminal
        from fortifai.lab import experiment
        from fortifai.lab.plan import plan

        folder = out or Path("runs") / resolved.name
        if sbatch and not slurm:
            raise InputError("--sbatch is for the script that --slurm prints; give both or neither")
        if chain is not None and slurm:
            raise InputError("--slurm prints a script of all chains; give it without --chain")
        if ray_address is not None and executor != "ray":
            raise InputError("--ray-address is for --executor ray; give both or neither")
        if slurm and executor == "ray":
            raise InputError(
                "--slurm prints a script whose tasks run each on their own; give it without "
                "--executor ray, or start a Ray cluster within a job of SLURM"
            )
        if slurm:
            typer.echo(_slurm_script(resolved, source, folder, set_, plugin, sbatch), nl=False)
            return
        only = None if chain is None else experiment.chain_named(resolved, chain)
        if dry_run:
            data = resolved.read(root)
            terminal.print_plan(out_console, resolved, plan(resolved, data), folder)
            return
        count = len(experiment.chains(resolved)) if only is None else 1
        with terminal.watching(resolved, err_console, count) as listen:
            experiment.run(
                *(resolved, root, folder),
                workers=workers,
                devices=devices_per_chain,
                only=only,
                listen=listen,
                executor=_executor(executor, ray_address),
            )
        if only is not None:
            out_console.print(Text(f"finished: {chain} of {folder}"), soft_wrap=True)
            return
        from fortifai.report import write_report

        _show_report(write_report([folder], tell=_warn, sum_up=_sum_up))


def _executor(name: str, ray_address: str | None) -> Executor:
    if name == "ray":
        from fortifai.lab.ray_executor import cluster

        return partial(cluster, ray_address)
    from fortifai.lab.executor import local

    return local


@contextmanager
def _left_on_signals() -> Iterator[None]:
    try:
        with stoppable():
            yield
    except Stopped as stopped:
        err_console.print(
            "stopped; the same command goes on from the last whole generation", soft_wrap=True
        )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stopped.exit_code)  # what libraries tidy up at an ordinary exit takes seconds


def _slurm_script(
    resolved: AnyExperiment,
    source: str,
    folder: Path,
    set_: list[str] | None,
    plugin: list[str] | None,
    sbatch: list[str] | None,
) -> str:
    from fortifai.cli import slurm
    from fortifai.lab import experiment

    command = ["fortifai", "run", source, "--out", str(folder)]
    command += [word for one in set_ or [] for word in ("--set", one)]
    command += [word for one in plugin or [] for word in ("--plugin", one)]
    options = [f"cpus-per-task={resolved.threads * resolved.processes}", *(sbatch or [])]
    return slurm.script(resolved.name, str(folder), command, experiment.chains(resolved), options)


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    debug: Debug = False,
) -> None:
    """Show which chains of a run are finished, running (and where), waiting or failed."""
    from fortifai.cli import terminal
    from fortifai.lab import status as found

    terminal.print_status(out_console, found.read(folder))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One or more run folders.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report; RUN/report if not given.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    interactive: Annotated[
        bool | None,
        typer.Option(
            "--interactive/--plain",
            help="With a script in it (values under the pointer, arms and seeds on and off, a "
            "browser of samples), or without; with one if it is opened, else without.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the report of a run, finished or not, or of several side by side."""
    from fortifai.report import write_report

    wanted = open_ if interactive is None else interactive
    path = write_report(runs, out, interactive=wanted, tell=_warn, sum_up=_sum_up)
    _show_report(path)
    if open_ and not webbrowser.open(path.resolve().as_uri()):
        _warn("no browser was found to open it in; open that file yourself")


@app.command()
def league(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders of the presets league-...."),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for league.json, league.md and the page.")
    ] = Path("league"),
    debug: Debug = False,
) -> None:
    """Compare cures at an equal budget: run folders of the league's presets in, one table out."""
    from fortifai.report.league_page import write_league

    path = write_league(runs, out)
    out_console.print(Text((out / "league.md").read_text("utf-8")), soft_wrap=True)
    _show_report(path)


def _show_report(path: Path) -> None:
    out_console.print(Text(f"report: {path.resolve()}"), soft_wrap=True)


def _sum_up(sentence: str) -> None:
    out_console.print(Text(neutral(sentence)), soft_wrap=True)


def _warn(sentence: str) -> None:
    err_console.print(Text(sentence), soft_wrap=True, highlight=False)


@app.command()
def presets() -> None:
    """List the presets."""
    from fortifai import configuration

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("preset", no_wrap=True)
    table.add_column("what it is")
    for name in configuration.preset_names():
        raw, _ = configuration.read_raw(name)
        table.add_row(name, Text(" ".join(str(raw.get("description", "")).split())))
    out_console.print(table)


@app.command()
def show(source: Source, set_: Set = None, plugin: Plugin = None, debug: Debug = False) -> None:
    """Print the resolved YAML of a preset or file: every key, every arm."""
    from fortifai import configuration
    from fortifai.lab import plugins, run_folder

    raw, _ = configuration.read_raw(source)
    parts = plugins.load(plugin or [])
    resolved = configuration.resolve(configuration.apply_set(raw, set_ or []), parts)
    typer.echo(run_folder.dump(resolved), nl=False)


def _quiet_libraries() -> None:
    """Keep other libraries' bars and chatter off the terminal, which shows our progress.

    Through the environment, before they are imported: the processes of `--workers` inherit it.
    """
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
    ):
        os.environ.setdefault(name, value)
