"""What importing needs: torch, and nothing else that is not Python's own."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import fortifai

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("fortifai", *ALLOWED):
            raise ModuleNotFoundError("blocked: " + name, name=name)
"""

AFTER_TORCH = f"""
import torch
ALLOWED = ("torch",)
{BLOCK}
before = set(sys.modules)
sys.meta_path.insert(0, Block())
import fortifai, fortifai.losses, fortifai.weights
tops = {{m.partition(".")[0] for m in set(sys.modules) - before}}
assert tops - sys.stdlib_module_names - {{"torch"}} == {{"fortifai"}}, tops
"""

# torch's own requirements, without the numpy that it uses when it finds one
WITHOUT_NUMPY = f"""
import warnings
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
sys_modules = __import__("sys").modules
sys_modules["numpy"] = None
import torch
ALLOWED = ("torch",)
{BLOCK}
sys.meta_path.insert(0, Block())
import fortifai
"""

USE = """
x = torch.zeros(2, 4, requires_grad=True)
t = torch.tensor([0, 1])
fortifai.truncated_cross_entropy(x, t, threshold=0.5).backward()
fortifai.FocalCrossEntropyLoss()(x, t).backward()
try:
    fortifai.truncated_cross_entropy(x, torch.tensor([0, 9]))
except ValueError as error:
    print("said:", error)
"""


@pytest.mark.long
@pytest.mark.parametrize("code", [AFTER_TORCH, WITHOUT_NUMPY], ids=["torch alone", "no numpy"])
def test_importing_needs_torch_alone(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code + USE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "said: target[1] is 9" in done.stdout


def test_the_block_blocks() -> None:
    """The test above would see an import of something else."""
    code = AFTER_TORCH.replace("import fortifai,", "import yaml, fortifai,")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "blocked: yaml" in done.stderr


def test_importing_acts_on_nothing() -> None:
    """No device, random state, thread count or default type is touched."""
    code = """
import torch
def state():
    return (torch.get_rng_state().tolist(), torch.get_num_threads(), torch.get_default_dtype(),
            torch.is_grad_enabled(), torch.cuda.is_initialized())
before = state()
import fortifai
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version() -> None:
    assert fortifai.__version__ == importlib.metadata.version("fortifai")


def test_everything_promised_is_there() -> None:
    assert all(hasattr(fortifai, name) for name in fortifai.__all__)
    assert set(fortifai.losses.__all__) | {"__version__"} == set(fortifai.__all__)
    assert set(fortifai.__all__) <= set(dir(fortifai))
    with pytest.raises(AttributeError, match="no attribute 'truncated_entropy'"):
        _ = fortifai.truncated_entropy


@pytest.mark.long
def test_importing_takes_little_more_than_torch() -> None:
    """Processor time after torch, the best of three, since other work on the machine adds to it."""
    code = "import time, torch; t = time.process_time(); import fortifai; fortifai.losses"
    took = [
        float(
            subprocess.check_output(
                [sys.executable, "-c", f"{code}; print(time.process_time() - t)"]
            )
        )
        for _ in range(3)
    ]
    assert min(took) < 0.2  # what is promised; 0.05 was seen
