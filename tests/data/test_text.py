import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fortifai.data.text import Corpus, Document, read_hub, read_text
from fortifai.errors import InputError

WIKI = " \n = First = \n \n Some text . \n = = Part = = \n More . \n = Second = \n Other text . \n"


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def test_a_plain_file_is_one_document(tmp_path):
    write(tmp_path, "a.txt", "one\ntwo\n")
    assert read_text(["a.txt"], root=tmp_path).documents == (Document("one\ntwo", "", 1),)


def test_wikitext_headings_start_documents_and_sub_headings_do_not(tmp_path):
    write(tmp_path, "wiki.raw", WIKI)
    corpus = read_text(["wiki.raw"], root=tmp_path)
    assert [(d.title, d.line) for d in corpus.documents] == [("First", 2), ("Second", 7)]
    assert "= = Part = =" in corpus.documents[0].text


def test_every_line_is_found_where_it_stands(tmp_path):
    write(tmp_path, "wiki.raw", WIKI)
    write(tmp_path, "more.txt", "x\u2028y\nz\n")  # a line separator that is no line feed
    corpus = read_text(["wiki.raw", "more.txt"], root=tmp_path)
    lines = (WIKI + "x\u2028y\nz").split("\n")
    for number, line in enumerate(lines, start=1):
        place = corpus.find_line(number)
        if number == 1:
            assert place is None  # blank, before the first heading
            continue
        document, offset = place
        text = corpus.documents[document].text
        assert text[offset : offset + len(line)] == line
        assert offset == 0 or text[offset - 1] == "\n"
    assert corpus.find_line(len(lines) + 1) is None
    assert corpus.find_line(0) is None


def test_rows_of_jsonl_parquet_and_gzip(tmp_path):
    rows = [{"text": "one", "n": 1}, {"text": "two", "n": 2}]
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    write(tmp_path, "a.jsonl", lines)
    write(tmp_path, "b.jsonl.gz", gzip.compress(lines.encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    write(tmp_path, "d.txt.gz", gzip.compress(b"three\n"))
    corpus = read_text(["*.jsonl", "b.jsonl.gz", "c.parquet", "d.txt.gz"], root=tmp_path)
    assert [d.text for d in corpus.documents] == ["one", "two"] * 3 + ["three"]
    assert [d.line for d in corpus.documents] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "there is no file 'gone.txt'"),
        ("empty.txt", b"  \n", "is empty"),
        ("binary.txt", b"ab\0cd", "is a binary file"),
        ("latin.txt", "café".encode("latin-1"), "not UTF-8: byte 0xe9 at offset 3"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', "line 2, is not JSON"),
        ("x.jsonl", b"[1]\n", "line 1, is a list"),
        ("x.jsonl", b'{"txet": "a"}\n', "no column 'text'; did you mean 'txet'"),
        ("x.jsonl", b'{"text": 3}\n', "is a int, not text"),
        ("x.jsonl", b'{"text": " "}\n', "holds no text"),
        ("x.parquet", b"not parquet", "is not a parquet file"),
        ("x.txt.gz", b"not gzip", "is not a whole gzip file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        write(tmp_path, name, content)
    with pytest.raises(InputError, match=message):
        read_text([name], root=tmp_path)


def test_a_hub_id_without_a_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"the data set nobody/nothing, split 'train', could not"):
        read_hub("nobody/nothing", config=None, split="train", column="text")


def test_rows_of_the_hub_with_wikitext_headings(monkeypatch):
    import datasets

    rows = datasets.Dataset.from_dict({"text": WIKI.splitlines(keepends=True)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: rows)
    corpus = read_hub("any", config=None, split="train", column="text")
    assert [(d.title, d.line) for d in corpus.documents] == [("First", 2), ("Second", 7)]
    with pytest.raises(InputError, match="no column 'txt'; did you mean 'text'"):
        read_hub("any", config=None, split="train", column="txt")


def test_all_of_wikitext2(real_data):
    corpus = read_text(["wikitext2/wiki.test.raw"], root=real_data)
    assert len(corpus.documents) == 62  # articles, as the data's README says
    raw = (real_data / "wikitext2/wiki.test.raw").read_text("utf-8")
    lines = raw.split("\n")
    assert corpus.documents[0].title == "Robert Boulter"
    for document in corpus.documents:
        assert lines[document.line - 1] == f" = {document.title} = "


def test_corpus_text_joins_documents():
    assert Corpus((Document("a"), Document("b")), "x").text == "a\nb"
