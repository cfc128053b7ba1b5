#!/usr/bin/env bash
# PEFT 0.21.2: trainable_token_indices on an output layer that has a bias leaves the bias out.
#
# Phi's lm_head is a Linear with a bias. A PEFT model that has trained nothing yet should give the
# logits of its base. With trainable_token_indices={"lm_head": [5]} its logits lack the bias: every
# logit is off by the bias of its class, so confidences and losses are other ones from the first
# step on. With the same setting on the embeddings, or LoRA on the layers, nothing is off.
#
# Seen: the largest difference to the base is the largest bias to the last digit (3.0 here).
# Ends with 0 while this is so, and with 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet transformers==5.23.0 peft==0.21.2
"$folder/env/bin/python" - <<'PY'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import PhiConfig, PhiForCausalLM

torch.manual_seed(0)
config = PhiConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
)
ids = torch.arange(8)[None]


def gap(**how):
    """Largest difference of an untrained PEFT model's logits to its base's."""
    torch.manual_seed(0)
    model = PhiForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.linspace(-3.0, 3.0, 64))
        before = model(ids).logits
        wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **how)).eval()
        return float((wrapped(ids).logits - before).abs().max())


none = gap()
embeddings = gap(trainable_token_indices={"embed_tokens": [5]})
head = gap(trainable_token_indices={"lm_head": [5]})
print(f"LoRA alone {none:.4f}, tokens of the embeddings {embeddings:.4f}, of the head {head:.4f}")
sys.exit(0 if none < 1e-5 and embeddings < 1e-5 and abs(head - 3.0) < 1e-4 else 1)
PY
