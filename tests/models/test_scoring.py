from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM

from fortifai.data import tokens
from fortifai.errors import InputError
from fortifai.models import continuations, scoring
from fortifai.models.causal_lm import CausalLM

from .conftest import prose

# log p is of size 1 to 30 here and fp32 carries 7 digits; batching changes the order of sums in
# the matrix products, which costs some units of the last one. A wrong neighbour moves log p by 1.
ROUNDING = 2e-4


def position_by_position(model: Any, context: list[int], token: int) -> float:
    """Log p of one token by one forward pass of its own, in fp64 after the logits."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([context])).logits[0, -1].double()
    return float(logits[token] - torch.log(torch.exp(logits - logits.max()).sum()) - logits.max())


class TestLogProb:
    def test_each_token_is_judged_from_its_window(self, lm, stream):
        lm.block = 17
        got = lm.log_prob(stream)
        whole = [lm.tokenizer.eos_token_id, *stream.tolist()]
        # token t of the stream stands at t + 1 of `whole`; windows begin every 16 tokens
        expected = [
            position_by_position(lm.model, whole[t // 16 * 16 : t + 1], whole[t + 1])
            for t in range(len(stream))
        ]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=ROUNDING, rtol=0)

    @pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 32, 33])
    def test_every_size_has_one_number_a_token(self, lm, stream, n):
        lm.block = 17
        got = lm.log_prob(stream[:n])
        assert got.shape == (n,)
        # a window's first tokens do not depend on what follows
        np.testing.assert_allclose(got, lm.log_prob(stream)[:n], atol=ROUNDING, rtol=0)

    def test_an_empty_stream_has_no_numbers(self, lm, stream):
        assert lm.log_prob(stream[:0]).shape == (0,)

    def test_a_small_budget_changes_the_batches_and_not_the_answer(self, lm, stream, monkeypatch):
        lm.block = 17
        whole = lm.log_prob(stream)
        seen = []
        watch = lm.model.register_forward_hook(
            lambda m, args, kwargs, out: seen.append(out.logits.shape[:2].numel()), with_kwargs=True
        )
        monkeypatch.setitem(scoring.LOGITS_BYTES, "cpu", 40 * 300 * 4)
        monkeypatch.setattr(scoring, "ROWS", 1)
        np.testing.assert_allclose(lm.log_prob(stream), whole, atol=ROUNDING, rtol=0)
        watch.remove()
        assert max(seen) <= 40
        assert len(seen) > 5

    @pytest.mark.parametrize(
        ("vocabulary", "expected"), [(300, 13981), (3072, 1365), (49152, 512), (262144, 128)]
    )
    def test_a_large_vocabulary_has_rows_for_products_of_matrices(self, lm, vocabulary, expected):
        """16 MiB of logits, but 512 positions where these are fewer, and 128 MiB at the most."""
        lm.model.config.vocab_size = vocabulary
        assert scoring.logits_rows(lm.model) == expected
        half = max(2**24 // (4 * vocabulary), min(256, expected))
        assert scoring.logits_rows(lm.model, share=0.5) == half

    def test_the_mode_of_the_model_is_left_as_it_was(self, lm, stream):
        lm.model.train()
        lm.log_prob(stream)
        assert lm.model.training

    def test_it_sums_to_one(self, lm, stream):
        context = stream[:9]
        ends = np.arange(len(lm.tokenizer), dtype=np.int32)
        last = [lm.log_prob(np.append(context, e))[-1] for e in ends]
        assert np.exp(last).sum() == pytest.approx(1, abs=1e-4)  # 300 terms of fp32


def questions(n: int) -> list[tuple[str, str]]:
    """Pairs as a KR file has them: two continuations of a context, much of them in common."""
    rng = np.random.default_rng(2)
    pairs = []
    for i in range(n):
        context, common = prose(i, int(rng.integers(1, 9))), prose(100 + i, int(rng.integers(0, 6)))
        pairs += [(context, f"{common} {prose(i * 7 + k, 1 + k + i % 3)}") for k in (1, 2)]
    return pairs


def one_at_a_time(lm: Any, context: str, continuation: str) -> tuple[float, int]:
    """The same quantity, a token at a time and without any of the machinery."""
    head = lm.tokenizer(context.strip()).input_ids
    tail = lm.tokenizer(" " + continuation.strip()).input_ids
    ids = head + tail
    terms = [position_by_position(lm.model, ids[:t], ids[t]) for t in range(len(head), len(ids))]
    return sum(terms), len(tail)


class TestContinuations:
    def test_same_answers_as_one_token_at_a_time(self, lm):
        pairs = questions(12)
        got = lm.continuation_log_prob(pairs)
        expected = [one_at_a_time(lm, *pair) for pair in pairs]
        assert [n for _, n in got] == [n for _, n in expected]
        np.testing.assert_allclose(
            [s for s, _ in got], [s for s, _ in expected], atol=ROUNDING * 10, rtol=0
        )  # a sum of up to 20 terms

    @pytest.mark.parametrize("budget", [1, 64, 500, 10**6])
    def test_same_answers_and_choices_whatever_the_batch(self, lm, monkeypatch, budget):
        pairs = questions(40)
        alone = np.array([lm.continuation_log_prob([p])[0] for p in pairs])
        monkeypatch.setitem(scoring.LOGITS_BYTES, "cpu", budget * 300 * 4)
        monkeypatch.setattr(scoring, "ROWS", 1)
        together = np.array(lm.continuation_log_prob(pairs))
        np.testing.assert_allclose(together, alone, atol=ROUNDING, rtol=1e-6)
        mean, mean_alone = together[:, 0] / together[:, 1], alone[:, 0] / alone[:, 1]
        chosen = mean[0::2] > mean[1::2]
        assert (chosen == (mean_alone[0::2] > mean_alone[1::2])).all()
        assert 5 < chosen.sum() < 35  # the choices are not all alike

    def test_results_come_in_the_order_of_the_pairs(self, lm):
        pairs = questions(10)
        order = np.random.default_rng(0).permutation(len(pairs))
        straight = np.array(lm.continuation_log_prob(pairs))
        mixed = np.array(lm.continuation_log_prob([pairs[i] for i in order]))
        np.testing.assert_allclose(mixed, straight[order], atol=ROUNDING, rtol=1e-6)

    def test_special_shapes_of_groups(self, lm):
        # equal continuations, one a beginning of the other, a third, one-token ends, no context
        context = "Ada was born in"
        ends = [
            "Rome",
            "Rome",
            "Rome and Oslo",
            "Oslo",
            "Oslo and Rome .",
            "ships",
            "Bo",
            "Cy",
            ".",
        ]
        pairs = [(context, end) for end in ends] + [("", "Rome"), ("", "Rome and Oslo")]
        together = np.array(lm.continuation_log_prob(pairs))
        alone = np.array([lm.continuation_log_prob([p])[0] for p in pairs])
        np.testing.assert_allclose(together, alone, atol=ROUNDING, rtol=1e-6)
        expected = [one_at_a_time(lm, context, end)[0] for end in ends]
        np.testing.assert_allclose(together[:9, 0], expected, atol=ROUNDING, rtol=0)
        eos = lm.tokenizer.eos_token_id
        bare = lm.tokenizer("Rome").input_ids
        read = [eos, *bare]
        alone_sum = sum(
            position_by_position(lm.model, read[:t], read[t]) for t in range(1, len(read))
        )
        assert together[9, 0] == pytest.approx(alone_sum, abs=ROUNDING)

    def test_no_pairs_no_answers(self, lm):
        assert lm.continuation_log_prob([]) == []

    def test_the_logits_of_a_batch_stay_within_the_budget(self, lm, monkeypatch):
        seen = []
        watch = lm.model.register_forward_hook(
            lambda m, args, kwargs, out: seen.append(out.logits.shape[:-1].numel()),
            with_kwargs=True,
        )
        monkeypatch.setitem(scoring.LOGITS_BYTES, "cpu", 100 * 300 * 4)
        monkeypatch.setattr(scoring, "ROWS", 1)
        lm.continuation_log_prob(questions(40))
        watch.remove()
        assert max(seen) <= 100
        assert len(seen) > 3

    def test_a_long_context_loses_its_oldest_tokens(self, lm):
        words, end = prose(9, 120), "Rome and Oslo"
        ids = lm.tokenizer(words).input_ids
        tail = lm.tokenizer(" " + end).input_ids
        assert len(ids) + len(tail) > 64
        ((got, n),) = lm.continuation_log_prob([(words, end)])
        read = ids[-(64 - len(tail)) :] + tail
        expected = sum(
            position_by_position(lm.model, read[:t], read[t]) for t in range(64 - len(tail), 64)
        )
        assert n == len(tail)
        assert got == pytest.approx(expected, abs=ROUNDING * 3)

    @pytest.mark.parametrize("empty", ["", "  \n"])
    def test_an_empty_continuation_is_refused(self, lm, empty):
        with pytest.raises(InputError, match="is empty"):
            lm.continuation_log_prob([("Ada was", empty)])

    def test_a_continuation_longer_than_the_model_is_refused(self, lm):
        with pytest.raises(InputError, match="64 at most"):
            lm.continuation_log_prob([("Ada", prose(1, 200))])

    def test_a_token_that_the_tokenizer_puts_first_stays_first(self, lm, tokenizer):
        with_bos = copy.deepcopy(tokenizer)
        with_bos.backend_tokenizer.post_processor = TemplateProcessing(
            single="<eos> $A", special_tokens=[("<eos>", 0)]
        )
        special = tokens.special_tokens(with_bos, lm.model.config)
        pairs = [("Ada was", "born"), (prose(1, 99), "born")]
        short, long = tokens.encode_pairs(with_bos, pairs, special, limit=30)
        tail = tokenizer(" born").input_ids
        assert short[0] == [0, *tokenizer("Ada was").input_ids, *tail]
        assert len(long[0]) == 30
        assert long[0][0] == 0
        assert long[0][-len(tail) :] == tail
        assert 0 not in long[0][1:]


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 80,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def tiny(model_type: str, **more: Any) -> Any:
    names = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    sizes = {**TINY, **more} if model_type != "gpt2" else {**names, "vocab_size": 80, **more}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(0, 1.0)
    return model


def encoded(seed: int) -> list[continuations.Encoded]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(15):
        head = rng.integers(0, 80, rng.integers(1, 12)).tolist()
        common = rng.integers(0, 80, rng.integers(0, 5)).tolist()
        for _ in range(2):
            tail = common + rng.integers(0, 80, rng.integers(1, 6)).tolist()
            out.append((head + tail, len(tail)))
    return out


@pytest.mark.long
@pytest.mark.parametrize("model_type", sorted(continuations.TREE_MODELS))
def test_sharing_changes_no_answer_of_any_model_it_is_used_for(model_type):
    model, rows = tiny(model_type), encoded(3)
    assert continuations._shares(model, rows)
    got = continuations.continuation_log_prob(model, rows)
    expected = [
        sum(position_by_position(model, ids[:t], ids[t]) for t in range(len(ids) - n, len(ids)))
        for ids, n in rows
    ]
    np.testing.assert_allclose(got, expected, atol=ROUNDING * 10, rtol=0)


def test_soft_capped_logits_stay_soft_capped():
    model, rows = tiny("gemma2", final_logit_softcapping=1.5), encoded(4)
    got = continuations.continuation_log_prob(model, rows)
    expected = [
        sum(position_by_position(model, ids[:t], ids[t]) for t in range(len(ids) - n, len(ids)))
        for ids, n in rows
    ]
    np.testing.assert_allclose(got, expected, atol=ROUNDING * 10, rtol=0)
    # with logits in [-1.5, 1.5] no token of 80 is rarer than e^-3 / 80
    assert min(np.array(got) / [n for _, n in rows]) > -3 - np.log(80)


@pytest.mark.parametrize(
    ("model_type", "more"), [("mistral", {"sliding_window": 6}), ("bloom", {}), ("opt", {})]
)
def test_other_models_read_each_continuation_in_a_row_of_its_own(model_type, more):
    if model_type == "mistral":
        model = tiny(model_type, **more)
    else:
        sizes = {"hidden_size": 32, "vocab_size": 80, "max_position_embeddings": 64}
        heads = {"n_head": 4, "n_layer": 2, "num_attention_heads": 4, "num_hidden_layers": 2}
        extra = {"word_embed_proj_dim": 32, "ffn_dim": 48}
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(model_type, **sizes, **heads, **extra)
        ).eval()
    rows = encoded(5)
    assert not continuations._shares(model, rows)
    got = continuations.continuation_log_prob(model, rows)
    expected = [
        sum(position_by_position(model, ids[:t], ids[t]) for t in range(len(ids) - n, len(ids)))
        for ids, n in rows
    ]
    np.testing.assert_allclose(got, expected, atol=ROUNDING * 10, rtol=0)


@pytest.mark.parametrize("bos", ["never", "always"])
def test_documents_are_read_each_by_itself(make, bos):
    """Against the model itself; one longer than the 64 tokens it reads comes in pieces."""
    lm = CausalLM(make(seed=3, sharp=40.0).model, make().tokenizer, device="cpu", bos=bos)
    ids = np.random.default_rng(0).integers(1, lm.model.config.vocab_size, 100)
    documents = [ids[:5], ids[5:6], ids[6:30], ids]
    got = lm.document_log_prob(documents)
    for document, mean in zip(documents, got, strict=True):
        terms = []
        for at in range(0, len(document), 64):
            before = document[at - 1] if at and bos == "never" else lm.special.first
            read = torch.tensor([[before, *document[at : at + 64]]])
            log_p = torch.log_softmax(lm.model(read[:, :-1]).logits.detach().double(), -1)[0]
            terms += log_p[torch.arange(len(log_p)), read[0, 1:]].tolist()
        assert len(terms) == len(document)
        assert mean == pytest.approx(np.mean(terms), abs=ROUNDING)
    # each piece with the token before it
    assert lm.spent.scored == (5 + 1) + (1 + 1) + (24 + 1) + (100 + 2)


def test_candidates_are_the_likeliest_that_can_be_written(lm, stream):
    """Against the model, window by window; the end of text is never one of them."""
    lm.block = 17
    end = lm.special.end
    banned = sorted({*lm.special.never_written, end})
    found = lm.candidates(stream, 4)
    assert found.shape == (len(stream), 4)
    whole = [lm.tokenizer.eos_token_id, *stream.tolist()]
    for t in (0, 5, 16, 17, 100, len(stream) - 1):
        context = whole[t // 16 * 16 : t + 1]
        logits = lm.model(torch.tensor([context])).logits[0, -1].detach().double()
        log_p = torch.log_softmax(logits, -1)
        log_p[banned] = -torch.inf
        best = log_p.topk(4)
        assert found[t]["id"].tolist() == best.indices.tolist()
        np.testing.assert_allclose(found[t]["log_p"], best.values, atol=ROUNDING)
    assert end not in found["id"]
    assert lm.spent.scored == len(stream)
