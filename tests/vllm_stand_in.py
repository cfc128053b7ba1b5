"""The part of vLLM's interface that is used, in this process and run by transformers.

Names, keywords, defaults and refusals are those of vLLM 0.32. It reads the whole text anew for
every token, one row at a time, so it also is the slow reference of what an engine writes.
"""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig


@dataclasses.dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    detokenize: bool = True
    logit_bias: dict[int, float] | None = None

    def __post_init__(self) -> None:
        assert self.temperature == 0 or 0.01 <= self.temperature <= 2
        assert 0 < self.top_p <= 1
        assert self.top_k >= 0
        assert 0 <= self.min_p <= 1
        assert self.max_tokens is not None
        assert self.max_tokens >= 1
        assert len(self.logit_bias or ()) <= 1024


def tokens_prompt(*, prompt_token_ids: list[int]) -> dict[str, list[int]]:
    """A TypedDict there, so a dict."""
    return {"prompt_token_ids": prompt_token_ids}


class EngineCore:
    def __init__(self) -> None:
        self.alive = True

    def shutdown(self, timeout: float | None = None) -> None:
        self.alive = False


class LLM:
    """An engine; the class knows all that were started and asked."""

    started: list[LLM]
    fails: str = ""

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        enforce_eager: bool = False,
        kv_cache_memory_bytes: int | None = None,
        generation_config: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        enable_prefix_caching: bool | None = None,
        enable_chunked_prefill: bool | None = None,
        use_tqdm_on_load: bool = True,
    ) -> None:
        if self.fails:
            raise ValueError(self.fails)
        assert not any(other.alive for other in self.started), "two engines at a time"
        assert skip_tokenizer_init
        self.asked = {k: v for k, v in locals().items() if k != "self"}
        # float32 is halved unless it is asked for
        kind = {"float32": torch.float32}.get(dtype, torch.float16)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=kind).eval()
        self.ends = _ends(model, generation_config)
        self.limit = max_model_len
        self.calls: list[list[SamplingParams]] = []
        self.prompts: list[list[int]] = []
        self.llm_engine = types.SimpleNamespace(engine_core=EngineCore())
        self.started.append(self)

    @property
    def alive(self) -> bool:
        return bool(self.llm_engine.engine_core.alive)

    def generate(
        self, prompts: list[dict[str, list[int]]], params: list[SamplingParams], *, use_tqdm: bool
    ) -> list[Any]:
        assert self.alive
        assert not use_tqdm
        self.calls.append(params)
        out = []
        for prompt, asked in zip(prompts, params, strict=True):
            self.prompts.append(prompt["prompt_token_ids"])
            written = self._write(prompt["prompt_token_ids"], asked)
            out.append(types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=written)]))
        return out

    @torch.inference_mode()
    def _write(self, prompt: list[int], asked: SamplingParams) -> list[int]:
        assert all(type(token) is int for token in prompt), "msgspec takes no NumPy integers"
        assert self.limit is not None
        text = list(prompt)
        numbers = torch.Generator().manual_seed(asked.seed or 0)
        while len(text) - len(prompt) < asked.max_tokens and len(text) < self.limit:
            logits = self.model(input_ids=torch.tensor([text])).logits[0, -1].float()
            for token, bias in (asked.logit_bias or {}).items():
                logits[token] += bias
            text.append(_choose(logits, asked, numbers))
            if not asked.ignore_eos and text[-1] in self.ends:
                break
        return text[len(prompt) :]


def _choose(logits: torch.Tensor, asked: SamplingParams, numbers: torch.Generator) -> int:
    if asked.temperature == 0:
        return int(logits.argmax())
    p = torch.softmax(logits / asked.temperature, -1)
    p[p < asked.min_p * p.max()] = 0
    if asked.top_k:
        p[p < p.topk(asked.top_k).values[-1]] = 0
    p = p / p.sum()
    ordered, token = p.sort(descending=True)
    ordered[ordered.cumsum(-1) - ordered >= asked.top_p] = 0
    return int(token[torch.multinomial(ordered, 1, generator=numbers)])


def _ends(model: str, generation_config: str) -> set[int]:
    assert generation_config == "vllm", "else the model's own settings are defaults"
    told = GenerationConfig.from_pretrained(model).eos_token_id
    assert Path(model, "config.json").is_file()
    return {told} if isinstance(told, int) else set(told or ())


def make(
    device: str = "cpu", batch_invariant: bool = False, capability: int = 90
) -> dict[str, types.ModuleType]:
    """The modules by name, for `sys.modules`, with a class `LLM` of their own."""
    vllm, envs, platforms = (types.ModuleType(f"vllm{n}") for n in ("", ".envs", ".platforms"))
    registry = types.SimpleNamespace(get_supported_archs=lambda: {"LlamaForCausalLM"})
    offered = {
        "__version__": "0.32.0",
        "LLM": type("LLM", (LLM,), {"started": []}),
        "SamplingParams": SamplingParams,
        "TokensPrompt": tokens_prompt,
        "ModelRegistry": registry,
        "envs": envs,
        "platforms": platforms,
    }
    vars(vllm).update(offered)
    vars(envs)["VLLM_BATCH_INVARIANT"] = batch_invariant
    vars(platforms)["current_platform"] = types.SimpleNamespace(
        device_type=device,
        is_cuda=lambda: device == "cuda",
        has_device_capability=lambda asked: capability >= asked,
    )
    return {module.__name__: module for module in (vllm, envs, platforms)}
