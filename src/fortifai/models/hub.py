"""Whether a model is to be fetched, told without the minute of retries that no network costs."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

SECONDS = 10.0


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
