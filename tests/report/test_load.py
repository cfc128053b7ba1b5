from __future__ import annotations

import json
from pathlib import Path

import pytest

from fortifai.errors import InputError
from fortifai.evals.phases import Onset
from fortifai.images import measures as images
from fortifai.lab.measures import About, Line
from fortifai.lab.store import committing, write_json
from fortifai.points import measures as points
from fortifai.report import knowledge
from fortifai.report.load import load
from fortifai.report.names import describe, lines_of
from fortifai.report.numbers import number, span
from fortifai.text.measures import MEASURES

from .fake import ARMS, scores_of, write_run

OLD = Path(__file__).parents[1] / "lab" / "old_runs"
TWO = {name: ARMS[name] for name in ("ce", "tce-0.3")}


def test_every_score_is_read_as_it_was_written(small_run: Path) -> None:
    (run,) = load([small_run])
    assert [arm.name for arm in run.arms] == ["ce", "tce-0.3"]
    for arm in run.arms:
        assert [chain.seed for chain in arm.chains] == [0, 1]
        for chain in arm.chains:
            assert [g.number for g in chain.generations] == [0, 1, 2]
            for generation in chain.generations:
                place = f"arms/{arm.name}/seed-{chain.seed}/generation-{generation.number:02d}"
                written = {
                    (r["measure"], r["on"]): r["value"] for r in scores_of(small_run / place)
                }
                assert {k: s.value for k, s in generation.scores.items()} == written


def test_answers_agree_with_the_score_made_of_them(small_run: Path) -> None:
    (run,) = load([small_run])
    generation = run.arms[1].chains[1].generations[2]
    assert generation.answers is not None
    right = generation.answers.right[generation.answers.split == 0]
    # the score was written as this very mean: only the rounding of JSON lies between
    assert right.mean() == pytest.approx(generation.scores["kr.mean", "split-0"].value, abs=1e-12)
    assert len(set(generation.answers.ids)) == len(generation.answers.ids)


def test_scores_of_benchmarks_of_earlier_versions(tmp_path: Path) -> None:
    """They, and levels on them, went by the benchmark's name alone."""
    level = {"measure": "blimp.acc", "on": "blimp", "level": 0.5}
    folder = write_run(tmp_path / "run", arms=TWO, generations=1, seeds=[0], levels=[level])
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "benchmarks: {blimp: {hub: true}}\n")
    place = folder / "arms" / "ce" / "seed-0" / "generation-00"
    files = {p.name: p.read_bytes() for p in place.iterdir() if p.is_file()}
    del files["manifest.json"]
    row = {"measure": "blimp.acc", "on": "blimp_wh", "value": 0.7, "n": 40, "unit": "share"}
    files["scores.jsonl"] += f"{json.dumps(row)}\n".encode()
    with committing(place) as again:
        for name, data in files.items():
            (again / name).write_bytes(data)
    (run,) = load([folder])
    found = run.arms[0].chains[0].generations[0].scores
    assert found["benchmark.blimp.acc", "blimp_wh"].value == 0.7
    assert ("kr.mean", "split-0") in found
    assert [declared.measure for declared in run.levels] == ["benchmark.blimp.acc"]


def test_unfinished_generations_are_left_out(tmp_path: Path) -> None:
    run_folder = write_run(tmp_path / "run", arms=TWO, generations=3, seeds=[0])
    last = run_folder / "arms" / "ce" / "seed-0" / "generation-02"
    (last / "manifest.json").unlink()
    (last.parent / "generation-03.partial").mkdir()
    (run,) = load([run_folder])
    assert [len(arm.chains[0].generations) for arm in run.arms] == [2, 3]
    assert run.finished == 5
    assert not [note for note in run.notes if "left out" in note]


def test_a_damaged_generation_is_left_out_and_named(tmp_path: Path) -> None:
    run_folder = write_run(tmp_path / "run", arms=TWO, generations=3, seeds=[0])
    scores = run_folder / "arms" / "ce" / "seed-0" / "generation-01" / "scores.jsonl"
    scores.write_text(scores.read_text("utf-8").replace('"kr.mean"', '"kr.meen"'), "utf-8")
    (run,) = load([run_folder])
    assert [g.number for g in run.arms[0].chains[0].generations] == [0, 2]
    (note,) = [note for note in run.notes if "left out" in note]
    assert "Generation 1 of ce, seed 0" in note
    assert "scores.jsonl" in note


def test_a_gap_ends_the_values_that_are_read_in_order(tmp_path: Path) -> None:
    run_folder = write_run(tmp_path / "run", arms=TWO, generations=3, seeds=[0])
    (run_folder / "arms/ce/seed-0/generation-01/manifest.json").unlink()
    (run,) = load([run_folder])
    assert len(run.arms[0].chains[0].values(("kr.mean", "split-0"))) == 1
    assert len(run.arms[1].chains[0].values(("kr.mean", "split-0"))) == 3


def test_arms_and_seeds_may_differ_in_length(tmp_path: Path) -> None:
    done = {("ce", 0): 3, ("ce", 1): 1, ("tce-0.3", 0): 2, ("tce-0.3", 1): 0}
    (run,) = load([write_run(tmp_path / "run", arms=TWO, generations=3, done=done)])
    assert [[len(c.generations) for c in arm.chains] for arm in run.arms] == [[3, 1], [2]]
    assert run.finished == 6
    assert run.planned == 12


def test_several_runs_are_told_apart(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", name="same", arms=TWO, generations=1, seeds=[0])
    two = write_run(tmp_path / "b", name="same", arms=TWO, generations=1, seeds=[0])
    other = write_run(tmp_path / "x" / "a", name="same", arms=TWO, generations=1, seeds=[0])
    assert [a.label for r in load([one, two]) for a in r.arms] == [
        "a/ce", "a/tce-0.3", "b/ce", "b/tce-0.3",
    ]  # fmt: skip
    assert [run.label for run in load([one, other])] == ["same (1)", "same (2)"]


def test_what_is_not_a_run_is_refused_in_one_sentence(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"is not a run folder: it has no config\.yaml"):
        load([empty])
    with pytest.raises(InputError, match="is not a folder"):
        load([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="no run folder was given"):
        load([])
    (empty / "config.yaml").write_text("[1, 2", "utf-8")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        load([empty])
    (empty / "config.yaml").write_text("name: x", "utf-8")
    with pytest.raises(InputError, match="declares no arms"):
        load([empty])
    (empty / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        load([empty])


def test_a_run_without_a_finished_generation_is_refused(tmp_path: Path) -> None:
    run_folder = write_run(tmp_path / "run", arms=TWO, done=dict.fromkeys(_keys(), 0))
    with pytest.raises(InputError, match="no finished generation yet"):
        load([run_folder])


def _keys() -> list[tuple[str, int]]:
    return [(arm, seed) for arm in TWO for seed in (0, 1)]


def test_a_run_named_twice_is_refused(small_run: Path) -> None:
    with pytest.raises(InputError, match="given twice"):
        load([small_run, small_run / ".." / small_run.name])


def test_an_arm_that_is_a_path_is_refused(tmp_path: Path) -> None:
    run_folder = write_run(tmp_path / "run", arms=TWO, generations=1, seeds=[0])
    config = run_folder / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("tce-0.3:", "../../else:"), "utf-8")
    with pytest.raises(InputError, match="not a plain name"):
        load([run_folder])


def test_levels_come_from_the_configuration(tmp_path: Path) -> None:
    declared = [{"measure": "perplexity", "level": 200, "direction": "above"}]
    run_folder = write_run(tmp_path / "run", arms=TWO, generations=1, seeds=[0], levels=declared)
    (level,) = load([run_folder])[0].levels
    assert (level.measure, level.on, level.level, level.direction) == (
        "perplexity", "split-0", 200.0, "above",
    )  # fmt: skip
    config = run_folder / "config.yaml"
    kept = config.read_text("utf-8")
    config.write_text(kept.replace("time_to_failure", "other"), "utf-8")
    assert load([run_folder])[0].levels == ()
    config.write_text(kept.replace("level: 200", "level: high"), "utf-8")
    with pytest.raises(InputError, match="time_to_failure must be a list"):
        load([run_folder])


def test_a_line_separator_inside_a_text_does_not_cut_a_record(tmp_path: Path) -> None:
    words = ["before\u2028after", "b\u0085c", "d"]
    run_folder = write_run(tmp_path / "run", arms=TWO, generations=1, seeds=[0], words=words)
    passages = load([run_folder])[0].arms[0].chains[0].generations[0].passages
    assert passages[0].tokens[0] == " before\u2028after"
    assert not any(passages[0].changed)


# --- what was measured ------------------------------------------------------------------------


def test_measures_come_from_the_run_or_from_the_kind_of_its_family(tmp_path: Path) -> None:
    run_folder = write_run(tmp_path / "run", arms=TWO, generations=1, seeds=[0])
    told = load([run_folder])[0].measures
    assert [m.record() for m in told] == [m.record() for m in MEASURES]
    # an older version's run, which does not say, and whose scores had other names
    (old,) = load([OLD / "language"])
    assert old.measures == MEASURES
    generation = old.arms[0].chains[0].generations[0]
    assert ("distinct.1", "split-0") in generation.scores
    # neither known: no more is drawn than what needs no name
    (run_folder / "measures.json").unlink()
    assert load([run_folder])[0].measures == ()
    # of a version that says it otherwise
    write_json(run_folder / "measures.json", [{"known": "otherwise"}])
    assert load([run_folder])[0].measures == ()


def test_a_measure_survives_its_record() -> None:
    for measure in (*MEASURES, *points.MEASURES, *images.MEASURES):
        record = json.loads(json.dumps(measure.record()))
        assert About.of(record | {"added": "by a later version"}).record() == measure.record()
        assert measure.caption
        for line in measure.lines or ():
            assert measure.owns(line.score)
        for headline in measure.headlines:
            assert measure.owns(headline.score)


# --- names and numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (("kr.mean", "split-0"), "Knowledge Retention, first split"),
        (("kr.sum", "total"), "Knowledge Retention (sum), all splits"),
        (
            ("perplexity.first", "written"),
            "Perplexity under generation 0, first split as generated",
        ),
        (("entropy.word", "written"), "Word entropy, first split as generated"),
        (("kl.unigram", "rewritten"), "KL of unigrams (unigram)"),
        (("train.loss", "train"), "Training loss"),
        (("mine", "split-3"), "mine, split-3"),
    ],
)
def test_scores_in_words(key: tuple[str, str], words: str) -> None:
    assert describe(MEASURES, key) == words


def test_a_measure_without_lines_is_drawn_on_the_most_telling_data(small_run: Path) -> None:
    arms = load([small_run])[0].arms
    plain = About("distinct", "Distinct", "Mine", real=True)
    assert lines_of(plain, arms) == [
        Line(str(n), f"distinct.{n}", "rewritten-0", "split-0") for n in (1, 2, 3)
    ]
    assert lines_of(About("train.loss", "Loss", "Mine", real=True), arms) == [
        Line("Loss", "train.loss", "train")
    ]
    assert lines_of(About("none", "None", "Mine"), arms) == []


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (-0.05, 0.06, "\u22120.050 to 0.060"),
        (-0.05, -0.01, "\u22120.050 to \u22120.010"),
        (0.58, None, "from 0.580"),
        (None, 0.91, "up to 0.910"),
        (None, None, ""),
    ],
)
def test_no_dash_of_an_interval_is_taken_for_a_minus(low, high, shown):
    assert span(low, high, ".3f") == shown


@pytest.mark.parametrize(("high", "shown"), [(7, "2 to 7"), (None, "from 2")])
def test_neither_is_one_of_the_onset_of_a_phase(high, shown):
    told = Onset(generation=4, low=2, high=high)
    assert knowledge._onset(told) == {"text": "4", "note": shown}


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [
        (None, "", "\u2013"),
        (0.0, "", "0.00"),
        (0.012, "", "0.012"),
        (0.5, "", "0.50"),
        (1.5e-12, "", "1.5e\u221212"),
        (12.34, "", "12.3"),
        (123456.7, "", "123,457"),
        (3.217e149, "", "3.22e+149"),
        (1e7, "", "1e+7"),
        (-0.12345, ".3f", "\u22120.123"),
        (0.0123, ".1%", "1.2%"),
    ],
)
def test_numbers_in_print(value: float | None, form: str, shown: str) -> None:
    assert number(value, form) == shown
