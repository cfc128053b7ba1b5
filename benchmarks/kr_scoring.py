"""Knowledge Retention questions per second: batched, against one question (a pair) at a time.

The peers score the same questions with the same model in the same run, in turn:

- ``pair``: a question's two sentences in one padded batch of two;
- ``single``: each sentence in a forward pass of its own.

Both peers are handed the token ids ready-made; ours starts from the texts. With ``--model`` the
model is a real checkpoint, ours scores the same ``--peer-questions`` (drawn evenly from all of
them) as the peers do, and the reads that each way needs are counted: what is left of the ratio by
arithmetic alone. Then, for a random model, the peak memory of scoring, and of log-probabilities as
perplexity takes them, for a small and an 8 times larger input, each in a process of its own. Run
``python benchmarks/kr_scoring.py --help``.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from fortifai.data.bios import bios
from fortifai.data.questions import Question, read_questions
from fortifai.data.tokens import encode_pairs
from fortifai.evals.kr_test import kr_test
from fortifai.models import continuations, scratch
from fortifai.models.causal_lm import CausalLM
from generation import spread

Pair = list[tuple[list[int], int]]


def setting(args: argparse.Namespace) -> tuple[CausalLM, list[Question]]:
    """The model (random unless a checkpoint is given: weights do not change speed); questions."""
    if args.model:
        lm = CausalLM.from_base(args.model, device=args.device)
        args.positions = lm.positions
        questions, _ = read_questions([args.questions], root=Path.cwd())
        # evenly spread, so that their lengths are those of all
        places = np.linspace(0, len(questions) - 1, min(args.peer_questions, len(questions)))
        return lm, [questions[int(i)] for i in places]
    if args.questions:
        questions, _ = read_questions([args.questions], root=Path.cwd())
        text = " ".join(f"{q.context} {q.true} {q.false}" for q in questions)
    else:
        corpus, questions = bios(400, 0)
        text = " ".join(d.text for d in corpus.documents)
    tokenizer = scratch.train_tokenizer([text], args.vocab)
    model = scratch.build(
        "llama",
        hidden_size=args.hidden,
        layers=args.layers,
        heads=4,
        vocab_size=args.vocab,
        max_positions=args.positions,
        seed=0,
    )
    return CausalLM(model, tokenizer, device=args.device), questions


@torch.inference_mode()
def score_pair(lm: CausalLM, pair: Pair) -> list[float]:
    """The two sentences of a question in one padded batch."""
    width = max(len(ids) for ids, _ in pair)
    tokens = torch.zeros(2, width, dtype=torch.long)
    mask = torch.zeros(2, width, dtype=torch.long)
    for row, (ids, _) in enumerate(pair):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    tokens, mask = tokens.to(lm.device), mask.to(lm.device)
    log_p = lm.model(input_ids=tokens, attention_mask=mask).logits.float().log_softmax(-1)
    taken = log_p[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return [
        float(taken[row, len(ids) - count - 1 : len(ids) - 1].sum())
        for row, (ids, count) in enumerate(pair)
    ]


@torch.inference_mode()
def score_single(lm: CausalLM, pair: Pair) -> list[float]:
    """Each sentence in a forward pass of its own."""
    out = []
    for ids, count in pair:
        tokens = torch.tensor([ids]).to(lm.device)
        log_p = lm.model(input_ids=tokens).logits.float().log_softmax(-1)
        out.append(float(log_p[0, :-1].gather(-1, tokens[0, 1:, None])[-count:].sum()))
    return out


def timed(work: Callable[[], list[list[float]]]) -> tuple[float, float, np.ndarray]:
    """Seconds taken by the clock and of the processor, and what came of it."""
    began, used = time.perf_counter(), time.process_time()
    out = work()
    return time.perf_counter() - began, time.process_time() - used, np.array(out)


def reads(lm: CausalLM, pairs: list[Pair]) -> dict[str, object]:
    """Tokens that go through the layers and positions with logits, and the products they take.

    A token takes two operations for each parameter of the layers, a position with logits two for
    each of the output layer.
    """
    head = lm.model.get_output_embeddings().weight.numel()
    body = sum(
        p.numel()
        for name, p in lm.model.named_parameters()
        if p.ndim == 2 and p is not lm.model.get_input_embeddings().weight and "lm_head" not in name
    )
    rows = continuations._packed([s for p in pairs for s in p], share=True)
    padded = sum(2 * max(len(ids) for ids, _ in p) for p in pairs)
    alone = sum(len(ids) for p in pairs for ids, _ in p)
    own = (sum(len(r.tokens) for r in rows), sum(len(r.tokens) - r.first for r in rows))
    ways = {"ours": own, "pair": (padded, padded), "single": (alone, alone)}
    products = {name: 2 * (body * tokens + head * n) for name, (tokens, n) in ways.items()}
    return {
        "tokens": {name: tokens for name, (tokens, _) in ways.items()},
        "logits": {name: n for name, (_, n) in ways.items()},
        "giga_operations": {name: round(n / 1e9) for name, n in products.items()},
        "times_by_products_alone": {
            name: round(products[name] / products["ours"], 2) for name in ("pair", "single")
        },
    }


def speed(args: argparse.Namespace) -> dict[str, object]:
    """Questions per second of the three ways, in turn, and how far their answers agree."""
    lm, questions = setting(args)
    few = questions[: args.peer_questions]
    texts = [(q.context, end) for q in few for end in (q.true, q.false)]
    encoded = encode_pairs(lm.tokenizer, texts, lm.special, limit=args.positions)
    pairs: list[Pair] = [encoded[i : i + 2] for i in range(0, len(encoded), 2)]

    def ours() -> list[list[float]]:
        result = kr_test(lm, questions)
        return np.stack([result.true["sum"], result.false["sum"]], axis=1).tolist()

    ways = {
        "ours": (ours, len(questions)),
        "pair": (lambda: [score_pair(lm, p) for p in pairs], len(few)),
        "single": (lambda: [score_single(lm, p) for p in pairs], len(few)),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    of_processor: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, np.ndarray] = {}
    if args.model:  # a question of each warms up: a turn takes minutes
        kr_test(lm, questions[:1])
        score_pair(lm, pairs[0])
    for turn in range(bool(args.model), args.turns + 1):
        for name, (work, count) in ways.items():
            seconds, used, answers[name] = timed(work)
            if turn:  # the first turn warms up
                rates[name].append(count / seconds)
                of_processor[name].append(count / used)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    by_turn = {
        f"ours / {name}": [a / b for a, b in zip(of_processor["ours"], values, strict=True)]
        for name, values in of_processor.items()
        if name != "ours"
    }
    reference, got = answers["single"], answers["ours"][: len(few)]
    return {
        "questions": len(questions),
        "questions_per_second": {n: round(v, 1) for n, v in middle.items()},
        "spread": {n: [round(min(v), 1), round(max(v), 1)] for n, v in rates.items()},
        "questions_per_processor_second": {n: spread(v) for n, v in of_processor.items()},
        "times_by_turn_of_processor": {n: spread(v) for n, v in by_turn.items()},
        **(reads(lm, pairs) if args.model else {}),
        "times_pair": round(middle["ours"] / middle["pair"], 2),
        "times_single": round(middle["ours"] / middle["single"], 2),
        "largest_difference_nats": float(np.abs(got - reference).max()),
        "same_choices": bool(
            ((got[:, 0] > got[:, 1]) == (reference[:, 0] > reference[:, 1])).all()
        ),
    }


def child(args: argparse.Namespace) -> None:
    """Do the work of one memory measurement and print the growth of this process's peak in MiB."""
    lm, questions = setting(args)
    what, size = args.child.split(":")
    kr_test(lm, questions[:2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if what == "kr":
        # the same questions again under other contexts, so that none is scored with another
        many = [
            Question(f"{i // len(questions)} {q.context}", q.true, q.false, 1)
            for i, q in enumerate(questions * (int(size) // len(questions) + 1))
        ]
        kr_test(lm, many[: int(size)])
    else:
        lm.log_prob(np.arange(int(size), dtype=np.int32) % args.vocab)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    print(round((peak - before) / unit, 1))


def memory(args: argparse.Namespace) -> dict[str, float]:
    """Growth of the peak memory in MiB, by work and size."""
    sizes = ["kr:500", "kr:4000", "log_prob:20000", "log_prob:160000"]
    own = [a for a in sys.argv[1:] if not a.startswith("--child")]
    return {
        size: float(
            subprocess.run(
                [sys.executable, __file__, *own, f"--child={size}"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()[-1]
        )
        for size in sizes
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a checkpoint, with --questions; random if left out")
    parser.add_argument("--questions", help="a .jsonl of KR questions; without it, bios' own")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--positions", type=int, default=128)
    parser.add_argument("--peer-questions", type=int, default=300, help="the peers' share")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model and not args.questions:
        parser.error("--model needs --questions")
    torch.set_num_threads(args.threads)
    if args.child:
        child(args)
        return
    settings = {k: v for k, v in vars(args).items() if k not in ("child", "questions", "model")}
    result = {
        "benchmark": "kr_scoring",
        "settings": settings | {"source": "file" if args.questions else "bios"},
        **speed(args),
        **({} if args.model else {"peak_memory_growth_mib": memory(args)}),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": args.device,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
