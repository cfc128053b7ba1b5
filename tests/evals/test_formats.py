import math

import numpy as np
import pytest
import torch

from fortifai import configuration
from fortifai.data import bios, exam
from fortifai.data.exam import FORMATS, Asked, Item
from fortifai.data.questions import Question
from fortifai.data.tokens import SpecialTokens
from fortifai.errors import InputError
from fortifai.evals import formats
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM
from fortifai.text import exam as setup

TOWNS = ("Arlesby", "Corvane", "Dunmere", "Estova")
ITEM = Item("Where does Ada live?", "Ada lives in", TOWNS, 1, "city", (*TOWNS, "Westra"))
OTHER = Item("Where does Bo live?", "Bo lives in", TOWNS[::-1], 3, "city", TOWNS)


# --- the formats themselves -------------------------------------------------------------------


def test_the_four_formats_word_for_word():
    lettered = (
        "Question: Where does Ada live?\nA. Arlesby\nB. Corvane\nC. Dunmere\nD. Estova\nAnswer:"
    )
    before = (
        "Question: Where does Bo live?\nA. Estova\nB. Dunmere\nC. Corvane\nD. Arlesby\nAnswer: D"
    )
    assert exam.prompt(ITEM, "multiple_choice") == lettered
    assert exam.prompt(ITEM, "few_shot", [OTHER]) == f"{before}\n\n{lettered}"
    assert exam.prompt(ITEM, "short_answer") == "Question: Where does Ada live?\nShort answer:"
    assert exam.prompt(ITEM, "no_instruction") == "Ada lives in"
    assert exam.solved(ITEM, "multiple_choice") == f"{lettered} B"
    assert exam.solved(ITEM, "short_answer").endswith("answer: Corvane")
    assert exam.answers(ITEM, "few_shot") == ("A", "B", "C", "D")
    assert exam.answers(ITEM, "no_instruction") == TOWNS


def test_a_retention_question_becomes_one_with_two_options():
    asked = [Question(f"Person {i} was born in", "1900.", "1950.", 1) for i in range(400)]
    items = [exam.from_question(q) for q in asked]
    assert all(i.right == "1900." for i in items)
    assert all(set(i.options) == {"1900.", "1950."} for i in items)
    assert [i.id for i in items] == [q.id for q in asked]
    # the order is no hint: four standard errors of a share of 400
    assert abs(np.mean([i.answer for i in items]) - 0.5) < 4 * 0.5 / 20


def test_examples_never_ask_for_the_same_fact_and_are_always_the_same():
    pool = list(bios.items(6, 0).values())
    asked = exam.with_examples(pool, pool, 3)
    assert asked == exam.with_examples(pool, pool, 3)
    for one in asked:
        assert len({e.stem for e in one.examples} | {one.item.stem}) == 4
    rows = [exam.to_row(one) for one in asked]
    assert [exam.from_row(row) for row in rows] == asked
    rows[0]["item"]["kin"] = rows[0]["item"].pop("variants")  # as earlier versions wrote it
    assert exam.from_row(rows[0]) == asked[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [({"options": ("a",)}, "2 to 26"), ({"answer": 4}, "none of the 4"), ({"answer": -1}, "none")],
)
def test_impossible_items(change, told):
    with pytest.raises(ValueError, match=told):
        Item(**{"question": "q", "stem": "s", "options": TOWNS, "answer": 0} | change)


# --- adherence --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "said", "keeps", "right"),
    [
        ("multiple_choice", " B\n", True, True),
        ("multiple_choice", " (B) Corvane", True, True),
        ("multiple_choice", " **B**", True, True),
        ("multiple_choice", " A", True, False),
        ("multiple_choice", " E", False, False),
        ("multiple_choice", " Because", False, False),  # begins with a B that is no letter
        ("multiple_choice", " Corvane", False, False),
        ("multiple_choice", "", False, False),
        ("few_shot", " B.", True, True),
        ("short_answer", " Corvane\n", True, True),
        ("short_answer", " corvane.\n\nQuestion:", True, True),
        ("short_answer", " Westra\n", True, False),  # a town, the wrong one
        ("short_answer", " 1932\n", False, False),  # no town
        ("short_answer", " Corvane", False, True),  # does not come to an end
        ("short_answer", " Corvane " + "is a town " * 4 + "\n", False, True),  # 13 words
        ("short_answer", "\n", False, False),
        ("no_instruction", " Corvane. Ada works", True, True),
        ("no_instruction", " Corvaneville.", False, False),
        ("no_instruction", " the", False, False),
    ],
)
def test_what_keeps_to_the_format_and_what_is_right(kind, said, keeps, right):
    assert formats.reads_as(kind, ITEM, said) is keeps
    assert formats.says(kind, ITEM, said) is right


def test_without_known_answers_any_words_will_do():
    free = Item("How heavy is it?", "How heavy is it?", ("one ton", "two tons"), 0)
    assert formats.reads_as("short_answer", free, " I do not know\n")
    assert formats.reads_as("no_instruction", free, " About one ton")
    assert not formats.reads_as("no_instruction", free, " A. one ton")
    assert not formats.reads_as("no_instruction", free, " Question: what?")
    long = Item("q", "q", ("word " * 15, "b"), 0)
    assert formats.reads_as("short_answer", long, " " + "word " * 15 + "\n")
    assert not formats.reads_as("short_answer", long, " " + "word " * 16 + "\n")


# --- numbers, with a model that says what it is told to ---------------------------------------


class Told:
    """A model with given probabilities of options and given answers."""

    special = SpecialTokens(bos=None, end=0, ends=frozenset({0}))

    def __init__(self, tokenizer, probability, answer):
        self.tokenizer, self.probability, self.answer = tokenizer, probability, answer

    def sequence_log_prob(self, encoded):
        out = []
        for ids, count in encoded:
            text = self.tokenizer.decode(ids[-count:]).strip()
            out.append(count * math.log(self.probability(text)))
        return out

    def write_greedily(self, prompts, size):
        return [self.tokenizer(self.answer(self.tokenizer.decode(p))).input_ids for p in prompts]


@pytest.fixture(scope="module")
def tokenizer():
    people = bios.bios(20, 0, exam=1)[0]
    return scratch.train_tokenizer([d.text for d in people.documents], 500)


def test_confidently_wrong_is_told_from_lost(tokenizer):
    sitting = formats.Exam((Asked(ITEM),), ("short_answer",))

    def taken(probability, answer):
        (found,) = formats.examine(Told(tokenizer, probability, lambda _: answer), sitting)
        return found

    kept = taken(lambda town: 0.9 if town == "Corvane" else 0.1, " Corvane\n")
    wrong = taken(lambda town: 0.9 if town == "Estova" else 0.1, " Estova\n")
    lost = taken(lambda town: 0.02 if town == "Estova" else 0.01, " of of of of of")
    assert [o.right[0] for o in (kept, wrong, lost)] == [1, 0, 0]
    assert [o.adherent[0] for o in (kept, wrong, lost)] == [True, True, False]
    # the geometric mean over tokens: however many tokens a town has
    np.testing.assert_allclose([o.confidence[0] for o in (kept, wrong, lost)], [0.9, 0.9, 0.02])
    assert [o.greedy_right[0] for o in (kept, wrong, lost)] == [True, False, False]


def test_options_that_tie_share_the_answer(tokenizer):
    (found,) = formats.examine(
        Told(tokenizer, lambda _: 0.2, lambda _: " A"),
        formats.Exam((Asked(ITEM), Asked(OTHER)), ("multiple_choice",)),
    )
    assert found.right.tolist() == [0.25, 0.25]
    assert found.chance.tolist() == [0.25, 0.25]


def outcomes(right, adherent, greedy, subjects=None, confidence=None):
    n = len(right)
    return formats.Outcomes(
        "short_answer",
        tuple(map(str, range(n))),
        tuple(subjects or [""] * n),
        np.array(right, float),
        np.array(adherent, bool),
        np.array(confidence or [0.5] * n),
        np.array(greedy, bool),
        np.full(n, 0.25),
        ("",) * n,
    )


def test_scores_by_hand():
    found = {
        (s.measure, s.on): s
        for s in formats.scores(
            [outcomes([1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 0], confidence=[1, 0.5, 0.5, 0])]
        )
    }
    assert {on for _, on in found} == {"short_answer"}
    accuracy = found["format.accuracy", "short_answer"]
    assert (accuracy.value, accuracy.n, accuracy.chance) == (0.5, 4, 0.25)
    assert accuracy.stderr == pytest.approx(math.sqrt(0.5 * 0.5 / 4))
    assert found["format.adherence", "short_answer"].value == 0.75
    assert found["format.confidence", "short_answer"].value == 0.5
    # of the two right ones, one is also what greedy decoding gives
    greedy = found["format.greedy", "short_answer"]
    assert (greedy.value, greedy.n) == (0.5, 2)


def test_subjects_have_scores_of_their_own_and_nothing_right_has_no_greedy_share():
    told = formats.scores([outcomes([1, 0, 0], [1] * 3, [1] * 3, ["a", "a", "b"])])
    found = {(s.measure, s.on): s.value for s in told}
    assert found["format.accuracy", "short_answer.a"] == 0.5
    assert found["format.accuracy", "short_answer.b"] == 0
    assert ("format.greedy", "short_answer.b") not in found


# --- a real model -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm(tokenizer):
    model = scratch.build(
        "llama",
        hidden_size=32,
        layers=2,
        heads=4,
        vocab_size=len(tokenizer),
        max_positions=512,
        tie_embeddings=False,
        seed=1,
    )
    with torch.no_grad():
        model.lm_head.weight *= 20  # sure of itself, so that no two choices are nearly equal
    return CausalLM(model, tokenizer, device="cpu")


@torch.inference_mode()
def reference(lm, head, tail, size):
    """Geometric mean probability of `tail` after `head`, and what follows, read token by token."""
    model = lm.model
    logits = model(input_ids=torch.tensor([head + tail])).logits[0].double()
    rows = torch.log_softmax(logits, -1)[len(head) - 1 : -1]
    score = rows[torch.arange(len(tail)), torch.tensor(tail)].mean().exp()
    text = list(head)
    for _ in range(size):
        text.append(int(model(input_ids=torch.tensor([text])).logits[0, -1].argmax()))
    return float(score), text[len(head) :]


def test_answers_of_a_real_model_against_transformers_alone(lm, tokenizer):
    items = list(bios.items(4, 0).values())[::3]
    asked = exam.with_examples(items, items, 2)
    found = formats.examine(lm, formats.Exam(tuple(asked), FORMATS, answer_tokens=6))
    assert [o.kind for o in found] == list(FORMATS)
    for o in found:
        for i, one in enumerate(asked):
            head = tokenizer(exam.prompt(one.item, o.kind, one.examples)).input_ids
            size = 4 if o.kind in ("multiple_choice", "few_shot") else 6
            scored, written = zip(
                *(
                    reference(lm, head, tokenizer(f" {option}").input_ids, size)
                    for option in exam.answers(one.item, o.kind)
                ),
                strict=True,
            )
            # fp32 sums in another order: 1e-4 is a hundred times what was seen
            assert o.confidence[i] == pytest.approx(max(scored), rel=1e-4)
            assert o.right[i] == (int(np.argmax(scored)) == one.item.answer)
            text = tokenizer.decode(written[0], skip_special_tokens=False).split("<eos>")[0]
            assert o.said[i].rstrip("\n") == text.rstrip("\n")


def test_the_table_has_a_row_for_each_question_and_format(lm):
    items = list(bios.items(2, 0).values())
    asked = exam.with_examples(items, items, 1)
    found = formats.examine(lm, formats.Exam(tuple(asked), FORMATS, answer_tokens=4))
    rows = formats.table(found)
    assert len(rows) == len(items) * 4
    assert {r["format"] for r in rows} == set(FORMATS)
    assert {r["id"] for r in rows} == {i.id for i in items}


# --- chat -------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_chat_template_holds_the_question_and_its_examples(tokenizer):
    chatty = scratch.train_tokenizer(["Question: one two three"], 300)
    chatty.chat_template = TEMPLATE
    sitting = formats.Exam((Asked(ITEM, (OTHER,)),), FORMATS, chat=True)
    seen = {}

    def answer(text):
        seen[len(seen)] = text
        return "B"

    formats.examine(Told(chatty, lambda _: 0.5, answer), sitting)
    letters = formats.INSTRUCTIONS["few_shot"]
    body = exam.prompt(ITEM, "multiple_choice").removesuffix("\nAnswer:")
    shot = exam.prompt(OTHER, "multiple_choice").removesuffix("\nAnswer:")
    assert seen[0] == f"[user]{body}\n{letters}[end][assistant]"
    assert seen[1] == (
        f"[user]{shot}\n{letters}[end][assistant]D[end][user]{body}\n{letters}[end][assistant]"
    )
    assert seen[3] == "[user]Ada lives in[end][assistant]"


def test_a_model_without_a_chat_template_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"formats\.chat: the model's tokenizer has no chat"):
        formats.Exam((Asked(ITEM),), FORMATS, chat=True).check(tokenizer, 512)


def test_questions_that_are_too_long_are_refused(tokenizer):
    sitting = formats.Exam((Asked(ITEM, (OTHER,)),), FORMATS)
    sitting.check(tokenizer, 200)
    with pytest.raises(InputError, match=r"few_shot takes \d+ tokens .* reads 90 at most; lower"):
        sitting.check(tokenizer, 90)


def test_a_broken_model_is_named(tokenizer):
    broken = Told(tokenizer, lambda _: math.nan, lambda _: "A")
    with pytest.raises(InputError, match=r"NaN.*multiple_choice"):
        formats.examine(broken, formats.Exam((Asked(ITEM),), FORMATS))


# --- from a configuration ---------------------------------------------------------------------

BASE = {
    "name": "x",
    "generations": 2,
    "baseline": "a",
    "corpus": {"kind": "bios", "people": 12},
    "regime": {"kind": "replace"},
    "family": {"kind": "causal_lm", "scratch": {"hidden_size": 32}},
    "arms": {"a": {}},
}


def read(formats_, questions=(), of_splits=None, root=None, **changes):
    resolved = configuration.resolve(BASE | {"formats": formats_} | changes)
    there = questions if of_splits is None else of_splits
    return setup.read(resolved, root, list(there))


def test_bios_asks_for_facts_of_the_splits_alone():
    asked = bios.bios(12, 0)[1]
    found = read({"questions": 500}, asked, asked[:30])
    assert [a.item.subject for a in found.asked[:6]] == list(bios.VALUES)
    assert len(found.asked) == 30
    everyone = list(zip(range(12), bios.people(0), strict=False))
    for i, one in enumerate(found.asked):
        person = everyone[i // 6][1]
        assert person.name in one.item.question
        assert one.item.right == person.facts[one.item.subject]
    few = read({"questions": 10, "subjects": ["job"]}, asked, asked)
    assert {a.item.subject for a in few.asked} == {"job"}
    assert len(few.asked) == 10


def test_real_mmlu(real_data):
    told = {"data": str(real_data / "mmlu"), "subjects": ["global_facts", "formal_logic"]}
    found = read({"questions": 20, "shots": 3, "mmlu": told}, root=real_data)
    assert len(found.asked) == 40
    first = found.asked[0]
    assert first.item.question.startswith("As of 2016, about what percentage of adults")
    assert first.item.right == "40%"
    assert len(first.examples) == 3
    assert {e.subject for e in found.asked[-1].examples} == {"formal_logic"}
    with pytest.raises(InputError, match=r"'global_fact' is no.*mean 'global_facts"):
        read({"mmlu": told | {"subjects": ["global_fact"]}}, root=real_data)
    with pytest.raises(InputError, match=r"shots is 9 and global_facts has 5 examples"):
        read({"shots": 9, "mmlu": told}, root=real_data)


def test_the_corpus_own_questions(tmp_path):
    asked = [Question("Ada was born in", "Rome.", "Oslo.", 1)] * 2
    text = {"kind": "text", "files": ["x.txt"]}
    found = read({}, asked, corpus=text)
    assert {a.item.right for a in found.asked} == {"Rome."}


@pytest.mark.parametrize(
    ("formats_", "changes", "told"),
    [
        ({"kinds": ["multiple"]}, {}, r"kinds.*'multiple'.*must be 'multiple_choice'"),
        ({"kinds": []}, {}, "needs at least 1"),
        ({"kinds": ["few_shot", "few_shot"]}, {}, "names one twice"),
        ({"subjects": ["jobs"]}, {}, "formats.subjects: 'jobs' is no.*did you mean 'job'"),
        ({"mmlu": {"data": "nowhere", "subjects": ["a"]}}, {}, "holds no test/SUBJECT_test.csv"),
        ({"mmlu": {"data": "x", "subjects": ["a"]}, "subjects": ["job"]}, {}, "mmlu.subjects"),
        ({}, {"corpus": {"kind": "text", "files": ["x"]}}, "no questions to ask"),
        ({"subjects": ["job"]}, {"corpus": {"kind": "text", "files": ["x"]}}, "leave subjects out"),
        ({"shotz": 3}, {}, "did you mean 'shots'"),
    ],
)
def test_wrong_settings(formats_, changes, told, tmp_path):
    asked = bios.bios(12, 0)[1] if not changes else []
    with pytest.raises(InputError, match=told):
        read(formats_, asked, root=tmp_path, **changes)
