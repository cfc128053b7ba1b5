"""Gaussians, mixtures and autoencoders from the command line to the report, and wrong input."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fortifai import configuration
from fortifai.errors import InputError
from fortifai.lab import experiment
from fortifai.lab.store import read_jsonl
from fortifai.points import theory
from tests.commands import fortifai, killed, needs_kill
from tests.test_run import outcome

GAUSSIAN = {
    "name": "tiny-gaussian",
    "generations": 12,
    "eval_every": 3,
    "seeds": {"count": 4},
    "save_samples": "needed",
    "baseline": "none",
    "corpus": {"kind": "points", "source": {"kind": "gaussian"}, "samples": 400, "held_out": 500},
    "family": {"kind": "gaussian", "bias": 0.9},
    "arms": {"none": {}, "tails": {"weight": {"kind": "truncate_tails", "a": 0.4}}},
}
GMM = {
    "name": "tiny-gmm",
    "generations": 3,
    "seeds": [0, 7],
    "baseline": "em",
    "corpus": {"kind": "points", "source": {"kind": "moons"}, "samples": 120, "held_out": 200},
    "family": {"kind": "gmm", "components": 3},
    "arms": {"em": {}, "top": {"weight": {"kind": "truncate_quantile", "quantile": 0.9}}},
}
VAE = {
    "name": "tiny-vae",
    "generations": 2,
    "baseline": "elbo",
    "corpus": {"kind": "images", "source": {"kind": "digits"}, "samples": 150},
    "family": {"kind": "vae", "latent": 3, "channels": [4, 8], "epochs": 1, "batch_size": 32},
    "arms": {"elbo": {}, "dynamic": {"weight": {"kind": "dynamic", "rows": 64}}},
}
ALL = {"gaussian": GAUSSIAN, "gmm": GMM, "vae": VAE}


def written(tmp_path: Path, raw: dict) -> Path:
    path = tmp_path / f"{raw['name']}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module", params=ALL.values(), ids=ALL)
def finished(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = fortifai("run", written(folder, request.param), "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    return folder / "out", request.param, done


def scores(folder: Path) -> dict[tuple[str, str], list[dict]]:
    """By measure and data; several of one where a chain holds several seeds."""
    found: dict[tuple[str, str], list[dict]] = {}
    for row in read_jsonl(folder / "scores.jsonl"):
        found.setdefault((row["measure"], row["on"]), []).append(row)
    return found


def test_a_run_goes_from_the_yaml_to_the_report(finished):
    out, raw, done = finished
    page = (out / "report" / "index.html").read_text()
    assert raw["name"] in page
    assert "Knowledge Retention" not in page
    assert done.stderr.count("generation") >= 2
    for arm in raw["arms"]:
        assert f"{arm} " in done.stderr
        for place in (out / "arms" / arm).iterdir():
            assert (place / f"generation-{raw['generations'] - 1:02d}" / "manifest.json").is_file()


EXPECTED = {
    "gaussian": {"variance.ratio", "mean.drift", "wasserstein", "tail.2sigma", "tail.3sigma",
                 "l2", "log_likelihood", "train.truncated_share"},
    "gmm": {"variance.ratio", "mean.drift", "wasserstein", "tail.2sigma", "tail.3sigma",
            "components.kept", "l2", "log_likelihood", "train.truncated_share"},
    "vae": {"spread", "frechet", "precision", "recall", "classes.entropy", "classes.confidence",
            "reconstruction", "train.truncated_share", "train.loss"},
}  # fmt: skip


def test_every_measure_is_there_and_finite(finished):
    out, raw, _ = finished
    for path in (out / "arms").glob("*/*/generation-*"):
        found = scores(path)
        assert {m for m, _ in found} == EXPECTED[raw["family"]["kind"]]
        assert all(np.isfinite(row["value"]) for rows in found.values() for row in rows)
        together = raw["family"]["kind"] == "gaussian"
        for (_, on), rows in found.items():
            seeds = [0, 1, 2, 3] if together and on != "real" else [None]
            assert [row.get("seed") for row in rows] == seeds


def test_the_same_command_again_changes_nothing(finished):
    out, raw, _ = finished
    before = outcome(out)
    done = fortifai("run", written(out.parent, raw), "--out", out)
    assert done.returncode == 0, done.stderr
    assert outcome(out) == before


@pytest.mark.long
@pytest.mark.parametrize("finished", ALL.values(), indirect=True, ids=ALL)
def test_what_is_written_does_not_depend_on_the_number_of_workers(finished, tmp_path):
    out, raw, _ = finished
    done = fortifai("run", written(tmp_path, raw), "--out", tmp_path / "two", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "two") == outcome(out)


def test_a_mixture_of_points_from_files_and_the_dry_run(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(300, 2)))
    raw = GMM | {
        "corpus": {
            "kind": "points",
            "source": {"kind": "files", "files": ["a.npy"]},
            "held_out": 50,
        }
    }
    done = fortifai("run", written(tmp_path, raw), "--out", tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "1 of 250 points in 2 dimensions" in done.stdout
    assert "top 90.0%" in done.stdout
    assert not (tmp_path / "out").exists()


KILLED = """
    import sys, time
    from pathlib import Path
    from fortifai import configuration
    from fortifai.lab import experiment
    from tests.commands import kills

    root = Path(sys.argv[1])
    resolved = configuration.resolve(configuration.read_raw(str(root / "tiny-gaussian.yaml"))[0])
    chain = root / "cut" / "arms" / "none" / "seeds"

    def moments():
        for turn in range(12):
            wanted = len(list(chain.glob("generation-*"))) + 2
            yield lambda: (
                len(list(chain.glob("generation-*"))) >= wanted and not time.sleep(0.003 * turn)
            )

    work = lambda: experiment.run(resolved, root, root / "cut", workers=1)
    print(kills(work, moments()))
"""


@pytest.mark.long
@needs_kill
def test_killed_again_and_again_a_run_ends_with_the_same_bytes(tmp_path):
    raw = GAUSSIAN | {
        "generations": 400,
        "eval_every": 20,
        "regime": {"kind": "mix", "alpha": 0.9},
        "arms": {"none": {}},
    }
    path = written(tmp_path, raw)
    whole = fortifai("run", path, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    kills = killed(KILLED, tmp_path)
    assert kills >= 3, "the run was hardly ever interrupted: the test shows nothing"
    assert fortifai("run", path, "--out", tmp_path / "cut").returncode == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_a_variance_that_diverges_ends_the_chain_and_not_the_run(tmp_path):
    raw = copy.deepcopy(GAUSSIAN) | {"generations": 600, "eval_every": 100, "seeds": [0]}
    raw["arms"]["tails"]["weight"]["a"] = 1.5
    done = fortifai("run", written(tmp_path, raw), "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "ended at generation" in done.stderr
    end = json.loads((tmp_path / "out" / "arms" / "tails" / "seeds" / "ended.json").read_text())
    # 0.9 * eta(1.5) a generation from 1 to 1e150, give or take what chance adds
    expected = 150 * np.log(10) / np.log(0.9 * theory.variance_amplification(1.5))
    assert end["generation"] == pytest.approx(expected, rel=0.1)
    assert "the variance has diverged" in end["reason"]
    chain = tmp_path / "out" / "arms" / "tails" / "seeds"
    assert (chain / f"generation-{end['generation'] - 1:02d}" / "manifest.json").is_file()
    assert (tmp_path / "out" / "arms" / "none" / "seeds" / "generation-599").is_dir()
    assert "ended before generation" in (tmp_path / "out" / "report" / "index.html").read_text()


def test_a_mixture_that_becomes_singular_ends_its_chain_and_not_the_run(tmp_path):
    """Twelve points, and nothing that keeps a component from becoming one of them."""
    raw = changed(
        GMM,
        generations=150,
        corpus=GMM["corpus"] | {"samples": 12},
        family={"kind": "gmm", "components": 2, "reg_covar": 0.0},
        arms={"em": {}, "floor": {"family": {"reg_covar": 1e-2}}},
        seeds=[0],
    )
    raw["eval_every"] = 10
    experiment.run(configuration.resolve(raw), tmp_path, tmp_path / "out", workers=1)
    arms = tmp_path / "out" / "arms"
    end = json.loads((arms / "em" / "seed-0" / "ended.json").read_text())
    assert "singular" in end["reason"]
    assert (arms / "em" / "seed-0" / f"generation-{end['generation'] - 1:02d}").is_dir()
    assert (arms / "floor" / "seed-0" / "generation-149").is_dir()


# --- known results ----------------------------------------------------------------------------


@pytest.mark.long
def test_accumulating_bounds_the_variance_that_replacing_loses(tmp_path):
    """2404.01413, 2410.16713: with replacement variance goes to 0, accumulated it stays."""
    raw = copy.deepcopy(GAUSSIAN) | {
        "generations": 120,
        "eval_every": 119,
        "seeds": {"count": 40},
        "baseline": "replace",
        "family": {"kind": "gaussian"},
        "arms": {
            name: {"regime": {"kind": name}}
            for name in ("replace", "accumulate", "accumulate-subsample")
        },
    }
    raw["corpus"]["samples"] = 50
    experiment.run(configuration.resolve(raw), tmp_path, tmp_path / "out", workers=1)
    end = {
        arm: np.array(
            [
                row["value"]
                for row in scores(tmp_path / "out" / "arms" / arm / "seeds" / "generation-119")[
                    "variance.ratio", "model"
                ]
            ]
        )
        for arm in raw["arms"]
    }
    # replacing: E = (1 - 1/50)^120 = 0.09 and half of the seeds far below; accumulating: the
    # expectation is a product of 1 - 1/(50 t^2), never below 0.96
    assert np.median(end["replace"]) < 0.15
    assert 0.85 < end["accumulate"].mean() < 1.15
    assert (end["accumulate"] > 0.4).all()
    # a fixed size loses more, and still by far less than all
    assert 0.5 < end["accumulate-subsample"].mean() < 1.3
    assert np.median(end["replace"]) < np.median(end["accumulate-subsample"])


# --- wrong input ------------------------------------------------------------------------------


def changed(raw: dict, **changes) -> dict:
    out = copy.deepcopy(raw)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = out
        for key in parents:
            place = place[key]
        place[last] = value
    return out


FILES = {"kind": "files", "files": ["x.npy"]}

CASES = {
    "unknown family": (changed(GMM, family__kind="gnm"), "family.kind is 'gnm'.*mean 'gmm'"),
    "no family": ({k: v for k, v in GMM.items() if k != "family"}, "missing key 'family'"),
    "text key": (
        changed(GMM, questions={"files": []}),
        "unknown key 'questions' for family 'gmm', it belongs to causal_lm",
    ),
    "other corpus": (
        changed(GAUSSIAN, corpus={"kind": "bios"}),
        "corpus.*kind.*bios",
    ),
    "tails of a mixture": (
        changed(GMM, arms__top__weight={"kind": "truncate_tails", "a": 1}),
        "'truncate_tails' needs one mean and one sigma.*use truncate_quantile",
    ),
    "a probability's weight": (
        changed(GMM, arms__top__weight={"kind": "truncate", "threshold": 0.9}),
        "weight.kind is 'truncate'; allowed are keep, truncate_quantile, truncate_tails",
    ),
    "bias": (changed(GAUSSIAN, family__bias=1.5), "family.bias is 1.5"),
    "drops all": (
        changed(GAUSSIAN, arms__tails__weight__a=9.0),
        r"arm 'tails': weight.a would keep a share of 2.3e-19, 9e-17 of 400 points",
    ),
    "drops all but one": (
        changed(GMM, arms__top__weight__quantile=0.01),
        r"weight.quantile would keep a share of 0.01, 1.2 of 120 points",
    ),
    "few points": (
        changed(GMM, corpus__samples=2),
        "a split has 2 points and a mixture of 3 components needs 3",
    ),
    "drops all pixels": (
        changed(VAE, arms__dynamic__weight={"kind": "truncate", "threshold": 0}),
        "threshold 0 keeps a share of 0 of the pixels",
    ),
    "too few images": (
        changed(VAE, corpus__samples=5000),
        "has 1,617 images besides the held-out ones, too few for 1 splits of 5,000",
    ),
}


@pytest.mark.parametrize(("raw", "said"), CASES.values(), ids=CASES)
def test_a_wrong_configuration_is_told_before_work_starts(raw, said, tmp_path):
    with pytest.raises(InputError, match=said) as caught:
        experiment.run(configuration.resolve(raw), tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([[1.0, np.nan], [2.0, 3.0]]), "NaN|not finite|infinite"),
        (np.array([[1.0, np.inf], [2.0, 3.0]]), "NaN|not finite|infinite"),
        (np.stack([np.arange(400.0), np.ones(400)], axis=1), "no spread in column 2"),
        (
            np.random.default_rng(0).normal(size=(400, 1))
            + 3e-9 * np.random.default_rng(1).normal(size=(400, 2)),
            "too little spread in some direction beside the others",
        ),
        (np.zeros((400, 2, 2)), "axes|shape"),
        (np.random.default_rng(0).normal(size=(40, 2)), "too few"),
    ],
    ids=["nan", "infinite", "singular", "nearly singular", "axes", "few"],
)
def test_wrong_points_are_told_before_work_starts(values, said, tmp_path):
    np.save(tmp_path / "x.npy", values)
    raw = changed(GMM, corpus={"kind": "points", "source": FILES, "held_out": 100})
    with pytest.raises(InputError, match=said) as caught:
        experiment.run(configuration.resolve(raw), tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_wrong_images_are_told_before_work_starts(tmp_path):
    def fault(source: dict) -> str:
        raw = changed(VAE, corpus={"kind": "images", "source": source})
        with pytest.raises(InputError) as caught:
            experiment.run(configuration.resolve(raw), tmp_path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    np.save(tmp_path / "x.npy", np.full((20, 8, 8), 255.0, dtype=np.float32))
    assert "must lie in [0, 1]" in fault({"kind": "array", "file": "x.npy"})
    np.save(tmp_path / "x.npy", np.full((20, 9, 8), 0.5, dtype=np.float32))
    assert "multiples of 4" in fault({"kind": "array", "file": "x.npy"})
    for name, size in (("a.png", (8, 8)), ("b.png", (8, 12))):
        Image.new("L", size).save(tmp_path / name)
    assert "a.png" in (told := fault({"kind": "folder", "path": "."}))
    assert "b.png" in told


def test_errors_on_the_command_line_are_one_sentence_and_code_2(tmp_path):
    done = fortifai("run", written(tmp_path, changed(GMM, family__kind="gnm")))
    assert done.returncode == 2
    assert done.stderr.startswith("error: family.kind is 'gnm'")
    assert done.stderr.count("\n") == 1
    assert not any(p.is_dir() for p in tmp_path.iterdir())


NEW_PRESETS = [
    name
    for name in configuration.preset_names()
    if name.startswith(("curse", "regimes", "fortifai-g", "fortifai-vae"))
]


@pytest.mark.parametrize("name", NEW_PRESETS)
def test_the_presets_can_be_planned(name, tmp_path):
    resolved = configuration.resolve(configuration.read_raw(name)[0])
    data = resolved.read(tmp_path)
    told = experiment.plan(resolved, data)
    assert told.generations == resolved.generations
    assert 0 < told.disk_bytes < 1e9
    assert list(tmp_path.iterdir()) == []


def test_every_published_setting_has_its_preset():
    assert set(NEW_PRESETS) == {
        "curse-gaussian",
        "curse-gmm",
        "curse-vae",
        "fortifai-gaussian",
        "fortifai-gaussian-noisy",
        "fortifai-gmm",
        "fortifai-vae",
        "regimes",
    }


def test_the_stable_preset_has_the_stable_threshold():
    raw, _ = configuration.read_raw("fortifai-gaussian")
    told = raw["arms"]["stable"]["weight"]["a"]
    assert told == pytest.approx(theory.stable_threshold(raw["family"]["bias"]), abs=1e-12)
