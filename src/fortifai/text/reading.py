"""Reads what an experiment on text names, and checks it before work starts; writes nothing."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fortifai.data import questions, splits
from fortifai.data.tokens import SpecialTokens, check_known, special_tokens
from fortifai.errors import InputError
from fortifai.evals import benchmarks, fluency
from fortifai.lab.domain import Under
from fortifai.lab.progress import Progress
from fortifai.lab.seeds import derive
from fortifai.models import compiled, scratch, vllm_engine
from fortifai.models.causal_lm import CausalLM
from fortifai.models.family import count_parameters, from_config
from fortifai.models.hub import exists
from fortifai.models.loading import describe
from fortifai.models.options import PretrainOptions, TrainOptions
from fortifai.text import exam
from fortifai.text.domain import TextDomain
from fortifai.text.sources import Sources
from fortifai.text.spec import TextArm, TextExperiment
from fortifai.weights import Keep

Tokens = NDArray[np.int32]


def read(config: TextExperiment, root: Path) -> TextDomain:
    """Read and check corpus, questions and model.

    Raises:
        InputError: Anything about them is wrong.
    """
    sources = _read_sources(config, root)
    family = config.family
    if family.scratch:
        texts = [document.text for document in sources.corpus.documents]
        tokenizer = scratch.train_tokenizer(texts, family.scratch.vocab_size)
        with torch.device("meta"):
            model_config = _build(config, len(tokenizer), seed=0).config
        longest = family.scratch.max_positions or config.positions
    else:
        assert family.base is not None
        tokenizer, model_config = describe(_local(family.base, root))
        _check_positions(config, family.base, model_config)
        longest = _positions(model_config) or 1024
    parameters = count_parameters(lambda: from_config(model_config))
    special = special_tokens(tokenizer, model_config, bos=family.bos)
    engine = _check_engine(config, model_config, special)
    cut = splits.split_corpus(
        sources.corpus,
        sources.questions,
        tokenizer,
        count=config.split_count,
        tokens_per_split=config.splits.tokens,
        held_out=sources.held_out,
    )
    _check(config, cut)
    rows = model_config.get_text_config(decoder=True).vocab_size
    for part in (*cut.parts, cut.rest, cut.held_out):
        check_known(tokenizer, part, rows)
    suite, cuts = _read_benchmarks(config, root, tokenizer, model_config, special)
    fingerprint = sources.fingerprint()
    if suite:
        fingerprint = hashlib.sha256(f"{fingerprint} {suite.fingerprint}".encode()).hexdigest()
    in_formats = exam.read(config, root, [q for k in cut.questions for q in k])
    if in_formats:
        in_formats.check(tokenizer, longest, special)
        told = json.dumps(exam.rows(in_formats))
        fingerprint = hashlib.sha256(f"{fingerprint} {told}".encode()).hexdigest()
    bleu = fluency.bleu_notes(config.fluency.self_bleu)
    data = TextDomain(
        config,
        real=tuple(cut.parts),
        rest=cut.rest,
        held_out=cut.held_out[: config.splits.held_out_tokens],
        questions=tuple(tuple(part) for part in cut.questions),
        tokenizer=tokenizer,
        special=special,
        base_model=functools.partial(_base_model, config, root, tokenizer, cut.rest),
        parameters=parameters,
        fingerprint=fingerprint,
        notes=tuple(dict.fromkeys([*sources.notes, *cut.notes, *cuts, *bleu])),
        benchmarks=suite,
        exam=in_formats,
        engine=engine,
    )
    return data


def _read_sources(config: TextExperiment, root: Path) -> Sources:
    found: Sources = config.corpus.read(root)
    if not config.questions.files:
        return found
    asked, notes = questions.read_questions(config.questions.files, root=root)
    return dataclasses.replace(found, questions=asked, notes=(*found.notes, *notes))


def _check_engine(config: TextExperiment, model_config: Any, special: SpecialTokens) -> str:
    """What vLLM says of itself, if an arm writes by it; nothing otherwise."""
    if all(arm.regenerate.engine != "vllm" for arm in config.arms.values()):
        return ""
    with torch.device("meta"):
        model = from_config(model_config)
    return vllm_engine.check(model, special)


def _read_benchmarks(
    config: TextExperiment,
    root: Path,
    tokenizer: Any,
    model_config: Any,
    special: SpecialTokens,
) -> tuple[benchmarks.Suite | None, list[str]]:
    """The benchmarks, and what of them is too long for the model."""
    if not config.benchmarks:
        return None, []
    suite = benchmarks.read(config.benchmarks.values(), root)
    with torch.device("meta"):
        model = from_config(model_config)
    return suite, suite.check(model, tokenizer, special)


def _local(base: str, root: Path) -> str:
    """A folder or file relative to the YAML's, if there is one; else the name as it is."""
    return str(root / base) if exists(root / base) else base


def _build(config: TextExperiment, vocab_size: int, *, seed: int) -> Any:
    sizes = config.family.scratch
    assert sizes is not None
    return scratch.build(
        sizes.architecture,
        hidden_size=sizes.hidden_size,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        intermediate_size=sizes.intermediate_size,
        vocab_size=vocab_size,
        max_positions=sizes.max_positions or config.positions,
        tie_embeddings=sizes.tie_embeddings,
        seed=seed,
    )


def _positions(model_config: Any) -> int | None:
    """How many a model reads; that of text and images says it of its text part."""
    text = model_config.get_text_config(decoder=True)
    return getattr(text, "max_position_embeddings", None)


def _check_positions(config: TextExperiment, base: str, model_config: Any) -> None:
    positions = _positions(model_config)
    if positions is not None and config.positions > positions:
        raise InputError(
            f"{base} has {positions} positions and the experiment needs {config.positions} "
            "(train.block, or regenerate.context: its at_most, or it + new_tokens); make them "
            "shorter"
        )


def _check(config: TextExperiment, cut: splits.Splits) -> None:
    size = len(cut.parts[0])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # as models choose
    for name, arm in config.arms.items():
        compiled.check(arm.train, device)
        if arm.train.block > size:
            raise InputError(
                f"arm {name!r}: train.block {arm.train.block} is longer than a split of {size} "
                "tokens; make the block shorter or the splits longer"
            )
        if arm.regenerate.mode == "blocks" and arm.regenerate.first >= size:
            raise InputError(
                f"arm {name!r}: regenerate.context {arm.regenerate.first} leaves nothing to "
                f"rewrite in a split of {size} tokens; make it shorter or the splits longer"
            )
        if arm.train.checkpoint == "best_kr" and not any(cut.questions):
            raise InputError(f"arm {name!r}: train.checkpoint best_kr needs questions")
    if config.questions.files and not any(cut.questions):
        raise InputError(
            "no question's fact stands in any split; give questions on this corpus, or larger "
            "splits"
        )
    scratch_ = config.family.scratch
    if scratch_ and scratch_.pretrain and not len(cut.rest):
        raise InputError(
            "family.scratch.pretrain trains on text outside the splits and there is none; set "
            "splits.tokens so that some text is left"
        )


def _base_model(
    config: TextExperiment,
    root: Path,
    tokenizer: Any,
    rest: Tokens,
    seed: int,
    folder: Path,
    progress: Progress,
) -> CausalLM:
    """The base model of a seed, pretrained on `rest` if the YAML asks for it."""
    arm = next(iter(config.arms.values()))
    if arm.family.base is not None:
        return CausalLM.from_base(
            _local(arm.family.base, root), dtype=arm.family.dtype, bos=arm.family.bos
        )
    model = _build(config, len(tokenizer), seed=derive(seed, "base"))
    lm = CausalLM(model, tokenizer, bos=arm.family.bos)
    assert arm.family.scratch is not None
    if arm.family.scratch.pretrain:
        lm.fit(
            rest,
            Keep(),
            _pretraining(arm, arm.family.scratch.pretrain),
            seed=derive(seed, "pretrain"),
            workdir=folder / "pretrain.tmp",
            select=None,
            progress=Under(progress, "pretrain"),
        )
    return lm


def _pretraining(arm: TextArm, pretrain: PretrainOptions) -> TrainOptions:
    return TrainOptions(
        epochs=pretrain.epochs,
        learning_rate=pretrain.learning_rate,
        batch_size=pretrain.batch_size,
        weight_decay=pretrain.weight_decay,
        warmup_share=pretrain.warmup_share,
        schedule="cosine",
        block=arm.train.block,
        precision=arm.train.precision,
    )
