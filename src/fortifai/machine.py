"""The machine that a run is on, on every system that PyTorch knows."""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext


def cores() -> int:
    """Cores that this process may use, where the system tells; else all of the machine's."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # macOS has none
        return len(process.cpu_affinity())
    return os.cpu_count() or 1


_threads: list[int] = []


def threads() -> int:
    """How many the innermost `use_threads` allows; outside of any, a thread for each core."""
    return _threads[-1] if _threads else cores()


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Use so many threads inside the block: PyTorch, linear algebra, OpenMP, and our own pools.

    Of the libraries that are loaded; whoever loads another inside asks again. None is loaded for
    it, PyTorch least of all, which takes longer than many a run of Gaussians.
    """
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    _threads.append(count)
    try:
        with threadpool_limits(count):
            if torch:
                torch.set_num_threads(count)
            yield
    finally:
        _threads.pop()
        if torch:
            torch.set_num_threads(before)


_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Files of what a container may take and has taken, of control groups of version 2 and of 1."""


def free_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that a process may still take: what the machine has, or less in a limited container.

    Args:
        groups: Where the system tells of the container's limit, if it does.
    """
    free = int(psutil.virtual_memory().available)
    for limit, used in _LIMITS:
        try:
            left = int((groups / limit).read_text()) - int((groups / used).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
        free = min(free, left)
    return max(0, free)


def process_context() -> SpawnContext | ForkServerContext:
    """How processes of ours start, none of which takes over a thread, a lock or an accelerator.

    On Linux from a server (``forkserver``), which loads once what this process has loaded of
    fortifai and transformers: a process is there in a tenth of a second, where PyTorch alone takes
    seconds to load, and they share the memory of it. Elsewhere each starts anew (``spawn``), and
    so where there are accelerators: their libraries must not be forked once one was looked for.
    """
    torch = sys.modules.get("torch")
    if sys.platform != "linux" or (torch and torch.cuda.is_available()):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    loaded = sorted(m for m in [*sys.modules] if m.startswith(("fortifai.", "transformers.")))
    # a server that runs has its modules, and passes over this
    context.set_forkserver_preload(["fortifai.fork_server", *loaded])
    return context


def end_with_parent() -> None:
    """Have this process killed when its parent is gone, however deep in a computation it is."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel
    if sys.platform == "linux":
        # the system sends the signal once the pipe has no writer any more
        f_setsig = 10  # of fcntl.h
        # a Python that was built without, and a sandbox that does not know it, have the watch alone
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(sentinel, f_setsig, signal.SIGKILL)
            fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    # elsewhere, and where the parent was gone before that
    threading.Thread(target=_watch, args=(sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def bf16_on_cpu() -> bool:
    """Whether the processor has instructions that multiply bfloat16, as PyTorch tells."""
    import torch  # loaded where it is asked for, as below

    if hasattr(torch.cpu, "get_capabilities"):
        told = torch.cpu.get_capabilities()
        return any(told.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    # PyTorch before 2.10, of x86 alone
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def accelerators() -> tuple[str, tuple[str, ...]]:
    """The accelerators that this process may use, and the variable that chooses among them.

    An accelerator is named as the variable names it: by its number, or by the id of a GPU or of a
    part of one (MIG), of which a process without the variable would see the first alone.
    """
    import torch  # loaded where it is asked for: `cores` needs none

    names = ["CUDA_VISIBLE_DEVICES"]
    if torch.version.hip:  # the first two choose among what the last has left
        names = ["HIP_VISIBLE_DEVICES", *names, "ROCR_VISIBLE_DEVICES"]
    name = next((name for name in names if name in os.environ), names[-1])
    if not torch.cuda.is_available():
        return name, ()
    if name in os.environ:
        told = [one.strip() for one in os.environ[name].split(",")]
        end = next((i for i, one in enumerate(told) if one in ("", "-1")), len(told))
        return name, tuple(told[:end])
    return name, _mig_ids() or tuple(map(str, range(torch.cuda.device_count())))


def _mig_ids() -> tuple[str, ...]:
    """Ids of parts of GPUs and of GPUs that are whole; none where no GPU is in parts."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()  # without the tool there is nothing to learn of parts
    found: list[str] = []
    for line in told.splitlines():
        uuid = line.rpartition("UUID: ")[2].rstrip(")")
        # a GPU in parts is listed before them, and cannot be used as a whole
        if line.startswith(" ") and found and found[-1].startswith("GPU"):
            found.pop()
        found.append(uuid)
    return tuple(found) if any(one.startswith("MIG") for one in found) else ()


def source_commit() -> str | None:
    """The git commit that this package is of, with ``+`` where its files differ from it.

    None where it is not known: it was installed from neither a repository nor a checkout.
    """
    try:
        told = importlib.metadata.distribution("fortifai").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        told = None
    if commit := json.loads(told or "{}").get("vcs_info", {}).get("commit_id"):
        return str(commit)
    own = Path(__file__)

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], cwd=own.parent, capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", own.name)  # not a repository that merely lies around us
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine(*, accelerated: bool = True) -> dict[str, Any]:
    """The machine in a few words: processor, cores, memory, accelerator, system.

    Args:
        accelerated: Whether an accelerator would be used; else it is not looked for.
    """
    accelerator = "not used"
    if accelerated:
        import torch

        accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerator": accelerator,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the general name below is all there is
    return platform.processor() or platform.machine()
