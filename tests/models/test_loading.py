"""What is loaded: whole checkpoints, GGUF files, and refusals in one sentence."""

from __future__ import annotations

import copy
import errno
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fortifai.errors import InputError
from fortifai.lab.progress import Silent
from fortifai.models import gguf_files, hub, loading
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import RegenerateOptions, TrainOptions
from fortifai.weights import Keep, Truncate

TRAIN = TrainOptions(epochs=1, learning_rate=1e-3, batch_size=2, block=16)


@pytest.fixture
def checkpoint(tokenizer, tmp_path) -> Callable[..., Path]:
    """Saves a tiny LLaMA after `change` has had its weights and `config` its configuration."""

    def make(name="model", *, change=lambda w: w, config=(), tie=False, layers=2) -> Path:
        folder = tmp_path / name
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                bos_token_id=0,
                eos_token_id=0,
                pad_token_id=None,
                tie_word_embeddings=tie,
            )
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        weights = {k: v.contiguous() for k, v in change(load_file(folder / FILE)).items()}
        save_file(weights, folder / FILE, {"format": "pt"})
        told = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(told | dict(config)))
        return folder

    return make


FILE = "model.safetensors"
DOWN = "model.layers.1.mlp.down_proj.weight"


def renamed(prefix):
    return lambda w: {prefix + k: v for k, v in w.items()}


def without(name):
    return lambda w: {k: v for k, v in w.items() if k != name}


def plus(**tensors):
    return lambda w: w | {k.replace("__", "."): v for k, v in tensors.items()}


REFUSED = {
    "compiled": ({"change": renamed("_orig_mod.")}, "missing.*'_orig_mod.'"),
    "wrapped": ({"change": renamed("module.")}, "missing.*'module.'"),
    "a matrix lost": ({"change": without(DOWN)}, re.escape(f"{DOWN} missing")),
    "a head lost": ({"change": without("lm_head.weight")}, "lm_head.weight missing"),
    "adapters not merged": (
        {"change": lambda w: {k.replace("q_proj.", "q_proj.base_layer."): v for k, v in w.items()}},
        "q_proj.weight.*missing.*merge the adapters",
    ),
    "a layer more by its config": ({"config": {"num_hidden_layers": 3}}, "layers.2.*missing"),
    "another vocabulary": ({"config": {"vocab_size": 400}}, r"another shape.*\[400, 32\]"),
    "a bias left out": (
        {"change": plus(model__layers__0__self_attn__q_proj__bias=torch.ones(32))},
        "q_proj.bias without a place",
    ),
    "scales left out": (
        {"change": plus(model__layers__0__mlp__up_proj__weight_scale_inv=torch.ones(1))},
        "weight_scale_inv without a place",
    ),
    "an unknown kind of model": ({"config": {"model_type": "llamma"}}, "llamma"),
    "an unknown quantiser": (
        {"config": {"quantization_config": {"quant_method": "tenbit"}}},
        "quantised by 'tenbit'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_whole_is_refused_in_one_sentence(kind, checkpoint):
    how, says = REFUSED[kind]
    with pytest.raises(InputError, match=says) as told:
        CausalLM.from_base(checkpoint(**how), device="cpu")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("method", sorted(loading.PACKAGES))
def test_a_quantiser_that_is_not_here_is_named(method, checkpoint, monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    told = {"quant_method": method, "bits": 4, "group_size": 32}
    folder = checkpoint(config={"quantization_config": told})
    package = loading.PACKAGES[method][0]
    for read in (CausalLM.from_base, loading.describe):
        with pytest.raises(InputError, match=f"quantised by {method}.*{package}"):
            read(folder)


def test_a_quantiser_is_named_by_its_old_keys_too(checkpoint, monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    folder = checkpoint(config={"quantization_config": {"load_in_4bit": True}})
    with pytest.raises(InputError, match="quantised by bitsandbytes"):
        CausalLM.from_base(folder)


def test_what_else_is_there_is_no_reason(checkpoint, tokenizer):
    whole = CausalLM.from_base(checkpoint("a"), device="cpu").model.state_dict()
    extra = {
        "vision_tower.x.weight": torch.ones(3, 3),
        "model.layers.7.mlp.up_proj.weight": torch.ones(3, 3),  # a layer that predicts ahead
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    more = CausalLM.from_base(checkpoint("b", change=lambda w: w | extra), device="cpu")
    for name, value in more.model.state_dict().items():
        assert torch.equal(value, whole[name])
    tied = CausalLM.from_base(checkpoint("c", tie=True), device="cpu").model
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_a_dense_checkpoint_marked_as_gguf_is_dense(checkpoint):
    told = {"quant_method": "gguf", "gguf_file": "x.gguf"}
    lm = CausalLM.from_base(checkpoint(config={"quantization_config": told}), device="cpu")
    assert not hasattr(lm.model.config, "quantization_config")
    assert lm.model.dtype == torch.float32


def test_torn_and_foreign_files_are_told(checkpoint, tmp_path, tokenizer):
    torn = checkpoint("torn")
    (torn / FILE).write_bytes((torn / FILE).read_bytes()[:-100])
    odd = checkpoint("odd")
    (odd / "config.json").write_text("{")
    split = checkpoint("split")
    (split / FILE).rename(split / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (split / f"{FILE}.index.json").write_text(json.dumps({"metadata": {}} | index))
    pickled = checkpoint("pickled")
    (pickled / FILE).unlink()

    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(Harm()))
    bare = checkpoint("bare")
    (bare / "tokenizer.json").unlink()
    for folder in (torn, odd, split, pickled, bare):
        with pytest.raises(InputError, match=re.escape(str(folder))) as told:
            CausalLM.from_base(folder, device="cpu")
        assert "\n" not in str(told.value)
    assert not (tmp_path / "harm").exists()


def test_an_encoder_is_refused(tokenizer, tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="sees the tokens that it is to predict"):
        CausalLM.from_base(tmp_path, device="cpu")


# --- dtypes -----------------------------------------------------------------------------------


def test_half_precision_checkpoints_train_in_float32(checkpoint, stream, tmp_path):
    folder = checkpoint(change=lambda w: {k: v.to(torch.bfloat16) for k, v in w.items()})
    told = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(told))
    train = TRAIN.model_copy(update={"learning_rate": 2e-5, "epochs": 3})

    def moved(lm: CausalLM) -> float:
        before = [p.detach().clone() for p in lm.model.parameters()]
        report = lm.fit(
            stream, Keep(), train, seed=0, workdir=tmp_path, select=None, progress=Silent()
        )
        assert report.steps >= 20
        pairs = list(zip(before, lm.model.parameters(), strict=True))
        return sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)

    first = CausalLM.from_base(folder, device="cpu")
    share = moved(first)
    # rows of tokens that the text has not get no gradient; in bfloat16 a tenth of the rest moves
    assert share > 0.7
    first.save(tmp_path / "saved")
    again = CausalLM.load(tmp_path / "saved", device="cpu")
    assert again.model.dtype == torch.float32
    assert moved(again) == pytest.approx(share, abs=0.01)  # the same tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_not_trained(lm, stream, tmp_path, dtype):
    lm.model.to(dtype)
    with pytest.raises(InputError, match=f"{str(dtype)[6:]}, in which most steps.*float32"):
        lm.fit(stream, Keep(), TRAIN, seed=0, workdir=tmp_path, select=None, progress=Silent())


# --- places -----------------------------------------------------------------------------------


def test_what_a_name_stands_for(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "m.GGUF").touch()
    (tmp_path / "one" / "mmproj-m.gguf").touch()
    (tmp_path / "one" / "config.json").write_text("{}")
    one = str(tmp_path / "one")
    for name in (one, f"{one}/m.GGUF", f"{one}:m.GGUF"):
        place = hub.locate(name)
        assert (place.repo, place.gguf, hub.exists(name)) == (one, "m.GGUF", True)
    assert hub.locate("who/what:m.gguf") == hub.Place("who/what:m.gguf", "who/what", "m.gguf")
    assert hub.locate("who/what") == hub.Place("who/what", "who/what")
    assert not hub.exists("who/what:m.gguf")
    (tmp_path / "one" / "model.safetensors").touch()
    assert hub.locate(one).gguf is None  # a folder of transformers first


def test_names_of_nothing_are_told(tmp_path):
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "two" / name).touch()
    (tmp_path / "x.bin").touch()
    (tmp_path / "m-00001-of-00003.gguf").touch()
    cases = {
        "two": "2 GGUF files .*name one",
        "two:c.gguf": "no file 'c.gguf'",
        "no.gguf": "no file",
        "x.bin": "no GGUF file",
        "m-00001-of-00003.gguf": "one of 3 parts",
    }
    for name, says in cases.items():
        with pytest.raises(InputError, match=says):
            CausalLM.from_base(tmp_path / name)


# --- GGUF -------------------------------------------------------------------------------------


def spelled(tokenizer: PreTrainedTokenizerFast) -> tuple[list[str], list[str]]:
    """Tokens in order of their ids, and merges, as a GGUF file has them."""
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    return tokens, [" ".join(pair) for pair in told["model"]["merges"]]


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a projection in llama.cpp's order: the two halves of a head, turn by turn."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def gguf_name(name: str) -> str:
    name = re.sub(r"^model\.layers\.", "blk.", name)
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


@pytest.fixture
def written(tokenizer, tmp_path) -> Callable[..., tuple[Path, LlamaForCausalLM]]:
    """A GGUF file of a random LLaMA, and the model of what is in it, dequantised by gguf."""

    def make(
        quantised="Q8_0", *, drop=(), extra=(), told=(), tie=True, bos=False, pre="gpt-2", ends=(),
        alignment=32, vocab_size=True,
    ) -> tuple[Path, LlamaForCausalLM]:  # fmt: skip
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            rms_norm_eps=1e-5,
            tie_word_embeddings=tie,
        )
        model = LlamaForCausalLM(config).eval()
        file = tmp_path / "tiny.gguf"
        out = gguf.GGUFWriter(file, "llama")
        out.add_block_count(2)
        out.add_context_length(64)
        out.add_embedding_length(64)
        out.add_feed_forward_length(96)
        out.add_head_count(4)
        out.add_head_count_kv(2)
        out.add_layer_norm_rms_eps(1e-5)
        out.add_rope_freq_base(5000.0)
        out.add_rope_dimension_count(16)
        out.add_custom_alignment(alignment)
        if vocab_size:
            out.add_vocab_size(len(tokenizer))
        tokens, merges = spelled(tokenizer)
        out.add_tokenizer_model("gpt2")
        out.add_tokenizer_pre(pre)
        out.add_token_list(tokens)
        out.add_token_types([3 if i == tokenizer.eos_token_id else 1 for i in range(len(tokens))])
        out.add_token_merges(merges)
        out.add_bos_token_id(tokenizer.eos_token_id)
        out.add_eos_token_id(tokenizer.eos_token_id)
        out.add_add_bos_token(bos)
        for name, value in ends:
            out.add_uint32(f"tokenizer.ggml.{name}_token_id", value)
        for key, value in dict(told).items():
            (out.add_float32 if isinstance(value, float) else out.add_string)(key, value)
        weights = model.state_dict()
        for name, tensor in weights.items():
            if name in drop or (name == "lm_head.weight" and tie):
                continue
            value = tensor.numpy()
            if heads := {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2]):
                value = interleaved(value, heads)
            kind = gguf.GGMLQuantizationType["F32" if value.ndim == 1 else quantised]
            packed = gguf.quants.quantize(value, kind)
            out.add_tensor(gguf_name(name), packed, raw_dtype=kind)
            back = gguf.quants.dequantize(packed, kind).reshape(value.shape)
            if heads:  # the order of rows does not matter to blocks along them
                back = back.reshape(heads, -1, 2, value.shape[1]).swapaxes(1, 2)
            tensor.copy_(torch.from_numpy(back.reshape(value.shape).copy()))
        for name, value in dict(extra).items():
            out.add_tensor(name, value)
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
        return file, model

    return make


def log_prob(model, rows):
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=rows).logits, -1)


@pytest.mark.parametrize(
    "quantised",
    ["F32", *(pytest.param(q, marks=pytest.mark.long) for q in ("F16", "Q8_0", "Q4_0")), "Q4_1"],
)
@pytest.mark.parametrize("tie", [True, False])
def test_a_gguf_file_is_an_ordinary_model(written, quantised, tie, stream, tmp_path, tokenizer):
    file, reference = written(quantised, tie=tie)
    lm = CausalLM.from_base(file, device="cpu")
    rows = torch.from_numpy(stream[None, :60].astype(np.int64))
    # the very same numbers through the very same operations
    assert torch.equal(log_prob(lm.model, rows), log_prob(reference, rows))
    assert lm.positions == 64
    text = "Ada was born in Rome, 1843.\n\n  Bo"
    assert lm.tokenizer(text).input_ids == tokenizer(text).input_ids
    assert lm.tokenizer.decode(lm.tokenizer(text).input_ids) == text
    assert lm.tokenizer.eos_token_id == tokenizer.eos_token_id
    # everything that transformers refuses a model that is marked as quantised
    assert copy.deepcopy(lm.model).float().dtype == torch.float32
    lm.fit(stream, Keep(), TRAIN, seed=0, workdir=tmp_path, select=None, progress=Silent())
    ask = RegenerateOptions(context=12, new_tokens=7)
    again = lm.regenerate(stream, ask, seed=0, progress=Silent())
    lm.save(tmp_path / "saved")
    loaded = CausalLM.load(tmp_path / "saved", device="cpu")
    assert (loaded.log_prob(stream) == lm.log_prob(stream)).all()
    assert (loaded.regenerate(stream, ask, seed=0, progress=Silent()) == again).all()
    assert (lm.model.lm_head.weight is lm.model.model.embed_tokens.weight) is tie


@pytest.mark.parametrize("copied", [2**30, 0], ids=["small", "large"])
@pytest.mark.parametrize("vocab_size", [True, False])
def test_a_gguf_file_is_what_transformers_reads_without_its_lists_of_tokens(
    written, vocab_size, copied, monkeypatch
):
    """To which transformers gives half a minute each time where they are of a real vocabulary."""
    monkeypatch.setattr(gguf_files, "_COPIED", copied)
    file, reference = written(tie=False, vocab_size=vocab_size, alignment=128)
    how = {"gguf_file": file.name, "local_files_only": True}
    config = AutoConfig.from_pretrained(file.parent, **how)
    theirs = AutoTokenizer.from_pretrained(file.parent, **how)
    read, init = [], gguf.GGUFReader.__init__

    def watched(self, *args, **kwargs):
        init(self, *args, **kwargs)
        read.append("tokenizer.ggml.tokens" in self.fields)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", watched)
    tokenizer, model = loading.read(file, "float32")
    # the configuration's is without them in any case, the weights' where the file is small
    assert read == [False, copied == 0]
    assert type(tokenizer) is type(theirs)
    assert tokenizer.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert tokenizer.special_tokens_map == theirs.special_tokens_map
    left = {"architectures", "dtype", "quantization_config", "_name_or_path"}
    ours = {k: v for k, v in model.config.to_dict().items() if k not in left}
    assert ours == {k: v for k, v in config.to_dict().items() if k not in left}
    assert model.name_or_path == model.config._name_or_path == str(file.parent)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_gguf_file_is_read_where_there_is_no_room_for_a_copy(written, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    file, reference = written()
    monkeypatch.setattr(gguf_files.shutil, "copyfileobj", full)
    _, model = loading.read(file, "float32")
    assert torch.equal(model.lm_head.weight, reference.lm_head.weight)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.9])
def test_a_torn_gguf_file_is_told(written, share):
    file, _ = written()
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(InputError, match=r"tiny\.gguf"):
        loading.read(file, "float32")


def test_a_gguf_file_says_what_stands_first_and_what_ends(written, tokenizer, capfd):
    file, _ = written(bos=True, ends=(("eot", 7), ("eom", 9)))
    lm = CausalLM.from_base(file, device="cpu")
    assert lm.tokenizer("Bo").input_ids == [tokenizer.eos_token_id, *tokenizer("Bo").input_ids]
    assert lm.model.generation_config.eos_token_id == [tokenizer.eos_token_id, 7, 9]
    assert capfd.readouterr() == ("", "")


def test_digits_are_split_as_the_file_says(written):
    file, _ = written(pre="smollm")
    tokenizer, _ = loading.describe(file)
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 2023 it's")
    assert [piece for piece, _ in pieces] == ["in", "Ġ", "2", "0", "2", "3", "Ġit", "'s"]


def test_linear_scaling_of_positions_is_taken_over(written, stream):
    told = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    file, reference = written("F32", told=told)
    lm = CausalLM.from_base(file, device="cpu")
    rows = torch.from_numpy(stream[None, :60].astype(np.int64))
    reference.model.rotary_emb.inv_freq /= 4  # positions divided by 4
    torch.testing.assert_close(log_prob(lm.model, rows), log_prob(reference, rows))


def test_llama_3_scales_its_positions(written, stream, tmp_path):
    """The factors divide the frequencies one by one, as llama.cpp does."""
    place = 2 * np.pi * 5000.0 ** (np.arange(8) / 8)
    factors = np.where(place < 2048, 1.0, 0.0)
    for i in np.flatnonzero(factors == 0):
        s = (8192 / place[i] - 1) / 3
        factors[i] = 8.0 if place[i] > 8192 else 1 / ((1 - s) / 8 + s)
    assert len(set(factors.round(3))) == 3, "a case without all three branches"
    file, reference = written("F32", extra={"rope_freqs.weight": factors.astype(np.float32)})
    lm = CausalLM.from_base(file, device="cpu")
    rows = torch.from_numpy(stream[None, :60].astype(np.int64))
    reference.model.rotary_emb.inv_freq /= torch.from_numpy(factors).float()
    torch.testing.assert_close(log_prob(lm.model, rows), log_prob(reference, rows))
    lm.save(tmp_path / "saved")
    saved = CausalLM.load(tmp_path / "saved", device="cpu")
    torch.testing.assert_close(log_prob(saved.model, rows), log_prob(reference, rows))


GGUF_REFUSED = {
    "a tensor lost": ({"drop": [DOWN]}, "down_proj.weight missing"),
    "biases": ({"extra": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "attn_q.bias"),
    "other factors": (
        {"extra": {"rope_freqs.weight": np.linspace(1, 9, 8, dtype=np.float32)}},
        "rope_freqs.weight",
    ),
    "yarn": ({"told": {"llama.rope.scaling.type": "yarn"}}, "positions by 'yarn'"),
    "an unknown way to split": ({"pre": "klingon"}, "as 'klingon' does.*tokenizer.json"),
}


@pytest.mark.parametrize("kind", GGUF_REFUSED)
def test_a_gguf_file_that_would_be_another_model_is_refused(kind, written):
    how, says = GGUF_REFUSED[kind]
    file, _ = written(**how)
    with pytest.raises(InputError, match=says) as told:
        CausalLM.from_base(file, device="cpu")
    assert "\n" not in str(told.value)


def test_a_tokenizer_beside_the_file_goes_first(written, tokenizer):
    file, _ = written(pre="klingon")
    tokenizer.save_pretrained(file.parent)
    lm = CausalLM.from_base(file, device="cpu")
    assert lm.tokenizer("Ada 1843").input_ids == tokenizer("Ada 1843").input_ids


def test_gguf_files_need_their_package(written, monkeypatch):
    file, _ = written()
    monkeypatch.setattr(gguf_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package gguf.*fortifai\[gguf\]"):
        CausalLM.from_base(file)


def test_no_gguf_file_at_all(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"not a model" * 100)
    with pytest.raises(InputError, match=r"x\.gguf"):
        CausalLM.from_base(tmp_path / "x.gguf")


# --- models of text and images ----------------------------------------------------------------


@pytest.fixture
def multimodal(tokenizer, tmp_path) -> Path:
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 7,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 64,
            "sliding_window": 16,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        image_token_index=len(tokenizer) - 1,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "images")
    tokenizer.save_pretrained(tmp_path / "images")
    return tmp_path / "images"


def test_a_model_of_text_and_images_trains_on_text(multimodal, stream, tmp_path):
    lm = CausalLM.from_base(multimodal, device="cpu")
    assert "use_cache" not in vars(lm.model.config)  # as of this kind
    text = stream % (len(lm.tokenizer) - 1)
    before = lm.log_prob(text).mean()
    seen: list[bool] = []
    lm.model.model.language_model.register_forward_hook(
        lambda module, given, out: seen.append(out.past_key_values is None)
    )
    train = TRAIN.model_copy(update={"epochs": 4})
    lm.fit(text, Truncate(0.9), train, seed=0, workdir=tmp_path, select=None, progress=Silent())
    assert all(seen)  # no cache of keys in training
    config = lm.model.config
    assert "use_cache" not in vars(config)
    assert config.get_text_config().use_cache is True
    assert lm.log_prob(text).mean() > before + 0.05
    lm.save(tmp_path / "saved")
    loaded = CausalLM.load(tmp_path / "saved", device="cpu")
    assert (loaded.log_prob(text) == lm.log_prob(text)).all()
    assert loaded.positions == 64
