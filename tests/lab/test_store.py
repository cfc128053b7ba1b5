"""A chain on disk: whole or not there."""

from __future__ import annotations

import json

import pytest

from fortifai.lab.store import ChainStore, committing, inspect, read_jsonl, sha256, write_jsonl


@pytest.fixture
def store(tmp_path):
    store = ChainStore(tmp_path / "chain")
    for generation in (0, 1):
        with committing(store.path(generation), droppable=("model",)) as folder:
            (folder / "scores.jsonl").write_text(f'{{"g": {generation}}}\n')
            (folder / "model").mkdir()
            (folder / "model" / "weights").write_bytes(b"w" * 9)
    return store


def test_a_block_that_fails_leaves_what_was_there(store):
    before = sha256(store.path(0) / "scores.jsonl")

    def fails():
        with committing(store.path(0)) as folder:
            (folder / "scores.jsonl").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert sha256(store.path(0) / "scores.jsonl") == before
    assert inspect(store.path(0)).whole
    assert list(store.folder.glob("*.partial"))
    store.sweep()
    assert not list(store.folder.glob("*.partial"))
    assert store.committed() == [0, 1]


def test_what_a_killed_block_had_committed_is_there_when_it_goes_on(tmp_path):
    def killed(folder):
        with committing(folder) as partial:
            for name in ("whole", "damaged", "copied.partial"):
                with committing(partial / name) as inside:
                    (inside / "weights").write_bytes(b"w")
            (partial / "damaged" / "weights").write_bytes(b"v")
            (partial / "half").mkdir()
            (partial / "half" / "weights").write_bytes(b"w")
            (partial / "tokens").write_bytes(b"t")
            raise KeyboardInterrupt

    for goes_on, left in ((True, ["whole"]), (False, [])):
        folder = tmp_path / str(goes_on)
        with pytest.raises(KeyboardInterrupt):
            killed(folder)
        with committing(folder, goes_on=goes_on) as partial:
            assert [path.name for path in partial.iterdir()] == left
        assert inspect(folder).whole


def test_what_cannot_be_removed_is_not_committed(tmp_path, monkeypatch):
    """As on Windows, where another process has a file open."""
    (tmp_path / "run.partial" / "stale").mkdir(parents=True)
    monkeypatch.setattr("shutil.rmtree", lambda *args, **options: None)
    with pytest.raises(FileExistsError), committing(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def test_what_may_be_dropped_is_no_fault_and_what_may_not_is(store):
    assert inspect(store.path(1)).there == {"scores.jsonl", "model"}
    store.drop(1, "model")
    assert inspect(store.path(1)) == type(inspect(store.path(1)))(
        True, (), frozenset({"scores.jsonl"})
    )
    (store.path(1) / "scores.jsonl").unlink()
    found = inspect(store.path(1))
    assert not found.whole
    assert found.faults == (f"{store.path(1) / 'scores.jsonl'} is missing",)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("scores.jsonl", b'{"g": 2}\n', "has changed"),
        ("scores.jsonl", b"{}\n", "has 3 bytes instead of 9"),
        ("model/weights", b"v" * 9, "has changed"),
        ("manifest.json", b"[]", "is not a manifest"),
    ],
)
def test_damage_is_named(store, name, content, fault):
    (store.path(1) / name).write_bytes(content)
    (told,) = inspect(store.path(1)).faults
    assert str(store.path(1) / name) in told
    assert fault in told
    assert inspect(store.path(0)).whole


def test_a_chain_without_a_manifest_is_not_committed(store):
    (store.path(1) / "manifest.json").unlink()
    assert store.committed() == [0]
    assert store.sum_of(0, "scores.jsonl") == sha256(store.path(0) / "scores.jsonl")
    assert store.sum_of(1, "scores.jsonl") == sha256(store.path(1) / "scores.jsonl")
    assert store.sum_of(1, "gone") is None
    store.forget(0)
    assert store.committed() == []


def test_an_end_is_told_and_taken_back(store):
    assert store.ended() is None
    store.end(2, "the variance has diverged")
    end = store.ended()
    assert (end.generation, end.reason) == (2, "the variance has diverged")
    store.end(1, "too early")
    with pytest.raises(ValueError, match=r"says 1, and generation \[1\] is there"):
        store.ended()
    (store.folder / "ended.json").write_text(json.dumps({"generation": "x"}))
    with pytest.raises(ValueError, match="cannot be read"):
        store.ended()
    store.go_on()
    assert store.ended() is None


def test_what_is_stale_is_done_again(store):
    assert store.stale() == set()
    store.set_stale([1])
    assert store.stale() == {1}
    (store.folder / "stale.json").write_text("{")
    assert store.stale() == {0, 1}  # damaged: all again
    store.set_stale([])
    assert store.stale() == set()


def test_rows_come_back(tmp_path):
    rows = [{"text": "a\u2028b", "x": 1.5}, {"text": "", "x": None}]
    write_jsonl(tmp_path / "r.jsonl", rows)
    assert read_jsonl(tmp_path / "r.jsonl") == rows
