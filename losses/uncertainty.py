"""Uncertainty weighting: the weights are parameters that are learned with the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from losses.pairs import detached_pairs
from losses.reduction import mean_over_ranks
from losses.weighting import LossWeighting


class UncertaintyWeighting(LossWeighting):
    """Uncertainty weighting (Kendall et al., Multi-Task Learning Using Uncertainty, CVPR 2018).

    The paper's equation 7 (arXiv 1705.07115) with the log-variances ``s_i``: the total
    ``Σ ½ exp(-s_i) L_i + ½ s_i`` is minimized over the network and over s. The weight is
    ``λ_i = ½ exp(-s_i)`` and the derivative of the total with respect to s_i is ``½ - λ_i L_i``:
    each weighted loss is pulled toward ½. For a cross-entropy the paper has
    ``exp(-s_i) L_i + ½ s_i`` (equation 10), which is the same rule with s_i shifted by log 2; only
    its initial value differs, which is ``initial`` here.

    The log-variances are an ``nn.Parameter``: pass :meth:`parameters` to the optimizer of the
    network, in a group without weight decay (which would pull λ toward ½). ``forward`` returns
    ``λ_i L_i`` with λ constant, plus a term of value 0 whose derivative with respect to s_i is that
    of the total for the mean losses of all ranks. The sum of the returned losses therefore has the
    right gradient for the network and for s. The gradient of s is the same on all ranks, so it
    needs no averaging although the module is outside of ``DistributedDataParallel``. This costs one
    small all-reduce per call; gradient scalers and accumulation work as for any other parameter.

    Args:
        pairs: see :class:`LossWeighting`.
        interval: iterations in a window of the statistics, at least 2.
        initial: initial weights of the two losses; s starts at ``-log(2 initial)``.

    Raises:
        ValueError: see :class:`LossWeighting`.
    """

    def __init__(
        self,
        pairs: Mapping[str, tuple[str, str]],
        interval: int = 100,
        initial: Sequence[float] = (1.0, 1.0),
    ) -> None:
        super().__init__(pairs, initial, interval)
        self.log_variances = nn.Parameter(-torch.log(2 * self.lambdas))
        self._slopes = torch.zeros_like(self.lambdas)

    def current_lambdas(self) -> Tensor:
        return torch.exp(-self.log_variances.detach()) / 2

    def observe(self, losses: Sequence[Tensor]) -> None:
        self.lambdas = self.current_lambdas()
        self._slopes = 0.5 - self.lambdas * mean_over_ranks(detached_pairs(losses))

    def forward(
        self, losses: Mapping[str, Tensor], last_micro_batch: bool = True
    ) -> dict[str, Tensor]:
        """Weight the losses, see :meth:`LossWeighting.forward`; in training, with gradient of s."""
        weighted = super().forward(losses, last_micro_batch)
        if self.training:
            zeros = self._slopes * (self.log_variances - self.log_variances.detach())
            for name, zero in self._by_name(zeros).items():
                weighted[name] = weighted[name] + zero
        return weighted
