"""Private names of other packages that are used: each is read here, and its change is told."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from trl import SFTTrainer
from trl.trainer import utils as trl_utils

import fortifai

SOURCE = Path(fortifai.__file__).parent


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def reads(function: Callable[..., Any], name: str) -> bool:
    """Whether the code of a function still looks at an attribute of this name."""
    return name in inspect.getsource(function)


def lm_eval_model() -> Any:
    return pytest.importorskip("lm_eval.models.huggingface").HFLM


def compiled() -> Any:
    return torch.compile(torch.nn.Linear(1, 1))._modules["_orig_mod"]


USED: dict[str, tuple[str, str, Callable[[], bool]]] = {
    # name: (whose, where it is used and for what, whether it is as it was)
    "_get_num_items_in_batch": (
        "transformers.Trainer",
        "integrations.transformers counts the labels of a batch by it",
        lambda: (
            parameters(Trainer._get_num_items_in_batch) == ["self", "batch_samples", "device"]
            and reads(Trainer.get_batch_samples, "_get_num_items_in_batch")
        ),
    ),
    "_processes": (
        "concurrent.futures.ProcessPoolExecutor",
        "audit.corpus stops the processes of a reading that was interrupted",
        lambda: ProcessPoolExecutor(1)._processes == {},
    ),
    "_is_avx512_bf16_supported": (
        "torch.cpu",
        "machine asks PyTorch before 2.10 by it whether the processor has bfloat16",
        lambda: torch.cpu._is_avx512_bf16_supported() in (False, True),
    ),
    "_is_amx_tile_supported": (
        "torch.cpu",
        "machine asks PyTorch before 2.10 by it whether the processor has bfloat16",
        lambda: torch.cpu._is_amx_tile_supported() in (False, True),
    ),
    "_loss_shifts_labels": (
        "transformers.Trainer",
        "integrations.transformers says by it that the first label of a row is no target",
        lambda: reads(Trainer, "_loss_shifts_labels"),
    ),
    "_set_signature_columns_if_needed": (
        "transformers.Trainer",
        "integrations.transformers keeps the column loss_weights by it",
        lambda: parameters(Trainer._set_signature_columns_if_needed) == ["self"],
    ),
    "_signature_columns": (
        "transformers.Trainer",
        "integrations.transformers keeps the column loss_weights by it",
        lambda: reads(Trainer._remove_unused_columns, "_signature_columns"),
    ),
    "_no_split_modules": (
        "transformers.PreTrainedModel",
        "models.parallel shards a model by the layers that it names",
        lambda: list(transformers.LlamaForCausalLM._no_split_modules) == ["LlamaDecoderLayer"],
    ),
    "_prepare_inputs": (
        "transformers.Trainer",
        "integrations.transformers moves batches of the evaluation by it",
        lambda: parameters(Trainer._prepare_inputs) == ["self", "inputs"],
    ),
    "_n_gpu": (
        "transformers.TrainingArguments",
        "models.training sets it so that Trainer does not wrap the model for all GPUs",
        lambda: reads(TrainingArguments.n_gpu.fget, "_n_gpu"),
    ),
    "_attn_implementation": (
        "transformers.PreTrainedConfig",
        "models.shared_prefix and models.continuations put it back after sharing a context",
        lambda: isinstance(PreTrainedConfig._attn_implementation, property),
    ),
    "_supports_attention_backend": (
        "transformers.PreTrainedModel",
        "models.shared_prefix asks by it whether a context can be shared",
        lambda: isinstance(PreTrainedModel._supports_attention_backend, bool),
    ),
    "_prepare_dataset": (
        "trl.SFTTrainer",
        "integrations.trl cuts and packs loss_weights in it",
        lambda: (
            parameters(SFTTrainer._prepare_dataset)
            == [
                "self",
                "dataset",
                "processing_class",
                "args",
                "packing",
                "formatting_func",
                "dataset_name",
            ]
        ),
    ),
    "_metrics": (
        "trl.SFTTrainer",
        "integrations.trl writes the means of an evaluation into it",
        lambda: reads(SFTTrainer.log, "_metrics"),
    ),
    "add_fused_lm_head": (
        "trl.trainer.utils",
        "integrations.trl stands in the head that it makes",
        lambda: callable(trl_utils.add_fused_lm_head),
    ),
    "_loglikelihood_tokens": (
        "lm_eval.models.huggingface.HFLM",
        "evals.harness answers in it what the harness has cut into context and continuation",
        lambda: (
            parameters(lm_eval_model()._loglikelihood_tokens)
            == ["self", "requests", "disable_tqdm", "override_bs"]
        ),
    ),
    "_factory": (
        "lm_eval.tasks",
        "evals.harness has tasks made of its own class by the TaskFactory in it",
        lambda: (
            parameters(pytest.importorskip("lm_eval.tasks._factory").TaskFactory.build)
            == ["self", "entry", "overrides", "registry"]
        ),
    ),
    "_orig_mod": (
        "torch.compile",
        "integrations.hidden_states finds the model in a compiled one by it",
        lambda: isinstance(compiled(), torch.nn.Linear),
    ),
    "_modules": (
        "torch.nn.Module",
        "integrations.hidden_states looks for a compiled model in it",
        lambda: "a" in torch.nn.ModuleDict({"a": torch.nn.Identity()})._modules,
    ),
    "_private": (
        "ray",
        "lab.ray_executor keeps its own Ray to the loopback address by ENABLE_RAY_CLUSTER in it "
        "and by _node_ip_address",
        lambda: (
            reads(
                pytest.importorskip("ray._private.services").get_node_ip_address,
                "ray_constants.ENABLE_RAY_CLUSTER",
            )
            and reads(pytest.importorskip("ray").init, "_node_ip_address")
        ),
    ),
    "_hf_hook": (
        "accelerate.hooks",
        "integrations.output_layer tells by it a forward that accelerate put there",
        lambda: reads(pytest.importorskip("accelerate.hooks").add_hook_to_module, "_hf_hook"),
    ),
}

ELSEWHERE = {"_exit", "_getframe"}
"""Of Python itself, documented as they are; they need no guard."""


# what torch 2.13 itself imports for torch.compile
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", USED)
def test_a_private_name_is_as_it_was(name):
    whose, use, holds = USED[name]
    versions = f"transformers {transformers.__version__}, peft {peft.__version__}"
    try:
        there = holds()
    except (AttributeError, KeyError, TypeError):
        there = False
    assert there, (
        f"{whose} no longer has {name} as fortifai uses it ({use}; torch {torch.__version__}, "
        f"{versions}): follow the change there, or bound the version in pyproject.toml"
    )


def test_every_private_name_that_is_used_is_guarded():
    """Names with a leading underscore that no module of this package defines, modules too."""
    defined, used = set(), set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
                ours = isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name)
                (defined if ours and node.value.id == "self" else used).add(node.attr)
            elif isinstance(node, ast.keyword) and node.arg:
                defined.add(node.arg)
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(
                "fortifai"
            ):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                used |= {name for name in names if re.match("_[^_]", name)}
    # a namedtuple's methods are public in spite of their names
    foreign = used - defined - ELSEWHERE - {"_replace", "_asdict", "_fields"}
    assert foreign <= set(USED), f"guard {sorted(foreign - set(USED))} in this file, too"


def test_the_guard_sees_a_change(monkeypatch):
    monkeypatch.setattr(Trainer, "_get_num_items_in_batch", lambda self, samples: None)
    with pytest.raises(AssertionError, match="Trainer no longer has _get_num_items_in_batch"):
        test_a_private_name_is_as_it_was("_get_num_items_in_batch")
