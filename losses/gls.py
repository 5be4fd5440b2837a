"""Geometric loss strategy: the geometric mean of the losses replaces their sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from losses.pairs import detached_pairs, usable_or
from losses.reduction import mean_over_ranks
from losses.weighting import LossWeighting


class GLS(LossWeighting):
    """Geometric Loss Strategy (Chennupati et al., MultiNet++, CVPR Workshops 2019).

    The paper's rule (arXiv 1904.08492): the total of n losses is their geometric mean,
    ``G = (L_1 · … · L_n)^(1/n)``, here of the n = 2 losses of each pair. Its gradient is
    ``Σ G / (n L_i) · ∇L_i``, so the weights ``λ_i = G / (n L_i) = ½ sqrt(L_other / L_i)``, held
    constant, give exactly this gradient, and ``Σ λ_i L_i = G`` gives the same total. Both weighted
    losses of a pair have the same value, and multiplying a raw loss by c multiplies the total by
    ``sqrt(c)``: no scale is preferred.

    The losses of an iteration are the means over the ranks (one small all-reduce per call), so the
    ranks together follow the gradient of the geometric mean of the mean losses. With gradient
    accumulation, each micro-batch has its own geometric mean. If a loss is 0 or not finite, the
    weights of the previous call are applied.

    Args:
        pairs: see :class:`LossWeighting`.
        interval: iterations in a window of the statistics, at least 2.

    Raises:
        ValueError: see :class:`LossWeighting`.
    """

    def __init__(self, pairs: Mapping[str, tuple[str, str]], interval: int = 100) -> None:
        super().__init__(pairs, (0.5, 0.5), interval)

    def observe(self, losses: Sequence[Tensor]) -> None:
        values = mean_over_ranks(detached_pairs(losses))
        self.lambdas = usable_or(torch.sqrt(values.flip(1) / values) / 2, self.lambdas)
