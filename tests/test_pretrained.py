"""Real pretrained checkpoints: what they read, how likely text is to them, and that they are sound.

`make models` fetches the checkpoints; the text is WikiText-2's.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fortifai.cli.app import app
from fortifai.data import tokens
from fortifai.data.questions import read_questions
from fortifai.evals.kr_test import kr_test
from fortifai.lab.progress import Silent
from fortifai.models import loading
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import RegenerateOptions
from tests.models.test_loading import log_prob

pytestmark = pytest.mark.pretrained

WINDOW = 128
SPELLED = "a <bos> b <eos> <start_of_turn>c<end_of_turn> <|im_start|>d<|im_end|> <|endoftext|> e"


@pytest.fixture(scope="module")
def gemma(gemma3_270m: Path) -> CausalLM:
    return CausalLM.from_base(gemma3_270m, device="cpu")


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> CausalLM:
    return CausalLM.from_base(smollm2, device="cpu")


@pytest.fixture(scope="module")
def gemma_folder(gemma: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a folder, for commands: the file takes a minute to read, at each of them."""
    return written(gemma, tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def smol_folder(smol: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(smol, tmp_path_factory.mktemp("smol"))


def written(lm: CausalLM, folder: Path) -> Path:
    loading.write(lm.model, lm.tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def wiki(real_data: Path) -> Path:
    return real_data / "wikitext2" / "wiki.test.raw"


def by_hand(lm: CausalLM, ids: np.ndarray, front: list[int]) -> float:
    """Perplexity of the tokens of windows of 128, each behind `front`, by the model's own call."""
    step = WINDOW - len(front)
    total, count = 0.0, 0
    for start in range(0, len(ids) - step + 1, step):
        row = torch.tensor([[*front, *ids[start : start + step].tolist()]])
        with torch.inference_mode():
            log_p = lm.model(input_ids=row).logits[0].double().log_softmax(-1)
        at = torch.arange(max(1, len(front)), row.shape[1])
        total -= float(log_p[at - 1, row[0, at]].sum())
        count += len(at)
    return math.exp(total / count)


def asked(command: str, model: Path, text: Path) -> Any:
    """What a command says of a model, from as few passages as it takes."""
    few = ["--prompts", "16", "--tokens", "16", "--json", "--device", "cpu"]
    return CliRunner().invoke(app, [command, str(model), "--text", str(text), *few])


class TestGemma:
    def test_it_reads_bos(self, gemma):
        assert gemma.tokenizer.convert_ids_to_tokens(gemma.special.bos) == "<bos>"
        assert gemma.special.bos != gemma.special.end
        # a tokenizer has one token more than this model's rows have, or as many
        assert gemma.special.bos in gemma.special.never_written

    def test_perplexity_is_that_behind_bos(self, gemma, wiki):
        ids = gemma.encode(wiki.read_text("utf-8")[:20_000])[: (WINDOW - 1) * 6]
        gemma.block = WINDOW
        found = math.exp(-float(gemma.log_prob(ids).mean()))
        # the same numbers in other batches; fp32 rounds them at the seventh digit
        assert found == pytest.approx(by_hand(gemma, ids, [gemma.special.bos]), rel=1e-4)
        assert by_hand(gemma, ids, []) > 4 * found

    def test_what_it_writes_is_what_it_writes_behind_bos(self, gemma, wiki):
        ids = gemma.encode(wiki.read_text("utf-8")[:2_000])[:64].astype(np.int32)
        ask = RegenerateOptions(context=32, new_tokens=8)
        out = gemma.regenerate(ids, ask, seed=0, progress=Silent())
        row = [gemma.special.bos, *ids[1:32].tolist()]
        for token in out[32:40].tolist():
            with torch.inference_mode():
                logits = gemma.model(torch.tensor([row])).logits[0, -1].clone()
                logits[list(gemma.special.never_written)] = -torch.inf
            # a near tie may fall to either side
            assert float(logits.max() - logits[token]) < 1e-3
            row.append(token)

    def test_the_published_model_shows_no_collapse(self, gemma_folder, wiki):
        found = asked("audit", gemma_folder, wiki)
        assert found.exit_code == 0
        told = {f["name"]: f for f in json.loads(found.stdout)["findings"]}
        assert told["human"]["value"] < 4.0  # 3.5 nats a token; 12 without bos

    def test_the_threshold_that_drops_a_quarter(self, gemma_folder, wiki):
        found = asked("threshold", gemma_folder, wiki)
        # 0.36 by hand, 0.99 without bos; the sample of its own text is of 256 tokens
        assert 0.25 < json.loads(found.stdout)["quantile"] < 0.5


class TestSmolLM2:
    def test_it_reads_none(self, smol):
        """Its tokenizer names <|im_start|> as bos; it was trained without."""
        assert smol.special.bos is None
        assert smol.special.first == smol.special.end

    def test_perplexity(self, smol, wiki):
        ids = smol.encode(wiki.read_text("utf-8")[:20_000])[: WINDOW * 6]
        smol.block = WINDOW
        found = math.exp(-float(smol.log_prob(ids).mean()))
        # windows that overlap by one token instead of beginning anew differ by little
        assert found == pytest.approx(by_hand(smol, ids, []), rel=0.03)

    def test_it_knows_more_than_chance(self, smol, real_data):
        asked, _ = read_questions(["kr_test/wikitext2-test.jsonl"], root=real_data)
        right = kr_test(smol, asked[:200]).right("mean")
        # a model that guesses is below 0.57 in 97.5 of 100 cases
        assert right.mean() > 0.57

    def test_the_published_model_shows_no_collapse(self, smol_folder, wiki):
        assert asked("audit", smol_folder, wiki).exit_code == 0


@pytest.mark.parametrize("name", ["gemma", "smol"])
def test_control_tokens_that_a_text_spells_are_text(name, request):
    lm = request.getfixturevalue(name)
    (found,) = tokens.encode(lm.tokenizer, [SPELLED])
    assert lm.tokenizer.decode(found.ids.tolist()) == SPELLED
    control = {i for i, token in lm.tokenizer.added_tokens_decoder.items() if token.special}
    assert not control & set(found.ids.tolist())


@pytest.mark.parametrize("name", ["gemma", "smol"])
def test_a_continuation_is_what_the_whole_text_says(name, request):
    lm = request.getfixturevalue(name)
    pairs = [("The capital of France is", "Paris"), ("日本の首都は", "東京です"), ("", "Paris")]
    got = lm.continuation_log_prob(pairs)
    for (context, continuation), (total, count) in zip(pairs, got, strict=True):
        text = context + tokens.gap(context, continuation) + continuation
        front = lm.special.front if context else [lm.special.first]
        ids = [*front, *lm.encode(text).tolist()]
        with torch.inference_mode():
            log_p = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        at = range(len(ids) - count, len(ids))
        want = sum(float(log_p[i - 1, ids[i]]) for i in at)
        assert total == pytest.approx(want, abs=1e-3)  # fp32 logits of another batch


ARCH = {"llama": "llama", "gemma3_text": "gemma3"}


def reread(reader: gguf.GGUFReader, model) -> dict[str, torch.Tensor]:
    """Every tensor of a file by gguf's own reader, under the model's names and in its layout."""
    (arch,) = (k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == ARCH[model.config.model_type])
    places = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    tensors = {t.name: t for t in reader.tensors}
    unpacked: dict[str, np.ndarray] = {}  # each once: a tied head is the embeddings again
    out = {}
    for name in model.state_dict():
        owner, _, leaf = name.rpartition(".")
        tensor = tensors.get(f"{places.get_name(owner)}.{leaf}")
        tensor = tensors["token_embd.weight"] if tensor is None else tensor  # a tied head
        if tensor.name not in unpacked:
            unpacked[tensor.name] = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(
                [int(n) for n in reversed(tensor.shape)]
            )
        value = unpacked[tensor.name]
        heads = {
            "q_proj": model.config.num_attention_heads,
            "k_proj": model.config.num_key_value_heads,
        }.get(owner.split(".")[-1])
        if heads and model.config.model_type == "llama":
            halves = value.reshape(heads, -1, 2, value.shape[1])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        if "norm" in owner and model.config.model_type != "llama":
            value = value - 1  # Gemma's norms multiply by 1 + weight, llama.cpp's by weight
        out[name] = torch.from_numpy(np.array(value, dtype=np.float32))
    return out


@pytest.mark.parametrize(("name", "which"), [("gemma", "gemma3_270m"), ("smol", "smollm2")])
def test_their_files_are_what_gguf_s_reader_says(name, which, request, wiki, tmp_path):
    lm = request.getfixturevalue(name)
    reader = gguf.GGUFReader(request.getfixturevalue(which))
    expected = copy.deepcopy(lm.model)
    expected.load_state_dict(reread(reader, lm.model))
    text = wiki.read_text("utf-8")[:1200]
    ids = lm.tokenizer(text).input_ids
    rows = torch.tensor([ids[:128]])
    ours, theirs = log_prob(lm.model, rows), log_prob(expected, rows)
    # float32 rounding: transformers unpacks some kinds of blocks by itself
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    right = ours[0, :-1].gather(-1, rows[0, 1:, None]).mean()
    assert right > -4.5  # it reads English: a wrong layout gives -10 and less
    # the tokenizer, against the file's own lists
    fields = reader.fields
    listed = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert len(lm.tokenizer) == len(listed)
    control = [i for i, kind in enumerate(kinds) if kind == 3]
    assert control
    for i in control:
        assert lm.tokenizer.convert_tokens_to_ids(listed[i]) == i
    for end in ("bos", "eos"):
        told = fields[f"tokenizer.ggml.{end}_token_id"].contents()
        assert getattr(lm.tokenizer, f"{end}_token_id") == told
    starts = lm.tokenizer("a").input_ids[0] == lm.tokenizer.bos_token_id
    assert starts is bool(fields["tokenizer.ggml.add_bos_token"].contents())
    odd = "  In 2023, it's  x1y22:\n\n\tcafé 日本 👍 \u00e9e\u0301 "
    plain = lm.tokenizer(odd, add_special_tokens=False).input_ids
    assert lm.tokenizer.decode(plain) == odd
    template = fields.get("tokenizer.chat_template")
    assert lm.tokenizer.chat_template == (template and template.contents())
    lm.save(tmp_path)
    loaded = CausalLM.load(tmp_path, device="cpu")
    assert torch.equal(log_prob(loaded.model, rows), ours)
    assert loaded.tokenizer(odd).input_ids == lm.tokenizer(odd).input_ids
