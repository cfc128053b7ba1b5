#!/usr/bin/env bash
# transformers 5.23.0: a GGUF file's scaled rotary positions are dropped without a word.
#
# A GGUF file of a LLaMA says how its positions are scaled, either by the keys
# llama.rope.scaling.{type,factor,...} (linear, yarn) or by the tensor rope_freqs.weight, whose
# factors divide the frequencies (Llama 3.1 and later). from_pretrained(gguf_file=...) reads neither
# and warns of neither: the configuration says rope_type "default", and the model is that of a file
# without scaling, bit by bit. Log-probabilities, perplexities and losses are those of another model.
#
# Seen with a random LLaMA of 2 layers at 200 positions: no difference to the file without scaling;
# log-probabilities off by up to 0.71 (linear, factor 4) and 0.32 (rope_freqs.weight).
# Ends with 0 while this is so, and with 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0
cd "$folder"
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { code=$?; tail -5 "$folder/log"; exit $code; }
import logging
import sys
import warnings

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

torch.manual_seed(1)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=256, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, rms_norm_eps=1e-5,
    )
).eval()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(4)  # far from uniform, so that positions matter
FACTORS = np.repeat([1.0, 8.0], 4).astype(np.float32)  # one for each pair of a head of 16
ids = torch.randint(0, 64, (1, 200), generator=torch.Generator().manual_seed(0))
warned = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: warned.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)


def linear(out):
    out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    out.add_rope_scaling_factor(4.0)


def yarn(out):
    out.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    out.add_rope_scaling_factor(4.0)
    out.add_rope_scaling_orig_ctx_len(64)


def factors(out):
    out.add_tensor("rope_freqs.weight", FACTORS)


def loaded(name, scale):
    """The model that transformers makes of the file, whose positions `scale` scales."""
    out = gguf.GGUFWriter(f"{name}.gguf", "llama")
    out.add_block_count(2)
    out.add_context_length(256)
    out.add_embedding_length(64)
    out.add_feed_forward_length(96)
    out.add_head_count(4)
    out.add_head_count_kv(4)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10000.0)
    out.add_rope_dimension_count(16)
    out.add_vocab_size(64)
    out.add_tokenizer_model("gpt2")
    out.add_token_list([f"t{i}" for i in range(64)])
    out.add_token_types([gguf.TokenType.NORMAL] * 64)
    out.add_token_merges([])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for key, tensor in model.state_dict().items():
        value = tensor.numpy()
        if "q_proj" in key or "k_proj" in key:  # GGUF interleaves the halves of a head
            halves = value.reshape(4, 2, 8, 64).swapaxes(1, 2)
            value = np.ascontiguousarray(halves).reshape(64, 64)
        out.add_tensor(names.get_name(key, try_suffixes=(".weight",)), value)
    scale(out)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return AutoModelForCausalLM.from_pretrained(
        ".", gguf_file=f"{name}.gguf", dtype=torch.float32
    ).eval()


def log_prob(model):
    with torch.no_grad():
        return model(ids).logits.log_softmax(-1)


def off(a, b):
    return float((a - b).abs().max())


unscaled = log_prob(model)
frequencies = model.model.rotary_emb.inv_freq.clone()
as_stated = off(log_prob(loaded("plain", lambda out: None)), unscaled) == 0
with warnings.catch_warnings(record=True) as others:
    warnings.simplefilter("always")
    for scale, divisor in ((linear, 4.0), (yarn, None), (factors, torch.from_numpy(FACTORS))):
        read = loaded(scale.__name__, scale)
        same, kind = off(log_prob(read), unscaled), read.config.rope_parameters["rope_type"]
        print(f"{scale.__name__}: rope_type {kind}, off from no scaling by {same}", end="")
        as_stated = as_stated and same == 0 and kind == "default"
        if divisor is not None:
            model.model.rotary_emb.inv_freq = frequencies / divisor
            meant = off(log_prob(read), log_prob(model))
            print(f", from what the file says by {meant:.2f}", end="")
            as_stated = as_stated and meant > 0.1
        print()
texts = warned + [str(other.message) for other in others]
said = [text for text in texts if "rope" in text.lower()]
print(f"warnings that speak of it: {len(said)}")
sys.exit(0 if as_stated and not said else 1)
PY
