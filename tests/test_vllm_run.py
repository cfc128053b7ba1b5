"""An experiment whose texts vLLM writes, on a stand-in of its interface."""

import importlib.util
import json
import sys

import pytest
import yaml

from fortifai import configuration, report
from fortifai.errors import InputError
from fortifai.lab import experiment
from tests import vllm_stand_in

RUN = """
name: engines
generations: 2
seeds: [0]
baseline: own
corpus: {kind: bios, people: 20, phrasings: 1}
splits: {tokens: 112, held_out_tokens: 64}
family:
  kind: causal_lm
  scratch: {hidden_size: 32, layers: 1, heads: 2, vocab_size: 400}
train: {epochs: 1, learning_rate: 1.0e-3, batch_size: 4, block: 16}
regenerate: {context: 16, new_tokens: 16, engine: vllm}
after_fit: [{kind: step_back, share: 0.5}]
passages: {count: 1, tokens: 24}
fluency: {self_bleu: 0}
arms:
  own: {regenerate: {engine: transformers}}
  other: {}
"""


def start(folder):
    experiment.run(configuration.resolve(yaml.safe_load(RUN)), folder, folder / "run", workers=1)
    return folder / "run"


@pytest.mark.long
def test_a_run_is_that_of_transformers_and_says_who_wrote(tmp_path, monkeypatch):
    for name, module in vllm_stand_in.make().items():
        monkeypatch.setitem(sys.modules, name, module)
    run = start(tmp_path)
    started = sys.modules["vllm"].LLM.started
    assert len(started) == 2, "one for each generation of one arm"
    assert not any(engine.alive for engine in started)
    for number in range(2):
        own, other = (
            run / "arms" / arm / "seed-0" / f"generation-{number:02d}" for arm in ("own", "other")
        )
        for name in ("samples.safetensors", "scores.jsonl", "model/model.safetensors"):
            assert (own / name).read_bytes() == (other / name).read_bytes(), (number, name)
        assert not (own / "engine.json").exists()
        told = json.loads((other / "engine.json").read_text("utf-8"))
        assert told["version"] == "0.32.0"
        assert told["batch_invariant"] is False
        manifest = json.loads((other / "manifest.json").read_text("utf-8"))
        assert "engine.json" in manifest["files"]
    plan = json.loads((run / "plan.json").read_text("utf-8"))
    assert ["engine", "vLLM 0.32.0 on cpu, not batch-invariant"] in plan["facts"]
    assert not list(run.rglob("*.partial/*")), "the weights that engines read are taken away"
    page = report.write_report([run]).read_text("utf-8")
    assert "other: written by vllm 0.32.0 on cpu, which was not batch-invariant" in page
    assert "may differ from run to run" in page
    for path in run.rglob("engine.json"):
        assert path.parent.parent.parent.name == "other"


@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is not None, reason="vLLM is installed, and this is without it"
)
def test_without_vllm_nothing_starts(tmp_path):
    with pytest.raises(InputError, match="vLLM is not installed"):
        start(tmp_path)
    assert not (tmp_path / "run").exists()


def test_beams_are_refused_where_they_are_asked_for():
    raw = yaml.safe_load(RUN)
    raw["arms"]["other"] = {"regenerate": {"decoding": {"kind": "beam"}}}
    with pytest.raises(InputError, match=r"engine vllm has no beam search"):
        configuration.resolve(raw)
