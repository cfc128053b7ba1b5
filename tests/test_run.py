"""The main job from the command line to the report, on a corpus and a model of a few seconds."""

import errno
import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from fortifai import cli, configuration
from fortifai.errors import InputError, RunFailed
from fortifai.lab import experiment
from fortifai.lab.store import read_jsonl
from fortifai.models.causal_lm import CausalLM
from tests.commands import fortifai, killed, needs_kill

pytestmark = pytest.mark.long  # whole runs of language models, killed and damaged

TINY = """
name: tiny
generations: 3
seeds: [0]
baseline: ce
corpus: {kind: bios, people: 40, phrasings: 2}
splits: {tokens: 512, held_out_tokens: 256}
family:
  kind: causal_lm
  scratch:
    {hidden_size: 32, layers: 1, heads: 2, vocab_size: 400,
     pretrain: {epochs: 1, batch_size: 8}}
train: {epochs: 1, learning_rate: 1.0e-3, batch_size: 4, block: 32}
regenerate: {context: 16, new_tokens: 16, decoding: {kind: greedy}}
passages: {count: 2, tokens: 24}
arms:
  ce: {}
  tce-0.01: {weight: {kind: truncate, threshold: 0.01}}
"""


def outcome(folder: Path) -> dict[str, str]:
    """Sum of every file of every generation: scores, texts, tables, weights."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted((folder / "arms").rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A finished run of the command, two chains at a time."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "tiny.yaml").write_text(TINY)
    done = fortifai("run", "tiny.yaml", "--out", "run", "--workers", "2", cwd=root)
    assert done.returncode == 0, done.stderr
    return root, done


def scores(run, arm, generation):
    path = run / "arms" / arm / "seed-0" / f"generation-{generation:02d}" / "scores.jsonl"
    return {(s["measure"], s["on"]): s for s in read_jsonl(path)}


def test_a_finished_run_keeps_nothing_that_was_worked_in(tiny):
    assert not list((tiny[0] / "run").rglob("*.partial"))


def test_one_command_makes_the_whole_run(tiny):
    root, done = tiny
    run = root / "run"
    assert (run / "report" / "index.html").is_file()
    *seen, path = done.stdout.splitlines()
    assert path.startswith("report: ")
    assert seen[0].startswith("Knowledge Retention, first split, under ce: ")
    assert len(seen) == 3
    lines = [line for line in done.stderr.splitlines() if "generation" in line]
    assert len(lines) == 6, "one plain line a generation where there is no terminal"
    found = scores(run, "ce", 2)
    for key in [
        *(("kr.mean", f"split-{k}") for k in range(3)),
        ("kr.sum", "split-0"),
        ("kr.mean", "up-to-stage"),
        ("kr.mean", "total"),
        *(("perplexity", f"split-{k}") for k in range(3)),
        ("perplexity", "held-out"),
        ("perplexity", "rewritten-0"),
        ("confidence.mean", "held-out"),
        ("kl.unigram", "rewritten-0"),
        ("kl.unigram", "rewritten"),
        ("kl.unigram_paper", "rewritten"),
        ("distinct.3", "rewritten-2"),
        ("entropy.unigram", "rewritten-0"),
        ("train.truncated_share", "train"),
    ]:
        assert key in found
    assert found["kr.mean", "split-0"]["stderr"] > 0
    assert found["train.truncated_share", "train"]["value"] == 0
    assert scores(run, "tce-0.01", 2)["train.truncated_share", "train"]["value"] > 0


def test_a_weight_of_the_entropy_trains(tmp_path):
    """At alpha 0 every token counts fully, so the weights are those of cross entropy, to a bit."""
    raw = yaml.safe_load(TINY) | {"generations": 1}
    raw["arms"] = {
        "ce": {},
        "all": {"weight": {"kind": "eaft", "alpha": 0.0}},
        "eaft": {"weight": {"kind": "eaft"}},
        "dft": {"weight": {"kind": "dft"}},
    }
    experiment.run(configuration.resolve(raw), tmp_path, tmp_path / "run", workers=1)
    models = {
        arm: (
            tmp_path / f"run/arms/{arm}/seed-0/generation-00/model/model.safetensors"
        ).read_bytes()
        for arm in raw["arms"]
    }
    assert models["all"] == models["ce"]
    assert len(set(models.values())) == 3
    shares = {
        arm: scores(tmp_path / "run", arm, 0)["train.truncated_share", "train"]["value"]
        for arm in raw["arms"]
    }
    # a small model spreads p over hundreds of tokens: p is small, and the entropy is not
    assert shares["all"] == shares["ce"] == 0
    assert 0 < shares["eaft"] < 0.5 < shares["dft"] < 1


def test_the_ledger_of_a_real_run(tiny):
    root, _ = tiny
    for generation in range(3):
        folder = root / f"run/arms/ce/seed-0/generation-{generation:02d}"
        ledger = json.loads((folder / "ledger.json").read_text())
        assert ledger["real"] == 512
        assert ledger["real_share"] == pytest.approx(1 / (generation + 1))
        assert scores(root / "run", "ce", generation)["train.loss", "train"]["n"] == 512 * (
            generation + 1
        )


def test_arms_start_alike(tiny):
    """A token that TCE does not truncate weighs as under CE: arms share base, data and order."""
    root, _ = tiny
    a = json.loads((root / "run/arms/ce/seed-0/generation-00/fit.json").read_text())
    b = json.loads((root / "run/arms/tce-0.01/seed-0/generation-00/fit.json").read_text())
    assert a["tokens"] == b["tokens"]
    assert a["loss"] >= b["loss"] > 0


def test_seeds_with_base_models_of_their_own(tmp_path):
    """Each seed's chain is the one that a run of that seed alone gives, base model included."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    raw, root = configuration.read_raw(str(tmp_path / "tiny.yaml"))
    alone = ["generations=1", "arms={ce: {}}"]
    each = ["family.scratch.base_each_seed=true"]
    runs = {
        "both": [*alone, *each, "seeds=[0, 1]"],
        "second": [*alone, "seeds=[1]"],
        "shared": [*alone, "seeds=[0, 1]"],
    }
    for name, changes in runs.items():
        resolved = configuration.resolve(configuration.apply_set(raw, changes))
        experiment.run(resolved, root, tmp_path / name, workers=1)

    def weights(run, *path):
        return (tmp_path / run / Path(*path) / "model.safetensors").read_bytes()

    assert weights("both", "shared", "base-1") == weights("second", "shared", "base")
    assert weights("both", "shared", "base") == weights("shared", "shared", "base")
    assert not (tmp_path / "shared" / "shared" / "base-1").exists()
    chain = ("arms", "ce", "seed-1", "generation-00", "model")
    assert weights("both", *chain) == weights("second", *chain)
    assert weights("both", *chain) != weights("shared", *chain)


@pytest.mark.parametrize("left", ["whole", "damaged", "of another text"])
def test_a_base_model_that_is_there_is_not_pretrained_again(tmp_path, monkeypatch, left):
    """Of several, those that a run had finished when it was ended are taken."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    raw, root = configuration.read_raw(str(tmp_path / "tiny.yaml"))
    changes = ["generations=1", "arms={ce: {}}", "seeds=[0, 1]"]
    resolved = configuration.resolve(
        configuration.apply_set(raw, [*changes, "family.scratch.base_each_seed=true"])
    )
    experiment.run(resolved, root, tmp_path / "whole", workers=1)

    fitted, fit = [], CausalLM.fit

    def counted(lm, *args, workdir, **options):
        fitted.append(workdir.name)
        if fitted == ["pretrain.tmp"] * 2:
            raise KeyboardInterrupt
        return fit(lm, *args, workdir=workdir, **options)

    monkeypatch.setattr(CausalLM, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(resolved, root, tmp_path / "run", workers=1)
    partial = tmp_path / "run" / "shared.partial"
    if left == "of another text":
        told = json.loads((partial / "sources.json").read_text())
        (partial / "sources.json").write_text(json.dumps(told | {"foundation": "another"}))
    elif left == "damaged":
        path = partial / "base" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    fitted[:] = [""]
    experiment.run(resolved, root, tmp_path / "run", workers=1)
    assert fitted.count("pretrain.tmp") == (1 if left == "whole" else 2)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_the_followed_passages(tiny):
    root, _ = tiny
    rows = [
        row
        for g in range(3)
        for row in read_jsonl(root / f"run/arms/ce/seed-0/generation-{g:02d}/passages.jsonl")
    ]
    assert [(r["generation"], r["start"]) for r in rows[:4]] == [
        (0, rows[0]["start"]),
        (0, rows[1]["start"]),
        (1, rows[0]["start"]),
        (1, rows[1]["start"]),
    ]
    assert not any(rows[0]["changed"])
    assert any(rows[-1]["changed"])
    assert all(len(r["tokens"]) == len(r["changed"]) == 24 for r in rows)


def test_workers_change_nothing(tiny, tmp_path):
    """The same bytes in one process as in two."""
    root, _ = tiny
    resolved = configuration.resolve(configuration.read_raw(str(root / "tiny.yaml"))[0])
    experiment.run(resolved, root, tmp_path / "run", workers=1)
    assert outcome(tmp_path / "run") == outcome(root / "run")


def test_a_finished_run_is_left_as_it_is(tiny):
    root, _ = tiny
    before = outcome(root / "run")
    done = fortifai("run", "tiny.yaml", "--out", "run", cwd=root)
    assert done.returncode == 0, done.stderr
    assert "generation" not in done.stderr
    assert outcome(root / "run") == before


def test_a_changed_configuration_is_refused(tiny):
    root, _ = tiny
    change = "arms.tce-0.01.weight.threshold=0.4"
    done = fortifai("run", "tiny.yaml", "--out", "run", "--set", change, cwd=root)
    assert done.returncode == 2
    assert "arms.tce-0.01.weight.threshold" in done.stderr
    assert "Traceback" not in done.stderr


def test_damage_is_mended_by_the_same_command(tiny):
    root, _ = tiny
    before = outcome(root / "run")
    path = root / "run/arms/ce/seed-0/generation-01/scores.jsonl"
    path.write_text(path.read_text().replace("split-0", "split-9", 1))
    done = fortifai("run", "tiny.yaml", "--out", "run", cwd=root)
    assert done.returncode == 0, done.stderr
    assert f"{path.name} has changed" in " ".join(done.stderr.split())
    assert outcome(root / "run") == before


KILLED = """
    import sys
    from pathlib import Path
    from fortifai import configuration
    from fortifai.lab import experiment
    from tests.commands import kills

    root, run = map(Path, sys.argv[1:])
    resolved = configuration.resolve(configuration.read_raw(str(root / "tiny.yaml"))[0])
    chains = run / "arms"
    moments = [
        lambda: (run / "shared.partial").exists() or chains.exists(),
        lambda: any(chains.glob("*/*/generation-00")),
        lambda: any(chains.glob("*/*/generation-01*")),
    ]
    print(kills(lambda: experiment.run(resolved, root, run, workers=1), moments))
"""


@needs_kill
def test_kill_minus_nine(tiny, tmp_path):
    """Killed while it prepares, trains and writes, a run ends with the same bytes."""
    root, _ = tiny
    run = tmp_path / "run"
    assert killed(KILLED, root, run) >= 2, "the run was hardly ever interrupted"
    done = fortifai("run", "tiny.yaml", "--out", run, cwd=root)
    assert done.returncode == 0, done.stderr
    assert outcome(run) == outcome(root / "run")


def test_dry_run_prints_the_plan_and_writes_nothing(tiny):
    root, _ = tiny
    done = fortifai("run", "tiny.yaml", "--out", "elsewhere", "--dry-run", cwd=root)
    assert done.returncode == 0, done.stderr
    assert not (root / "elsewhere").exists()
    # 512 tokens a split, 1 + 2 + 3 splits trained for one epoch; 1 + 2 + 3 rewritten
    assert "3,072" in done.stdout
    assert "100% 50% 33%" in done.stdout
    # ceil(512 / 128) + ceil(1,024 / 128) + ceil(1,536 / 128) steps
    fit = [
        json.loads((root / f"run/arms/ce/seed-0/generation-0{g}/fit.json").read_text())
        for g in range(3)
    ]
    assert sum(f["steps"] for f in fit) == 24
    assert " 24 " in done.stdout


def test_a_report_of_half_a_run(tiny, tmp_path):
    root, _ = tiny
    import shutil

    shutil.copytree(root / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/arms/tce-0.01")
    shutil.rmtree(tmp_path / "run/arms/ce/seed-0/generation-02")
    done = fortifai("report", tmp_path / "run", "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "index.html").is_file()


def test_a_full_disk(tiny, tmp_path, monkeypatch):
    root, _ = tiny
    resolved = configuration.resolve(configuration.read_raw(str(root / "tiny.yaml"))[0])

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("fortifai.lab.loop.save_file", full)
        with pytest.raises(RunFailed, match="is full; make room and start the same command again"):
            experiment.run(resolved, root, tmp_path / "run", workers=1)
    experiment.run(resolved, root, tmp_path / "run", workers=1)
    assert outcome(tmp_path / "run") == outcome(root / "run")


def test_a_loss_that_is_not_finite(tiny, tmp_path):
    root, _ = tiny
    done = fortifai(
        "run", "tiny.yaml", "--out", tmp_path / "run", "--set", "train.learning_rate=1e30",
        "--set", "train.max_grad_norm=0", "--workers", "1", cwd=root,
    )  # fmt: skip
    assert done.returncode == 1
    assert "arm ce, seed 0" in done.stderr
    assert "learning_rate" in done.stderr
    assert "Traceback" not in done.stderr


BAD = [
    (["run", "nothing.yaml"], "neither a file nor a preset"),
    (["run", "dmeo"], "did you mean 'demo'"),
    (["run", "tiny.yaml", "--set", "train.epocs=2"], "did you mean 'epochs'"),
    (["run", "tiny.yaml", "--set", "splits.tokens=99999"], "too few for 3 splits"),
    (["run", "tiny.yaml", "--set", "train.block=1024"], "longer than a split"),
    (["run", "tiny.yaml", "--set", "regenerate.context=600"], "leaves nothing to rewrite"),
    (
        ["run", "tiny.yaml", "--set", "regenerate.context={at_least: 600, at_most: 900}"],
        "regenerate.context 600 leaves nothing to rewrite",
    ),
    (["run", "tiny.yaml", "--set", "corpus={kind: text, files: [x.txt]}"], "no file 'x.txt'"),
    (["run", "tiny.yaml", "--set", "questions.files=[q.jsonl]"], "no file 'q.jsonl'"),
    (["run", "tiny.yaml", "--set", "family={kind: causal_lm, base: no/such}"], "no/such"),
    (["run", "wikitext2-small"], "there is no file 'wiki.test.raw'"),
    (["report", "."], "run folder"),
    (["show", "tiny.yaml", "--set", "baseline=x"], "'x' is not an arm"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_sentence_and_exit_code_2(
    tiny, tmp_path, monkeypatch, capsys, arguments, words
):
    root, _ = tiny
    monkeypatch.chdir(root)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if arguments[0] == "run":
        arguments = [*arguments, "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["fortifai", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert words in told
    assert "Traceback" not in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_files_is_left_alone(tiny, tmp_path):
    root, _ = tiny
    (tmp_path / "precious.txt").write_text("mine")
    done = fortifai("run", "tiny.yaml", "--out", tmp_path, cwd=root)
    assert done.returncode == 2
    assert "holds other files" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("out", "words"), [("a.txt", "is a file"), ("a.txt/run", "cannot be made")]
)
def test_a_run_folder_that_cannot_be(tiny, tmp_path, out, words):
    root, _ = tiny
    (tmp_path / "a.txt").write_text("mine")
    resolved = configuration.resolve(configuration.read_raw(str(root / "tiny.yaml"))[0])
    with pytest.raises(InputError, match=words):
        experiment.run(resolved, root, tmp_path / out, workers=1)
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_changed_text_under_the_same_configuration(tmp_path):
    text = "\n".join(f"line {i} of the text says {i * i}" for i in range(400))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "x.yaml").write_text(TINY)
    raw = configuration.apply_set(
        configuration.read_raw(str(tmp_path / "x.yaml"))[0],
        ["corpus={kind: text, files: [a.txt], held_out: 0.1}", "generations=1", "splits.count=1",
         "arms={ce: {}}"],
    )  # fmt: skip
    resolved = configuration.resolve(raw)
    experiment.run(resolved, tmp_path, tmp_path / "run", workers=1)
    (tmp_path / "a.txt").write_text(text.replace("says", "said"))
    with pytest.raises(ValueError, match="have changed since"):
        experiment.is_prepared(tmp_path / "run" / "shared", "tokens", resolved.read(tmp_path))
    with pytest.raises(ValueError, match="have changed since"):
        experiment.run(resolved, tmp_path, tmp_path / "run", workers=1)


def test_presets_show_and_version(capsys, monkeypatch):
    for arguments, words in (
        (["presets"], "wikitext2-small"),
        (["show", "demo"], "weight:"),
        (["--version"], "fortifai 0.1.0"),
    ):
        monkeypatch.setattr(sys, "argv", ["fortifai", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code in (0, None)
        assert words in capsys.readouterr().out


def test_regimes_run_on_the_language_model(tiny, tmp_path):
    """mix and accumulate-subsample, with documents rewritten and sampling, from the same YAML."""
    root, _ = tiny
    raw = configuration.apply_set(
        configuration.read_raw(str(root / "tiny.yaml"))[0],
        [
            "generations=2",
            "splits.count=2",
            "regenerate={mode: documents, keep: 8, decoding: {kind: sample, top_p: 0.9}}",
            "arms={mix: {regime: {kind: mix, alpha: 0.5}, init_from: base}, "
            "sub: {regime: {kind: accumulate-subsample}, init_from: scratch}, "
            "ce: {train: {checkpoint: best_held_out, epochs: 2}}}",
        ],
    )
    experiment.run(configuration.resolve(raw), root, tmp_path / "run", workers=1)
    shares = {}
    for arm in ("mix", "sub", "ce"):
        path = tmp_path / f"run/arms/{arm}/seed-0/generation-01/ledger.json"
        shares[arm] = json.loads(path.read_text())["real_share"]
    assert shares == {"mix": 0.5, "sub": 0.5, "ce": 0.5}
