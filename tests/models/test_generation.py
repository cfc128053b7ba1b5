from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    GenerationConfig,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fortifai.errors import InputError
from fortifai.lab.progress import Silent
from fortifai.models import generation
from fortifai.models.options import Beam, RegenerateOptions, Sample

POISON = {
    "temperature": 3.0,
    "do_sample": True,
    "top_k": 2,
    "repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 6,
    "suppress_tokens": list(range(7, 150)),
    "begin_suppress_tokens": list(range(150, 290)),
    "bad_words_ids": [[200]],
    "max_length": 3,
    "max_new_tokens": 2,
    "min_length": 60,
    "eos_token_id": list(range(100, 250)),
    "num_beams": 2,
    "num_beam_groups": 1,
    "length_penalty": -4.0,
    "early_stopping": True,
    "exponential_decay_length_penalty": (1, 9.0),
    "renormalize_logits": True,
    "num_return_sequences": 2,
    "use_cache": False,
}


class Heard:
    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int, int]] = []

    def step(self, stage: str, done: int, total: int, *, tokens: int = 0) -> None:
        self.steps.append((stage, done, total, tokens))


def settings(**changes: Any) -> RegenerateOptions:
    return RegenerateOptions.model_validate({"context": 12, "new_tokens": 7, **changes})


def rewrite(lm: Any, stream: np.ndarray, seed: int = 0, **changes: Any) -> np.ndarray:
    return lm.regenerate(stream, settings(**changes), seed=seed, progress=Silent())


@torch.inference_mode()
def slow_greedy(model: Any, context: list[int], size: int, banned: int | None = None) -> list[int]:
    """One token at a time, the whole text read anew for each, nothing kept."""
    text = list(context)
    for _ in range(size):
        logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
        if banned is not None:
            logits[banned] = -torch.inf
        text.append(int(logits.argmax()))
    return text[len(context) :]


class TestBlocks:
    @pytest.mark.parametrize("rows", [None, 1, 5, 64])
    def test_greedy_is_the_slow_reference(self, lm, stream, rows):
        got = rewrite(lm, stream, batch_size=rows)
        expected = list(stream[:12])
        while len(expected) < len(stream):
            at = len(expected)
            # from the stream as given: the reference never reads what it wrote
            context = stream[at - 12 : at].tolist()
            expected += slow_greedy(lm.model, context, min(7, len(stream) - at))
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == stream.dtype
        assert (got[12:] != stream[12:]).mean() > 0.9

    @pytest.mark.parametrize("size", [13, 18, 19, 20, 26])
    def test_every_size_is_kept_and_rewritten_to_its_end(self, lm, stream, size):
        part = stream[:size]
        got = rewrite(lm, part)
        assert got.shape == part.shape
        np.testing.assert_array_equal(got, rewrite(lm, stream)[:size])

    def test_the_given_stream_is_not_changed(self, lm, stream):
        before = stream.copy()
        rewrite(lm, stream)
        np.testing.assert_array_equal(stream, before)

    @pytest.mark.parametrize(
        "decoding",
        [
            {"kind": "greedy"},
            {"kind": "sample", "temperature": 0.7, "top_p": 0.9, "top_k": 30},
            {"kind": "beam", "beams": 3, "repetition_penalty": 1.3, "length_penalty": 0.5},
        ],
    )
    def test_the_models_own_generation_settings_have_no_effect(self, lm, stream, decoding):
        clean = rewrite(lm, stream, decoding=decoding)
        poison = GenerationConfig(**POISON)
        lm.model.generation_config = poison
        np.testing.assert_array_equal(rewrite(lm, stream, decoding=decoding), clean)
        assert lm.model.generation_config is poison
        assert poison.to_dict() == GenerationConfig(**POISON).to_dict()

    def test_the_poison_works_where_it_is_let_in(self, lm, stream):
        # else the test above would prove nothing
        prompt = torch.from_numpy(stream[None, :12].astype(np.int64))
        lm.model.generation_config = GenerationConfig(suppress_tokens=list(range(7, 290)))
        let_in = lm.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=GenerationConfig(max_new_tokens=7, do_sample=False),
        )[0, 12:]
        assert let_in.tolist() != rewrite(lm, stream)[12:19].tolist()

    def test_eos_is_written_like_any_token_and_stops_nothing(self, lm, stream):
        eos = lm.tokenizer.eos_token_id
        with torch.no_grad():  # a model that loves eos: a copy of its favourite's row, raised
            favourite = int(rewrite(lm, stream)[12])
            lm.model.lm_head.weight[eos] = lm.model.lm_head.weight[favourite] * 1.5
        for decoding in ({"kind": "greedy"}, {"kind": "beam", "repetition_penalty": 1.0}):
            got = rewrite(lm, stream, decoding=decoding)
            assert (got[12:] == eos).any()
            assert len(got) == len(stream)
            first = int(np.flatnonzero(got[12:] == eos)[0]) + 12
            assert (got[first + 1 : first + 7] != eos).any()

    @pytest.mark.parametrize("penalty", [1.0, 3.0])
    def test_beam_is_transformers_own_called_cleanly(self, lm, stream, penalty):
        lm.model.generation_config = GenerationConfig()
        got = rewrite(
            lm,
            stream,
            decoding={"kind": "beam", "beams": 4, "repetition_penalty": penalty},
            batch_size=3,
        )
        for at in range(12, len(stream), 7):
            size = min(7, len(stream) - at)
            prompt = torch.from_numpy(stream[None, at - 12 : at].astype(np.int64))
            expected = lm.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=size,
                num_beams=4,
                do_sample=False,
                repetition_penalty=penalty,
                length_penalty=1.0,
            )[0, 12:]
            np.testing.assert_array_equal(got[at : at + size], expected.numpy())

    def test_beam_finds_likelier_text_than_greedy(self, lm, stream):
        def likelihood(text: np.ndarray) -> float:
            rows = np.stack([np.r_[stream[a - 12 : a], text[a : a + 7]] for a in range(12, 210, 7)])
            ids = torch.from_numpy(rows.astype(np.int64))
            with torch.inference_mode():
                log_p = lm.model(input_ids=ids).logits.log_softmax(-1)[:, 11:-1]
            return float(log_p.gather(-1, ids[:, 12:, None]).sum())

        beam = rewrite(lm, stream, decoding={"kind": "beam", "repetition_penalty": 1.0})
        assert likelihood(beam) > likelihood(rewrite(lm, stream))

    def test_sampling_follows_the_seed_and_not_the_batch(self, lm, stream):
        ask = {"decoding": {"kind": "sample"}}
        first = rewrite(lm, stream, seed=1, **ask)
        np.testing.assert_array_equal(first, rewrite(lm, stream, seed=1, **ask))
        np.testing.assert_array_equal(first, rewrite(lm, stream, seed=1, batch_size=4, **ask))
        assert (first != rewrite(lm, stream, seed=2, **ask))[12:].mean() > 0.3

    def test_blocks_with_one_context_are_sampled_apart(self, lm, stream):
        same = np.tile(stream[:7], 30)  # every context of 14 tokens alike
        got = rewrite(lm, same, context=14, decoding={"kind": "sample", "temperature": 3.0})
        blocks = got[14:].reshape(-1, 7)
        assert len(np.unique(blocks, axis=0)) > len(blocks) // 2

    def test_global_random_numbers_are_left_alone(self, lm, stream):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        rewrite(lm, stream, decoding={"kind": "sample"})
        assert torch.equal(torch.get_rng_state(), before)

    def test_progress_counts_the_tokens_written(self, lm, stream):
        heard = Heard()
        lm.regenerate(stream, settings(batch_size=10), seed=0, progress=heard)
        assert [s[1] for s in heard.steps] == [70, 140, 203, 205]
        assert all(stage == "rewrite" and total == 205 for stage, _, total, _ in heard.steps)
        assert all(done == tokens for _, done, _, tokens in heard.steps)

    def test_the_mode_of_the_model_is_left_as_it_was(self, lm, stream):
        lm.model.train()
        rewrite(lm, stream)
        assert lm.model.training

    def test_context_and_block_longer_than_the_model_are_refused(self, lm, stream):
        rewrite(lm, stream, context=57)
        with pytest.raises(InputError, match="65 tokens, but the model reads 64"):
            rewrite(lm, stream, context=58)

    @pytest.mark.parametrize("size", [0, 5, 12])
    def test_a_part_no_longer_than_the_context_is_refused(self, lm, stream, size):
        with pytest.raises(InputError, match="nothing of it would change"):
            rewrite(lm, stream[:size])


class TestSample:
    LOGITS = torch.tensor([2.0, 0.5, 1.0, -1.0, 0.0, 1.9])

    def draw(self, decoding: Sample, n: int = 20_000) -> np.ndarray:
        numbers = torch.from_numpy(np.random.default_rng(11).random(n))
        got = generation.sample(self.LOGITS.expand(n, -1), numbers, decoding)
        return np.bincount(got.numpy(), minlength=6)

    def agrees(self, counts: np.ndarray, p: np.ndarray) -> None:
        assert (counts[p == 0] == 0).all()
        seen = p > 0
        # the seed is fixed, so this never flickers; shares wrong by 1 % would give p < 1e-3
        assert stats.chisquare(counts[seen], p[seen] * counts.sum()).pvalue > 0.01

    def test_plain(self):
        p = np.exp(self.LOGITS.double().numpy())
        self.agrees(self.draw(Sample(kind="sample")), p / p.sum())

    def test_temperature(self):
        p = np.exp(self.LOGITS.double().numpy() / 0.4)
        self.agrees(self.draw(Sample(kind="sample", temperature=0.4)), p / p.sum())

    def test_top_k(self):
        p = np.exp(self.LOGITS.double().numpy())
        p[[1, 3, 4]] = 0
        self.agrees(self.draw(Sample(kind="sample", top_k=3)), p / p.sum())

    def test_top_p(self):
        # p is .36 .08 .13 .02 .05 .33 in the order of the tokens; sorted it sums to
        # .36 .69 .83: the third is the one that crosses 0.75, and stays
        p = np.exp(self.LOGITS.double().numpy())
        p[[1, 3, 4]] = 0
        self.agrees(self.draw(Sample(kind="sample", top_p=0.75)), p / p.sum())

    def test_top_p_counts_what_top_k_left(self):
        # of tokens 0 and 5, renormalised, the first holds .525
        counts = self.draw(Sample(kind="sample", top_k=2, top_p=0.52))
        assert counts[0] == 20_000

    def test_min_p(self):
        # a tenth of .36: all but 3, which has .02
        p = np.exp(self.LOGITS.double().numpy())
        p[3] = 0
        self.agrees(self.draw(Sample(kind="sample", min_p=0.1)), p / p.sum())
        # at temperature 0.5 the likeliest has 1, 5 has .82 and 2 has .14 of it, 1 has .05
        p = np.exp(self.LOGITS.double().numpy() / 0.5)
        p[[1, 3, 4]] = 0
        self.agrees(self.draw(Sample(kind="sample", min_p=0.1, temperature=0.5)), p / p.sum())

    def test_top_n_sigma(self):
        # the logits' standard deviation is 1.165, so the cut is at 0.835 at any temperature
        kept = self.LOGITS.double().numpy() >= 2 - np.std(self.LOGITS.double().numpy(), ddof=1)
        assert kept.tolist() == [True, False, True, False, False, True]
        for temperature in (1.0, 3.0):
            p = np.exp(self.LOGITS.double().numpy() / temperature) * kept
            decoding = Sample(kind="sample", top_n_sigma=1.0, temperature=temperature)
            self.agrees(self.draw(decoding), p / p.sum())

    def test_sigma_is_of_the_tokens_that_can_be_written(self):
        banned = torch.tensor([2.0, 0.5, 1.0, -torch.inf, 0.0, 1.9])
        left = banned[banned > -torch.inf].double()
        cut = 2 - left.std()  # 1.12: without token 3 the deviation is 0.88, and 2 is cut, too
        numbers = torch.from_numpy(np.random.default_rng(0).random(2000))
        decoding = Sample(kind="sample", top_n_sigma=1.0)
        got = generation.sample(banned.expand(2000, -1), numbers, decoding)
        assert set(got.tolist()) == set(torch.nonzero(banned > cut).flatten().tolist()) == {0, 5}
        one = torch.tensor([[-torch.inf, 1.0, -torch.inf]])
        assert generation.sample(one, numbers[:1], decoding).tolist() == [1]

    @pytest.mark.parametrize("seed", range(5))
    def test_cuts_agree_with_those_of_transformers(self, seed):
        """Which tokens are left, from all logits and behind top_k and top_p."""
        logits = 1.5 * torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 50))).float()
        decoding = Sample(kind="sample", temperature=0.8, top_k=30, top_p=0.95, min_p=0.06)
        scores = logits
        for warper in (
            TemperatureLogitsWarper(0.8),
            TopKLogitsWarper(30),
            TopPLogitsWarper(0.95),
            MinPLogitsWarper(0.06),
        ):
            scores = warper(torch.zeros(1, 1, dtype=torch.long), scores)
        p = torch.softmax(scores.double(), -1)[0].numpy()
        n = 40_000
        numbers = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        got = generation.sample(logits.expand(n, -1), numbers, decoding)
        # evenly spaced numbers fall on each token in proportion, up to one at either edge
        np.testing.assert_allclose(np.bincount(got.numpy(), minlength=50), n * p, atol=1)

    def test_a_tiny_top_p_is_greedy(self):
        assert self.draw(Sample(kind="sample", top_p=1e-9), 50)[0] == 50

    def test_extreme_numbers_never_give_an_impossible_token(self):
        logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]]).expand(2, -1)
        numbers = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
        for decoding in (Sample(kind="sample"), Sample(kind="sample", top_k=4, top_p=0.999)):
            got = generation.sample(logits, numbers, decoding)
            assert set(got.tolist()) <= {1, 3}

    def test_through_the_model(self, make):
        lm = make(seed=1, sharp=20.0)
        prompt = torch.arange(5, 15)[None].expand(5000, -1)
        numbers = np.random.default_rng(4).random((5000, 1))
        got = generation.write(lm.model, prompt, 1, Sample(kind="sample", top_k=8), numbers)
        with torch.inference_mode():
            p = lm.model(input_ids=prompt[:1]).logits[0, -1].double().softmax(-1).numpy()
        p[np.argsort(-p)[8:]] = 0
        counts = np.bincount(got[:, 0].numpy(), minlength=len(p))
        self.agrees(counts, p / p.sum())


class TestDocuments:
    def documents(self, vocabulary: int, sizes: list[int]) -> np.ndarray:
        rng = np.random.default_rng(8)
        parts = [np.append(rng.integers(1, vocabulary, n), 0) for n in sizes]
        return np.concatenate(parts)[:-1].astype(np.int32)  # the last one has no eos

    SIZES = (9, 0, 4, 5, 6, 30, 17, 9, 1, 12)

    @pytest.mark.parametrize("rows", [None, 1, 3])
    @pytest.mark.parametrize("kind", ["greedy", "sample", "beam"])
    def test_prefixes_ends_and_sizes_stay(self, lm, kind, rows):
        stream = self.documents(len(lm.tokenizer), list(self.SIZES))
        ask = {"mode": "documents", "keep": 5, "decoding": {"kind": kind}}
        got = rewrite(lm, stream, batch_size=rows, **ask)
        assert got.shape == stream.shape
        assert got.dtype == stream.dtype
        np.testing.assert_array_equal(got == 0, stream == 0)
        at = 0
        for size in self.SIZES:
            end = at + size
            np.testing.assert_array_equal(got[at : min(end, at + 5)], stream[at : min(end, at + 5)])
            if size > 6:
                assert (got[at + 5 : end] != stream[at + 5 : end]).any()
            at = end + 1
        np.testing.assert_array_equal(got, rewrite(lm, stream, **ask))

    def test_greedy_is_the_slow_reference(self, lm):
        stream = self.documents(len(lm.tokenizer), list(self.SIZES))
        got = rewrite(lm, stream, mode="documents", keep=5)
        at = 0
        for size in self.SIZES:
            kept = stream[at : at + min(size, 5)].tolist()
            rest = slow_greedy(lm.model, [0, *kept], size - len(kept), banned=0)
            assert got[at : at + size].tolist() == kept + rest
            at += size + 1

    @pytest.mark.parametrize("rows", [1, 3])
    def test_a_document_longer_than_the_model_is_written_in_segments(self, make, rows):
        lm = make(seed=3, sharp=40.0, positions=16)
        stream = self.documents(len(lm.tokenizer), [40, 12, 23])
        got = rewrite(lm, stream, mode="documents", keep=3, batch_size=rows)
        at = 0
        for size in (40, 12, 23):
            text = [0, *stream[at : at + 3].tolist()]
            while len(text) < size + 1:  # segments of 8, each read from the 8 newest tokens
                text += slow_greedy(lm.model, text[-8:], min(8, size + 1 - len(text)), banned=0)
            assert got[at : at + size].tolist() == text[1:]
            at += size + 1

    def test_nothing_long_enough_changes_nothing(self, lm):
        stream = self.documents(len(lm.tokenizer), [3, 5, 2])
        np.testing.assert_array_equal(rewrite(lm, stream, mode="documents", keep=5), stream)

    def test_progress_reaches_its_total(self, lm):
        stream, heard = self.documents(len(lm.tokenizer), list(self.SIZES)), Heard()
        for kind in ("greedy", "beam"):
            ask = settings(mode="documents", keep=5, batch_size=2, decoding={"kind": kind})
            lm.regenerate(stream, ask, seed=0, progress=heard)
            total = sum(max(0, n - 5) for n in self.SIZES)
            assert heard.steps[-1] == ("rewrite", total, total, total)

    def test_a_keep_that_leaves_no_room_is_refused(self, lm, stream):
        rewrite(lm, stream, mode="documents", keep=31)
        with pytest.raises(InputError, match="lower keep to 31 or less"):
            rewrite(lm, stream, mode="documents", keep=32)

    def test_beam_segments_are_searches_of_their_own(self, lm):
        stream = self.documents(len(lm.tokenizer), [25])
        beam = Beam(kind="beam", beams=3, repetition_penalty=1.0)
        got = rewrite(lm, stream, mode="documents", keep=5, decoding=beam.model_dump())
        text = torch.tensor([[0, *stream[:5].tolist()]])
        while text.shape[1] < 26:
            written = generation.write(lm.model, text, 7, beam, banned=(0,))
            text = torch.cat([text, written], dim=1)
        np.testing.assert_array_equal(got, text[0, 1:26])


def test_batches_shrink_with_the_memory_they_need(lm, monkeypatch):
    ask = settings()
    assert generation.rows_at_a_time(lm.model, ask, 19) == 128
    assert generation.rows_at_a_time(lm.model, settings(batch_size=3), 19) == 3
    assert generation.rows_at_a_time(lm.model, settings(decoding={"kind": "beam"}), 19) == 128 // 5
    # 2 layers x 2 heads x 8 x 4 bytes x 4 copies a position, plus 16 bytes a logit: a context of a
    # million tokens takes 512 MB a row, of which 1 GB holds 2
    assert generation.rows_at_a_time(lm.model, ask, 10**6) == 2


class TestWritingAfterPrompts:
    def test_prompts_of_any_lengths_are_read_as_if_alone(self, make: Any) -> None:
        lm = make(seed=3, sharp=40.0)
        rng = np.random.default_rng(0)
        prompts = [rng.integers(0, 200, n).tolist() for n in (5, 1, 17, 17, 9, 30, 2)]
        assert lm.write_greedily(prompts, 6) == [slow_greedy(lm.model, p, 6) for p in prompts]

    def test_batches_change_nothing(self, make: Any, monkeypatch: Any) -> None:
        lm = make(seed=3, sharp=40.0)
        rng = np.random.default_rng(1)
        prompts = [rng.integers(0, 200, n).tolist() for n in rng.integers(1, 40, 20)]
        whole = lm.write_greedily(prompts, 5)
        monkeypatch.setattr(generation, "side_by_side", lambda *_: 3)
        assert lm.write_greedily(prompts, 5) == whole

    def test_nothing_to_write(self, lm: Any) -> None:
        assert lm.write_greedily([], 5) == []
