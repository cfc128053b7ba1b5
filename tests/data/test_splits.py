import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai.data.bios import bios
from fortifai.data.questions import Question, read_questions
from fortifai.data.splits import split_corpus
from fortifai.data.text import Corpus, Document, read_text
from fortifai.errors import InputError


@pytest.fixture(scope="module")
def biographies():
    return bios(60, 1, phrasings=2)


def stream_of(corpus, tokenizer):
    out = []
    for document in corpus.documents:
        out += [*tokenizer(document.text)["input_ids"], tokenizer.eos_token_id]
    return out


def cut_up(corpus, questions, tokenizer, count=2, tokens_per_split=None, held_out=0.1):
    return split_corpus(
        corpus,
        questions,
        tokenizer,
        count=count,
        tokens_per_split=tokens_per_split,
        held_out=held_out,
    )


@given(
    texts=st.lists(st.text("ab \né猫", max_size=30), min_size=1, max_size=8),
    count=st.integers(1, 4),
    size=st.none() | st.integers(2, 20),
    held_out=st.floats(0, 0.9),
)
def test_splits_are_equal_contiguous_and_lose_nothing(tokenizer, texts, count, size, held_out):
    corpus = Corpus(tuple(Document(text) for text in texts), "x")
    whole = stream_of(corpus, tokenizer)
    kept = len(whole) - round(held_out * len(whole))
    expected = size or kept // count
    if expected < 2 or expected * count > kept:
        with pytest.raises(InputError, match=rf"has {kept:,} tokens besides the held-out text"):
            cut_up(corpus, [], tokenizer, count, size, held_out)
        return
    cut = cut_up(corpus, [], tokenizer, count, size, held_out)
    assert [len(part) for part in cut.parts] == [expected] * count
    pieces = [*cut.parts, cut.rest, cut.held_out]
    assert np.concatenate(pieces).tolist() == whole
    assert len(cut.held_out) == len(whole) - kept
    assert {piece.dtype for piece in pieces} == {np.dtype(np.int32)}


def test_many_documents_are_tokenised_as_each_alone(tokenizer):
    """More than are tokenised at a time."""
    corpus = Corpus(tuple(Document(f"d{i}\n", "", i + 1) for i in range(1100)), "x", 1100)
    questions = [Question("c", "t", "f", line) for line in (1, 512, 513, 1100)]
    cut = cut_up(corpus, questions, tokenizer, 1, None, 0.0)
    assert cut.parts[0].tolist() == stream_of(corpus, tokenizer)
    assert len(cut.rest) == len(cut.held_out) == 0
    assert cut.questions == (tuple(questions),)


def test_held_out_text_of_its_own(biographies, tokenizer):
    corpus, questions = biographies
    other, _ = bios(5, 9, phrasings=1)
    cut = cut_up(corpus, questions, tokenizer, held_out=other)
    assert cut.held_out.tolist() == stream_of(other, tokenizer)
    assert sum(map(len, cut.questions)) == len(questions)
    assert cut.notes == ()


@pytest.mark.parametrize(("phrasings", "question_phrasing"), [(1, "unseen"), (2, "seen")])
@pytest.mark.parametrize("count", [4, 7])
def test_every_fact_stands_in_the_text_of_its_split(tokenizer, phrasings, question_phrasing, count):
    """Every one exactly, those of the biographies that a cut runs through too."""
    corpus, questions = bios(60, 1, phrasings=phrasings, question_phrasing=question_phrasing)
    cut = cut_up(corpus, questions, tokenizer, count, 600, 0.1)
    ends = [len(tokenizer.decode(np.concatenate(cut.parts[: k + 1]))) for k in range(count)]
    starts = list(itertools.accumulate(len(d.text) + len("<eos>") for d in corpus.documents))
    split_of = {q.id: k for k, asked in enumerate(cut.questions) for q in asked}
    through = 0
    for question in questions:
        document = corpus.documents[question.location - 1]
        value = question.true.split()[0].rstrip(".")
        # the value with a word's end behind it: a year, or a name in capitals
        where = min(document.text.find(value + end) % 10**9 for end in (".", " College", " Works"))
        at = starts[question.location - 1] - len(document.text) - len("<eos>") + where
        expected = sum(end <= at for end in ends)
        assert split_of.get(question.id, count) == expected
        first = at - where
        through += expected < count and sum(end <= first for end in ends) != expected
    # facts behind a cut in their own biography, which its first line alone would misplace
    assert through > 0
    asked = len(split_of)
    assert cut.notes == (
        f"{len(questions) - asked:,} of {len(questions):,} questions stand outside the splits and "
        "are not asked",
    )


def test_a_location_is_a_line_not_a_document(tokenizer):
    """In one long document the line decides, to the token."""
    lines = [f"line number {i} says {i * 7}" for i in range(200)]
    corpus = Corpus((Document("\n".join(lines), "", 1),), "x")
    questions = [Question("c", "what is not there", "f", i + 1) for i in range(200)]
    cut = cut_up(corpus, questions, tokenizer, 2, None, 0.01)
    first = tokenizer.decode(cut.parts[0]).count("\n")
    # the line that the boundary cuts begins in split 0
    assert [q.location for q in cut.questions[0]] == list(range(1, first + 2))
    assert cut.questions[1][0].location == first + 2
    tail = tokenizer.decode(cut.parts[1]).split("\n")[0]
    # unless its fact is what stands behind the cut
    words = tail.split()[-1]
    moved = Question("c", f"it says {words} .", "it says no .", first + 1)
    cut = cut_up(corpus, [moved], tokenizer, 2, None, 0.01)
    assert cut.questions == ((), (moved,))


def test_whole_words_are_the_fact(tokenizer):
    text = "Elmhurst " * 40 + "and " * 40 + "Elm ."
    corpus = Corpus((Document(text, "", 1),), "x")
    question = Question("c", "It is Elm .", "It is Oak .", 1)
    assert cut_up(corpus, [question], tokenizer, held_out=0.0).questions == ((), (question,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tokens_per_split": 100_000, "count": 5},
            "5 splits of 100,000, which need 500,000; give",
        ),
        ({"count": 10**7}, "too few for 10000000 splits of 2, which need 20,000,000"),
        ({"count": 0}, "the number of splits is 0"),
        ({"tokens_per_split": 0}, "a split has 0 tokens"),
        ({"held_out": 1.0}, r"held-out share is 1.0; it must lie in \[0, 1\)"),
        ({"held_out": float("nan")}, "held-out share is nan"),
    ],
)
def test_impossible_splits(biographies, tokenizer, change, message):
    with pytest.raises(InputError, match=message):
        cut_up(*biographies, tokenizer, **change)


def test_a_tokenizer_without_an_end_and_a_corpus_without_documents(biographies, tokenizer):
    class Endless:
        eos_token_id = None
        bos_token_id = None

    with pytest.raises(InputError, match="neither an eos nor a bos token"):
        cut_up(*biographies, Endless())
    with pytest.raises(InputError, match="nothing holds no documents"):
        cut_up(Corpus((), "nothing"), [], tokenizer)


@pytest.mark.parametrize("line", [0, -3, 121, 99_999])
def test_questions_on_another_text(biographies, tokenizer, line):
    corpus, questions = biographies
    asked = [*questions[:3], Question("c", "t", "f", line), Question("d", "t", "f", 10**6)]
    with pytest.raises(
        InputError,
        match="2 of 5 questions have a location outside bios, which has 120 lines, the first at "
        rf"line {line} \('c'\)",
    ):
        cut_up(corpus, asked, tokenizer)


def test_articles_that_disagree_with_locations_are_told(biographies, tokenizer):
    corpus, _ = biographies
    asked = [Question("c", "t", "f", 1, "Someone"), Question("d", "t", "f", 2)]
    assert cut_up(corpus, asked, tokenizer).notes == (
        "1 of 2 questions name another article than the one their location stands in, the first "
        "'Someone'",
    )


def test_the_real_questions_in_equal_splits(real_data, tokenizer):
    """Against character counts in the raw file."""
    corpus = read_text(["wikitext2/wiki.test.raw"], root=real_data)
    questions, _ = read_questions(["kr_test/wikitext2-test.jsonl"], root=real_data)
    cut = cut_up(corpus, questions, tokenizer, 5, None, 0.05)
    lines = (real_data / "wikitext2/wiki.test.raw").read_bytes().decode().split("\n")
    # the first line, blank and before the first article, is in no document
    starts = [0, 0, *itertools.accumulate((len(line) + 1 for line in lines[1:]), initial=0)]
    pieces = [tokenizer.decode(part).replace("<eos>", "\n") for part in cut.parts]
    ends = list(itertools.accumulate(map(len, pieces)))
    split_of = {q.id: k for k, asked in enumerate(cut.questions) for q in asked}
    torn = 0
    for question in questions:
        start = starts[question.location]
        stop = start + len(lines[question.location - 1])
        # 15: each of five cuts may leave up to 3 bytes of a character to be decoded one by one
        allowed = {sum(end <= at for end in ends) for at in (start - 15, start + 15, stop + 15)}
        torn += len(allowed) > 1
        assert split_of.get(question.id, 5) in allowed
    assert torn < 40  # the few lines at the five cuts; all others are exact
    assert all(len(asked) > 200 for asked in cut.questions)
    beyond = len(questions) - len(split_of)
    assert cut.notes == (f"{beyond} of 1,562 questions stand outside the splits and are not asked",)
