import json

import pytest

from fortifai.data.imagination import gsm8k, hellaswag, imagination
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
    wiki = Corpus((Document("a\nb\n\nc\nd\ne", "T", 5), Document("f\ng", "U", 20)), "wiki")
    made = imagination(wiki, corpus("h", 2), Corpus((Document("q\nr"), Document("s")), "g"), pieces=2)
    texts = {d.text: d.line for d in made.documents}
    assert texts == {"a": 5, "b": 6, "c": 8, "h0": 0, "h1": 0, "q r": 0, "s": 0}
    assert made.documents[made.find_line(8)[0]].text == "c"


def test_items_from_files(tmp_path):
    rows = [{"ctx": "He", "endings": ["runs.", "is."], "label": "1"}]
    (tmp_path / "h.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (tmp_path / "g.jsonl").write_text('{"question": "1+1?", "answer": "2\\n#### 2"}\n')
    assert hellaswag(root=tmp_path, files=["h.jsonl"]).documents[0].text == "He is."
    assert gsm8k(root=tmp_path, files=["g.jsonl"]).documents[0].text == "1+1? 2\n#### 2"
    with pytest.raises(InputError, match="HellaSwag, row 1, has no field 'ctx'"):
        hellaswag(root=tmp_path, files=["g.jsonl"])


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
