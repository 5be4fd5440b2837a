"""Adaptive Loss Weight Adjustment: statistics of two losses set the weight of the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from losses.weighting import LossWeighting, whole_number

VARIANTS = (1, 2)
UPDATES = ("replace", "multiplicative", "unweighted")


class ALWA(LossWeighting):
    """Adaptive Loss Weight Adjustment (the paper's Algorithm 1) for any pairs of losses.

    After every ``interval`` iterations the statistics ``cls`` and ``reg`` of the two *weighted*
    losses of a pair are compared. If ``cls > reg``, the weight of the first is lowered, so that the
    second gets a larger share of the gradient. The weight of the second never changes. A window
    whose statistics are not finite, or whose ``reg`` is 0, leaves the weight unchanged.

    Args:
        pairs: ``{"head": ("classification", "bbox_regression")}``; the first loss of each pair is
            the one whose weight is adjusted.
        variant: 1 compares mean + standard deviation (advised for two-stage detectors),
            2 the standard deviation (advised for one-stage detectors).
        interval: iterations in a window, the paper's C; at least 2.
        initial: initial weights of the two losses, for every pair.
        update: ``replace``, the paper's: weight <- reg / cls if cls > reg. It ignores the old
            weight, with which cls was measured, so it normally alternates between r, the ratio of
            the raw statistics, and 1.
            ``multiplicative``: weight <- weight * reg / cls if cls > reg; it can only decrease.
            ``unweighted``: weight <- weight * reg / cls, never above its initial value; this is
            the rule on the raw losses, min(1, r) with initial weights of 1, and follows r in both
            directions. Other initial weights give min(initial first, initial second * r).

    Raises:
        ValueError: for an unknown variant or update; see :class:`LossWeighting` for the others.
    """

    acts_per_window = True

    def __init__(
        self,
        pairs: Mapping[str, tuple[str, str]],
        variant: int = 2,
        interval: int = 100,
        initial: Sequence[float] = (1.0, 1.0),
        update: str = "replace",
    ) -> None:
        super().__init__(pairs, initial, interval)
        number = whole_number(variant)
        if number not in VARIANTS:
            raise ValueError(f"variant must be 1 (mean + std) or 2 (std), got {variant!r}")
        if update not in UPDATES:
            raise ValueError(f"update must be one of {', '.join(UPDATES)}, got {update!r}")
        self.variant = number
        self.update = update

    def next_lambdas(self, mean: Tensor, std: Tensor) -> Tensor:
        statistics = mean + std if self.variant == 1 else std
        cls, reg = statistics.unbind(dim=1)
        old, other = self.lambdas.unbind(dim=1)
        new = self._adjusted(old, cls, reg)
        # A weight of 0 would stay 0 forever, and a window with NaN is not usable.
        usable = statistics.isfinite().all(dim=1) & (reg > 0) & (new > 0)
        return torch.stack([torch.where(usable, new, old), other], dim=1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, variant={self.variant}, update={self.update!r}"

    def _identity(self) -> dict[str, Any]:
        options = {"variant": self.variant, "update": self.update, "initial": self.initial}
        return {**super()._identity(), **options}

    def _adjusted(self, old: Tensor, cls: Tensor, reg: Tensor) -> Tensor:
        ratio = reg / cls
        if self.update == "replace":
            return torch.where(cls > reg, ratio, old)  # Algorithm 1, line 14: 1 - (cls - reg) / cls
        if self.update == "multiplicative":
            return torch.where(cls > reg, old * ratio, old)
        return (old * ratio).clamp(max=self.initial[0])
