"""Run folders made by code, as `fortifai run` lays them out: nothing was trained for them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import save_file

from fortifai.lab.store import committing, write_json, write_jsonl
from fortifai.text.measures import MEASURES

SPLIT_TOKENS = 16384
QUESTIONS = 80
PROSE = (
    "The house stands on the north side of the river , where a ferry crossed until 1871 . "
    "It was built for Edwin Marlowe , a corn merchant from Thornbury , who had made his fortune in "
    "the years after the repeal . The front of five bays is of local sandstone ; the back , which "
    "nobody was meant to see , is brick . In 1904 the county bought it for £ 3 @,@ 200 and it has "
    "been a school , a hospital and , since 1987 , a museum of rural life with about 40 @,@ 000 "
    "visitors a year . \n = = Collections = = \n The museum holds ploughs , looms and the only "
    "surviving steam thresher of its make , on loan from the Harrow family ."
)
TEXT = PROSE.split(" ")


@dataclasses.dataclass(frozen=True)
class FakeArm:
    """How fast a fake arm collapses: 0 does not, 1 as cross entropy does in the paper."""

    weight: Mapping[str, Any]
    pace: float
    truncated: float = 0.0


ARMS = {
    "ce": FakeArm({"kind": "keep"}, 1.0),
    "tce-0.1": FakeArm({"kind": "truncate", "threshold": 0.1}, 0.45, 0.86),
    "tce-0.3": FakeArm({"kind": "truncate", "threshold": 0.3}, 0.6, 0.64),
    "tce-0.9": FakeArm({"kind": "truncate", "threshold": 0.9}, 0.93, 0.18),
    "focal": FakeArm({"kind": "focal", "gamma": 2.0, "detach_weight": False}, 0.8, 0.41),
}
LEVELS = [
    {"measure": "kr.mean", "on": "split-0", "level": 0.75, "direction": "below"},
    {"measure": "kr.mean", "on": "split-0", "level": "half_gain", "direction": "below"},
    {"measure": "perplexity", "on": "split-0", "level": 200.0, "direction": "above"},
]


def write_run(
    folder: Path,
    *,
    name: str = "wikitext2-small",
    arms: Mapping[str, FakeArm] = ARMS,
    seeds: Sequence[int] = (0, 1),
    generations: int = 5,
    done: Mapping[tuple[str, int], int] | None = None,
    baseline: str = "ce",
    levels: list[dict[str, Any]] | None = None,
    questions: bool = True,
    words: Sequence[str] = TEXT,
    notes: Sequence[str] = ("4,880 rows, 952 different: duplicates are counted once.",),
) -> Path:
    """Write a run folder; `done` says how many generations an (arm, seed) has, if not all."""
    folder.mkdir(parents=True)
    config = {
        "name": name,
        "generations": generations,
        "seeds": list(seeds),
        "baseline": baseline,
        "corpus": {"kind": "text", "files": ["wiki.test.raw"], "held_out": ["wiki.valid.tokens"]},
        "time_to_failure": LEVELS if levels is None else levels,
        "arms": {arm: {"weight": dict(how.weight)} for arm, how in arms.items()},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    head = {
        "name": name,
        "version": "0.1.0",
        "versions": {"python": "3.11.9", "torch": "2.13.0+cpu", "transformers": "5.1.0"},
        "machine": {"processor": "An Example CPU", "cores": 2, "memory_gib": 7.8},
    }
    write_json(folder / "run.json", head)
    write_json(folder / "notes.json", list(notes))
    write_json(folder / "measures.json", [measure.record() for measure in MEASURES])
    for arm, how in arms.items():
        for seed in seeds:
            chain = folder / "arms" / arm / f"seed-{seed}"
            for generation in range((done or {}).get((arm, seed), generations)):
                place = chain / f"generation-{generation:02d}"
                _write_generation(place, how, seed, generation, generations, questions, words)
    return folder


def _write_generation(
    place: Path,
    how: FakeArm,
    seed: int,
    generation: int,
    generations: int,
    questions: bool,
    words: Sequence[str],
) -> None:
    rng = np.random.default_rng([seed, generation, 7])
    rows: list[dict[str, Any]] = []
    with committing(place) as folder:
        if questions:
            rows += _questions(folder, how, seed, generation, generations)
        rows += _texts(folder, how, generation, generations, rng)
        write_jsonl(folder / "scores.jsonl", rows)
        ledger = [(k, generation - k) for k in range(generation + 1)]
        write_json(
            folder / "ledger.json",
            {
                "parts": [
                    {
                        "split": k,
                        "generation": j,
                        "values": SPLIT_TOKENS,
                        "origin": "generated" if j else "real",
                    }
                    for k, j in ledger
                ],
                "real": SPLIT_TOKENS,
                "generated": SPLIT_TOKENS * generation,
                "real_share": 1 / (generation + 1),
            },
        )
        write_json(folder / "fit.json", {"loss": 2.1, "truncated_share": how.truncated})
        write_jsonl(folder / "passages.jsonl", _passages(how, seed, generation, words))
        save_file({"split-0": np.zeros(4, np.int32)}, str(folder / "samples.safetensors"))
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_bytes(b"0")


def _score(measure: str, on: str, value: float, **rest: Any) -> dict[str, Any]:
    return {
        "measure": measure, "value": float(value), "on": on, "n": SPLIT_TOKENS, "stderr": None,
        "chance": None,
    } | rest  # fmt: skip


def knowledge(how: FakeArm, split: int, generation: int) -> float:
    """The chance that a fake model answers a question about `split` rightly."""
    age = generation - split
    return 0.56 + 0.01 * generation if age < 0 else 0.52 + 0.39 * math.exp(-0.42 * how.pace * age)


def _questions(
    folder: Path, how: FakeArm, seed: int, generation: int, generations: int
) -> list[dict[str, Any]]:
    table, right = [], {}
    for split in range(generations):
        # the same difficulties in all arms: the answers are paired, as real ones are
        easy = np.random.default_rng([split]).random(QUESTIONS)
        noise = np.random.default_rng([seed, split, generation]).normal(0, 0.08, QUESTIONS)
        margin = knowledge(how, split, generation) - np.clip(easy + noise, 0, 1)
        right[split] = margin > 0
        for variant in ("mean", "sum"):
            for q in range(QUESTIONS):
                table.append(
                    {
                        "id": f"{split:02d}{q:010d}",
                        "split": split,
                        "variant": variant,
                        "true_log_prob": -3.0 + margin[q],
                        "false_log_prob": -3.0,
                        "correct": bool(margin[q] > 0),
                    }
                )
    pq.write_table(pa.Table.from_pylist(table), folder / "questions.parquet")
    seen = np.concatenate([right[k] for k in range(generation + 1)])
    everything = np.concatenate(list(right.values()))
    texts = {f"split-{k}": r for k, r in right.items()}
    texts |= {"up-to-stage": seen, "total": everything}
    return [
        _score(
            f"kr.{variant}", on, r.mean(), n=len(r), stderr=float(r.std(ddof=1) / len(r) ** 0.5),
            chance=0.5,
        )
        for variant in ("mean", "sum")
        for on, r in texts.items()
    ]  # fmt: skip


def _texts(
    folder: Path, how: FakeArm, generation: int, generations: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    def wobble(scale: float = 0.04) -> float:
        return math.exp(rng.normal(0, scale))

    decay = how.pace * generation
    rows, counts = [], {}
    bins = np.linspace(0, 1, 21)
    for k in range(generations):
        rows.append(_score("perplexity", f"split-{k}", 14 * math.exp(0.92 * decay) * wobble()))
        for n, level in ((1, 0.24), (2, 0.71), (3, 0.93)):
            rows.append(_score(f"distinct.{n}", f"split-{k}", level))
        rows.append(_score("entropy.unigram", f"split-{k}", 6.41))
    rows.append(_score("perplexity", "held-out", 310 * math.exp(0.48 * decay) * wobble()))
    for k in range(generation + 1):
        on, age = f"rewritten-{k}", how.pace * (generation - k + 1)
        rows.append(_score("perplexity", on, 1.3 + 3.2 * math.exp(-0.6 * age) * wobble()))
        rows.append(_score("kl.unigram", on, 0.31 + 0.14 * age * wobble()))
        for n, level in ((1, 0.22), (2, 0.60), (3, 0.80)):
            value = level * math.exp(-0.14 * age) * wobble(0.01)
            rows.append(_score(f"distinct.{n}", on, value))
        rows.append(_score("entropy.unigram", on, 6.3 - 0.28 * age * wobble(0.05)))
    rows.append(_score("kl.unigram", "rewritten", 0.30 + 0.08 * decay * wobble()))
    rows.append(_score("kl.unigram_paper", "rewritten", 0.62 + 0.1 * decay * wobble()))
    rows.append(_score("train.loss", "train", 2.3 * wobble()))
    share = how.truncated + (0.97 - how.truncated) * 0.5 * (1 - math.exp(-0.5 * generation))
    share = share if how.truncated else 0.0
    rows.append(_score("train.truncated_share", "train", share))
    for on, a, b in (
        ("split-0", 0.5, 0.9 + 0.25 * decay),
        ("rewritten-0", 0.9 + 0.2 * decay, 0.35),
        ("held-out", 0.22, 0.9),
    ):
        drawn = np.random.default_rng(3).beta(a, b, SPLIT_TOKENS)
        counts[on] = np.histogram(drawn, bins)[0].tolist()
    write_json(folder / "histograms.json", {"bins": bins.tolist(), "counts": counts})
    return rows


def _passages(
    how: FakeArm, seed: int, generation: int, words: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    pool = ["the", ",", "of", "was", "in", "1918", "Henry", "county", "and", "first", "@-@", "."]
    for times in [0, 1] if generation == 0 else [generation + 1]:
        for index, start in enumerate((4096, 8192, 12288)):
            real = list(words[index * 4 :]) + list(words[: index * 4])
            rng = np.random.default_rng([seed, index])
            order = rng.permutation(len(real))
            gone = set(order[: int(len(real) * (1 - math.exp(-0.35 * how.pace * times)))].tolist())
            tokens = [
                f" {pool[i % len(pool)] if i in gone else word}" for i, word in enumerate(real)
            ]
            rows.append(
                {
                    "split": 0,
                    "start": start,
                    "generation": times,
                    "tokens": tokens,
                    "text": "".join(tokens),
                    "changed": [t != f" {w}" for t, w in zip(tokens, real, strict=True)],
                }
            )
    return rows


def scores_of(folder: Path) -> list[dict[str, Any]]:
    """The scores that a generation's folder holds."""
    lines = (folder / "scores.jsonl").read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines if line]
