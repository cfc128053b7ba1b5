"""benchmarks/kept_tokens.py: whose value a generated sentence has."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fortifai.data import bios


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[1] / "benchmarks" / "kept_tokens.py"
    spec = importlib.util.spec_from_file_location("kept_tokens", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_value_is_true_or_false_of_whom_it_is_told(script):
    facts = {"Ada Bemoson": {"born": "1950", "city": "Halvik"}}
    text = (
        "Ada Bemoson was born in 1950. The home of Ada Bemoson is in Rosvale. "
        "Bo Bemoson was born in 1950. Ada is."
    )
    found = script.classes(text, facts)
    names = {
        k: "".join(c for c, kind in zip(text, found, strict=True) if kind == k) for k in range(4)
    }
    assert names[0] == "1950"
    assert names[1] == "Rosvale1950", "another's town, and the year of somebody who is not there"
    assert names[3] == "   Ada is."
    assert names[2].startswith("Ada Bemoson was born in .The home of Ada Bemoson is in .Bo")


def test_every_sentence_of_the_corpus_has_a_true_value(script):
    people = [p for p, _ in zip(bios.people(0), range(20), strict=False)]
    facts = {person.name: person.facts for person in people}
    text = bios.bios(20, 0)[0].text
    found = script.classes(text, facts)
    assert (found != 1).all()
    values = sum(len(v) for p in people for v in p.facts.values())
    assert (found == 0).sum() == 3 * values, "each fact is told three times"
