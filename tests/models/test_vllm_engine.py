"""Writing by vLLM: our side on a stand-in of its interface, and the real one where it is."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from pydantic import ValidationError

from fortifai.errors import InputError, RunFailed
from fortifai.lab.progress import Silent
from fortifai.lab.seeds import derive
from fortifai.models import vllm_engine
from fortifai.models.causal_lm import CausalLM
from fortifai.models.options import RegenerateOptions, TrainOptions
from fortifai.weights import Keep
from tests import vllm_stand_in
from tests.commands import needs_kill
from tests.models.test_generation import Heard, rewrite, settings
from tests.real_vllm import WAYS

SAMPLE = {"kind": "sample", "temperature": 1.3, "top_k": 40, "top_p": 0.9}


@pytest.fixture
def install(monkeypatch):
    """Put a stand-in where `import vllm` finds it."""

    def put(**changes: Any) -> Any:
        for name, module in vllm_stand_in.make(**changes).items():
            monkeypatch.setitem(sys.modules, name, module)
        return sys.modules["vllm"]

    return put


@pytest.fixture
def vllm(install):
    return install()


def by_vllm(lm: CausalLM, stream: np.ndarray, **changes: Any) -> np.ndarray:
    return rewrite(lm, stream, engine="vllm", **changes)


class TestGreedy:
    @pytest.mark.parametrize("way", WAYS)
    def test_it_is_what_the_model_itself_writes(self, vllm, lm, stream, way):
        got = by_vllm(lm, stream, **WAYS[way])
        expected = rewrite(lm, stream, **WAYS[way])
        np.testing.assert_array_equal(got, expected)
        assert (got != stream).mean() > 0.5, "and it is not the text as it was"
        assert got.dtype == stream.dtype

    @pytest.mark.parametrize("way", WAYS)
    def test_bos_stands_before_every_prompt(self, vllm, lm, stream, way):
        begun = CausalLM(lm.model, lm.tokenizer, device="cpu", bos="always")
        bos = begun.special.bos
        got = by_vllm(begun, stream, **WAYS[way])
        np.testing.assert_array_equal(got, rewrite(begun, stream, **WAYS[way]))
        (engine,) = vllm.LLM.started
        assert {prompt[0] for prompt in engine.prompts} == {bos}

    def test_an_end_of_text_stops_nothing_and_stays(self, vllm, lm, stream):
        end = lm.special.end
        with torch.no_grad():
            lm.model.lm_head.weight[end] *= 8  # so that it is written often
        got = by_vllm(lm, stream)
        np.testing.assert_array_equal(got, rewrite(lm, stream))
        assert (got[12:] == end).sum() > 20

    def test_an_end_of_text_is_never_written_inside_a_document(self, vllm, lm, stream):
        with torch.no_grad():
            lm.model.lm_head.weight[lm.special.end] *= 8
        got = by_vllm(lm, stream, **WAYS["documents"])
        at = np.flatnonzero(got == lm.special.end)
        np.testing.assert_array_equal(at, np.flatnonzero(stream == lm.special.end))

    @pytest.mark.parametrize("way", WAYS)
    def test_ids_without_a_token_are_never_written(self, vllm, lm, stream, way):
        before = by_vllm(lm, stream, **WAYS[way])
        often = np.bincount(before[before != stream]).argsort()[-3:]
        lm.close_engine()
        lm.special = dataclasses.replace(lm.special, absent=tuple(map(int, often)))
        got = by_vllm(lm, stream, **WAYS[way])
        assert not np.isin(got[got != stream], often).any()
        np.testing.assert_array_equal(got, rewrite(lm, stream, **WAYS[way]))

    def test_the_models_own_generation_settings_have_no_effect(self, vllm, lm, stream):
        clean = by_vllm(lm, stream)
        lm.close_engine()
        lm.model.generation_config.repetition_penalty = 9.0
        lm.model.generation_config.eos_token_id = list(range(100, 250))
        np.testing.assert_array_equal(by_vllm(lm, stream), clean)


class TestSampling:
    @pytest.mark.parametrize("way", WAYS)
    def test_the_batch_does_not_choose_the_text(self, vllm, lm, stream, way, monkeypatch):
        asked = {**WAYS[way], "decoding": SAMPLE}
        whole = by_vllm(lm, stream, **asked)
        monkeypatch.setattr(vllm_engine, "AT_A_TIME", 3)
        np.testing.assert_array_equal(by_vllm(lm, stream, **asked), whole)
        assert (rewrite(lm, stream, seed=1, engine="vllm", **asked) != whole).any()
        sizes = [len(call) for call in vllm.LLM.started[0].calls]
        assert max(sizes[1:]) == min(3, sizes[0])

    def test_a_block_has_the_seed_of_its_number(self, vllm, lm, stream):
        rewrite(lm, stream, seed=17, engine="vllm", decoding=SAMPLE)
        (call,) = vllm.LLM.started[0].calls
        assert [asked.seed for asked in call] == [derive(17, "block", i) for i in range(30)]
        assert len(call) == -(-(len(stream) - 12) // 7)

    def test_every_segment_of_a_document_has_a_seed_of_its_own(self, vllm, lm, stream):
        by_vllm(lm, stream, **WAYS["documents"], decoding=SAMPLE)
        seeds = [asked.seed for call in vllm.LLM.started[0].calls for asked in call]
        # two documents of 100 and 116 tokens, 32 at a time from the sixth on
        assert len(seeds) == len(set(seeds)) == 3 + 4

    def test_all_cuts_are_handed_over(self, vllm, lm, stream):
        cuts = {"temperature": 0.7, "top_k": 9, "min_p": 0.05, "top_p": 1.0}
        by_vllm(lm, stream[:20], decoding={"kind": "sample", **cuts})
        for asked in vllm.LLM.started[0].calls[0]:
            assert {name: getattr(asked, name) for name in cuts} == cuts


class TestEngine:
    def test_it_stays_for_all_texts_of_a_generation_and_goes_before_anything_else(
        self, vllm, lm, stream, tmp_path
    ):
        def write():
            return lm.regenerate(
                stream[:40],
                settings(engine="vllm"),
                seed=0,
                progress=Silent(),
                workdir=tmp_path / "work.partial",
            )

        before = write()
        write()
        (engine,) = vllm.LLM.started
        assert engine.alive
        assert str(engine.asked["model"]).startswith(str(tmp_path / "work.partial"))
        assert list((tmp_path / "work.partial").iterdir()) == [], "the weights are taken away"
        lm.log_prob(stream[:40])
        assert not engine.alive
        write()
        train = TrainOptions(epochs=1, block=16, batch_size=4, learning_rate=0.1)
        lm.fit(stream, Keep(), train, seed=0, workdir=tmp_path, select=None, progress=Silent())
        assert [one.alive for one in vllm.LLM.started] == [False, False]
        after = write()
        assert (after != before).any(), "and it has the new weights"
        np.testing.assert_array_equal(after, rewrite(lm, stream[:40]))

    def test_other_settings_have_another(self, vllm, lm, stream):
        by_vllm(lm, stream[:40])
        by_vllm(lm, stream[:40], decoding=SAMPLE)
        assert len(vllm.LLM.started) == 1, "decoding is said of each row"
        got = by_vllm(lm, stream[:40], context=20)
        assert [one.alive for one in vllm.LLM.started] == [False, True]
        np.testing.assert_array_equal(got, rewrite(lm, stream[:40], context=20))

    def test_what_it_is_asked_for(self, vllm, lm, stream):
        by_vllm(lm, stream[:40], batch_size=5)
        asked = vllm.LLM.started[0].asked
        assert asked["dtype"] == "float32"
        assert asked["max_model_len"] == 19
        assert asked["max_num_seqs"] == 5
        # keys and values of 2 layers, 2 heads of 8, 4 bytes, of two whole blocks a row
        assert asked["kv_cache_memory_bytes"] == 5 * 256 * 2 * 2 * 2 * 8 * 4
        assert asked["gpu_memory_utilization"] == 0.92, "that is of GPUs"

    @pytest.mark.parametrize(("way", "shared"), [("exactly", False), ("span", True)])
    def test_prefixes_are_kept_where_rows_share_them(self, vllm, lm, stream, way, shared):
        by_vllm(lm, stream, **WAYS[way])
        assert vllm.LLM.started[0].asked["enable_prefix_caching"] is shared
        assert lm.written_by["prefix_caching"] is shared

    def test_on_a_gpu_it_takes_what_is_free(self, install, lm, stream, monkeypatch):
        vllm = install(device="cuda")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (40 * 2**30, 80 * 2**30))
        by_vllm(lm, stream[:40])
        asked = vllm.LLM.started[0].asked
        assert asked["gpu_memory_utilization"] == 0.45
        assert not asked["enforce_eager"]
        assert asked["enable_chunked_prefill"] is None

    @pytest.mark.parametrize(
        ("device", "capability", "asked", "is_so"),
        [
            ("cuda", 90, True, True),
            ("cuda", 90, False, False),
            ("cuda", 75, True, False),
            ("cpu", 90, True, False),
        ],
    )
    def test_whether_it_was_batch_invariant_is_written_down(
        self, install, lm, stream, device, capability, asked, is_so, monkeypatch
    ):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 1))
        install(device=device, batch_invariant=asked, capability=capability)
        by_vllm(lm, stream[:40])
        assert lm.written_by == {
            "engine": "vllm",
            "version": "0.32.0",
            "device": device,
            "batch_invariant": is_so,
            "dtype": "float32",
            "prefix_caching": False,
        }
        rewrite(lm, stream[:40])
        assert lm.written_by is None

    def test_progress_and_tokens_are_told(self, vllm, lm, stream, monkeypatch):
        monkeypatch.setattr(vllm_engine, "AT_A_TIME", 10)
        heard = Heard()
        lm.regenerate(stream, settings(engine="vllm"), seed=0, progress=heard)
        assert heard.steps == [("rewrite", n, 205, n) for n in (70, 140, 205)]
        assert lm.spent.generated == 205

    def test_the_environment_is_left_as_it_was(self, vllm, lm, stream, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        monkeypatch.delenv("LD_PRELOAD", raising=False)
        seen = {}

        class Acts(vllm.LLM):
            def __init__(self, *args: Any, **asked: Any) -> None:
                seen.update(os.environ)
                os.environ["LD_PRELOAD"] = "libomp.so"
                os.environ["OMP_NUM_THREADS"] = "1"
                super().__init__(*args, **asked)

        vllm.LLM = Acts
        before = dict(os.environ)
        by_vllm(lm, stream[:40])
        assert dict(os.environ) == before
        assert seen["OMP_NUM_THREADS"] == str(torch.get_num_threads())
        assert seen["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
        assert seen["VLLM_NO_USAGE_STATS"] == "1"

    def test_one_that_does_not_start_is_told(self, vllm, lm, stream):
        vllm.LLM.fails = "Free memory is less than desired\nand more"
        with pytest.raises(
            RunFailed, match=r"did not start \(ValueError: Free memory .* desired and more\)"
        ):
            by_vllm(lm, stream)

    def test_one_that_dies_is_told(self, vllm, lm, stream):
        def dies(*_: Any, **__: Any) -> None:
            raise RuntimeError("EngineCore encountered an issue")

        vllm.LLM.generate = dies
        with pytest.raises(RunFailed, match=r"vLLM failed .*encountered an issue"):
            by_vllm(lm, stream)

    @pytest.mark.parametrize("fault", ["short", "forbidden"])
    def test_one_that_writes_something_else_is_told(self, vllm, lm, stream, fault):
        lm.special = dataclasses.replace(lm.special, absent=(290,))
        honest = vllm.LLM._write

        def cheats(self: Any, prompt: list[int], asked: Any) -> list[int]:
            written = honest(self, prompt, asked)
            return written[:-1] if fault == "short" else [*written[:-1], 290]

        vllm.LLM._write = cheats
        told = "7 tokens and wrote 6" if fault == "short" else "1 different ones"
        with pytest.raises(RunFailed, match=told):
            by_vllm(lm, stream)


GUARDED = """
import subprocess, sys, time
from fortifai.models import vllm_engine

left = vllm_engine.guard()
sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
time.sleep(2)
print(sleeper.pid, left.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.long
@needs_kill
def test_what_a_killed_process_has_started_goes_with_it():
    begun = subprocess.Popen([sys.executable, "-c", GUARDED], stdout=subprocess.PIPE, text=True)
    assert begun.stdout is not None
    processes = [psutil.Process(int(pid)) for pid in begun.stdout.readline().split()]
    assert len(processes) == 2
    begun.kill()
    begun.communicate()
    assert wait_until_gone(processes) == []


def wait_until_gone(processes: list[psutil.Process], seconds: float = 20.0) -> list[Any]:
    """Those that run still; one that is gone and that nobody has waited for does not."""
    deadline = time.monotonic() + seconds
    while (left := [p for p in processes if vllm_engine._runs(p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


class TestBeforeWorkStarts:
    @pytest.mark.parametrize(
        ("decoding", "told"),
        [
            ({"kind": "beam"}, "no beam search with a repetition penalty"),
            ({"kind": "beam", "repetition_penalty": 1.0}, "no beam search"),
            ({"kind": "sample", "top_n_sigma": 1.0}, "top_n_sigma is 1.0"),
            ({"kind": "sample", "temperature": 2.5}, "from 0.01 to 2, .* is 2.5"),
            ({"kind": "sample", "temperature": 0.001}, "from 0.01 to 2"),
            ({"kind": "sample", "min_p": 0.1, "top_p": 0.9}, "min_p before top_p"),
        ],
    )
    def test_what_vllm_does_not_have_is_refused(self, decoding, told):
        with pytest.raises(ValidationError, match=f"{told}.*engine to transformers"):
            settings(engine="vllm", decoding=decoding)
        settings(decoding=decoding)

    def test_another_engine_is_refused(self):
        with pytest.raises(ValidationError, match="engine"):
            RegenerateOptions.model_validate({"engine": "sglang"})

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({}, "vLLM 0.32.0 on cpu, not batch-invariant"),
            ({"device": "cuda", "batch_invariant": True}, "vLLM 0.32.0 on cuda, batch-invariant"),
        ],
    )
    def test_a_model_that_it_can_load_is_told(self, install, lm, changes, told):
        install(**changes)
        assert vllm_engine.check(lm.model, lm.special) == told

    def test_without_it_one_sentence_says_so(self, monkeypatch, lm):
        monkeypatch.setitem(sys.modules, "vllm", None)
        if not importlib.util.find_spec("vllm"):
            monkeypatch.delitem(sys.modules, "vllm")
        with pytest.raises(InputError, match=r"not installed; pip install 'fortifai\[vllm\]'"):
            vllm_engine.check(lm.model, lm.special)

    def test_one_that_does_not_import_is_told(self, monkeypatch, lm, tmp_path):
        (tmp_path / "vllm.py").write_text("raise RuntimeError('torchvision::nms does not exist')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "vllm", raising=False)
        with pytest.raises(InputError, match=r"cannot be imported \(RuntimeError: torchvision"):
            vllm_engine.check(lm.model, lm.special)

    def test_one_without_a_device_is_told(self, install, lm):
        install(device="")
        with pytest.raises(InputError, match="finds no device"):
            vllm_engine.check(lm.model, lm.special)

    def test_a_cpu_that_is_to_be_batch_invariant_is_told(self, install, lm):
        install(batch_invariant=True)
        with pytest.raises(InputError, match=r"VLLM_BATCH_INVARIANT is set, .* unset it"):
            vllm_engine.check(lm.model, lm.special)

    def test_a_model_that_it_cannot_load_is_told(self, vllm, lm, monkeypatch):
        vllm.ModelRegistry.get_supported_archs = lambda: {"GPT2LMHeadModel"}
        vllm_engine.check(lm.model, lm.special)  # by transformers' code
        monkeypatch.setattr(type(lm.model), "is_backend_compatible", lambda *_: False)
        with pytest.raises(InputError, match="cannot load a LlamaForCausalLM"):
            vllm_engine.check(lm.model, lm.special)

    def test_more_forbidden_ids_than_it_takes_are_told(self, vllm, lm):
        many = dataclasses.replace(lm.special, absent=tuple(range(1023)))
        vllm_engine.check(lm.model, many)
        with pytest.raises(InputError, match="1,025 ids"):
            vllm_engine.check(lm.model, dataclasses.replace(many, absent=tuple(range(1024))))


needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (fortifai[vllm])"
)
REAL = [sys.executable, "-W", "ignore", "-m", "tests.real_vllm"]


@pytest.fixture(scope="module")
def real():
    done = subprocess.run(REAL, stdout=subprocess.PIPE, text=True, check=True, timeout=1200)
    return json.loads(done.stdout.splitlines()[-1])


@needs_vllm
@pytest.mark.long
class TestTheRealOne:
    @pytest.mark.parametrize("way", WAYS)
    def test_greedy_text_is_that_of_transformers(self, real, way):
        # the two highest logits lie further apart here than float32 rounds, so none tie
        assert real[way]["differing"] == 0
        assert real[way]["new"] > 100, "and it is not the text as it was"

    @pytest.mark.parametrize("way", WAYS)
    def test_ids_without_a_token_are_never_written(self, real, way):
        assert real["absent"] > 3
        assert real[way]["absent"] == 0

    def test_the_batch_does_not_choose_a_sampled_text(self, real):
        assert real["another_batch"] == 0
        assert real["another_seed"] > 100

    def test_it_says_what_it_is_and_goes(self, real):
        assert real["record"]["version"].startswith("0.")
        assert real["left"] == []

    def test_it_goes_with_a_process_that_is_killed(self):
        begun = subprocess.Popen([*REAL, "stay"], stdout=subprocess.PIPE, text=True)
        assert begun.stdout is not None
        assert any(line.startswith("started") for line in begun.stdout)
        children = psutil.Process(begun.pid).children(recursive=True)
        assert len(children) >= 2
        begun.kill()
        begun.communicate()
        assert wait_until_gone(children) == []
