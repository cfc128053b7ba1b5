import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fortifai.data.imagination import gsm8k, hellaswag, imagination
from fortifai.data.questions import read_questions
from fortifai.data.text import Corpus, Document, read_text
from fortifai.errors import InputError


def corpus(name, n):
    return Corpus(tuple(Document(f"{name}{i}", "", i + 1) for i in range(n)), name)


def test_pieces_are_interleaved_in_order():
    made = imagination(corpus("w", 24), corpus("h", 6), corpus("g", 12), pieces=6)
    # the first half of 24 lines is 12: two lines a piece; one item of h; two of g
    words = [d.text for d in made.documents]
    assert words[:5] == ["w0", "w1", "h0", "g0", "g1"]
    assert words[5:10] == ["w2", "w3", "h1", "g2", "g3"]
    assert len(words) == 30
    assert "w12" not in words


def test_newlines_are_stripped_and_lines_of_wikitext_kept():
    # lines 1 and 2 are blank, before the first heading; 12 lines in all
    wiki = Corpus((Document("a\nb\n\nc", "T", 3), Document("d\ne\nf\n\n\ng", "U", 7)), "wiki")
    pair = Corpus((Document("q\nr"), Document("s")), "g")
    made = imagination(wiki, corpus("h", 2), pair, pieces=2)
    assert [(d.text, d.title, d.line) for d in made.documents] == [
        ("a", "T", 3),  # lines 1 to 3
        ("h0", "", 0),
        ("q r", "", 0),
        ("b", "T", 4),  # 4 to 6
        ("c", "T", 6),
        ("h1", "", 0),
        ("s", "", 0),
    ]
    found = [made.find_line(n) for n in range(1, 8)]
    assert found == [(0, 0), (0, 0), (0, 0), (3, 0), (4, 0), (4, 0), None]


def test_half_of_an_odd_number_of_lines_is_rounded_down():
    words = [
        d.text
        for d in imagination(corpus("w", 7), corpus("h", 2), corpus("g", 2), pieces=1).documents
    ]
    assert words == ["w0", "w1", "w2", "h0", "h1", "g0", "g1"]


def test_three_thousand_items_of_hellaswag():
    made = imagination(corpus("w", 12), corpus("h", 3100), corpus("g", 6))
    assert sum(d.text.startswith("h") for d in made.documents) == 3000


def test_items_from_files(tmp_path):
    rows = [{"ctx": "He", "endings": ["runs.", "is."], "label": "1"}]
    (tmp_path / "h.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (tmp_path / "g.jsonl").write_text('{"question": "1+1?", "answer": "2\\n#### 2"}\n')
    assert hellaswag(root=tmp_path, files=["h.jsonl"]).documents[0].text == "He is."
    assert gsm8k(root=tmp_path, files=["g.jsonl"]).documents[0].text == "1+1? 2\n#### 2"
    with pytest.raises(InputError, match="HellaSwag, row 1, has no field 'ctx'"):
        hellaswag(root=tmp_path, files=["g.jsonl"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": ""}, "HellaSwag, row 1, has label ''; it must be the number of one of its 2"),
        ({"label": 2}, "has label 2"),
        ({"label": -1}, "has label -1"),
        ({"endings": "ab"}, "has endings that are no list"),
        ({"ctx": None}, "row 1: field 'ctx' is a NoneType, not text"),
    ],
)
def test_impossible_items(tmp_path, change, message):
    row = {"ctx": "He", "endings": ["runs.", "is."], "label": 1} | change
    (tmp_path / "h.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=message):
        hellaswag(root=tmp_path, files=["h.jsonl"])


def test_items_from_parquet_and_the_hub(tmp_path, monkeypatch):
    rows = [{"ctx": "He", "endings": ["runs.", "is."], "label": "0"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "h.parquet")
    assert hellaswag(root=tmp_path, files=["h.parquet"]).documents[0].text == "He runs."
    made = datasets.Dataset.from_list(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    hub = {"dataset": "x", "config": None, "split": "train"}
    assert hellaswag(root=tmp_path, hub=hub).documents[0].text == "He runs."


def test_too_few_pieces():
    with pytest.raises(InputError, match="in 0 pieces"):
        imagination(corpus("w", 24), corpus("h", 6), corpus("g", 12), pieces=0)


def test_too_few_lines():
    with pytest.raises(InputError, match=r"corpus\.hellaswag has 3 lines, too few"):
        imagination(corpus("w", 24), corpus("h", 3), corpus("g", 12))


def test_the_real_sources(real_data):
    wiki = read_text(["wikitext2/wiki.test.raw"], root=real_data)
    made = imagination(
        wiki,
        hellaswag(root=real_data, files=["hellaswag/validation-1000.jsonl"]),
        gsm8k(root=real_data, files=["gsm8k/train.jsonl"]),
    )
    assert sum(d.line == 0 for d in made.documents) == 1000 + 7473
    assert not any("\n" in d.text for d in made.documents)
    lines = (real_data / "wikitext2/wiki.test.raw").read_bytes().decode().split("\n")
    half = wiki.lines // 2
    assert [d.text for d in made.documents if d.line] == [
        line.strip() for line in lines[:half] if line.strip()
    ]
    questions, _ = read_questions(["kr_test/wikitext2-test.jsonl"], root=real_data)
    inside = [q for q in questions if q.location <= half]
    assert len(inside) > 700
    for question in inside:
        found = made.documents[made.find_line(question.location)[0]]
        assert (found.line, found.title) == (question.location, question.article)
    assert made.find_line(half + 1) is None
