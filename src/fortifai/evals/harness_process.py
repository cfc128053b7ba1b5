"""What lm-evaluation-harness does to a process, kept within bounds and undone."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import random
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from lm_eval import utils
from lm_eval.api import task as task_module

PYTHON_SEED, OTHER_SEED = 0, 1234
"""The seeds of the harness's command."""


@contextlib.contextmanager
def as_its_command(*, bars: bool = False) -> Iterator[None]:
    """Within: the seeds of its command, no output of its own, each template compiled once.

    The random states of Python, NumPy and PyTorch are afterwards what they were.

    Args:
        bars: Show the progress of fetching a data set.
    """
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count()))
    compiled = functools.lru_cache(maxsize=4096)(utils.env.from_string)
    quiet = functools.partial(task_module.tqdm, disable=True)
    shown = not datasets.are_progress_bars_disabled()
    with (
        torch.random.fork_rng(devices=devices),
        muted(),
        replaced(utils.env, "from_string", compiled),
        replaced(task_module, "tqdm", quiet),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        random.seed(PYTHON_SEED)
        np.random.seed(OTHER_SEED)  # noqa: NPY002
        torch.manual_seed(OTHER_SEED)
        if not bars:
            datasets.disable_progress_bars()
        try:
            yield
        finally:
            if shown:
                datasets.enable_progress_bars()
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Without the harness's and transformers' remarks on what is meant to be so."""
    logger, level = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level
    verbosity = transformers.logging.get_verbosity()
    logger.setLevel(logging.CRITICAL)
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        logger.setLevel(level)
        transformers.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within: an attribute of one object is another."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
