"""The units of text that cures work on, and that shares are drawn of."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from fortifai.data.tokens import SpecialTokens
from fortifai.models.family import CausalLMFamily
from fortifai.models.options import RegenerateOptions, TrainOptions
from fortifai.weights import Keep


def family(bos: int | None, block: int = 4) -> CausalLMFamily:
    return CausalLMFamily(
        base=Path(),
        scratch=lambda seed: pytest.fail("not asked for"),
        weight=Keep(),
        train=TrainOptions(block=block),
        regenerate=RegenerateOptions(),
        select=None,
        workdir=Path(),
        special=SpecialTokens(bos=bos, end=9),
    )


STREAM = np.array([1, 2, 9, 3, 9, 9, 4, 5, 6, 7], dtype=np.int32)


def cut(edges) -> list[list[int]]:
    return [STREAM[a:b].tolist() for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("unit", [None, "block"])
def test_a_block_is_the_text_of_a_training_row(unit):
    assert cut(family(None).edges(STREAM, unit=unit)) == [[1, 2, 9, 3], [9, 9, 4, 5], [6, 7]]
    # bos takes a place of the row, and is no text
    assert cut(family(1).edges(STREAM, unit=unit)) == [[1, 2, 9], [3, 9, 9], [4, 5, 6], [7]]


def test_a_document_has_its_end_with_it():
    expected = [[1, 2, 9], [3, 9], [9], [4, 5, 6, 7]]
    assert cut(family(1).edges(STREAM, unit="document")) == expected
    whole = STREAM[:5]
    assert family(1).edges(whole, unit="document").tolist() == [0, 3, 5]


def test_a_share_is_of_whole_blocks():
    """Both shares of one seed are the blocks, each once, in the order of the text."""
    first, second = (family(None).share(STREAM, part, 0) for part in ((0.0, 0.5), (0.5, 1.0)))
    blocks = cut(family(None).edges(STREAM, unit=None))
    (left_out,) = [b for b in blocks if b == second.tolist()]
    assert first.tolist() == [token for b in blocks if b != left_out for token in b]
