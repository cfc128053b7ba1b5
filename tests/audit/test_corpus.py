"""Corpora whose state is known, beside a reference, and the command that people run."""

import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from fortifai.audit import (
    Fields,
    Reading,
    audit_corpus,
    contamination,
    measures,
    pieces,
    read,
    reference_of,
    score,
    sketch,
)
from fortifai.audit import corpus as corpus_
from fortifai.audit.grown import grown, log_odds
from fortifai.audit.overlap import overlap
from fortifai.audit.survival import survival
from fortifai.cli import findings as table
from fortifai.cli import plain
from fortifai.cli.app import app
from fortifai.errors import InputError, RunFailed
from fortifai.report.card import card
from fortifai.stats import scores

WORDS = [f"w{i}" for i in range(3000)]


def documents(count, seed, power=1.0, size=60):
    """Documents of words by a power law; a higher power is a narrower text."""
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, len(WORDS) + 1) ** power
    drawn = rng.choice(len(WORDS), (count, size), p=p / p.sum())
    return [" ".join(WORDS[i] for i in row) for row in drawn]


def write(path, texts, **more):
    rows = [{"text": t} | {k: v[i] for k, v in more.items()} for i, t in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def passed(path, fields=None, **how):
    fields = fields or Fields()
    return read(pieces.sources([path], fields, path.parent), Reading(fields, **how))


def audited(tmp_path, own, others, **more):
    a, b = write(tmp_path / "a.jsonl", own), write(tmp_path / "b.jsonl", others)
    return audit_corpus(passed(a), passed(b, grams=True), **more)


def finding(audit, name, source=""):
    return next(f for f in audit.findings if (f.name, f.source) == (name, source))


@pytest.mark.long
def test_halves_are_alike_and_a_text_that_lost_its_tail_is_evidence(tmp_path):
    sound = audited(tmp_path, documents(600, 0), documents(1200, 1))
    assert sound.headline == "no evidence of collapse"
    assert all(f.p > 0.05 for f in sound.findings if f.p is not None)
    narrow = audited(tmp_path, documents(600, 0, 1.4), documents(1200, 1))
    assert narrow.headline == "evidence of collapse in: diversity, tails"
    assert {"entropy", "rare"} <= {f.name for f in narrow.evidence}
    assert narrow.overlaps[""].alike
    assert narrow.overlaps[""].common > 1.05


def test_copies_and_near_copies_are_counted(tmp_path):
    own = documents(400, 0)
    near = [text.replace("w0", "changed", 1) for text in own[:100]]  # one word of sixty
    audit = audited(tmp_path, own + own[100:200] + near, documents(800, 1))
    assert finding(audit, "exact").value == pytest.approx(100 / 600)
    # a changed word takes 5 of 56 5-grams from either: J = 51 / 61 or more, found with 96 % each
    assert finding(audit, "near").value == pytest.approx(200 / 600, abs=0.03)
    assert "duplication" in audit.headline
    assert finding(audit, "exact").reference == 0


def test_shares_of_minhash_bands_are_those_of_jaccard():
    """Two documents that share J of their 5-grams share a band as often as the formula says."""
    rng = random.Random(0)
    texts, known = [], []
    for _ in range(300):
        own = [rng.choice(WORDS) for _ in range(80)]
        cut = rng.choice([66, 70, 74])
        other = own[:cut] + [rng.choice(WORDS) for _ in range(80 - cut)]
        texts += [" ".join(own), " ".join(other)]
        a, b = ({tuple(w[i : i + 5]) for i in range(76)} for w in (own, other))
        j = len(a & b) / len(a | b)
        known.append(1 - (1 - j**8) ** 14)
    words = scores.encode(texts)
    _, grams, starts = sketch.shingles(words, np.zeros(600, dtype=np.uint64))
    found = sketch.bands(grams, starts, np.arange(600))
    shared = (found[::2] == found[1::2]).any(axis=1)
    # 300 trials: 3 standard errors are at most 0.09
    assert shared.mean() == pytest.approx(np.mean(known), abs=0.09)


def test_another_kind_of_text_is_not_judged(tmp_path):
    other = [text.replace("w", "v") for text in documents(600, 0)]
    audit = audited(tmp_path, other, documents(1200, 1))
    assert audit.headline == "cannot be compared: another kind of text"
    assert not audit.collapsed
    assert "differences say nothing of collapse" in audit.verdict
    assert audit.next_step == "choose another reference with --against, one of the text's own kind."
    assert all(f.level is None for f in audit.findings)
    judged = audited(tmp_path, other, documents(1200, 1), fail_on={"entropy": 1e-9})
    assert finding(judged, "entropy").level == 1e-9  # who asks for it is told


def test_overlap_by_hand():
    a, b = "x y " * 100, "y z " * 100
    found = overlap([a], [b, b + "z"])
    assert found.value == pytest.approx(0.5)
    assert found.halves == pytest.approx(1)
    assert found.common == pytest.approx(0.5)


def test_what_grew_is_what_was_planted(tmp_path):
    own = documents(300, 0)
    own = [f"{text} a rich tapestry of" if i % 3 == 0 else text for i, text in enumerate(own)]
    found = grown(own, documents(600, 1))
    assert found[0].words == "a rich tapestry of"
    assert (found[0].count, found[0].documents, found[0].expected) == (100, 100, 0)
    assert "rich" not in [each.words for each in found]  # part of it, as frequent
    y, y_ = np.array([30]), np.array([5])
    a = 1000 * 35 / 3000
    delta = np.log((30 + a) / (1000 + 1000 - 30 - a)) - np.log((5 + a) / (2000 + 1000 - 5 - a))
    known = delta / np.sqrt(1 / (30 + a) + 1 / (5 + a))
    assert log_odds(y, y_, 1000, 2000) == pytest.approx([known])


def test_a_phrase_of_few_documents_is_not_what_grew():
    own = documents(300, 0)
    own[0] += " delve into" * 50
    assert not [e for e in grown(own, documents(600, 1)) if "delve" in e.words]


def test_sources_are_audited_by_themselves(tmp_path):
    own = documents(300, 0) + documents(300, 1, 1.5)
    by = ["web"] * 300 + ["model"] * 300
    path = write(tmp_path / "a.jsonl", own, origin=by, ai=[0.1] * 300 + [0.9] * 300)
    other = write(tmp_path / "b.jsonl", documents(1500, 2))
    fields = Fields(by="origin", detector="ai")
    audit = audit_corpus(passed(path, fields), passed(other, grams=True))
    assert audit.sources == {"model": 300, "web": 300}
    assert {f.source for f in audit.evidence} >= {"model"}
    assert "web" not in {f.source for f in audit.evidence}
    means = passed(path, fields).sample.by["model"]["detector"]
    assert means.mean() == pytest.approx(0.9)
    many = write(tmp_path / "c.jsonl", own, origin=[f"o{i}" for i in range(600)])
    with pytest.raises(InputError, match=r"more than 64 different values"):
        passed(many, Fields(by="origin"))


def test_holm_makes_p_values_of_many(tmp_path):
    audit = audited(tmp_path, documents(600, 0), documents(1200, 1))
    assert max(f.p for f in audit.findings if f.p is not None) == 1


def test_what_a_stage_keeps(tmp_path):
    texts = documents(500, 0)
    texts[10] = texts[11] = texts[12]
    by = ["a" if i % 2 else "b" for i in range(500)]
    kept = [t for i, t in enumerate(texts) if (i % 2 or i % 10 == 0) and i != 11]
    before = passed(write(tmp_path / "a.jsonl", texts, s=by), Fields(by="s"))
    found = survival(before, passed(write(tmp_path / "b.jsonl", kept)))
    share = {(g.of, g.name): g.kept for g in found.groups}
    assert share["all", ""].value * 500 == pytest.approx(len(kept))
    assert share["all", ""].n == 500
    assert share["source", "a"].n == share["source", "b"].n == 250
    # of three copies, two are left: which of them cannot be told
    assert share["source", "a"].value == pytest.approx(1, abs=1.5 / 250)
    assert share["source", "b"].value == pytest.approx(50 / 250, abs=1.5 / 250)
    assert sum(g.kept.n for g in found.groups if g.of == "entropy") == 500
    assert found.added == 0
    with pytest.raises(InputError, match="no document of --after stands in --before"):
        survival(before, passed(write(tmp_path / "c.jsonl", documents(50, 9))))


def test_what_a_stage_keeps_of_documents_of_one_template(tmp_path, monkeypatch):
    """They have one key, if that is of the template: a sample then ends in the midst of it."""
    monkeypatch.setattr(corpus_, "CONTENTS", 100)
    template = " ".join(random.Random(0).choices(WORDS, k=1500))
    texts = [f"{template} {own}" for own in documents(400, 0, size=3)]
    texts += texts[:200]
    before = passed(write(tmp_path / "a.jsonl", texts))
    after = passed(write(tmp_path / "b.jsonl", texts[::2]))
    assert len(np.unique(before.sample.contents["key"])) < 10
    found = survival(before, after)
    assert found.groups[0].kept.n >= 99
    # 4 standard errors of a half of 66 different documents
    assert found.groups[0].kept.value == pytest.approx(0.5, abs=0.25)
    assert found.added == 0
    reference = passed(write(tmp_path / "c.jsonl", texts[:100]))
    contained = contamination.contained(before, reference)
    # of 400 different documents 100; 4 standard errors of 100 that are looked at
    assert contained.value == pytest.approx(0.25, abs=0.18)


def test_samples_are_bounded_and_shares_of_copies_survive_them(tmp_path, monkeypatch):
    own = documents(2000, 0, size=20)
    path = write(tmp_path / "a.jsonl", own + own[:1000])
    whole = passed(path)
    monkeypatch.setattr(corpus_, "CONTENTS", 400)
    monkeypatch.setattr(corpus_, "DOCUMENTS", 100)
    small = passed(path)
    assert len(small.sample.documents["key"]) == 100
    assert len(small.sample.contents["key"]) == 400
    keys = whole.sample.documents["key"][:100]
    assert (small.sample.documents["key"] == keys).all()
    first, counts = measures.first_of(small.sample.contents, "exact")
    # a third is copies; of 400 contents, 3 standard errors are 0.05
    assert 1 - first.sum() / counts.sum() == pytest.approx(1 / 3, abs=0.05)


def test_what_is_sampled_has_the_scores_that_it_has_among_all(tmp_path, monkeypatch):
    """Others are scored where all scores are to be written, and not else."""
    monkeypatch.setattr(corpus_, "CONTENTS", 40)
    monkeypatch.setattr(corpus_, "DOCUMENTS", 30)
    monkeypatch.setattr(corpus_, "PER_SOURCE", 20)
    texts = [text for text in documents(4000, 0, size=30) for _ in range(1 + (text < "w2"))]
    more = {"ai": [i / 8000 for i in range(len(texts))], "by": [f"s{len(t) % 3}" for t in texts]}
    path = write(tmp_path / "a.jsonl", texts, **more)
    fields, made = Fields(by="by", detector="ai"), reference_of(passed(path, grams=True))
    sources, scored = pieces.sources([path], fields, tmp_path), []
    score = scores.scored
    monkeypatch.setattr(
        scores, "scored", lambda texts, *more: scored.append(len(texts)) or score(texts, *more)
    )
    alone = read(sources, Reading(fields), made).sample
    # the first 512 are, and of later ones ever fewer
    assert 512 < sum(scored) < 0.3 * len(texts)
    two = read(sources, Reading(fields, processes=2), made).sample
    whole = read(sources, Reading(fields), made, scores_to=tmp_path / "s.parquet").sample
    every = pd.read_parquet(tmp_path / "s.parquet")
    assert len(every) == len(texts)
    assert len(alone.documents["key"]) == 30
    assert len(alone.contents["key"]) == 40
    assert [len(table["key"]) for table in alone.by.values()] == [20, 20, 20]
    for other in (two, whole):
        tables = zip(
            (alone.documents, alone.contents, *alone.by.values()),
            (other.documents, other.contents, *other.by.values()),
            strict=True,
        )
        for found, known in tables:
            assert list(found) == list(known)
            for name, column in found.items():
                np.testing.assert_array_equal(column, known[name])
    for i, text in enumerate(alone.documents["text"]):
        row = every.iloc[texts.index(text)]
        for name in ("words", "entropy", "repetition", "compression", "rare", "shared"):
            assert alone.documents[name][i] == pytest.approx(row[name], nan_ok=True, rel=1e-12)


def test_8_grams_of_a_reference_are_bounded_and_unbiased(tmp_path, monkeypatch):
    texts = documents(400, 0)
    path = write(tmp_path / "b.jsonl", texts)
    monkeypatch.setattr(corpus_, "GRAMS", 4000)
    monkeypatch.setattr(measures, "GRAMS", 4000)
    made = reference_of(passed(path, grams=True))
    assert len(made.grams) == 4000
    half = [f"{t} {u}" for t, u in zip(texts, documents(400, 1), strict=True)]
    found = score(half, made)["shared"]
    # 53 of 113 8-grams; some 10,000 are sampled, so 3 standard errors are 0.015
    assert np.nanmean(found) == pytest.approx(53 / 113, abs=0.02)


# --- the pass ---------------------------------------------------------------------------------


@pytest.mark.long
def test_a_sample_that_was_handed_out_stays_whole():
    """Columns are let go one by one while a sample shrinks; what `rows` gave is another's."""
    lowest = sketch.Lowest(3)

    def add(*keys):
        lowest.add({"key": np.array(keys, dtype=np.uint64), "count": np.ones(len(keys), np.int64),
                    "x": 10.0 * np.array(keys)})  # fmt: skip

    add(5, 3, 9, 3)
    first = lowest.rows()
    add(1, 4)
    assert {name: column.tolist() for name, column in first.items()} == {
        "key": [3, 5, 9], "count": [2, 1, 1], "x": [30.0, 50.0, 90.0]
    }  # fmt: skip
    assert {name: column.tolist() for name, column in lowest.rows().items()} == {
        "key": [1, 3, 4], "count": [1, 2, 1], "x": [10.0, 30.0, 40.0]
    }  # fmt: skip
    assert lowest.rows()["x"].tolist() == [10.0, 30.0, 40.0]
    assert lowest.limit == 4


def test_no_more_processes_are_started_unasked_than_stay_in_bounds(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.truncate(16_000_000 * 3)  # a hole: its size is all that counts
    names = [str(path)]
    assert [corpus_.processes(names, None, cores) for cores in (1, 2, 64)] == [1, 2, 3]
    assert corpus_.processes(names * 10, None, 64) == corpus_.MOST_PROCESSES
    assert corpus_.processes(names, 12, 2) == 12


def test_distributions_hold_every_document_of_the_sample(tmp_path):
    own, others = documents(300, 0, size=80), documents(600, 1)
    audit = audited(tmp_path, own, others)
    found = audit.distributions["words"]
    assert len(found["edges"]) == len(found["text"]) + 1 == len(found["reference"]) + 1
    assert (sum(found["text"]), sum(found["reference"])) == (300, 600)
    # documents of 80 words and of 60: what lies at the ends is in the outermost bins
    assert (found["text"][-1], found["reference"][0]) == (300, 600)
    assert "distributions" in audit.record()
    entropy = audit.distributions["entropy"]
    middles = (np.array(entropy["edges"])[1:] + entropy["edges"][:-1]) / 2
    step = entropy["edges"][1] - entropy["edges"][0]
    for whose, texts in (("text", own), ("reference", others)):
        values = scores.score(texts)["entropy"]
        mean = np.average(middles, weights=entropy[whose])
        # half a bin for the middles, and what is clipped at the 1st and 99th percentiles
        assert mean == pytest.approx(values.mean(), abs=0.75 * step)


def test_the_verdict_says_how_near_and_how_far(tmp_path):
    sound = audited(tmp_path, documents(600, 0), documents(1200, 1))
    way, name = max((f.way, f.title) for f in sound.findings if f.way is not None)
    assert 0 < way < 1
    assert f"nearest to its level is {name}, {way:.0%} of the way" in sound.verdict
    narrow = audited(tmp_path, documents(600, 0, 1.4), documents(1200, 1))
    entropy = finding(narrow, "entropy")
    assert entropy.way == -entropy.difference.value / 0.3
    assert f"{entropy.way:.1f} times its level" in narrow.verdict
    assert f"in {len(narrow.evidence)} of 6 checks" in narrow.verdict


def test_contamination_is_told_with_its_number(tmp_path):
    own, others = documents(600, 0), documents(1200, 1)
    clean = audited(tmp_path, own, others)
    assert finding(clean, "contained").value == 0
    assert "Contamination" not in clean.verdict
    # copies of one shared document count once
    audit = audited(tmp_path, own[:450] + others[:150] + others[:1] * 200, others)
    found = finding(audit, "contained")
    assert found.value == 150 / 600
    assert found.difference.low < 0.25 < found.difference.high
    assert not found.evidence
    assert found.p is None
    told = "25.0% of its different documents (21.7% to 28.6%) are in the reference word for word"
    assert told in audit.verdict
    assert audit.record()["verdict"] == audit.verdict
    half = audited(tmp_path, own[:450] + others[:150], others)
    assert half.next_step == "take what both share out of either and audit again."


def test_shared_phrases_are_told_where_no_document_is_the_same(tmp_path):
    others = documents(1200, 1)
    own = [f"{a} {b}" for a, b in zip(documents(600, 0), others, strict=False)]
    audit = audited(tmp_path, own, others)
    assert finding(audit, "contained").value == 0
    shared = finding(audit, "document.shared")
    assert f"Contamination: {shared.value:.1%} of the 8-grams of a document are" in audit.verdict
    assert "word for word" not in audit.verdict


def test_contamination_of_samples_is_that_of_all(tmp_path, monkeypatch):
    """Each corpus keeps another part of its documents; shared ones are in both or in neither."""
    others = documents(3000, 1)
    own = documents(1200, 0) + others[:400]
    monkeypatch.setattr(corpus_, "CONTENTS", 800)
    found = finding(audited(tmp_path, own, others), "contained")
    assert found.value == pytest.approx(400 / 1600, abs=0.06)
    assert found.difference.n < 800


def test_contamination_can_be_judged(files):
    rows = (files / "same.jsonl").read_text() + "".join(
        (files / "ref.jsonl").read_text().splitlines(keepends=True)[:40]
    )
    (files / "leaked.jsonl").write_text(rows)
    args = ["--against", files / "ref.jsonl", "--fail-on", "contained:0.01"]
    found = run("--text", files / "leaked.jsonl", *args)
    assert found.exit_code == 3
    assert "leaked.jsonl: contaminated: documents are in the reference, too" in found.stdout
    assert "Evidence of contamination in 1 of 1 checks" in found.stdout
    assert "Next: take what both share out of either" in found.stdout
    assert run("--text", files / "same.jsonl", *args).exit_code == 0


def test_every_verdict_says_what_to_do_next(files):
    for name, words in (
        ("same", "Next: train on it"),
        ("narrow", "Next: see which phrases grew"),
        ("other", "Next: choose another reference"),
    ):
        card_ = files / f"{name}.md"
        found = run(
            "--text", files / f"{name}.jsonl", "--against", files / "ref.jsonl", "--out",
            files / name, "--card", card_,
        )  # fmt: skip
        # what is printed last, but for where it was written
        (line,) = [line for line in found.output.splitlines() if line.startswith("Next: ")]
        assert line.startswith(words)
        assert (
            line.split(": ", 1)[1] == json.loads((files / name / "audit.json").read_text())["next"]
        )
        assert (
            f"<b>Next:</b> {words.removeprefix('Next: ')}"
            in (files / name / "index.html").read_text()
        )
        assert f"\n{words}" in card_.read_text()
    assert "Next: give a text of the same kind" in run("--text", files / "same.jsonl").output


@pytest.mark.long
def test_any_number_of_processes_and_any_order_give_the_same_bytes(tmp_path):
    for i in range(3):
        texts = [*documents(700, i), None, "", "我们在见面 " * 30]
        data = "".join(json.dumps({"text": t, "s": str(i)}) + "\n" for t in texts)
        (tmp_path / f"a{i}.jsonl.gz").write_bytes(gzip.compress(data.encode()))
    write(tmp_path / "b.jsonl", documents(2500, 9))
    out = []
    for processes, order in ((1, (0, 1, 2)), (3, (2, 0, 1))):
        folder = tmp_path / f"p{processes}"
        args = [arg for i in order for arg in ("--text", tmp_path / f"a{i}.jsonl.gz")]
        code = run(
            *args, "--against", tmp_path / "b.jsonl", "--by", "s", "--processes", processes,
            "--out", folder, "--scores", tmp_path / f"{processes}.parquet",
        ).exit_code  # fmt: skip
        assert code == 0
        scores = (tmp_path / f"{processes}.parquet").read_bytes()
        record = json.loads((folder / "audit.json").read_text())
        out.append((scores, record))
    assert out[0] == out[1]
    told = " ".join(out[0][1]["remarks"])
    assert "6 of 2,109 rows are empty or null" in told
    assert "3 of 2,109 rows are in scripts without spaces, of which characters" in told


def test_two_processes_find_what_one_does(tmp_path):
    path = write(tmp_path / "a.jsonl", documents(1200, 0))
    one, two = passed(path, grams=True), passed(path, grams=True, processes=2)
    assert (one.counts, one.sources) == (two.counts, two.sources)
    for name in ("documents", "contents", "grams"):
        tables = [getattr(each.sample, name) for each in (one, two)]
        for column, values in tables[0].items():
            np.testing.assert_array_equal(values, tables[1][column])


def test_scores_are_those_of_the_function_with_file_and_row(tmp_path):
    texts = [*documents(30, 0), None]
    path = write(tmp_path / "a.jsonl", texts)
    found = run("--text", path, "--scores", tmp_path / "s.parquet")
    assert found.exit_code == 0
    rows = pq.read_table(tmp_path / "s.parquet").to_pandas()
    assert rows["row"].tolist() == list(range(1, 32))
    assert set(rows["file"]) == {str(path)}
    for name, column in score(texts).items():
        assert rows[name].tolist() == pytest.approx(column.tolist(), nan_ok=True)
    again = run("--text", path, "--scores", tmp_path / "s.parquet")
    assert isinstance(again.exception, InputError)
    assert "is there already" in str(again.exception)


@pytest.mark.long
def test_an_interrupt_leaves_nothing_and_no_process(tmp_path):
    big = "\n".join(json.dumps({"text": t}) for t in documents(4000, 0, size=300))
    (tmp_path / "a.jsonl").write_text("\n".join([big] * 16))
    args = ["--text", "a.jsonl", "--scores", "s.parquet", "--processes", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fortifai.cli", "audit", *args],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*.partial")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    out = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "stopped; nothing was written" in out[1]
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    deadline = time.monotonic() + 10
    while _group_lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _group_lives(process.pid)  # the workers have gone, too


def _group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_that_is_killed_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", documents(2000, 0))
    monkeypatch.setattr(corpus_, "_work", _die)
    with pytest.raises(RunFailed, match="a process was killed"):
        passed(path, processes=2)


def _die(*args):
    os._exit(9)


# --- bad input --------------------------------------------------------------------------------


def test_bad_rows_are_named_and_passed_over_when_allowed(tmp_path):
    path = write(tmp_path / "a.jsonl", documents(40, 0))
    lines = path.read_text().split("\n")
    lines[10] = "{oops"
    lines[20] = "[]"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"a.jsonl, row 11, is not JSON .* --skip-bad N"):
        passed(path)
    with pytest.raises(InputError, match=r"row 21, is a list.*more than the 1 allowed"):
        passed(path, skip_bad=1)
    found = passed(path, skip_bad=2)
    assert found.counts["bad"] == 2
    assert found.documents == 38


def test_a_field_that_some_rows_lack_is_counted_and_one_that_all_lack_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a b"}\n{"txt": "c"}\n')
    assert passed(path).counts["missing"] == 1
    with pytest.raises(InputError, match=r"has no column 'txet'; did you mean 'text'"):
        passed(path, Fields("txet"))
    path.write_text('{"text": ""}\n')
    with pytest.raises(InputError, match="no words in 1 rows"):
        passed(path)


def test_a_reference_too_small_is_told_with_what_it_takes(tmp_path):
    # it alone: of the text there is enough
    told = r"^the reference has 20 documents of about 60 words, and an audit takes 36 such; give"
    with pytest.raises(InputError, match=told):
        audited(tmp_path, documents(100, 0), documents(20, 1))
    assert not audited(tmp_path, documents(18, 0), documents(36, 1)).collapsed


def test_the_same_documents_twice_are_no_comparison(tmp_path):
    own = documents(100, 0)
    with pytest.raises(InputError, match="hold the same documents"):
        audited(tmp_path, own, own[::-1])


def test_a_document_of_many_megabytes_is_cut_and_told(tmp_path):
    own = [*documents(100, 0), "ab " * 2_000_000]
    path = write(tmp_path / "a.jsonl", own)
    other = passed(write(tmp_path / "b.jsonl", documents(200, 1)), grams=True)
    audit = audit_corpus(passed(path), other)
    assert any("1 of 101 rows are longer than a million" in line for line in audit.remarks)


# --- the command ------------------------------------------------------------------------------


def run(*args):
    return CliRunner().invoke(app, ["audit", *map(str, args)])


@pytest.fixture
def files(tmp_path):
    write(tmp_path / "same.jsonl", documents(400, 0))
    write(tmp_path / "narrow.jsonl", documents(400, 1, 1.5))
    write(tmp_path / "other.jsonl", [t.replace("w", "v") for t in documents(400, 2)])
    write(tmp_path / "ref.jsonl", documents(900, 3))
    return tmp_path


@pytest.mark.parametrize(("name", "code"), [("same", 0), ("narrow", 3), ("other", 2)])
def test_exit_codes(name, code, files):
    found = run("--text", files / f"{name}.jsonl", "--against", files / "ref.jsonl")
    assert found.exit_code == code, found.output


def test_corpora_without_a_terminal_tell_how_far_they_are(files, monkeypatch):
    monkeypatch.setattr(plain, "EVERY", 0.0)
    found = run("--text", files / "same.jsonl", "--against", files / "ref.jsonl")
    assert "reading reference: 900 rows, 100%" in found.stderr.splitlines()
    assert "reading text: 400 rows, 100%" in found.stderr.splitlines()
    assert "reading" not in found.stdout


@pytest.mark.long
def test_levels_for_ci(files):
    args = ["--text", files / "narrow.jsonl", "--against", files / "ref.jsonl", "--fail-on"]
    assert run(*args, "entropy:-0.2").exit_code == 3
    assert run(*args, "entropy:0.2").exit_code == 0  # the other direction
    assert run(*args, "entropy:-9").exit_code == 0
    assert run(*args, "document.compression:0.01").exit_code == 3
    for given, words in (("entropy", "MEASURE:LEVEL"), ("x:0.1", "no measure 'x'; there are")):
        assert words in str(run(*args, given).exception)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["same.jsonl", "--text", "ref.jsonl"], "repeat --text, or quote the glob"),
        (["--text", "same.jsonl", "--base", "x"], "--base need a MODEL"),
        (["--text", "same.jsonl", "--fail-on", "entropy:1"], "give a reference with --against"),
        (["--before", "same.jsonl"], "--before FILE --after FILE"),
        (["--text", "same.jsonl", "--scores", "s.csv"], "name such a file"),
        (["--text", "none.jsonl"], "there is no file 'none.jsonl'"),
        (["--text", "same.jsonl", "--card", "ref.jsonl"], "is there and is no card"),
    ],
)
def test_bad_options_are_one_sentence(args, words, files, monkeypatch):
    monkeypatch.chdir(files)
    found = run(*args)
    assert isinstance(found.exception, InputError), found.output
    assert words in str(found.exception)


def test_without_a_reference_values_are_shown_and_nothing_is_judged(files):
    found = run("--text", files / "same.jsonl")
    assert found.exit_code == 0
    assert "no reference, so nothing is judged" in found.output
    assert "entropy rate" in found.output


def test_a_filter_stage_in_the_terminal(files):
    rows = (files / "ref.jsonl").read_text().split("\n")
    (files / "after.jsonl").write_text("\n".join(rows[:450]))
    found = run("--before", files / "ref.jsonl", "--after", files / "after.jsonl")
    assert found.exit_code == 0
    assert re.search(r"all +900 +50\.0%", found.output)


EVIL = "</td><script>alert(1)</script> ![x](http://evil) | @all `code` \x1b[31m\u202eabc $1"


@pytest.fixture
def evil(tmp_path):
    own = [f"{text} \u202eevil\x1b[31m <b>tapestry</b>" for text in documents(300, 0)]
    write(tmp_path / "a.jsonl", own, s=[EVIL] * 300)
    write(tmp_path / "b.jsonl", documents(700, 1))
    return tmp_path


def test_what_models_wrote_is_inert_everywhere(evil, monkeypatch):
    monkeypatch.setattr(table, "out_console", Console(width=80))
    found = run(
        "--text", evil / "a.jsonl", "--against", evil / "b.jsonl", "--by", "s", "--out",
        evil / "out", "--card", evil / "card.md",
    )  # fmt: skip
    assert found.exit_code in (0, 3), found.exception
    page = (evil / "out" / "index.html").read_text()
    for told in (page, found.output, (evil / "card.md").read_text()):
        assert "\x1b" not in told
        assert "\u202e" not in told
    assert "<script>" not in page
    assert "evil 31m b tapestry" in page  # as words, without what is not a letter
    assert "&lt;script&gt;" in page  # the source's name


def test_the_card_is_markdown_that_cannot_act(tmp_path):
    audit = audited(tmp_path, documents(600, 0, 1.4), documents(1200, 1), subject=EVIL)
    told = card(audit)
    assert told.startswith("## Audit: evidence of collapse in: diversity, tails")
    assert "| entropy of words |" in told
    for mark in ("<script", "](", "@all", "://", "`code`"):
        assert mark not in told
    rows = [line for line in told.split("\n") if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_the_table_fits_80_columns(files, monkeypatch, capsys):
    monkeypatch.setattr(table, "out_console", Console(width=80))
    own, other = passed(files / "narrow.jsonl"), passed(files / "ref.jsonl", grams=True)
    audit = audit_corpus(own, other, subject="narrow.jsonl", reference="ref.jsonl")
    table.show(audit)
    table.show_grown(audit.grown, 15)
    lines = capsys.readouterr().out.split("\n")
    prose = ("Evidence of", "Next", "not measured", "the text")
    assert max(len(line) for line in lines if not line.startswith(prose)) <= 80
