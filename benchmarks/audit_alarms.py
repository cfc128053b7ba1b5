"""How often an audit alarms where nothing is wrong: pairs of healthy corpora of one kind.

    python benchmarks/audit_alarms.py ../shared/data > alarms.json

Every pair is human text against human text of its own kind, by chance (random halves) or by origin
(another split, subject or paradigm). A false alarm is "evidence of collapse". The last group is of
different kinds, where the right answer is that they cannot be compared. The folder has
wikitext2/, gsm8k/, mmlu/, hellaswag/ and blimp/ as their publishers name the files; intervals are
Clopper and Pearson's at 95 % over the pairs that are judged, as if those were independent, which
pairs that share a text are not.
"""

from __future__ import annotations

import collections
import csv
import gzip
import itertools
import json
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from fortifai.audit import CorpusAudit, Reading, audit_corpus, read, reference_of
from fortifai.errors import InputError

HALVES = 20
"""Random halves of each corpus."""

TOO_SMALL = "too small to be audited"
OTHER_KIND = "cannot be compared: another kind of text"
"""Headlines of pairs that are not judged."""

FIELDS = {
    "biology": ("college_biology", "high_school_biology"),
    "chemistry": ("college_chemistry", "high_school_chemistry"),
    "computer science": ("college_computer_science", "high_school_computer_science"),
    "economics": ("high_school_macroeconomics", "high_school_microeconomics"),
    "history": ("high_school_european_history", "high_school_us_history"),
    "mathematics": ("college_mathematics", "high_school_mathematics", "elementary_mathematics"),
    "medicine": ("clinical_knowledge", "college_medicine", "professional_medicine"),
    "physics": ("college_physics", "conceptual_physics", "high_school_physics"),
    "psychology": ("high_school_psychology", "professional_psychology"),
}
"""Subjects of MMLU that are of one field."""

Pair = tuple[str, Sequence[str], Sequence[str]]
"""Group, the corpus in question, its reference."""


def jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a file, gzipped or not."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [json.loads(line) for line in lines]


def passages(path: Path) -> list[str]:
    """Paragraphs of WikiText, without headings."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("=")]


def halves(texts: Sequence[str]) -> Iterator[Pair]:
    """The same corpus cut in two by chance, again and again."""
    for seed in range(HALVES):
        order = np.random.default_rng(seed).permutation(len(texts))
        middle = len(texts) // 2
        one, other = ([texts[i] for i in part] for part in (order[:middle], order[middle:]))
        yield "random halves", one, other


def pairs(data: Path) -> Iterator[Pair]:
    """All pairs."""
    wiki = {
        name: passages(data / f"wikitext2/wiki.{name}") for name in ("test.raw", "valid.tokens")
    }
    # the validation split has <unk> where the raw text has rare words
    wiki["valid.tokens"] = [text.replace("<unk>", "") for text in wiki["valid.tokens"]]
    gsm = {
        (split, field): [str(row[field]) for row in jsonl(data / f"gsm8k/{split}.jsonl")]
        for split in ("train", "test")
        for field in ("question", "answer")
    }
    mmlu = {
        path.name.removesuffix("_test.csv"): [
            " ".join(row[:5]) for row in csv.reader(path.open(newline=""))
        ]
        for path in sorted((data / "mmlu/test").glob("*.csv"))
    }
    hellaswag = [
        row["endings"][int(row["label"])]  # the ending that a human wrote
        for row in jsonl(data / "hellaswag/validation-1000.jsonl")
    ]
    blimp: dict[str, dict[str, list[str]]] = collections.defaultdict(dict)
    for path in sorted((data / "blimp").glob("*.jsonl.gz")):
        rows = jsonl(path)
        term = str(rows[0]["linguistics_term"])
        blimp[term][path.name] = [str(row["sentence_good"]) for row in rows]
    for texts in (wiki["test.raw"], gsm["test", "question"], gsm["test", "answer"], hellaswag):
        yield from halves(texts)
    for one, other in itertools.permutations(wiki, 2):
        yield "WikiText-2: test and validation", wiki[one], wiki[other]
    for field in ("question", "answer"):
        for one, other in itertools.permutations(("train", "test")):
            yield "GSM8K: train and test", gsm[one, field], gsm[other, field]
    for subjects in FIELDS.values():
        for one, other in itertools.permutations(subjects, 2):
            yield "MMLU: subjects of one field", mmlu[one], mmlu[other]
    for paradigms in blimp.values():
        for one, other in itertools.combinations(paradigms, 2):
            yield "BLiMP: paradigms of one phenomenon", paradigms[one], paradigms[other]
    kinds = {
        "WikiText-2": wiki["test.raw"],
        "GSM8K": gsm["test", "question"],
        "MMLU, law": mmlu["professional_law"],
        "HellaSwag": hellaswag,
        "BLiMP": [
            text for paradigm in blimp.values() for each in paradigm.values() for text in each
        ],
    }
    for one, other in itertools.permutations(kinds, 2):
        yield "different kinds", kinds[one], kinds[other]


def audit(folder: Path, text: Sequence[str], against: Sequence[str]) -> CorpusAudit:
    """As the command line does it."""
    for name, rows in (("text", text), ("against", against)):
        lines = (json.dumps({"text": row}) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    known = read([str(folder / "against.jsonl")], Reading(grams=True))
    found = read([str(folder / "text.jsonl")], Reading(), reference_of(known))
    return audit_corpus(found, known)


def main() -> None:
    """Run all pairs and print what was found."""
    groups: dict[str, list[tuple[str, list[str]]]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for group, text, against in pairs(Path(sys.argv[1])):
            try:
                found = audit(Path(folder), text, against)
            except InputError:
                groups[group].append((TOO_SMALL, []))
                continue
            groups[group].append((found.headline, [each.name for each in found.evidence]))
            print(group, found.headline, file=sys.stderr)
    out = {}
    for group, results in groups.items():
        judged = [bool(by) for headline, by in results if headline not in (TOO_SMALL, OTHER_KIND)]
        interval = binomtest(sum(judged), len(judged)).proportion_ci() if judged else ()
        out[group] = {
            "judged": len(judged),
            "alarms": sum(judged),
            "95 %": [round(end, 3) for end in interval],
            "by": dict(collections.Counter(name for _, names in results for name in names)),
            "headlines": dict(collections.Counter(headline for headline, _ in results)),
        }
    print(
        json.dumps({"machine": platform.processor() or platform.machine(), "groups": out}, indent=1)
    )


if __name__ == "__main__":
    main()
