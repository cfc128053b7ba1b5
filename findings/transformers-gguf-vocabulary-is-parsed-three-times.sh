#!/usr/bin/env bash
# transformers 5.24.0 with gguf 0.19.0: a GGUF file's token lists are parsed three times over, by
# the slower of the two readers that are there.
#
# transformers has a reader of its own for the metadata of GGUF files (transformers.integrations.
# gguf.read_gguf_metadata), and its tokenizers are made from what that returns. Yet for most
# architectures (all but qwen35, qwen35moe and lfm2, so LLaMA, Gemma, Qwen 2 and 3, too) each of
# AutoConfig, AutoTokenizer and AutoModelForCausalLM makes a gguf.GGUFReader, which slices a NumPy
# memmap once or twice for every token, score, type and merge, to take a dozen numbers from it. A
# model's vocabulary decides how long it takes to load, not its size: Gemma 3 with 270 million
# parameters and 262,144 tokens took over a minute on a core, of which its weights were six seconds.
#
# Seen with a LLaMA of one layer and 20,000 tokens: three readers for one tokenizer and model, and
# one of them takes over ten times as long as transformers' own takes for the same metadata.
# Ends with 0 while this is so, and with 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet transformers==5.24.0 accelerate==1.15.0 gguf==0.19.0
cd "$folder"
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { code=$?; tail -5 "$folder/log"; exit $code; }
import statistics
import sys
import time

import gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers import LlamaForCausalLM
from transformers.integrations.gguf import read_gguf_metadata

TOKENS = 20_000
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=TOKENS, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5,
)
out = gguf.GGUFWriter("tiny.gguf", "llama")
out.add_name("tiny")
out.add_context_length(64)
out.add_embedding_length(32)
out.add_block_count(1)
out.add_feed_forward_length(32)
out.add_head_count(2)
out.add_head_count_kv(2)
out.add_layer_norm_rms_eps(1e-5)
out.add_rope_freq_base(10000.0)
out.add_tokenizer_model("llama")
words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581"]
words += [f"w{i:x}" for i in range(TOKENS - len(words))]
out.add_token_list(words)
out.add_token_scores([-float(i) for i in range(TOKENS)])
out.add_token_types([2, 3, 3, *[6] * 256, *[1] * (TOKENS - 259)])
out.add_bos_token_id(1)
out.add_eos_token_id(2)
out.add_unk_token_id(0)
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
for name, value in LlamaForCausalLM(config).state_dict().items():
    out.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.numpy())
out.write_header_to_file()
out.write_kv_data_to_file()
out.write_tensors_to_file()
out.close()

made = []
own = gguf.GGUFReader.__init__


def counted(self, *args, **kwargs):
    made.append(args)
    own(self, *args, **kwargs)


gguf.GGUFReader.__init__ = counted
how = {"gguf_file": "tiny.gguf", "local_files_only": True}
read = AutoConfig.from_pretrained(".", **how)
tokenizer = AutoTokenizer.from_pretrained(".", **how)
model = AutoModelForCausalLM.from_pretrained(".", config=read, **how)
gguf.GGUFReader.__init__ = own
assert (len(tokenizer), model.config.vocab_size) == (TOKENS, TOKENS)


def seconds(work):
    times = []
    for _ in range(3):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return statistics.median(times)


lists = {f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type")}
slow = seconds(lambda: gguf.GGUFReader("tiny.gguf"))
fast = seconds(lambda: read_gguf_metadata("tiny.gguf", lists))
print(f"readers: {len(made)}; GGUFReader takes {slow / fast:.0f} times as long as transformers' own")
sys.exit(0 if len(made) == 3 and slow > 10 * fast else 1)
PY
