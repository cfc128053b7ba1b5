#!/usr/bin/env bash
# PEFT 0.21.2: with ensure_weight_tying a tied output layer says the wrong in_features.
#
# modules_to_save on a model with tied embeddings, and ensure_weight_tying=True, puts a new Linear
# in the place of the output layer, which shares the embeddings' weight (vocabulary x hidden) and says
# in_features=vocabulary, out_features=hidden: the other way round. Logits are right, as the product
# reads the weight alone. What reads the sizes goes wrong, also after merge_and_unload, which leaves
# that Linear in the plain model: a LoRA on it gets matrices of the wrong shapes, and its first
# forward pass raises. Without ensure_weight_tying the sizes are right.
#
# Seen (vocabulary 64, hidden size 32): Linear(64 -> 32) with a weight of (64, 32); LoRA raises "mat1
# and mat2 shapes cannot be multiplied (8x32 and 64x2)".
# Ends with 0 while this is so, and with 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet transformers==5.23.0 peft==0.21.2
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { code=$?; tail -5 "$folder/log"; exit $code; }
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.arange(8)[None]


def merged(**how):
    """Plain model after PEFT was put on and merged, nothing trained; the change of its logits."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        before = model(ids).logits
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **how))
        model = model.eval().merge_and_unload()
        return model, float((model(ids).logits - before).abs().max())


def lora_on_the_head(model):
    """What a LoRA on the output layer says at its first pass."""
    try:
        get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"]))(ids)
    except RuntimeError as error:
        return str(error)
    return "runs"


found = []
for name, how in (
    ("not tied", {"modules_to_save": ["lm_head"]}),
    ("tied, by the head", {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
    (
        "tied, by the embeddings",
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
):
    model, change = merged(**how)
    head = model.lm_head
    sizes, shape = (head.in_features, head.out_features), tuple(head.weight.shape)
    says = lora_on_the_head(model)
    print(f"{name}: Linear{sizes}, weight {shape}, logits off by {change:.1e}, LoRA: {says}")
    found.append((sizes, shape, change < 1e-5, "cannot be multiplied" in says))
right, wrong = ((32, 64), (64, 32), True, False), ((64, 32), (64, 32), True, True)
sys.exit(0 if found == [right, wrong, wrong] else 1)
PY
