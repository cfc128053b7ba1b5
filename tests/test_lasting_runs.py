"""Runs that outlive a version and what was asked of them: old folders, growth, damage."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from fortifai import configuration, files, machine
from fortifai.errors import InputError
from fortifai.lab import experiment, run_folder
from fortifai.lab.plan import plan
from fortifai.lab.spec import AnyExperiment
from fortifai.lab.store import ChainStore, inspect, read_jsonl
from fortifai.report import write_report
from fortifai.report.load import load
from tests.lab.make_old_run import GAUSSIAN as OLD_GAUSSIAN
from tests.lab.make_old_run import LANGUAGE as OLD_LANGUAGE

OLD = Path(__file__).parent / "lab" / "old_runs"

GAUSSIAN = yaml.safe_load(OLD_GAUSSIAN)
MOONS = yaml.safe_load("""
name: moons
generations: 3
seeds: [0]
baseline: em
corpus: {kind: points, source: {kind: moons}, samples: 60, held_out: 100}
regime: {kind: replace}
family: {kind: gmm, components: 2}
arms: {em: {}}
""")
LANGUAGE = yaml.safe_load(OLD_LANGUAGE)
REPLACED = LANGUAGE | {
    "regime": {"kind": "replace"},
    "family": {
        "kind": "causal_lm",
        "scratch": {
            **LANGUAGE["family"]["scratch"],
            "pretrain": {"epochs": 1, "batch_size": 8},
        },
    },
}
DIGITS = yaml.safe_load("""
name: digits
generations: 2
seeds: [0]
baseline: elbo
corpus: {kind: images, source: {kind: digits}, samples: 60}
regime: {kind: fortifai}
family: {kind: vae, latent: 2, channels: [2, 2], epochs: 1, batch_size: 16}
arms: {elbo: {}}
""")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """What reaches the disk when is tested in test_files.py."""
    monkeypatch.setattr("fortifai.files.sync", lambda path: None)


def resolved(raw, **changes) -> AnyExperiment:
    return configuration.resolve(copy.deepcopy(raw) | changes)


def go(raw, out: Path, **changes) -> list[str]:
    """Run it in this process; returns what was told."""
    told: list[str] = []

    def listen(event):
        if event.kind == "note":
            told.append(event.text)

    experiment.run(resolved(raw, **changes), out.parent, out, workers=1, listen=listen)
    return told


def outcome(run: Path) -> dict[str, str]:
    """Sum of every file but that of the machine, and the sums of the head, which count it."""
    left_out = (".lock", "run.json")
    return {
        p.relative_to(run).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(run.rglob("*"))
        if p.is_file() and p.name not in left_out and p != run / "manifest.json"
    }


# --- more generations -------------------------------------------------------------------------

GROWING = {
    # commits 0, 2, 4, 5; asked for 10 they are 0, 2, ..., 8, 9
    "gaussian": (GAUSSIAN, {}, 10),
    "replace": (MOONS, {}, 6),
    "accumulate": (MOONS, {"regime": {"kind": "accumulate"}, "eval_every": 2}, 6),
    "needed": (MOONS, {"regime": {"kind": "accumulate"}, "save_samples": "needed"}, 5),
    "points of more splits": (MOONS, {"regime": {"kind": "fortifai"}}, 5),
    "images": (DIGITS, {}, 3),
    "text": (REPLACED, {}, 4),
    "text of more splits": (LANGUAGE, {}, 3),
    "text of more splits, counted": (
        LANGUAGE,
        {"splits": {"tokens": 256, "held_out_tokens": 128, "count": 2}},
        3,
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", GROWING)
def test_a_run_that_grew_has_the_bytes_of_one_that_was_asked_for_all(tmp_path, name):
    raw, changes, more = GROWING[name]
    grown = changes | {"generations": more}
    if "splits" in changes:
        grown["splits"] = changes["splits"] | {"count": more}
    go(raw, tmp_path / "grown", **changes)
    go(raw, tmp_path / "grown", **grown)
    go(raw, tmp_path / "whole", **grown)
    assert outcome(tmp_path / "grown") == outcome(tmp_path / "whole")
    assert inspect(tmp_path / "grown").faults == ()
    assert json.loads((tmp_path / "grown" / "plan.json").read_text())["generations"] == more


def test_what_is_done_again_is_told_before_work(tmp_path, monkeypatch):
    go(MOONS, tmp_path / "run", regime={"kind": "fortifai"})
    began: list[int] = []
    told: list[str] = []

    def listen(event):
        if event.kind == "begin":
            began.append(event.generation)
        if event.kind == "note":
            assert not began, "before work"
            told.append(event.text)

    asked = resolved(MOONS, regime={"kind": "fortifai"}, generations=4)
    experiment.run(asked, tmp_path, tmp_path / "run", workers=1, listen=listen)
    (sentence,) = told
    assert "measured on all splits, and there are 4 now instead of 3" in sentence
    assert began == [0, 1, 2, 3]


def test_a_base_model_is_not_pretrained_again(tmp_path, monkeypatch):
    go(REPLACED, tmp_path / "run")

    def never(*_):
        raise AssertionError("made again")

    monkeypatch.setattr("fortifai.text.reading._base_model", never)
    go(REPLACED, tmp_path / "run", generations=3)


@pytest.mark.parametrize(
    "raw",
    [
        MOONS | {"regime": {"kind": "fortifai"}},
        GAUSSIAN,
        pytest.param(LANGUAGE, marks=pytest.mark.long),
    ],
    ids=["splits", "gaussian", "language"],
)
@pytest.mark.parametrize(
    "step", ["experiment.write_json", "experiment.run_folder.renew_head", "executor.run_jobs"]
)
def test_killed_while_it_grows_it_ends_with_the_same_bytes(tmp_path, monkeypatch, raw, step):
    """Before the new data are there, before the new configuration is, and before the chains."""
    more = raw["generations"] + 2
    go(raw, tmp_path / "grown")
    with monkeypatch.context() as patch:

        def die(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(f"fortifai.lab.{step}", die)
        with pytest.raises(KeyboardInterrupt):
            go(raw, tmp_path / "grown", generations=more)
    go(raw, tmp_path / "grown", generations=more)
    go(raw, tmp_path / "whole", generations=more)
    assert outcome(tmp_path / "grown") == outcome(tmp_path / "whole")


REFUSED = {
    "fewer": (MOONS, {}, {"generations": 2}, "started with 3 generations and 2 are asked for"),
    "more and another key": (
        MOONS,
        {},
        {"generations": 4, "eval_every": 2},
        "keys differ: eval_every;",
    ),
    "splits of the whole corpus": (
        LANGUAGE,
        {"splits": {"held_out_tokens": 128}},
        {"generations": 3},
        "no longer what they were; choose another --out .*splits.tokens",
    ),
    "pretraining on the rest": (
        REPLACED,
        {"regime": {"kind": "fortifai"}},
        {"generations": 3},
        "the text that the base model is pretrained on",
    ),
    "more splits alone": (
        MOONS,
        {},
        {"splits": {"count": 2}},
        "keys differ: splits.count;",
    ),
    "more splits than generations": (
        MOONS,
        {"splits": {"count": 3}},
        {"generations": 4, "splits": {"count": 4}},
        "keys differ: splits.count;",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_run_cannot_grow_to_is_refused_before_work(tmp_path, name):
    raw, changes, more, words = REFUSED[name]
    go(raw, tmp_path / "run", **changes)
    before = outcome(tmp_path / "run")
    with pytest.raises(InputError, match=words) as caught:
        go(raw, tmp_path / "run", **changes | more)
    assert "\n" not in str(caught.value)
    assert outcome(tmp_path / "run") == before


def test_other_text_is_found_while_it_grows(tmp_path):
    for name, mean in (("points", 0), ("others", 1)):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).normal(mean, size=(300, 2)))
    raw = MOONS | {
        "corpus": {
            "kind": "points",
            "source": {"kind": "files", "files": ["points.npy"]},
            "held_out": 50,
        }
    }
    go(raw, tmp_path / "run")
    shutil.copy(tmp_path / "others.npy", tmp_path / "points.npy")
    with pytest.raises(InputError, match="the points of the run have changed since"):
        go(raw, tmp_path / "run", generations=5)


# --- another configuration --------------------------------------------------------------------


def test_what_only_the_report_reads_may_change(tmp_path):
    go(LANGUAGE, tmp_path / "run")
    before = outcome(tmp_path / "run")
    level = {"measure": "perplexity", "on": "split-0", "level": 250.0, "direction": "above"}
    told = go(
        LANGUAGE,
        tmp_path / "run",
        description="another",
        time_to_failure=[level],
        phases={"accuracy_lost": 0.25},
    )
    assert told == []
    after = outcome(tmp_path / "run")
    assert {name for name in before if before[name] != after[name]} == {"config.yaml"}
    (run,) = load([tmp_path / "run"])
    assert [(x.measure, x.level) for x in run.levels] == [("perplexity", 250.0)]
    assert run.rule.accuracy_lost == 0.25
    assert run.damage == ()
    with pytest.raises(InputError, match=r"keys differ: arms\.tce\.train\.epochs;"):
        go(LANGUAGE, tmp_path / "run", train={**LANGUAGE["train"], "epochs": 2})


def defaults(node, path=()):
    """Every path into a resolved configuration."""
    for key, value in node.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from defaults(value, (*path, key))


def written(config: Path, text: str) -> None:
    """As a run writes its configuration, with its sum in the manifest."""
    config.write_text(text)
    manifest = config.with_name("manifest.json")
    told = json.loads(manifest.read_text())
    data = config.read_bytes()
    told["files"][config.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(told))


def test_a_key_that_is_newer_than_the_run_has_its_default(tmp_path):
    """Each key that may be left out is taken from the file, as an older version would have it."""
    go(MOONS, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    whole, tried = path.read_text(), 0
    for keys in defaults(yaml.safe_load(whole)):
        old = yaml.safe_load(whole)
        node = old
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]
        try:
            same = run_folder.plain(configuration.resolve(old)) == yaml.safe_load(whole)
        except InputError:
            continue  # no default
        if same:
            tried += 1
            written(path, yaml.safe_dump(old))
            go(MOONS, tmp_path / "run")
            assert load([tmp_path / "run"])[0].damage == ()
    assert tried > 10


def test_a_configuration_that_today_knows_nothing_of_is_told(tmp_path):
    go(MOONS, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    written(path, path.read_text() + "later: 1\n")
    with pytest.raises(
        InputError, match=r"cannot be read as a run of points by this version .*later"
    ):
        go(MOONS, tmp_path / "run")


# --- older versions ---------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(("name", "raw"), [("gaussian", GAUSSIAN), ("language", LANGUAGE)])
def test_a_run_of_an_older_version_reports_goes_on_and_grows(tmp_path, name, raw):
    run = tmp_path / name
    shutil.copytree(OLD / name, run)
    before = outcome(run)
    (read,) = load([run])
    assert read.damage == ()
    assert read.finished == read.planned
    assert write_report([run], tmp_path / "report").is_file()
    assert go(raw, run) == []
    after = outcome(run)
    assert json.loads((run / "measures.json").read_text())
    del after["measures.json"]  # newer than the run
    assert after == before, "it has nothing left to do"
    # half of a run, as a kill would leave it
    chain = next((run / "arms").glob("*/*"))
    last = max(ChainStore(chain).committed())
    for arm in (run / "arms").iterdir():
        shutil.rmtree(next(arm.iterdir()) / f"generation-{last:02d}")
    go(raw, run)
    assert ChainStore(chain).committed()[-1] == last
    more = raw["generations"] + 2
    go(raw, run, generations=more)
    assert ChainStore(chain).committed()[-1] == more - 1
    (read,) = load([run])
    assert read.damage == ()
    assert read.finished == read.planned
    # the data are what they were, and more of them
    kept = {
        n: s for n, s in before.items() if n.endswith(("points.safetensors", "base/config.json"))
    }
    assert kept.items() <= outcome(run).items()


def test_scores_of_an_older_version_are_read_as_todays():
    """It wrote all seeds of a chain into one row, and called some measures otherwise."""
    (run,) = load([OLD / "gaussian"])
    for arm in run.arms:
        place = OLD / "gaussian" / "arms" / arm.name / "seeds"
        for i, chain in enumerate(arm.chains):
            for generation in chain.generations:
                for row in read_jsonl(ChainStore(place).path(generation.number) / "scores.jsonl"):
                    score = generation.scores[row["measure"], row["on"]]
                    values = row.get("by_seed")
                    assert score.value == (row["value"] if values is None else values[i])
                    assert score.seed == (None if values is None else chain.seed)
                    assert values is None or score.stderr is None, "it was the mean's"
    (run,) = load([OLD / "language"])
    (generation, _) = run.arms[0].chains[0].generations
    names = {measure for measure, _ in generation.scores}
    assert {"distinct.1", "distinct.2", "distinct.3"} <= names
    assert not any(name.startswith("distinct-") for name in names)


def test_the_older_runs_are_small():
    assert sum(p.stat().st_size for p in OLD.rglob("*") if p.is_file()) < 200_000


# --- damage -----------------------------------------------------------------------------------


def flipped(path: Path, at: float = 0.5, first: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[first + int(at * (len(data) - 1 - first))] ^= 1
    path.write_bytes(data)


def named(sentence: str, manifest: Path) -> bool:
    """Whether it names the folder of a manifest: as a path, or as the generation that it is."""
    number = manifest.parent.name.removeprefix("generation-")
    of_it = number.isdigit() and sentence.startswith(f"Generation {int(number)} of ")
    return of_it or str(manifest.parent) in sentence


@pytest.fixture(scope="module", params=["gaussian", "language"])
def sound(request, tmp_path_factory):
    """A finished run of today, and its experiment."""
    raw = {"gaussian": GAUSSIAN, "language": LANGUAGE}[request.param]
    out = tmp_path_factory.mktemp("sound") / "run"
    go(raw, out)
    return out, raw


def test_the_report_names_every_file_in_which_a_bit_has_changed(sound, tmp_path):
    out, _ = sound
    names = [p.relative_to(out) for p in sorted(out.rglob("*")) if p.is_file()]
    # an empty lock holds no bit; the sums of the head and of a generation name other files
    names = [n for n in names if n.name not in (".lock", "manifest.json")]
    assert len(names) > 15
    for name in names:
        run = tmp_path / "run"
        shutil.copytree(out, run)
        flipped(run / name)
        try:
            told = load([run])[0].damage
        except InputError as error:
            told = (str(error),)
        assert any(name.name in sentence for sentence in told), name
        shutil.rmtree(run)


def test_damage_stands_on_the_page_and_is_told(sound, tmp_path):
    out, _ = sound
    run = tmp_path / "run"
    shutil.copytree(out, run)
    flipped(next(run.glob("arms/*/*/generation-01/samples.safetensors"), run / "run.json"))
    told: list[str] = []
    page = write_report([run], tmp_path / "report", tell=told.append).read_text("utf-8")
    (sentence,) = told
    assert "has changed" in sentence
    assert "Start the run again" in sentence
    assert str(run) in page
    assert "Start the run again" in page


@pytest.mark.long
@pytest.mark.parametrize("at", [0.01, 0.5, 0.99])
def test_a_bit_of_a_manifest_is_told_or_changes_nothing(sound, tmp_path, at):
    out, raw = sound
    for manifest in sorted(out.rglob("manifest.json")):
        run = tmp_path / "run"
        shutil.copytree(out, run)
        name = manifest.relative_to(out)
        # the sums of weights that were dropped, which come first, are of nothing
        dropped = name.parent.name == "generation-00"
        flipped(run / name, at, manifest.read_text().index('"files"') if dropped else 0)
        told = load([run])[0].damage
        whole = json.loads(manifest.read_text())
        try:
            same = json.loads((run / name).read_text("utf-8")) == whole
        except ValueError:
            same = False
        assert same or any(named(sentence, run / name) for sentence in told), name
        assert same or go(raw, run)
        assert outcome(run) == outcome(out)
        shutil.rmtree(run)


def test_the_same_command_mends_the_head(sound, tmp_path):
    out, raw = sound
    for name in ("run.json", "plan.json", "notes.json", "manifest.json"):
        run = tmp_path / "run"
        shutil.copytree(out, run)
        (run / name).write_text("{")
        assert any(name in sentence for sentence in go(raw, run))
        assert inspect(run).faults == ()
        assert outcome(run) == outcome(out)
        shutil.rmtree(run)


@pytest.mark.parametrize("fault", ["changed", "no YAML", "empty", "gone"])
def test_a_damaged_configuration_is_written_anew_by_the_run_that_wrote_it(sound, tmp_path, fault):
    out, raw = sound
    run = tmp_path / "run"
    shutil.copytree(out, run)
    path = run / "config.yaml"
    text = path.read_text()
    changed = {
        "changed": text.replace("eval_every: ", "eval_every: 1"),
        "no YAML": "\x00{",
        "empty": "",
    }
    path.unlink() if fault == "gone" else path.write_text(changed[fault])
    (told,) = go(raw, run)
    assert "config.yaml" in told
    assert told.endswith("it is written anew")
    assert outcome(run) == outcome(out)
    assert inspect(run).faults == ()


def test_a_changed_configuration_is_told_to_be_damaged(sound, tmp_path):
    """Where another one is asked for than the run began with."""
    out, raw = sound
    run = tmp_path / "run"
    shutil.copytree(out, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("eval_every: ", "eval_every: 1"))
    with pytest.raises(InputError, match=r"keys differ: .*eval_every.*config\.yaml has"):
        go(raw | {"name": "another"}, run)


def test_a_run_with_nothing_whole_says_why(sound, tmp_path):
    out, _ = sound
    run = tmp_path / "run"
    shutil.copytree(out, run)
    for path in run.rglob("scores.jsonl"):
        path.unlink()
    with pytest.raises(InputError, match=r"no whole generation yet \(.*scores\.jsonl is missing"):
        load([run])


# --- plans ------------------------------------------------------------------------------------

REGIMES = [
    {"kind": "fortifai"},
    {"kind": "replace"},
    {"kind": "accumulate"},
    {"kind": "accumulate-subsample"},
    {"kind": "mix", "alpha": 0.3},
    {"kind": "mix", "keep_original": 0.25},
    {"kind": "mix", "alpha": 0.3, "splits": [1]},
]


@pytest.mark.parametrize("regime", REGIMES, ids=str)
@pytest.mark.parametrize("generations", [1, 2, 7, 100, 101, 163])
def test_a_plan_counts_what_each_generation_trains_on(tmp_path, regime, generations):
    """Against the sum over all generations, part by part."""
    size = 1000
    changes = {"generations": generations, "regime": regime, "seeds": [0, 1]}
    if regime["kind"] != "fortifai":
        changes["splits"] = {"count": 2}
    asked = resolved(MOONS, corpus=MOONS["corpus"] | {"samples": size}, **changes)
    (told,) = plan(asked, asked.read(tmp_path)).arms
    asked_for, splits = asked.arms["em"].regime, asked.split_count
    trained = written = 0
    shares = []
    for g in range(generations):
        step = asked_for.plan(g, splits)
        counts = [
            (round(size * p.between[1]) - round(size * p.between[0]), p.generation == 0)
            for p in step.train
        ]
        total = sum(n for n, _ in counts)
        shares.append(sum(n for n, real in counts if real) / total)
        trained += total
        written += size * len(step.rewrites)
    assert (told.trained, told.rewritten) == (2 * trained, 2 * written)
    if generations <= 8:
        assert told.real_share == pytest.approx(shares)
    else:
        assert told.real_share[:-1] == pytest.approx(shares[:6])
        # of the last one, a share of parts that shrink is rounded to whole points
        assert told.real_share[-1] == pytest.approx(shares[-1], abs=1 / size)


def test_the_steps_of_a_language_model_whose_text_grows(tmp_path):
    """A step is a whole one: of the generations that are not counted, each is right to a step."""
    asked = resolved(REPLACED, generations=150, regime={"kind": "accumulate"})
    data = asked.read(tmp_path)
    (told,) = plan(asked, data).arms
    steps = sum(data.effort("tce", 256 * (g + 1))[1] for g in range(150))
    assert told.steps == pytest.approx(steps, abs=50)


@pytest.mark.parametrize("kind", ["replace", "accumulate", "accumulate-subsample"])
def test_a_plan_takes_no_longer_for_more_generations(tmp_path, monkeypatch, kind):
    asked = resolved(MOONS, generations=100_000, regime={"kind": kind})
    data = asked.read(tmp_path)
    seen: list[int] = []
    regime = type(asked.arms["em"].regime)
    whole = regime.plan

    def counted(self, generation, splits):
        seen.append(generation)
        return whole(self, generation, splits)

    monkeypatch.setattr(regime, "plan", counted)
    told = plan(asked, data)
    assert len(seen) == max(seen) + 1 == 100
    assert told.arms[0].rewritten == 100_000 * 60
    assert len(told.arms[0].real_share) == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generations": 10**30}, "generations is 10{30}; it must be less than or equal to 100000"),
        ({"seeds": {"count": 10**12}}, "count is 10{12}; it must be at most 100,000"),
    ],
)
def test_numbers_that_no_memory_holds_are_refused_at_once(changes, words):
    with pytest.raises(InputError, match=words):
        resolved(MOONS, **changes)


@pytest.mark.parametrize(
    "changes",
    [{"splits": {"count": 10**12}}, {"corpus": MOONS["corpus"] | {"samples": 10**13}}],
)
def test_points_that_no_memory_holds_are_refused_before_they_are_drawn(tmp_path, changes):
    asked = resolved(MOONS, **changes)
    with pytest.raises(InputError, match=r"need [\d,.]+ GB, and [\d,.]+ GB of memory are free"):
        asked.read(tmp_path)


def test_points_are_refused_that_the_container_does_not_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"need 0.0 GB, and 0.0 GB of memory are free"):
        resolved(MOONS).read(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("more", [0, 2])
@pytest.mark.parametrize("at", range(6))
def test_killed_while_its_head_is_written_a_run_goes_on(tmp_path, monkeypatch, at, more):
    """A new run, and one that grows, killed in the middle of each file."""
    if more:
        go(MOONS, tmp_path / "run")
    whole, calls = files.write_whole, []

    def dying(path, text):
        if path.parent == tmp_path / "run":
            calls.append(path)
            if len(calls) == at + 1:
                path.with_name(f"{path.name}.123.partial").write_text(text[: len(text) // 2])
                raise KeyboardInterrupt
        whole(path, text)

    with monkeypatch.context() as patch:
        patch.setattr("fortifai.files.write_whole", dying)
        try:
            go(MOONS, tmp_path / "run", generations=3 + more)
        except KeyboardInterrupt:
            assert len(calls) == at + 1
        else:
            assert more, "a run that grows writes four files and their sums"
            assert len(calls) == 5 <= at
    go(MOONS, tmp_path / "run", generations=3 + more)
    go(MOONS, tmp_path / "whole", generations=3 + more)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert inspect(tmp_path / "run").faults == ()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "film.partial").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        go(MOONS, tmp_path / "run")
    assert (tmp_path / "run" / "film.partial").read_text() == "mine"
