"""Statistics of runs: time to failure, intervals over seeds and questions, tests, decay, entropy.

Plain functions on arrays. `docs/statistics.md` says what each interval generalises over.
"""

from __future__ import annotations

from fortifai.stats.bootstrap import bootstrap_interval, bootstrap_spread
from fortifai.stats.compare import (
    holm,
    mean_interval,
    paired_difference,
)
from fortifai.stats.decay import decay_rate, decay_ratio
from fortifai.stats.failure import (
    Direction,
    Level,
    Ratio,
    TimesFirst,
    TimeToFailure,
    ratio_to_baseline,
    time_to_failure,
)
from fortifai.stats.information import (
    FLOOR,
    entropy,
    kl_divergence,
)
from fortifai.stats.mixture import gaussian_crossing
from fortifai.stats.sample import Interval, Share, jackknife, sample_mean, share
from fortifai.stats.variance import (
    Estimate,
    Over,
    Spread,
    mean_estimate,
    quantile,
    ratio_interval,
    spread_of_mean,
)

__all__ = [
    "FLOOR",
    "Direction",
    "Estimate",
    "Interval",
    "Level",
    "Over",
    "Ratio",
    "Share",
    "Spread",
    "TimeToFailure",
    "TimesFirst",
    "bootstrap_interval",
    "bootstrap_spread",
    "decay_rate",
    "decay_ratio",
    "entropy",
    "gaussian_crossing",
    "holm",
    "jackknife",
    "kl_divergence",
    "mean_estimate",
    "mean_interval",
    "paired_difference",
    "quantile",
    "ratio_interval",
    "ratio_to_baseline",
    "sample_mean",
    "share",
    "spread_of_mean",
    "time_to_failure",
]
