"""Cures on text, on images and on a Gaussian, from the YAML to the ledger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fortifai import configuration
from fortifai.errors import InputError
from fortifai.lab import experiment
from tests.test_run import TINY, outcome

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


@pytest.mark.long
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


LEAGUE = {
    "ce": {},
    "fitted": {"weight": {"kind": "truncate", "threshold": "fitted", "dropped": 0.3}},
    "fewer": {"weight": {"kind": "random", "kept": 0.7}},
    "rate": {"cures": [{"kind": "entropy_rate", "share": 0.5, "least_words": 10}]},
    "surplexity": {"cures": [{"kind": "surplexity", "share": 0.5, "unit": "document"}]},
    "edited": {"cures": [{"kind": "token_editing", "above": 0.5}]},
    "golden": {"cures": [{"kind": "golden_ratio"}]},
    "oracle": {"cures": [{"kind": "oracle"}]},
    "decoding": {"regenerate": {"decoding": {"kind": "sample", "min_p": 0.1, "top_n_sigma": 1.0}}},
    "neon": {"after_fit": [{"kind": "neon", "share": 0.5}, {"kind": "step_back"}]},
}


@pytest.mark.long
def test_every_cure_of_text_and_the_same_bytes_taken_up_again(tmp_path):
    """A run of two generations that goes on to a third ends as one of three does."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    arms = {"arms": LEAGUE, "regime": {"kind": "accumulate"}}
    done = run(TINY, whole, **arms, generations=3)
    run(TINY, parts, **arms, generations=2)
    run(TINY, parts, **arms, generations=3)
    assert outcome(whole / "run") == outcome(parts / "run")

    told = {arm: ledger(done / arm / "seed-0", 2) for arm in LEAGUE}
    plain = told["ce"]["spent"]
    # 3 versions of 512 tokens in rows of 32; all but the first 16 are written anew
    assert plain == {"trained": 3 * 512, "generated": 512 - 16, "scored": 0}
    assert told["decoding"]["spent"] == told["fewer"]["spent"] == told["golden"]["spent"] == plain
    assert told["oracle"]["spent"] == plain | {"trained": 512}
    assert told["oracle"]["real_share"] == 1
    assert told["golden"]["real_share"] == pytest.approx(0.618, abs=32 / 1536)
    assert told["edited"]["spent"] == plain | {"scored": 512}
    for arm, scored in (("rate", False), ("surplexity", True)):
        (row,) = told[arm]["cures"]
        read, kept = (sum(row[what].values()) for what in ("read", "kept"))
        assert kept == round(read / 2)
        # every token once, in pieces of 32 or less, each behind one more
        spent = told[arm]["spent"]["scored"]
        assert 3 * 512 * 33 / 32 <= spent <= 3 * 512 * 33 / 32 + read if scored else spent == 0
    assert 0 < told["fitted"]["threshold"] < 1
    assert told["fitted"]["spent"]["generated"] > plain["generated"]
    fit = json.loads((done / "neon" / "seed-0" / "generation-02" / "fit.json").read_text())
    assert [row["kind"] for row in fit["after_fit"]] == ["neon", "step_back"]
    own = fit["after_fit"][0]["own"]
    assert own == pytest.approx(3 * 512 / 2, abs=32)
    assert told["neon"]["spent"] == {
        "trained": plain["trained"] + own // 32 * 32,
        "generated": plain["generated"] + own - 16,
        "scored": 0,
    }
    fewer = json.loads((done / "fewer" / "seed-0" / "generation-02" / "fit.json").read_text())
    assert fewer["truncated_share"] == pytest.approx(0.3, abs=0.05)


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
        ("{kind: entropy_rate, share: 1}", "'entropy_rate' works on text, not on points"),
        ("{kind: token_editing}", "'token_editing' works on text, not on points"),
        ("{kind: oracle}", "'oracle' needs real data in every generation, and regime 'replace' g"),
        ("{kind: golden_ratio, real: 1.0}", "cures.0.real is 1.0; it must be less than 1"),
        ("{share: 0.5}", "needs a kind, one of deduplicate"),
        (
            "{kind: deduplicate, share: 1}",
            "unknown key 'cures.0.share'; allowed here are kind, refill, un",
        ),
    ],
)
def test_a_wrong_cure_gets_one_sentence(cure, message):
    raw = yaml.safe_load(GAUSSIAN) | {"cures": [yaml.safe_load(cure)]}
    with pytest.raises(InputError, match=message):
        configuration.resolve(raw)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"after_fit": [{"kind": "neno"}]},
            "after_fit.0.kind is 'neno'; allowed are step_back, ne",
        ),
        ({"after_fit": [{"kind": "neon", "w": 0}]}, "after_fit.0.w is 0; it must be greater than"),
        (
            {"after_fit": [{"kind": "neon"}], "train": {"lora": {"carry": True}}},
            "train.lora.carry trains the same adapter on",
        ),
        (
            {"weight": {"kind": "truncate", "threshold": "fited"}},
            "weight.threshold is 'fited'; it must be a valid number",
        ),
        ({"weight": {"kind": "fitted", "dropped": 2}}, r"dropped is 2\.0; it must be a number in"),
        (
            {"weight": {"kind": "truncate", "threshold": "fitted"}, "init_from": "scratch"},
            "weight 'fitted' reads its threshold off what the model writes before its fit",
        ),
        (
            {
                "cures": [{"kind": "token_editing"}],
                "family": {"kind": "causal_lm", "scratch": {"hidden_size": 32, "heads": 2}},
            },
            "'token_editing' asks the base model, which has random weights",
        ),
        (
            {"regenerate": {"decoding": {"kind": "sample", "min_p": 2}}},
            "min_p is 2; it must be less than or equal to 1",
        ),
        (
            {"regenerate": {"decoding": {"kind": "sample", "top_n_sigma": 0}}},
            "top_n_sigma is 0; it must be greater than 0",
        ),
    ],
)
def test_a_wrong_arm_of_text_gets_one_sentence(changes, message):
    raw = yaml.safe_load(TINY) | {"regime": {"kind": "accumulate"}} | changes
    with pytest.raises(InputError, match=message):
        configuration.resolve(raw)


def test_steps_on_weights_are_refused_where_there_are_none():
    raw = yaml.safe_load(GAUSSIAN) | {"after_fit": [{"kind": "step_back"}]}
    with pytest.raises(InputError, match="'step_back' works on text and images, not on points"):
        configuration.resolve(raw)


@pytest.mark.long
def test_images_step_back_and_away(tmp_path):
    arms = {"plain": {}, "moved": {"after_fit": [{"kind": "step_back"}, {"kind": "neon"}]}}
    folder = run(DIGITS, tmp_path, arms=arms)
    assert ledger(folder / "moved" / "seed-0", 1)["spent"]["trained"] > 64
    kept = folder / "moved" / "seed-0" / "generation-00" / "model"
    assert any(kept.iterdir())  # generation 0's weights are still there
