import numpy as np
import pytest

from fortifai.data.bios import bios
from fortifai.data.questions import Question, read_questions
from fortifai.data.splits import split_corpus
from fortifai.data.text import Corpus, Document, read_text
from fortifai.errors import InputError
from fortifai.models.scratch import train_tokenizer


@pytest.fixture(scope="module")
def biographies():
    corpus, questions = bios(60, 1, phrasings=2)
    return corpus, questions, train_tokenizer([d.text for d in corpus.documents], 600)


def stream_of(corpus, tokenizer):
    out = []
    for document in corpus.documents:
        out += [*tokenizer(document.text)["input_ids"], tokenizer.eos_token_id]
    return out


@pytest.mark.parametrize(("count", "size"), [(4, None), (3, 500), (1, 777)])
def test_splits_are_equal_contiguous_and_lose_nothing(biographies, count, size):
    corpus, questions, tokenizer = biographies
    cut = split_corpus(
        corpus, questions, tokenizer, count=count, tokens_per_split=size, held_out=0.2
    )
    assert len({len(p) for p in cut.parts}) == 1
    assert len(cut.parts) == count
    if size:
        assert len(cut.parts[0]) == size
    whole = np.concatenate([*cut.parts, cut.rest, cut.held_out])
    assert whole.tolist() == stream_of(corpus, tokenizer)
    assert all(p.dtype == np.int32 for p in [*cut.parts, cut.rest, cut.held_out])
    assert len(cut.held_out) == round(0.2 * len(whole))


def test_held_out_text_of_its_own(biographies):
    corpus, questions, tokenizer = biographies
    other, _ = bios(5, 9, phrasings=1)
    cut = split_corpus(
        corpus, questions, tokenizer, count=2, tokens_per_split=None, held_out=other
    )
    assert cut.held_out.tolist() == stream_of(other, tokenizer)


def test_questions_stand_in_the_split_of_their_fact(biographies):
    corpus, questions, tokenizer = biographies
    cut = split_corpus(
        corpus, questions, tokenizer, count=4, tokens_per_split=600, held_out=0.1
    )
    texts = [tokenizer.decode(part) for part in cut.parts]
    for k, asked in enumerate(cut.questions):
        assert asked
        for question in asked:
            # the biography begins in the split: at least the name's first tokens stand there
            assert question.article.split()[0] in texts[k]
    asked = sum(len(part) for part in cut.questions)
    assert cut.notes == (
        f"{len(questions) - asked:,} of {len(questions):,} questions stand outside the splits and "
        "are not asked",
    )


def test_a_location_is_a_line_not_a_document():
    """In one long document the fact's line decides, to the token."""
    lines = [f"line number {i} says {i * 7}" for i in range(200)]
    corpus = Corpus((Document("\n".join(lines), "", 1),), "x")
    tokenizer = train_tokenizer(lines, 400)
    questions = [Question("c", str(i), "f", i + 1) for i in range(200)]
    cut = split_corpus(corpus, questions, tokenizer, count=2, tokens_per_split=None, held_out=0.01)
    first = tokenizer.decode(cut.parts[0]).count("\n")
    # the line that the boundary cuts begins in split 0
    assert [q.location for q in cut.questions[0]] == list(range(1, first + 2))
    assert cut.questions[1][0].location == first + 2


@pytest.mark.parametrize(("count", "size"), [(5, 100_000), (10**7, None)])
def test_a_corpus_too_short(biographies, count, size):
    corpus, questions, tokenizer = biographies
    with pytest.raises(InputError, match=r"tokens besides the held-out text, too few for"):
        split_corpus(
            corpus, questions, tokenizer, count=count, tokens_per_split=size, held_out=0.1
        )


def test_questions_on_another_text(biographies):
    corpus, _, tokenizer = biographies
    with pytest.raises(InputError, match="1 of 1 questions have a location outside bios, the first "
                       "at line 99999"):
        split_corpus(
            corpus, [Question("c", "t", "f", 99999)], tokenizer, count=2, tokens_per_split=None,
            held_out=0.1,
        )


def test_the_real_questions_stand_in_their_articles(real_data):
    corpus = read_text(["wikitext2/wiki.test.raw"], root=real_data)
    questions, _ = read_questions(["kr_test/wikitext2-test.jsonl"], root=real_data)
    titles = [corpus.documents[corpus.find_line(q.location)[0]].title for q in questions]
    # two name the article "Constant k filter" more fully than its heading does
    wrong = [q for q, title in zip(questions, titles, strict=True) if q.article != title]
    assert len(wrong) <= 2
