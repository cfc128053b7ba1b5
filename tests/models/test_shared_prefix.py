"""Blocks that share one reading of their chunk are those that are written alone.

The reference reads each block's context by itself, whole, without a cache, and judges every token
that was written from all before it. Where two tokens are equally likely up to rounding, either is
right; such ties are counted, and there must be next to none.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from fortifai.errors import InputError
from fortifai.lab.progress import Silent
from fortifai.models import generation, shared_prefix
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import RegenerateOptions
from tests.tokenizers_made import byte_level

POSITIONS, WINDOW, BOS = 64, 9, 2
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": None,
    "bos_token_id": BOS,
    "eos_token_id": 1,
}
SMALL = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": POSITIONS,
    "bos_token_id": BOS,
    "eos_token_id": 1,
}
FAMILIES: dict[str, Any] = {
    "llama": lambda v: LlamaConfig(**SIZES, vocab_size=v),
    "smollm": lambda v: LlamaConfig(**SIZES, vocab_size=v, tie_word_embeddings=True),
    "mistral": lambda v: MistralConfig(**SIZES, vocab_size=v, sliding_window=WINDOW),
    "qwen2": lambda v: Qwen2Config(
        **SIZES, vocab_size=v, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2
    ),
    "qwen3": lambda v: Qwen3Config(**SIZES, vocab_size=v),
    "gemma2": lambda v: Gemma2Config(
        **SIZES,
        vocab_size=v,
        sliding_window=WINDOW,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=20.0,
    ),
    "gemma3": lambda v: Gemma3TextConfig(**SIZES, vocab_size=v, sliding_window=WINDOW),
    "gpt2": lambda v: GPT2Config(**SMALL, vocab_size=v),
    "gpt_oss": lambda v: GptOssConfig(
        **SIZES,
        vocab_size=v,
        sliding_window=WINDOW,
        num_local_experts=2,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    ),
}


def made(config: Any, *, bos: Any = "never", puts_bos: bool = False) -> CausalLM:
    """A model with random weights, large enough that what it reads decides what it writes."""
    tokenizer = byte_level(puts_bos=puts_bos)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config(len(tokenizer)))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                # weights of products alone: norms are one-dimensional; sinks are drawn anew
                if weight.dim() > 1:
                    weight.normal_(0, 0.3)
                elif "sinks" in name:
                    weight.normal_(0, 2.0)
    return CausalLM(model, tokenizer, device="cpu", block=16, bos=bos)


@pytest.fixture(autouse=True)
def pieces(monkeypatch: Any) -> None:
    """The rows of a chunk attend in several products, as those of long chunks do."""
    monkeypatch.setattr(shared_prefix, "SPREAD", {"cpu": 8})


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: Any) -> CausalLM:
    return made(FAMILIES[request.param])


@pytest.fixture
def lm() -> CausalLM:
    return made(FAMILIES["gemma3"])


@pytest.fixture(scope="module")
def stream() -> np.ndarray:
    return np.random.default_rng(5).integers(5, 250, 150).astype(np.int32)


SPAN = {"at_least": 6, "at_most": 27}
NEW = 4
EACH = 5  # blocks a chunk: (27 - 6) // 4


def rewrite(lm: CausalLM, stream: np.ndarray, seed: int = 3, **changes: Any) -> np.ndarray:
    asked = {"context": SPAN, "new_tokens": NEW, **changes}
    settings = RegenerateOptions.model_validate(asked)
    return lm.regenerate(stream, settings, seed=seed, progress=Silent())


def blocks(
    stream: np.ndarray, *, least: int = 6, each: int = EACH, new: int = NEW, bos: bool = False
) -> Iterator[tuple[int, list[int], int]]:
    """Where each block begins, what it is written from, and its size."""
    for number, at in enumerate(range(least, len(stream), new)):
        begin = number // each * each * new
        context = stream[begin:at].tolist()
        if bos:
            context[0] = BOS
        yield at, context, min(new, len(stream) - at)


@torch.no_grad()
def logits_after(lm: CausalLM, context: Sequence[int], written: np.ndarray) -> torch.Tensor:
    """(written, vocabulary) logits that each token was chosen from, read at once, no cache."""
    ids = torch.tensor([[*context, *written.tolist()]])
    found = lm.model(input_ids=ids, use_cache=False).logits[0].double()
    return found[len(context) - 1 : -1]


def ties_of_greedy(lm: CausalLM, context: Sequence[int], written: np.ndarray) -> int:
    """Tokens that are not the most likely one, but as likely up to rounding."""
    logits = logits_after(lm, context, written)
    logits[:, list(lm.special.never_written)] = -torch.inf
    top = logits.max(-1).values
    got = logits.gather(-1, torch.from_numpy(written.astype(np.int64))[:, None])[:, 0]
    # logits spread over some units, and 4 layers in float32 round them by some 1e-6
    assert bool((top - got < 1e-4).all()), (context, written)
    return int((got < top).sum())


class TestGreedy:
    def test_every_block_is_the_one_written_alone(self, family, stream):
        got = rewrite(family, stream)
        written = list(blocks(stream))
        assert sum(ties_of_greedy(family, c, got[at : at + n]) for at, c, n in written) <= 1
        assert {len(c) for _, c, _ in written} == {6, 10, 14, 18, 22}
        np.testing.assert_array_equal(got[:6], stream[:6])
        assert got.dtype == stream.dtype

    def test_the_reference_notices_a_wrong_context(self, family, stream):
        got, told = rewrite(family, stream), 0
        for at, context, n in blocks(stream):
            try:
                ties_of_greedy(family, [context[-1], *context[1:]], got[at : at + n])
            except AssertionError:
                told += 1
        assert told > 10  # of 36: most windows have lost the first token of their chunk

    # chunks advance by 20: at their borders, one beside them, with blocks cut short
    @pytest.mark.parametrize("size", [7, 10, 25, 26, 27, 46, 47, 61, 66, 67])
    def test_borders_and_short_last_blocks(self, lm, stream, size):
        part = stream[:size]
        got = rewrite(lm, part)
        assert got.shape == part.shape
        assert sum(ties_of_greedy(lm, c, got[at : at + n]) for at, c, n in blocks(part)) <= 1

    # the last one writes more than a window's tokens, which then leave it
    @pytest.mark.parametrize(
        ("span", "new", "each"),
        [
            ((1, 2), 1, 1),
            ((1, 12), 3, 3),
            ((5, 5 + 7), 7, 1),
            ((20, 63), 5, 8),
            ((2, 64), 1, 62),
            ((5, 50), 15, 3),
        ],
    )
    def test_spans(self, lm, stream, span, new, each):
        least, most = span
        context = {"at_least": least, "at_most": most}
        got = rewrite(lm, stream, context=context, new_tokens=new)
        found = blocks(stream, least=least, each=each, new=new)
        assert sum(ties_of_greedy(lm, c, got[at : at + n]) for at, c, n in found) <= 1

    @pytest.mark.parametrize("spread", [1, 5, 100])
    def test_products_may_be_of_any_rows(self, lm, stream, monkeypatch, spread):
        whole = rewrite(lm, stream)
        monkeypatch.setattr(shared_prefix, "SPREAD", {"cpu": spread})
        np.testing.assert_array_equal(rewrite(lm, stream), whole)

    def test_one_block_a_chunk_is_a_context_of_exactly_so_many(self, lm, stream):
        exact = rewrite(lm, stream, context={"exactly": 6})
        np.testing.assert_array_equal(exact, rewrite(lm, stream, context=6))
        span = {"at_least": 6, "at_most": 6 + NEW}
        np.testing.assert_array_equal(exact, rewrite(lm, stream, context=span))
        assert (exact != rewrite(lm, stream)).any()

    @pytest.mark.parametrize("puts_bos", [False, True])
    def test_bos_stands_before_every_chunk_and_is_never_written(self, stream, puts_bos):
        lm = made(FAMILIES["gemma3"], bos="always", puts_bos=puts_bos)
        favourite = int(np.bincount(rewrite(lm, stream)[6:]).argmax())
        with torch.no_grad():  # a model that would write bos: its row of the head leads
            head = lm.model.get_output_embeddings()
            head.weight = torch.nn.Parameter(head.weight.clone())
            head.weight[BOS] = 2 * head.weight[favourite]
        got = rewrite(lm, stream)
        assert BOS not in got
        found = blocks(stream, bos=True)
        assert sum(ties_of_greedy(lm, c, got[at : at + n]) for at, c, n in found) <= 1
        told = [logits_after(lm, c, got[at : at + n]).argmax(-1) for at, c, n in blocks(stream)]
        assert (torch.cat(told) == BOS).any(), "else nothing was forbidden"


class TestSampling:
    ASK: ClassVar[dict[str, Any]] = {"kind": "sample", "temperature": 0.8, "top_k": 40}

    def test_every_token_is_the_one_its_number_draws(self, family, stream):
        got, ties = rewrite(family, stream, decoding=self.ASK), 0
        for number, (at, context, size) in enumerate(blocks(stream)):
            drawn = np.random.default_rng((3, number, 0)).random(size)
            logits = logits_after(family, context, got[at : at + size]) / 0.8
            logits[:, list(family.special.never_written)] = -torch.inf
            for row, token, u in zip(logits, got[at : at + size], drawn, strict=True):
                order = row.argsort(descending=True, stable=True)[:40]
                p = row[order].softmax(-1)
                place = int((order == int(token)).nonzero())
                below, above = float(p[:place].sum()), float(p[: place + 1].sum())
                assert below - 1e-4 < u < above + 1e-4  # rounding as above
                ties += not below <= u < above
        assert ties <= 1

    def test_neither_batch_nor_chunk_of_a_batch_chooses_the_text(self, lm, stream):
        whole = rewrite(lm, stream, decoding=self.ASK)
        for rows in (1, 2, 5, 7, 40):
            found = rewrite(lm, stream, decoding=self.ASK, batch_size=rows)
            np.testing.assert_array_equal(found, whole)
        assert (rewrite(lm, stream, seed=4, decoding=self.ASK) != whole).any()


def penalised(lm: CausalLM, context: list[int], written: np.ndarray, penalty: float) -> float:
    """The score of a text, as a search with repetition penalty counts it."""
    log_p = logits_after(lm, context, written).log_softmax(-1)
    total, said = 0.0, set(context)
    for row, token in zip(log_p, written.tolist(), strict=True):
        total += float(row[token]) * (penalty if token in said else 1)
        said.add(token)
    return total


class TestBeams:
    def generated(self, lm: CausalLM, context: list[int], size: int, **asked: Any) -> np.ndarray:
        lm.model.generation_config = GenerationConfig()
        prompt = torch.tensor([context])
        found = lm.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=size,
            min_new_tokens=size,
            do_sample=False,
            early_stopping=False,
            suppress_tokens=list(lm.special.never_written) or None,
            **asked,
        )
        return found[0, len(context) :].numpy()

    def check(self, lm: CausalLM, got: np.ndarray, found: Any, beam: dict[str, Any]) -> None:
        asked = {
            "num_beams": beam["beams"],
            "repetition_penalty": beam["repetition_penalty"],
            "length_penalty": beam.get("length_penalty", 1.0),
        }
        ties = 0
        for at, context, size in found:
            expected, written = self.generated(lm, context, size, **asked), got[at : at + size]
            if (expected != written).any():
                ties += 1
                pair = [
                    penalised(lm, context, text, beam["repetition_penalty"])
                    for text in (expected, written)
                ]
                assert pair[0] == pytest.approx(pair[1], abs=1e-3)  # sums of rounded logits
        assert ties <= 1

    @pytest.mark.parametrize("penalty", [1.0, 3.0])
    def test_chunks(self, family, stream, penalty):
        beam = {"kind": "beam", "beams": 5, "repetition_penalty": penalty}
        part = stream[:53]  # three chunks, the last one not full, its last block short
        got = rewrite(family, part, decoding=beam)
        self.check(family, got, blocks(part), beam)

    def test_contexts_of_exactly_so_many(self, family, stream):
        beam = {"kind": "beam", "beams": 3, "repetition_penalty": 2.0, "length_penalty": -1.0}
        part = stream[:60]
        got = rewrite(family, part, decoding=beam, context=12, new_tokens=6)
        self.check(family, got, blocks(part, least=12, each=1, new=6), beam)

    def test_tokens_that_are_never_written(self, stream):
        lm = made(FAMILIES["llama"], bos="always")
        beam = {"kind": "beam", "beams": 4, "repetition_penalty": 1.0}
        got = rewrite(lm, stream[:53], decoding=beam)
        assert BOS not in got
        self.check(lm, got, blocks(stream[:53], bos=True), beam)

    def test_batches_change_nothing(self, lm, stream):
        beam = {"kind": "beam", "beams": 3, "repetition_penalty": 1.5}
        whole = rewrite(lm, stream[:90], decoding=beam)
        for rows in (1, 3, 8):
            found = rewrite(lm, stream[:90], decoding=beam, batch_size=rows)
            np.testing.assert_array_equal(found, whole)


class Watch:
    """How many tokens a model reads at each call, and of how many rows at a time."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.read: list[int] = []
        self.rows: list[int] = []
        self.hook = model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, module: Any, args: Any, kwargs: Any) -> None:
        rows = "shared_prefix" in kwargs
        (self.rows if rows else self.read).append(kwargs["input_ids"].numel())


class TestWhatItCosts:
    def test_each_chunk_is_read_once(self, lm, stream):
        assert shared_prefix.served(lm.model, torch.from_numpy(stream[:22].astype(np.int64)))
        watch = Watch(lm.model)
        rewrite(lm, stream[:146])  # 35 blocks, 7 chunks of 22 tokens that are read
        assert sum(watch.read) == 7 * 22
        assert watch.rows == [35] * (NEW - 1)  # the first token follows from what was read

    @pytest.mark.parametrize(
        ("rows", "most"),
        # a chunk in parts; one at a time; two at a time, since a third would be over
        [(2, 2), (5, 5), (14, 10)],
    )
    def test_batch_size_bounds_what_is_written_at_a_time(self, lm, stream, rows, most):
        rewrite(lm, stream)
        watch = Watch(lm.model)
        rewrite(lm, stream, batch_size=rows)
        assert max(watch.rows) == most
        beam = {"kind": "beam", "beams": 3, "repetition_penalty": 1.0}
        watch.rows.clear()
        rewrite(lm, stream, batch_size=rows, decoding=beam)
        assert max(watch.rows) == 3 * most

    def test_prompts_are_read_once_for_all_beams(self, lm, stream):
        beam = {"kind": "beam", "beams": 5, "repetition_penalty": 1.0}
        rewrite(lm, stream[:20], decoding=beam, context=12)
        watch = Watch(lm.model)
        rewrite(lm, stream[:52], decoding=beam, context=12)
        assert sum(watch.read) == 10 * 12

    def test_the_attention_of_the_model_is_left_as_it_was(self, lm, stream, monkeypatch):
        before = lm.model.config._attn_implementation
        rewrite(lm, stream)
        assert lm.model.config._attn_implementation == before

        def fails(*args: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(shared_prefix.Rows, "unseen", fails)
        with pytest.raises(KeyboardInterrupt):
            rewrite(lm, stream)
        assert lm.model.config._attn_implementation == before


UNSERVED = {
    # linear biases instead of positions, in an attention of its own
    "bloom": (
        lambda v: BloomConfig(vocab_size=v, hidden_size=32, n_layer=2, n_head=4),
        "attention interface",
    ),
    # attends within pieces of 8 tokens, of which its attention is not told
    "llama4": (
        lambda v: Llama4TextConfig(
            **SIZES,
            vocab_size=v,
            attention_chunk_size=8,
            num_local_experts=2,
            intermediate_size_mlp=48,
            interleave_moe_layer_step=2,
        ),
        "different by",
    ),
}


class TestModelsThatCannotShare:
    @pytest.mark.parametrize("name", UNSERVED)
    def test_it_says_so_once_and_writes_the_same(self, stream, name):
        config, reason = UNSERVED[name]
        lm = made(config)
        with pytest.warns(UserWarning, match=reason):
            got = rewrite(lm, stream)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(rewrite(lm, stream, batch_size=3), got)
        assert sum(ties_of_greedy(lm, c, got[at : at + n]) for at, c, n in blocks(stream)) <= 1

    def test_frequencies_that_change_with_the_length(self, stream):
        # a text of more than 16 tokens turns all of its keys by other angles than a shorter one
        rope = {
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 1.0,
            "short_factor": [1.0] * 4,
            "long_factor": [3.0] * 4,
        }
        sizes = {**SIZES, "original_max_position_embeddings": 16, "rope_parameters": rope}
        lm = made(lambda v: Phi3Config(**sizes, vocab_size=v))
        with pytest.warns(UserWarning, match="rotary frequencies depend on the longest text"):
            got = rewrite(lm, stream)
        alone = rewrite(lm, stream, batch_size=1)
        np.testing.assert_array_equal(got, alone)

    def test_beams_and_documents(self, stream):
        lm = made(UNSERVED["bloom"][0])
        beam = {"kind": "beam", "beams": 3, "repetition_penalty": 2.0}
        with pytest.warns(UserWarning, match="BloomForCausalLM cannot share"):
            got = rewrite(lm, stream[:53], decoding=beam)
        TestBeams().check(lm, got, blocks(stream[:53]), beam)
        text = stream.copy()
        text[[30, 90]] = 1
        got = rewrite(lm, text, mode="documents", keep=4)
        np.testing.assert_array_equal(got == 1, text == 1)

    def test_a_served_model_warns_of_nothing(self, lm, stream):
        # pytest makes errors of warnings
        rewrite(lm, stream)

    def test_it_is_tried_again_on_longer_texts_alone(self, lm, stream, monkeypatch):
        rewrite(lm, stream)
        tried = []
        monkeypatch.setattr(shared_prefix, "_fault", lambda model, ids: tried.append(ids.shape[1]))
        rewrite(lm, stream)
        assert tried == []
        rewrite(lm, stream, context={"at_least": 6, "at_most": 60})
        assert tried == [54]  # the last block of a chunk is not read

    def test_half_precision_is_served(self, stream):
        lm = made(FAMILIES["gemma3"])
        lm.model.to(torch.bfloat16)
        got = rewrite(lm, stream)
        assert got.shape == stream.shape
        assert shared_prefix.served(lm.model, torch.from_numpy(stream[:22].astype(np.int64)))


def test_spans_longer_than_the_model_are_refused(lm, stream):
    rewrite(lm, stream, context={"at_least": 6, "at_most": POSITIONS})
    with pytest.raises(InputError, match=r"at_most 65 is 65 tokens, but the model reads 64"):
        rewrite(lm, stream, context={"at_least": 6, "at_most": POSITIONS + 1})


@pytest.mark.parametrize("size", [0, 5, 6])
def test_a_part_no_longer_than_at_least_is_refused(lm, stream, size):
    with pytest.raises(InputError, match="from a context of 6, so nothing of it would change"):
        rewrite(lm, stream[:size])


class TestDocuments:
    SIZES = (9, 0, 4, 5, 6, 31, 17, 9, 1, 12, 7)
    END = 1
    LIMIT = 24  # so that documents are written in segments of 12

    def documents(self) -> np.ndarray:
        rng = np.random.default_rng(8)
        parts = [np.append(rng.integers(5, 250, n), self.END) for n in self.SIZES]
        return np.concatenate(parts)[:-1].astype(np.int32)

    def rewrite(self, lm: CausalLM, monkeypatch: Any, **asked: Any) -> np.ndarray:
        monkeypatch.setattr("fortifai.models.documents.positions", lambda model: self.LIMIT)
        return rewrite(lm, self.documents(), mode="documents", keep=5, **asked)

    @pytest.mark.parametrize("kind", ["greedy", pytest.param("sample", marks=pytest.mark.long)])
    def test_joining_writes_what_is_written_alone(self, family, monkeypatch, kind):
        ask = {"decoding": {"kind": kind}}
        got = [self.rewrite(family, monkeypatch, batch_size=n, **ask) for n in (None, 1, 3)]
        assert (got[0] != self.documents()).any()
        # every document by itself, in the ordinary way: nothing joins or leaves
        monkeypatch.setattr(shared_prefix, "served", lambda model, ids: False)
        alone = self.rewrite(family, monkeypatch, batch_size=1, **ask)
        for each in got:
            np.testing.assert_array_equal(each, alone)

    def test_finished_rows_leave_and_waiting_ones_join(self, lm, monkeypatch):
        self.rewrite(lm, monkeypatch)
        watch = Watch(lm.model)
        self.rewrite(lm, monkeypatch, batch_size=3)
        todo = [n - 5 for n in self.SIZES if n > 5]
        # the first token of a segment follows from what is read; segments are of 12 tokens
        assert sum(watch.rows) == sum(todo) - sum(-(-n // 12) for n in todo)
        # all three places are taken until nobody waits: batches that are written to their
        # longest would thin out and fill up again
        assert max(watch.rows) == 3
        assert watch.rows == sorted(watch.rows, reverse=True)

    def test_memory_bounds_how_many_are_written_at_a_time(self, lm, monkeypatch):
        whole, asked = self.rewrite(lm, monkeypatch), []

        def few(model: Any, length: int, **more: Any) -> int:
            asked.append(length)
            return max(1, 64 // length)

        monkeypatch.setattr("fortifai.models.documents.side_by_side", few)
        watch = Watch(lm.model)
        np.testing.assert_array_equal(self.rewrite(lm, monkeypatch), whole)
        assert max(watch.rows) == 4  # the shortest take 16 tokens each
        assert watch.rows[-1] <= 2  # the longest 24
        assert max(asked) <= self.LIMIT

    def test_half_of_the_machine_may_be_taken_asked_before_rows_take_any(self, lm, monkeypatch):
        free, told = [], iter([100 * 2**30])

        def heard(model: Any, length: int, **more: Any) -> int:
            free.append(more["free"])
            return 2

        monkeypatch.setattr("fortifai.models.documents.side_by_side", heard)
        monkeypatch.setattr("fortifai.machine.free_memory", lambda: next(told))
        self.rewrite(lm, monkeypatch)
        assert set(free) == {50 * 2**30}
        monkeypatch.setattr("fortifai.machine.free_memory", lambda: 0)
        self.rewrite(lm, monkeypatch)
        assert free[-1] == generation.memory_for_rows(torch.device("cpu"))


def test_rows_by_memory_count_a_prompt_once(lm, stream, monkeypatch):
    asked = []

    def heard(model: Any, length: int, beams: int = 1, **more: Any) -> int:
        asked.append((length, beams))
        return 10

    monkeypatch.setattr(generation, "side_by_side", heard)
    rewrite(lm, stream)
    beam = {"kind": "beam", "beams": 3, "repetition_penalty": 1.0}
    rewrite(lm, stream, decoding=beam)
    rewrite(lm, stream, decoding=beam, context=12)
    rewrite(lm, stream, context=12)
    # 22 tokens for 5 blocks and 4 of their own; for 15 beams; 12 for 3 beams; 16, all for one
    assert asked == [(5 + 4, 1), (2 + 4, 3), (4 + 4, 3), (16, 1)]
