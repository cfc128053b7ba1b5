"""What a file is by its name and its content, in every place that reads files of users."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fortifai.cli.common import read_corpus
from fortifai.data import imagination
from fortifai.data.questions import read_questions
from fortifai.data.questions import read_rows as question_rows
from fortifai.data.text import read_text
from fortifai.errors import InputError
from fortifai.file_formats import file_format, read_rows, read_utf8
from fortifai.points.sources import read_points

TEXTS = ["The first of two.", "The second\u2028of two."]
ROWS = [{"text": text, "n": n} for n, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


def parquet(rows: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


FORMS = {
    "a.jsonl": LINES.encode(),
    "a.JSONL": LINES.encode(),
    "a.ndjson": LINES.encode(),
    "a.jsonlines": LINES.encode(),
    "lines.json": LINES.encode(),
    "list.json": json.dumps(ROWS, indent=1).encode(),
    "List.Json": json.dumps(ROWS).encode(),
    "a.parquet": parquet(ROWS),
    "a.Parquet": parquet(ROWS),
    "bom.ndjson": b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n\r\n").encode(),
}
PACKS = {"": lambda data: data, ".gz": gzip.compress, ".GZ": gzip.compress, ".zst": zstd}


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("name", FORMS)
def test_rows_whatever_the_suffix(name: str, pack: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}{pack}").write_bytes(PACKS[pack](FORMS[name]))
    corpus = read_text([f"{name}{pack}"], root=tmp_path)
    assert [d.text for d in corpus.documents] == TEXTS
    assert [d.line for d in corpus.documents] == [1, 2]
    assert read_rows(tmp_path / f"{name}{pack}") == ROWS


@pytest.mark.parametrize("name", ["wiki.test.raw", "wiki.valid.tokens", "README", "a.TXT", "a.md"])
@pytest.mark.parametrize("pack", PACKS)
def test_plain_text_whatever_the_suffix(name: str, pack: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}{pack}").write_bytes(PACKS[pack](b"one\ntwo {3}\n"))
    assert read_text([f"{name}{pack}"], root=tmp_path).text == "one\ntwo {3}"


def test_packed_files_are_known_without_their_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(zstd(b"one\n"))
    (tmp_path / "b.txt").write_bytes(gzip.compress(b"two\n"))
    assert read_text(["?.txt"], root=tmp_path).text == "one\ntwo"
    # frames one after the other, as tools that append write them
    (tmp_path / "c.zst").write_bytes(zstd(b"three\n") + zstd(b"four\n"))
    assert read_utf8(tmp_path / "c.zst") == "three\nfour\n"


@pytest.mark.parametrize(
    "name",
    [
        *("a.csv", "a.TSV", "a.csv.gz", "a.arrow", "a.html", "a.pdf", "a.bin", "a.npy", "a.yaml"),
        *("a.jsonc", "a.ipynb", "a.zip", "a.txt.bz2", "a.docx.zst"),
    ],
)
def test_what_is_surely_no_text_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"is no plain text by its name; give text") as caught:
        read_text([name], root=tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="holds no rows by its name"):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [LINES, json.dumps(ROWS, indent=2), json.dumps(ROWS[0]), "\n \n" + LINES, LINES.strip()],
)
@pytest.mark.parametrize("name", ["part-00000", "a.txt", "a.jsonl.bak", "a.jl"])
def test_rows_that_are_called_text_are_not_trained_on(
    name: str, content: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=r"plain text by its name and holds JSON; call it \.jsonl"):
        read_text([name], root=tmp_path)


@pytest.mark.parametrize(
    "text", ['{"a": 1} is an object\nand this is prose', "[1] a note", "{sic}", "[]", '["a", "b"]']
)
def test_text_with_brackets_is_text(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert read_text(["a.txt"], root=tmp_path).text == text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[]", "holds an empty list"),
        ("a.json", b'["a", "b"]', "row 1, is a str, not an object with fields"),
        ("a.json", b"3", "row 1, is a int"),
        ("a.json", b'[{"text": "a"},]', "is not JSON"),
        ("a.json", b'[{"text": "a"}]\n[{"text": "b"}]', "is not JSON"),
        ("a.json", b'{"text": "a"}\n{"text": "b"\n', "line 2, is not JSON"),
        ("a.json", b'{"rows": [{"text": "a"}]}', "no column 'text'; it has rows"),
        ("a.json", b" \n\n", "is empty"),
        ("a.jsonl", b'[{"text": "a"}]', "line 1, is a list"),
        ("a.ndjson", b'{"text": "a"}\nnull\n', "line 2, is a NoneType"),
        ("a.ndjson", b'{"text": "a", "text": "b"}', "line 1, .* key 'text' stands twice"),
        ("a.json", b'[{"text": "a", "m": {"k": 1, "k": 2}}]', "key 'k' stands twice"),
        ("a.ndjson", b'{"text": NaN}', "row 1: column 'text' is a float, not text"),
        ("a.ndjson", b'{"text": "a"}\n{"text": "\xe9"}', r"byte 0xe9 at offset 24, line 2;"),
        ("a.txt", b"a\nb\nc\0", r"NUL byte at offset 5, line 3\)"),
        ("a.jsonl.zst", b"no frame", "is not a whole zstd file: 8 bytes came"),
        ("a.jsonl.zst", zstd(LINES.encode())[:-3], "is not a whole zstd file"),
        ("a.parquet.gz", gzip.compress(b"none", mtime=0), "is not a whole parquet file"),
        ("a.parquet", parquet(ROWS[:1])[:-1], "is not a whole parquet file"),
    ],
)
def test_broken_rows_are_told(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_text([name], root=tmp_path)
    assert "\n" not in str(caught.value)


def test_two_parquet_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="two columns 'text'; rename one"):
        read_rows(tmp_path / "a.parquet")


def test_a_very_long_line_and_one_object(tmp_path: Path) -> None:
    long = "word " * 400_000
    (tmp_path / "a.json").write_text(json.dumps({"text": long}))
    assert read_text(["a.json"], root=tmp_path).text == long


QUESTION = {"context": "A\u2028was", "sentence_true": "1.", "sentence_false": "2.", "location": 3}


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("name", ["q.json", "q.NDJSON", "q.jsonl", "q.parquet", "q", "q.txt"])
def test_questions_are_read_by_the_same_rule(name: str, pack: str, tmp_path: Path) -> None:
    """A file whose name says nothing holds questions as .json does."""
    rows = [QUESTION, QUESTION | {"context": "B was"}]
    data = json.dumps(rows).encode()
    if name.endswith("parquet"):
        data = parquet(rows)
    elif name.lower().endswith(("jsonl", "ndjson")):
        data = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    (tmp_path / f"{name}{pack}").write_bytes(PACKS[pack](data))
    found, _ = read_questions([f"{name}{pack}"], root=tmp_path)
    assert [q.context for q in found] == ["A\u2028was", "B was"]
    assert question_rows(tmp_path / f"{name}{pack}") == found


def test_questions_of_another_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("context,location\nA,1\n")
    with pytest.raises(InputError, match=r"holds no rows by its name; give \.jsonl, \.ndjson"):
        question_rows(tmp_path / "q.csv")


def test_the_commands_read_texts_by_the_same_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What audit, threshold and kr are given as text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.JSON").write_text(json.dumps(ROWS))
    assert read_corpus("a.JSON", "text").text == "\n".join(TEXTS)
    (tmp_path / "a.tsv").write_text("text\nA\n")
    with pytest.raises(InputError, match="no plain text"):
        read_corpus("a.tsv", "text")


def test_imagination_reads_its_sources_by_the_same_rule(tmp_path: Path) -> None:
    rows = [{"question": "1 + 1?", "answer": "2"}]
    for name, data in {
        "g.json": json.dumps(rows).encode(),
        "g.NDJSON": json.dumps(rows[0]).encode(),
        "g.PARQUET": parquet(rows),
        "g.jsonl.zst": zstd(json.dumps(rows[0]).encode()),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert imagination.gsm8k(root=tmp_path, files=[name]).text == "1 + 1? 2"


def test_points_are_read_by_the_same_rule(tmp_path: Path) -> None:
    (tmp_path / "p.CSV.gz").write_bytes(gzip.compress(b"x,y\n1,2\n3,4\n"))
    assert read_points(["p.CSV.gz"], tmp_path).tolist() == [[1, 2], [3, 4]]


def test_what_a_name_says() -> None:
    told = file_format(Path("x/test.v1.JSONL.Gz"))
    assert (told.kind, told.packed, told.stem) == ("jsonl", "gzip", "test.v1")
    told = file_format(Path("wiki.test.raw"))
    assert (told.kind, told.packed, told.stem) == ("text", "", "wiki.test.raw")
