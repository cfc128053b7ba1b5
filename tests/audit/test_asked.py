"""Coverage in the audit of a model: findings, verdicts, the command."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fortifai.audit import Levels, asked, audit_model
from fortifai.audit.findings import Audit
from fortifai.cli.app import app
from fortifai.data.answers import Answered
from fortifai.errors import InputError
from fortifai.evals.coverage import Coverage, Covered
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM
from fortifai.report.audit import write_audit
from fortifai.report.text import MINUS

N = 200


def questions(count=N):
    return tuple(Answered(f"What is {i}?", "question", (str(i),)) for i in range(count))


def covered(right):
    """Answers of which those are right; each wrong one is one of its own."""
    answers = tuple(
        tuple(str(i) if hit else f"wrong {j}" for j, hit in enumerate(row))
        for i, row in enumerate(right)
    )
    return Covered(answers, np.asarray(right, dtype=bool))


def drawn(solvable, p, seed):
    """(N, 8) right or wrong: of a share of the questions each sample is right with p."""
    rng = np.random.default_rng(seed)
    able = np.arange(N) < round(solvable * N)
    return able[:, None] & (rng.random((N, 8)) < p)


def compared(now, before, monkeypatch, **more):
    told = {"now": covered(now), "before": covered(before)}
    monkeypatch.setattr(asked.coverage_, "cover", lambda lm, *_, **__: told[lm])
    found = asked.coverage(
        [("M", "now"), ("M0", "before")], Coverage(questions(), **more), Levels(), 0,
        lambda *_: None,
    )  # fmt: skip
    audit = Audit("M", "human text", found.findings, "so", remarks=found.remarks,
                  solved=found.solved)  # fmt: skip
    return audit, {each.name: each for each in found.findings}


def test_findings_are_the_means_over_questions(monkeypatch):
    now, before = drawn(0.5, 0.4, 0), drawn(0.5, 0.4, 1)
    audit, by = compared(now, before, monkeypatch, k=4)
    # pass@4 of one question by the products of 1 - k / m, another way to write the binomials
    c = now.sum(1)
    several = 1 - np.array([np.prod(1 - 4 / np.arange(8 - x + 1, 9)) for x in c])
    assert by["coverage.pass@1"].value == pytest.approx(now.mean(), rel=1e-12)
    assert by["coverage.pass@4"].value == pytest.approx(several.mean(), rel=1e-12)
    assert by["coverage.gap"].value == pytest.approx((several - c / 8).mean(), rel=1e-12)
    assert by["coverage.distinct"].value == pytest.approx((8 - c + (c > 0)).mean(), rel=1e-12)
    assert by["coverage.always"].value == (c == 8).mean()
    assert by["coverage.answered"].value == 1
    for name in ("pass@1", "pass@4", "gap", "distinct"):
        found = by[f"coverage.{name}"]
        assert found.difference.value == found.value
        assert found.difference.low < found.value < found.difference.high
        assert found.reference is None
        assert found.level is None
    assert audit.record()["solved"]["M"] == np.bincount(c, minlength=9).tolist()
    since = by["coverage.pass@1.base"]
    gaps = c / 8 - before.sum(1) / 8
    # Student's interval of the differences: of 200, 1.972 standard errors
    reach = 1.972 * gaps.std(ddof=1) / np.sqrt(N)
    assert since.difference.high - since.difference.value == pytest.approx(reach, rel=1e-3)


def test_an_interval_of_shares_holds_the_truth_as_often_as_it_says():
    """pass@8 of questions that are solvable or not: Wilson's, which has a width at 0, too."""
    held = 0
    for seed in range(400):
        solved = (np.random.default_rng(seed).random(60) < 0.05).astype(float)
        found = asked._around(solved, "share")
        held += found.low <= 0.05 <= found.high
    # 95 % with a standard error of 1.1 %; Student's would hold it in 80 %
    assert held / 400 > 0.915
    assert asked._around(np.zeros(60), "share").high > 0.03


def test_a_model_that_got_narrower_is_told(monkeypatch):
    """pass@1 rises from 0.2 to 0.36, pass@8 falls from 0.5 to 0.4."""
    audit, by = compared(drawn(0.4, 0.9, 0), drawn(0.6, 0.33, 1), monkeypatch)
    assert by["coverage.pass@1.base"].difference.low > 0
    assert [found.name for found in audit.evidence] == ["coverage.pass@8.base"]
    assert audit.headline == "evidence of collapse in: coverage"
    assert "1 of 1 checks failed: pass@8, while pass@1 rose (against M0)" in audit.verdict
    (told,) = [line for line in audit.remarks if "narrower than M0" in line]
    assert f"pass@1 {by['coverage.pass@1.base'].difference.value:+.3g} (+" in told
    assert f"pass@8 {MINUS}{-by['coverage.pass@8.base'].difference.value:.3g} ({MINUS}" in told


@pytest.mark.parametrize(
    ("now", "before", "evidence"),
    [
        ((0.6, 0.9), (0.6, 0.33), False),  # solves the same questions more often: only better
        ((0.6, 0.33), (0.6, 0.33), False),  # other samples of the same model
        ((0.4, 0.33), (0.6, 0.33), True),  # worse, and not narrower: pass@1 fell, too
        ((0.8, 0.33), (0.6, 0.33), False),  # solves more
    ],
)
def test_what_is_no_narrowing_is_not_called_so(now, before, evidence, monkeypatch):
    audit, _ = compared(drawn(*now, 0), drawn(*before, 1), monkeypatch)
    assert audit.collapsed == evidence
    assert not any("narrower" in line for line in audit.remarks)
    assert "while pass@1 rose" not in audit.verdict


# --- a model ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text():
    rng = np.random.default_rng(0)
    names = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    words = [*names, *"0123456789"]
    return " ".join(words[i] for i in rng.integers(len(words), size=9000))


@pytest.fixture(scope="module")
def model(text):
    tokenizer = scratch.train_tokenizer([text + " Question: What is ? Answer:"], 320)
    sizes = {"hidden_size": 32, "layers": 2, "heads": 2, "vocab_size": len(tokenizer)}
    return CausalLM(scratch.build("llama", max_positions=96, seed=0, **sizes), tokenizer)


def test_the_same_model_twice_has_lost_nothing(model, text, tmp_path):
    several = Coverage(questions(20), samples=3, answer_tokens=8)
    audit = audit_model(model, text, base=model, coverage=several, windows=16, size=16)
    names = [each.name for each in audit.findings if each.name.startswith("coverage.")]
    assert len(names) == 12
    for found in audit.findings:
        if found.name.startswith("coverage.") and found.name.endswith(".base"):
            assert found.difference.value == found.difference.low == found.difference.high == 0
            assert not found.evidence
    assert not any("--coverage" in line for line in audit.not_measured)
    assert sum(audit.solved["the model"]) == 20
    page = write_audit(audit, tmp_path).read_text()
    assert 'id="figure-solved"' in page
    assert "20 questions, 3 answers each at temperature 1, at most 8 tokens" in page


def test_what_does_not_fit_is_told_before_the_passages_are_written(model, text, monkeypatch):
    monkeypatch.setattr(CausalLM, "write", lambda *a, **k: pytest.fail("it wrote"))
    with pytest.raises(InputError, match=r"^coverage: the longest question has"):
        audit_model(model, text, coverage=Coverage(questions(20)), windows=16, size=16)


# --- the command ------------------------------------------------------------------------------


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def saved(model, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model.save(folder / "model")
    (folder / "human.txt").write_text(text)
    rows = [{"question": f"What is {i}?", "answer": i} for i in range(20)]
    for name, some in (("q", rows), ("few", rows[:3]), ("none", [{"question": "Why?"}])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some))
    return folder


def test_the_command_asks_and_writes_it_down(saved, tmp_path):
    found = run(
        "audit", saved / "model", "--text", saved / "human.txt", "--prompts", 16, "--tokens", 16,
        "--coverage", saved / "q.jsonl", "--samples", 4, "--k", 2, "--answer-tokens", 6,
        "--out", tmp_path,
    )  # fmt: skip
    assert found.exit_code in (0, 3), found.output
    record = json.loads((tmp_path / "audit.json").read_text())
    names = [row["name"] for row in record["findings"] if row["name"].startswith("coverage.")]
    assert names == [
        f"coverage.{name}" for name in ("pass@1", "pass@2", "gap", "distinct", "always", "answered")
    ]
    # at most --prompts questions
    (counts,) = record["solved"].values()
    assert (len(counts), sum(counts)) == (5, 16)
    assert "16 questions, 4 answers each" in found.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--coverage", "{}/none.jsonl"], "question 1, has no field 'answer'"),
        (["--coverage", "{}/few.jsonl"], "there are 3 questions for coverage"),
        (["--coverage", "{}/q.jsonl", "--samples", "4", "--k", "8"], "k is 8 and samples is 4"),
        (["--coverage", "{}/q.jsonl", "--k", "0"], "k is 0;"),
        (["--coverage", "{}/nowhere.jsonl"], "there is no file"),
        (["--samples", "4", "--chat"], "--samples, --chat need --coverage"),
        (["--coverage", "{}/q.jsonl"], "with answers of 256 the model has room for 0"),
        (["--coverage", "{}/q.jsonl", "--answer-tokens", "6", "--chat"], "no chat template"),
    ],
)
def test_wrong_input_is_one_sentence(args, words, saved):
    args = [arg.format(saved) for arg in args]
    found = run("audit", saved / "model", "--text", saved / "human.txt", "--tokens", 16, *args)
    assert isinstance(found.exception, InputError)
    assert words in str(found.exception)


def test_coverage_is_of_models(saved):
    texts = ["--text", saved / "human.txt", "--against", saved / "human.txt"]
    found = run("audit", *texts, "--coverage", saved / "q.jsonl")
    assert "--coverage need a MODEL" in str(found.exception)
