"""How a command of fortifai can end badly, with the exit code of each, and how a chain ends."""

from __future__ import annotations

import difflib
import math
import numbers
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast


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


class Diverged(Exception):  # noqa: N818 - reads as the event that it is
    """A model has diverged, or has collapsed so far that there is nothing left to train on.

    A finding, not a fault, with the reason in words, such as "the variance is 1.3e+201". The loop
    then stops the chain, keeps what it has reached, and marks it as ended.
    """


class Stopped(BaseException):
    """A signal has asked this process to leave; what is committed stays.

    Attributes:
        exit_code: What a shell says of a process that a signal ended: 128 and its number.
    """

    def __init__(self, signal: int) -> None:
        self.exit_code = 128 + signal


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'threshold'?`` or an empty string when nothing is near."""
    found = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def reason(error: object) -> str:
    """The first line that an error of some library tells, or its kind where it tells none."""
    return next(
        (s for line in str(error).splitlines() if (s := line.strip())), type(error).__name__
    )


def kind_and_reason(error: BaseException) -> str:
    """An error of some library as ``Kind: message`` on one line, of 200 characters at most."""
    told = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


def is_outside(part: object) -> bool:
    """Whether a function, a class or an instance of one is no part of this package."""
    return not str(getattr(part, "__module__", "")).startswith("fortifai.")


@contextmanager
def blaming(what: str, part: object) -> Iterator[None]:
    """Within: what code of a plugin raises is told as its fault, with the line.

    Args:
        what: Whose code runs, such as "the cure 'mine'".
        part: The function, class or instance that it is of; of this package's own nothing changes.

    Raises:
        RunFailed: It raised something else than this package's errors.
    """
    try:
        yield
    except (FortifaiError, Diverged, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if not is_outside(part):
            raise
        file = getattr(sys.modules.get(part.__module__), "__file__", None)
        lines = [
            f"{s.filename}, line {s.lineno}"
            for s in traceback.extract_tb(error.__traceback__)
            if s.filename == file
        ]
        raise RunFailed(
            f"{what} failed ({kind_and_reason(error)}; {lines[-1] if lines else part.__module__}); "
            "correct it, and start the same command again"
        ) from error


def check_number(name: str, value: object, interval: str) -> None:
    """Raise `InputError` unless `value` is a real number in `interval`, such as ``[0, inf)``."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    inside = (
        not isinstance(value, bool)
        and isinstance(value, numbers.Real)
        and low <= float(value) <= high  # false for NaN, too
        and not (value == low and interval[0] == "(")
        and not (value == high and interval[-1] == ")")
    )
    if not inside:
        raise InputError(f"{name} is {value!r}; it must be a number in {interval}")


def check_whole(name: str, value: object, least: float = -math.inf, otherwise: str = "") -> None:
    """Raise `InputError` unless `value` is a whole number of `least` or more."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or cast(int, value) < least:
        allowed = "" if least == -math.inf else f" of {least} or more"
        raise InputError(f"{name} is {value!r}; it must be a whole number{allowed}{otherwise}")
