import json

import pytest

from fortifai.data.questions import Question, read_questions, write_questions
from fortifai.errors import InputError

ROW = {"context": "A was born in", "sentence_true": "1900.", "sentence_false": "1950.", "location": 3}


def save(folder, rows, name="q.json"):
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows)
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


def test_ids_tell_questions_apart_and_pair_equal_ones():
    a = Question("c", "t", "f", 1)
    assert a.id == Question("c", "t", "f", 99).id
    assert len({a.id, Question("ct", "", "f", 1).id, Question("c", "f", "t", 1).id}) == 3


def test_written_questions_read_back(tmp_path):
    asked = [Question("é", "t", "f", 1, "Title"), Question("b", "t", "f", 2)]
    write_questions(tmp_path / "q.jsonl", asked)
    assert read_questions(["q.jsonl"], root=tmp_path)[0] == asked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentence_true": None}, "sentence_true is None"),
        ({"context": " "}, "context is ' '"),
        ({"sentence_false": "1900. "}, "are the same"),
        ({"location": "3"}, "location is '3'"),
        ({"location": True}, "location is True"),
    ],
)
def test_impossible_rows(tmp_path, change, message):
    with pytest.raises(InputError, match=f"question 2.*{message}"):
        read_questions([save(tmp_path, [ROW, ROW | change])], root=tmp_path)


def test_a_missing_field_is_named_with_what_stands_there(tmp_path):
    row = {k: v for k, v in ROW.items() if k != "sentence_true"} | {"sentence_ture": "x"}
    with pytest.raises(InputError, match="no field 'sentence_true'; did you mean 'sentence_ture'"):
        read_questions([save(tmp_path, [row])], root=tmp_path)


@pytest.mark.parametrize("text", ["[1]", "[", "{}", "[]", "hello"])
def test_files_that_hold_no_questions(tmp_path, text):
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(InputError):
        read_questions(["q.json"], root=tmp_path)


def test_the_authors_questions_and_their_duplicates(real_data):
    found, notes = read_questions(["kr_test/kt_dataset_full.json"], root=real_data)
    assert len(found) == 952
    assert notes == ["kt_dataset_full.json: 4,880 rows, 952 different; duplicates are counted once"]
