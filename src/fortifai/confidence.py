"""The confidence weights: how sure the model is of a datum decides how much it learns from it.

A weight maps the log-probability of what stands there, log p_t, to [0, 1]. The loss of a token is
then ``weight(log p_t) * (-log p_t)``. To add one, write a callable of this shape; nothing else
needs to know it. A log p that is not a number must give a weight that is none either, or a model
that has diverged would look like one that has nothing left to learn.

A weight may declare two things about itself, by attributes that `elementwise` and `with_entropy`
set on a function:

- ``elementwise = True``: the weight of a datum depends on that datum alone, so that the losses on
  hidden states may ask for weights chunk by chunk and need not compute anything twice.
- ``entropy_top_k``: it is called as ``weight(log_p, entropy)``; see `EntropyWeight`.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from fortifai.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Weight(Protocol):
    """Maps log-probabilities to weights."""

    def __call__(self, log_p: Tensor) -> Tensor:
        """Weight of each datum.

        Args:
            log_p: Log-probabilities in nats, float32 or float64, any shape, in [-inf, 0].

        Returns:
            Weights in [0, 1], same shape and dtype. One that carries a gradient is differentiated
            as part of the loss; one that shall not must be detached.
        """
        ...


class EntropyWeight(Protocol):
    """Maps log-probabilities and the entropies of the predictions to weights.

    Attributes:
        entropy_top_k: How many of the likeliest classes the entropy is of, their probabilities
            made to sum to 1; None for all.
    """

    @property
    def entropy_top_k(self) -> int | None:
        """See the class."""
        ...

    def __call__(self, log_p: Tensor, entropy: Tensor) -> Tensor:
        """Weight of each datum.

        Args:
            log_p: As for `Weight`.
            entropy: Of the prediction, over the logarithm of the number of classes it is of: 0 for
                a certain one, 1 for a uniform one. Same shape and dtype as `log_p`; it carries no
                gradient. Times ``log(top_k)``, or log of all classes, it is in nats.

        Returns:
            As for `Weight`.
        """
        ...


AnyWeight = Weight | EntropyWeight
"""What the losses take."""

_F = TypeVar("_F", bound=Callable[..., Tensor])


def elementwise(function: _F) -> _F:
    """Declare that `function` weighs each datum by its own log p (and entropy) alone.

    The losses on hidden states then compute loss and gradient in one pass. Without it they call the
    function once with all log p, and compute the logits of what it keeps a second time. The
    function must hold no parameters that are trained with the loss.
    """
    # mypy knows no attributes of functions
    function.elementwise = True  # type: ignore[attr-defined]
    return function


def with_entropy(top_k: int | None = None) -> Callable[[_F], _F]:
    """Declare that a function is an `EntropyWeight` of the `top_k` likeliest classes; None: of all.

    Raises:
        InputError: `top_k` is neither None nor a whole number of 2 or more.
    """
    _check_top_k(top_k)

    def declare(function: _F) -> _F:
        # as above
        function.entropy_top_k = top_k  # type: ignore[attr-defined]
        return function

    return declare


def is_elementwise(weight: AnyWeight) -> bool:
    """Whether `weight` declares that it weighs each datum by itself."""
    return getattr(weight, "elementwise", False) is True


def uses_entropy(weight: AnyWeight) -> bool:
    """Whether `weight` declares that it needs the entropy of the prediction."""
    return hasattr(weight, "entropy_top_k")


def _check_top_k(top_k: object) -> None:
    if top_k is None:
        return
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 2:
        raise InputError(
            f"top_k is {top_k!r}; the entropy is of that many likeliest classes: give a whole "
            "number, 2 or more, or None for all"
        )


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{name} is {value!r}; it must be a number")


@dataclasses.dataclass(frozen=True, slots=True)
class Keep:
    """Weight 1: cross entropy."""

    elementwise: ClassVar[bool] = True

    def __call__(self, log_p: Tensor) -> Tensor:
        """Ones."""
        return torch.ones_like(log_p, requires_grad=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Truncate:
    """Truncated cross entropy: 1 where p <= threshold, else 0, without gradient.

    ForTIFAI (2509.08972), section 2.2.1. The comparison is log p <= log(threshold), where
    probabilities near 0 do not underflow; a p within the rounding of log p from the threshold may
    fall on either side. A threshold of 1 keeps all, one of 0 only what has p = 0.

    Raises:
        InputError: `threshold` is not a number in [0, 1].
    """

    threshold: float = 0.9
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_number("threshold", self.threshold)
        if not 0 <= self.threshold <= 1:  # false for NaN, too
            raise InputError(
                f"threshold is {self.threshold}; it is a probability and must lie in [0, 1]"
            )

    def __call__(self, log_p: Tensor) -> Tensor:
        """Ones where p <= threshold, zeros elsewhere."""
        if self.threshold == 1:
            level = math.inf  # not 0: a log p that rounding put above 0 is kept, too
        else:
            level = math.log(self.threshold) if self.threshold > 0 else -math.inf
        # not (log p > level) instead of log p <= level: what is not a number stays in the loss
        return (~(log_p.detach() > level)).to(log_p.dtype)


@dataclasses.dataclass(frozen=True, slots=True)
class Focal:
    """Focal loss: (1 - p)^gamma.

    ForTIFAI (2509.08972), appendix A, after 1708.02002. The weight carries gradient, as in both,
    unless `detach_weight`.

    Raises:
        InputError: `gamma` is not a finite number of 0 or more.
    """

    gamma: float = 2.0
    detach_weight: bool = False
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_number("gamma", self.gamma)
        if not 0 <= self.gamma < math.inf:
            raise InputError(f"gamma is {self.gamma}; it must be a finite number, 0 or more")

    def __call__(self, log_p: Tensor) -> Tensor:
        """(1 - p)^gamma, without the cancellation of 1 - p near p = 1."""
        log_p = log_p.detach() if self.detach_weight else log_p
        if self.gamma == 0:
            return torch.ones_like(log_p, requires_grad=False)
        not_p = -torch.expm1(log_p)
        # The slopes of x^gamma at x = 0 are infinite (the first below gamma = 1, the second below
        # 2), and rounding may put x below 0: a certain datum has weight and slopes 0.
        certain = not_p <= 0
        return torch.where(certain, 0.0, torch.where(certain, 1.0, not_p) ** self.gamma)


@dataclasses.dataclass(frozen=True, slots=True)
class DFT:
    """Dynamic fine-tuning: p, without gradient.

    2508.05629: the weight undoes the 1 / p in the gradient of -log p, so that unlikely
    tokens no longer dominate a step.
    """

    elementwise: ClassVar[bool] = True

    def __call__(self, log_p: Tensor) -> Tensor:
        """The probabilities themselves."""
        return log_p.detach().exp()


@dataclasses.dataclass(frozen=True, slots=True)
class EAFT:
    """Entropy-adaptive fine-tuning: the entropy of the prediction, without gradient.

    2601.02151: (H / log k)^alpha, with H of the k = 20 likeliest classes as there. A token on which
    the model is sure of something else (low p, low entropy) counts little.

    Raises:
        InputError: `alpha` is negative or not finite; `top_k` is neither None, for all classes, nor
            a whole number of 2 or more.
    """

    alpha: float = 1.0
    top_k: int | None = 20
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_number("alpha", self.alpha)
        if not 0 <= self.alpha < math.inf:
            raise InputError(f"alpha is {self.alpha}; it must be a finite number, 0 or more")
        _check_top_k(self.top_k)

    @property
    def entropy_top_k(self) -> int | None:
        """How many of the likeliest classes the entropy is of."""
        return self.top_k

    def __call__(self, log_p: Tensor, entropy: Tensor) -> Tensor:
        """entropy^alpha; rounding of it below 0 or above 1 is cut."""
        return entropy.detach().clamp(0.0, 1.0) ** self.alpha


@dataclasses.dataclass(frozen=True, slots=True)
class TruncateQuantile:
    """1 for the share `quantile` of the data that is least probable, 0 for the rest.

    For densities, which have no 1 to compare with: points whose log-density lies above the
    `quantile`-th quantile of all those given are left out. ForTIFAI (2509.08972), Algorithm 2,
    with 0.8. Points that tie with the quantile are kept.

    Raises:
        InputError: `quantile` is not a number in (0, 1].
    """

    quantile: float = 0.8

    def __post_init__(self) -> None:
        _check_number("quantile", self.quantile)
        if not 0 < self.quantile <= 1:
            raise InputError(
                f"quantile is {self.quantile}; it is the share that is kept and must lie in (0, 1]"
            )

    def __call__(self, log_p: Tensor) -> Tensor:
        """Ones up to the quantile of all of `log_p`, any shape; zeros above it."""
        flat = log_p.detach().flatten()
        # the last value that linear interpolation, NumPy's percentile, would leave below it
        rank = math.floor(self.quantile * (len(flat) - 1)) + 1
        level = torch.kthvalue(flat, rank).values
        return (~(log_p.detach() > level)).to(log_p.dtype)


@dataclasses.dataclass(frozen=True, slots=True)
class Dynamic:
    """Truncation whose threshold is read off the model's own confidences.

    Two Gaussians are fitted to the confidences p of some training data; the threshold is where
    their weighted densities cross between the two means: right of it lies what the model is
    already sure of. ForTIFAI's code does so (2509.08972, caption of Fig. 9). A `Dynamic` is no
    weight yet: whoever trains settles it, as often as it pleases.

    Attributes:
        rows: How many training rows (blocks of text, images) the confidences are taken from.

    Raises:
        InputError: `rows` is not a whole number of 1 or more.
    """

    rows: int = 2048

    def __post_init__(self) -> None:
        if isinstance(self.rows, bool) or not isinstance(self.rows, int) or self.rows < 1:
            raise InputError(f"rows is {self.rows!r}; it must be a whole number, 1 or more")

    def settle(self, confidences: NDArray[np.floating[Any]]) -> Truncate:
        """The truncation for these confidences.

        Args:
            confidences: Probabilities in [0, 1], any shape.

        Returns:
            Truncation at the crossing; one that keeps all where no threshold parts them: all
            confidences are equal, or one Gaussian lies above the other all the way.
        """
        # here, because the losses must import without SciPy and scikit-learn
        from fortifai.stats import gaussian_crossing

        crossing = gaussian_crossing(confidences)
        return Truncate(1.0 if crossing is None else min(max(crossing, 0.0), 1.0))


def keeps_all(weight: AnyWeight) -> bool:
    """Whether `weight` is 1 for every datum, so that the loss is cross entropy exactly."""
    return (
        isinstance(weight, Keep)
        or (isinstance(weight, Truncate) and weight.threshold == 1)
        or (isinstance(weight, TruncateQuantile) and weight.quantile == 1)
        or (isinstance(weight, Focal) and weight.gamma == 0)
    )
