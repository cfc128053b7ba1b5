"""What the losses of all trainers share: which weight, divided by what, and how much was kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fortifai.errors import InputError
from fortifai.losses.checks import check_range, check_weight
from fortifai.losses.options import LossOptions
from fortifai.losses.rows import RowLoss
from fortifai.losses.weighing import LossStats, Normalize
from fortifai.weights import AnyWeight, Focal, Truncate


def chosen_weight(
    weight: AnyWeight | None, threshold: float | None, gamma: float | None
) -> AnyWeight:
    """The one that is given of a weight, the threshold of a `Truncate` and the gamma of a `Focal`.

    Raises:
        InputError: Not exactly one is given, or it is out of range.
    """
    given: list[AnyWeight] = [
        *([] if weight is None else [weight]),
        *([] if threshold is None else [Truncate(threshold)]),
        *([] if gamma is None else [Focal(gamma)]),
    ]
    if len(given) != 1:
        raise InputError(
            f"{len(given)} of weight, threshold and gamma are given; give exactly one, such as "
            "threshold=0.9"
        )
    check_weight(given[0])
    return given[0]


def check_labels(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Raise `InputError` that names the first label that is no class, as the batch has it.

    The first of each row is no target, and may be anything.
    """
    targets = F.pad(labels[..., 1:], (1, 0), value=ignore_index)
    check_range(targets, classes, ignore_index, "labels")


class KeptShare:
    """Sum of weights over that of the data's weights, of all added since the last `pop`."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._excess: Tensor | None = None

    def add(self, stats: LossStats) -> None:
        """Adds those of a micro-batch, without waiting for the device."""
        new = torch.stack((stats.kept, stats.weight_sum.to(stats.kept)))
        if self._sums is None or self._excess is None:
            self._sums, self._excess = new, torch.zeros_like(new)
            return
        # Kahan's sum: a plain one in float32 would stand still after 2^24 tokens, and not every
        # device has float64
        more = new - self._excess
        total = self._sums + more
        self._excess = (total - self._sums) - more
        self._sums = total

    def pop(self) -> Tensor | None:
        """Both sums, (2,); None if nothing was added. Without weights the second counts labels."""
        sums = self._sums
        self._sums = self._excess = None
        return sums


def share_of(sums: Tensor) -> float:
    """The share from what `KeptShare.pop` gives; NaN where nothing counts. Waits."""
    kept, of_data = sums.tolist()
    return kept / of_data if of_data else float("nan")


class Counted:
    """A loss that divides by the labels of the whole batch and counts what it keeps.

    Args:
        weight: Maps log p_t to [0, 1]; see `fortifai.weights`.
        threshold: Short for ``Truncate(threshold)``.
        gamma: Short for ``Focal(gamma)``.
        normalize: ``valid``: per valid label, as ForTIFAI's code does; ``weight_sum``: over the
            sum of the data's weights; ``kept``: each micro-batch is divided by its own sum of
            weights and counts in proportion to its valid labels.
        **terms: ``label_smoothing``, ``confidence_penalty``, ``z_loss``, ``gem_beta``; see
            `fortifai.losses.rows.RowLoss`.

    Attributes:
        weight: The one that is meant.
        options: Of the loss; its reduction is what `divided` wants.
        shares: Told of every micro-batch that is trained on; add a `KeptShare` of your own to read
            it at your own pace.
        whole: Asked in training, where the caller does not know the labels of the whole batch, for
            the loss of a micro-batch from the sum of its losses (with ``kept`` its mean by weight
            times its labels) and its stats. None: that sum over `items` of the micro-batch.

    Raises:
        InputError: Not exactly one of weight, threshold and gamma is given, or one of the others is
            out of range.
    """

    def __init__(
        self,
        weight: AnyWeight | None = None,
        *,
        threshold: float | None = None,
        gamma: float | None = None,
        normalize: Normalize = "valid",
        **terms: float,
    ) -> None:
        self.weight = chosen_weight(weight, threshold, gamma)
        self.options = LossOptions(
            normalize=normalize,
            reduction="mean" if normalize == "kept" else "sum",
            **RowLoss(**terms).terms,
        )
        self.whole: Callable[[Tensor, LossStats], Tensor] | None = None
        self._share = KeptShare()
        self.shares = [self._share]

    def items(self, stats: LossStats) -> Tensor:
        """What a micro-batch counts: its labels, or with ``weight_sum`` the sum of its weights."""
        return stats.weight_sum if self.options.normalize == "weight_sum" else stats.valid

    def count(self, stats: LossStats) -> None:
        """Tells `shares` of a micro-batch; not in evaluation, which trains on nothing."""
        if torch.is_grad_enabled():
            for share in self.shares:
                share.add(stats)

    def divided(self, loss: Tensor, stats: LossStats, items: Tensor | float | None) -> Tensor:
        """The share of a micro-batch in the loss of the whole batch.

        Args:
            loss: Of the micro-batch, by the reduction of `options`.
            stats: Of the micro-batch.
            items: `items` of the whole batch, micro-batches and processes together, over the
                number of processes where gradients are averaged over them; None: those of this
                micro-batch, or what `whole` says. The loss of none is 0.
        """
        total = loss * stats.valid if self.options.normalize == "kept" else loss
        if items is None:
            if self.whole is not None and torch.is_grad_enabled():
                return self.whole(total, stats)
            items = self.items(stats)
        # divided by the number of processes, one label may be less than 1
        if isinstance(items, Tensor):
            items = items.to(loss.device)
            return total / torch.where(items > 0, items, torch.ones_like(items))
        return total / (items if items > 0 else 1)

    def pop_kept_share(self) -> float:
        """Sum of weights over labels, of all trained on since the last call; NaN for none.

        Where the data have weights, over the sum of these.
        Evaluation does not count. Of several processes each has its own. Waits for the device once;
        the steps in between do not.
        """
        sums = self._share.pop()
        return float("nan") if sums is None else share_of(sums)


ARGUMENTS = ("weight", "threshold", "gamma", "normalize", *RowLoss().terms)
"""Of `Counted`, for trainers that take them beside their own."""
