"""The job array that runs the chains of an experiment on a SLURM cluster."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from fortifai.errors import InputError
from fortifai.lab.executor import Job

_SCRIPT = """\
#!/bin/bash
{directives}
# sbatch this; then `fortifai status {folder}`, and `fortifai report {folder}` at the end
chains=({chains})

# shortly before the time limit: leave with what is committed, and queue this chain again
again() {{
  kill -TERM "$run"
  wait "$run"
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
  exit 143
}}
trap again USR1

{command} --chain "${{chains[$SLURM_ARRAY_TASK_ID]}}" &
run=$!
wait "$run"
"""


def script(
    name: str, folder: str, command: Sequence[str], jobs: Sequence[Job], options: Sequence[str]
) -> str:
    """A script for ``sbatch``: one task a chain, queued again on preemption and at its time limit.

    Args:
        name: Of the experiment.
        folder: The run folder, as told.
        command: What runs the experiment; a chain is added.
        jobs: The chains.
        options: ``KEY=VALUE`` of sbatch, such as ``time=4:00:00``; they replace those given here.

    Raises:
        InputError: One of them is no ``KEY=VALUE``.
    """
    directives = {
        "job-name": f"fortifai-{name}",
        "array": f"0-{len(jobs) - 1}",
        "output": f"fortifai-{name}-%a.log",
        "open-mode": "append",
        "signal": "B:USR1@60",
    }
    for option in options:
        key, _, value = option.partition("=")
        if not re.fullmatch("[a-z][a-z-]*", key) or not re.fullmatch(r"\S+", value):
            raise InputError(
                f"--sbatch is {option!r}; it must be KEY=VALUE as in a script of sbatch, such as "
                "time=4:00:00 or gres=gpu:1"
            )
        directives[key] = value
    lines = [*(f"--{key}={value}" for key, value in directives.items()), "--requeue"]
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {line}" for line in lines),
        folder=shlex.quote(folder),
        chains=" ".join(shlex.quote("/".join(job)) for job in jobs),
        command=shlex.join(command),
    )
