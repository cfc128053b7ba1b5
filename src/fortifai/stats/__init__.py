"""Statistics of runs: time to failure, intervals over seeds and questions, tests, decay, entropy.

Plain functions on arrays. `docs/statistics.md` says what each interval generalises over.
"""

from __future__ import annotations

from fortifai.stats.bootstrap import bootstrap_interval, bootstrap_spread
from fortifai.stats.compare import (
    McNemar,
    holm,
    mcnemar,
    mean_interval,
    paired_difference,
    permutation_test,
)
from fortifai.stats.decay import decay_rate, decay_ratio
from fortifai.stats.failure import (
    HALF_GAIN,
    Direction,
    Level,
    Ratio,
    TimeToFailure,
    half_gain_level,
    ratio_to_baseline,
    seed_times,
    time_to_failure,
)
from fortifai.stats.information import (
    FLOOR,
    Divergence,
    entropy,
    equal_size_kl,
    kl_divergence,
    miller_madow_kl,
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
    "HALF_GAIN",
    "Direction",
    "Divergence",
    "Estimate",
    "Interval",
    "Level",
    "McNemar",
    "Over",
    "Ratio",
    "Share",
    "Spread",
    "TimeToFailure",
    "bootstrap_interval",
    "bootstrap_spread",
    "decay_rate",
    "decay_ratio",
    "entropy",
    "equal_size_kl",
    "gaussian_crossing",
    "half_gain_level",
    "holm",
    "jackknife",
    "kl_divergence",
    "mcnemar",
    "mean_estimate",
    "mean_interval",
    "miller_madow_kl",
    "paired_difference",
    "permutation_test",
    "quantile",
    "ratio_interval",
    "ratio_to_baseline",
    "sample_mean",
    "seed_times",
    "share",
    "spread_of_mean",
    "time_to_failure",
]
