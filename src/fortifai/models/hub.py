"""Where the files of a model are that somebody named, and whether they are to be fetched."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from fortifai.errors import InputError

SECONDS = 10.0
ADAPTER = "adapter_config.json"
_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")


@dataclasses.dataclass(frozen=True)
class Place:
    """A model's files.

    Attributes:
        name: As it was named.
        repo: A folder or a hub id.
        gguf: A GGUF file in it, if the model is that; otherwise None.
    """

    name: str
    repo: str
    gguf: str | None = None

    @functools.cached_property
    def is_local(self) -> bool:
        """Whether to look on this machine alone; see `local_files_only`."""
        return local_files_only(self.repo)

    @property
    def is_adapter(self) -> bool:
        """Whether it is the folder of an adapter, which names the model that it belongs to."""
        return self.gguf is None and (Path(self.repo) / ADAPTER).is_file()

    @property
    def holds_tokenizer(self) -> bool:
        """Whether a folder has a tokenizer in a file of its own."""
        return (Path(self.repo) / "tokenizer.json").is_file()


def exists(name: str | Path) -> bool:
    """Whether a name is that of a file or folder here, or of a file in a folder here."""
    repo, _, file = str(name).rpartition(":")
    in_folder = repo != "" and _is_gguf(file) and Path(repo).is_dir()
    return Path(name).exists() or in_folder


def locate(name: str) -> Place:
    """The files that a name stands for.

    Args:
        name: A hub id, a folder, a GGUF file, a folder that holds one, or ``repo:file.gguf`` with a
            folder or a hub id before the colon.

    Raises:
        InputError: A folder holds several GGUF files, or there is no such file, or it is no GGUF
            file, or one part of several.
    """
    path = Path(name)
    if path.is_dir():
        return Place(name, name, None if _holds_weights(path) else _only_gguf(path))
    if path.is_file():
        if not _is_gguf(path.name):
            raise InputError(
                f"{name!r} is a file, but no GGUF file; give a model's folder, a .gguf file or a "
                "hub id"
            )
        return Place(name, str(path.parent), _whole(path.name))
    repo, _, file = name.rpartition(":")
    if not _is_gguf(name):
        return Place(name, name)
    if not repo:
        raise InputError(f"there is no file {name!r}; give a .gguf file, or repo:file.gguf")
    if Path(repo).is_dir() and not (Path(repo) / file).is_file():
        raise InputError(f"there is no file {file!r} in {repo}; name a .gguf file that is there")
    return Place(name, repo, _whole(file))


def _is_gguf(name: str) -> bool:
    return name.lower().endswith(".gguf")


def _holds_weights(folder: Path) -> bool:
    return (folder / ADAPTER).is_file() or (
        (folder / "config.json").is_file() and any(any(folder.glob(kind)) for kind in _WEIGHTS)
    )


def _only_gguf(folder: Path) -> str | None:
    # llama.cpp keeps a vision tower in a file of its own beside the model's
    files = sorted(
        path.name
        for path in folder.iterdir()
        if _is_gguf(path.name) and not path.name.lower().startswith("mmproj")
    )
    if len(files) > 1:
        raise InputError(
            f"{folder} holds {len(files)} GGUF files ({', '.join(files[:3])}); name one of them, "
            f"such as {folder / files[0]}"
        )
    return _whole(files[0]) if files else None


def _whole(file: str) -> str:
    parts = re.search(r"-\d{5}-of-(\d{5})\.gguf$", file, re.IGNORECASE)
    if parts and int(parts[1]) > 1:
        raise InputError(
            f"{file} is one of {int(parts[1])} parts of a model, which are not read; put them "
            "together with llama.cpp's gguf-split --merge"
        )
    return file


def local_files_only(name_or_path: str) -> bool:
    """Whether transformers should look on this machine alone (its cache included).

    One request is made, and only for what is not a local folder: where it gets no answer, the
    loader would try every file again and again.

    Args:
        name_or_path: A hub id or a folder.

    Returns:
        True for a folder, for what cannot be a hub id, and without a network (or with
        ``HF_HUB_OFFLINE``); False where the hub answered, be it with a refusal.
    """
    if Path(name_or_path).exists():
        return True
    try:
        HfApi().model_info(name_or_path, timeout=SECONDS)
    except HfHubHTTPError:
        return False  # it is there and says no: the loader tells why
    except Exception:
        # not reached; the error's type is that of whichever HTTP library the client is built on
        return True
    return False
