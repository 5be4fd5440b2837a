"""Self-balancing: the box loss is scaled to the value of the classification loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from losses.pairs import detached_pairs, usable_or
from losses.reduction import mean_over_ranks
from losses.weighting import LossWeighting


class SelfBalancing(LossWeighting):
    """The self-balancing of Rank & Sort Loss (Oksuz et al., ICCV 2021) for any pair of losses.

    The paper's rule (arXiv 2107.11669), in every iteration: ``λ_box = L_cls / L_box`` (the
    values, without gradient) and ``λ_cls = 1``; the first loss of a pair is ``cls``, the second
    ``box``. Both weighted losses then have the value of the first.

    The losses of an iteration are the means over the ranks (one small all-reduce per call; in the
    authors' code each process balances its own). With gradient accumulation, each micro-batch is
    balanced on its own. If a loss is 0 or not finite, as in a batch without objects, the weights of
    the previous call are applied.

    Args:
        pairs: ``{"head": ("classification", "bbox_regression")}``: the second loss of each pair is
            the one whose weight is adjusted.
        interval: iterations in a window of the statistics, at least 2.

    Raises:
        ValueError: see :class:`LossWeighting`.
    """

    def __init__(self, pairs: Mapping[str, tuple[str, str]], interval: int = 100) -> None:
        super().__init__(pairs, (1.0, 1.0), interval)

    def observe(self, losses: Sequence[Tensor]) -> None:
        values = mean_over_ranks(detached_pairs(losses))
        cls, box = values.unbind(dim=1)
        balanced = torch.stack([torch.ones_like(cls), cls / box], dim=1)
        self.lambdas = usable_or(balanced, self.lambdas)
