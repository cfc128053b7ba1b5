import gc
import os
from pathlib import Path

# before anything imports what reads them: lines of this width, and no hub
os.environ |= {"COLUMNS": "120", "HF_HUB_OFFLINE": "1"}

import hypothesis
import pytest
import torch

from tests import real_data, real_models

# before anything imports Triton, whose functions become interpreted ones when they are defined
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# how long an example takes says how busy the machine is; time is measured in benchmarks/
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

LONG = (
    "test_scale.py",
    "test_pretrained.py",
    "test_readme.py",
    "test_ray.py",
    "test_ray_executor.py",
    "test_parallel_run.py",
    "test_package.py",
    "test_lora_run.py",
    "test_run.py",
    "test_audit.py",
    "test_corpus.py",
    "test_confidence_trainer.py",
    "test_trl.py",
    "test_shared_prefix.py",
    "test_lasting_runs.py",
    "test_report.py",
    "test_browser.py",
    "test_families.py",
    "test_lora.py",
    "test_training.py",
    "test_benchmarks.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: no process is left with one when others are done."""
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


def pytest_collection_finish() -> None:
    """Leave what is loaded out of garbage collections: Trainer asks for one in every fit."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """What is frozen is not taken apart at the end of the process, and its makers complain."""
    gc.unfreeze()


@pytest.fixture(scope="session", name="real_data")
def _real_data() -> Path:
    """The folder of real data; tests that need it skip without it."""
    for folder in (real_data.folder(), real_data.BESIDE):
        if not (lacking := real_data.missing(folder)):
            return folder
    pytest.skip(f"there is no {lacking[0]}; `make data` says where all of it comes from")


def _real_model(name: str) -> Path:
    file = real_models.path(name)
    if file is None:
        pytest.skip(f"{real_models.MODELS[name].file} is not here: run `make models`")
    return file


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, a GGUF file; tests that need it skip without it."""
    return _real_model("smollm2")


@pytest.fixture(scope="session")
def gemma3_270m() -> Path:
    """Gemma-3-270m (base), Q4_K_M, a GGUF file; tests that need it skip without it."""
    return _real_model("gemma3-270m")
