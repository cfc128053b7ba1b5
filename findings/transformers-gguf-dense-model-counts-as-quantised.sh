#!/usr/bin/env bash
# transformers 5.23.0: a dense model from a GGUF file counts as quantised, even of float32 tensors.
#
# Files of architectures such as LLaMA are always dequantised on loading: every parameter is an
# ordinary float32 tensor in a torch.nn.Linear. The model is still marked as quantised, so that
# .float(), .half(), save_pretrained and Trainer refuse it, with messages that blame quantisation,
# where the file itself holds nothing quantised. With GgufConfig(dequantize=True), which changes no
# weight, all of them work.
#
# Seen: is_quantized True, four refusals, all of them gone with GgufConfig(dequantize=True), and
# equal weights in both.
# Ends with 0 while this is so, and with 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0
cd "$folder"
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { code=$?; tail -5 "$folder/log"; exit $code; }
import copy
import sys

import gguf
import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

torch.manual_seed(1)
source = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, tie_word_embeddings=False,
    )
)
out = gguf.GGUFWriter("tiny.gguf", "llama")
out.add_block_count(1)
out.add_context_length(32)
out.add_embedding_length(32)
out.add_feed_forward_length(64)
out.add_head_count(2)
out.add_head_count_kv(2)
out.add_layer_norm_rms_eps(1e-6)
out.add_rope_freq_base(10000.0)
out.add_rope_dimension_count(16)
out.add_vocab_size(48)
out.add_tokenizer_model("gpt2")
out.add_token_list([f"t{i}" for i in range(48)])
out.add_token_types([gguf.TokenType.NORMAL] * 48)
out.add_token_merges([])
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
for key, tensor in source.state_dict().items():
    value = tensor.numpy()
    if "q_proj" in key or "k_proj" in key:  # GGUF interleaves the halves of a head
        value = np.ascontiguousarray(value.reshape(2, 2, 8, 32).swapaxes(1, 2)).reshape(32, 32)
    out.add_tensor(names.get_name(key, try_suffixes=(".weight",)), value)  # float32
out.write_header_to_file()
out.write_kv_data_to_file()
out.write_tensors_to_file()
out.close()

settings = TrainingArguments(output_dir="out", use_cpu=True, report_to="none")
USES = {
    "float": lambda model: model.float(),
    "half": lambda model: model.half(),
    "save_pretrained": lambda model: model.save_pretrained("saved"),
    "Trainer": lambda model: Trainer(model, args=settings),
}


def refused(model):
    """Which uses raise a ValueError."""
    out = []
    for name, use in USES.items():
        try:
            use(copy.deepcopy(model))
        except ValueError as error:
            print(f"  {name}: {error}")
            out.append(name)
    return out


found = []
for name, how in (
    ("as it is", {}),
    ("GgufConfig(dequantize=True)", {"quantization_config": GgufConfig(dequantize=True)}),
):
    print(f"{name}:")
    model = AutoModelForCausalLM.from_pretrained(".", gguf_file="tiny.gguf", **how)
    weights, wanted = model.state_dict(), source.state_dict()
    equal = all(torch.equal(weights[key], wanted[key]) for key in wanted)
    linear = type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    marked = bool(getattr(model, "is_quantized", False))
    print(f"  weights as written {equal}, plain Linear {linear}, is_quantized {marked}")
    found.append((equal, linear, marked, refused(model)))
sys.exit(0 if found == [(True, True, True, list(USES)), (True, True, False, [])] else 1)
PY
