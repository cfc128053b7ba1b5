"""Audits of models and texts whose state is known."""

import copy
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from fortifai.audit import Levels, ModelAudit, audit_model, suggest_threshold
from fortifai.audit.findings import Audit, Finding
from fortifai.audit.model import cut, write
from fortifai.cli import audit as command
from fortifai.cli import findings as table
from fortifai.cli import plain
from fortifai.cli.app import app
from fortifai.data import bios
from fortifai.data.questions import Question
from fortifai.errors import InputError
from fortifai.evals.kr_test import kr_test
from fortifai.lab.measures import Score
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import TrainOptions
from fortifai.report.audit import write_audit
from fortifai.report.text import DASH
from fortifai.stats.sample import Interval
from fortifai.weights import Dynamic, Keep


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
    train = TrainOptions(epochs=4, learning_rate=4e-3, batch_size=16, block=64)
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
    assert "No evidence" in sound.verdict
    # at temperature 1 a model is as sure of its own text as of what it has learned
    assert abs(finding(sound, "confidence").difference.value) < 0.1
    assert not finding(sound, "human").evidence


def test_a_model_that_is_too_sure_is_found(model, text):
    audit = audit_model(sharpened(model, 4.0), text, base=model, windows=64)
    assert audit.collapsed
    signs = {found.name for found in audit.evidence}
    assert "confidence.base" in signs
    assert finding(audit, "confidence").difference.low > 0.1
    assert finding(audit, "human.base").difference.low > 0  # human text has become less likely


def test_human_text_less_likely_than_by_blind_guessing_is_evidence(model, text):
    found = finding(audit_model(sharpened(model, 20.0), text, windows=32), "human")
    assert found.reference == pytest.approx(np.log(len(model.tokenizer)))
    assert found.evidence


def test_the_floor_against_the_base_model_is_that_of_the_human_text(model, text):
    audit = audit_model(model, text, base=model, windows=32)
    for name in ("entropy", "repetition", "confidence"):
        floor = finding(audit, f"{name}.base").floor
        assert floor is not None
        assert floor == finding(audit, name).floor


def broken(lm):
    out = sharpened(lm, 1.0)
    with torch.no_grad():
        next(out.model.parameters()).fill_(float("nan"))
    return out


def test_weights_that_are_not_finite_are_told_of_every_model(model, text):
    with pytest.raises(InputError, match=r"^S gives log-probabilities that are not finite"):
        audit_model(broken(model), text, subject="S", base=model, base_name="B", windows=32)
    with pytest.raises(InputError, match=r"^B gives log-probabilities that are not finite"):
        audit_model(model, text, subject="S", base=broken(model), base_name="B", windows=32)
    with pytest.raises(InputError, match=r"^S gives log-probabilities that are not finite"):
        suggest_threshold(broken(model), text, subject="S", windows=32)


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_each_of_the_texts_must_have_finite_probabilities(which, value, model, text, monkeypatch):
    whole, asked, wrote = CausalLM.window_log_prob, [], []
    own = CausalLM.write

    def scored(self, windows):
        asked.append(whole(self, windows))
        if len(asked) == which + 1:
            asked[-1][3, -1] = value
        return asked[-1]

    def written(*args, **more):
        wrote.append(1)
        return own(*args, **more)

    monkeypatch.setattr(CausalLM, "window_log_prob", scored)
    monkeypatch.setattr(CausalLM, "write", written)
    passages = cut(model, text, windows=32, size=None)
    with pytest.raises(InputError, match="not finite"):
        write(model, passages, "it", seed=0, tick=lambda *_: None)
    # the human texts are looked at before anything is written
    assert len(wrote) == (which == 2)


def test_a_model_that_says_the_same_everywhere_is_found(model, text):
    narrow = sharpened(model, 1.0)
    bias = torch.zeros(narrow.model.get_output_embeddings().weight.shape[0])
    bias[:12] = 9.0  # a few tokens crowd out all others

    def crowd(module, inputs, out):
        out.logits = out.logits + bias

    narrow.model.register_forward_hook(crowd)
    assert "entropy" in {found.name for found in audit_model(narrow, text, windows=64).evidence}


def test_the_same_model_twice_has_lost_nothing(model, text):
    audit = audit_model(model, text, base=model, windows=32)
    for found in audit.findings:
        if found.name.endswith(".base"):
            assert found.difference.value == 0
            assert not found.evidence


def test_options_are_a_dataclass_or_named(model, text):
    named = audit_model(model, text, windows=32, subject="it")
    given = audit_model(model, text, ModelAudit("it", windows=32))
    assert named.record() == given.record()
    with pytest.raises(TypeError, match="window"):
        audit_model(model, text, window=32)


def test_knowledge_is_compared_question_by_question(model, text):
    asked = bios.bios(160, seed=0)[1][:60]
    audit = audit_model(model, text, base=model, questions=asked, windows=32)
    alone, change = finding(audit, "knowledge"), finding(audit, "knowledge.base")
    assert alone.value == change.value == change.reference
    assert not change.evidence
    broken = audit_model(sharpened(model, -1.0), text, base=model, questions=asked, windows=32)
    lost = finding(broken, "knowledge.base")
    # questions turned round: right becomes wrong, and a tie stays one
    assert lost.value == pytest.approx(1 - lost.reference, abs=0.1)


def test_lost_knowledge_is_evidence_and_gained_knowledge_none(model, text):
    # the false one is the true one backwards: even a small model knows which is which
    asked = [Question(q.context, q.true, q.true[::-1], 1) for q in bios.bios(160, seed=0)[1][:40]]
    worse = sharpened(model, -1.0)
    lost = audit_model(worse, text, base=model, questions=asked, windows=32)
    assert finding(lost, "knowledge.base").difference.value < -0.5
    assert finding(lost, "knowledge.base").evidence
    gained = audit_model(model, text, base=worse, questions=asked, windows=32)
    assert not finding(gained, "knowledge.base").evidence


def test_knowledge_is_by_the_mean_over_tokens(model, text):
    """A long true continuation beside a short false one: the sum would nearly always say false."""
    true = [question.true for question in bios.bios(160, seed=0)[1][:40]]
    asked = [Question(q, q, " the", 1) for q in true]
    base = sharpened(model, 0.5)
    shares = [
        [kr_test(lm, asked).right(variant).mean() for variant in ("mean", "sum")]
        for lm in (model, base)
    ]
    audit = audit_model(model, text, base=base, questions=asked, windows=32)
    found = finding(audit, "knowledge.base")
    assert [found.value, found.reference] == [shares[0][0], shares[1][0]]
    assert finding(audit, "knowledge").value == shares[0][0]
    for mean, total in shares:
        assert mean != total, "this test could not tell"


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


def test_evidence_needs_level_and_noise():
    def found(value, low, high, floor, worse="higher"):
        difference = Interval(value, low, high)
        return Finding("x", "x", "y", 1.0, 0.0, difference, floor, "", worse, 0.2).evidence

    assert found(0.3, 0.25, 0.35, 0.1)
    assert not found(0.19, 0.18, 0.2, 0.1)  # under the level
    assert not found(0.3, 0.05, 0.55, 0.1)  # within noise
    assert not found(-0.3, -0.35, -0.25, 0.1)  # the good direction
    assert found(-0.3, -0.35, -0.25, 0.1, "lower")
    assert not found(0.3, 0.25, 0.35, 0.1, "lower")


def test_levels_are_those_of_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.split("\n") if line.startswith("| ")]
    names = {
        "diversity": "entropy",
        "rare tokens": "tail",
        "repetition": "repetition",
        "duplication": "duplication",
        "confidence": "confidence",
        "Knowledge Retention": "knowledge",
        "coverage": "coverage",
    }
    told = {
        names[row[0].partition(":")[0]]: float(re.search(r"\d+\.\d+", row[2]).group())
        for row in rows
        if len(row) == 3 and row[0].partition(":")[0] in names
    }
    # a share of copies is a measure of corpora
    assert told == {k: v for k, v in dataclasses.asdict(Levels()).items() if k != "copies"}


def test_levels_are_checked():
    with pytest.raises(InputError, match="level tail is 0"):
        Levels(tail=0)


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
    settled = Dynamic().calibrate(p).threshold
    assert (found.crossing or 1.0) == pytest.approx(settled, abs=0.1)
    dropped = np.interp(found.quantile, found.thresholds, found.own)
    assert dropped == pytest.approx(found.dropped, abs=0.05)  # thresholds are a tenth apart


def test_what_the_suggestions_drop(model, text):
    """Between what the thresholds on either side of them drop."""
    found = suggest_threshold(model, text, windows=64, dropped=0.25)
    assert found.quantile_drops[1] == pytest.approx(0.25, abs=1 / found.tokens)
    assert found.crossing is not None
    for at, drops in (
        (found.crossing, found.crossing_drops),
        (found.quantile, found.quantile_drops),
    ):
        for shares, dropped in zip((found.real, found.own), drops, strict=True):
            for threshold, share in zip(found.thresholds, shares, strict=True):
                assert (share >= dropped) if threshold <= at else (share <= dropped)
    flat = sharpened(model, 0.0)  # all tokens equally likely: nothing to part
    flat = suggest_threshold(flat, text, windows=32)
    assert (flat.crossing, flat.crossing_drops) == (None, (0.0, 0.0))


def test_a_suggestion_that_drops_much_of_the_real_text_is_warned_of(model, text, capsys):
    found = suggest_threshold(model, text, windows=32)
    shown = dataclasses.replace(found, crossing_drops=(0.34, 0.9), quantile_drops=(0.33, 0.25))
    command._show_threshold(shown)
    crossing, quantile = capsys.readouterr().out.split("where two Gaussians")[1].split("quantile,")
    assert "drops 34.0% of real text, 90.0% of its own" in crossing
    assert "drops 33.0% of real text, 25.0% of its own" in quantile
    assert "warning: more than a third of the real text" in crossing
    assert "warning" not in quantile


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
    assert "no evidence of collapse" in found.output
    assert "\nNext: audit the model of the next round" in found.output
    sure = run("audit", saved / "sure", *args)
    assert sure.exit_code == 3
    assert "\nNext: train with real data in every round" in sure.output
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert not record["collapsed"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<svg") == 2
    assert "<script" not in page
    shown = run("threshold", saved / "sound", "--text", saved / "human.txt", "--json")
    assert json.loads(shown.stdout)["tokens"] > 0


def test_models_are_named_as_they_were_typed(saved):
    args = ["audit", saved / "sure", "--base", saved / "sound", "--text", saved / "human.txt"]
    record = json.loads(run(*args, "--prompts", 48, "--json").stdout)
    assert record["subject"] == str(saved / "sure")
    against = {found["against"] for found in record["findings"]}
    assert str(saved / "sound") in against


def test_an_audit_without_a_terminal_tells_how_far_it_is(saved, monkeypatch):
    """On stderr, so that what is printed can be read by a program."""
    monkeypatch.setattr(plain, "EVERY", 0.0)
    found = run("audit", saved / "sound", "--text", saved / "human.txt", "--prompts", 48, "--json")
    assert json.loads(found.stdout)["subject"]
    lines = found.stderr.splitlines()
    assert "scoring: 1 of 3" in lines
    assert re.fullmatch(r"writing: [\d,]+ of [\d,]+", lines[2])
    assert lines[-1] == "scoring: 3 of 3"


def test_lines_of_progress_are_few():
    now, out = [0.0], io.StringIO()
    line = plain.Lines(Console(file=out), clock=lambda: now[0])
    for now[0] in np.arange(0, 31, 0.5):
        line("writing", f"{now[0]:g} of 30")
    assert out.getvalue() == "writing: 10 of 30\nwriting: 20 of 30\nwriting: 30 of 30\n"


def test_bars_are_for_terminals_that_can_draw_them():
    at = {"force_terminal": True, "_environ": {"TERM": "xterm"}}
    assert plain.draws_bars(Console(**at))
    assert not plain.draws_bars(Console(**at | {"_environ": {"TERM": "dumb"}}))
    assert not plain.draws_bars(Console(file=io.StringIO()))


@pytest.mark.long
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
    evil = dataclasses.replace(sound, examples=(("<script>alert(1)</script>", "<b>", "&"),))
    page = write_audit(evil, tmp_path).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_table_fits_80_columns_and_a_benchmark_shows_no_difference(
    tmp_path, monkeypatch, capsys
):
    """Titles that wrap stay under their titles, and what has no reference has no difference."""
    findings = (
        Finding(
            "x", "a title of several words that cannot stand in one line", "human text", 1.0, 0.5,
            Interval(0.5, 0.4, 0.6), 0.1, "nats", "higher", 0.3,
        ),
        Finding("human", "surprise", "blind", 1.0, 2.0, Interval(-1.0, -2.0, 0.0), None, "nats",
                "higher", 0.0),
        Finding("blimp.acc", "blimp.acc", "", 0.65, None, Interval(0.65, 0.44, 0.86)),
    )  # fmt: skip
    audit = Audit("it", "human text", findings, "sampled so")
    monkeypatch.setattr(table, "out_console", Console(width=80))
    table.show(audit)
    lines = capsys.readouterr().out.split("\n")
    assert max(map(len, lines[2:-3])) <= 80
    top = [line.strip() for line in lines[3:-3] if line and not line.startswith("  ")]
    assert top == ["against human text", "against blind", "as it is"]
    (benchmark,) = [line for line in lines if "blimp.acc" in line]
    assert benchmark.split() == ["blimp.acc", "0.65", DASH, "0.44", "to", "0.86", DASH]
    page = write_audit(audit, tmp_path).read_text()
    assert (
        f"<td><small>0.44 to 0.86</small></td><td>{DASH}</td><td>0.65</td><td>{DASH}</td>" in page
    )
    assert "<td>+0.50<small>+0.40 to +0.60</small></td>" in page
    assert "Not drawn, since its level is 0: surprise.</figcaption>" in page
    plain = dataclasses.replace(audit, findings=findings[:1])
    assert "Not drawn" not in write_audit(plain, tmp_path).read_text()


def test_a_report_goes_where_no_other_page_is(saved, tmp_path):
    """Told before anything is read: neither this model nor this text exists."""
    mine, file = tmp_path / "mine", tmp_path / "file"
    mine.mkdir()
    (mine / "index.html").write_text("mine")
    file.write_text("mine")
    nothing = ["audit", tmp_path / "none", "--text", tmp_path / "none.txt"]
    for out, words in (
        (mine, "holds an index.html that is no audit's"),
        (file, f"{file} is a file"),
        (file / "below", f"{file} is a file"),
    ):
        found = run(*nothing, "--out", out)
        assert isinstance(found.exception, InputError)
        assert words in str(found.exception)
    assert (mine / "index.html").read_text() == file.read_text() == "mine"
    texts = ["--text", saved / "again.txt", "--against", saved / "human.txt"]
    for _ in range(2):  # an older audit is replaced
        assert run("audit", *texts, "--out", tmp_path / "new" / "out").exit_code == 3


def test_a_folder_that_is_no_model_is_told(saved, tmp_path):
    def fault(folder):
        found = run("audit", folder, "--text", saved / "human.txt")
        assert isinstance(found.exception, InputError)
        return str(found.exception)

    assert f"{tmp_path} holds no model: there is no config.json" in fault(tmp_path)
    for g in (0, 4):
        model = tmp_path / "arms" / "ce" / "seed-0" / f"generation-0{g}" / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
    assert f"is a run, not a model; give one of its models, such as {model}" in fault(tmp_path)
    assert f"holds no model; give one of its models, such as {model}" in fault(model.parent)


@pytest.mark.long
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["{}/sound", "--text", "{}/short.txt"], "an audit needs at least"),
        (["{}/sound", "--text", "{}/human.txt", "--tokens", "64"], "the model reads 64 at most"),
        (["{}/sound", "--text", "{}/human.txt", "--base", "{}/other"], "different tokenizers"),
        (["{}/sound", "--text", "{}/human.txt", "--base", "{}/nan"], "nan gives log-prob"),
    ],
)
def test_benchmarks_wait_for_the_other_checks(args, words, saved, model, text, monkeypatch):
    def measured(*args, **more):
        raise AssertionError("benchmarks were run")

    monkeypatch.setattr("fortifai.evals.benchmarks.Suite.run", measured)
    (saved / "words.jsonl").write_text(json.dumps({"text": text[:60]}) + "\n")
    (saved / "b.yaml").write_text("lambada_openai: {data: words.jsonl}\n")
    broken(model).save(saved / "nan")
    other = scratch.train_tokenizer([text], 350)
    sizes = {"hidden_size": 16, "layers": 1, "heads": 1, "vocab_size": len(other)}
    CausalLM(scratch.build("llama", max_positions=64, seed=0, **sizes), other).save(saved / "other")
    found = run("audit", *(arg.format(saved) for arg in args), "--benchmarks", saved / "b.yaml")
    assert isinstance(found.exception, InputError)
    assert words in str(found.exception)


def test_a_share_that_is_none_is_refused_before_the_model_is_read(tmp_path):
    found = run("threshold", tmp_path / "none", "--text", tmp_path / "none.txt", "--drop", 2)
    assert isinstance(found.exception, InputError)
    assert "the share to drop is 2.0" in str(found.exception)


def test_a_missing_text_speaks_of_no_yaml(saved):
    found = run("audit", saved / "sound", "--text", "nope.txt")
    assert f"there is no file 'nope.txt' (looked for {Path.cwd() / 'nope.txt'})" in str(
        found.exception
    )
    assert "YAML" not in str(found.exception)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "nothing to audit"),
        (
            ["--text", "{}/again.txt", "--against", "{}/human.txt", "--device", "cpu"],
            "--device need a MODEL",
        ),
        (["{}/sound", "--text", "{}/short.txt"], "an audit needs at least"),
        (["{}/none", "--text", "{}/human.txt"], "no causal language model"),
        (["{}/sound", "--text", "{}/none.txt"], "none.txt"),
        (["{}/sound", "--text", "{}/human.txt", "--tokens", "64"], "the model reads 64 at most"),
        (["{}/sound", "--text", "{}/human.txt", "--against", "{}/again.txt"], "leave one out"),
        (["--text", "{}/again.txt", "--against", "{}/human.txt", "--base", "x"], "need a MODEL"),
        (["--text", "{}/short.txt", "--against", "{}/human.txt"], "and an audit takes"),
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
