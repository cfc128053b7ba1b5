"""What a generation answered in each format, and how unlikely generation 0 finds what it wrote."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fortifai.errors import InputError
from fortifai.evals.phases import PhaseRule

FORMATS, PERPLEXITIES = "formats.parquet", "perplexities.json"


@dataclasses.dataclass(frozen=True, slots=True)
class FormatAnswers:
    """How a generation did on every question in one format; arrays of shape (n,).

    Attributes:
        ids: The question's name, equal in all arms, seeds and generations.
        right: 1 right, 0 wrong, a share where options tie. float64.
        adherent: The answer keeps to the format. float64, 0 or 1.
        certainty: Probability of the chosen answer. float64.
        chance: What guessing gives, over all questions.
    """

    ids: tuple[str, ...]
    right: NDArray[np.float64]
    adherent: NDArray[np.float64]
    certainty: NDArray[np.float64]
    chance: float


@dataclasses.dataclass(frozen=True, slots=True)
class Perplexities:
    """Sequences by their perplexity under generation 0.

    Attributes:
        bins: Edges.
        counts: By text, how many lie in each bin.
        unlikely: The perplexity above which 1 % of the real sequences lie.
    """

    bins: tuple[float, ...]
    counts: Mapping[str, tuple[int, ...]]
    unlikely: float


def format_answers(data: bytes | None) -> dict[str, FormatAnswers]:
    """By format, what ``formats.parquet`` holds; nothing where there is none."""
    if data is None:
        return {}
    names = ["id", "format", "right", "adherent", "certainty", "chance"]
    table = pq.read_table(io.BytesIO(data), columns=names).to_pydict()
    out = {}
    for kind in dict.fromkeys(table["format"]):
        rows = [i for i, name in enumerate(table["format"]) if name == kind]
        right, adherent, certainty, chance = (
            np.array([table[name][i] for i in rows], dtype=np.float64) for name in names[2:]
        )
        ids = tuple(str(table["id"][i]) for i in rows)
        out[str(kind)] = FormatAnswers(ids, right, adherent, certainty, float(chance.mean()))
    return out


def perplexities(data: bytes | None) -> Perplexities | None:
    """What ``perplexities.json`` holds; None where there is none."""
    if data is None:
        return None
    told = json.loads(data)
    return Perplexities(
        tuple(float(edge) for edge in told["bins"]),
        {str(on): tuple(int(n) for n in counts) for on, counts in told["counts"].items()},
        float(told["unlikely"]),
    )


def rule(declared: Any, where: str) -> PhaseRule:
    """The rule for phases that a configuration declares.

    Raises:
        InputError: It is none.
    """
    try:
        return PhaseRule(**(declared or {}))
    except (TypeError, InputError) as error:
        names = ", ".join(field.name for field in dataclasses.fields(PhaseRule))
        raise InputError(f"{where}: phases must be a mapping of {names} to shares") from error
