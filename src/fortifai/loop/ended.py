"""How a chain tells that it cannot go on: a finding, not a fault."""

from __future__ import annotations


class Ended(Exception):  # noqa: N818 - reads as the event that it is
    """A model has diverged, or has collapsed so far that there is nothing left to train on.

    Raised by `Model.fit` and `Model.regenerate` with the reason in words, such as "the variance is
    1.3e+201". The loop then stops the chain, keeps what it has reached, and marks it as ended.
    """
