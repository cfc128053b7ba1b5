"""Tokenizers made here that have what those of pretrained models have."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

CONTROL = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
WORDS = ["the answer is Paris Rome in Oslo 東京は日本の首都です user model"] * 20


def byte_level(*, puts_bos: bool = False, **names: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Gemma's control tokens."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(
            vocab_size=380,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=CONTROL,
        ),
    )
    if puts_bos:
        raw.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    given = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"} | names
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, clean_up_tokenization_spaces=False, **given
    )
