from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from fortifai.errors import InputError
from fortifai.lab.progress import Silent
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import RegenerateOptions, TrainOptions
from fortifai.weights import Truncate


def test_what_was_saved_is_loaded(lm, stream, tmp_path):
    lm.block = 20
    lm.save(tmp_path / "model")
    loaded = CausalLM.load(tmp_path / "model", device="cpu")
    assert loaded.block == 20
    assert not loaded.model.training
    for name, value in lm.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    # not only the weights: the answers too, bit for bit, so that a resumed run goes on the same
    assert (loaded.log_prob(stream) == lm.log_prob(stream)).all()
    ask = RegenerateOptions(context=12, new_tokens=7)
    again, first = (
        m.regenerate(stream, ask, seed=0, progress=Silent()).tolist() for m in (loaded, lm)
    )
    assert again == first
    text = "Ada was born in Rome <eos>  and\nOslo."
    assert loaded.tokenizer(text).input_ids == lm.tokenizer(text).input_ids
    assert loaded.tokenizer.eos_token_id == lm.tokenizer.eos_token_id


def test_a_loaded_model_trains_as_the_saved_one_would(lm, stream, tmp_path):
    lm.save(tmp_path / "model")
    loaded = CausalLM.load(tmp_path / "model", device="cpu")
    train = TrainOptions(epochs=1, learning_rate=1e-3, batch_size=2, block=16)
    for model in (lm, loaded):
        model.fit(
            stream, Truncate(0.5), train, seed=4, workdir=tmp_path, select=None, progress=Silent()
        )
    for name, value in lm.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)


def test_files_are_safetensors_and_json_alone(lm, tmp_path, capfd):
    lm.save(tmp_path / "model")
    CausalLM.load(tmp_path / "model", device="cpu")
    kinds = {p.suffix for p in (tmp_path / "model").iterdir()}
    assert kinds == {".safetensors", ".json"}
    assert capfd.readouterr() == ("", "")  # no progress bars of others


@pytest.mark.parametrize("architecture", scratch.ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_scratch_model_comes_back(architecture, tied, tokenizer, stream, tmp_path):
    model = scratch.build(
        architecture,
        hidden_size=32,
        layers=7,  # Gemma 3 has a layer of another kind every six
        heads=2,
        vocab_size=len(tokenizer),
        max_positions=48,
        tie_embeddings=tied,
        seed=1,
    )
    lm = CausalLM(model, tokenizer, device="cpu")
    lm.save(tmp_path)
    loaded = CausalLM.load(tmp_path, device="cpu")
    assert type(loaded.model) is type(model)
    assert (loaded.log_prob(stream) == lm.log_prob(stream)).all()
    ask = RegenerateOptions(context=12, new_tokens=7)
    assert len(loaded.regenerate(stream, ask, seed=0, progress=Silent())) == len(stream)


def test_a_model_with_contradictory_generation_settings_is_saved(lm, tmp_path):
    # such models are on the hub: a temperature, and do_sample off
    odd = GenerationConfig(do_sample=False, temperature=0.6, eos_token_id=0)
    lm.model.generation_config = odd
    lm.save(tmp_path)
    assert lm.model.generation_config is odd
    assert CausalLM.load(tmp_path, device="cpu").model.generation_config.eos_token_id == 0


def test_saving_in_bf16_and_loading_keeps_bf16(make, tmp_path):
    lm = make()
    lm.model.to(torch.bfloat16)
    lm.save(tmp_path)
    assert CausalLM.load(tmp_path, device="cpu").model.dtype == torch.bfloat16


def test_from_base_reads_in_fp32_unless_told(make, tmp_path):
    lm = make()
    lm.model.to(torch.bfloat16)
    lm.save(tmp_path)
    assert CausalLM.from_base(tmp_path, device="cpu").model.dtype == torch.float32
    assert (
        CausalLM.from_base(tmp_path, dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16
    )


def test_block_before_any_fit_is_the_models_positions(make):
    assert make().block == 64


def one_sentence(error: Any) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(InputError) as error:
        CausalLM.from_base(tmp_path / "nowhere")
    assert "nowhere" in one_sentence(error)


def test_a_hub_id_without_a_network_is_one_sentence(monkeypatch):
    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(socket.socket, "connect", unreachable)
    began = time.perf_counter()
    with pytest.raises(InputError) as error:
        CausalLM.from_base("nobody-at-all/no-such-model-fortifai")
    assert (
        time.perf_counter() - began < 5
    )  # transformers alone tries for three quarters of a minute
    text = one_sentence(error)
    assert "nobody-at-all/no-such-model-fortifai" in text
    assert "network" in text


def test_a_folder_without_a_model_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(InputError) as error:
        CausalLM.from_base(tmp_path)
    one_sentence(error)


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_weights_are_one_sentence(lm, tmp_path, damage):
    lm.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        weights.unlink()
    with pytest.raises(InputError) as error:
        CausalLM.load(tmp_path)
    one_sentence(error)


def test_load_wants_a_folder_that_save_wrote(tmp_path):
    with pytest.raises(InputError, match="holds no saved model"):
        CausalLM.load(tmp_path)


def test_a_tokenizer_without_eos_and_bos_is_refused(lm, tokenizer):
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match="neither an eos nor a bos"):
        CausalLM(lm.model, bare)


def test_the_same_from_a_relative_path(lm, stream, tmp_path, monkeypatch):
    lm.save(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(
        CausalLM.load(Path("m"), device="cpu").log_prob(stream), lm.log_prob(stream)
    )
