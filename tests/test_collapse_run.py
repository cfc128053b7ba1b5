"""Knowledge collapse from the configuration to the report, on a model of a few seconds."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from fortifai import configuration
from fortifai.data import bios
from fortifai.errors import InputError
from fortifai.evals import fluency
from fortifai.lab import experiment
from fortifai.lab.store import read_jsonl, sha256
from fortifai.models.causal_lm import CausalLM
from fortifai.report import write_report
from fortifai.report.load import load

pytestmark = pytest.mark.long  # a whole run of language models

RAW = {
    "name": "collapse",
    "generations": 3,
    "baseline": "general",
    "corpus": {
        "kind": "bios",
        "people": 8,
        "phrasings": 1,
        "exam": 1,
        "rehearsal": 1,
        "domain": ["job", "firm"],
    },
    "splits": {"count": 2, "tokens": 900, "held_out_tokens": 200},
    "family": {
        "kind": "causal_lm",
        "scratch": {
            "hidden_size": 32,
            "layers": 1,
            "heads": 2,
            "vocab_size": 400,
            "max_positions": 320,
            "pretrain": {"epochs": 2, "batch_size": 8},
        },
    },
    "train": {"epochs": 0.5, "learning_rate": 1e-3, "batch_size": 4, "block": 64},
    "regenerate": {"context": 16, "new_tokens": 16},
    "formats": {"questions": 12, "subjects": ["job", "firm"], "shots": 1, "answer_tokens": 4},
    "fluency": {"under_first": True, "self_bleu": 8},
    "arms": {
        "general": {"regime": {"kind": "mix", "alpha": 1.0, "splits": [1]}},
        "domain": {"regime": {"kind": "mix", "alpha": 1.0, "splits": [0]}},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("collapse") / "run"
    experiment.run(configuration.resolve(RAW), out.parent, out, workers=1)
    return out


def generation(run, arm, number):
    return run / "arms" / arm / "seed-0" / f"generation-{number:02d}"


def scores(run, arm, number):
    rows = read_jsonl(generation(run, arm, number) / "scores.jsonl")
    return {(s["measure"], s["on"]): s for s in rows}


def test_every_question_and_format_is_written_down(run):
    rows = pq.read_table(generation(run, "domain", 2) / "formats.parquet").to_pylist()
    assert len(rows) == 4 * 12
    assert {r["subject"] for r in rows} == {"job", "firm"}
    found = scores(run, "domain", 2)
    for kind in ("multiple_choice", "few_shot", "short_answer", "no_instruction"):
        own = [r for r in rows if r["format"] == kind]
        for measure, column in (("accuracy", "right"), ("adherence", "adherent")):
            mean = np.mean([r[column] for r in own])
            assert found[f"format.{measure}", kind]["value"] == pytest.approx(mean)


def test_arms_learn_from_their_own_split_and_as_much(run):
    for arm, split in (("general", 1), ("domain", 0)):
        for number in range(3):
            ledger = json.loads((generation(run, arm, number) / "ledger.json").read_text())
            (part,) = ledger["parts"]
            assert (part["split"], part["values"]) == (split, 900)
            assert set(load_file(generation(run, arm, number) / "samples.safetensors")) == {
                f"split-{split}"
            }


def test_half_an_epoch_reads_half_of_the_blocks(run):
    fit = json.loads((generation(run, "domain", 0) / "fit.json").read_text())
    # 14 blocks of 64 in batches of 4: 4 steps an epoch
    assert fit["steps"] == 2
    assert fit["tokens"] == 14 * 64 / 2


def test_later_generations_are_judged_by_generation_0(run):
    first = CausalLM.load(generation(run, "domain", 0) / "model", device="cpu")
    for number in range(3):
        written = load_file(generation(run, "domain", number) / "samples.safetensors")["split-0"]
        values = fluency.block_perplexity(first.log_prob(written))
        found = scores(run, "domain", number)
        # generation 0 judges itself in the same process, the others a copy that was read back
        assert found["perplexity.first", "written"]["value"] == pytest.approx(
            values.mean(), rel=1e-5
        )
        told = json.loads((generation(run, "domain", number) / "perplexities.json").read_text())
        assert sum(told["counts"]["written"]) == len(values) == 14
        assert ("real" in told["counts"]) == (number == 0)
    # weights between the first and the last are dropped as ever
    assert not (generation(run, "domain", 1) / "model").exists()


def test_the_real_split_holds_no_false_fact(run):
    found = scores(run, "general", 0)
    assert found["facts.false", "real"]["value"] == 0
    assert found["facts.unknown", "real"]["value"] == 0
    assert found["facts.claims", "real"]["value"] > 0
    for measure in ("entropy.word", "repetition", "self-bleu", "surplexity", "entropy.next"):
        assert (measure, "real") in found
        assert (measure, "written") in scores(run, "general", 2)


def test_the_report_tells_phases_decay_and_breadth(run):
    page = write_report([run]).read_text("utf-8")
    for name in (
        *("formats", "perplexity-under-generation-0", "diversity", "perplexity-of-generated-text"),
        "facts",
    ):
        assert (run / "report" / "figures" / f"{name}.svg").is_file()
        assert f'id="figure-{name}"' in page
    assert 'id="phases"' in page
    assert "Multiple choice" in page


def test_answers_of_an_older_version_are_read_as_todays(run, tmp_path):
    """The confidence in an answer was called certainty."""
    told = load([run])[0].arms[0].chains[0].generations[1].formats["short_answer"]
    out = tmp_path / "old"
    shutil.copytree(run, out)
    folder = generation(out, "general", 1)
    file = folder / "formats.parquet"
    pq.write_table(pq.read_table(file).rename_columns({"confidence": "certainty"}), file)
    manifest = json.loads((folder / "manifest.json").read_text())
    sums = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    manifest["files"][file.name] = sums
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = load([out])[0].arms[0].chains[0].generations[1].formats["short_answer"]
    np.testing.assert_array_equal(found.confidence, told.confidence)


def test_an_interrupted_run_goes_on_with_the_same_bytes(run, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(run, out)
    target = generation(out, "domain", 2)
    names = ("scores.jsonl", "formats.parquet", "perplexities.json", "samples.safetensors")
    before = [(target / name).read_bytes() for name in names]
    # as if it had been killed: the last generation and the weights before it are gone, so that it
    # starts from generation 0's, which were kept
    shutil.rmtree(target)
    experiment.run(configuration.resolve(RAW), tmp_path, out, workers=1)
    assert [(target / name).read_bytes() for name in names] == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["arms.domain.regime.splits=[2]"], "names split 2 and there are 2"),
        (["arms.domain.regime.splits=[0, 0]"], "names one twice"),
        (["corpus.rehearsal=0"], "give rehearsal 1 or more"),
        (["corpus.domain=[jobb]"], "did you mean 'job'"),
        (["formats.chat=true"], "no chat template"),
        (["formats.shots=9"], "few_shot takes .* reads 320 at most"),
        (["formats.subjects=[jobb]"], r"formats.subjects: 'jobb'.*did you mean 'job'"),
        (["fluency.self_blue=3"], "did you mean 'self_bleu'"),
        (["phases.error=0.9"], "phases.error"),
        (["train.epochs=0"], "train.epochs"),
    ],
)
def test_wrong_settings_are_told_before_work_starts(changes, told, tmp_path):
    def start():
        raw = configuration.resolve(configuration.apply_set(RAW, changes))
        experiment.run(raw, tmp_path, tmp_path / "x", workers=1)

    with pytest.raises(InputError, match=told):
        start()
    assert not (tmp_path / "x" / "arms").exists()


def test_people_of_a_domain_run_are_those_of_bios(run):
    asked = read_jsonl(run / "shared" / "formats.jsonl")
    facts = bios.known_facts(8, 0)
    for row in asked:
        (name,) = [n for n in facts if n in row["item"]["question"]]
        item = row["item"]
        assert item["options"][item["answer"]] == facts[name][item["subject"]]
