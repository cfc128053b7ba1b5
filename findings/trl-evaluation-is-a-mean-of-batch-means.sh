#!/usr/bin/env bash
# TRL 1.16.0: SFTTrainer's evaluation depends on the batch size where rows have unequal labels.
#
# eval_loss, eval_entropy and eval_mean_token_accuracy are means over batches of means over a
# batch's tokens, so a row with 2 labels weighs as much as one with 60. The same model on the same
# rows has another eval_loss at per_device_eval_batch_size 1 than at 3. Whoever selects a checkpoint
# or compares runs by eval_loss compares batch sizes too.
#
# Ends with 0 while the two differ by more than 1 %, and with 1 when they agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet transformers==5.23.0 trl==1.16.0
cd "$folder"
"$folder/env/bin/python" - 2>/dev/null <<'PY'
import sys

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

torch.manual_seed(0)
vocabulary = {f"w{i}": i for i in range(60)} | {"<unk>": 60, "<eos>": 61, "<pad>": 62}
raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=63, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, pad_token_id=62, eos_token_id=61,
    )
)
with torch.no_grad():
    model.lm_head.weight.mul_(80)  # far from uniform, so that rows differ
generator = torch.Generator().manual_seed(1)
rows = [
    {"input_ids": torch.randint(0, 60, (n,), generator=generator).tolist()} for n in (3, 60, 5)
]


def evaluated(size):
    """eval_loss at a batch size."""
    settings = SFTConfig(
        output_dir="out", per_device_eval_batch_size=size, report_to="none", use_cpu=True,
        disable_tqdm=True, max_length=None, bf16=False,
    )
    data = Dataset.from_list(rows)
    trainer = SFTTrainer(
        model, args=settings, train_dataset=data, eval_dataset=data, processing_class=tokenizer
    )
    return trainer.evaluate()["eval_loss"]


one, three = evaluated(1), evaluated(3)
print(f"eval_loss: batch size 1 {one:.4f}, batch size 3 {three:.4f}")
sys.exit(0 if abs(one - three) > 0.01 * three else 1)
PY
