import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai.data.bios import PHRASINGS, VALUES, bios, people
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


@pytest.mark.parametrize("change", [{"phrasings": 0}, {"phrasings": 6}, {"n_people": 0}])
def test_impossible_sizes(change):
    with pytest.raises(InputError, match="it must"):
        bios(**{"n_people": 2, "seed": 0} | change)


def test_a_stream_of_any_size():
    assert next(people(0, 10**9)).name != next(people(0, 10**9 + 1)).name
