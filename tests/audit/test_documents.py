"""Files of every form in pieces: the same documents, each with its row, and faults with theirs."""

import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fortifai.audit import pieces
from fortifai.audit.documents import Fields, decode
from fortifai.errors import InputError

TEXTS = ["one two", None, "", "three\nfour", "fünf 六"]


def found(path, fields=None):
    """(row, text) of all documents, and the faults."""
    fields = fields or Fields()
    (name,) = pieces.sources([path], fields, path.parent)
    rows = [decode(piece, fields) for piece in pieces.pieces(name, 0, fields)]
    documents = [pair for r in rows for pair in zip(r.numbers, r.texts, strict=True)]
    return documents, [fault for r in rows for fault in r.bad], rows


def packed(data, how):
    if how == ".gz":
        # two members, as tools that append write them
        return gzip.compress(data[:9]) + gzip.compress(data[9:])
    if how == ".zst":
        return pa.compress(data, codec="zstd", asbytes=True)
    return data


@pytest.mark.parametrize("how", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "list.json", "lines.json"])
def test_rows_of_every_form_of_json(kind, how, tmp_path):
    rows = [{"text": text, "id": i} for i, text in enumerate(TEXTS)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    data = json.dumps(rows, indent=2, ensure_ascii=False) if kind == "list.json" else lines
    path = tmp_path / f"a.{kind}{how}"
    path.write_bytes(packed(b"\xef\xbb\xbf" + data.encode(), how))
    documents, bad, _ = found(path)
    assert documents == list(enumerate(TEXTS, start=1))
    assert bad == []


def test_a_list_longer_than_a_block_and_a_value_longer_than_several(tmp_path, monkeypatch):
    rows = [{"text": "é" * n} for n in (3, 5000, 1, 700)] * 5
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False))
    monkeypatch.setattr(pieces, "_READ", 101)  # cuts characters, too
    documents, _, _ = found(tmp_path / "a.json")
    assert [text for _, text in documents] == [row["text"] for row in rows]
    (tmp_path / "b.json").write_text(json.dumps(rows)[:-2] + ",,}")
    with pytest.raises(InputError, match=r"b.json, row 20, is not JSON"):
        found(tmp_path / "b.json")


TORN = [
    ('[{"text": "a"}, {"text": "b"},', "ends within its list, behind row 2; give it whole"),
    ('[{"text": "a"}', "ends within its list, behind row 1; give it whole"),
    ('[{"text": "a"}, {"text": "b', "row 2, is not JSON (Unterminated string"),
    ('[{"text": "a"}, nul', "row 2, is not JSON (Expecting value"),
    ("[", "ends within its list, behind row 0; give it whole"),
    ('[{"text": "a"} {"text": "b"}]', "row 1, has '{' behind it; repair the file"),
    ('[{"text": "a"},, {"text": "b"}]', "row 2, is not JSON (Expecting value"),
    ('[{"text": "a"}], {"text": "b"}', "row 1, has ',' behind it; repair the file"),
    ('[{"text": "a"}]]', "row 1, has ']' behind it; repair the file"),
    ('{"text":\n"a"}\n{"text": "b"}', "row 1, has '{' behind it; repair the file"),
    ("[" + '{"a":' * 99_999, "row 1, is not JSON (maximum recursion depth"),
    ('[{"text": "a"}]\udcc3', "is not UTF-8: byte 0xc3"),
]


@pytest.mark.parametrize("read", [1, 7, 1 << 20])
@pytest.mark.parametrize(("text", "words"), TORN)
def test_a_list_that_is_torn_or_none_is_not_read_as_if_it_were_whole(
    text, words, read, tmp_path, monkeypatch
):
    (tmp_path / "a.json").write_text(text, errors="surrogateescape")
    monkeypatch.setattr(pieces, "_READ", max(read, len(text) // 50))
    with pytest.raises(InputError) as error:
        found(tmp_path / "a.json")
    assert words in str(error.value)


def test_a_fault_in_a_list_is_found_where_it_stands(tmp_path, monkeypatch):
    """Not by reading all that is behind it, which may be larger than the memory."""
    monkeypatch.setattr(pieces, "_READ", 100)
    (tmp_path / "a.json").write_text('[{"text" "a"},' + '{"text": "b"},' * 10_000)
    (source,) = pieces.sources([tmp_path / "a.json"], Fields(), tmp_path)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"row 1, is not JSON"):
        list(pieces.pieces(source, 0, Fields()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000  # of 150,000 bytes; an open file has a buffer


def test_blank_lines_are_no_rows_and_lines_keep_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "_READ", 7)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\n \r\n{"text": "b"}\r\n{"text": "c"}')
    assert found(tmp_path / "a.jsonl")[0] == [(1, "a"), (4, "b"), (5, "c")]


TYPES = {
    "string": pa.array(TEXTS),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "string_view": pa.array(TEXTS, pa.string_view()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
}


@pytest.mark.parametrize("kind", TYPES)
def test_parquet_columns_of_every_kind_of_text(kind, tmp_path):
    table = pa.table({"text": TYPES[kind], "other": pa.array(range(5))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert found(tmp_path / "a.parquet")[0] == list(enumerate(TEXTS, start=1))


CHAT = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"messages": [{"role": "assistant", "content": "b"}, {"role": "assistant", "content": None}]},
    {"messages": []},
    {"messages": None},
]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_paths_into_lists_and_structs(ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(CHAT), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in CHAT))
    every = found(path, Fields("messages[].content"))[0]
    assert [text for _, text in every] == ["q\na", "b", None, None]
    one = found(path, Fields("messages[].content", role="assistant"))[0]
    assert [text for _, text in one] == ["a", "b", None, None]


def test_sources_and_detectors_at_paths(tmp_path):
    rows = [
        {"text": "a", "meta": {"source": "web", "ai": 0.5}},
        {"text": "b", "meta": {"source": None}},
        {"text": "c"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, _, (piece,) = found(tmp_path / "a.jsonl", Fields(by="meta.source", detector="meta.ai"))
    assert (piece.by, piece.detector) == (["web", "", ""], [0.5, None, None])


def test_plain_text_is_cut_into_passages_at_line_ends(tmp_path):
    lines = [f"{i} " + "word " * 30 for i in range(9)]
    long = " ".join(f"w{i}" for i in range(650))
    (tmp_path / "a.txt").write_text("\n\n".join([*lines, long]))
    documents, _, _ = found(tmp_path / "a.txt")
    assert " ".join(text for _, text in documents).split() == " ".join([*lines, long]).split()
    sizes = [len(text.split()) for _, text in documents]
    assert all(100 <= size <= 200 for size in sizes[:-1])
    assert documents[1][0] == 9  # the fifth line of text, each with a blank one behind it


FAULTS = [
    (b'{"text": "a"}\n{oops\n', (2, "is not JSON")),
    (b'{"text": "a"}\n\n[1]\n', (3, "is a list, not an object")),
    (b'{"text": 3}\n', (1, "has a int in 'text', which is not text")),
    (b'{"text": {"a": "b"}}\n', (1, "has a dict in 'text', which is not text; name one part")),
    (b'{"text": "\\ud800"}\n', (1, "half of a surrogate pair")),
    (b'{"text": "\xff"}\n', (1, "is not JSON")),
]


@pytest.mark.parametrize(("data", "fault"), FAULTS)
def test_rows_that_are_none_are_named(data, fault, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(data)
    _, ((row, words),), _ = found(tmp_path / "a.jsonl")
    assert row == fault[0]
    assert fault[1] in words


REFUSED = [
    ("a.jsonl", b"", "is empty"),
    ("a.jsonl", b"\0\1", "is a binary file (a NUL byte at offset 0)"),
    ("a.txt", b"\xff\xfea\0", "is UTF-16"),
    ("a.txt", b'{"text": "a"}\n', "is plain text by its name and holds JSON"),
    ("a.csv", b"a,b\n", "holds neither rows nor plain text by its name"),
    ("a.parquet", b"PAR1oops", "is not a whole parquet file"),
    (
        "a.jsonl.gz",
        gzip.compress(b'{"text": "a"}\n' * 999, mtime=0)[:40],
        "is not a whole gzip file",
    ),
    ("a.jsonl.zst", pa.compress(b"{}" * 9, codec="zstd", asbytes=True)[:14], "a whole zstd file"),
    ("a.txt", b"caf\xe9\n", "is not UTF-8: byte 0xe9 in line 1"),
]


@pytest.mark.parametrize(("name", "data", "words"), REFUSED)
def test_files_that_are_none(name, data, words, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as error:
        found(tmp_path / name)
    assert words in str(error.value)


def test_a_shard_without_the_column_is_named_before_work(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"txt": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b.parquet has no column 'text'; did you mean 'txt'"):
        pieces.sources(["*.parquet"], Fields(), tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": "a..b"}, "names no field"),
        ({"text": "messages", "role": "user"}, "--role picks parts of a list"),
    ],
)
def test_paths_that_are_none(fields, words):
    with pytest.raises(InputError, match=words):
        Fields(**fields)


def test_data_sets_of_the_hub_are_named_as_such(tmp_path, monkeypatch):
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    asked = []
    monkeypatch.setattr(
        pieces, "hub_rows", lambda name, config, split: asked.append((name, config, split)) or rows
    )
    for source in ("hub:owner/name", "hub:owner/name:en@test"):
        (name,) = pieces.sources([source], Fields(), tmp_path)
        (piece,) = pieces.pieces(name, 0, Fields())
        assert decode(piece, Fields()).texts == ["a", "b"]
    assert asked == [("owner/name", None, "train"), ("owner/name", "en", "test")]
    with pytest.raises(InputError, match="names no data set"):
        pieces.sources(["hub:"], Fields(), tmp_path)
