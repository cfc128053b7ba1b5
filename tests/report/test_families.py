"""Reports of Gaussians, mixtures and image models, on run folders that are really run here."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Ellipse, StepPatch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy import integrate, stats

from fortifai import configuration
from fortifai.lab import experiment
from fortifai.lab.spec import FailureLevel
from fortifai.lab.store import write_json
from fortifai.points import theory
from fortifai.report import style, words, write_report
from fortifai.report.failure import failures, ratio
from fortifai.report.figures import draw_all
from fortifai.report.load import load
from fortifai.report.scene import Plot, Scene, series

from .fake import scores_of
from .test_report import Page, outside, sentences, told
from .test_report import table as cells_of

Floats = NDArray[np.float64]

A, BIAS, POINTS = 0.6, 0.9, 200
LEVELS: list[dict[str, Any]] = [
    {"measure": "variance.ratio", "on": "model", "level": 0.5, "direction": "below"},
    {"measure": "variance.ratio", "on": "model", "level": 50.0, "direction": "above"},
    {"measure": "wasserstein", "on": "rewritten", "level": 0.35, "direction": "above"},
]
GAUSSIAN: dict[str, Any] = {
    "name": "tiny-gaussian",
    "generations": 23,  # the last one, 22, is no multiple of 4
    "eval_every": 4,
    "seeds": {"count": 3},
    "save_samples": "needed",
    "baseline": "none",
    "time_to_failure": LEVELS,
    "corpus": {
        "kind": "points",
        "source": {"kind": "gaussian"},
        "samples": POINTS,
        "held_out": 500,
    },
    "family": {"kind": "gaussian", "bias": BIAS},
    "arms": {"none": {}, "tails": {"weight": {"kind": "truncate_tails", "a": A}}},
}
DUE = (0, 4, 8, 12, 16, 20, 22)
GMM: dict[str, Any] = {
    "name": "tiny-gmm",
    "generations": 4,
    "seeds": [3, 8],
    "baseline": "em",
    "corpus": {
        "kind": "points",
        "source": {"kind": "two_gaussians", "distance": 4.0},
        "samples": 100,
        "held_out": 200,
    },
    "family": {"kind": "gmm", "components": 2},
    "arms": {"em": {}, "top": {"weight": {"kind": "truncate_quantile", "quantile": 0.9}}},
}
VAE: dict[str, Any] = {
    "name": "tiny-vae",
    "generations": 2,
    "baseline": "elbo",
    "corpus": {"kind": "images", "source": {"kind": "digits"}, "samples": 100},
    "family": {"kind": "vae", "latent": 3, "channels": [4, 8], "epochs": 1, "batch_size": 32},
    # so many epochs that the two encoders differ
    "arms": {
        "elbo": {},
        "dynamic": {"weight": {"kind": "dynamic", "rows": 64}, "family": {"epochs": 8}},
    },
}
FAR: dict[str, Any] = GAUSSIAN | {
    "name": "far",
    "generations": 700,
    "eval_every": 50,
    "seeds": {"count": 2},
    "time_to_failure": LEVELS[1:2],
    "corpus": GAUSSIAN["corpus"] | {"samples": 10000},
    "family": {"kind": "gaussian"},
    "arms": {"none": {}, "tails": {"weight": {"kind": "truncate_tails", "a": 3.0}}},
}
VARIANCE = "variance-of-the-fitted-density"
DISTANCE = "distance-from-the-real-distribution"
POINT_FIGURES = {VARIANCE, "tails-and-centre", DISTANCE, "training", "ledger"}
FIGURES = {
    "tiny-gaussian": POINT_FIGURES | {"histograms"},
    "far": POINT_FIGURES | {"histograms"},
    "tiny-gmm": POINT_FIGURES | {"points"},
    "tiny-vae": {
        *("spread-of-the-codes", "samples", "likeness-to-held-out-images", "classes"),
        *("training", "ledger"),
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs by name, each with its report."""
    root = tmp_path_factory.mktemp("runs")
    out = {}
    for raw in (GAUSSIAN, GMM, VAE, FAR):
        folder = root / raw["name"]
        experiment.run(configuration.resolve(raw), root, folder, workers=1)
        write_report([folder])
        out[raw["name"]] = folder
    return out


@pytest.fixture(scope="module")
def gaussian(runs: dict[str, Path]) -> Path:
    return runs["tiny-gaussian"]


@pytest.fixture(scope="module")
def far(runs: dict[str, Path]) -> Path:
    return runs["far"]


# --- what is written, read by this file alone -------------------------------------------------


def page_of(folder: Path) -> str:
    return (folder / "report" / "index.html").read_text("utf-8")


def rows(folder: Path, arm: str, chain: str, number: int) -> dict[tuple[str, str], dict[str, Any]]:
    place = folder / "arms" / arm / chain / f"generation-{number:02d}"
    return {(row["measure"], row["on"]): row for row in scores_of(place)}


def table(folder: Path, arm: str, measure: str, on: str) -> Floats:
    """(seeds, generations) of a run whose arms hold all seeds."""
    seeds = folder / "arms" / arm / "seeds"
    numbers = sorted(int(p.name[11:]) for p in seeds.glob("generation-*"))
    return np.array(
        [
            [
                row["value"]
                for row in scores_of(seeds / f"generation-{number:02d}")
                if (row["measure"], row["on"]) == (measure, on)
            ]
            for number in numbers
        ]
    ).T


def picture(folder: Path, arm: str, chain: str, number: int) -> dict[str, Any]:
    place = folder / "arms" / arm / chain / f"generation-{number:02d}"
    found: dict[str, Any] = json.loads((place / "picture.json").read_text("utf-8"))
    return found


def crossing(values: Floats, numbers: tuple[int, ...], level: float, sign: int) -> float | None:
    """Where a polygon first goes beyond a level, by hand; None if never."""
    if sign * values[0] > sign * level:
        return 0.0
    for i in range(1, len(values)):
        if sign * values[i] > sign * level:
            share = (level - values[i - 1]) / (values[i] - values[i - 1])
            return float(numbers[i - 1] + share * (numbers[i] - numbers[i - 1]))
    return None


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns("report")))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Matplotlib's figures by name, caught where they are about to be written."""
    found: dict[str, Any] = {}
    original = style.Canvas.svg

    def svg(canvas: style.Canvas, name: str, title: str, alt: str) -> str:
        found[name] = canvas.figure
        return original(canvas, name, title, alt)

    monkeypatch.setattr(style.Canvas, "svg", svg)
    return found


def plots(*folders: Path) -> dict[str, Plot]:
    return {plot.name: plot for plot in draw_all(Scene(load(folders)))}


# --- pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_a_page_is_whole_and_has_the_figures_of_its_family(
    runs: dict[str, Path], name: str
) -> None:
    page = page_of(runs[name])
    parsed = Page(page)  # asserts that tags are closed in order
    assert parsed.open == []
    assert outside(page) == []
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    assert {i[7:] for i in ids if i.startswith("figure-")} == FIGURES[name]
    assert {p.stem for p in (runs[name] / "report" / "figures").iterdir()} == FIGURES[name]
    text = re.sub(r"<(style|pre)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf|None)\b", text)


# --- one chain for all seeds ------------------------------------------------------------------


def test_a_chain_of_all_seeds_is_one_chain_a_seed(gaussian: Path) -> None:
    (run,) = load([gaussian])
    assert [arm.name for arm in run.arms] == ["none", "tails"]
    for arm in run.arms:
        assert [chain.seed for chain in arm.chains] == [0, 1, 2]
        for i, chain in enumerate(arm.chains):
            assert chain.due == DUE
            assert chain.ended is None
            assert tuple(g.number for g in chain.generations) == DUE
            for key in (("variance.ratio", "model"), ("tail.2sigma", "rewritten")):
                assert chain.values(key) == table(gaussian, arm.name, *key)[i].tolist()
            # real points are the same for all
            assert chain.generations[0].value(("tail.2sigma", "real")) is not None
    ratios = table(gaussian, "none", "variance.ratio", "model")
    assert len(set(ratios[:, -1])) == 3  # seeds differ, or the above shows nothing


def test_pictures_are_of_the_first_seed(gaussian: Path) -> None:
    (run,) = load([gaussian])
    first, *others = run.arms[1].chains
    for generation in first.generations:
        assert generation.picture == picture(gaussian, "tails", "seeds", generation.number)
    assert all(not g.picture for chain in others for g in chain.generations)


@pytest.mark.parametrize("arm", ["none", "tails"])
@pytest.mark.parametrize(
    ("measure", "on"), [("variance.ratio", "model"), ("tail.2sigma", "rewritten")]
)
def test_lines_are_means_over_seeds_at_true_generations(
    gaussian: Path, arm: str, measure: str, on: str
) -> None:
    (run,) = load([gaussian])
    line = series(next(a for a in run.arms if a.name == arm), (measure, on))
    values = table(gaussian, arm, measure, on)
    assert tuple(line.x) == DUE
    # the same three numbers are added, in an order that may differ: rounding of float64
    assert line.mean == pytest.approx(values.mean(0).tolist(), rel=1e-14)
    assert line.low == values.min(0).tolist()
    assert line.high == values.max(0).tolist()


# --- time to failure --------------------------------------------------------------------------


def test_times_to_failure_count_true_generations(gaussian: Path) -> None:
    (run,) = load([gaussian])
    cells = failures([run]).cells
    checked = 0
    for place, level in enumerate(LEVELS):
        times = {}
        for arm in ("none", "tails"):
            values = table(gaussian, arm, level["measure"], level["on"])
            sign = 1 if level["direction"] == "above" else -1
            times[arm] = [crossing(v, DUE, level["level"], sign) for v in values]
            cell, _ = cells[arm][place]
            found = [t for t in times[arm] if t is not None]
            if not found:
                assert cell == {"text": "> 22", "note": ""}
                continue
            assert len(found) == 3  # else the level does not suit this test
            assert 0 < min(found) < 22
            assert cell["text"] == f"{np.mean(found):.2f}"
            assert cell["note"] == f"{min(found):.2f} to {max(found):.2f}"
            checked += 1
        base, arm_times = (times[name] for name in ("none", "tails"))
        _, told_ratio = cells["tails"][place]
        bound = {(False, False): "", (False, True): "> ", (True, False): "< "}[
            (base[0] is None, arm_times[0] is None)
        ]
        means = [np.mean([22.0 if t is None else t for t in ts]) for ts in (arm_times, base)]
        assert told_ratio["text"] == f"{bound}{means[0] / means[1]:.2f}"
    assert checked == 4  # both arms at one level, one arm at each of the others


# --- theory -----------------------------------------------------------------------------------


def _lines(figure: Any, colour: str) -> list[tuple[Any, Floats, Floats]]:
    return [
        (line.get_linestyle(), np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in figure.axes[0].lines
        if line.get_color() == colour and len(line.get_xdata()) > 2
    ]


def test_the_prediction_drawn_is_that_of_theory(gaussian: Path, drawn: dict[str, Any]) -> None:
    scene = Scene(load([gaussian]))
    made = plots(gaussian)[VARIANCE]
    for arm, threshold in (("none", 0.0), ("tails", A)):
        recursion = theory.Recursion(points=POINTS, bias=BIAS, threshold=threshold)
        low, high = theory.variance_interval(recursion, 23)
        wanted = [x[list(DUE)] for x in (low, high, theory.expected_variance(recursion, 23))]
        values = table(gaussian, arm, "variance.ratio", "model").mean(0)
        found = _lines(drawn[VARIANCE], scene.looks[arm].colour)
        assert len(found) == 4  # simulated, low, high, expected
        for (_, x, y), want in zip(found, [values, *wanted], strict=True):
            assert x.tolist() == list(DUE)
            # the threshold goes through the share that it keeps and back, to rounding
            np.testing.assert_allclose(y, want, rtol=1e-9)
        assert found[0][0] != found[3][0]  # dashes tell theory from simulation
    assert "its expectation by theory" in made.caption


def test_the_prediction_is_the_formula_of_the_paper(gaussian: Path) -> None:
    """Against integrals and sums made here: bias eta(a) (1 - E[1/m]), first 1 - 1/n."""
    (run,) = load([gaussian])
    for arm, a in (("none", 0.0), ("tails", A)):
        kept = 2 * stats.norm.sf(a)
        eta = 2 * integrate.quad(lambda x: x * x * stats.norm.pdf(x), a, np.inf)[0] / kept
        m = np.arange(1, POINTS + 1)
        p = stats.binom.pmf(m, POINTS, kept)
        growth = BIAS * eta * (1 - (p / m).sum() / p.sum())
        told = run.prediction[arm]
        assert tuple(told["generation"]) == DUE
        # quad's error of 1e-10 or so, raised to the 22nd power
        np.testing.assert_allclose(
            told["mean"], (1 - 1 / POINTS) * growth ** np.array(DUE), rtol=1e-8
        )


def test_nothing_is_predicted_of_mixtures(runs: dict[str, Path]) -> None:
    assert "theory" not in plots(runs["tiny-gmm"])[VARIANCE].caption


# --- what was drawn ---------------------------------------------------------------------------


def test_histograms_are_those_of_the_pictures(gaussian: Path, drawn: dict[str, Any]) -> None:
    plots(gaussian)
    figure = drawn["histograms"]
    shown = [0, 4, 8, 16, 20, 22]  # six of the seven: the first, the last, evenly between
    titles = [t.get_text() for t in figure.texts if t.get_text().startswith("generation")]
    assert titles == [f"generation {n}" for n in shown]
    panels_drawn = iter(figure.axes)
    for arm in ("none", "tails"):
        real = np.array(picture(gaussian, arm, "seeds", 0)["counts"]["real"])
        for number in shown:
            told = picture(gaussian, arm, "seeds", number)
            counts = np.array(told["counts"]["rewritten"])
            assert counts.sum() == POINTS  # what lies outside the axis is in the outermost bins
            steps = [p for p in next(panels_drawn).patches if isinstance(p, StepPatch)]
            for step, wanted in zip(steps, (real, counts), strict=True):
                heights, edges, _ = step.get_data()
                np.testing.assert_allclose(heights, wanted / POINTS, rtol=1e-15)
                np.testing.assert_array_equal(edges, told["edges"])
    assert next(panels_drawn, None) is None


def test_points_and_ellipses_are_those_of_the_pictures(
    runs: dict[str, Path], drawn: dict[str, Any]
) -> None:
    folder = runs["tiny-gmm"]
    plots(folder)
    cells = iter(drawn["points"].axes)
    limits = set()
    for arm in ("em", "top"):
        real = picture(folder, arm, "seed-3", 0)["points"]["real"]
        for number in range(4):
            told, axes = picture(folder, arm, "seed-3", number), next(cells)
            for line, wanted in zip(axes.lines, (real, told["points"]["rewritten"]), strict=True):
                np.testing.assert_array_equal(line.get_xydata(), wanted)
            assert len(told["points"]["rewritten"]) == 100
            ellipses = [p for p in axes.patches if isinstance(p, Ellipse)]
            assert len(told["components"]) == 2
            for ellipse, component in zip(ellipses, told["components"], strict=True):
                away = _outline(ellipse) - component["mean"]
                inverse = np.linalg.inv(component["covariance"])
                distance = np.sqrt(np.einsum("nd,de,ne->n", away, inverse, away))
                # curves become polygons, a tenth of a pixel off at radii of tens of pixels
                np.testing.assert_allclose(distance, 2, rtol=1e-2)
            limits.add((axes.get_xlim(), axes.get_ylim()))
    ((left, right), (bottom, top)) = limits.pop()
    assert not limits  # the same axes in all panels
    assert right - left == pytest.approx(top - bottom)  # a circle looks like one
    assert left < np.min(np.array(real)[:, 0]) < np.max(np.array(real)[:, 0]) < right


def _outline(ellipse: Ellipse) -> Floats:
    """In the coordinates of the data."""
    assert ellipse.axes is not None
    corners: Floats = ellipse.axes.transData.inverted().transform(ellipse.get_verts())
    return corners


def test_the_grids_are_the_first_images_written(
    runs: dict[str, Path], drawn: dict[str, Any]
) -> None:
    folder = runs["tiny-vae"]
    plots(folder)
    cells = iter(drawn["samples"].axes)
    for arm in ("elbo", "dynamic"):
        chain = folder / "arms" / arm / "seed-0"
        grids = [load_file(chain / f"generation-{n:02d}" / "grid.safetensors") for n in (0, 1)]
        wanted = [grids[0]["real"], grids[0]["rewritten"], grids[1]["rewritten"]]
        for images in wanted:
            (image,) = next(cells).images
            shown = np.asarray(image.get_array())
            assert shown.shape == (4 * 9 - 1, 4 * 9 - 1)  # 4 x 4 of 8 x 8, a line between
            for i in range(16):
                y, x = 9 * (i // 4), 9 * (i % 4)
                np.testing.assert_array_equal(shown[y : y + 8, x : x + 8], images[i])
        assert not np.array_equal(wanted[1][:16], wanted[2][:16])


# --- what real data have ----------------------------------------------------------------------


def _levels(figure: Any, place: int) -> list[tuple[str, float]]:
    """Colour and height of the lines that go right across a panel."""
    return [
        (line.get_color(), float(line.get_ydata()[0]))
        for line in figure.axes[place].lines
        if list(line.get_xdata()) == [0, 1] and line.get_transform() != figure.axes[place].transData
    ]


def test_real_points_are_one_dashed_line(gaussian: Path, drawn: dict[str, Any]) -> None:
    plots(gaussian)
    for place, measure in enumerate(("tail.2sigma", "tail.3sigma")):
        real = rows(gaussian, "none", "seeds", 0)[measure, "real"]["value"]
        assert _levels(drawn["tails-and-centre"], place) == [(style.SOFT, real)]
    assert _levels(drawn["tails-and-centre"], 2) == []


def test_arms_seen_through_their_own_encoder_have_a_line_each(
    runs: dict[str, Path], drawn: dict[str, Any]
) -> None:
    folder = runs["tiny-vae"]
    scene = Scene(load([folder]))
    real = {
        arm: rows(folder, arm, "seed-0", 0)["spread", "real"]["value"]
        for arm in ("elbo", "dynamic")
    }
    values = [
        rows(folder, arm, "seed-0", n)["spread", "rewritten"]["value"]
        for arm in real
        for n in (0, 1)
    ]
    gap = abs(real["elbo"] - real["dynamic"])
    assert gap > 0.1 * (max(*values, *real.values()) - min(values))  # far apart in the panel
    plots(folder)
    found = _levels(drawn["spread-of-the-codes"], 0)
    assert found == [(scene.looks[a].colour, v) for a, v in real.items()]


# --- sentences --------------------------------------------------------------------------------


def test_the_headline_and_the_sentences_tell_the_numbers(gaussian: Path) -> None:
    given, name = told(gaussian), "Variance of the fitted density"
    values = {arm: table(gaussian, arm, "variance.ratio", "model") for arm in ("none", "tails")}
    first, last = (values["none"].mean(0)[i] for i in (0, -1))
    course = f"{first:.2f}\u00a0→\u00a0{last:.3g}"
    assert given["headline"] == f"{name}, under none: {course} within 23 generations"
    said = sentences(given)
    assert said["none"] == f"{name}: {course} (generation 0 to 22). It is the baseline."
    end = values["tails"].mean(0)[-1]
    assert end > 100  # told without decimals
    logs = np.log(values["tails"][:, -1] / values["none"][:, -1])
    half = stats.t.ppf(0.975, 2) * logs.std(ddof=1) / math.sqrt(3)
    mean, low, high = (math.exp(logs.mean() + k * half) for k in (0, -1, 1))
    assert low > 1
    assert said["tails"] == (
        f"{name}: {first:.2f}\u00a0→\u00a0{end:,.0f} (generation 0 to 22); {mean:,.0f} times none "
        f"at generation 22, 95\u00a0% interval {low:,.0f} to {high:,.0f}."
    )


def test_the_summary_tells_the_headlines_of_the_measures(gaussian: Path) -> None:
    cells = cells_of(told(gaussian), "summary")["tails"]
    ratios = table(gaussian, "tails", "variance.ratio", "model")
    assert cells[2]["text"] == f"{ratios[:, -1].mean():.4g}".replace("e+0", "e+")
    low, high = (
        f"{x:.4g}".replace("e+0", "e+") for x in (ratios[:, -1].min(), ratios[:, -1].max())
    )
    assert cells[2]["note"] == f"{low} to {high}"
    beyond = table(gaussian, "tails", "tail.3sigma", "rewritten")
    assert cells[6]["text"] == f"{beyond[:, -1].mean():.2%}"


def test_a_single_seed_claims_no_difference(runs: dict[str, Path]) -> None:
    said = sentences(told(runs["tiny-vae"]))
    assert re.search(r" times elbo at generation 1 \(one seed: no interval\)\.$", said["dynamic"])


# --- a chain that diverged --------------------------------------------------------------------


@pytest.fixture(scope="module")
def end(far: Path) -> dict[str, Any]:
    """How the diverging chain ended, from its own file."""
    found: dict[str, Any] = json.loads((far / "arms/tails/seeds/ended.json").read_text("utf-8"))
    assert 100 < found["generation"] < 200
    assert found["generation"] % 50 != 1  # its last generation is none of the multiples
    return found


def test_a_diverged_chain_is_complete_as_far_as_it_went(far: Path, end: dict[str, Any]) -> None:
    (run,) = load([far])
    stopped = end["generation"]
    none, tails = run.arms
    assert none.chains[0].due == (*range(0, 651, 50), 699)
    for chain in tails.chains:
        assert chain.due == (0, *range(50, stopped - 1, 50), stopped - 1)
        assert chain.ended is not None
        assert (chain.ended.generation, chain.ended.reason) == (stopped, end["reason"])
        assert [g.number for g in chain.generations] == list(chain.due)
        assert chain.values(("variance.ratio", "model"))[-1] > 1e100
    assert run.planned == run.finished == 2 * 15 + 2 * len(tails.chains[0].due)


def test_a_divergence_is_told_in_note_caption_and_sentence(far: Path, end: dict[str, Any]) -> None:
    stopped, given = end["generation"], told(far)
    assert "the variance has diverged" in end["reason"]
    note = f"Arm tails ended before generation {stopped}: {end['reason']}. What it had reached is"
    assert f"{note} shown." in given["made"][0]["notes"]
    figures = plots(far)
    for name in (VARIANCE, "histograms"):
        assert f"Ended early: tails before generation {stopped}." in figures[name].caption
    said = sentences(given)
    assert f"(generation 0 to {stopped - 1}); " in said["tails"]
    assert said["tails"].endswith(f" It ended: {end['reason']}.")
    assert "ended" not in said["none"]


def test_panels_of_a_diverged_chain_say_so(
    far: Path, end: dict[str, Any], drawn: dict[str, Any]
) -> None:
    plots(far)
    titles = [t.get_text() for t in drawn["histograms"].texts]
    numbers = [int(t.split()[1]) for t in titles if t.startswith("generation")]
    cells = [[t.get_text() for t in axes.texts] for axes in drawn["histograms"].axes]
    assert numbers[0] == 0
    assert numbers[-1] == 699
    measured = {"none": {*range(0, 651, 50), 699}}
    measured["tails"] = {*range(0, end["generation"] - 1, 50), end["generation"] - 1}
    wanted = []
    for arm, there in measured.items():
        for number in numbers:
            ended = arm == "tails" and number >= end["generation"]
            wanted.append([] if number in there else ["ended" if ended else "not measured"])
    assert cells == wanted
    assert ["ended"] in wanted


def test_what_spans_many_orders_of_magnitude_is_drawn_on_a_log_scale(
    far: Path, gaussian: Path, drawn: dict[str, Any]
) -> None:
    for folder, scale in ((far, "log"), (gaussian, "linear")):
        plots(folder)
        axes = drawn[DISTANCE].axes
        assert [a.get_yscale() for a in axes] == [scale, "linear", "linear"]
        texts = [t.get_text() for t in axes[0].texts]
        unit = "to held-out points" + ", log scale" * (scale == "log")
        assert texts == ["Wasserstein-1 distance", unit]


def test_the_prediction_is_drawn_as_far_as_the_arm_went(
    far: Path, end: dict[str, Any], drawn: dict[str, Any]
) -> None:
    scene = Scene(load([far]))
    plots(far)
    last = end["generation"] - 1
    for _, x, y in _lines(drawn[VARIANCE], scene.looks["tails"].colour):
        assert x.max() <= last
        assert np.isfinite(y).all()
    low, high = drawn[VARIANCE].axes[0].get_ylim()
    assert 0 < low < 1
    assert 1e140 < high < 1e200


def test_a_diverged_arm_is_compared_where_the_baseline_was_measured_too(far: Path) -> None:
    values = {arm: table(far, arm, "variance.ratio", "model")[:, 2] for arm in ("none", "tails")}
    times = np.exp(np.log(values["tails"] / values["none"]).mean())
    found = _compared(sentences(told(far))["tails"])
    assert found == (pytest.approx(times, rel=0.01), 100)  # three digits are shown


def test_a_ratio_of_times_is_taken_on_the_generations_that_both_have(far: Path) -> None:
    (run,) = load([far])
    none, tails = run.arms
    level = 1e60  # tails crosses it between generations 50 and 100, none never
    times = [
        crossing(v, (0, 50, 100), level, 1)
        for v in table(far, "tails", "variance.ratio", "model")[:, :3]
    ]
    found = ratio(tails, none, FailureLevel.model_validate(LEVELS[1] | {"level": level}))
    assert found is not None
    assert found.bound == "upper"
    # none is known not to have failed by 100: beyond that the arms have no generation in common
    assert found.value == pytest.approx(np.mean([t for t in times if t is not None]) / 100)


def _compared(text: str) -> tuple[Any, int] | None:
    """How many times the baseline an arm is said to have, and when."""
    found = re.search(r"; (\S+) times none at generation (\d+), 95", text)
    return (float(found[1].replace(",", "")), int(found[2])) if found else None


# --- runs that are not whole ------------------------------------------------------------------


def test_a_half_finished_run_still_reports(gaussian: Path, tmp_path: Path) -> None:
    folder = copied(gaussian, tmp_path / "half")
    for number in (12, 16, 20, 22):
        shutil.rmtree(folder / "arms" / "tails" / "seeds" / f"generation-{number:02d}")
    page = write_report([folder]).read_text("utf-8")
    assert Page(page).open == []
    given = told(folder)
    assert given["state"] == f"{3 * 7 + 3 * 3} of {2 * 3 * 7} generations finished so far"
    values = {arm: table(folder, arm, "variance.ratio", "model") for arm in ("none", "tails")}
    said = sentences(given)["tails"]
    assert "(generation 0 to 8); " in said
    # the baseline is further; they are compared where both are
    times = np.exp(np.log(values["tails"][:, 2] / values["none"][:, 2]).mean())
    assert _compared(said) == (pytest.approx(times, rel=0.01), 8)  # three digits are shown
    assert page.count(">not yet</text>") == 3  # generations 16, 20 and 22 of tails are shown
    assert ">not measured</text>" not in page


def test_a_damaged_picture_is_told_and_its_generation_left_out(
    gaussian: Path, tmp_path: Path, drawn: dict[str, Any]
) -> None:
    folder = copied(gaussian, tmp_path / "damaged")
    path = folder / "arms" / "tails" / "seeds" / "generation-08" / "picture.json"
    path.write_text(path.read_text("utf-8").replace("0", "1", 1), "utf-8")
    said: list[str] = []
    write_report([folder], tell=said.append)
    assert said == [
        f"Generation 8 of tails is left out: {path} has changed (its SHA-256 differs from the "
        "manifest's). Start the run again to have it done anew."
    ]
    assert told(folder)["made"][0]["notes"][-1] == said[0]
    (run,) = load([folder])
    none, tails = run.arms
    assert all(tuple(g.number for g in c.generations) == DUE for c in none.chains)
    left = [n for n in DUE if n != 8]
    assert all([g.number for g in c.generations] == left for c in tails.chains)
    assert series(tails, ("variance.ratio", "model")).x == left
    # no time to failure is read off across the gap
    assert len(tails.chains[0].values(("variance.ratio", "model"))) == 2
    texts = [t.get_text() for axes in drawn["histograms"].axes for t in axes.texts]
    assert texts == ["left out"]


def _stopped(folder: Path, arm: str, seed: int, generation: int) -> None:
    """End a chain of one seed as the loop does."""
    chain = folder / "arms" / arm / f"seed-{seed}"
    for number in range(generation, 4):
        shutil.rmtree(chain / f"generation-{number:02d}")
    write_json(chain / "ended.json", {"generation": generation, "reason": "it fell to one point"})


def test_a_seed_that_ended_by_itself_is_told_as_one_of_several(
    runs: dict[str, Path], tmp_path: Path, drawn: dict[str, Any]
) -> None:
    folder = copied(runs["tiny-gmm"], tmp_path / "stopped")
    _stopped(folder, "top", 8, 2)
    (run,) = load([folder])
    assert run.notes == (
        "Arm top, seed 8 ended before generation 2: it fell to one point. What it had reached is "
        "shown.",
    )
    assert [c.due for c in run.arms[1].chains] == [(0, 1, 2, 3), (0, 1)]
    assert run.planned == run.finished == 14
    sentence = words.sentence(run, run.arms[1])
    assert "(generation 0 to 1); " in sentence
    assert sentence.endswith(" 1 of 2 seeds ended: it fell to one point.")
    made = plots(folder)["points"]
    assert "Ended early: top before generation 2." in made.caption
    # the first seed, which is the one shown, did not end
    assert all(not axes.texts for axes in drawn["points"].axes)


# --- several runs -----------------------------------------------------------------------------


def test_runs_of_different_families_stand_side_by_side(
    runs: dict[str, Path], gaussian: Path, tmp_path: Path, drawn: dict[str, Any]
) -> None:
    folders = [gaussian, runs["tiny-vae"]]
    page = write_report(folders, tmp_path).read_text("utf-8")
    parsed = Page(page)
    assert parsed.open == []
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    figures = FIGURES["tiny-gaussian"] | FIGURES["tiny-vae"]
    assert {i[7:] for i in ids if i.startswith("figure-")} == figures
    given = told(*folders)
    assert given["state"] == f"all {42 + 4} generations finished"
    # each arm is told by its own family's measure, against its own run's baseline
    said = sentences(given)
    assert said["tiny-gaussian/tails"].startswith("Variance of the fitted density: ")
    assert " times tiny-gaussian/none at generation 22" in said["tiny-gaussian/tails"]
    assert said["tiny-vae/dynamic"].startswith("Spread of the codes: ")


# --- many generations -------------------------------------------------------------------------


def test_a_long_ledger_is_thinned_to_its_ends_and_some_between(far: Path) -> None:
    group = told(far)["ledgers"][0]
    numbers = [int(row["label"]) for row in group["rows"]]
    assert len(numbers) == 12
    assert (numbers[0], numbers[-1]) == (0, 699)
    assert set(numbers) <= {*range(0, 651, 50), 699}
    assert numbers == sorted(set(numbers))
    assert [row["cells"][-1] for row in group["rows"]] == ["100%"] + ["0%"] * 11


@pytest.mark.parametrize(
    ("rows_there", "count"), [(1, 12), (12, 12), (13, 12), (100, 9), (2000, 12)]
)
def test_thinning_keeps_both_ends_and_even_steps(rows_there: int, count: int) -> None:
    whole = [3 * i for i in range(rows_there)]
    kept = style.thinned(whole, count)
    assert len(kept) == min(rows_there, count)
    assert (kept[0], kept[-1]) == (whole[0], whole[-1])
    steps = np.diff([row // 3 for row in kept])
    assert not len(steps) or steps.min() > 0
    assert not len(steps) or steps.max() - steps.min() <= 1  # by rounding alone


@pytest.mark.parametrize("last", [0, 1, 3, 9, 20, 22, 100, 301, 699, 2000, 12345])
@pytest.mark.parametrize("width", [120, 190, 274, 940])
def test_generations_are_numbered_without_overlap(last: int, width: int) -> None:
    with style.drawing():
        axes = style.Canvas(1040, 300).axes(50, 50, width, 200)
        style.generations(axes, last, width)
        ticks = axes.xaxis.get_majorticklocs().tolist()
        figure = axes.figure
        renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else None
        axes.set_xticks(ticks, [str(round(t)) for t in ticks])
        boxes = [label.get_window_extent(renderer) for label in axes.get_xticklabels()]
    assert ticks[0] == 0
    assert ticks[-1] <= last
    assert ticks == [round(t) for t in ticks]
    assert len(ticks) >= (2 if last else 1)
    for left, right in itertools.pairwise(boxes):
        assert left.x1 < right.x0
