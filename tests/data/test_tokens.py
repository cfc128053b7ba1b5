"""What a model reads: special tokens, texts as ids, and contexts with what follows them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma3Config,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from fortifai.data import tokens
from fortifai.data.splits import split_corpus
from fortifai.data.text import Corpus, Document
from fortifai.errors import InputError
from tests.tokenizers_made import CONTROL, WORDS, byte_level


def prepending() -> PreTrainedTokenizerFast:
    """A tokenizer that puts a mark for a space before every text, as LLaMA's first one does."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    letters = sorted({*"".join(WORDS), "▁", "\n", "."})
    raw.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(
            vocab_size=400,
            show_progress=False,
            special_tokens=["<unk>", "<s>", "</s>"],
            initial_alphabet=letters,
        ),
    )
    raw.pre_tokenizer = None
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


LLAMA = LlamaConfig(vocab_size=400)


class TestBos:
    def test_what_the_tokenizer_puts_by_itself(self):
        assert tokens.special_tokens(byte_level(puts_bos=True), LLAMA).bos == 2

    def test_a_bos_that_is_only_declared_is_not_read(self):
        """SmolLM2, Qwen and GPT-2 declare one that they were not trained behind."""
        assert tokens.special_tokens(byte_level(), LLAMA).bos is None

    @pytest.mark.parametrize(
        "config", [Gemma3TextConfig(vocab_size=400), Gemma3Config(text_config={"vocab_size": 400})]
    )
    def test_the_family_knows_where_the_tokenizer_is_silent(self, config):
        """Gemma 4's tokenizers declare a bos and leave it to the chat template."""
        assert tokens.special_tokens(byte_level(), config).bos == 2
        later = SimpleNamespace(model_type="gemma4_text", vocab_size=400)
        later.get_text_config = lambda decoder: later
        assert tokens.special_tokens(byte_level(), later).bos == 2

    def test_what_is_put_behind_a_text_is_no_bos(self):
        tokenizer = byte_level()
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A <eos>", special_tokens=[("<eos>", 1)]
        )
        assert tokens.special_tokens(tokenizer, LLAMA).bos is None

    def test_overrides(self):
        puts, silent = byte_level(puts_bos=True), byte_level()
        assert tokens.special_tokens(puts, LLAMA, bos="never").bos is None
        assert tokens.special_tokens(silent, LLAMA, bos="always").bos == 2
        with pytest.raises(InputError, match="declares no beginning-of-text token; use 'auto'"):
            tokens.special_tokens(byte_level(bos_token=None), LLAMA, bos="always")

    def test_what_stands_before_a_text(self):
        assert tokens.special_tokens(byte_level(puts_bos=True), LLAMA).first == 2
        assert tokens.special_tokens(byte_level(), LLAMA).first == 1  # the end of another text

    def test_a_model_without_a_row_for_it(self):
        with pytest.raises(InputError, match=r"'<bos>' has the id 2 and the model rows for 2 ids"):
            tokens.special_tokens(byte_level(puts_bos=True), LlamaConfig(vocab_size=2))

    def test_the_harness_s_tokenizer_begins_with_it_and_once(self):
        silent = byte_level()
        special = tokens.special_tokens(silent, LLAMA, bos="always")
        assert tokens.beginning(silent, special)("Paris").input_ids[0] == 2
        puts = byte_level(puts_bos=True)
        again = tokens.beginning(puts, tokens.special_tokens(puts, LLAMA))
        assert again("Paris").input_ids.count(2) == 1


class TestEnds:
    @pytest.mark.parametrize(("listed", "ends"), [(None, {1}), (4, {1, 4}), ([1, 4], {1, 4})])
    def test_one_id_or_several(self, listed, ends):
        generation = GenerationConfig(eos_token_id=listed)
        assert tokens.special_tokens(byte_level(), LLAMA, generation).ends == ends

    def test_an_end_of_turn_that_the_tokenizer_declares(self):
        tokenizer = byte_level(eot_token="<end_of_turn>")
        assert tokens.special_tokens(tokenizer, LLAMA).ends == {1, 4}

    def test_without_an_eos_bos_ends_a_document(self):
        special = tokens.special_tokens(byte_level(eos_token=None), LLAMA)
        assert special.end == 2
        assert 2 in special.ends


class TestPaddedVocabularies:
    def test_ids_without_a_token_are_never_written(self):
        tokenizer = byte_level(puts_bos=True)
        special = tokens.special_tokens(tokenizer, LlamaConfig(vocab_size=len(tokenizer) + 3))
        n = len(tokenizer)
        assert special.absent == (n, n + 1, n + 2)
        assert set(special.never_written) == {n, n + 1, n + 2, 2}  # and bos

    def test_a_bos_that_is_also_the_end_may_be_written(self):
        tokenizer = byte_level(bos_token="<eos>")
        special = tokens.special_tokens(tokenizer, LLAMA, bos="always")
        assert special.bos == special.end == 1
        assert 1 not in special.never_written

    def test_a_token_without_a_row_is_told_only_where_it_is_used(self):
        tokenizer = byte_level()
        last = len(tokenizer) - 1
        tokens.check_known(tokenizer, np.array([1, last - 1]), last)
        tokens.check_known(tokenizer, np.array([], dtype=int), last)
        spelled = tokenizer.convert_ids_to_tokens(last)
        with pytest.raises(InputError, match=f"id {last}") as told:
            tokens.check_known(tokenizer, np.array([[1, last]]), last)
        assert repr(spelled) in str(told.value)


TRICKY = [
    "a <bos> in <eos> the middle",
    "<eos>",
    "<bos><bos>",
    "the </s> end<end_of_turn>\n<start_of_turn>model",
    "",
    "東京 <eos>は",
]


class TestTexts:
    @pytest.mark.parametrize("puts_bos", [False, True])
    def test_a_control_token_that_is_spelled_out_is_text(self, puts_bos):
        tokenizer = byte_level(puts_bos=puts_bos)
        for text, found in zip(TRICKY, tokens.encode(tokenizer, TRICKY), strict=True):
            assert not set(found.ids.tolist()) & set(range(len(CONTROL)))
            assert tokenizer.decode(found.ids.tolist()) == text
            assert len(found.begins) == len(found.ids)
        # and the tokenizer reads control tokens again where it is asked to
        assert tokenizer("<eos>", add_special_tokens=False).input_ids == [1]

    def test_as_many_ends_as_documents(self):
        tokenizer = byte_level()
        corpus = Corpus(tuple(Document(text) for text in TRICKY), "x")
        cut = split_corpus(corpus, [], tokenizer, count=1, tokens_per_split=None, held_out=0.0)
        (stream,) = cut.parts
        assert int((stream == 1).sum()) == len(TRICKY)
        pieces = np.split(stream, np.flatnonzero(stream == 1) + 1)
        assert [tokenizer.decode(p[:-1].tolist()) for p in pieces[:-1]] == TRICKY

    def test_a_tokenizer_that_cannot_read_it_as_text_is_told(self):
        """A vocabulary of whole words has the spelling of a control token as a word."""
        raw = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "a": 2}, unk_token="<unk>"))
        raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw, eos_token="<eos>", unk_token="<unk>"
        )
        assert tokens.encode(tokenizer, ["a b"])[0].ids.tolist() == [2, 0]
        with pytest.raises(InputError, match="spells out the control token '<eos>'"):
            tokens.encode(tokenizer, ["a <eos> a"])


class TestBoundaries:
    def special(self, tokenizer: Any, **how: Any) -> tokens.SpecialTokens:
        return tokens.special_tokens(tokenizer, LLAMA, **how)

    def spelled(self, tokenizer: Any, context: str, continuation: str) -> list[str]:
        ((ids, count),) = tokens.encode_pairs(
            tokenizer, [(context, continuation)], self.special(tokenizer), limit=64
        )
        return tokenizer.convert_ids_to_tokens(ids[len(ids) - count :])

    def test_a_prepending_tokenizer_makes_no_token_of_its_mark(self):
        assert self.spelled(prepending(), "the answer is", "Paris") == ["▁Paris"]

    def test_nor_where_nothing_parts_the_two(self):
        tokenizer = prepending()
        whole = self.spelled(tokenizer, "東京は", "日本")
        assert "▁" not in whole
        assert "".join(whole) == "日本"

    @pytest.mark.parametrize(
        ("context", "continuation", "between"),
        [
            ("the answer is", "Paris", " "),
            ("the answer is ", "Paris", " "),
            ("the answer is", " Paris", " "),
            ("首都は", "東京", ""),
            ("首都は ", "東京", " "),  # a space that the text has
            ("首都は", "Paris", ""),
            ("住在Paris", "的人", ""),
            ("the capital is", "東京", " "),
            ("เมืองหลวงคือ", "กรุงเทพ", ""),
            ("수도는", "서울", " "),  # Korean parts its words
            ("", "Paris", ""),
        ],
    )
    def test_a_space_stands_where_the_script_has_one(self, context, continuation, between):
        assert tokens.gap(context, continuation) == between

    @pytest.mark.parametrize("tokenizer", [byte_level(), prepending()], ids=["bytes", "prepends"])
    @pytest.mark.parametrize(
        ("context", "continuation"),
        [("the answer is", "Paris in Oslo"), ("東京は日本の", "首都です"), ("Rome is", "in Oslo")],
    )
    def test_the_ids_are_those_of_the_whole_where_that_begins_with_the_context(
        self, tokenizer, context, continuation
    ):
        ((ids, count),) = tokens.encode_pairs(
            tokenizer, [(context, continuation)], self.special(tokenizer), limit=64
        )
        text = context + tokens.gap(context, continuation) + continuation
        whole = tokenizer(text, add_special_tokens=False).input_ids
        head = tokenizer(context, add_special_tokens=False).input_ids
        assert ids[: len(ids) - count] == head
        if whole[: len(head)] == head:
            assert ids == whole
        assert tokenizer.decode(ids) == text

    def test_bos_stands_first_and_stays_when_the_context_is_cut(self):
        tokenizer = byte_level(puts_bos=True)
        pairs = [("the answer is", "Paris"), ("", "Paris"), ("in Rome " * 40, "Paris")]
        short, empty, long = tokens.encode_pairs(
            tokenizer, pairs, self.special(tokenizer), limit=12
        )
        paris = tokenizer(" Paris", add_special_tokens=False).input_ids
        assert short[0] == tokenizer("the answer is Paris").input_ids
        assert empty[0] == tokenizer("Paris").input_ids
        assert len(long[0]) == 12
        assert long[0][0] == 2
        assert long[0][-len(paris) :] == paris
        assert 2 not in long[0][1:]

    def test_control_tokens_in_questions_are_text(self):
        tokenizer = byte_level()
        ((ids, _),) = tokens.encode_pairs(
            tokenizer, [("a <eos> b", "<bos> c")], self.special(tokenizer), limit=64
        )
        assert not set(ids) & set(range(len(CONTROL)))

    def test_too_long_and_empty_continuations(self):
        tokenizer = byte_level(puts_bos=True)
        special = self.special(tokenizer)
        with pytest.raises(InputError, match="is empty; every question needs"):
            tokens.encode_pairs(tokenizer, [("a", " \n")], special, limit=64)
        with pytest.raises(InputError, match="the model reads 8 at most"):
            tokens.encode_pairs(tokenizer, [("a", "Rome " * 20)], special, limit=8)


class TestChatTemplates:
    TEMPLATE = "{% if enable_thinking %}think{% endif %}{{ messages[0].content }}"

    def test_arguments_that_the_template_ignores_are_told(self):
        tokenizer = byte_level()
        with pytest.raises(InputError, match="x: the model's tokenizer has no chat template"):
            tokens.check_template(tokenizer, {}, key="x")
        tokenizer.chat_template = self.TEMPLATE
        tokens.check_template(tokenizer, {"enable_thinking": False}, key="x")
        with pytest.raises(InputError, match="names 'thinking', which the model's chat template"):
            tokens.check_template(tokenizer, {"thinking": False}, key="x")
