import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fortifai.errors import InputError
from fortifai.lab import regimes
from fortifai.lab.loop import recurse
from fortifai.lab.progress import Silent
from fortifai.lab.seeds import derive
from fortifai.lab.store import ChainStore, inspect, locked, read_jsonl
from tests.commands import killed, needs_kill
from tests.lab import toy


def run(folder, told=None, **changes):
    store = ChainStore(folder)
    recurse(toy.chain(**changes), store, Silent(), (told if told is not None else []).append)
    return store


def digest(folder: Path) -> dict[str, str]:
    """Sum of every file of a finished chain, manifests included."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_the_loop_is_algorithm_1(tmp_path):
    store = run(tmp_path, generations=3, save_weights="all")
    chain = toy.chain(generations=3)
    # written out by hand for three generations, without the loop's code
    weights, parts = 0.0, {}
    for i in range(3):
        train = [parts.get((k, i - k), chain.real[k]) for k in range(i + 1)]
        weights = float(np.concatenate(train).mean()) + weights / 1000
        for k in range(i + 1):
            noise = np.random.default_rng(derive(0, i, "regenerate", k)).normal(size=64)
            parts[k, i - k + 1] = weights + noise
        written = load_file(str(store.path(i) / "samples.safetensors"))
        assert sorted(written) == [f"split-{k}" for k in range(i + 1)]
        for k in range(i + 1):
            np.testing.assert_array_equal(written[f"split-{k}"], parts[k, i - k + 1])
        scores = {s["measure"]: s["value"] for s in read_jsonl(store.path(i) / "scores.jsonl")}
        assert scores == {"mean": weights, "fits": i + 1}


@pytest.mark.parametrize(("start", "fits"), [("previous", 3), ("base", 1), ("scratch", 1)])
def test_where_a_generation_starts(tmp_path, start, fits):
    store = run(tmp_path, generations=3, init_from=start)
    scores = {s["measure"]: s["value"] for s in read_jsonl(store.path(2) / "scores.jsonl")}
    assert scores["fits"] == fits


def test_the_ledger_counts_what_was_trained_on(tmp_path):
    store = run(tmp_path, generations=4)
    shares = []
    for g in range(4):
        ledger = json.loads((store.path(g) / "ledger.json").read_text())
        assert ledger["real"] == 64
        assert ledger["generated"] == 64 * g
        shares.append(ledger["real_share"])
    assert shares == [1, 1 / 2, 1 / 3, 1 / 4]


def test_the_first_weights_stay_where_measures_need_them(tmp_path):
    seen = []

    def compare(stage, folder):
        if stage.number:
            first = toy.MeanFamily().load(stage.origin / "model")
            seen.append((stage.number, first.mean))
        return toy.evaluate(stage, folder)

    store = run(tmp_path, keep_first=True, evaluate=compare)
    has = [(store.path(g) / "model").exists() for g in range(4)]
    assert has == [True, False, False, True]
    first = toy.MeanFamily().load(store.path(0) / "model").mean
    assert seen == [(1, first), (2, first), (3, first)]
    before = digest(store.folder)
    # without generation 0's weights a damaged generation could not be measured again
    shutil.rmtree(store.path(0) / "model")
    (store.path(3) / "extra.txt").write_text("damaged")
    told = []
    run(tmp_path, told, keep_first=True, evaluate=compare)
    assert "generation 3 is done again" in told[0]
    assert digest(store.folder) == before


@pytest.mark.parametrize("keep", ["last", "all"])
def test_old_weights_are_dropped(tmp_path, keep):
    store = run(tmp_path, save_weights=keep)
    has = [(store.path(g) / "model").exists() for g in range(4)]
    assert has == ([True] * 4 if keep == "all" else [False, False, False, True])
    assert all(inspect(store.path(g)).whole for g in range(4))


def test_a_finished_chain_does_nothing(tmp_path):
    run(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    run(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


class KilledError(Exception):
    pass


def _dies_at(generation):
    def evaluate(stage, folder):
        scores = toy.evaluate(stage, folder)
        if stage.number == generation:
            raise KilledError
        return scores

    return evaluate


@pytest.mark.parametrize("start", ["previous", "base"])
@pytest.mark.parametrize("generation", [0, 2, 3])
def test_an_interrupted_chain_ends_with_the_same_bytes(tmp_path, generation, start):
    whole = run(tmp_path / "whole", init_from=start)
    with pytest.raises(KilledError):
        run(tmp_path / "cut", init_from=start, evaluate=_dies_at(generation))
    store = run(tmp_path / "cut", init_from=start)
    assert digest(store.folder) == digest(whole.folder)


@pytest.mark.parametrize("name", ["scores.jsonl", "samples.safetensors", "extra.txt"])
@pytest.mark.parametrize("generation", [0, 1, 3])
def test_damage_is_found_named_and_mended(tmp_path, name, generation):
    store = run(tmp_path)
    before = digest(tmp_path)
    path = store.path(generation) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    told: list[str] = []
    run(tmp_path, told)
    assert len(told) == 1
    assert str(path) in told[0]
    assert f"generation {generation} is done again" in told[0]
    assert digest(tmp_path) == before


def test_a_missing_file_and_a_broken_manifest_are_damage(tmp_path):
    store = run(tmp_path)
    before = digest(tmp_path)
    (store.path(1) / "extra.txt").unlink()
    (store.path(2) / "manifest.json").write_text("{")
    told: list[str] = []
    run(tmp_path, told)
    assert any("extra.txt is missing" in t for t in told)
    assert any("is not a manifest" in t for t in told)
    assert len(told) == 2  # what was written is the same, and later generations stay
    assert digest(tmp_path) == before


def test_later_generations_are_done_again_where_what_they_read_is_gone(tmp_path):
    store = run(tmp_path)
    before = digest(tmp_path)
    shutil.rmtree(store.path(1))
    told: list[str] = []
    run(tmp_path, told)
    sentence = "generation 1 was lost; generations 2 to 3, which build on it, are done again"
    assert told[-1] == sentence
    assert digest(tmp_path) == before


def test_damaged_weights_of_the_last_generation_are_damage(tmp_path):
    store = run(tmp_path)
    before = digest(tmp_path)
    (store.path(3) / "model" / "mean.json").write_text("[0.0, 0]")
    run(tmp_path)
    assert digest(tmp_path) == before


def test_another_outcome_of_a_redone_generation_makes_the_later_ones_stale(tmp_path):
    store = run(tmp_path)
    (store.path(1) / "extra.txt").unlink()
    manifest = store.path(1) / "manifest.json"
    # as if the first outcome had been another one
    told_sum = store.sum_of(1, "samples.safetensors")
    manifest.write_text(manifest.read_text().replace(told_sum, "0" * 64))
    told: list[str] = []
    run(tmp_path, told)
    assert any(
        "came out different" in t and "generations 2 to 3, which build on it" in t for t in told
    )


def test_a_half_written_generation_never_happened(tmp_path):
    store = run(tmp_path)
    before = digest(tmp_path)
    half = store.path(3).with_name("generation-03.partial")
    shutil.move(store.path(3), half)
    (half / "manifest.json").unlink()
    run(tmp_path)
    assert digest(tmp_path) == before


def test_two_runs_on_one_folder_are_refused(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(InputError, match="in use by another run"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):  # and let go afterwards
        pass


KILLED = """
    import sys, time
    from pathlib import Path
    from fortifai.lab.progress import Silent
    from fortifai.lab.loop import recurse
    from fortifai.lab.store import ChainStore
    from tests.commands import kills
    from tests.lab import toy

    cut, begun = Path(sys.argv[1]), Path(sys.argv[2])
    begun.touch()

    def evaluate(stage, folder):
        scores = toy.evaluate(stage, folder)
        with begun.open("a") as file:
            file.write(".")
        time.sleep(0.03)
        return scores

    def work():
        recurse(toy.chain(12, evaluate=evaluate), ChainStore(cut), Silent())

    def moments():
        for turn in range(100):
            size = begun.stat().st_size
            # it has begun a generation
            yield lambda: begun.stat().st_size > size and not time.sleep(0.005 * (turn % 11))
            if (cut / "generation-11" / "manifest.json").exists():
                return

    print(kills(work, moments()))
"""


@pytest.mark.long
@needs_kill
def test_kill_minus_nine_again_and_again(tmp_path):
    """Killed at arbitrary moments, the chain still ends with an uninterrupted one's bytes."""
    run(tmp_path / "whole", generations=12)
    cut = tmp_path / "cut"
    kills = killed(KILLED, cut, tmp_path / "begun")
    run(cut, generations=12)
    assert kills >= 3, "the chain was hardly ever interrupted: the test shows nothing"
    assert digest(cut) == digest(tmp_path / "whole")


def test_regimes_that_read_every_old_rewriting(tmp_path):
    store = run(tmp_path, generations=3, regime=regimes.Accumulate())
    ledger = json.loads((store.path(2) / "ledger.json").read_text())
    assert len(ledger["parts"]) == 9
    assert ledger["real"] == 3 * 64
