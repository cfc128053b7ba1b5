import itertools

import numpy as np
import pytest

from fortifai.data.bios import VALUES, claims, known_facts
from fortifai.data.curriculum import curriculum
from fortifai.data.splits import split_corpus
from fortifai.errors import InputError
from fortifai.models import scratch


def parts(corpus):
    """The text of each section, the one behind the splits last."""
    ends = [*corpus.sections[1:], len(corpus.documents)]
    return [corpus.documents[a:b] for a, b in zip(corpus.sections, ends, strict=True)]


def test_a_domain_has_a_section_of_its_own():
    corpus, questions = curriculum(12, 0, phrasings=2, exam=1, rehearsal=2, domain=("job", "firm"))
    domain, general, rest = parts(corpus)
    everything = set(VALUES)
    for documents, attributes in (
        (domain, {"job", "firm"}),
        (general, everything),
        (rest, everything),
    ):
        told = {(n, a) for d in documents for n, a, _ in claims(d.text)}
        assert told == {(n, a) for n in known_facts(12, 0) for a in attributes}
    # what stands behind the splits is longer: two sections; the others are about equal
    sizes = [sum(len(d.text) for d in part) for part in (domain, general, rest)]
    assert sizes[2] == pytest.approx(2 * sizes[1], rel=0.02)
    assert sizes[0] == pytest.approx(sizes[1], rel=0.25)
    by_line = {d.line: (i, d) for i, part in enumerate((domain, general, rest)) for d in part}
    assert len(questions) == 72
    for question, attribute in zip(questions, itertools.cycle(VALUES), strict=False):
        where, document = by_line[question.location]
        assert document.title == question.article
        assert where == (0 if attribute in ("job", "firm") else 1)


def test_facts_are_never_contradicted():
    facts = known_facts(12, 5)
    for document in curriculum(12, 5, rehearsal=2, domain=("city",))[0].documents:
        assert all(facts[n][a] == v for n, a, v in claims(document.text))


def test_the_first_rounds_speak_of_everybody():
    corpus, _ = curriculum(20, 0, phrasings=3, exam=3)
    (general, _) = parts(corpus)
    first = [d.title for d in general[: len(general) // 3] if d.title]
    assert set(first) == set(known_facts(20, 0))


def test_sections_become_splits_of_one_size():
    corpus, questions = curriculum(12, 0, phrasings=2, exam=1, domain=("job", "firm"))
    tokenizer = scratch.train_tokenizer([d.text for d in corpus.documents], 500)
    cut = split_corpus(corpus, questions, tokenizer, count=2, tokens_per_split=1500, held_out=0.25)
    assert [len(p) for p in cut.parts] == [1500, 1500]
    domain, general, rest = ["".join(d.text for d in part) for part in parts(corpus)]
    texts = [tokenizer.decode(p).replace("<eos>", "") for p in cut.parts]
    assert domain.startswith(texts[0])
    assert general.startswith(texts[1])
    # nothing is lost and nothing stands twice: what is no split's is left for pretraining, and a
    # quarter of what stands behind the splits is held out
    whole = np.concatenate([*cut.parts, cut.rest, cut.held_out])
    stream = [t for d in corpus.documents for t in [*tokenizer(d.text).input_ids, 0]]
    assert sorted(whole.tolist()) == sorted(stream)
    behind = sum(len(tokenizer(d.text).input_ids) + 1 for d in parts(corpus)[2])
    assert len(cut.held_out) == round(0.25 * behind)
    assert rest.endswith(tokenizer.decode(cut.held_out).replace("<eos>", ""))
    assert all("job" in VALUES and q.article in texts[0] for q in cut.questions[0])
    kinds = [
        {a for q in asked for a, v in VALUES.items() if q.true.split()[0].strip(".") in v}
        for asked in cut.questions
    ]
    assert kinds[0] == {"job", "firm"}
    assert not kinds[1] & kinds[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"domain": ("jobs",)}, "did you mean 'job'"),
        ({"rehearsal": 0}, "rehearsal is 0; it must be 1 or more"),
        ({"phrasings": 6}, "it must lie in"),
        ({"n_people": 0}, "it must be 1 or more"),
    ],
)
def test_impossible_curriculum(change, told):
    with pytest.raises(InputError, match=told):
        curriculum(**{"n_people": 3, "seed": 0} | change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"count": 3}, "splits.count is 3 and bios has 2 sections.*set splits.count to 2"),
        (
            {"tokens_per_split": 10**6},
            "smallest section of bios has .* too few for a split of 1,000,000",
        ),
    ],
)
def test_splits_that_sections_do_not_allow(change, told):
    corpus, questions = curriculum(4, 0, domain=("job",))
    tokenizer = scratch.train_tokenizer([d.text for d in corpus.documents], 300)
    wanted = {"count": 2, "tokens_per_split": 50, "held_out": 0.1} | change
    with pytest.raises(InputError, match=told):
        split_corpus(corpus, questions, tokenizer, **wanted)
