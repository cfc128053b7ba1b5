"""A hierarchical bootstrap over seeds, then items, for any statistic.

Percentiles of such draws cover too little with few seeds (two seeds drawn with replacement have
half of the variance of two new ones) and count the noise of single answers thrice. So the draws
are used for what they are good at, the variance of a statistic without a formula: seeds alone,
items alone, and both with the same draws, from which the parts follow as in the analysis of
variance. Student's t makes the interval of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fortifai.stats.variance import Estimate, Floats, Spread, estimate, finite

_ENTRIES = 4_000_000  # of one batch of drawn tables: 32 MB


def bootstrap_interval(
    statistic: Callable[..., Any],
    *tables: ArrayLike,
    items: bool,
    n_boot: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A statistic of one or several tables with its interval over seeds and items.

    All tables share every draw: row s of each is the same seed, the last entries the same items.

    Args:
        statistic: Called with the item means (draws, seeds, ...) of each table, returning (draws,)
            numbers.
        *tables: (seeds, ..., items), or (seeds, ...) without `items`.
        items: Whether the last axis is a sample of items to be drawn.
        n_boot: Draws. 2,000 fix the standard error to 1.6 % of itself.
        seed: Of the draws.

    Returns:
        The statistic of the tables as they are, with ``value +- t_df sqrt(V)``, see
        `fortifai.stats.Spread`. For a skewed statistic use a scale on which it is not, such as the
        logarithm.

    Raises:
        ValueError: Tables that do not fit together, or a statistic that is not finite somewhere.
    """
    values, spread = bootstrap_spread(statistic, *tables, items=items, n_boot=n_boot, seed=seed)
    return estimate(float(values[0]), spread.along(np.ones(1)))


def bootstrap_spread(
    statistic: Callable[..., Any],
    *tables: ArrayLike,
    items: bool,
    n_boot: int = 2000,
    seed: int = 0,
) -> tuple[Floats, Spread]:
    """A vector of k statistics and the parts of its covariance.

    As `bootstrap_interval`, but `statistic` may also return (draws, k).

    Returns:
        The statistics (k,), and their covariances (k, k) by part.
    """
    data = [finite(x, "a table") for x in tables]
    n_seeds, n_items = _sizes(data, items)
    rng = np.random.default_rng(seed)
    whole = _as_rows(statistic(*(_item_means(x, items)[None] for x in data)), 1)
    parts: list[list[Floats]] = [[], [], []]
    entries = sum(x.size // n_items for x in data)
    left = n_boot
    while left:
        batch = min(left, max(1, _ENTRIES // entries))
        left -= batch
        seeds = rng.integers(n_seeds, size=(batch, n_seeds))
        rows = _drawn(statistic, data, seeds, _shares(rng, batch, n_items), items)
        for part, row in zip(parts, rows, strict=True):
            part.append(_as_rows(row, batch))
    by_seed, by_item, by_both = (np.concatenate(part) for part in parts)
    _check(whole, by_seed, by_item, by_both)
    # what is left of a draw of both when the draws of each alone are taken off: the two-way
    # residual, exactly so for a mean
    rest = by_both - by_seed - by_item + whole
    seeds_more, items_more = (n / max(n - 1, 1) for n in (n_seeds, n_items))
    return whole[0], Spread(
        seeds=_covariance(by_seed) * seeds_more,
        items=_covariance(by_item) * items_more,
        both=_covariance(rest) * seeds_more * items_more,
        n_seeds=n_seeds,
        n_items=n_items,
    )


def _sizes(data: list[Floats], items: bool) -> tuple[int, int]:
    if not data or any(x.ndim < 1 + items or not x.size for x in data):
        shape = "(seeds, ..., items)" if items else "(seeds, ...)"
        raise ValueError(f"a table to draw from must be {shape} and not empty")
    ends = {(x.shape[0], x.shape[-1] if items else 1) for x in data}
    if len(ends) > 1:
        raise ValueError(
            f"the tables are {[x.shape for x in data]}; they must have the same seeds and items"
        )
    return ends.pop()


def _shares(rng: np.random.Generator, batch: int, n_items: int) -> Floats:
    """How often each item is drawn, over the number of items; (batch, items)."""
    # counted from the items drawn: several times as fast as the same from NumPy's multinomial
    drawn = rng.integers(n_items, size=(batch, n_items)) + n_items * np.arange(batch)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=batch * n_items)
    return counts.reshape(batch, n_items) / n_items


def _item_means(x: Floats, items: bool) -> Floats:
    return x.mean(-1) if items else x


def _drawn(
    statistic: Callable[..., Any], data: list[Floats], seeds: Any, shares: Floats, items: bool
) -> tuple[Any, Any, Any]:
    """The statistic of drawn seeds, of drawn items, and of both."""
    plain = [_item_means(x, items) for x in data]
    drawn = [_drawn_means(x, shares) if items else x[None] for x in data]
    rows = np.arange(len(seeds))[:, None]
    return (
        statistic(*(x[seeds] for x in plain)),
        statistic(*(np.broadcast_to(x, (len(seeds), *x.shape[1:])) for x in drawn)),
        statistic(*(x[rows if items else 0, seeds] for x in drawn)),
    )


def _drawn_means(x: Floats, shares: Floats) -> Floats:
    """Item means (draws, seeds, ...) of a table (seeds, ..., items)."""
    # as one product of matrices: NumPy takes those of more axes apart
    means = shares @ x.reshape(-1, x.shape[-1]).T
    return means.reshape(-1, *x.shape[:-1])


def _as_rows(values: Any, draws: int) -> Floats:
    return np.asarray(values, dtype=np.float64).reshape(draws, -1)


def _covariance(rows: Floats) -> Floats:
    return np.atleast_2d(np.cov(rows, rowvar=False, ddof=1))


def _check(*found: Floats) -> None:
    if not all(np.isfinite(rows).all() for rows in found):
        raise ValueError(
            "the statistic is not finite for the tables or for some draws of them; use one that "
            "is, such as the two parts of a ratio"
        )
