"""Writing by vLLM, from the weights that a generation saved.

vLLM is given token ids and gives token ids; it never sees text. Each row of sampling draws with a
seed of its own. What is written then depends on the row alone, up to the rounding of sums, whose
order vLLM lets the batch choose unless it runs batch-invariant (VLLM_BATCH_INVARIANT=1, on GPUs).
Scores stay with `scoring`: vLLM's log-probabilities of prompts make full logits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from fortifai.data.tokens import SpecialTokens
from fortifai.errors import InputError, RunFailed, kind_and_reason
from fortifai.models.generation import cache_bytes, rows_at_a_time
from fortifai.models.options import Greedy, Sample
from fortifai.models.scoring import positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fortifai.models.options import RegenerateOptions

MOST_BANNED = 1024
"""Tokens that vLLM's sampler on GPUs can forbid a row."""

AT_A_TIME = 512
"""Rows that are handed over at once, before progress is told; vLLM batches within them."""

BLOCK = 128
"""Tokens of keys and values that vLLM holds together at most; a row's last are not full."""

PATIENCE = 10.0
"""Seconds to wait for the processes of an engine that was closed."""

OTHERWISE = "set regenerate.engine to transformers"


@dataclasses.dataclass(frozen=True)
class Row:
    """What is asked for once.

    Attributes:
        prompt: Token ids, bos among them where the model reads one.
        size: Tokens to write.
        seed: Of its random numbers, in [0, 2**32).
    """

    prompt: list[int]
    size: int
    seed: int


def check(model: PreTrainedModel, special: SpecialTokens) -> str:
    """Whether vLLM is here and can write with a model, before work starts.

    Args:
        model: The model or its like on the meta device.
        special: Its special tokens.

    Returns:
        vLLM's version, its device, and whether it is batch-invariant, in words.

    Raises:
        InputError: It is not installed, cannot be imported, finds no device, is to be
            batch-invariant on a CPU, does not know the architecture, or cannot forbid as many
            tokens.
    """
    vllm = _vllm()
    told = _about(vllm)
    if not told["device"]:
        raise InputError(f"vLLM {told['version']} finds no device to run on; {OTHERWISE}")
    if told["device"] == "cpu" and _asked_to_be_invariant():
        raise InputError(
            f"VLLM_BATCH_INVARIANT is set, and vLLM {told['version']} is batch-invariant on GPUs "
            f"alone and does not run with it on a CPU; unset it, or {OTHERWISE}"
        )
    name = type(model).__name__
    # what vLLM has no code for it runs by transformers', where that lets its attention be replaced
    if name not in vllm.ModelRegistry.get_supported_archs() and not model.is_backend_compatible():
        raise InputError(f"vLLM {told['version']} cannot load a {name}; {OTHERWISE}")
    banned = len(special.never_written) + 1
    if banned > MOST_BANNED:
        raise InputError(
            f"{banned:,} ids of the model's are never to be written, most of them without a token, "
            f"and vLLM can forbid {MOST_BANNED:,} at most; {OTHERWISE}"
        )
    return (
        f"vLLM {told['version']} on {told['device']}, "
        f"{'' if told['batch_invariant'] else 'not '}batch-invariant"
    )


class Engine:
    """A vLLM engine on the weights of one folder, in processes of its own.

    Attributes:
        record: What is to be written down of it: ``engine``, ``version``, ``device``, ``dtype``,
            ``batch_invariant`` and ``prefix_caching``.
        made_for: The settings that it was started for, whatever their decoding.
    """

    _llm: Any = None

    def __init__(self, folder: Path, model: PreTrainedModel, settings: RegenerateOptions) -> None:
        """Start it.

        Args:
            folder: Of weights and configuration, as transformers saves them.
            model: The same model; tells the engine's dtype and how much memory it takes.
            settings: How text is rewritten. Prefixes are kept where rows share them.

        Raises:
            RunFailed: vLLM does not start.
        """
        self._vllm, self.made_for = _vllm(), _sizes(settings)
        longest = settings.longest if settings.mode == "blocks" else positions(model)
        rows = rows_at_a_time(model, settings, longest)
        dtype = str(model.dtype).removeprefix("torch.")
        shares = settings.mode == "documents" or settings.blocks > 1
        self.record = {
            "engine": "vllm",
            **_about(self._vllm),
            "dtype": dtype,
            "prefix_caching": shares,
        }
        asked = {
            "model": str(folder),
            "skip_tokenizer_init": True,
            # or vLLM takes sampling and ends from the model's own
            "generation_config": "vllm",
            # vLLM would halve float32
            "dtype": dtype,
            "max_model_len": longest,
            "max_num_seqs": rows,
            "kv_cache_memory_bytes": rows * cache_bytes(model, _whole_blocks(longest)),
            "enable_prefix_caching": shares,
            "seed": 0,
            "use_tqdm_on_load": False,
        }
        if self.record["device"] == "cpu":
            # uncompiled, it starts sooner; and a seeded row whose prompt is read in parts ends
            # vLLM 0.32, whose way back in the random numbers is that of a GPU
            asked |= {"enforce_eager": True, "enable_chunked_prefill": False}
        if self.record["device"] == "cuda":
            asked["gpu_memory_utilization"] = _free_share()
        before = multiprocessing.active_children()
        self._dismiss = weakref.finalize(self, _dismiss, guard())
        try:
            with _environment():
                self._llm = self._vllm.LLM(**asked)
        except Exception as error:
            self._dismiss()
            raise RunFailed(
                f"vLLM {self.record['version']} did not start ({kind_and_reason(error)}); "
                f"{OTHERWISE}"
            ) from error
        self._cores = [c for c in multiprocessing.active_children() if c not in before]
        found = [psutil.Process(core.pid) for core in self._cores]
        self._workers = [w for core in found for w in core.children(recursive=True)]

    def write(
        self, rows: Sequence[Row], decoding: Greedy | Sample, banned: Sequence[int]
    ) -> list[list[int]]:
        """Write exactly `size` tokens after each prompt, an end of text being one like any other.

        Args:
            rows: What is asked for.
            decoding: Greedy or sample.
            banned: Tokens that are never written.

        Raises:
            RunFailed: vLLM fails, or writes something else than it was asked for.
        """
        asked = [
            self._vllm.SamplingParams(
                max_tokens=row.size,
                ignore_eos=True,
                detokenize=False,
                logit_bias=dict.fromkeys(banned, -math.inf) or None,
                **_drawing(decoding, row.seed),
            )
            for row in rows
        ]
        prompts = [self._vllm.TokensPrompt(prompt_token_ids=row.prompt) for row in rows]
        try:
            answers = self._llm.generate(prompts, asked, use_tqdm=False)
        except Exception as error:
            raise RunFailed(f"vLLM failed ({kind_and_reason(error)}); {OTHERWISE}") from error
        out = [list(answer.outputs[0].token_ids) for answer in answers]
        never = set(banned)
        for row, written in zip(rows, out, strict=True):
            if len(written) != row.size or never.intersection(written):
                raise RunFailed(
                    f"vLLM was asked for {row.size} tokens and wrote {len(written)}, "
                    f"{len(never.intersection(written))} different ones of them forbidden; "
                    f"{OTHERWISE}"
                )
        return out

    @property
    def is_open(self) -> bool:
        """Whether it can write."""
        return self._llm is not None

    def close(self) -> None:
        """End its processes, and so give all of its memory back."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        # it asks them to leave and then kills them, but does not wait until they are gone
        llm.llm_engine.engine_core.shutdown()
        deadline = time.monotonic() + PATIENCE
        for core in self._cores:
            core.join(PATIENCE)
        while any(map(_runs, self._workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._dismiss()


def started(
    settings: RegenerateOptions,
    model: PreTrainedModel,
    save: Callable[[Path], None],
    workdir: Path | None,
    *,
    instead_of: Engine | None,
) -> Engine:
    """An engine for a model: the one there is, or another where that is for other settings.

    Args:
        settings: How text is rewritten; decoding is said of each row, and may differ.
        model: The model.
        save: Writes its weights into a folder, which is taken away once they are read.
        workdir: Where to make that folder; None: where the system keeps such files.
        instead_of: The one there is, which has these weights; it is closed before another starts.

    Raises:
        InputError: vLLM is not installed or cannot be imported.
        RunFailed: It does not start.
    """
    if instead_of is not None:
        if instead_of.is_open and _sizes(settings) == instead_of.made_for:
            return instead_of
        instead_of.close()
    if workdir is not None:
        workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=workdir) as folder:
        save(Path(folder))
        return Engine(Path(folder), model, settings)


def _sizes(settings: RegenerateOptions) -> RegenerateOptions:
    """Settings but for what is said of each row."""
    return settings.model_copy(update={"decoding": Greedy()})


_GUARD = """
import select, sys, time
import psutil

me, parent, known = psutil.Process(), psutil.Process(int(sys.argv[1])), {}
while not select.select([sys.stdin], [], [], 0.5)[0]:
    try:
        known.update((p.pid, p) for p in parent.children(recursive=True) if p != me)
    except psutil.Error:
        pass
deadline = time.monotonic() + 5
while time.monotonic() < deadline:
    try:
        gone = parent.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        gone = True
    if gone:
        break
    time.sleep(0.05)
else:
    sys.exit()  # the pipe was closed, and nobody is gone
for process in known.values():
    try:
        process.kill()
    except psutil.Error:
        pass
"""


def guard() -> subprocess.Popen[bytes]:
    """A process that kills those that this one starts, once this one is gone, however it ended.

    vLLM 0.32's own stay where the process that started them was killed, with all their memory.
    """
    return subprocess.Popen(
        [sys.executable, "-c", _GUARD, str(os.getpid())],
        stdin=subprocess.PIPE,  # closed by the system with this process
        start_new_session=True,
    )


def _dismiss(guarding: subprocess.Popen[bytes]) -> None:
    guarding.kill()
    guarding.communicate()


def _runs(process: psutil.Process) -> bool:
    """Whether a process holds anything still; one that nobody has waited for does not."""
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _drawing(decoding: Greedy | Sample, seed: int) -> dict[str, Any]:
    """The part of vLLM's settings that says how a token is chosen."""
    if isinstance(decoding, Greedy):
        return {"temperature": 0.0}
    kept = decoding.model_dump(include={"temperature", "top_p", "top_k", "min_p"})
    return kept | {"seed": seed}


def _about(vllm: Any) -> dict[str, Any]:
    """Version, device, and whether it is batch-invariant: as engines of this process will be."""
    from vllm import platforms

    platform = platforms.current_platform
    device = str(platform.device_type)
    # of NVIDIA's, vLLM names those from Ampere on
    able = device not in ("", "cpu") and (
        not platform.is_cuda() or bool(platform.has_device_capability(80))
    )
    return {
        "version": vllm.__version__,
        "device": device,
        "batch_invariant": _asked_to_be_invariant() and able,
    }


def _asked_to_be_invariant() -> bool:
    from vllm import envs

    return bool(envs.VLLM_BATCH_INVARIANT)


def _vllm() -> Any:
    """The module.

    Raises:
        InputError: It is not there, or does not fit what else is installed.
    """
    try:
        with _environment():
            import vllm

            vllm.LLM  # noqa: B018 - this loads what belongs to it
            return vllm
    except Exception as error:  # whatever the packages that it needs raise
        if isinstance(error, ModuleNotFoundError) and error.name == "vllm":
            raise InputError(
                "regenerate.engine is vllm, and vLLM is not installed; pip install "
                f"'fortifai[vllm]', or {OTHERWISE}"
            ) from error
        raise InputError(
            f"vLLM is installed and cannot be imported ({kind_and_reason(error)}); mend it, "
            f"or {OTHERWISE}"
        ) from error


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Settings of vLLM's while it is imported and starts its processes, which inherit them.

    It changes the environment itself (LD_PRELOAD, compile threads); afterwards all is as before.
    What it warns of meanwhile is between it and the packages that it builds on.
    """
    before = dict(os.environ)
    quiet = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        # its engines would all be bound to the same cores
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    os.environ.update({name: value for name, value in quiet.items() if name not in before})
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    # fork and threaded libraries do not mix
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in [name for name in os.environ if name not in before]:
            del os.environ[name]
        os.environ.update(before)


def _whole_blocks(longest: int) -> int:
    return -(-longest // BLOCK) * BLOCK + BLOCK


def _free_share() -> float:
    """The share of the GPU that vLLM may take; it refuses to start where less is free."""
    free, total = torch.cuda.mem_get_info()
    return round(0.9 * free / total, 3)
