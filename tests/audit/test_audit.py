"""Audits of models and texts whose state is known."""

import copy
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fortifai import config, experiment
from fortifai.audit import Levels, audit_model, audit_texts, suggest_threshold
from fortifai.audit.findings import Finding
from fortifai.cli import app
from fortifai.confidence import Dynamic, Keep
from fortifai.config import TrainConfig
from fortifai.data import bios
from fortifai.errors import InputError
from fortifai.evals.breadth import Estimate
from fortifai.evals.score import Score
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM
from fortifai.report.audit import write_audit


class Quiet:
    def step(self, *args, **more): ...
    def begin(self, *args): ...
    def end(self, *args): ...


@pytest.fixture(scope="module")
def text():
    return bios.bios(160, seed=0)[0].text


@pytest.fixture(scope="module")
def model(text, tmp_path_factory):
    """A small model that has read the text a few times."""
    tokenizer = scratch.train_tokenizer([text], 400)
    sizes = {"hidden_size": 48, "layers": 2, "heads": 2, "vocab_size": len(tokenizer)}
    lm = CausalLM(scratch.build("llama", max_positions=64, seed=0, **sizes), tokenizer)
    ids = np.array(tokenizer(text).input_ids, dtype=np.int32)
    train = TrainConfig(epochs=4, learning_rate=4e-3, batch_size=16, block=64)
    folder = tmp_path_factory.mktemp("train")
    lm.fit(ids, Keep(), train, seed=0, workdir=folder, select=None, progress=Quiet())
    return lm


def sharpened(lm, factor):
    """The same model with logits times `factor`: it is surer than it has reason to be."""
    out = CausalLM(copy.deepcopy(lm.model), lm.tokenizer)
    head = out.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach() * factor)  # apart from the embeddings
    return out


@pytest.fixture(scope="module")
def sound(model, text):
    return audit_model(model, text, windows=64)


def finding(audit, name):
    return next(found for found in audit.findings if found.name == name)


def test_a_trained_model_is_sound(sound):
    assert not sound.collapsed, sound.verdict
    assert "No sign" in sound.verdict
    # at temperature 1 a model is as sure of its own text as of what it has learned
    assert abs(finding(sound, "confidence").difference.value) < 0.1


def test_a_model_that_is_too_sure_is_found(model, text):
    audit = audit_model(sharpened(model, 4.0), text, base=model, windows=64)
    assert audit.collapsed
    signs = {found.name for found in audit.signs}
    assert "confidence.base" in signs
    assert finding(audit, "confidence").difference.low > 0.1
    assert finding(audit, "human.base").difference.low > 0  # human text has become less likely


def test_a_model_that_says_the_same_everywhere_is_found(model, text):
    narrow = sharpened(model, 1.0)
    bias = torch.zeros(narrow.model.get_output_embeddings().weight.shape[0])
    bias[:12] = 9.0  # a few tokens crowd out all others

    def crowd(module, inputs, out):
        out.logits = out.logits + bias

    narrow.model.register_forward_hook(crowd)
    assert "entropy" in {found.name for found in audit_model(narrow, text, windows=64).signs}


def test_the_same_model_twice_has_lost_nothing(model, text):
    audit = audit_model(model, text, base=model, windows=32)
    for found in audit.findings:
        if found.name.endswith(".base"):
            assert found.difference.value == 0
            assert not found.sign


def test_knowledge_is_compared_question_by_question(model, text):
    asked = bios.bios(160, seed=0)[1][:60]
    audit = audit_model(model, text, base=model, questions=asked, windows=32)
    alone, change = finding(audit, "knowledge"), finding(audit, "knowledge.base")
    assert alone.value == change.value == change.reference
    assert not change.sign
    broken = audit_model(sharpened(model, -1.0), text, base=model, questions=asked, windows=32)
    lost = finding(broken, "knowledge.base")
    # questions turned round: right becomes wrong, and a tie stays one
    assert lost.value == pytest.approx(1 - lost.reference, abs=0.1)


def test_benchmarks_are_shown_whole(model, text):
    scores = [
        Score("blimp.acc", 0.6, "blimp", 670, 0.02, "share"),
        Score("blimp.acc", 0.3, "blimp_causative", 10, 0.1, "share"),
    ]
    audit = audit_model(model, text, benchmarks=scores, windows=32)
    shown = [found for found in audit.findings if found.name == "blimp.acc"]
    assert [found.value for found in shown] == [0.6]
    assert (shown[0].difference.low, shown[0].difference.high) == pytest.approx((0.5608, 0.6392))
    assert not any("benchmarks" in line for line in audit.not_measured)


def test_equal_seeds_give_equal_audits(model, text, sound):
    again = audit_model(model, text, windows=64)
    assert json.dumps(again.record()) == json.dumps(sound.record())
    assert audit_model(model, text, windows=64, seed=1).record() != sound.record()


def test_a_sign_needs_level_and_noise():
    def found(value, low, high, floor, worse="higher"):
        difference = Estimate(value, low, high)
        return Finding("x", "x", "y", 1.0, 0.0, difference, floor, "", worse, 0.2).sign

    assert found(0.3, 0.25, 0.35, 0.1)
    assert not found(0.19, 0.18, 0.2, 0.1)  # under the level
    assert not found(0.3, 0.05, 0.55, 0.1)  # within noise
    assert not found(-0.3, -0.35, -0.25, 0.1)  # the good direction
    assert found(-0.3, -0.35, -0.25, 0.1, "lower")
    assert not found(0.3, 0.25, 0.35, 0.1, "lower")


def test_levels_are_checked():
    with pytest.raises(InputError, match="level tail is 0"):
        Levels(tail=0)


# --- texts ------------------------------------------------------------------------------------


def test_halves_of_a_text_are_alike_and_a_repeated_page_is_not(text):
    lines = text.split("\n")
    even, odd = "\n".join(lines[::2]), "\n".join(lines[1::2])
    assert not audit_texts(even, odd).collapsed
    page = even[:2000]
    signs = {found.name for found in audit_texts(page * (len(even) // len(page)), odd).signs}
    assert "sameness" in signs


def test_a_text_that_lost_its_rare_words_is_found():
    rng = np.random.default_rng(0)
    p = 1 / np.arange(1, 3001)
    words = np.array([f"w{i}" for i in range(3000)])

    def written(power):
        return " ".join(rng.choice(words, 40_000, p=p**power / (p**power).sum()))

    audit = audit_texts(written(1.3), written(1.0))
    assert {"entropy", "tail"} <= {found.name for found in audit.signs}
    assert not audit_texts(written(1.0), written(1.0)).collapsed


# --- thresholds -------------------------------------------------------------------------------


def test_thresholds_are_those_of_the_weights(model, text):
    found = suggest_threshold(model, text, windows=64)
    ids = np.array(model.tokenizer(text).input_ids)
    assert found.tokens == 64 * 32
    shares = np.array(found.real)
    assert (np.diff(shares) <= 0).all()
    assert (np.diff(found.own) <= 0).all()
    assert sum(found.histograms["its own text"]) == found.tokens
    # the two rules, from the model's own numbers on the whole text: windows of it are a sample
    p = np.exp(model.log_prob(ids.astype(np.int32)))
    settled = Dynamic().settle(p).threshold
    assert (found.crossing or 1.0) == pytest.approx(settled, abs=0.1)
    dropped = np.interp(found.quantile, found.thresholds, found.own)
    assert dropped == pytest.approx(found.dropped, abs=0.05)  # thresholds are a tenth apart


# --- the commands -----------------------------------------------------------------------------


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def saved(model, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model.save(folder / "sound")
    sharpened(model, 4.0).save(folder / "sure")
    (folder / "human.txt").write_text(text)
    (folder / "short.txt").write_text("Too short.")
    (folder / "again.txt").write_text(text[:1500] * 20)
    return folder


def test_exit_codes_and_reports(saved, tmp_path):
    args = ["--text", saved / "human.txt", "--prompts", 48]
    found = run("audit", saved / "sound", *args, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "no sign of collapse" in found.output
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert not record["collapsed"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<svg") == 2
    assert "<script" not in page
    texts = ["--text", saved / "again.txt", "--against", saved / "human.txt"]
    assert run("audit", *texts).exit_code == 3
    shown = run("threshold", saved / "sound", "--text", saved / "human.txt", "--json")
    assert json.loads(shown.output)["tokens"] > 0


def test_benchmarks_from_a_file_and_what_was_cut(saved, text, tmp_path):
    """Of passages longer than the model's 64 positions the beginning is lost, and that is told."""
    rows = [{"text": text[200 * i : 200 * i + length]} for i, length in enumerate([60, 60, 900])]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.yaml").write_text("lambada_openai: {data: words.jsonl}\n")
    args = ["--text", saved / "human.txt", "--prompts", 48, "--benchmarks", tmp_path / "b.yaml"]
    found = run("audit", saved / "sound", *args, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    cut = "1 of 3 prompts with their answers are longer than the model's 64 positions"
    assert cut in found.output
    assert cut in (tmp_path / "out" / "index.html").read_text().replace("&#39;", "'")
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert any(cut in line for line in record["remarks"])
    assert [f["name"] for f in record["findings"] if f["name"].startswith("lambada")]


def test_what_a_model_wrote_is_escaped(sound, tmp_path):
    import dataclasses

    evil = dataclasses.replace(sound, examples=(("<script>alert(1)</script>", "<b>", "&"),))
    page = write_audit(evil, tmp_path).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--text", "{}/human.txt"], "nothing to compare with"),
        (["{}/sound", "--text", "{}/short.txt"], "an audit needs at least"),
        (["{}/none", "--text", "{}/human.txt"], "no causal language model"),
        (["{}/sound", "--text", "{}/none.txt"], "none.txt"),
        (["{}/sound", "--text", "{}/human.txt", "--tokens", "64"], "the model reads 64 at most"),
        (["{}/sound", "--text", "{}/human.txt", "--against", "{}/again.txt"], "leave one out"),
        (["--text", "{}/again.txt", "--against", "{}/human.txt", "--base", "x"], "need a MODEL"),
        (["--text", "{}/short.txt", "--against", "{}/human.txt"], "give longer texts"),
    ],
)
def test_bad_input_is_one_sentence(args, words, saved):
    found = run("audit", *(arg.format(saved) for arg in args))
    assert isinstance(found.exception, InputError)
    assert words in str(found.exception)


def test_a_base_model_of_another_tokenizer_is_refused(model, text):
    other = scratch.train_tokenizer([text], 350)
    sizes = {"hidden_size": 16, "layers": 1, "heads": 1, "vocab_size": len(other)}
    base = CausalLM(scratch.build("llama", max_positions=64, seed=0, **sizes), other)
    with pytest.raises(InputError, match="different tokenizers"):
        audit_model(model, text, base=base)


@pytest.mark.slow
def test_the_generations_of_wikitext2_small(real_data, tmp_path):
    """Generation 0 is sound, generation 4 under cross entropy shows collapse."""
    raw, root = config.read_raw("wikitext2-small")
    raw |= {"seeds": [0], "keep": "all", "arms": {"ce": {}}}
    raw["corpus"]["files"] = [str(real_data / "wikitext2" / "wiki.test.raw")]
    raw["corpus"]["held_out"] = [str(real_data / "wikitext2" / "wiki.valid.tokens")]
    raw["questions"]["files"] = [str(real_data / "kr_test" / "wikitext2-test.jsonl")]
    experiment.run(config.resolve(raw), root, tmp_path / "run", workers=1)
    text = (real_data / "wikitext2" / "wiki.test.raw").read_text()
    chain = tmp_path / "run" / "arms" / "ce" / "seed-0"
    first, last = (CausalLM.load(chain / f"generation-0{g}" / "model") for g in (0, 4))
    assert not audit_model(first, text).collapsed
    assert audit_model(last, text).collapsed
    assert audit_model(last, text, base=first).collapsed
