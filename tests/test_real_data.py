"""What `make data` does."""

from __future__ import annotations

from tests import real_data


def test_what_is_beside_is_copied_and_the_rest_is_named(tmp_path, monkeypatch):
    source, into = tmp_path / "a", tmp_path / "b"
    for name in ("blimp/x.jsonl.gz", "gsm8k/test.jsonl"):
        (source / name).parent.mkdir(parents=True)
        (source / name).write_text(name)
    monkeypatch.setenv("FORTIFAI_DATA", str(into))
    real_data.fetch(source, real_data.folder())
    assert (into / "blimp" / "x.jsonl.gz").read_text() == "blimp/x.jsonl.gz"
    lacking = real_data.missing(into)
    assert len(lacking) == len(real_data.SOURCES) - 2
    assert "wikitext2/wiki.test.raw: WikiText-2, raw, the test split" in lacking[0]
    (into / "gsm8k" / "test.jsonl").write_text("mine")
    real_data.fetch(source, into)  # what is there stays
    assert (into / "gsm8k" / "test.jsonl").read_text() == "mine"
