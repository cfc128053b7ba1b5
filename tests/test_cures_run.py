"""Cures on text, on images and on a Gaussian, from the YAML to the ledger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fortifai import configuration
from fortifai.errors import InputError
from fortifai.lab import experiment
from tests.test_run import TINY

GAUSSIAN = """
name: cured
generations: 3
seeds: {count: 2}
baseline: plain
corpus: {kind: points, source: {kind: gaussian}, samples: 50}
family: {kind: gaussian}
arms:
  plain: {}
  near: {cures: [{kind: keep_likeliest, share: 0.5}]}
"""
DIGITS = """
name: cured
generations: 2
baseline: plain
corpus: {kind: images, source: {kind: digits}, samples: 64}
family: {kind: vae, latent: 2, channels: [4, 4], epochs: 1, batch_size: 32}
arms:
  plain: {}
  unlikely: {cures: [{kind: deduplicate}, {kind: surplexity, share: 0.25}]}
"""


def run(text: str, folder: Path, **changes) -> Path:
    resolved = configuration.resolve(yaml.safe_load(text) | changes)
    experiment.run(resolved, folder, folder / "run", workers=1)
    return folder / "run" / "arms"


def ledger(chain: Path, generation: int) -> dict:
    return json.loads((chain / f"generation-{generation:02d}" / "ledger.json").read_text())


def test_documents_and_blocks_of_text(tmp_path):
    arms = {
        "ce": {},
        "cured": {
            "cures": [
                {"kind": "deduplicate", "unit": "document"},
                {"kind": "keep_likeliest", "share": 0.5},
            ]
        },
    }
    folder = run(TINY, tmp_path, arms=arms, generations=2, regime={"kind": "replace"})
    told = ledger(folder / "cured" / "seed-0", 1)
    documents, blocks = told["cures"]
    assert documents["read"].keys() == {"generation-0"}  # nothing real is trained on
    # what is left is cut into blocks of 32 tokens, and half of those are kept
    assert blocks["kept"]["generation-0"] == round(blocks["read"]["generation-0"] / 2)
    assert told["real"] == 0
    assert told["generated"] <= 32 * blocks["kept"]["generation-0"]
    plain = ledger(folder / "ce" / "seed-0", 1)
    assert "cures" not in plain
    assert told["generated"] < plain["generated"] == 512
    fit = json.loads((folder / "cured" / "seed-0" / "generation-01" / "fit.json").read_text())
    assert fit["tokens"] == told["generated"] // 32 * 32  # whole rows


def test_images(tmp_path):
    folder = run(DIGITS, tmp_path)
    equal, unlikely = ledger(folder / "unlikely" / "seed-0", 1)["cures"]
    assert equal["read"] == {"generation-0": 64}
    assert unlikely["kept"] == {"generation-0": round(equal["kept"]["generation-0"] / 4)}


def test_a_gaussian_with_cures_has_a_chain_for_each_seed_and_shrinks(tmp_path):
    """Half of the points, the likeliest, have less variance than all."""
    folder = run(GAUSSIAN, tmp_path)
    assert sorted(p.name for p in (folder / "near").iterdir() if p.is_dir()) == ["seed-0", "seed-1"]
    for seed in ("seed-0", "seed-1"):
        kept = ledger(folder / "near" / seed, 2)["cures"][0]["kept"]
        assert kept == {"generation-1": 25}
        rows = (folder / "near" / seed / "generation-02" / "scores.jsonl").read_text()
        scores = {row["measure"]: row["value"] for row in map(json.loads, rows.splitlines())}
        # of N(0, 1) the likeliest half lies within 0.67 sigma, with a variance of 0.14
        assert scores["variance.ratio"] < 0.14


def test_the_seeds_of_plain_gaussians_stay_together(tmp_path):
    arms = {"plain": {}, "tails": {"weight": {"kind": "truncate_tails", "a": 0.1}}}
    folder = run(GAUSSIAN, tmp_path, arms=arms)
    assert [p.name for p in (folder / "plain").iterdir() if p.is_dir()] == ["seeds"]


def test_a_seed_alone_is_what_it_is_among_others(tmp_path):
    """Together or a chain each, the plain arm of a seed has the same scores."""
    together, apart = (tmp_path / name for name in ("together", "apart"))
    together.mkdir()
    apart.mkdir()
    run(GAUSSIAN, together, arms={"plain": {}})
    run(GAUSSIAN, apart)

    def variances(folder, chain):
        path = folder / "run" / "arms" / "plain" / chain / "generation-02" / "scores.jsonl"
        rows = map(json.loads, path.read_text().splitlines())
        return [row["value"] for row in rows if row["measure"] == "variance.ratio"]

    assert variances(together, "seeds") == [
        *variances(apart, "seed-0"),
        *variances(apart, "seed-1"),
    ]


@pytest.mark.parametrize(
    ("cure", "message"),
    [
        ("{kind: dedup}", "cures.0.kind is 'dedup'; allowed are deduplicate.*did you mean"),
        ("{kind: deduplicate, unit: document}", "has unit 'document'; allowed are point"),
        ("{kind: keep_likeliest}", "missing key 'cures.0.share'"),
        ("{kind: keep_likeliest, share: 1.5}", "share is 1.5; it must be less than or equal to 1"),
        ("{share: 0.5}", "needs a kind, one of deduplicate"),
        ("{kind: deduplicate, share: 1}", "unknown key 'cures.0.share'; allowed here are kind, un"),
    ],
)
def test_a_wrong_cure_gets_one_sentence(cure, message):
    raw = yaml.safe_load(GAUSSIAN) | {"cures": [yaml.safe_load(cure)]}
    with pytest.raises(InputError, match=message):
        configuration.resolve(raw)
