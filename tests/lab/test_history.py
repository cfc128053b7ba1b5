"""Who writes what, who reads it last, and what a commit must hold."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from fortifai.lab.history import History, commits
from fortifai.lab.regimes import Accumulate, Replace


@pytest.mark.parametrize(
    ("last", "every", "expected"),
    [(0, 1, [0]), (5, 2, [0, 2, 4, 5]), (6, 3, [0, 3, 6]), (4, 9, [0, 4]), (3, 1, [0, 1, 2, 3])],
)
def test_the_first_and_the_last_are_always_commits(last, every, expected):
    assert commits(last, every) == expected


def history(regime, intervals, folder) -> History:
    real = [np.zeros(3, np.int32)]
    return History(real, lambda g: regime.plan(g, 1), intervals, lambda g: folder / str(g))


def wrote(generation: int) -> np.ndarray:
    return np.full(3, generation + 1, np.int32)


def test_what_nobody_reads_again_is_forgotten_and_the_rest_comes_from_its_commit(tmp_path):
    intervals = [range(1), range(1, 3), range(3, 4)]
    told = history(Accumulate(), intervals, tmp_path)
    for interval in intervals:
        for g in interval:
            told.add(g, {(0, g + 1): wrote(g)})
        held = told.to_keep(interval)
        # all that the last generation wrote, and what an inner one did and later ones read
        inner = {f"split-0-rewritten-{g + 1}" for g in interval[:-1]}
        assert set(held) == {"split-0"} | inner
        (tmp_path / str(interval[-1])).mkdir()
        save_file(held, tmp_path / str(interval[-1]) / "samples.safetensors")
        assert not told.lacks(interval)
    again = history(Accumulate(), intervals, tmp_path)
    assert again.sources(3) == {0, 2}
    for rewritings in (1, 2, 3):
        np.testing.assert_array_equal(again.read(0, rewritings), wrote(rewritings - 1))
    assert again.writer(0, 2) == 1
    np.testing.assert_array_equal(again.read(0, 0), np.zeros(3))


def test_a_commit_is_done_with_when_its_last_reader_has_read(tmp_path):
    told = history(Replace(), [range(1), range(1, 2), range(2, 3)], tmp_path)
    told.add(0, {(0, 1): wrote(0)})
    assert not told.is_done_with(0)
    told.add(1, {(0, 2): wrote(1)})
    assert told.is_done_with(0)
    assert not told.is_done_with(1)
