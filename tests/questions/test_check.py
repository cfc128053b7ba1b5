"""What `check` finds, and what it leaves alone."""

from __future__ import annotations

import collections
import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from fortifai.data.questions import Question, read_rows
from fortifai.data.text import Corpus, Document, read_text
from fortifai.errors import InputError
from fortifai.questions.check import check, faults, longer, misplaced
from fortifai.questions.wording import wording_share
from fortifai.stats.sample import share


def q(context: str, true: str, false: str, location: int = 1) -> Question:
    return Question(context, true, false, location)


@pytest.mark.parametrize(
    ("true", "false", "rule"),
    [
        ("He was born in Rome.", "He was born in Oslo.", None),
        ("He was born in Rome.", "he was born, in rome", "equal"),
        ("It is -0.06 degrees.", "It is 0.06 degrees.", None),
        ("He was born in Rome.", "He was not born in Rome.", "negation"),
        ("He was born in Rome.", "He wasn't born in Rome.", "negation"),
        ("He can swim.", "He can't swim.", "negation"),
        ("He did swim.", "He did n't swim.", "negation"),
        ("They localized the game.", "They did not localize the game.", "negation"),
        ("There is contention.", "There is no contention.", "negation"),
        ("The plan was successful.", "The plan was unsuccessful.", "negation"),
        ("It is halogenated.", "It is non-halogenated.", "negation"),
        ("He never lived in Rome.", "He always lived in Oslo.", None),
        ("He was not born in Rome.", "He was not born in Oslo.", None),
        ("He is the deputy chairman.", "He is the chairman.", "length"),
        ("He came.", "He came back home.", "length"),
        ("He came back.", "He went home again.", None),
        ("It cost 1,500 pounds.", "It cost 1 @,@ 600 pounds.", None),
        ("It cost 1,500 pounds.", "It cost 1 @,@ 500 pounds.", "equal"),
    ],
)
def test_sentences_that_differ_in_too_little(true: str, false: str, rule: str | None) -> None:
    assert [found for found, _ in faults(q("A man.", true, false))] == ([rule] if rule else [])


@pytest.mark.parametrize(
    ("context", "given"),
    [
        ("The man from Rome wrote books.", True),
        ("The man from rome's suburbs wrote books.", True),
        ("The man wrote books.", False),
        ("The man from Oslo wrote books.", False),  # only misleading
        ("The man knew Rome and Oslo.", False),  # both are named
        ("The man was a Roman.", False),
    ],
)
def test_an_answer_in_the_context(context: str, given: bool) -> None:
    found = faults(q(context, "His birth was in Rome.", "His birth was in Oslo."))
    assert found == ([("given-away", "the context has rome")] if given else [])


@pytest.fixture
def corpus() -> Corpus:
    article = (
        " = Ada = \n\n\n Ada was born in Rome and painted ships all her life . \n\n"
        " Later she moved to 3 @,@ 500 islands and wrote a Mexican play about painters . \n"
    )
    return Corpus((Document(article, "Ada", 2),), "t", 8)


@pytest.mark.parametrize(
    ("true", "location", "why"),
    [
        ("She came from Rome.", 5, ""),
        ("She came from Rome.", 4, ""),  # a blank line stands for the next
        ("She came from Rome.", 7, "says nothing of rome"),
        ("She came from Rome.", 2, ""),  # the heading stands for its article
        ("She came from Rome.", 1, ""),  # and the blank line before it
        ("She came from Rome.", 9, "the text has no line 9"),
        ("She came from Rome.", 0, "the text has no line 0"),
        ("She came from Rome.", 8, "the text has no line 8"),
        ("She came to 3,500 of them.", 7, ""),
        ("She came to 3,600 of them.", 7, "says nothing of 3,600"),
        ("She wrote of Mexico.", 7, ""),
        ("She wrote about painting.", 7, ""),
        ("The wind blew the roofs off many houses.", 7, "has 1 of its 8 telling words"),
    ],
)
def test_where_the_fact_stands(true: str, location: int, why: str, corpus: Corpus) -> None:
    found = misplaced(q("Ada had a life.", true, "She sat in Oslo.", location), corpus)
    assert (why in found) if why else not found


def test_a_row_is_one_line(corpus: Corpus) -> None:
    rows = Corpus((Document("One\nAda was born in Rome.", "", 3, row=True),), "t", 3)
    asked = q("Ada had a life.", "It began in Rome.", "It began in Oslo.", 3)
    assert not misplaced(asked, rows)
    assert misplaced(dataclasses.replace(asked, location=2), corpus) == ""


def test_rows_that_stand_twice_or_contradict() -> None:
    one, other = q("A.", "b c.", "b d."), q("A.", "b d.", "b c.")
    found = check([one, other, dataclasses.replace(one, location=9)]).findings
    assert [(f.row, f.rule) for f in found] == [(2, "contradiction"), (3, "duplicate")]


def many(n: int, true: str, false: str, seed: int = 0) -> list[Question]:
    """Questions with words of no meaning, and what is added to each side."""
    words = np.random.default_rng(seed).choice([f"w{i}" for i in range(400)], (n, 8))
    return [
        q(f"Fact {i}.", " ".join(w[:7]) + true, " ".join([*w[:6], w[7]]) + false)
        for i, w in enumerate(words.tolist())
    ]


def test_wording_that_tells() -> None:
    assert wording_share(many(300, "", " never")).low > 0.9
    assert wording_share(many(300, " indeed", "")).low > 0.9
    report = check(many(300, "", " never"))
    assert "wording" in report.tells[1].problem
    assert not report.clean


def test_wording_that_says_nothing_is_called_so_seldom() -> None:
    """Of 40 sets without any tell, at most 5: one-sided at 2.5 %, P(more than 5) is 0.0003."""
    called = sum(wording_share(many(200, "", "", seed), seed=seed).low > 0.5 for seed in range(40))
    assert called <= 5


def test_words_that_are_exchanged_do_not_teach_the_opposite() -> None:
    """(a, b) and (b, a) in different folds would be answered wrongly, and hide a real tell."""
    pairs = []
    for i in range(150):
        pairs += [
            q(f"Fact {i}.", f"It was v{i} then.", f"It was u{i} then."),
            q(f"Other fact {i}.", f"They saw u{i} too.", f"They saw v{i} too."),
        ] * 2
    found = wording_share([dataclasses.replace(x, id=str(n)) for n, x in enumerate(pairs)])
    assert 0.4 < found.value < 0.6


def test_too_few_to_learn_from() -> None:
    assert wording_share(many(9, "", " never")).value == 0.5


def test_the_longer_sentence() -> None:
    sides = [q(f"{i}", "x" * 9, "y" * 5) for i in range(30)]
    assert longer(sides).problem.endswith("too often the longer one")
    turned = [q(x.context, x.false, x.true) for x in sides]
    assert longer(turned).problem.endswith("too often the shorter one")
    assert not longer(sides[:15] + turned[15:]).problem
    even = longer([q(f"{i}", "x" * 5, "y" * 5) for i in range(30)])
    assert (even.share.value, even.problem) == (0.5, "")


class Habit:
    """A model that likes some word, and knows nothing."""

    def __init__(self, word: str) -> None:
        self.word = word

    def continuation_log_prob(self, pairs: list[tuple[str, str]]) -> list[tuple[float, int]]:
        return [(float(text.count(self.word)), len(text)) for _, text in pairs]


@pytest.mark.parametrize(("word", "side"), [("never", "false"), ("indeed", "true")])
def test_a_model_that_tells_them_apart(word: str, side: str) -> None:
    asked = many(100, " indeed", " never")
    tells = check(asked, model=Habit(word), name="base").tells
    assert [t.name for t in tells] == ["the longer sentence", "base, kr.mean", "base, kr.sum"]
    assert f"takes the {side} sentence too often" in tells[2].problem
    assert not check(asked, model=Habit("nothing"), name="base").tells[2].problem


def test_wilson_against_scipy() -> None:
    for right, n in ((0, 7), (3, 7), (7, 7), (781, 1562), (1, 3)):
        found = share([1.0] * right + [0.0] * (n - right))
        known = scipy_stats.binomtest(right, n).proportion_ci(method="wilson")
        # both are double precision; the formulas differ in order
        assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-12)
    assert share([0.5] * 4).value == 0.5
    with pytest.raises(ValueError, match="no answers"):
        share([])


# --- real files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wiki(real_data: Path) -> Corpus:
    return read_text([real_data / "wikitext2" / "wiki.test.raw"], root=Path.cwd())


@pytest.fixture(scope="module")
def written(real_data: Path) -> list[Question]:
    return read_rows(real_data / "kr_test" / "wikitext2-test.jsonl")


def test_careful_questions_are_left_alone(wiki: Corpus, written: list[Question]) -> None:
    report = check(written, corpus=wiki)
    assert report.rows == report.different == len(written)
    # written by hand on this text: what is found in them is a matter of taste, one in a hundred
    assert len(report.faulty()) <= 0.02 * len(written)
    assert not any(tell.problem for tell in report.tells)


def test_wrong_locations_are_found(wiki: Corpus, written: list[Question]) -> None:
    rng = random.Random(0)
    moved = []
    for question in written:
        other = rng.choice(written)
        if other.article != question.article:
            moved.append(dataclasses.replace(question, location=other.location))
    missed = sum(not misplaced(question, wiki) for question in moved)
    assert missed <= 0.02 * len(moved)


def test_the_authors_file(real_data: Path) -> None:
    """4,880 rows, 952 of them different: said, counted once, and more than that is wrong."""
    rows = read_rows(real_data / "kr_test" / "kt_dataset_full.json")
    report = check(rows)
    assert (report.rows, report.different, report.located) == (4880, 952, False)
    count = collections.Counter(f.rule for f in report.findings)
    assert count["duplicate"] == 4880 - 952
    assert count["negation"] >= 3
    assert all(tell.problem for tell in report.tells)
    kept = [x for n, x in enumerate(rows, start=1) if n not in report.faulty()]
    assert not check(kept).findings


def test_reading_rows(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    row = '{"context": "a", "sentence_true": "b", "sentence_false": "%s", "location": 1}\n'
    path.write_text(row % "b" + row % "c" + row % "c")
    assert [x.false for x in read_rows(path)] == ["b", "c", "c"]
    path.write_text(row % "")
    with pytest.raises(InputError, match="sentence_false ''"):
        read_rows(path)
