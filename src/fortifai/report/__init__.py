"""Run folders in, figures and one HTML file out; never a live model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fortifai import files
from fortifai.errors import InputError

__all__ = ["write_report"]


def write_report(
    runs: Sequence[Path],
    out: Path | None = None,
    *,
    interactive: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    sum_up: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the report of one run, finished or not, or of several side by side.

    Args:
        runs: Run folders.
        out: Folder to write ``index.html`` and ``figures/*.svg`` into; ``report`` in the first
            run's folder if None.
        interactive: Put a script into the page: lines with values under the pointer, arms and
            seeds switched on and off, a browser of samples. Without a script it is read as before.
        tell: Receives one sentence for each damaged file, with what is left out for it, and for
            each level of time to failure that no generation can be held to.
        sum_up: Receives, once the report is written, what was seen: the headline and, of one run
            with several arms, how they differ from the baseline in what the report leads with.

    Returns:
        The path of ``index.html``. The same runs give the same bytes.

    Raises:
        InputError: A folder is not a run, or none of its generations is finished yet; or `out` is
            a file.
        RunFailed: The report could not be written.
    """
    # here, so that the command line starts without matplotlib
    from fortifai.report.context import context
    from fortifai.report.failure import failures
    from fortifai.report.figures import draw_all
    from fortifai.report.interactive import live
    from fortifai.report.load import load
    from fortifai.report.page import fill
    from fortifai.report.scene import Scene
    from fortifai.report.words import summary

    read = load(runs)
    for sentence in (sentence for run in read for sentence in run.damage):
        tell(sentence)
    folder = Path(runs[0]) / "report" if out is None else Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for the report")
    times = failures(read)
    for sentence in times.unmeasured:
        tell(sentence)
    scene = Scene(read, times.drawn)
    plots = draw_all(scene)
    page = fill(
        "template.html.j2",
        live=live(scene, plots) if interactive else None,
        **context(scene, plots, times),
    )
    with files.writing("the report", folder, "another folder with --out"):
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for plot in plots:
            files.write_whole(folder / "figures" / f"{plot.name}.svg", plot.file)
        files.write_whole(folder / "index.html", page)
    for sentence in summary(read):
        sum_up(sentence)
    return folder / "index.html"
