"""The confidence weights: how confident the model is of a datum decides how much it learns from it.

A weight maps log p_t, the log-probability of the target, to [0, 1]. The loss of a token is then
``weight(log p_t) * (-log p_t)``. The losses take any callable that gets log p, float32 or float64,
any shape, in nats, in [-inf, 0], and returns weights of the same shape. A weight that carries a
gradient is differentiated as part of the loss. Where log p is NaN, the weight must be NaN too, or a
model that has diverged would look like one that has nothing left to learn.

A callable may declare by attributes:

- ``elementwise = True``: the weight of a datum depends on that datum alone and holds no trained
  parameters. The losses on hidden states then compute loss and gradient in one pass; otherwise they
  call the weight once with all log p, and compute the logits of what it keeps a second time.
- ``entropy_top_k``: it is called as ``weight(log_p, entropy)``. The entropy is that of the
  ``entropy_top_k`` likeliest classes (their probabilities made to sum to 1; None for all classes)
  over the logarithm of their number: 0 for a certain prediction, 1 for a uniform one. It has the
  shape and dtype of log p and carries no gradient.
- ``keeps_all``: it is 1 for every datum, so that the loss is cross entropy exactly.

A `Weight` is such a callable that a YAML can name by its `kind`; to add one, write one class. None
needs torch but for the tensors that it is given, so that whoever reads a YAML need not load it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fortifai.errors import InputError, blaming, check_number, check_whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    AnyWeight = Callable[..., Tensor]
else:  # who reads the hints of a weight's fields has no tensor to name
    AnyWeight = Callable[..., Any]
"""What the losses take."""


@dataclass(frozen=True)
class Weight:
    """A weight with a name: a frozen dataclass that checks its parameters when it is made.

        @dataclass(frozen=True)
        class Mine(Weight, kind="mine"):
            level: float = 0.5

    Attributes:
        kind: By which a YAML names it.
        domains: Kinds of data that it can weigh: ``text`` and ``images``, where log p is that of a
            token or pixel, or ``points``, where it is a log-density.
        elementwise: See the module.
        keeps_all: See the module.
    """

    kind: str = field(init=False, repr=False)
    domains: ClassVar[tuple[str, ...]] = ("text", "images")
    elementwise: ClassVar[bool] = False
    __call__: ClassVar[AnyWeight]
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __init_subclass__(cls, kind: str | None = None) -> None:
        super().__init_subclass__()
        if kind is not None:  # a field, by which pydantic tells the classes of a union apart
            cls.kind = field(default=kind, kw_only=True, repr=False)
            cls.__annotations__ = {"kind": Literal.__getitem__(kind), **cls.__annotations__}

    @property
    def keeps_all(self) -> bool:
        """Whether it is 1 for every datum."""
        return False


def check_range(weight: Weight) -> None:
    """Refuse a weight that gives no weights in [0, 1] for log-probabilities from -30 to 0.

    Raises:
        InputError: It does not, or fails.
    """
    import torch  # here: of a weight of this package, which is tested, nobody asks this

    log_p = torch.linspace(-30, 0, 301)
    with torch.no_grad(), blaming(f"the weight {weight.kind!r}", weight):
        entropy = (torch.linspace(1, 0, 301),) if uses_entropy(weight) else ()
        found = weight(log_p, *entropy)
        if getattr(found, "shape", None) != log_p.shape:
            got = tuple(found.shape) if hasattr(found, "shape") else type(found).__name__
            raise InputError(
                f"the weight {weight.kind!r} gave {got} for log-probabilities (301,); return one "
                "weight for each, a tensor of the same shape"
            )
        wrong = ~((found >= 0) & (found <= 1))  # true of NaN, too
        if wrong.any():
            raise InputError(
                f"the weight {weight.kind!r} gave {float(found[wrong][0]):g} for log p = "
                f"{float(log_p[wrong][0]):g}; a weight must be in [0, 1]"
            )


@dataclass(frozen=True)
class Keep(Weight, kind="keep"):
    """Weight 1: cross entropy."""

    domains = ("text", "images", "points")
    elementwise = True

    @property
    def keeps_all(self) -> bool:
        """Always."""
        return True

    def __call__(self, log_p: Tensor) -> Tensor:
        """Ones."""
        return log_p.new_ones(log_p.shape)


@dataclass(frozen=True)
class Truncate(Weight, kind="truncate"):
    """Truncated cross entropy: 1 where p <= threshold, else 0, without gradient.

    ForTIFAI (2509.08972), section 2.2.1. The comparison is log p <= log(threshold), where
    probabilities near 0 do not underflow; a p within the rounding of log p from the threshold may
    fall on either side. A threshold of 1 keeps all, one of 0 only what has p = 0.

    Raises:
        InputError: `threshold` is not a number in [0, 1].
    """

    threshold: float = 0.9
    elementwise = True

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, "[0, 1]")

    @property
    def keeps_all(self) -> bool:
        """Whether the threshold is 1."""
        return self.threshold == 1

    def __call__(self, log_p: Tensor) -> Tensor:
        """Ones where p <= threshold, zeros elsewhere."""
        if self.threshold == 1:
            level = math.inf  # not 0: a log p that rounding put above 0 is kept, too
        else:
            level = math.log(self.threshold) if self.threshold > 0 else -math.inf
        # not (log p > level) instead of log p <= level: what is not a number stays in the loss
        return (~(log_p.detach() > level)).to(log_p.dtype)


@dataclass(frozen=True)
class Focal(Weight, kind="focal"):
    """Focal loss: (1 - p)^gamma.

    ForTIFAI (2509.08972), appendix A, after 1708.02002. The weight carries gradient, as in both,
    unless `detach_weight`.

    Raises:
        InputError: `gamma` is not a finite number of 0 or more.
    """

    gamma: float = 2.0
    detach_weight: bool = False
    elementwise = True

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, "[0, inf)")

    @property
    def keeps_all(self) -> bool:
        """Whether gamma is 0."""
        return self.gamma == 0

    def __call__(self, log_p: Tensor) -> Tensor:
        """(1 - p)^gamma, without the cancellation of 1 - p near p = 1."""
        log_p = log_p.detach() if self.detach_weight else log_p
        if self.gamma == 0:
            return log_p.new_ones(log_p.shape)
        not_p = -log_p.expm1()
        # The slopes of x^gamma at x = 0 are infinite (the first below gamma = 1, the second below
        # 2), and rounding may put x below 0: a certain datum has weight and slopes 0.
        certain = not_p <= 0
        return (not_p.masked_fill(certain, 1.0) ** self.gamma).masked_fill(certain, 0.0)


@dataclass(frozen=True)
class DFT(Weight, kind="dft"):
    """Dynamic fine-tuning: p, without gradient.

    2508.05629: the weight undoes the 1 / p in the gradient of -log p, so that unlikely
    tokens no longer dominate a step.
    """

    domains = ("text",)
    elementwise = True

    def __call__(self, log_p: Tensor) -> Tensor:
        """The probabilities themselves."""
        return log_p.detach().exp()


@dataclass(frozen=True)
class EAFT(Weight, kind="eaft"):
    """Entropy-adaptive fine-tuning: the entropy of the prediction, without gradient.

    2601.02151: (H / log k)^alpha, with H of the k = 20 likeliest classes as there. A token on which
    the model is confident of something else (low p, low entropy) counts little.

    Raises:
        InputError: `alpha` is negative or not finite; `top_k` is neither None, for all classes, nor
            a whole number of 2 or more.
    """

    alpha: float = 1.0
    top_k: int | None = 20
    domains = ("text",)
    elementwise = True

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, "[0, inf)")
        if self.top_k is not None:
            check_whole("top_k", self.top_k, 2, ", or None for all classes")

    @property
    def entropy_top_k(self) -> int | None:
        """How many of the likeliest classes the entropy is of."""
        return self.top_k

    def __call__(self, log_p: Tensor, entropy: Tensor) -> Tensor:
        """entropy^alpha; rounding of it below 0 or above 1 is cut."""
        return entropy.detach().clamp(0.0, 1.0) ** self.alpha


@dataclass(frozen=True)
class TruncateQuantile(Weight, kind="truncate_quantile"):
    """1 for the share `quantile` of the data that is least probable, 0 for the rest.

    For densities, which have no 1 to compare with: points whose log-density lies above the
    `quantile`-th quantile of all those given are left out. ForTIFAI (2509.08972), Algorithm 2,
    with 0.8. Points that tie with the quantile are kept.

    Raises:
        InputError: `quantile` is not a number in (0, 1].
    """

    quantile: float = 0.8
    domains = ("points",)

    def __post_init__(self) -> None:
        check_number("quantile", self.quantile, "(0, 1]")

    @property
    def keeps_all(self) -> bool:
        """Whether the quantile is 1."""
        return self.quantile == 1

    def __call__(self, log_p: Tensor) -> Tensor:
        """Ones up to the quantile of all of `log_p`, any shape; zeros above it."""
        flat = log_p.detach().flatten()
        # the last value that linear interpolation, NumPy's percentile, would leave below it
        rank = math.floor(self.quantile * (len(flat) - 1)) + 1
        level = flat.kthvalue(rank).values
        return (~(log_p.detach() > level)).to(log_p.dtype)


@dataclass(frozen=True)
class TruncateTails(Weight, kind="truncate_tails"):
    """1 for the tails of one Gaussian, |x - mu| >= a sigma, 0 elsewhere.

    ForTIFAI (2509.08972), section 2.2: truncation of the density relative to its peak, which is
    what log p must be here, at exp(-a^2 / 2).

    Raises:
        InputError: `a` is not a number in [0, 38], beyond which that density is 0 in float64.
    """

    a: float
    domains = ("points",)
    elementwise = True

    def __post_init__(self) -> None:
        check_number("a", self.a, "[0, 38]")

    @property
    def _truncate(self) -> Truncate:
        return Truncate(math.exp(-(self.a**2) / 2))

    @property
    def keeps_all(self) -> bool:
        """Whether a is 0."""
        return self._truncate.keeps_all

    def __call__(self, log_p: Tensor) -> Tensor:
        """Ones where log p <= -a^2 / 2, zeros elsewhere."""
        return self._truncate(log_p)


@dataclass(frozen=True)
class Random(Weight, kind="random"):
    """1 for a share of the tokens drawn at random, 0 for the rest: cross entropy of fewer tokens.

    The control of truncation: with `kept` what truncation kept (1 - ``truncated_share`` of its
    fits) as many tokens count in as many updates, whatever the model thinks of them. Each call
    draws anew, from PyTorch's global generator, which a trainer seeds.

    Raises:
        InputError: `kept` is not a number in (0, 1].
    """

    kept: float
    domains = ("text",)

    def __post_init__(self) -> None:
        check_number("kept", self.kept, "(0, 1]")

    @property
    def keeps_all(self) -> bool:
        """Whether `kept` is 1."""
        return self.kept == 1

    def __call__(self, log_p: Tensor) -> Tensor:
        """Ones and zeros; what is not a number stays in the loss."""
        drawn = log_p.new_empty(log_p.shape).uniform_() < self.kept
        return (drawn | log_p.isnan()).to(log_p.dtype)


@dataclass(frozen=True)
class Calibrated(Weight, ABC):
    """Truncation whose threshold is read off the model's own confidences.

    It cannot be called: whoever trains calibrates it, as often as it pleases.

    Attributes:
        rows: How many rows (blocks of text, images) the confidences are taken from.
        own: Whether they are those in what the model writes, or those in what it is trained on.

    Raises:
        InputError: `rows` is not a whole number of 1 or more.
    """

    rows: int = 2048
    own: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_whole("rows", self.rows, 1)

    @abstractmethod
    def calibrate(self, confidences: NDArray[np.floating[Any]]) -> Truncate:
        """The truncation for these confidences.

        Args:
            confidences: Probabilities in [0, 1], any shape.
        """


@dataclass(frozen=True)
class Dynamic(Calibrated, kind="dynamic"):
    """Truncation where the confidences of training data fall into two heaps.

    Two Gaussians are fitted to the confidences p of some training data; the threshold is where
    their weighted densities cross between the two means: right of it the model is confident
    already. ForTIFAI's code does so (2509.08972, caption of Fig. 9).
    """

    def calibrate(self, confidences: NDArray[np.floating[Any]]) -> Truncate:
        """Truncation at the crossing.

        One that keeps all where no threshold parts them: all confidences are equal, or one
        Gaussian lies above the other all the way.
        """
        # here, because the losses must import without SciPy and scikit-learn
        from fortifai.stats import gaussian_crossing

        crossing = gaussian_crossing(confidences)
        return Truncate(1.0 if crossing is None else min(max(crossing, 0.0), 1.0))


@dataclass(frozen=True)
class Fitted(Calibrated, kind="fitted"):
    """Truncation above which a declared share of the model's confidence in its own text lies.

    The quantile rule of ``fortifai threshold``: the model continues pieces of its training text by
    sampling at temperature 1, and the threshold is the 1 - `dropped` quantile of the p of what it
    wrote. In an experiment it is settled before each generation's fit, by the model that the fit
    starts from; no held-out text and no question is looked at. A YAML may also say
    ``{kind: truncate, threshold: fitted}``.

    Raises:
        InputError: `dropped` is not a number in (0, 1), or `rows` is wrong.
    """

    rows: int = 256
    dropped: float = 0.25
    domains = ("text",)
    own = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("dropped", self.dropped, "(0, 1)")

    def calibrate(self, confidences: NDArray[np.floating[Any]]) -> Truncate:
        """Truncation at the quantile; below 1, so that what is certain is always dropped."""
        import numpy as np

        return Truncate(min(float(np.quantile(confidences, 1 - self.dropped)), 1 - 2.0**-24))


WEIGHTS: tuple[type[Weight], ...] = (
    Keep, Truncate, Focal, Dynamic, Fitted, DFT, EAFT, Random, TruncateQuantile, TruncateTails,
)  # fmt: skip
"""Those that a YAML can name without a plugin."""


def is_elementwise(weight: AnyWeight) -> bool:
    """Whether `weight` declares that it weighs each datum by itself."""
    return getattr(weight, "elementwise", False) is True


def uses_entropy(weight: AnyWeight) -> bool:
    """Whether `weight` declares that it needs the entropy of the prediction."""
    return hasattr(weight, "entropy_top_k")


def keeps_all(weight: AnyWeight) -> bool:
    """Whether `weight` declares that it is 1 for every datum."""
    return getattr(weight, "keeps_all", False) is True
