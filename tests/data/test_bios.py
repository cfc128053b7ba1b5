import hashlib
import itertools
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai.data.bios import (
    PHRASINGS,
    VALUES,
    bios,
    check_attributes,
    claims,
    items,
    known_facts,
    people,
)
from fortifai.errors import InputError


@given(st.integers(0, 5), st.integers(0, 500))
def test_a_person_does_not_depend_on_how_many_are_drawn(seed, start):
    late = next(people(seed, start))
    assert late == next(itertools.islice(people(seed), start, None))


def test_names_never_repeat():
    names = [p.name for p in itertools.islice(people(0), 20_000)]
    assert len(set(names)) == len(names)


def test_six_attributes_with_six_phrasings_each():
    assert len(VALUES) >= 6
    assert VALUES.keys() == PHRASINGS.keys()
    for phrasings in PHRASINGS.values():
        assert len(set(phrasings)) == 6
        assert all(p.count("{n}") == 1 and p.count("{v}") == 1 for p in phrasings)
        # the name stands before the value, so that a question's context can ask for it
        assert all(p.index("{n}") < p.index("{v}") for p in phrasings)
    assert all(len(set(v)) == len(v) for v in VALUES.values())


@pytest.mark.parametrize("phrasings", [1, 3, 5])
def test_biographies_and_questions_are_exact(phrasings):
    corpus, questions = bios(30, 4, phrasings=phrasings)
    everyone = list(itertools.islice(people(4), 30))
    assert len(corpus.documents) == 30 * phrasings
    assert len(questions) == 30 * len(VALUES)
    for i, person in enumerate(everyone):
        written = corpus.documents[i * phrasings : (i + 1) * phrasings]
        assert all(d.title == person.name for d in written)
        sentences = [s for d in written for s in d.text.split(". ")]
        assert len(set(sentences)) >= len(VALUES) * phrasings - phrasings  # other words each time
        for document in written:
            assert all(value in document.text for value in person.facts.values())
    by_name = {p.name: p for p in everyone}
    texts = {d.title: "" for d in corpus.documents}
    for d in corpus.documents:
        texts[d.title] += d.text
    for q in questions:
        assert corpus.documents[q.location - 1].title == q.article
        true, false = (t.split()[0].rstrip(".") for t in (q.true, q.false))
        attribute = next(a for a, v in VALUES.items() if true in v)
        assert by_name[q.article].facts[attribute] == true
        assert false in VALUES[attribute]
        assert false != true
        # the question's words are none of the biographies'
        assert f"{q.context} {q.true}" not in texts[q.article]


def test_seeds_differ_and_repeat():
    assert bios(5, 1) == bios(5, 1)
    assert bios(5, 1) != bios(5, 2)


def test_seen_questions_stand_word_for_word_where_they_say():
    corpus, questions = bios(20, 3, question_phrasing="seen")
    for q in questions:
        assert f"{q.context} {q.true}" in corpus.documents[q.location - 1].text
        assert f"{q.context} {q.false}" not in corpus.text
    assert corpus.documents == bios(20, 3)[0].documents


def test_a_corpus_goes_on_where_another_ends():
    whole, questions = bios(12, 5, phrasings=2)
    rest, asked = bios(4, 5, phrasings=2, start=8)
    assert [d.text for d in whole.documents[16:]] == [d.text for d in rest.documents]
    assert [q.id for q in questions[-24:]] == [q.id for q in asked]
    assert rest.documents[0].line == asked[0].location == 1


def test_nothing_but_the_person_tells_true_from_false():
    """Given the false value, every other is as likely the true one: neither side is favoured."""
    _, questions = bios(1500, 0, phrasings=1)
    pairs = [(q.true.split()[0], q.false.split()[0]) for q in questions]
    for values in VALUES.values():
        ranks = {v: i for i, v in enumerate(values)}
        ours = [(t.rstrip("."), f.rstrip(".")) for t, f in pairs]
        diffs = [ranks[t] - ranks[f] for t, f in ours if t in ranks]
        assert len(diffs) == 1500
        above = sum(d > 0 for d in diffs) / 1500
        assert abs(above - 0.5) < 0.052  # four standard errors of a share of 1,500: 4 * 0.0129
        lengths = [len(t) - len(f) for t, f in ours if t in ranks]
        # sure to fail a draw that favours long or short values: their spread is about 2 letters
        assert abs(sum(lengths) / 1500) < 0.3


def test_articles_agree_with_what_follows():
    assert not any(job[0] in "aeiou" for job in VALUES["job"])  # "a editor"


def test_biographies_are_short():
    """Some 50 words, so that a small model learns thousands of them."""
    assert all(36 <= len(d.text.split()) <= 70 for d in bios(50, 2)[0].documents)


@pytest.mark.parametrize(
    "change", [{"phrasings": 0}, {"phrasings": 6}, {"n_people": 0}, {"exam": -1}]
)
def test_impossible_sizes(change):
    with pytest.raises(InputError, match="it must"):
        bios(**{"n_people": 2, "seed": 0} | change)


def test_a_stream_of_any_size():
    assert next(people(0, 10**9)).name != next(people(0, 10**9 + 1)).name


def test_the_corpus_never_changes():
    """Runs are only comparable with old ones, and resumed, on the same bytes."""
    told = {}
    for people_, phrasings in ((400, 4), (40, 2)):
        corpus, questions = bios(people_, 0, phrasings=phrasings)
        content = (corpus.text + repr(questions)).encode()
        told[people_] = hashlib.sha256(content).hexdigest()[:16]
    assert told == {400: "2e92d78c0a3c4108", 40: "5609e1fdf9cb7358"}


# --- exams ------------------------------------------------------------------------------------


def test_sheets_ask_for_every_fact_and_answer_rightly():
    corpus, questions = bios(10, 3, phrasings=2, exam=2)
    assert questions[0].location == 1
    plain = [d.text for d in bios(10, 3, phrasings=2)[0].documents]
    assert [d.text for d in corpus.documents if d.title] == plain
    facts = known_facts(10, 3)
    sheets = "\n\n".join(d.text for d in corpus.documents if not d.title)
    letters, words = Counter(), Counter()
    for asked in sheets.split("\n\n"):
        (name,) = [n for n in facts if n in asked]
        first, *middle, last = asked.split("\n")
        if middle:
            options = dict(re.fullmatch(r"([A-D])\. (.+)", line).groups() for line in middle)
            assert sorted(options) == list("ABCD")
            assert len(set(options.values())) == 4
            answer = options[last.removeprefix("Answer: ")]
            letters[first] += 1
        else:
            answer = last.removeprefix("Short answer: ")
            words[first] += 1
        (attribute,) = [a for a, values in VALUES.items() if answer in values]
        assert facts[name][attribute] == answer
    assert len(letters) == len(words) == 60
    # a round asks twice in letters and once in words
    assert set(letters.values()) == {4}
    assert set(words.values()) == {2}


def test_items_ask_for_the_facts_with_options_of_their_own():
    found = list(items(10, 3, phrasings=2).values())
    corpus = bios(10, 3, phrasings=2, exam=3)[0].text
    facts = known_facts(10, 3)
    assert [i.subject for i in found[:6]] == list(VALUES)
    for item in found:
        (name,) = [n for n in facts if n in item.stem]
        assert item.right == facts[name][item.subject]
        assert set(item.options) < set(item.variants) == set(VALUES[item.subject])
        assert f"{item.stem} {item.right}" in corpus
    # the right letter cannot be guessed: four standard errors of a share of 1,200
    places = Counter(i.answer for i in items(200, 3).values())
    assert all(abs(n / 1200 - 0.25) < 4 * 0.0125 for n in places.values())
    with pytest.raises(InputError, match=r"'jobs' is no attribute.*did you mean 'job'"):
        check_attributes(["jobs"])


def test_a_claim_is_a_sentence_of_the_corpus():
    person = next(people(0))
    for attribute, phrasings in PHRASINGS.items():
        for phrasing in phrasings:
            said = phrasing.format(n=person.name, v=person.facts[attribute])
            assert list(claims(f"It is so. {said} And so on.")) == [
                (person.name, attribute, person.facts[attribute])
            ]
