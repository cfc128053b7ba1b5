#!/usr/bin/env bash
# lm_eval 0.4.13: HFLM gives a wrong log-likelihood where two requests share the model's input.
#
# To save work, requests of a batch whose context + continuation without its last token are equal
# share one forward pass, though the continuation may begin at different places: ("w1", " w2 w3")
# and ("w1 w2", " w3"). The logits are kept for the longest continuation, and a shorter one takes
# its log-probabilities from the first of them, not from the last: log p(w3 | w1) here. So
#  - loglikelihood of a request depends on the other requests;
#  - loglikelihood_rolling depends on the batch size, where two texts that are longer than the
#    window end alike (a licence, a footer) and have unequal lengths: their last windows are equal
#    and are counted from different tokens on.
# With logits_cache=False neither happens.
#
# Seen: alone -29.3741, together -29.0230 (= log p(w3 | w1)), without the cache -29.3741; two texts
# of 40 and 43 tokens in windows of 16: -798.642 and -873.283 at batch size 1, -748.099 and -873.283
# at 8.
# Ends with 0 while this is so, and with 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet \
    lm_eval==0.4.13 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0 peft==0.21.2
export HF_HOME="$folder/cache" HF_HUB_OFFLINE=1
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { code=$?; tail -5 "$folder/log"; exit $code; }
import sys

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
vocabulary = {f"w{i}": i for i in range(60)} | {"<unk>": 60, "<eos>": 61}
raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>"
)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=62, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, eos_token_id=61, pad_token_id=61,
    )
).eval()
with torch.no_grad():
    model.lm_head.weight.mul_(80)  # far from uniform, so that tokens differ


def asked(kind, requests, size, cache=True):
    """The log-likelihoods of requests asked together."""
    lm = HFLM(model, tokenizer=tokenizer, batch_size=size, max_length=16, logits_cache=cache)
    instances = [Instance(kind, {}, request, i) for i, request in enumerate(requests)]
    found = getattr(lm, kind)(instances, disable_tqdm=True)
    return [value[0] if isinstance(value, tuple) else value for value in found]


def log_prob(context, token):
    with torch.no_grad():
        return float(model(torch.tensor([context])).logits[0, -1].log_softmax(-1)[token])


def same(found, wanted):
    return all(abs(a - b) < 1e-2 for a, b in zip(found, wanted, strict=True))


long, short = ("w1", " w2 w3"), ("w1 w2", " w3")
right, wrong = log_prob([1, 2], 3), log_prob([1], 3)
alone = asked("loglikelihood", [short], 1)[0]
together = asked("loglikelihood", [long, short], 1)[1]
uncached = asked("loglikelihood", [long, short], 1, cache=False)[1]
print(f"alone {alone:.4f}, together {together:.4f}, without the cache {uncached:.4f}")
print(f"log p(w3 | w1 w2) {right:.4f}, log p(w3 | w1) {wrong:.4f}")

generator = torch.Generator().manual_seed(0)


def words(count):
    return " ".join(f"w{i}" for i in torch.randint(0, 60, (count,), generator=generator).tolist())


footer = words(20)
texts = [(f"{words(20)} {footer}",), (f"{words(23)} {footer}",)]
one, eight = (asked("loglikelihood_rolling", texts, size) for size in (1, 8))
eight_uncached = asked("loglikelihood_rolling", texts, 8, cache=False)
for name, values in (("1", one), ("8", eight), ("8 without the cache", eight_uncached)):
    print(f"rolling, batch size {name}: " + ", ".join(f"{value:.3f}" for value in values))
as_stated = (
    same([alone, together, uncached], [right, wrong, right])
    and abs(right - wrong) > 0.1
    and same(eight_uncached, one)
    and abs(eight[0] - one[0]) > 1
)
sys.exit(0 if as_stated else 1)
PY
