"""`fortifai kr build`, `check` and `score` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fortifai.cli.app import app
from fortifai.data.bios import bios
from fortifai.data.questions import read_questions, write_questions
from fortifai.errors import InputError, RunFailed
from fortifai.evals.kr_test import kr_test
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM
from tests.questions.server import serving
from tests.questions.test_llm import TOWNS, good, text

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def invoke(*arguments: object) -> Result:
        done = CliRunner().invoke(app, ["kr", *map(str, arguments)])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return invoke


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twelve paragraphs that hold a name and a year each."""
    names = "Anna Clara Edith Helen Irene Julia".split()  # noqa: SIM905
    path = tmp_path / "text.txt"
    path.write_text(
        "".join(
            "It was a quiet place where little ever happened and people were content with that. "
            f"The old harbour was painted there by {first} {last}ner in {1900 + i} with great care."
            "\n"
            for i, (first, last) in enumerate((f, g) for f in names for g in ("Zim", "Rei"))
        )
    )
    return path


def test_from_text_to_score(run: Run, corpus: Path, tmp_path: Path) -> None:
    done = run("build", corpus, "--out", "q.jsonl")
    assert done.exit_code == 0
    asked, _ = read_questions(["q.jsonl"], root=tmp_path)
    assert f"{len(asked)} questions on 12 of 12 paragraphs written to q.jsonl" in done.stdout
    assert len(asked) == 24
    done = run("check", "q.jsonl", corpus)
    assert done.exit_code == 0, done.stdout
    first = (tmp_path / "q.jsonl").read_bytes()
    run("build", corpus, "--out", "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == first
    other = ("--seed", "1", "--per-paragraph", "1")
    with pytest.raises(InputError, match=r"'q\.jsonl', which is there already"):
        run("build", corpus, "--out", "q.jsonl", *other)
    assert (tmp_path / "q.jsonl").read_bytes() == first
    run("build", corpus, "--out", "other.jsonl", *other)
    assert (tmp_path / "other.jsonl").read_bytes() != first

    tokenizer = scratch.train_tokenizer([corpus.read_text()], 300)
    size = {"hidden_size": 16, "layers": 1, "heads": 2, "vocab_size": len(tokenizer)}
    model = CausalLM(
        scratch.build("llama", **size, max_positions=256, seed=0), tokenizer, device="cpu"
    )
    model.save(tmp_path / "model")
    asked, _ = read_questions(["q.jsonl"], root=tmp_path)
    known = kr_test(model, asked).right("mean").mean()
    done = run("score", "model", "q.jsonl", "--json", "--answers", "a.jsonl")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["kr.mean"]["value"] == known
    assert found["kr.mean"]["low"] < known < found["kr.mean"]["high"]
    assert found["questions"] == len(asked)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(asked)
    assert {r["id"] for r in rows} == {x.id for x in asked}
    assert sum(r["correct"] for r in rows if r["variant"] == "mean") == known * len(asked)
    assert "95 % interval" in run("score", "model", "q.jsonl", "--device", "cpu").stdout
    assert "model, kr.mean" in run("check", "q.jsonl", corpus, "--model", "model").stdout


def test_check_reports_and_drops(run: Run, tmp_path: Path) -> None:
    _, asked = bios(40, 0)
    write_questions(tmp_path / "q.jsonl", [*asked, asked[0]])
    bad = {"context": "a", "sentence_true": "It is.", "sentence_false": "It is not.", "location": 1}
    with (tmp_path / "q.jsonl").open("a") as file:
        file.write(json.dumps(bad) + "\n")
    done = run("check", "q.jsonl", "--drop", "--out", "kept.jsonl", "--findings", "f.jsonl")
    assert done.exit_code == 3
    assert f"{len(asked) + 2} rows, {len(asked) + 1} different questions" in done.stdout
    assert "not checked: no text was given" in done.stdout
    found = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    rows = {(f["row"], f["rule"]) for f in found}
    assert {(len(asked) + 1, "duplicate"), (len(asked) + 2, "negation")} <= rows
    kept, _ = read_questions(["kept.jsonl"], root=tmp_path)
    faulty = {f["row"] for f in found}
    assert kept == [x for n, x in enumerate(asked, start=1) if n not in faulty]
    assert run("check", "kept.jsonl").exit_code == 0

    (tmp_path / "bad.jsonl").write_text(json.dumps(bad) + "\n")
    done = run("check", "bad.jsonl", "--drop", "--out", "none.jsonl")
    assert done.exit_code == 3
    assert "none of 1 rows is sound; none.jsonl is not written" in done.stdout
    assert not (tmp_path / "none.jsonl").exists()


def test_no_file_that_is_there_is_replaced(run: Run, tmp_path: Path) -> None:
    write_questions(tmp_path / "q.jsonl", bios(40, 0)[1])
    (tmp_path / "mine").write_text("mine")
    for arguments, option in (
        (["check", "q.jsonl", "--drop", "--out", "mine"], "--out"),
        (["check", "q.jsonl", "--findings", "mine"], "--findings"),
        (["score", "no-model", "q.jsonl", "--answers", "mine"], "--answers"),
    ):
        with pytest.raises(InputError, match=f"^{option} is 'mine', which is there already"):
            run(*arguments)
    assert (tmp_path / "mine").read_text() == "mine"
    assert names(tmp_path) == {"q.jsonl", "mine"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_model_writes(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text())
    arguments = ["build", "text.txt", "--out", "q.jsonl", "--writer", "llm", "--model", "m"]
    with serving(good) as endpoint:
        arguments += ["--base-url", endpoint.url]
        with pytest.raises(RunFailed, match="--max-calls 3 is reached with 5 paragraphs left"):
            run(*arguments, "--max-calls", 3, "--workers", 1)
        assert len(read_questions(["q.jsonl"], root=tmp_path)[0]) == 3, "what was paid for"
        done = run(*arguments, "--journal", "q.jsonl.journal.jsonl")
        assert "5 calls now, 8 in all" in done.stdout
        assert len(endpoint.requests) == 8
    assert len(read_questions(["q.jsonl"], root=tmp_path)[0]) == len(TOWNS)
    # nothing listens any more
    assert "0 calls now, 8 in all" in run(*arguments).stdout


def test_a_model_replaces_only_what_it_wrote(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text())
    out, other = tmp_path / "q.jsonl", bios(40, 0)[1]
    arguments = ["build", "text.txt", "--out", "q.jsonl", "--writer", "llm", "--model", "m"]
    with serving(good) as endpoint:
        arguments += ["--base-url", endpoint.url, "--workers", "1"]
        write_questions(out, other)
        before = out.read_bytes()
        with pytest.raises(InputError, match="which is there already"):
            run(*arguments, "--max-calls", 0)
        assert names(tmp_path) == {"text.txt", "q.jsonl"}, "no journal that would make it its own"
        out.unlink()
        with pytest.raises(RunFailed, match="--max-calls 0 is reached with 8 paragraphs left"):
            run(*arguments, "--max-calls", 0)
        assert not out.exists(), "no file without a question"
        # a journal is there now, but the file is another's
        write_questions(out, other)
        for strange in (before, b"", b"notes\n"):
            out.write_bytes(strange)
            for more in (["--max-calls", 3], []):
                with pytest.raises(InputError, match="does not come from the journal"):
                    run(*arguments, *more)
            assert out.read_bytes() == strange
        assert not endpoint.requests, "refused before anything is paid for"
        out.unlink()
        for calls in (2, 5):
            with pytest.raises(RunFailed, match=f"--max-calls {calls} is reached"):
                run(*arguments, "--max-calls", calls)
            assert len(out.read_text().splitlines()) == calls
        # less than what was paid for already, which stays
        with pytest.raises(RunFailed, match="--max-calls 1 is reached"):
            run(*arguments, "--max-calls", 1)
        assert len(out.read_text().splitlines()) == 5
        run(*arguments)
    whole = out.read_bytes()
    assert len(whole.splitlines()) == len(TOWNS)
    assert "0 calls now, 8 in all" in run(*arguments).stdout
    assert out.read_bytes() == whole
    assert names(tmp_path) == {"text.txt", "q.jsonl", "q.jsonl.journal.jsonl"}


def test_a_journal_named_like_a_half_written_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text())
    arguments = ["build", "text.txt", "--out", "q", "--writer", "llm", "--model", "m"]
    with serving(good) as endpoint:
        run(*arguments, "--base-url", endpoint.url, "--journal", "q.part")
    assert len((tmp_path / "q.part").read_bytes().splitlines()) == 1 + len(TOWNS)
    assert len((tmp_path / "q").read_bytes().splitlines()) == len(TOWNS)


@pytest.mark.parametrize("name", ["q", "./q", "link", "hard"])
def test_two_files_under_one_name(name: str, run: Run, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("q")
    asked = bios(40, 0)[1]
    write_questions(tmp_path / "read.jsonl", [*asked, asked[0]])
    if name == "hard":
        (tmp_path / "q").write_text("mine")
        (tmp_path / "hard").hardlink_to(tmp_path / "q")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.exists()}
    llm = ("--writer", "llm", "--model", "m", "--base-url", "http://127.0.0.1:1/v1")
    with pytest.raises(InputError, match="--journal and --out are both 'q'; give two names"):
        run("build", corpus, "--out", "q", *llm, "--journal", name)
    with pytest.raises(InputError, match="--findings and --out are both 'q'; give two names"):
        run("check", "read.jsonl", "--drop", "--out", "q", "--findings", name)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.exists()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "text.txt", "--out", "q", "--model", "m"], "--model with --writer swap"),
        (["build", "text.txt", "--out", "q", "--max-calls", "0"], "--max-calls with --writer swap"),
        (
            ["build", "text.txt", "--out", "q", "--writer", "llm", "--seed", "0"],
            "--seed with --writer llm",
        ),
        (["build", "text.txt", "--out", "q", "--writer", "llm"], "needs --model"),
        (["build", "none.txt", "--out", "q"], "there is no file"),
        (["build", "text.txt", "--out", "text.txt"], "which is read"),
        (["build", "text.txt", "--out", "q.parquet"], "JSON lines are written"),
        (["build", "text.txt", "--out", "q.jsonl.gz"], "JSON lines are written"),
        (["check", "q.jsonl", "--findings", "f.csv"], "JSON lines are written"),
        (["build", "text.txt", "--out", "no/q"], "there is no folder 'no'"),
        (["build", "text.txt", "--out", "."], "a folder"),
        (["build", "text.txt", "--out", "q", "--writer", "llm", "--model", "m"], "is not set"),
        (["check", "none.jsonl"], "cannot be read"),
        (["check", "text.txt"], "is not JSON"),
        (["check", "q.jsonl", "--drop"], "go together"),
        (["check", "q.jsonl", "--out", "x"], "go together"),
        (["check", "q.jsonl", "--drop", "--out", "q.jsonl"], "which is read"),
        (["check", "q.jsonl", "none.txt"], "there is no file"),
        (["score", "none", "q.jsonl"], "no causal language model"),
        (["score", "none", "text.txt"], "is not JSON"),
        (["score", "none", "q.jsonl", "--device", "quantum"], "--device is 'quantum'"),
    ],
)
def test_bad_input(arguments: list[str], message: str, run: Run, corpus: Path) -> None:
    row = {"context": "a", "sentence_true": "b", "sentence_false": "c", "location": 1}
    (corpus.parent / "q.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        run(*arguments)
