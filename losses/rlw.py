"""Random loss weighting: the baseline that every other method should beat."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from losses.weighting import LossWeighting


class RandomWeights(LossWeighting):
    """Random Loss Weighting (Lin et al., Reasonable Effectiveness of Random Weighting, TMLR 2022).

    The paper's RLW (arXiv 2111.10603) with its normal distribution, in every iteration:
    ``z_i ~ N(0, 1)`` and ``λ = softmax(z)``. Here ``λ = n · softmax(z)`` over the n = 2 losses of a
    pair, so that the weights sum to n and their mean is 1, as with fixed weights of 1: at the same
    learning rate, a comparison then compares the methods and not the scale of the total.

    The numbers are drawn on the host by a separate generator, seeded by the seed and the number of
    the iteration: all ranks agree without communication, a resumed run draws what an uninterrupted
    one would have drawn, and no other random stream is affected. The micro-batches of an iteration
    share their weights.

    Args:
        pairs: see :class:`LossWeighting`.
        interval: iterations in a window of the statistics, at least 2.
        seed: seed of the random numbers.

    Raises:
        ValueError: see :class:`LossWeighting`.
    """

    def __init__(
        self, pairs: Mapping[str, tuple[str, str]], interval: int = 100, seed: int = 0
    ) -> None:
        super().__init__(pairs, (1.0, 1.0), interval)
        self.seed = seed

    def observe(self, losses: Sequence[Tensor]) -> None:  # noqa: ARG002
        digest = hashlib.blake2b(f"{self.seed}/{self.iterations}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        drawn = torch.randn(len(self.pairs), 2, generator=generator)
        weights = 2 * torch.softmax(drawn, dim=1)
        self.lambdas = weights.to(self.lambdas.device, non_blocking=True)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, seed={self.seed}"

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "seed": self.seed}
