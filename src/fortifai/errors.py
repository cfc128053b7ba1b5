"""The two ways a command of fortifai can end badly, and the exit code of each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FortifaiError(Exception):
    """Base of all errors that are told to a user as one sentence, without a traceback."""

    exit_code = 1


class InputError(FortifaiError, ValueError):
    """Bad input: a file, a key, a value or a shape. Raised before work starts; exit code 2.

    The message says what came, what is allowed and what to do.
    """

    exit_code = 2


class RunFailed(FortifaiError, RuntimeError):  # noqa: N818 - reads as the event that it is
    """Work that had started could not go on (disk full, loss not finite); exit code 1."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'threshold'?`` or an empty string when nothing is near."""
    found = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""
