"""Speed and memory of the audit of corpora: scores of documents, whole passes, datatrove's blocks.

    python benchmarks/audit.py scores                 # documents a second and core, by measure
    python benchmarks/audit.py pass --rows 10000000   # memory of a pass, and rows a second
    python benchmarks/audit.py datatrove              # beside datatrove's, same rows, one process

A pass hands what else it is given, such as --processes 1, to `fortifai audit`. Text is made by
code, words by Zipf's law, so that nothing is downloaded. Times of scores are those of the processor
(one thread), which others on the machine disturb less; that of a pass is the clock's.
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
    kinds = vocabulary(50_000)
    p = 1 / np.arange(1, len(kinds) + 1)
    drawn = np.random.default_rng(seed).choice(kinds, (count, words), p=p / p.sum())
    return [" ".join(row) for row in drawn.tolist()]


def vocabulary(kinds: int) -> np.ndarray:
    """Words of letters by chance, as objects."""
    lengths = np.random.default_rng(0).integers(2, 11, kinds)
    letters = np.random.default_rng(1).integers(97, 123, lengths.sum()).astype(np.uint8)
    parts = np.split(letters, np.cumsum(lengths)[:-1])
    return np.array([bytes(part).decode() for part in parts], dtype=object)


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


_SHARD = 100_000
"""Rows of a file of a pass."""


def write_shards(folder: Path, shards: int) -> list[Path]:
    """Rows of 20 to 60 words by Zipf's law, as .jsonl; those that are there stay as they are."""
    paths = [folder / f"part-{shard:04}.jsonl" for shard in range(shards)]
    folder.mkdir(parents=True, exist_ok=True)
    words = vocabulary(2_000_000)  # more than a process keeps numbers of
    reach = np.log(len(words) + 1)
    for shard, path in enumerate(paths):
        if path.exists():
            continue
        rng = np.random.default_rng((1, shard))
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="ascii") as file:
            for _ in range(0, _SHARD, 10_000):
                ends = np.cumsum(rng.integers(20, 61, 10_000))
                # ranks of Zipf's law: their logarithms are uniform, to the whole rank below
                ranks = np.exp(reach * rng.random(ends[-1])).astype(np.int64) - 1
                drawn = words[ranks].tolist()
                begins = [0, *ends[:-1].tolist()]
                file.writelines(
                    f'{{"text": "{" ".join(drawn[i:j])}"}}\n'
                    for i, j in zip(begins, ends.tolist(), strict=True)
                )
        partial.rename(path)
    return paths


def whole_pass(rows: int, kept: Path | None, arguments: Sequence[str]) -> dict[str, float]:
    """`fortifai audit --text 'shards/*'` over rows made by code: memory, time, rows a second.

    Args:
        rows: How many, in files of 100,000.
        kept: Where the files lie, and stay; None: in a temporary folder.
        arguments: More of the command, such as ``--processes 1``.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_shards(kept or folder / "made", max(1, rows // _SHARD))
        (folder / "shards").mkdir()
        for path in files:
            (folder / "shards" / path.name).symlink_to(path.resolve())
        size = sum(path.stat().st_size for path in files)
        start = time.monotonic()
        with (folder / "out.json").open("wb") as out, (folder / "faults").open("wb") as faults:
            process = subprocess.Popen(
                [sys.executable, "-m", "fortifai.cli", "audit", "--text", "shards/*", "--json",
                 *arguments],
                stdout=out, stderr=faults, cwd=folder,
            )  # fmt: skip
            resident, proportional, most = _peak(process)
        seconds = time.monotonic() - start
        if process.returncode:
            raise SystemExit((folder / "faults").read_text("utf-8", "replace"))
        told = json.loads((folder / "out.json").read_text("utf-8"))
        return {
            "rows": told["counts"]["text"]["rows"],
            "MiB of files": size / 2**20,
            "most processes": most,
            "seconds": seconds,
            "rows a second": _SHARD * len(files) / seconds,
            "peak MiB, resident of all, summed": resident / 2**20,
            "the same, shared pages once": proportional / 2**20,
        }


def _peak(process: subprocess.Popen[bytes]) -> tuple[int, int, int]:
    """The most that a process and its children hold, and the most processes.

    Resident memory summed counts pages that they share (libraries) once for each of them;
    proportional set size counts them once.
    """
    import psutil

    parent = psutil.Process(process.pid)
    peaks = [0, 0, 0]
    while process.poll() is None:
        try:
            found = [each.memory_full_info() for each in [parent, *parent.children(recursive=True)]]
        except psutil.Error:
            continue  # one of them has just ended
        now = sum(one.rss for one in found), sum(one.pss for one in found), len(found)
        peaks = [max(pair) for pair in zip(peaks, now, strict=True)]
        time.sleep(0.2)
    return peaks[0], peaks[1], peaks[2]


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
    parser.add_argument("--keep", type=Path, help="folder of the files of a pass, which stay")
    given, more = parser.parse_known_args(arguments)
    if given.what == "pass":
        found = whole_pass(given.rows, given.keep, more)
    elif more:
        parser.error(f"{' '.join(more)}: only a pass hands more to the command")
    else:
        found = (scores if given.what == "scores" else datatrove)(given.documents)
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.processor()}")
    for name, value in found.items():
        print(f"{name:36} {value:14,.0f}")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{'peak MiB of this process':36} {own / 1024:14,.0f}")


if __name__ == "__main__":
    main()
