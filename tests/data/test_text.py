import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fortifai.data.questions import read_questions
from fortifai.data.text import Corpus, Document, read_hub, read_text
from fortifai.errors import InputError

WIKI = " \n = First = \n \n Some text . \n = = Part = = \n More . \n = Second = \n Other text . \n"
ROWS = ["", " = A = \n", "", " Of a . \n", " More . \n", "", " = B = \n", "", " Of b . \n"]


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def line_at(corpus, number):
    """The title of the document and the line that a location leads to."""
    index, offset = corpus.find_line(number)
    text = corpus.documents[index].text
    assert offset == 0 or text[offset - 1] == "\n"
    return corpus.documents[index].title, text[offset:].split("\n")[0]


def test_a_plain_file_is_one_document(tmp_path):
    write(tmp_path, "a.txt", "one\ntwo\n")
    corpus = read_text(["a.txt"], root=tmp_path)
    assert corpus.documents == (Document("one\ntwo", "", 1),)
    assert corpus.lines == 2


def test_byte_order_mark_and_carriage_returns_are_no_text(tmp_path):
    write(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_text(["a.txt"], root=tmp_path).text == "one\ntwo"


def test_wikitext_headings_start_documents_and_sub_headings_do_not(tmp_path):
    write(tmp_path, "wiki.raw", WIKI)
    corpus = read_text(["wiki.raw"], root=tmp_path)
    assert [(d.title, d.line) for d in corpus.documents] == [("First", 2), ("Second", 7)]
    assert "= = Part = =" in corpus.documents[0].text


@pytest.mark.parametrize("blank", ["\n", "\n\n"])
def test_formulas_that_look_like_headings_start_no_document(tmp_path, blank):
    """WikiText as it comes, and as in copies that write two line feeds for each of its own."""
    lines = [
        "",
        " = A = ",
        "",
        " where L ",
        " = 1 henry = ",
        " 2 farad . ",
        "",
        " = B = ",
        "",
        " b ",
    ]
    write(tmp_path, "wiki.raw", blank.join(lines))
    corpus = read_text(["wiki.raw"], root=tmp_path)
    assert [d.title for d in corpus.documents] == ["A", "B"]


def test_every_line_is_found_where_it_stands(tmp_path):
    write(tmp_path, "wiki.raw", WIKI)
    write(tmp_path, "more.txt", "x\u2028y\nz\n")  # a line separator that is no line feed
    corpus = read_text(["wiki.raw", "more.txt"], root=tmp_path)
    where = [line_at(corpus, n) for n in range(1, 11)]
    assert where == [
        ("First", " = First = "),  # blank lines stand for what comes next
        ("First", " = First = "),
        ("First", " Some text . "),
        ("First", " Some text . "),
        ("First", " = = Part = = "),
        ("First", " More . "),
        ("Second", " = Second = "),
        ("Second", " Other text . "),
        ("", "x\u2028y"),
        ("", "z"),
    ]
    assert corpus.lines == 10
    assert corpus.find_line(11) is None
    assert corpus.find_line(0) is None


@given(
    st.lists(
        st.sampled_from(["", " ", "a", " = H = ", " = = S = = ", "x\x85y", "\u2028", "é = "]),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 3),
)
def test_a_location_leads_to_the_first_line_with_text(tmp_path_factory, lines, files):
    folder = tmp_path_factory.mktemp("corpus")
    if not "".join(lines).strip():
        lines = [*lines, "end"]
    for i in range(files):
        write(folder, f"{i}.txt", "\n".join(lines) + "\n")
    corpus = read_text(["*.txt"], root=folder)
    every = lines * files
    assert corpus.lines == len(every)
    for number in range(1, len(every) + 1):
        expected = next((line for line in every[number - 1 :] if line.strip()), None)
        if expected is None:
            assert corpus.find_line(number) is None
        else:
            assert line_at(corpus, number)[1] == expected


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


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_without_text_make_no_document_but_count(tmp_path, kind):
    rows = [{"body": "a\nb"}, {"body": ""}, {"body": None}, {"body": "c"}]
    if kind == "jsonl":
        write(tmp_path, "x.jsonl", "\n\n".join(json.dumps(r) for r in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    corpus = read_text([f"x.{kind}"], root=tmp_path, column="body")
    assert [(d.text, d.line) for d in corpus.documents] == [("a\nb", 1), ("c", 4)]
    # row 1 is one line though its text has two
    assert [corpus.find_line(n) for n in range(6)] == [None, (0, 0), (1, 0), (1, 0), (1, 0), None]


def test_files_in_order_each_once(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ["b.txt", "a.txt", "sub/c.txt", "d[1].txt"]:
        write(tmp_path, name, name)
    corpus = read_text(["d[1].txt", "**/*.txt", tmp_path / "b.txt"], root=tmp_path)
    assert [d.text for d in corpus.documents] == ["d[1].txt", "a.txt", "b.txt", "sub/c.txt"]
    absolute = read_text([str(tmp_path / "*.txt")], root=tmp_path / "sub")
    assert [d.text for d in absolute.documents] == ["a.txt", "b.txt", "d[1].txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "there is no file 'gone.txt'"),
        ("gone*.txt", None, r"there is no file 'gone\*.txt'"),
        (".", None, "'.' is a folder"),
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b"\xef\xbb\xbf  \n", "is empty"),
        ("binary.txt", b"ab\0cd", "is a binary file .a NUL byte at offset 2"),
        ("late.txt", b"a" * 100_000 + b"\0", "is a binary file .a NUL byte at offset 100000"),
        ("wide.txt", "text".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("latin.txt", "café".encode("latin-1"), "not UTF-8: byte 0xe9 at offset 3"),
        ("bom.txt", b"\xef\xbb\xbfab\xff", "not UTF-8: byte 0xff at offset 5"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', "line 2, is not JSON"),
        ("x.jsonl", b"[" * 100_000, "line 1, is not JSON"),
        ("x.jsonl", b"[1]\n", "line 1, is a list"),
        ("x.jsonl", b'{"txet": "a"}\n', "no column 'text'; did you mean 'txet'.; it has txet"),
        ("x.jsonl", b'{"text": 3}\n', "row 1: column 'text' is a int, not text"),
        ("x.jsonl", b'{"text": "a\\ud800"}\n', "row 1: column 'text' holds half of a surrogate"),
        ("x.jsonl", b'{"text": " "}\n', "holds no text"),
        ("x.parquet", b"not parquet", "is not a whole parquet file"),
        ("x.parquet", b"", "is not a whole parquet file"),
        ("x.txt.gz", b"not gzip", "is not a whole gzip file"),
        ("x.txt.gz", gzip.compress(bytes(range(99)), mtime=0)[:-20], "is not a whole gzip file"),
        (
            "x.txt.gz",
            gzip.compress(b"a" * 99, mtime=0)[:10] + b"\xff" * 30,
            "is not a whole gzip file",
        ),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        write(tmp_path, name, content)
    with pytest.raises(InputError, match=message) as raised:
        read_text([name], root=tmp_path)
    assert "\n" not in str(raised.value)


def test_a_column_that_a_parquet_file_lacks(tmp_path):
    pq.write_table(pa.table({"body": ["a"], "label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"no column 'bodi'; did you mean 'body'\?; it has body"):
        read_text(["x.parquet"], root=tmp_path, column="bodi")
    with pytest.raises(InputError, match="column 'label' is a int, not text"):
        read_text(["x.parquet"], root=tmp_path, column="label")


def test_a_hub_id_without_a_network(monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        InputError, match=r"the data set nobody/nothing, split 'train', could not"
    ) as e:
        read_hub("nobody/nothing", config=None, split="train", column="text")
    assert "there is a network" in str(e.value)
    assert "\n" not in str(e.value)


def test_rows_of_the_hub_with_wikitext_headings(monkeypatch, tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"text": ROWS})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    corpus = read_hub("any", config=None, split="train", column="text")
    assert [(d.title, d.line) for d in corpus.documents] == [("A", 2), ("B", 7)]
    assert corpus.lines == len(ROWS)
    # ForTIFAI's authors locate a question at its article's heading, counted from 0
    assert [line_at(corpus, ROWS.index(f" = {t} = \n"))[0] for t in "AB"] == ["A", "B"]
    with pytest.raises(InputError, match="no column 'txt'; did you mean 'text'"):
        read_hub("any", config=None, split="train", column="txt")
    # a copy of the same data set on disk reads the same
    pq.write_table(pa.table({"text": ROWS}), tmp_path / "train.parquet")
    assert read_text(["train.parquet"], root=tmp_path).documents == corpus.documents


def test_rows_of_the_hub_that_are_documents(monkeypatch):
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["a\nb", "", "c"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    corpus = read_hub("any", config=None, split="train", column="text")
    assert [(d.text, d.line) for d in corpus.documents] == [("a\nb", 1), ("c", 3)]


@pytest.mark.parametrize("kind", ["jsonl", "json", "ndjson", "parquet"])
@pytest.mark.parametrize(
    "odd",
    [
        ["= x ="],
        ["= x =", "= y ="],
        ["", "= x =", ""],
        ["", "= x =", "", "", "= y =", ""],  # far fewer blank rows than WikiText has
        [*[""] * 80, "= x ="],  # a table with many empty texts
    ],
)
def test_a_row_that_looks_like_a_heading_is_one_document(tmp_path, kind, odd):
    rows = [f"Text number {n} has one line." for n in range(100)]
    rows = [{"text": text} for text in [*rows[:50], *odd, *rows[50:]]]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    else:
        write(tmp_path, f"x.{kind}", "\n".join(map(json.dumps, rows)))
    corpus = read_text([f"x.{kind}"], root=tmp_path)
    texts = [(n, row["text"]) for n, row in enumerate(rows, start=1) if row["text"]]
    assert [(d.line, d.text) for d in corpus.documents] == texts
    for index, (number, _) in enumerate(texts):
        assert corpus.find_line(number) == (index, 0)


def test_what_rows_are_can_be_said(tmp_path):
    """Lines of a part of WikiText, of one article, or as .jsonl: nothing else tells them apart."""
    rows = [" Of a . \n", "", " = B = \n", "", " Of b . \n", " More\nof b . \n"]
    write(tmp_path, "x.jsonl", "\n".join(json.dumps({"text": row}) for row in rows))
    pq.write_table(pa.table({"text": rows}), tmp_path / "x.parquet")
    pq.write_table(pa.table({"text": ROWS}), tmp_path / "wiki.parquet")
    for name in ("x.jsonl", "x.parquet"):
        lines = read_text([name], root=tmp_path, rows="lines")
        assert [(d.title, d.line) for d in lines.documents] == [("", 1), ("B", 3)]
        # a line feed within a row moves nothing
        assert lines.find_line(6) == (1, lines.documents[1].text.index(" More"))
        assert len(read_text([name], root=tmp_path).documents) == 4
    assert len(read_text(["wiki.parquet"], root=tmp_path).documents) == 2
    assert len(read_text(["wiki.parquet"], root=tmp_path, rows="documents").documents) == 5
    # .jsonl is never taken for WikiText
    write(tmp_path, "wiki.jsonl", "\n".join(json.dumps({"text": row}) for row in ROWS))
    assert len(read_text(["wiki.jsonl"], root=tmp_path).documents) == 5


def test_the_yaml_says_what_rows_are(tmp_path):
    from fortifai.text.sources import TextFiles

    write(tmp_path, "x.jsonl", "\n".join(json.dumps({"text": row}) for row in ROWS))
    told = {"kind": "text", "files": ["x.jsonl"], "held_out": ["x.jsonl"]}
    for rows, count in ((None, 5), ("documents", 5), ("lines", 2)):
        found = TextFiles(**told, rows=rows).read(tmp_path)
        assert len(found.corpus.documents) == len(found.held_out.documents) == count
    with pytest.raises(ValueError, match="documents"):
        TextFiles(**told, rows="articles")


def test_all_of_wikitext2(real_data):
    corpus = read_text(["wikitext2/wiki.test.raw"], root=real_data)
    lines = (real_data / "wikitext2/wiki.test.raw").read_bytes().decode().split("\n")
    # two of the 62 lines that look like headings are formulas of the article on filters
    assert len(corpus.documents) == 60
    assert not any(d.title.startswith("1 ") for d in corpus.documents)
    for document in corpus.documents:
        assert lines[document.line - 1] == f" = {document.title} = "
    assert corpus.text == "\n".join(lines[1:-1])  # but for the blank first line, all is there
    assert len(read_text(["wikitext2/wiki.valid.tokens"], root=real_data).documents) == 60


def test_every_real_question_stands_in_its_article(real_data):
    corpus = read_text(["wikitext2/wiki.test.raw"], root=real_data)
    lines = (real_data / "wikitext2/wiki.test.raw").read_bytes().decode().split("\n")
    questions, notes = read_questions(["kr_test/wikitext2-test.jsonl"], root=real_data)
    assert (len(questions), notes) == (1562, [])
    for question in questions:
        expected = (question.article, lines[question.location - 1])
        assert line_at(corpus, question.location) == expected


def test_corpus_text_joins_documents():
    assert Corpus((Document("a"), Document("b")), "x").text == "a\nb"
