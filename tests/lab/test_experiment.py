"""What surrounds the loop of a chain."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import yaml

from fortifai import configuration
from fortifai.lab import experiment

RAW = yaml.safe_load("""
name: tiny
generations: 2
baseline: mle
seeds: [0]
corpus: {kind: points, source: {kind: gaussian}, samples: 50, held_out: 50}
regime: {kind: replace}
family: {kind: gaussian}
arms: {mle: {}}
""")


class Ring:
    """An object that only a garbage collection frees."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def thawed() -> Iterator[None]:
    """A process that has frozen nothing, as it is where no test runs."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


def test_a_collection_in_a_chain_passes_over_what_was_there_before(thawed, tmp_path, monkeypatch):
    earlier = [[] for _ in range(1000)]  # lists are counted, numbers would not be
    seen = {}

    def recurse(*_: object) -> None:
        ring = Ring()
        seen["ring"] = weakref.ref(ring)
        del ring
        gc.collect()
        seen["tracked"] = {id(one) for one in gc.get_objects()} & {id(one) for one in earlier}
        seen["frozen"] = gc.get_freeze_count()

    monkeypatch.setattr(experiment, "recurse", recurse)
    experiment.run(configuration.resolve(RAW), tmp_path, tmp_path / "run", workers=1)
    assert seen["frozen"] >= len(earlier)
    assert not seen["tracked"]
    assert seen["ring"]() is None, "what the chain leaves is collected"
    assert gc.get_freeze_count() == 0, "as it was before"


def test_a_process_that_froze_by_itself_stays_so(thawed):
    gc.freeze()
    with experiment.collecting_new():
        pass
    assert gc.get_freeze_count() > 0
