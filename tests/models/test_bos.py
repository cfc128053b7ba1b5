"""Every sequence that a model is given begins with bos, where it was trained so.

A hook on the model watches what it is given, in every place where fortifai gives it something. What
it answers is compared with what transformers' own call gives for the sequence as it should be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from fortifai.audit import audit_model
from fortifai.audit.threshold import suggest_threshold
from fortifai.data.exam import FORMATS, Asked, Item
from fortifai.data.questions import Question
from fortifai.errors import InputError
from fortifai.evals import formats
from fortifai.evals.kr_test import kr_test
from fortifai.lab.progress import Silent
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import RegenerateOptions, TrainOptions
from fortifai.weights import Keep
from tests.tokenizers_made import byte_level

BOS, END = 2, 1
POSITIONS = 96
WORDS = "the cat sat on a mat and then it ran far away from home in rain".split()  # noqa: SIM905 - one line


def made(*, bos: Any = "auto", rows: int | None = None, puts_bos: bool = True) -> CausalLM:
    """A tiny Gemma with random weights, sharp enough that its answers differ."""
    tokenizer = byte_level(puts_bos=puts_bos)
    config = Gemma3TextConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=POSITIONS,
        max_position_embeddings=POSITIONS,
        bos_token_id=BOS,
        eos_token_id=END,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(30)
    return CausalLM(model, tokenizer, device="cpu", block=16, bos=bos)


class Watch:
    """The first token of every sequence that a model reads from its start."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.first: list[int] = []
        self.rows: list[list[int]] = []
        self.hook = model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        past = kwargs.get("cache", kwargs.get("past_key_values"))
        if past is not None and past.get_seq_length():
            return
        mask = kwargs.get("attention_mask")
        for i, row in enumerate(ids.tolist()):
            padded = mask is not None and mask.dim() == 2
            at = int(mask[i].long().argmax()) if padded else 0
            self.first.append(row[at])
            self.rows.append(row[at:])

    def seen(self) -> set[int]:
        assert self.first, "nothing was read"
        out = set(self.first)
        self.first.clear()
        return out


@pytest.fixture
def lm() -> CausalLM:
    return made()


@pytest.fixture
def watch(lm: CausalLM) -> Iterator[Watch]:
    watch = Watch(lm.model)
    yield watch
    watch.hook.remove()


@pytest.fixture
def stream(lm: CausalLM) -> np.ndarray:
    rng = np.random.default_rng(0)
    text = [" ".join(rng.choice(WORDS, 12)) for _ in range(12)]
    ids = [[*lm.encode(line).tolist(), END] for line in text]
    return np.concatenate([np.array(i, dtype=np.int32) for i in ids])


def settings(**changes: Any) -> RegenerateOptions:
    return RegenerateOptions(**{"context": 12, "new_tokens": 4, "batch_size": 7, **changes})


DECODINGS: list[dict[str, Any]] = [
    {"kind": "greedy"},
    {"kind": "sample"},
    {"kind": "beam", "beams": 2, "repetition_penalty": 1.2},
]


class TestWhereverAModelReads:
    def test_scoring_windows(self, lm, watch, stream):
        lm.log_prob(stream)
        assert watch.seen() == {BOS}
        lm.log_prob_and_entropy(stream)
        assert watch.seen() == {BOS}
        lm.window_log_prob(stream[:48].reshape(4, 12))
        assert watch.seen() == {BOS}

    def test_training_blocks(self, lm, watch, stream, tmp_path):
        train = TrainOptions(epochs=1, batch_size=4, block=16, learning_rate=1e-3)
        report = lm.fit(
            stream, Keep(), train, seed=0, workdir=tmp_path, select=None, progress=Silent()
        )
        assert watch.seen() == {BOS}
        blocks = [row for row in watch.rows if len(row) == 16]
        # bos takes one place of the block, and every token of the text is read once
        assert len(blocks) == len(stream) // 15
        assert sorted(blocks) == sorted(
            [BOS, *row] for row in stream[: len(blocks) * 15].reshape(-1, 15).tolist()
        )
        assert report.tokens == len(blocks) * 15

    @pytest.mark.parametrize("decoding", DECODINGS, ids=lambda d: d["kind"])
    @pytest.mark.parametrize("mode", ["blocks", "documents"])
    def test_contexts_of_generation(self, lm, watch, stream, decoding, mode):
        ask = settings(mode=mode, keep=3, decoding=decoding)
        out = lm.regenerate(stream, ask, seed=0, progress=Silent())
        assert watch.seen() == {BOS}
        assert BOS not in out
        if mode == "blocks":
            # bos takes the place of the oldest token of the context
            assert {len(row) for row in watch.rows} == {12}
            first = [BOS, *stream[1:12].tolist()]
            assert first in watch.rows

    def test_documents_longer_than_the_model(self, lm, watch):
        rng = np.random.default_rng(1)
        long = np.append(rng.integers(5, 100, 3 * POSITIONS), END).astype(np.int32)
        lm.regenerate(long, settings(mode="documents", keep=8), seed=0, progress=Silent())
        assert watch.seen() == {BOS}
        assert max(map(len, watch.rows)) == POSITIONS // 2

    def test_prompts_that_are_continued(self, lm, watch, stream):
        lm.write(stream[:24].reshape(2, 12), 4, settings().decoding, seed=0)
        assert watch.seen() == {BOS}

    def test_the_audit_and_the_threshold(self, lm, watch):
        text = " ".join(np.random.default_rng(0).choice(WORDS, 4000))
        found = audit_model(lm, text, windows=16, size=8)
        assert watch.seen() == {BOS}
        assert "each behind <bos>" in found.sampled
        suggest_threshold(lm, text, windows=16, size=8)
        assert watch.seen() == {BOS}

    def test_questions(self, lm, watch):
        asked = [
            Question("the cat sat on", "a mat", "home", 1),
            Question("", "the cat", "rain", 2),
            Question("it ran far " * 60, "away", "home", 3),
        ]
        kr_test(lm, asked)
        assert watch.seen() == {BOS}

    @pytest.mark.parametrize("chat", [False, True])
    def test_formats(self, lm, watch, chat):
        lm.tokenizer.chat_template = (
            "{% for m in messages %}<start_of_turn>{{ m.content }}<end_of_turn>{% endfor %}"
            "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
        )
        item = Item("Where?", "the cat sat on", ("a mat", "home"), 0)
        sitting = formats.Exam((Asked(item),), ("short_answer", "no_instruction"), chat=chat)
        formats.examine(lm, sitting)
        assert watch.seen() == {BOS}

    def test_benchmarks(self, lm, watch):
        pytest.importorskip("lm_eval")
        from lm_eval.api.instance import Instance

        from fortifai.evals import harness

        for puts in (True, False):
            # where the tokenizer leaves bos out, the harness is told to put it there
            asked = made(puts_bos=puts)
            watch = Watch(asked.model)
            with harness.as_command():
                adapter = harness.Model(
                    asked.model, asked.tokenizer, asked.special, lambda done, total: None
                )
            adapter.sums_suffice = True
            pairs = [("the cat sat", " on a mat"), ("", "the cat")]
            adapter.loglikelihood(
                [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
            )
            assert watch.seen() == {BOS}


class TestWhatIsAnswered:
    """Equal to transformers' own forward pass on the sequences as they should be."""

    def reference(self, lm: CausalLM, ids: list[int]) -> np.ndarray:
        """Log p of each of `ids`, behind bos, in fp64 from fp32 logits."""
        with torch.inference_mode():
            logits = lm.model(torch.tensor([[BOS, *ids]])).logits[0, :-1].double()
        log_p = torch.log_softmax(logits, -1)
        return log_p[torch.arange(len(ids)), torch.tensor(ids)].numpy()

    def test_log_prob(self, lm, stream):
        got = lm.log_prob(stream)
        assert got.shape == stream.shape  # bos is never scored
        for start in range(0, len(stream), 15):
            want = self.reference(lm, stream[start : start + 15].tolist())
            # fp32 in batches of another shape: a hundred times what was seen
            np.testing.assert_allclose(got[start : start + 15], want, atol=1e-3)

    def test_window_log_prob(self, lm, stream):
        got = lm.window_log_prob(stream[None, :20])
        want = self.reference(lm, stream[:20].tolist())
        assert got.shape == (1, 19)
        np.testing.assert_allclose(got[0], want[1:], atol=1e-3)

    def test_greedy_blocks(self, lm, stream):
        out = lm.regenerate(stream, settings(), seed=0, progress=Silent())
        for start in range(0, 24, 4):
            ids = [BOS, *stream[start + 1 : start + 12].tolist()]
            for token in out[start + 12 : start + 16].tolist():
                with torch.inference_mode():
                    logits = lm.model(torch.tensor([ids])).logits[0, -1].clone()
                    logits[BOS] = -torch.inf
                assert token == int(logits.argmax())
                ids.append(token)

    def test_never_is_never(self, stream):
        lm = made(bos="never")
        watch = Watch(lm.model)
        lm.log_prob(stream)
        # the token before each window is its context, and the end of a text before the first
        assert watch.rows[0][0] == END
        assert watch.rows[1][0] == stream[14]


def test_a_model_remembers_how_it_reads(tmp_path):
    for bos, token in (("never", None), ("always", BOS), ("auto", BOS)):
        folder = tmp_path / bos
        made(bos=bos).save(folder)
        assert json.loads((folder / "fortifai.json").read_text())["bos"] == bos
        assert CausalLM.load(folder).special.bos == token
    assert CausalLM.load(tmp_path / "never", bos="auto").special.bos == BOS
    # models that were saved before this was written down were trained without
    (tmp_path / "auto" / "fortifai.json").write_text('{"block": 16, "dtype": "float32"}')
    assert CausalLM.load(tmp_path / "auto").special.bos is None


class TestPaddedVocabulary:
    """Ids that the tokenizer does not have are never written, whatever the decoding."""

    @pytest.mark.parametrize("decoding", DECODINGS, ids=lambda d: d["kind"])
    @pytest.mark.parametrize("mode", ["blocks", "documents"])
    def test_never_written(self, decoding, mode):
        size = len(byte_level())
        lm = made(rows=size + 40)
        with torch.no_grad():  # make each of them as likely as can be
            lm.model.lm_head.weight[size:] = lm.model.lm_head.weight[:40] * 3
        stream = np.random.default_rng(0).integers(5, size, 60).astype(np.int32)
        ask = settings(mode=mode, keep=3, decoding=decoding)
        out = lm.regenerate(stream, ask, seed=0, progress=Silent())
        assert int(out.max()) < size
        assert np.isfinite(lm.log_prob(out)).all()

    def test_nor_after_prompts(self):
        size = len(byte_level())
        lm = made(rows=size + 40)
        with torch.no_grad():
            lm.model.lm_head.weight[size:] = lm.model.lm_head.weight[:40] * 3
        written = lm.write_greedily([[BOS, 7, 8], [BOS, 9]], 12)
        assert max(map(max, written)) < size
        assert all(BOS not in row for row in written)


def test_every_format_is_asked_of_a_model_with_bos(lm):
    """The length that a question takes counts bos."""
    item = Item("Where?", "the cat sat on", ("a mat", "home"), 0)
    sitting = formats.Exam((Asked(item),), FORMATS, answer_tokens=4)

    def fits(special: Any, positions: int) -> bool:
        try:
            sitting.check(lm.tokenizer, positions, special)
        except InputError:
            return False
        return True

    least = next(n for n in range(1, 500) if fits(made(bos="never").special, n))
    assert not fits(lm.special, least)
    assert fits(lm.special, least + 1)


def test_the_run_says_what_was_done(tmp_path: Path):
    from fortifai.configuration import resolve

    made().save(tmp_path / "gemma")
    rng = np.random.default_rng(0)
    (tmp_path / "t.txt").write_text(" ".join(rng.choice(WORDS, 3000)))
    told = {
        "name": "x",
        "generations": 2,
        "baseline": "ce",
        "corpus": {"kind": "text", "files": ["t.txt"]},
        "splits": {"tokens": 400},
        "family": {"kind": "causal_lm", "base": "gemma"},
        "train": {"block": 16, "batch_size": 4, "epochs": 1},
        "regenerate": {"context": 12, "new_tokens": 4},
        "arms": {"ce": {}},
    }
    data = resolve(told).read(tmp_path)
    assert ("beginning of text", "<bos> (id 2) before every sequence") in data.facts
    # 400 tokens in blocks of 15 and one bos, four at a time
    assert data.effort("ce", 400) == (400, 7)
    told["family"]["bos"] = "never"
    data = resolve(told).read(tmp_path)
    assert ("beginning of text", "no token") in data.facts
    assert data.effort("ce", 400) == (400, 7)
