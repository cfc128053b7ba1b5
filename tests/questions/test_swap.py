"""Values in sentences, and the questions that come of swapping them."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fortifai.data.text import Corpus, Document, read_text
from fortifai.errors import InputError
from fortifai.evals.kr_test import kr_test
from fortifai.questions import swap
from fortifai.questions.check import check
from fortifai.questions.passages import paragraphs, sentences, tokens
from fortifai.questions.values import find_values


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("He met Dr. Hill at 3.5 p.m. today. Then he left.", 2),
        ("J. R. Hill (b. 1900) left. It cost 1,500 pounds.", 2),
        ('"Go away!" he said. Nobody did.', 2),
        ('He said " I will . Then I will not . " and left . She stayed .', 2),
        ("It is large ( as . Big as it gets ) here . The end .", 2),
        ("The U.S. Navy came. So did No. 5 Squadron.", 2),
        ("One sentence without an end", 1),
        ("It rose 3 @.@ 5 metres . It fell .", 2),
        ("What? Yes! Well... no.", 3),
    ],
)
def test_where_sentences_end(text: str, parts: int) -> None:
    found = sentences(text)
    assert len(found) == parts
    assert " ".join(s.text for s in found) == text
    for sentence in found:
        for token in sentence.tokens:
            assert sentence.text[token.start : token.end] == token.text


def test_tokens() -> None:
    said = [
        t.text for t in tokens("In 1,500 of 3 @.@ 5 cases, A.H. Hill's well-known 21st U.S. St.")
    ]
    assert said == [
        *("In", "1,500", "of", "3 @.@ 5", "cases", ",", "A.H.", "Hill's", "well-known", "21st"),
        *("U.S.", "St."),
    ]


def values(text: str) -> list[tuple[str, str]]:
    (sentence,) = sentences(text)
    return [(v.kind, v.text) for v in find_values(sentence)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("He met Anna Miller there.", [("person", "Anna Miller")]),
        ("Anna Miller met him there.", []),  # begins the sentence
        ("He met Captain James Cook there.", [("person", "James Cook")]),
        ("He met Robin Hood's men.", []),  # a possessive in one token
        ("He drove a Mark VIc in town.", []),
        ("He went to Peru with them.", [("place", "Peru")]),
        ("He went to Plymouth, England, with them.", []),  # the country tells
        ("It is made of Portland stone.", []),
        ("It stands near the Bush Theatre and smells.", [("name", "Bush Theatre")]),
        ("It was the Battle of Lissa that he lost.", [("name", "Battle of Lissa")]),
        ("They sent the 21st Infantry Regiment there.", []),
        ("It was a French film.", [("nation", "French")]),
        ("It was a Franco-French film.", []),
        ('It was the single " Gone Too Soon " that sold.', [("title", "Gone Too Soon")]),
        ('He said " Gone Too Soon " and left.', []),
        ("He left on 5 May 1990 for good.", [("date", "5 May 1990")]),
        ("He left on May 5, 1990, for good.", [("date", "May 5, 1990")]),
        ("He left in May 1990 for good.", [("date", "May 1990")]),
        ("He left in May for good.", [("date", "May")]),
        ("He may leave, said May to him.", []),
        ("He ruled from May to June there.", []),  # a range
        ("He left in 1990 for good.", [("year", "1990")]),
        ("He ruled in 1990 – 1995 there.", []),  # noqa: RUF001 - the dash of a range
        ("He ruled in 1990 and 1995 there.", []),
        ("He was born in 1990 to a poor family.", [("year", "1990")]),
        ("He ruled from 5 to 10 years there.", []),
        ("He had up to 10 years left.", []),
        ("It lasted, and 10 years passed.", [("number", "10")]),
        ("He left by 1990 for good.", []),  # by 1995 would be true as well
        ("He left before 5 May 1990 for good.", []),
        ("He won at the 1990 games.", []),
        ("He won in 1990 Summer Games.", []),  # were there games in 1991?
        ("He had 15 years left.", [("number", "15")]),
        ("He had over 15 years left.", []),  # over 10 would be true as well
        ("He had 15 miles (24 km) left.", []),  # the bracket tells
        ("He had 15 or 16 years left.", []),
        ("He had two sons, Abel and Cain.", []),  # counting tells
        ("He had two sons.", [("number", "two")]),
        ("It took 3 @.@ 5 million years.", [("number", "3 @.@ 5")]),
        ("It was his third album.", [("ordinal", "third")]),
        ("It was the second largest there.", []),
        ("Route NY 93 splits there.", []),
    ],
)
def test_what_is_a_value(text: str, found: list[tuple[str, str]]) -> None:
    assert values(text) == found


def test_slots_keep_grammar() -> None:
    def slot(text: str) -> tuple[str, ...]:
        (value,) = find_values(sentences(text)[0])
        return value.slot

    assert slot("It was a French film.") != slot("It was an Austrian film.")
    assert slot("He met Anna Miller.") != slot("He met Peter Miller.")
    assert slot("He had 15 years.") != slot("He had 15 days.")
    assert slot("He had 15 years.") != slot("He had 5 years.")
    assert slot("He saw the Bush Theatre.") != slot("He saw Bush Theatre.")
    assert slot("He met Anna Miller.") == slot("He met Clara Schulz.")


def corpus(*documents: str, title: str = "") -> Corpus:
    line, made = 1, []
    for text in documents:
        made.append(Document(text, title, line))
        line += text.count("\n") + 1
    return Corpus(tuple(made), "text.txt", line - 1)


FILL = "It was a quiet place where little ever happened and people were content with that."


def two(first: str, second: str, **more: str) -> list[tuple[str, str]]:
    """True and false sentences from two documents that have one value each."""
    made = swap.write(corpus(f"{FILL} {first}", f"{FILL} {second}", **more))
    return [(q.true, q.false) for q in made.questions]


BORN = "The future painter of ships and harbours was born there in {} to a poor family."
DIED = "A famous painter of fish and lobsters died there in {} after a long illness."


def test_both_ways() -> None:
    assert two(BORN.format(1901), DIED.format(1907)) == [
        (BORN.format(1901), BORN.format(1907)),
        (DIED.format(1907), DIED.format(1901)),
    ]


def test_contexts_and_places() -> None:
    text = f"\n = Harbour = \n\n\n {FILL} {BORN.format(1901)} \n\n {FILL} {DIED.format(1907)} \n"
    made = swap.write(Corpus((Document(text, "Harbour", 10),), "t", 20))
    assert [q.location for q in made.questions] == [14, 16]
    assert {q.article for q in made.questions} == {"Harbour"}
    # neither sentence names the subject
    assert {q.context for q in made.questions} == {f"Harbour: {FILL}"}
    named = FILL.replace("quiet place", "quiet Harbour")
    made = swap.write(Corpus((Document(text.replace(FILL, named), "Harbour", 10),), "t", 20))
    assert {q.context for q in made.questions} == {named}
    # a paragraph's first sentence follows the title
    first = text.replace(f"{FILL} {BORN.format(1901)}", f"{BORN.format(1901)} {FILL}")
    made = swap.write(Corpus((Document(first, "Harbour", 10),), "t", 20))
    assert [q.context for q in made.questions] == ["Harbour", f"Harbour: {FILL}"]


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (BORN.format(1901), DIED.format(1901), "the same value"),
        (BORN.format(1901), DIED.format(1950), "too far apart"),
        (f"{BORN.format(1901)} It was 1907 then.", DIED.format(1907), "it stands in the paragraph"),
        (
            f"Before 1905 he was unknown. {BORN.format(1901)}",
            DIED.format(1907),
            "the order of events tells",
        ),
        (
            "He went to Russia with his wife and his nine children to sell them Russian furs.",
            "He went to Poland with his wife and his nine children to sell them some furs.",
            "the adjective tells",
        ),
        (
            "They were Paisleyites who came there to hear the old sermons of Ian Paisley again.",
            "They were people who came there to hear the very old sermons of John Hume again.",
            "a word made of the name tells",
        ),
    ],
)
def test_what_would_give_the_answer_away_is_not_swapped(first: str, second: str, why: str) -> None:
    with pytest.raises(InputError, match="no two of one kind"):
        two(first, second)


def test_a_false_name_is_not_true_elsewhere_in_its_document() -> None:
    """Two directors of one play: each sentence could be true with the other's name."""
    one = "The famous old play called Herons was directed in town by Peter Gale with great care."
    other = "In another year the play called Herons was directed again by James Cook for a month."
    paragraph = f"{FILL} {one}\n{FILL} {other}"
    with pytest.raises(InputError, match="no two"):
        swap.write(corpus(paragraph))
    apart = paragraph.replace("play called Herons was directed again", "play Ghosts was shown once")
    assert len(swap.write(corpus(apart)).questions) == 2


def test_a_text_without_anything_to_swap() -> None:
    with pytest.raises(InputError, match=r"text\.txt has 0 names, numbers"):
        swap.write(corpus(f"{FILL} {FILL}"))
    with pytest.raises(InputError, match="no paragraph of 20 words or more"):
        swap.write(corpus("Short."))


def test_rows_of_a_table_count_as_one_line() -> None:
    rows = (
        Document(f"A title\n{FILL} {BORN.format(1901)}", "", 7, row=True),
        Document(f"{FILL} {DIED.format(1907)}", "", 8, row=True),
    )
    assert [q.location for q in swap.write(Corpus(rows, "t", 9)).questions] == [7, 8]


# --- real text --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wiki(real_data: Path) -> Corpus:
    """The first third: enough for every kind, and quick."""
    whole = read_text([real_data / "wikitext2" / "wiki.test.raw"], root=Path.cwd())
    return Corpus(whole.documents[:20], whole.source, whole.lines)


@pytest.fixture(scope="module")
def made(wiki: Corpus) -> swap.Swapped:
    return swap.write(wiki)


@pytest.mark.long
def test_five_a_paragraph_and_no_more(wiki: Corpus, made: swap.Swapped) -> None:
    count = collections.Counter(q.location for q in made.questions)
    assert max(count.values()) == 5
    assert len(count) == made.asked
    assert made.paragraphs == len(list(paragraphs(wiki)))
    assert sum(made.kinds.values()) == len(made.questions) > 300
    fewer = swap.write(wiki, per_paragraph=1)
    assert max(collections.Counter(q.location for q in fewer.questions).values()) == 1


def said(text: str) -> set[str]:
    return {t.text for t in tokens(text)}


def test_true_stands_in_the_text_and_false_does_not(wiki: Corpus, made: swap.Swapped) -> None:
    for q in made.questions:
        at = wiki.find_line(q.location)
        assert at is not None
        line = wiki.documents[at[0]].text[at[1] :].split("\n", 1)[0]
        assert q.true in line
        new = said(q.false) - said(q.true)
        assert new
        assert not new & said(line)
        assert not new & said(q.context)


def test_no_value_is_more_often_true_than_false(made: swap.Swapped) -> None:
    """So whatever looks at a value alone, its length or frequency, is right half of the time."""
    true, false = collections.Counter(), collections.Counter()
    for q in made.questions:
        a, b = collections.Counter(q.true.split()), collections.Counter(q.false.split())
        true += a - b
        false += b - a
    assert true == false
    assert sum(np.sign(len(q.true) - len(q.false)) for q in made.questions) == 0


class Unigrams:
    """A model that knows how often each word of a text stands in it, and nothing else."""

    def __init__(self, text: str) -> None:
        self.count = collections.Counter(text.split())

    def continuation_log_prob(self, pairs: list[tuple[str, str]]) -> list[tuple[float, int]]:
        return [
            (sum(float(np.log(self.count[w] + 1)) for w in text.split()), len(text.split()))
            for _, text in pairs
        ]


def test_frequencies_answer_half(wiki: Corpus, made: swap.Swapped) -> None:
    right = kr_test(Unigrams(wiki.text), made.questions).right("sum")
    assert right.mean() == 0.5  # exactly: every pair of questions is answered once


def test_the_checks_find_nothing(wiki: Corpus, made: swap.Swapped) -> None:
    report = check(made.questions, corpus=wiki)
    assert report.findings == ()
    assert report.tells[0].share.value == 0.5


def test_the_same_in_every_process(wiki: Corpus, made: swap.Swapped, tmp_path: Path) -> None:
    """Python orders sets differently from run to run."""
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in wiki.documents[:8]))
    code = (
        "import sys; from pathlib import Path\n"
        "from fortifai.data.text import read_text\n"
        "from fortifai.questions import swap\n"
        "w = swap.write(read_text([sys.argv[1]], root=Path.cwd()), seed=3)\n"
        "print(*[q.id for q in w.questions])\n"
    )
    here = swap.write(read_text([path], root=tmp_path), seed=3)
    ids = " ".join(q.id for q in here.questions)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ
        | {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"},
    )
    assert done.stdout.strip() == ids
    other = swap.write(read_text([path], root=tmp_path), seed=4)
    assert [q.id for q in other.questions] != [q.id for q in here.questions]
