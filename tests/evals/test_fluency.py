import importlib.util
import math
from collections import Counter

import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from fortifai.data import bios
from fortifai.evals import fluency, perplexity
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM

# --- variety ----------------------------------------------------------------------------------


def test_word_entropy_knows_words_not_tokens():
    score = fluency.word_entropy("The cat, the dog. THE bird!", "x")
    # the x 3, cat, dog, bird
    assert score.value == pytest.approx(reference.entropy([3, 1, 1, 1]))
    assert score.n == 6
    assert fluency.word_entropy(" ... !", "x") is None


def test_repetition_by_hand():
    fresh, stuck = np.arange(128), np.tile([1, 2], 64)
    # 125 four-grams; the stuck text has two different ones
    assert fluency.repetition(fresh, "x").value == 0
    assert fluency.repetition(stuck, "x").value == pytest.approx(1 - 2 / 125)
    both = fluency.repetition(np.concatenate([fresh, stuck, [9]]), "x")
    assert both.value == pytest.approx((1 - 2 / 125) / 2)
    assert both.n == 2
    assert fluency.repetition(np.arange(127), "x") is None


WORDS = st.lists(st.sampled_from("abcd"), min_size=0, max_size=12)


def slow_self_bleu(texts, i):
    """BLEU-4 of a text against the others, straight from the definition."""
    own, others = texts[i], [t for j, t in enumerate(texts) if j != i]
    logs, matches = [], 0
    for n in range(1, 5):
        grams = Counter(tuple(own[k : k + n]) for k in range(len(own) - n + 1))
        if not grams:
            break
        found = 0
        for gram, count in grams.items():
            most = 0
            for other in others:
                here = [tuple(other[k : k + n]) for k in range(len(other) - n + 1)]
                most = max(most, here.count(gram))
            found += min(count, most)
        matches += found
        logs.append(math.log((found or 0.1) / sum(grams.values())))
    if not matches:
        return 0.0
    lengths = sorted({len(o) for o in others}, key=lambda m: (abs(m - len(own)), m))
    penalty = 1 if len(own) > lengths[0] else math.exp(1 - lengths[0] / len(own))
    return penalty * math.exp(sum(logs) / len(logs))


@given(st.lists(WORDS, min_size=2, max_size=6))
def test_self_bleu_is_bleu_against_all_others(texts):
    expected = [slow_self_bleu(texts, i) for i in range(len(texts))]
    # sacrebleu counts in percent
    np.testing.assert_allclose(fluency.self_bleu([" ".join(t) for t in texts]), expected, atol=1e-9)


def test_self_bleu_against_sacrebleu_text_by_text():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), rng.integers(5, 30))) for _ in range(20)]
    got = fluency.self_bleu(texts)
    for i, text in enumerate(texts):
        bleu = sacrebleu.sentence_bleu(
            text,
            texts[:i] + texts[i + 1 :],
            smooth_method="floor",
            smooth_value=0.1,
            tokenize="none",
            use_effective_order=True,
        )
        # it reports percent
        assert got[i] == pytest.approx(bleu.score / 100, abs=1e-12)


def test_without_sacrebleu_a_note_says_so(monkeypatch):
    assert fluency.bleu_notes(100) == ()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (note,) = fluency.bleu_notes(100)
    assert "pip install 'fortifai[benchmarks]'" in note
    assert fluency.bleu_notes(0) == ()


def test_self_bleu_tells_one_voice_from_many():
    same = ["the cat sat on the mat today"] * 5
    other = [" ".join(f"w{i}-{j}" for j in range(7)) for i in range(5)]
    assert fluency.self_bleu(same) == pytest.approx(1.0, abs=1e-12)
    assert fluency.self_bleu(other).max() == 0
    with pytest.raises(ValueError, match="two or more"):
        fluency.self_bleu(["a"])


def test_self_bleu_is_drawn_by_its_seed():
    texts = [" ".join(map(str, np.random.default_rng(i).integers(0, 9, 20))) for i in range(50)]
    one, again, other = (
        fluency.self_bleu_score(texts, "x", draw=10, seed=s).value for s in (1, 1, 2)
    )
    assert one == again != other
    assert fluency.self_bleu_score(texts, "x", draw=100, seed=0).n == 50
    assert fluency.self_bleu_score(texts[:1], "x", draw=10, seed=0) is None


# --- surprise ---------------------------------------------------------------------------------


def test_block_perplexity_by_hand():
    log_p = np.log(np.repeat([0.5, 0.1, 0.9], 64))
    np.testing.assert_allclose(fluency.block_perplexity(log_p), [2, 10, 1 / 0.9])
    assert fluency.block_perplexity(np.full(64, -np.inf)).tolist() == [math.exp(700)]
    assert len(fluency.block_perplexity(log_p[:-1])) == 2  # an unfinished one is left out


def test_surplexity_weighs_what_surprises():
    """The mean of perplexities is above the perplexity of the mean, by Jensen, and here by much."""
    log_p = np.log(np.repeat([0.5, 0.005], 64 * 9))
    got = fluency.surplexity(log_p, "x").value
    assert got == pytest.approx((2 + 200) / 2)
    assert perplexity.perplexity(log_p, "x").value == pytest.approx(20)
    assert fluency.surplexity(log_p[:63], "x") is None


def test_histogram_and_tail():
    values = np.array([1.0, 1.2, 3.0, 40.0, 1e9])
    counts = fluency.histogram(values)
    assert counts.sum() == 5
    assert counts[-1] == 1  # what lies above is not lost
    edges = fluency.PERPLEXITY_EDGES
    (place,) = np.flatnonzero((edges[:-1] <= 40) & (edges[1:] > 40))
    assert counts[place] == 1
    score = fluency.tail(values, 3.0, "x")
    assert (score.value, score.n, score.chance) == (0.4, 5, pytest.approx(0.01))


@pytest.fixture(scope="module")
def lm():
    people = bios.bios(20, 0)[0]
    tokenizer = scratch.train_tokenizer([d.text for d in people.documents], 300)
    model = scratch.build(
        "llama",
        hidden_size=32,
        layers=1,
        heads=2,
        vocab_size=len(tokenizer),
        max_positions=64,
        tie_embeddings=False,
        seed=0,
    )
    with torch.no_grad():
        model.lm_head.weight *= 20
    return CausalLM(model, tokenizer, device="cpu", block=16)


def test_next_token_entropy_against_scipy(lm):
    """Each token's distribution is read from those before it in its window, and from them alone."""
    tokens = np.random.default_rng(0).integers(0, 300, 40).astype(np.int32)
    log_p, got = lm.log_prob_and_entropy(tokens)
    # the same arithmetic on the same windows
    np.testing.assert_array_equal(log_p, lm.log_prob(tokens))
    stream = np.concatenate([[lm.special.first], tokens]).astype(np.int64)
    for t in range(40):
        begin = t // 15 * 15  # windows of 16 that overlap by one
        with torch.inference_mode():
            logits = lm.model(torch.from_numpy(stream[None, begin : t + 1])).logits[0, -1]
        p = torch.softmax(logits.double(), -1).numpy()
        # fp32 against fp64: 300 terms with errors of 1e-7
        assert got[t] == pytest.approx(reference.entropy(p), abs=1e-4)


def test_next_token_entropy_of_a_uniform_model(lm):
    before = lm.model.lm_head.weight.detach().clone()
    with torch.no_grad():
        lm.model.lm_head.weight.zero_()
    _, got = lm.log_prob_and_entropy(np.arange(20, dtype=np.int32))
    with torch.no_grad():
        lm.model.lm_head.weight.copy_(before)
    np.testing.assert_allclose(got, math.log(300), rtol=1e-5)
    assert fluency.next_token_entropy(got, "x").value == pytest.approx(math.log(300), rel=1e-5)


def test_entropy_of_a_model_that_rules_tokens_out():
    """p = 0 has no part in the sum, and is not NaN."""
    from fortifai.models.scoring import _next_both

    class Sure:
        device = torch.device("cpu")

        def __call__(self, input_ids, use_cache):
            logits = torch.full((*input_ids.shape, 4), -torch.inf)
            logits[..., :2] = 0.0
            return type("Answer", (), {"logits": logits})

    found = _next_both(Sure(), np.zeros((1, 3), int))
    np.testing.assert_allclose(found[..., 1], math.log(2), rtol=1e-6)


# --- facts ------------------------------------------------------------------------------------


def told(text, people=30):
    return {s.measure: s for s in fluency.facts(text, bios.known_facts(people, 0), "x")}


def test_every_fact_of_the_corpus_is_found_and_none_is_false():
    for phrasings in (1, 5):
        corpus, _ = bios.bios(30, 0, phrasings=phrasings)
        found = told(corpus.text)
        assert found["facts.claims"].value == 30 * 6 * phrasings
        assert found["facts.false"].value == 0
        assert found["facts.unknown"].value == 0


def test_false_facts_are_counted():
    person = next(bios.people(0))
    others = [v for v in bios.VALUES["city"] if v != person.facts["city"]]
    true, false = (f"{person.name} lives in {town}." for town in (person.facts["city"], others[0]))
    found = told(" ".join([true] * 3 + [false]))
    assert (found["facts.false"].value, found["facts.false"].n) == (0.25, 4)
    # damaged sentences are no claims: no such town, another kind of value, no name
    damaged = f"{person.name} lives in Westrax. {person.name} lives in 1931. The lives in Westra."
    assert told(damaged)["facts.claims"].value == 0
    assert "facts.false" not in told(damaged)


def test_strangers_are_told_apart():
    found = told("Nobody Here lives in Westra.")
    assert found["facts.unknown"].value == 1
    assert "facts.false" not in found
