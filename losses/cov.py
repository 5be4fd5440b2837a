"""CoV weighting: more weight for the loss with the larger relative variation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from losses.pairs import detached_pairs, usable_or
from losses.reduction import mean_over_ranks
from losses.weighting import LossWeighting


class CoVWeighting(LossWeighting):
    """Multi-Loss Weighting with Coefficient of Variations (Groenendijk et al., WACV 2021).

    The paper's rule (arXiv 2009.01717), in every iteration t: the loss ratio
    ``l_i(t) = L_i(t) / mean(L_i before t)`` compares a raw loss with its past; the weight is the
    ratio's coefficient of variation, ``λ_i = c_i / Σ c`` with ``c_i = std(l_i) / mean(l_i)``, with
    mean and population standard deviation over all iterations before t (Welford's recursion). The
    ratio of the first iteration is 1, and the first two iterations have equal weights. Here λ is
    multiplied by n = 2, the number of losses in a pair, so that the weights sum to n as with fixed
    weights of 1 (in the paper, to 1).

    The losses of an iteration are the means over the ranks (one small all-reduce per iteration) and
    over its micro-batches. If a loss is 0 or not finite, the iteration is skipped.

    Args:
        pairs: see :class:`LossWeighting`.
        interval: iterations in a window of the statistics, at least 2.

    Raises:
        ValueError: see :class:`LossWeighting`.
    """

    seen: Tensor  # (pairs, 1): number of iterations counted
    loss_mean: Tensor  # (pairs, 2): mean of the raw losses
    ratio_mean: Tensor  # (pairs, 2)
    ratio_squares: Tensor  # (pairs, 2): sum of squared deviations from the mean

    def __init__(self, pairs: Mapping[str, tuple[str, str]], interval: int = 100) -> None:
        super().__init__(pairs, (1.0, 1.0), interval)
        count = len(self.pairs)
        self.register_buffer("seen", torch.zeros(count, 1))
        for name in ("loss_mean", "ratio_mean", "ratio_squares"):
            self.register_buffer(name, torch.zeros(count, 2))
        self._sum = torch.zeros(count, 2)

    def observe(self, losses: Sequence[Tensor]) -> None:
        values = detached_pairs(losses)
        self._sum = values if self._micro_batches == 0 else self._sum + values

    def end_iteration(self, micro_batches: int) -> None:
        losses = mean_over_ranks(self._sum / micro_batches)
        usable = (losses.isfinite() & (losses > 0)).all(dim=1, keepdim=True)
        losses = torch.where(usable, losses, 1.0)
        ratios = torch.where(self.seen > 0, losses / self.loss_mean, 1.0)
        seen = self.seen + 1
        deviation = ratios - self.ratio_mean
        ratio_mean = self.ratio_mean + deviation / seen
        squares = self.ratio_squares + deviation * (ratios - ratio_mean)
        loss_mean = self.loss_mean + (losses - self.loss_mean) / seen

        self.ratio_mean = torch.where(usable, ratio_mean, self.ratio_mean)
        self.ratio_squares = torch.where(usable, squares, self.ratio_squares)
        self.loss_mean = torch.where(usable, loss_mean, self.loss_mean)
        self.seen = torch.where(usable, seen, self.seen)

        variation = torch.sqrt(self.ratio_squares / self.seen) / self.ratio_mean
        shares = 2 * variation / variation.sum(dim=1, keepdim=True)
        self.lambdas = usable_or(shares, self.lambdas)
