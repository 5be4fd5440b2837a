"""Fixed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from losses.weighting import LossWeighting


class FixedWeights(LossWeighting):
    """Constant weights; statistics of the losses are recorded as in the other methods.

    Args:
        pairs: see :class:`LossWeighting`.
        weights: the weights of the two losses, the same for every pair.
        interval: iterations in a window, at least 2.

    Raises:
        ValueError: see :class:`LossWeighting`.
    """

    def __init__(
        self,
        pairs: Mapping[str, tuple[str, str]],
        weights: Sequence[float] = (1.0, 1.0),
        interval: int = 100,
    ) -> None:
        super().__init__(pairs, weights, interval)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weights={self.initial}"

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "weights": self.initial}
