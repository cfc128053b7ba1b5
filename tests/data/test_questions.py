import gzip
import hashlib
import json

import pytest

from fortifai.data.questions import Question, read_questions, write_questions
from fortifai.errors import InputError

ROW = {
    "context": "A was born in",
    "sentence_true": "1900.",
    "sentence_false": "1950.",
    "location": 3,
}


def save(folder, rows, name="q.json"):
    text = (
        json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows)
    )
    (folder / name).write_text(text)
    return name


@pytest.mark.parametrize("name", ["q.json", "q.jsonl"])
def test_both_of_the_formats(tmp_path, name):
    found, notes = read_questions([save(tmp_path, [ROW], name)], root=tmp_path)
    assert found == [Question("A was born in", "1900.", "1950.", 3)]
    assert notes == []


def test_duplicates_count_once_and_are_told(tmp_path):
    other = ROW | {"context": "B was born in"}
    found, notes = read_questions([save(tmp_path, [ROW, ROW, other])], root=tmp_path)
    assert [q.context for q in found] == ["A was born in", "B was born in"]
    assert notes == ["q.json: 3 rows, 2 different; duplicates are counted once"]


def test_a_question_that_stands_again_keeps_its_first_place(tmp_path):
    """The authors' file repeats its first article's questions with every other location."""
    found, _ = read_questions([save(tmp_path, [ROW, ROW | {"location": 99}])], root=tmp_path)
    assert [q.location for q in found] == [3]


def test_files_keep_their_order_and_share_duplicates(tmp_path):
    one = save(tmp_path, [ROW | {"context": c} for c in "BA"], "1.jsonl")
    two = save(tmp_path, [ROW | {"context": c, "location": 9} for c in "CA"], "2.json")
    found, notes = read_questions([one, two], root=tmp_path)
    assert [(q.context, q.location) for q in found] == [("B", 3), ("A", 3), ("C", 9)]
    assert notes == ["2.json: 1 of 2 questions stand in an earlier file too; they are counted once"]


def test_ids_tell_questions_apart_and_pair_equal_ones():
    a = Question("c", "t", "f", 1)
    assert a.id == Question("c", "t", "f", 99).id
    assert len({a.id, Question("ct", "", "f", 1).id, Question("c", "f", "t", 1).id}) == 3


def test_written_questions_read_back(tmp_path):
    asked = [Question("é", "t", "f", 1, "Title"), Question("b", "t", "f", 2)]
    write_questions(tmp_path / "q.jsonl", asked)
    assert read_questions(["q.jsonl"], root=tmp_path)[0] == asked


def test_ids_are_those_of_the_format():
    """Written down so that runs of other versions can be compared."""
    digest = hashlib.sha256(b"c\x1ft\x1ff").hexdigest()
    assert Question("c", "t", "f", 1).id == digest[:12]


def test_gzip_and_one_object(tmp_path):
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROW).encode()))
    found, _ = read_questions(["q.jsonl.gz"], root=tmp_path)
    assert [q.context for q in found] == ["A was born in"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentence_true": None}, "has sentence_true None"),
        ({"context": " "}, "has context ' '"),
        ({"sentence_false": "x\ud800"}, "has half of a surrogate pair in sentence_false"),
        ({"sentence_false": "1900. "}, "has the same sentence_true and sentence_false"),
        ({"location": "3"}, "has location '3'"),
        ({"location": True}, "has location True"),
        ({"location": 3.0}, "has location 3.0"),
    ],
)
def test_impossible_rows(tmp_path, change, message):
    with pytest.raises(InputError, match=f"question 2, {message}"):
        read_questions([save(tmp_path, [ROW, ROW | change])], root=tmp_path)


def test_missing_fields_are_named_with_what_stands_there(tmp_path):
    row = {k: v for k, v in ROW.items() if k != "sentence_true"} | {"sentence_ture": "x"}
    with pytest.raises(
        InputError, match="question 1, has no field 'sentence_true'; did you mean 'sentence_ture'"
    ):
        read_questions([save(tmp_path, [row])], root=tmp_path)
    with pytest.raises(InputError, match="no field 'sentence_true' or 'sentence_false'"):
        read_questions([save(tmp_path, [{"context": "a", "location": 1}])], root=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "row 1, is a int"),
        ("[", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds an empty list"),
        ("{}", "question 1, has no field 'context'"),
        (json.dumps({"data": [ROW]}, indent=1), "question 1, has no field 'context'"),
        ("hello", "line 1, is not JSON"),
        ("", "is empty"),
    ],
)
def test_files_that_hold_no_questions(tmp_path, text, message):
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_questions(["q.json"], root=tmp_path)


def test_the_authors_questions_and_their_duplicates(real_data):
    found, notes = read_questions(["kr_test/kt_dataset_full.json"], root=real_data)
    rows = json.loads((real_data / "kr_test/kt_dataset_full.json").read_text("utf-8"))
    assert len(found) == 952
    assert notes == ["kt_dataset_full.json: 4,880 rows, 952 different; duplicates are counted once"]
    for question in found:
        first = next(r for r in rows if r["sentence_true"] == question.true)
        assert question.location == first["location"]
