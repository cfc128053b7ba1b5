"""Every figure of a report, in the order in which it shows them."""

from __future__ import annotations

from fortifai.report import distributions, formats, lines, samples, style
from fortifai.report.scene import Plot, Scene


def draw_all(scene: Scene) -> list[Plot]:
    """What the runs have the numbers for.

    Scores are drawn by what their measures say of themselves; what is kept beside the scores
    (pictures, histograms, answers, ledgers) has a figure of its own.
    """
    with style.drawing():
        made = [
            *(lines.lead_figure(scene, key) for key in scene.leads),
            lines.splits_figure(scene),
            samples.histograms(scene),
            samples.scatter(scene),
            samples.images(scene),
            *lines.by_panel(scene),
            formats.in_formats(scene),
            distributions.confidence(scene),
            distributions.perplexity(scene),
            distributions.ledger(scene),
        ]
    return [figure for figure in made if figure is not None]
