"""Coverage against enumeration, known answers, and text that no batch may choose."""

import dataclasses
import itertools
import json
from typing import ClassVar

import numpy as np
import pytest

from fortifai.data.answers import Answered, answer_of, is_right, normal, read_answered
from fortifai.data.tokens import SpecialTokens
from fortifai.errors import InputError
from fortifai.evals.coverage import Coverage, check, cover, pass_at
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM

# --- the estimator ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n):
    for k, c in itertools.product(range(1, n + 1), range(n + 1)):
        right = [True] * c + [False] * (n - c)
        subsets = [any(chosen) for chosen in itertools.combinations(right, k)]
        (found,) = pass_at(k, np.array([c]), n)
        # both are ratios of the same whole numbers
        assert found == sum(subsets) / len(subsets)


def test_pass_at_k_of_many_samples_neither_overflows_nor_loses_digits():
    # C(5000, 2500) is beyond float64; with c = 1 the estimate is k / n exactly
    assert pass_at(2500, np.array([0, 1, 5000]), 5000).tolist() == [0.0, 0.5, 1.0]
    assert pass_at(1, np.array([1]), 3).tolist() == [1 / 3]


# --- what is an answer ------------------------------------------------------------------------

MONEY = Answered("How much?", "question", ("1,200",))
TOWN = Answered("Where?", "question", ("Paris", "City of Light"))


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (" 16 * 75 = 1200\n#### 1200.00", "1200"),
        (" It makes $1,200.", "1200"),
        (" minus 5 is -1200", "-1200"),
        (" 2400-1200", "1200"),  # no sign: it stands behind a number
        (" 7\n#### 1200\nQuestion: And now?\nAnswer: 9", "1200"),
        ("\nQuestion: What is 1200?", None),
        (r" so \boxed{\text{$1{}200} or rather \boxed{1,200}, not 7", "1200"),
        (r" \boxed{1200", "1200"),  # never closed: the last number
        (" I do not know.", None),
        ("", None),
    ],
)
def test_numbers(said, answer):
    assert answer_of(said, MONEY) == answer
    assert is_right(answer, MONEY) == (answer == "1200")


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (" Paris, of course.\nLyon", "paris"),
        ("\n\n  PARIS", "paris"),
        ("The town.\n#### Paris", "paris"),
        (r"It is \boxed{Paris}.", "paris"),
        (" the city of light", "the city of light"),
        (" City of light!", "city of light"),
        (" Parisian", "parisian"),
        (" Lyon.\nParis", "lyon"),
        (" ...\n", None),
    ],
)
def test_words(said, answer):
    assert answer_of(said, TOWN) == answer
    assert is_right(answer, TOWN) == (answer in ("paris", "city of light"))


@pytest.mark.parametrize(
    ("one", "other"),
    [("18", "18.00"), ("$1,000", "1000"), (".5", "0.50"), ("-0", "0"), ("St. Ives", "st. ives.")],
)
def test_equal_answers(one, other):
    assert normal(one) == normal(other)


def test_an_answer_that_goes_on_after_the_right_words_is_the_same_answer():
    said = {answer_of(text, TOWN) for text in (" Paris", " Paris, France", " Paris (Texas)")}
    assert said == {"paris"}


# --- files ------------------------------------------------------------------------------------


def written(folder, rows):
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_all_kinds_are_read(tmp_path):
    rows = [
        {"question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
        {"prompt": "Q: 1 + 1\nA:", "answer": 2},
        {"question": "Where?", "answer": ["Paris", "Lutetia", "Paris"]},
        {"context": "The game was", "sentence_true": "praised.", "sentence_false": "not.",
         "location": 1},
        {"question": "2 + 2?", "answer": "again"},
    ]  # fmt: skip
    found, notes = read_answered([written(tmp_path, rows)], root=tmp_path)
    assert [q.answers for q in found] == [("4",), ("2",), ("Paris", "Lutetia"), ("praised.",)]
    assert [q.prompt for q in found] == [
        "Question: 2 + 2?\nAnswer:", "Q: 1 + 1\nA:", "Question: Where?\nAnswer:", "The game was"
    ]  # fmt: skip
    assert [q.numeric for q in found] == [True, True, False, False]
    assert notes == ["q.jsonl: 5 rows, 4 questions that were not there before; each is asked once"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "Why?"}, "question 1, has no field 'answer'; coverage needs the right"),
        ({"question": "Why?", "anwser": "x"}, "did you mean 'anwser'"),
        ({"text": "Why?", "answer": "x"}, "has no question"),
        ({"question": "Why?", "prompt": "Why?", "answer": "x"}, "has question and prompt"),
        ({"question": "Why?", "choices": ["a", "b"], "answer": 1}, "is multiple choice"),
        ({"question": " ", "answer": "x"}, "must be text and not empty"),
        ({"question": "Why?", "answer": " ####  "}, "a text that says something"),
        ({"question": "Why?", "answer": None}, "has answer None"),
        ({"question": "Why?", "answer": True}, "has answer True"),
        ({"question": "Why?", "answer": []}, "an empty list for answer"),
        ({"context": "Why?", "answer": "x"}, "has no field 'sentence_true'"),
    ],
)
def test_bad_rows_are_told_in_one_sentence(row, words, tmp_path):
    with pytest.raises(InputError) as caught:
        read_answered([written(tmp_path, [row])], root=tmp_path)
    assert words in str(caught.value)


# --- options ----------------------------------------------------------------------------------


def asked(count=16, **more):
    return tuple(Answered(f"What is {i}?", "question", (str(i),), **more) for i in range(count))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 4, "k": 8}, "k is 8 and samples is 4; pass@8 takes 8 samples"),
        ({"k": 0}, "k is 0; pass@1 is measured anyhow, so give 2 to samples"),
        ({"k": 1}, "k is 1;"),
        ({"k": -3}, "k is -3;"),
        ({"samples": 1}, "samples is 1; coverage takes 2"),
        ({"answer_tokens": 0}, "answer_tokens is 0"),
        ({"questions": asked(15)}, "there are 15 questions for coverage"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(InputError) as caught:
        Coverage(**{"questions": asked()} | options)
    assert words in str(caught.value)


def test_many_questions_are_thinned_evenly():
    found = Coverage(asked(100), most=20).asked
    assert [int(q.answers[0]) for q in found] == np.linspace(0, 99, 20).round().astype(int).tolist()


# --- a stand-in whose answers are known -------------------------------------------------------


class Letters:
    """A tokenizer of code points, with 0 as the end."""

    chat_template = None
    all_special_ids = (0,)
    unk_token_id = None
    added_tokens_decoder: ClassVar = {}

    def __call__(self, texts, **_):
        ids = [[ord(c) for c in text] for text in texts]
        return {"input_ids": ids, "offset_mapping": [[(i, i + 1) for i in range(len(row))]
                                                     for row in ids]}  # fmt: skip

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


@dataclasses.dataclass
class StandIn:
    """Answers what it is told to, sample by sample, to each question by its number."""

    plan: dict
    tokenizer = Letters()
    special = SpecialTokens(None, 0, frozenset({0}))
    positions = 64

    def write_answers(self, prompts, size, decoding, numbers, *, tick=None):
        assert numbers.shape == (len(prompts), size)
        assert decoding.temperature == 1
        assert (decoding.top_k, decoding.top_p) == (0, 1.0)
        turns, out = dict.fromkeys(self.plan, 0), []
        for prompt in prompts:
            number = int("".join(map(chr, prompt)).split("What is ")[1].split("?")[0])
            said = self.plan[number][turns[number]]
            turns[number] += 1
            out.append([*map(ord, said), 0])
        return out


def test_known_answers():
    plan = {i: [f" {i}"] * 4 for i in range(16)}
    plan[3] = [" 3", " it is 3.0", " 4", " none"]
    plan[5] = [" 1", " 2", " 3", " 4"]
    plan[7] = [" 8", " 8.", " $8", "no"]
    found = cover(StandIn(plan), Coverage(asked(), samples=4, k=2), seed=0)
    assert found.counts.tolist() == [4, 4, 4, 2, 4, 0, 4, 0, *[4] * 8]
    assert found.distinct.tolist() == [1, 1, 1, 2, 1, 4, 1, 1, *[1] * 8]
    assert found.answered[[3, 5, 7]].tolist() == [0.75, 1, 0.75]
    assert found.solved == (2, 0, 1, 0, 13)
    # of 6 pairs of question 3's answers one is of the two wrong ones
    assert found.passed(2)[[0, 3, 5]].tolist() == [1, 5 / 6, 0]
    assert found.passed(1)[3] == 0.5


def test_what_does_not_fit_is_refused_before_anything_is_written():
    with pytest.raises(InputError, match=r"the longest question has 29 tokens, and with answers"):
        check(StandIn({}), Coverage(asked(), answer_tokens=36))
    check(StandIn({}), Coverage(asked(), answer_tokens=35))
    with pytest.raises(InputError, match="coverage: the model's tokenizer has no chat template"):
        check(StandIn({}), Coverage(asked(), answer_tokens=8, chat=True))


# --- a real model -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    text = "What is one? What is 12? Question: Answer: 3 4 5 6 7 8 9 0. " * 20
    tokenizer = scratch.train_tokenizer([text], 320)
    sizes = {"hidden_size": 32, "layers": 2, "heads": 2, "vocab_size": len(tokenizer)}
    return CausalLM(scratch.build("llama", max_positions=96, seed=0, **sizes), tokenizer)


def test_neither_batch_nor_company_chooses_a_text(model, monkeypatch):
    many = Coverage(asked(24), samples=3, answer_tokens=12)
    whole = cover(model, many, seed=5)
    monkeypatch.setattr("fortifai.models.generation.side_by_side", lambda *a, **k: 5)
    assert cover(model, many, seed=5).answers == whole.answers
    turned = Coverage(asked(24)[:3:-1], samples=3, answer_tokens=12)
    assert cover(model, turned, seed=5).answers == whole.answers[:3:-1]
    # the first samples of more are the same, and samples and seeds are not the same ones
    more = cover(model, dataclasses.replace(many, samples=5), seed=5)
    assert [row[:3] for row in more.answers] == [*whole.answers]
    assert len(set(zip(*more.answers, strict=True))) == 5
    assert cover(model, many, seed=6).answers != whole.answers


def test_samples_are_drawn_from_the_model(model):
    """Shares of first tokens beside the model's own probabilities."""
    prompt = model.encode("Question: What is 12?\nAnswer:").tolist()
    n = 4000
    numbers = np.random.default_rng(0).random((n, 1))
    from fortifai.models.options import Sample

    written = model.write_answers([prompt] * n, 1, Sample(kind="sample"), numbers)
    counts = np.bincount([row[0] for row in written], minlength=len(model.tokenizer))
    windows = np.array([[*prompt, token] for token in range(len(model.tokenizer))])
    p = np.exp(model.window_log_prob(windows)[:, -1].astype(np.float64))
    allowed = np.ones(len(p), dtype=bool)
    allowed[[t for t in model.special.never_written if t < len(p)]] = False
    p = np.where(allowed, p, 0) / p[allowed].sum()
    # 320 tokens, each within 5 standard errors: missed by chance in one of 5,000 runs
    assert (np.abs(counts - n * p) <= 5 * np.sqrt(n * p) + 1).all()


def test_a_row_ends_with_its_first_end_whatever_stands_beside_it(model):
    from fortifai.models import generation
    from fortifai.models.options import Greedy

    prompts = [model.encode(f"What is {i}?").tolist() for i in (1, 12, 123)]
    whole = generation.write_apart(model.model, prompts, 12, Greedy())
    end = whole[1][4]
    cut = generation.write_apart(model.model, prompts, 12, Greedy(), ends=frozenset({end}))
    for row, told in zip(whole, cut, strict=True):
        stop = row.index(end) + 1 if end in row else len(row)
        assert told == row[:stop]
