import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai.data.bios import PHRASINGS, VALUES, bios, people


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


@pytest.mark.parametrize("phrasings", [0, 6])
def test_impossible_phrasings(phrasings):
    with pytest.raises(ValueError, match="phrasings"):
        bios(2, 0, phrasings=phrasings)


def test_a_stream_of_any_size():
    assert next(people(0, 10**9)).name != next(people(0, 10**9 + 1)).name
