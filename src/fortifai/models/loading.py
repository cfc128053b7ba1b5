"""Reading a tokenizer and a causal language model, whole or not at all; and writing them.

From a folder, a hub id, a LoRA adapter that names its base, or a GGUF file: transformers and peft
read them, and draw at random what they do not find. Here a model that lacks a weight is refused.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING, get_tokenizer_config
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import logging

from fortifai.errors import InputError, reason
from fortifai.models import gguf_files, lora
from fortifai.models.hub import Place, locate

Dtype = Literal["float32", "bfloat16"]

NOT_COUNTED = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")
"""Parts of a configuration that saving writes into it, or that say nothing the weights do not."""

PACKAGES = {
    "aqlm": ("aqlm",),
    "auto-round": ("auto_round",),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "bitsandbytes_4bit": ("bitsandbytes",),
    "bitsandbytes_8bit": ("bitsandbytes",),
    "compressed-tensors": ("compressed_tensors",),
    "eetq": ("kernels",),
    "fbgemm_fp8": ("fbgemm_gpu",),
    "fouroversix": ("fouroversix",),
    "fp_quant": ("fp_quant",),
    "gptq": ("optimum", "gptqmodel"),
    "higgs": ("flute", "fast_hadamard_transform"),
    "hqq": ("hqq",),
    "quanto": ("optimum",),
    "quark": ("quark",),
    "sinq": ("sinq",),
    "spqr": ("spqr_quant",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
}
"""The packages without which transformers does not read weights quantised by a method."""

Info = Mapping[str, Any]


def read(name: str | Path, dtype: Dtype) -> tuple[PreTrainedTokenizerFast, PreTrainedModel]:
    """The tokenizer and the model that a name stands for, all weights in `dtype`, on the CPU.

    What is quantised in a GGUF file is dequantised; the model is then like any other. A LoRA
    adapter is merged into its base. Code that comes with a model is never run.

    Args:
        name: A hub id, a folder, a GGUF file, a folder that holds one, or ``repo:file.gguf``.
        dtype: Of the weights, whatever they are stored in.

    Raises:
        InputError: There is nothing by that name, or no network; it is not a causal language model
            with a fast tokenizer; weights are missing, misnamed, of other shapes or torn; a
            package is missing.
    """
    place = locate(str(name))
    if place.is_adapter:
        tokenizer, model = read(lora.base_of(place.repo), dtype)
        with _told(place.name):
            lora.merge_saved(model, place.repo)
        return _tokenizer(place) if place.holds_tokenizer else tokenizer, model
    tokenizer, config = _describe(place)
    with _told(place.name), quiet(), _lean(place, weights=True) as (repo, how):
        model, info = AutoModelForCausalLM.from_pretrained(
            repo,
            config=config,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            # they are told below, all at once and by name
            ignore_mismatched_sizes=True,
            **how,
            **gguf_files.dense(place),
        )
        model.name_or_path = model.config.name_or_path = place.repo
    _check_whole(place.name, model, info)
    if place.gguf is not None:
        gguf_files.settle(place, model)
    _check_causal(place.name, model)
    return tokenizer, model


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer into a folder; no pickle."""
    own = model.generation_config
    try:
        own.validate(strict=True)
    except ValueError:
        # transformers refuses to save models published with settings that contradict themselves;
        # only their special tokens are of use
        model.generation_config = GenerationConfig(
            bos_token_id=own.bos_token_id,
            eos_token_id=own.eos_token_id,
            pad_token_id=own.pad_token_id,
        )
    try:
        with quiet():
            model.save_pretrained(folder)
    finally:
        model.generation_config = own
    tokenizer.save_pretrained(folder)


def digest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of weights, configuration and tokenizer; the model's name and place are none."""
    out = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        out.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        out.update(flat.view(torch.uint8).numpy())
    told = [part.to_dict() for part in (model.config, model.generation_config)]
    settings = [{k: v for k, v in part.items() if k not in NOT_COUNTED} for part in told]
    spoken = [tokenizer.special_tokens_map, tokenizer.chat_template, tokenizer.model_max_length]
    out.update(tokenizer.backend_tokenizer.to_str().encode())
    text = json.dumps([settings, spoken], sort_keys=True, default=str)
    out.update(hashlib.sha256(text.encode()).hexdigest().encode())
    return out.hexdigest()


def describe(name: str | Path) -> tuple[PreTrainedTokenizerFast, PreTrainedConfig]:
    """The tokenizer and configuration of a model, without its weights.

    Args:
        name: As `read` takes it.

    Raises:
        InputError: As `read`, as far as it can be told without the weights.
    """
    place = locate(str(name))
    if place.is_adapter:
        tokenizer, config = describe(lora.base_of(place.repo))
        return _tokenizer(place) if place.holds_tokenizer else tokenizer, config
    return _describe(place)


def _describe(place: Place) -> tuple[PreTrainedTokenizerFast, PreTrainedConfig]:
    gguf_files.check(place)
    if place.gguf is None:
        return _read_description(place)
    with _told(place.name):
        stamp = gguf_files.stamp(place)
    # of a vocabulary of 262,144 that takes half a minute, and is asked for more than once
    if stamp not in _described:
        _described.clear()
        _described[stamp] = _read_description(place)
    return copy.deepcopy(_described[stamp])


_described: dict[tuple[str, int, int], tuple[PreTrainedTokenizerFast, PreTrainedConfig]] = {}


def _read_description(place: Place) -> tuple[PreTrainedTokenizerFast, PreTrainedConfig]:
    with _told(place.name), quiet(), _lean(place, weights=False) as (repo, how):
        config = AutoConfig.from_pretrained(repo, **how)
        config.name_or_path = place.repo
    _check_quantisation(place.name, config)
    if place.gguf is not None:
        gguf_files.complete(place, config)
    return _tokenizer(place, config), config


def _tokenizer(place: Place, config: PreTrainedConfig | None = None) -> PreTrainedTokenizerFast:
    with _told(place.name), quiet():
        # a tokenizer.json beside a GGUF file says more than the file does
        how = _how(place) if not place.holds_tokenizer else _how(place) | {"gguf_file": None}
        maker: Any = AutoTokenizer
        if how.get("gguf_file") and not get_tokenizer_config(place.repo, **_how(place)):
            # the class that AutoTokenizer finds, which reads every token once more to find it
            maker = TOKENIZER_MAPPING.get(type(config), PreTrainedTokenizerFast)
        tokenizer = maker.from_pretrained(place.repo, **how)
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer of {place.name!r} is a slow one, without character offsets; use a "
            "model with a fast tokenizer (tokenizer.json)"
        )
    if place.gguf is not None and not place.holds_tokenizer:
        gguf_files.settle_tokenizer(place, tokenizer)
    return tokenizer


@contextlib.contextmanager
def _lean(place: Place, *, weights: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where from_pretrained reads a model, and how; see `gguf_files.lean`."""
    if place.gguf is None:
        yield place.repo, _how(place)
        return
    with gguf_files.lean(place, weights=weights) as file:
        yield str(file.parent), _how(place) | {"gguf_file": file.name, "local_files_only": True}


def _how(place: Place) -> dict[str, Any]:
    how: dict[str, Any] = {"trust_remote_code": False, "local_files_only": place.is_local}
    return how if place.gguf is None else how | {"gguf_file": place.gguf}


# --- checks -----------------------------------------------------------------------------------


def _check_quantisation(name: str, config: PreTrainedConfig) -> None:
    """Refuse what needs a package that is not here; forget a mark that stands on dense weights."""
    for part in (config, config.get_text_config(decoder=True)):
        told = getattr(part, "quantization_config", None)
        if told is None:
            continue
        told = told if isinstance(told, dict) else told.to_dict()
        method = str(getattr(told.get("quant_method"), "value", told.get("quant_method")))
        if method == "gguf":
            del part.quantization_config
            continue
        if method == "None" and (told.get("load_in_4bit") or told.get("load_in_8bit")):
            method = "bitsandbytes"
        if method not in AUTO_QUANTIZATION_CONFIG_MAPPING and method not in PACKAGES:
            raise InputError(
                f"the weights of {name!r} are quantised by {method!r}, which transformers does not "
                "know; give the checkpoint that was quantised"
            )
        absent = [p for p in PACKAGES.get(method, ()) if importlib.util.find_spec(p) is None]
        if absent:
            raise InputError(
                f"the weights of {name!r} are quantised by {method}, which needs "
                f"{' and '.join(absent)}, not installed here; install it, or give the checkpoint "
                "that was quantised, or a GGUF file of it"
            )


def _check_whole(name: str, model: PreTrainedModel, info: Info) -> None:
    """Refuse a model of which some weights were drawn at random, or some were left out."""
    faults = []
    if shapes := sorted(info["mismatched_keys"]):
        key, found, wanted = shapes[0]
        faults.append(
            f"{_listed([k for k, *_ in shapes])} of another shape ({key}: {list(found)} in the "
            f"file, {list(wanted)} by its config.json)"
        )
    if missing := sorted(info["missing_keys"]):
        faults.append(f"{_listed(missing)} missing{_renamed(missing, info['unexpected_keys'])}")
    if not missing and (left := _left_out(model, info["unexpected_keys"])):
        faults.append(f"{_listed(left)} without a place in {type(model).__name__}")
    faults += [reason(error) for error in info.get("error_msgs") or ()]
    if faults:
        raise InputError(
            f"{name!r} is no whole checkpoint: its weights are {'; '.join(faults)}; give the "
            "files as they were published, with their own config.json"
        )


def _listed(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:3])
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3:,} more"


def _renamed(missing: Sequence[str], others: Sequence[str]) -> str:
    """The name under which the first missing weight seems to stand in the file."""
    for other in sorted(others):
        for key in missing:
            if other.endswith(f".{key}"):
                return f" (the file has {other}: take {other.removesuffix(key)!r} off its names)"
            if other.replace(".base_layer.", ".").endswith(key):
                return f" (the file has {other}: merge the adapters into it)"
    return f" (the file has {_listed(sorted(others))})" if others else ""


def _left_out(model: PreTrainedModel, unexpected: Sequence[str]) -> list[str]:
    """Tensors of layers that the model has and that it would have to use: a bias, scales."""
    layers = (nn.Linear, nn.Embedding, Conv1D)
    known = {name for name, module in model.named_modules() if isinstance(module, layers)}
    prefix = f"{model.base_model_prefix}."
    owners = ((key, key.rpartition(".")[0]) for key in unexpected)
    return sorted(key for key, owner in owners if owner in known or prefix + owner in known)


@torch.inference_mode()
def _check_causal(name: str, model: PreTrainedModel) -> None:
    """Refuse a model that sees what comes after, such as an encoder loaded as if it were none."""
    rows = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device)
    with _told(name):
        first, second = model(input_ids=rows, use_cache=False).logits[:, :3].float()
    # what is left is the rounding of sums; a model that looks ahead changes by far more. Broken
    # weights (NaN) compare as false here, and are named by whoever measures with them
    if bool((first - second).abs().max() > 1e-3 * first.abs().max()):
        raise InputError(
            f"{name!r} ({type(model).__name__}) sees the tokens that it is to predict, so it is no "
            "causal language model; give a decoder, such as one saved by AutoModelForCausalLM"
        )


# --- transformers and its output --------------------------------------------------------------


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever transformers stumbles over in a model's files, as one sentence about the model."""
    try:
        yield
    except InputError:
        raise
    # It raises OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError,
    # UnpicklingError, SafetensorError and more for files that are not as they should be
    except Exception as error:
        told = reason(error)
        if isinstance(error, KeyError):
            told = f"{told} is missing"
        raise InputError(
            f"no causal language model could be loaded from {name!r} ({told}); give a folder "
            "with one, a GGUF file, or a hub id with a network to fetch it"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars, reports and warnings of others: what is wrong is told in a sentence."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        # the bar of GGUF files knows no switch
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
