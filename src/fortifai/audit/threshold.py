"""Which threshold to truncate at, read off a model's confidences."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fortifai.audit import model as model_
from fortifai.errors import InputError
from fortifai.evals.confidence import histogram
from fortifai.weights import Dynamic

if TYPE_CHECKING:
    from fortifai.models.causal_lm import CausalLM

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """Thresholds for a model and a text.

    Attributes:
        crossing: Where the two Gaussians fitted to the confidences on the real text cross
            (`fortifai.weights.Dynamic`); None where they do not, and nothing should be dropped.
        quantile: The confidence above which the share `dropped` of the model's own tokens lies.
        dropped: That share.
        crossing_drops: Shares of the real text's tokens and of the model's own above `crossing`.
        quantile_drops: The same above `quantile`.
        thresholds: The thresholds of the shares below.
        real: Share of the real text's tokens that each threshold drops.
        own: Share of the model's own tokens that each drops.
        histograms: Counts of confidences in the 20 equal bins of [0, 1], by text.
        tokens: Tokens of each text.
    """

    crossing: float | None
    quantile: float
    dropped: float
    crossing_drops: tuple[float, float]
    quantile_drops: tuple[float, float]
    thresholds: tuple[float, ...]
    real: tuple[float, ...]
    own: tuple[float, ...]
    histograms: dict[str, tuple[int, ...]]
    tokens: int


def suggest_threshold(
    lm: CausalLM,
    text: str,
    *,
    subject: str = "the model",
    dropped: float = 0.25,
    windows: int = 512,
    size: int | None = None,
    seed: int = 0,
    tick: model_.Tick = lambda what, done, total: None,
) -> Suggestion:
    """What each threshold would drop, and two rules for choosing one.

    Args:
        lm: The model that will be trained.
        text: Real text of the kind that it will be trained on.
        subject: What to call the model.
        dropped: Share of the model's own tokens that the quantile rule drops.
        windows: As in `audit_model`.
        size: As in `audit_model`.
        seed: As in `audit_model`.
        tick: As in `audit_model`.

    Raises:
        InputError: `dropped` is not in (0, 1), the text is too short, or the model's
            log-probabilities are not finite.
    """
    check_dropped(dropped)
    passages = model_.cut(lm, text, windows=windows, size=size)
    wrote = model_.write(lm, passages, subject, seed=seed, tick=tick)
    real = np.exp(np.concatenate([wrote.human, wrote.more]).ravel())
    own = np.exp(wrote.own.ravel())
    settled = Dynamic().calibrate(real).threshold
    quantile = float(np.quantile(own, 1 - dropped))
    return Suggestion(
        None if settled == 1 else settled,
        quantile,
        dropped,
        (_above(real, settled), _above(own, settled)),
        (_above(real, quantile), _above(own, quantile)),
        THRESHOLDS,
        tuple(_above(real, threshold) for threshold in THRESHOLDS),
        tuple(_above(own, threshold) for threshold in THRESHOLDS),
        {
            "real text": tuple(histogram(np.log(real)).tolist()),
            "its own text": tuple(histogram(wrote.own.ravel()).tolist()),
        },
        own.size,
    )


def check_dropped(dropped: float) -> None:
    """Refuse a share to drop that is none.

    Raises:
        InputError: It is not in (0, 1).
    """
    if not 0 < dropped < 1:  # true for NaN, too
        raise InputError(
            f"the share to drop is {dropped}; it must lie between 0 and 1, such as 0.25"
        )


def _above(p: NDArray[np.float64], threshold: float) -> float:
    """Share of tokens above a threshold, which `Truncate` drops."""
    return float((p > threshold).mean())
