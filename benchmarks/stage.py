"""A whole generation of a pretrained model: ours, and the authors' way of doing the same work.

    python benchmarks/stage.py MODEL TEXT QUESTIONS [--tokens 4096] [--peer-blocks 16]

The parts, each done by both in turn, in one process on as many threads as asked for:

- `fit`: three epochs of TCE on rows of 128 tokens, 8 at a time, in an order of each one's own;
- `greedy` and `beams`: every 32 tokens rewritten; from at least the 512 before them, chunks of
  --at-most being read once (ours), or by `generate` on the 512 before them, 16 contexts at a time
  (theirs); beam search has 5 beams and a repetition penalty of 3.0;
- `kr`: Knowledge Retention, 70 questions for 4,096 tokens, in batches or one pair at a time;
- `perplexity`: of what was written and of held-out text, half as long; in windows of 128 tokens;
- `confidence`: of the same texts, from the same numbers (ours) or another pass (theirs).

The authors' way is written from the paper (2509.08972) and what is known of its settings: their
loss on full logits in a plain loop, full logits for all scores, nothing shared. All but loading is
linear in --tokens. With --peer-blocks they rewrite that many blocks alone, whole batches of them,
and the seconds are multiplied; 0: all. That a model is tried once before it shares what it has
read is timed by itself, as loading is, and is no part of the whole.

Printed are a table and, in JSON, scores of both: they need not be equal, since orders and contexts
differ, but must be near.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from fortifai.data.questions import Question, read_questions
from fortifai.data.text import read_text
from fortifai.data.tokens import encode_pairs
from fortifai.evals.confidence import confidence
from fortifai.evals.kr_test import kr_test
from fortifai.evals.perplexity import perplexity
from fortifai.lab.progress import Silent
from fortifai.models import shared_prefix
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import RegenerateOptions, TrainOptions
from fortifai.weights import Truncate
from generation import authors
from kr_scoring import Pair, score_pair

CONTEXT, NEW, BLOCK, ROWS = 512, 32, 128, 8
"""Tokens a block is written from, of a block, of a row in training; rows of a step."""

BATCH = 16
"""Contexts that the authors give `generate` at a time."""

BEAMS = {"kind": "beam", "beams": 5, "repetition_penalty": 3.0}
Texts = dict[str, np.ndarray]
Scores = dict[str, float]


class Ours:
    """The package, as its loop calls it."""

    def __init__(self, lm: CausalLM, args: argparse.Namespace) -> None:
        self.lm, self.args = lm, args
        self.read: Texts = {}

    def fit(self, split: np.ndarray) -> None:
        """Three epochs by the trainer."""
        train = TrainOptions(
            epochs=self.args.epochs, learning_rate=2e-5, batch_size=ROWS, block=BLOCK
        )
        with tempfile.TemporaryDirectory() as folder:
            self.lm.fit(
                split,
                Truncate(self.args.threshold),
                train,
                seed=0,
                workdir=Path(folder),
                select=None,
                progress=Silent(),
            )

    def rewrite(self, split: np.ndarray, beams: bool) -> np.ndarray:
        """All blocks of the split."""
        span = {"at_least": CONTEXT, "at_most": self.args.at_most}
        asked = {"decoding": BEAMS} if beams else {}
        settings = RegenerateOptions.model_validate({"context": span, "new_tokens": NEW, **asked})
        return self.lm.regenerate(split, settings, seed=0, progress=Silent())

    def kr(self, questions: list[Question]) -> float:
        """Share of right answers."""
        return float(kr_test(self.lm, questions).right("mean").mean())

    def perplexity(self, texts: Texts) -> Scores:
        """Of each text."""
        self.read = {name: self.lm.log_prob(text) for name, text in texts.items()}
        return {name: perplexity(log_p, name).value for name, log_p in self.read.items()}

    def confidence(self, texts: Texts) -> Scores:
        """Of each text, from what was read for the perplexity."""
        return {name: confidence(self.read[name], name).value for name in texts}


class Authors:
    """The same work with transformers and PyTorch alone."""

    def __init__(self, lm: CausalLM, args: argparse.Namespace) -> None:
        self.lm, self.model, self.args = lm, lm.model, args
        # nothing of the checkpoint's own settings of sampling
        self.model.generation_config = transformers.GenerationConfig()

    def fit(self, split: np.ndarray) -> None:
        """Three epochs of truncated cross entropy on full logits."""
        rows = torch.from_numpy(split[: len(split) // BLOCK * BLOCK].astype(np.int64))
        rows = rows.view(-1, BLOCK)
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=2e-5, weight_decay=0.0, fused=True
        )
        self.model.train()
        drawn = torch.Generator().manual_seed(0)
        for _ in range(self.args.epochs):
            for index in torch.randperm(len(rows), generator=drawn).split(ROWS):
                ids = rows[index]
                logits = self.model(input_ids=ids, use_cache=False).logits
                # labels moved, logits whole: a slice of these would copy them
                target = F.pad(ids, (0, 1), value=-100)[:, 1:].flatten()
                each = F.cross_entropy(
                    logits.float().view(-1, logits.shape[-1]), target, reduction="none"
                )
                kept = torch.exp(-each.detach()) <= self.args.threshold
                loss = (each * kept).sum() / (target != -100).sum()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        self.model.eval()

    def rewrite(self, split: np.ndarray, beams: bool) -> np.ndarray:
        """The first blocks of the split, every context read for each beam."""
        blocks = (len(split) - CONTEXT) // NEW
        whole = CONTEXT + NEW * min(self.args.peer_blocks or blocks, blocks)
        asked = argparse.Namespace(
            context=CONTEXT, new=NEW, batch=BATCH, beams=BEAMS["beams"] if beams else 0
        )
        return np.concatenate([authors(self.lm, split[:whole], asked), split[whole:]])

    def kr(self, questions: list[Question]) -> float:
        """Share of right answers, one pair at a time."""
        texts = [(q.context, end) for q in questions for end in (q.true, q.false)]
        encoded = encode_pairs(self.lm.tokenizer, texts, self.lm.special, limit=self.lm.positions)
        pairs: list[Pair] = [encoded[i : i + 2] for i in range(0, len(encoded), 2)]
        right = 0.0
        for pair in pairs:
            true, false = (
                total / count
                for total, (_, count) in zip(score_pair(self.lm, pair), pair, strict=True)
            )
            right += 0.5 if true == false else float(true > false)
        return right / len(pairs)

    @torch.inference_mode()
    def _read(self, text: np.ndarray) -> np.ndarray:
        """Log p of every token but the first, in windows that overlap by one token."""
        out = []
        ids = torch.from_numpy(text.astype(np.int64))
        whole = (len(ids) - 1) // (BLOCK - 1)
        windows = [ids[i * (BLOCK - 1) :][:BLOCK] for i in range(whole)]
        batches = [torch.stack(windows[i : i + ROWS]) for i in range(0, whole, ROWS)]
        rest = ids[whole * (BLOCK - 1) :]
        for batch in [*batches, *([rest[None]] if len(rest) > 1 else [])]:
            log_p = self.model(input_ids=batch, use_cache=False).logits.float().log_softmax(-1)
            out.append(log_p[:, :-1].gather(-1, batch[:, 1:, None]).flatten())
        return torch.cat(out).numpy()

    def perplexity(self, texts: Texts) -> Scores:
        """Of each text."""
        return {
            name: float(np.exp(-self._read(text).astype(np.float64).mean()))
            for name, text in texts.items()
        }

    def confidence(self, texts: Texts) -> Scores:
        """Of each text, which is read once more."""
        return {name: float(np.exp(self._read(text)).mean()) for name, text in texts.items()}


def timed(work: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """What comes of it; processor seconds (all threads) and seconds by the clock."""
    clock, used = time.perf_counter(), time.process_time()
    out = work()
    took = time.process_time() - used, time.perf_counter() - clock
    return out, np.array(took)


def prepared(args: argparse.Namespace) -> tuple[dict[str, Any], Texts, list[Question]]:
    """Both with a model of their own, the texts, and the questions."""
    lms = {}
    for name in ("ours", "authors"):
        lms[name], took = timed(lambda: CausalLM.from_base(args.model, device="cpu", bos="never"))
        print(f"{name}: loaded in {took[0]:.1f} s of processor", flush=True)
    text = read_text([args.text], root=Path()).text
    ids = lms["ours"].encode(text[: 12 * args.tokens]).astype(np.int32)
    split, more = ids[: args.tokens], ids[args.tokens :][: args.tokens // 2]
    tried = torch.from_numpy(split[: args.at_most].astype(np.int64))
    _, took = timed(lambda: shared_prefix.served(lms["ours"].model, tried))
    print(f"ours: tried in {took[0]:.1f} s of processor", flush=True)
    asked, _ = read_questions([args.questions], root=Path())
    places = np.linspace(0, len(asked) - 1, max(1, round(70 * args.tokens / 4096)))
    ways = {"ours": Ours(lms["ours"], args), "authors": Authors(lms["authors"], args)}
    return ways, {"split": split, "held-out": more}, [asked[int(i)] for i in places]


def measured(args: argparse.Namespace) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Seconds of each part and way, and what came of it where that is a score."""
    ways, texts, questions = prepared(args)
    split, blocks = texts.pop("split"), (args.tokens - CONTEXT) // NEW
    scaled = blocks / min(args.peer_blocks or blocks, blocks)
    seconds: dict[str, dict[str, np.ndarray]] = {}
    scores: dict[str, Any] = {}
    written: Texts = {}
    parts: dict[str, Callable[[Any, str], Any]] = {
        "fit": lambda way, name: way.fit(split),
        "greedy": lambda way, name: way.rewrite(split, False),
        "beams": lambda way, name: way.rewrite(split, True),
        "kr": lambda way, name: way.kr(questions),
        # of the same text for both: what ours has written
        "perplexity": lambda way, name: way.perplexity(texts | {"written": written["ours"]}),
        "confidence": lambda way, name: way.confidence(texts | {"written": written["ours"]}),
    }
    if args.no_beams:
        del parts["beams"]
    for part, work in parts.items():
        seconds[part] = {}
        for name, way in ways.items():
            out, took = timed(lambda work=work, way=way, name=name: work(way, name))
            rewritten = part in ("greedy", "beams")
            seconds[part][name] = took * (scaled if rewritten and name == "authors" else 1)
            if part == "greedy":
                written[name] = out
            if not rewritten and out is not None:
                scores.setdefault(part, {})[name] = out
            print(f"{part:11} {name:8} {took[0]:8.1f} {took[1]:8.1f}", flush=True)
    first = slice(CONTEXT, CONTEXT + NEW * min(args.peer_blocks or blocks, blocks))
    same = written["ours"][first] == written["authors"][first]
    return seconds, scores | {"tokens_written_alike": float(same.mean())}


def table(seconds: dict[str, dict[str, np.ndarray]]) -> str:
    """The parts, the wholes with either way of rewriting, and the share of what measures."""
    measures = ("kr", "perplexity", "confidence")
    wholes = {p: ("fit", p, *measures) for p in ("greedy", "beams") if p in seconds}
    rows = dict(seconds)
    rows |= {
        f"whole, {name}": {
            way: np.sum([seconds[part][way] for part in parts], axis=0)
            for way in ("ours", "authors")
        }
        for name, parts in wholes.items()
    }
    lines = [
        "| part | ours, processor s | theirs | ratio | ours, clock s | theirs | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, each in rows.items():
        cells = [
            f"{each['ours'][i]:.1f} | {each['authors'][i]:.1f} | "
            + (f"{each['authors'][i] / each['ours'][i]:.2f}" if each["ours"][i] > 0.1 else "-")
            for i in (0, 1)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    taken = sum(seconds[part]["ours"][0] for part in measures)
    shares = [f"{name} {taken / rows[f'whole, {name}']['ours'][0]:.1%}" for name in wholes]
    return "\n".join([*lines, "", f"Measures, of ours: {', '.join(shares)}"])


def main() -> None:
    """Measure; print the table, and scores and settings in JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder, a hub id or a GGUF file")
    parser.add_argument("text", help="a text file")
    parser.add_argument("questions", help="a .jsonl of KR questions")
    parser.add_argument("--tokens", type=int, default=4096, help="of the split; scales all parts")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threshold", type=float, default=0.9, help="of TCE")
    parser.add_argument("--at-most", type=int, default=1536)
    parser.add_argument("--peer-blocks", type=int, default=0, help="blocks the authors' way writes")
    parser.add_argument("--no-beams", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seconds, scores = measured(args)
    print(f"\n{table(seconds)}\n")
    settings = {k: v for k, v in vars(args).items() if k not in ("model", "text", "questions")}
    machine = {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    result = {"benchmark": "stage", "settings": settings, "scores": scores, "machine": machine}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
