"""Speed and memory of the audit of corpora: scores of documents, whole passes, datatrove's blocks.

    python benchmarks/audit.py scores    # documents a second and core, by measure
    python benchmarks/audit.py pass      # rows made by code, peak memory and rows a second
    python benchmarks/audit.py datatrove # beside datatrove's blocks, same rows, one process each

Text is made by code: words by Zipf's law, as long as words are, so that nothing is downloaded.
Times are those of the processor (one thread), which others on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np


def documents(count: int, words: int, seed: int) -> list[str]:
    """Documents of words by a power law, as many types as a corpus has."""
    rng = np.random.default_rng(seed)
    kinds = 50_000
    lengths = np.random.default_rng(0).integers(2, 11, kinds)
    letters = np.random.default_rng(1).integers(97, 123, lengths.sum()).astype(np.uint8)
    vocabulary = [bytes(part).decode() for part in np.split(letters, np.cumsum(lengths)[:-1])]
    p = 1 / np.arange(1, kinds + 1)
    drawn = rng.choice(kinds, (count, words), p=p / p.sum())
    return [" ".join(vocabulary[i] for i in row) for row in drawn]


def rate(work: Callable[[], object], count: int, turns: int = 3) -> float:
    """Documents a second of processor time, the best of some turns."""
    best = 0.0
    for _ in range(turns):
        start = time.process_time()
        work()
        best = max(best, count / (time.process_time() - start))
    return best


def scores(count: int) -> dict[str, float]:
    """Documents a second and core, by what is measured."""
    from fortifai.stats import scores as s

    texts = documents(count, 300, 0)
    parts = [list(part) for part in s.batches(texts)]
    words = [s.encode(part) for part in parts]  # and fills the table of words
    long = documents(max(64, count // 16), 1500, 1)
    long_words = [s.encode(list(part)) for part in s.batches(long)]

    def grams() -> None:
        for part in parts:
            s.scored_types(s.encode(part))

    return {
        "n-gram measures, 300 words": rate(grams, count),
        "entropy rate, 1,500 words": rate(
            lambda: [s.entropy_rate(w) for w in long_words], len(long)
        ),
        "entropy rate, 300 words": rate(lambda: [s.entropy_rate(w) for w in words], count),
        "all scores, 300 words": rate(lambda: s.score(texts), count),
    }


MAKE = """
import json, sys
sys.path.insert(0, {here!r})
import audit
with open({path!r}, "w") as file:
    for seed in range({blocks}):
        for text in audit.documents(2000, {words}, seed):
            file.write(json.dumps({{"text": text}}) + chr(10))
"""


def whole_pass(rows: int, words: int, processes: int) -> dict[str, float]:
    """A pass with scores over rows made by code; peak memory of all processes together."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        here = str(Path(__file__).parent)
        code = MAKE.format(here=here, path=str(path), blocks=rows // 2000, words=words)
        subprocess.run([sys.executable, "-c", code], check=True)
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "fortifai.cli", "audit", "--text", path, "--scores",
             Path(folder) / "s.parquet", "--processes", str(processes), "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        peak = _peak(process)
        seconds = time.monotonic() - start
        told = json.loads(process.communicate()[0])
        return {
            "rows": told["counts"]["text"]["rows"],
            "bytes": path.stat().st_size,
            "processes": processes,
            "seconds": seconds,
            "rows a second": rows / seconds,
            "peak MiB of all processes": peak / 2**20,
        }


def _peak(process: subprocess.Popen[bytes]) -> int:
    """The most memory that a process and its children hold; pages that they share count once."""
    import psutil

    parent, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            every = [parent, *parent.children(recursive=True)]
            peak = max(peak, sum(each.memory_full_info().pss for each in every))
        except psutil.Error:
            pass  # one of them has just ended
        time.sleep(0.5)
    return peak


def datatrove(count: int) -> dict[str, float]:
    """Documents a second of datatrove's statistics of lines and words and its n-gram filter.

    With words split at blanks in place of spaCy's, which is quicker by far, and favours datatrove.
    """
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherRepetitionFilter, gopher_repetition_filter
    from datatrove.pipeline.stats import LineStats, WordStats, word_stats

    from fortifai.stats import scores as s

    blanks = types.SimpleNamespace(word_tokenize=str.split)
    word_stats.load_word_tokenizer = lambda language: blanks
    gopher_repetition_filter.split_into_words = lambda text, language: text.split()
    texts = documents(count, 300, 0)
    rows = [Document(text=text, id=str(i)) for i, text in enumerate(texts)]
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, work in (
            ("LineStats", LineStats(folder, groups_to_compute=["summary"]).extract_stats),
            ("WordStats", WordStats(folder, groups_to_compute=["summary"]).extract_stats),
            ("GopherRepetitionFilter", GopherRepetitionFilter().filter),
        ):
            out[f"datatrove {name}"] = rate(lambda work=work: [work(row) for row in rows], count)
    out["datatrove, the three"] = 1 / sum(1 / value for value in out.values())
    parts = [list(part) for part in s.batches(texts)]
    out["fortifai, n-gram measures"] = rate(
        lambda: [s.scored_types(s.encode(part)) for part in parts], count
    )
    out["fortifai, all scores"] = rate(lambda: s.score(texts), count)
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["scores", "pass", "datatrove"])
    parser.add_argument("--documents", type=int, default=4096, help="of scores and datatrove")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of a pass")
    parser.add_argument("--words", type=int, default=100, help="of a row of a pass")
    parser.add_argument("--processes", type=int, default=2, help="of a pass")
    given = parser.parse_args(arguments)
    if given.what == "pass":
        found = whole_pass(given.rows, given.words, given.processes)
    else:
        found = (scores if given.what == "scores" else datatrove)(given.documents)
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.processor()}")
    for name, value in found.items():
        print(f"{name:36} {value:14,.0f}")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{'peak MiB of this process':36} {own / 1024:14,.0f}")


if __name__ == "__main__":
    main()
