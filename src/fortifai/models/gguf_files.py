"""What transformers leaves out when it reads a GGUF file, made good or refused.

It dequantises the tensors whose names it knows and maps most of the metadata. Left out are scaled
rotary positions, soft-caps, tokens that end a turn, how numbers are split into tokens, and tensors
without a place in the model. Sources: llama.cpp, convert_hf_to_gguf.py and src/llama-vocab.cpp.
"""

from __future__ import annotations

import importlib.util
import math
import mmap
import shutil
import struct
import tempfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import decoders, pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from fortifai.errors import InputError
from fortifai.models.hub import Place

_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Byte-level vocabularies that split as GPT-2's does, and each digit from the next."""

_AS_GPT2 = ("default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe", "mellum")

_WIDE = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, whose attention is scaled by hidden size / heads, not by head size."""


def check(place: Place) -> None:
    """Refuse a GGUF file where the packages that read it are not installed."""
    if place.gguf is None:
        return
    absent = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(
            f"{place.name!r} is a GGUF file, which needs the package {' and '.join(absent)}; "
            "install fortifai[gguf]"
        )


def dense(place: Place) -> dict[str, Any]:
    """What from_pretrained takes to give plain tensors, not marked as quantised."""
    if place.gguf is None:
        return {}
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)}


def complete(place: Place, config: PreTrainedConfig) -> None:
    """Put into a configuration what the file says and transformers does not take from it.

    Raises:
        InputError: Positions are scaled in a way that is not known here.
    """
    told, names = _metadata(place)
    arch = told["general.architecture"]

    def value(key: str, default: Any = None) -> Any:
        return told.get(f"{arch}.{key}", default)

    config.vocab_size = value("vocab_size", told.get("tokenizer.ggml.tokens", config.vocab_size))
    for cap in ("final_logit_softcapping", "attn_logit_softcapping"):
        if value(cap) is not None and hasattr(config, cap):
            setattr(config, cap, value(cap))
    if _WIDE.get(arch) == value("block_count"):
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    if arch == "gpt2":
        config.n_positions, config.n_inner = value("context_length"), value("feed_forward_length")
    scaling = value("rope.scaling.type", "none")
    if scaling == "linear":
        _scale(config, {"rope_type": "linear", "factor": value("rope.scaling.factor", 1.0)})
    elif scaling != "none" and arch not in ("gpt-oss", "gpt_oss"):
        raise InputError(
            f"{place.name!r} scales its positions by {scaling!r}, which transformers does not read "
            "from GGUF files; give the folder that the file was made from"
        )
    if "rope_freqs.weight" in names:
        _scale(config, _llama3(place, config))


def _scale(config: PreTrainedConfig, scaling: dict[str, Any]) -> None:
    rope = dict(config.rope_parameters)
    if "full_attention" in rope:  # Gemma 3 scales its global layers alone
        rope["full_attention"] = rope["full_attention"] | scaling
    else:
        rope |= scaling
    config.rope_parameters = rope


def _llama3(place: Place, config: PreTrainedConfig) -> dict[str, Any]:
    """The scaling of Llama 3.1 and later, told from the factors that the file gives instead.

    f_i = 1 for wavelengths below 8192 / 4, `factor` above 8192 / 1, and in between
    1 / ((1 - s) / factor + s) with s = (8192 / wavelength - 1) / (4 - 1).
    """
    found = _tensor(place, "rope_freqs.weight").astype(np.float64).ravel()
    base = config.rope_parameters["rope_theta"]
    low, high, old, factor = 1.0, 4.0, 8192, float(found.max())
    wavelength = 2 * math.pi * base ** (np.arange(len(found)) / len(found))
    smooth = np.clip((old / wavelength - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    # the file holds float32
    if not np.allclose(found, expected, rtol=1e-4):
        raise InputError(
            f"{place.name!r} scales its positions (rope_freqs.weight) in another way than Llama 3, "
            "which transformers does not read from GGUF files; give the folder it was made from"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": old,
    }


def settle(place: Place, model: PreTrainedModel) -> None:
    """Check that every tensor went into the model, and take over what ends a text or a turn.

    Raises:
        InputError: The file has tensors that the model has no place for.
    """
    told, names = _metadata(place)
    if left := _without_place(told["general.architecture"], names, model):
        raise InputError(
            f"{place.name!r} has {len(left)} tensors that {type(model).__name__} has no place for "
            f"({', '.join(left[:3])}), so it would be another model; give the folder that it was "
            "made from"
        )
    ends = [told.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ids = list(dict.fromkeys(end for end in ends if end is not None))
    if model.generation_config is not None and len(ids) > 1:
        model.generation_config.eos_token_id = ids


def _without_place(arch: str, names: tuple[str, ...], model: PreTrainedModel) -> list[str]:
    import gguf
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    known = [key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch]
    # experts are put together, so their names say nothing; of some architectures transformers
    # tells by itself what it did not use
    if not known or is_gguf_arch_supported(arch) or any("_exps" in name for name in names):
        return []
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    places = gguf.get_tensor_name_map(known[0], count)
    taken = {"rope_freqs.weight"}
    for name in model.state_dict():
        owner, _, leaf = name.rpartition(".")
        while owner:
            if (found := places.get_name(owner)) is not None:
                taken.add(f"{found}.{leaf}")
            _, _, owner = owner.partition(".")  # some were made from the model without its head
    return sorted(set(names) - taken)


def settle_tokenizer(place: Place, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let a tokenizer split text as the file says.

    Raises:
        InputError: It says so in a way that is not known here.
    """
    told, _ = _metadata(place)
    backend = tokenizer.backend_tokenizer
    if told.get("tokenizer.ggml.model") == "gpt2":
        _split_bytes(place, backend, told.get("tokenizer.ggml.pre", "default"))
    first_space = told.get("tokenizer.ggml.add_space_prefix", True)
    if not first_space and isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )


def _split_bytes(place: Place, backend: Any, kind: str) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if kind in GGUF_PRE_TOKENIZER_SPLITS or kind in _AS_GPT2:
        return
    if kind not in _DIGITS_APART:
        raise InputError(
            f"{place.name!r} splits text as {kind!r} does, which transformers does not read from "
            "GGUF files; put the model's tokenizer.json beside the file"
        )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )


# --- without its lists of tokens --------------------------------------------------------------

_LISTS = {
    f"tokenizer.ggml.{name}".encode() for name in ("tokens", "scores", "token_type", "merges")
}
_WIDTH = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a number of each type (8 is a text, 9 an array): GGUF's specification, versions 2, 3."""
_COPIED = 2**30
"""Bytes of a file up to which its weights are copied: no disk is filled to save some seconds."""


@contextmanager
def lean(place: Place, *, weights: bool) -> Iterator[Path]:
    """The file without the lists of its tokens, in a folder of its own while the block lasts.

    transformers looks at every token, score and merge, one after the other, when it reads a
    configuration and again for the weights, and takes none of them: with 262,144 tokens half a
    minute each time. The file itself where it cannot be told apart, is large, finds no room, or is
    of one of the few architectures for which transformers passes over the lists.

    Args:
        place: Of a GGUF file.
        weights: Whether the weights are to be read; else their place is left empty, which takes no
            room on a disk.
    """
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    file = Path(_file(place))
    # Windows removes no file that is still mapped, and its reader may be
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        target = Path(folder, "lean.gguf")
        if weights and file.stat().st_size > _COPIED:
            target = file
        else:
            with file.open("rb") as source, target.open("wb") as out:
                if not _copy_lean(source, out, GGUF_CONFIG_ARCHS, weights=weights):
                    target = file
        yield target


def _copy_lean(source: BinaryIO, out: BinaryIO, others: Container[str], *, weights: bool) -> bool:
    """Write a file without lists of tokens; False for a torn one, or one of other architectures."""
    try:
        with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as told:
            version, tensors, count = struct.unpack_from("<IQQ", told, 4)
            if told[:4] != b"GGUF" or version not in (2, 3):
                return False
            kept, alignment, at = [], 32, 24
            for _ in range(count):
                start, value = at, _past_text(told, at)
                key = told[start + 8 : value]
                at = _past_value(told, value)
                if key == b"general.alignment":
                    (alignment,) = struct.unpack_from("<I", told, value + 4)
                if key == b"general.architecture" and told[value + 12 : at].decode() in others:
                    return False
                if key not in _LISTS:
                    kept.append(told[start:at])
            infos = at
            for _ in range(tensors):
                at = _past_text(told, at)
                (dimensions,) = struct.unpack_from("<I", told, at)
                at += 4 + 8 * dimensions + 12
            out.write(b"GGUF" + struct.pack("<IQQ", version, tensors, len(kept)))
            out.writelines(kept)
            out.write(told[infos:at])
            out.write(bytes(-out.tell() % alignment))
            data = at + -at % alignment  # where tensors begin; their offsets count from there
            if weights:
                source.seek(data)
                shutil.copyfileobj(source, out, 2**24)
            else:
                out.truncate(out.tell() + max(0, len(told) - data))
    except (struct.error, KeyError, ValueError, ArithmeticError, OSError):
        return False  # transformers says what is wrong with it; a full disk holds no copy
    return True


def _past_text(told: mmap.mmap, at: int) -> int:
    (length,) = struct.unpack_from("<Q", told, at)
    return at + 8 + int(length)


def _past_value(told: mmap.mmap, at: int) -> int:
    (kind,) = struct.unpack_from("<I", told, at)
    at += 4
    if kind == 8:
        return _past_text(told, at)
    if kind != 9:
        return at + _WIDTH[kind]
    kind, count = struct.unpack_from("<IQ", told, at)
    at += 12
    if kind != 8:
        return at + _WIDTH[kind] * int(count)
    for _ in range(count):
        at = _past_text(told, at)
    return at


# --- the file ---------------------------------------------------------------------------------


def stamp(place: Place) -> tuple[str, int, int]:
    """The file with its size and the time of its last change."""
    path = _file(place)
    told = Path(path).stat()
    return path, told.st_size, told.st_mtime_ns


def _file(place: Place) -> str:
    return str(cached_file(place.repo, place.gguf, local_files_only=place.is_local))


def _metadata(place: Place) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Metadata, long lists by their length alone, and the tensors' names."""
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, names = read_gguf_metadata(_file(place))
    return metadata, names


def _tensor(place: Place, name: str) -> np.ndarray:
    import gguf

    reader = gguf.GGUFReader(_file(place))
    (tensor,) = (tensor for tensor in reader.tensors if tensor.name == name)
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)
