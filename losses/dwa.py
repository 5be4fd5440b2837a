"""Dynamic Weight Average: more weight for the loss that decreases more slowly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from losses.pairs import usable_or
from losses.weighting import LossWeighting


class DWA(LossWeighting):
    """Dynamic Weight Average (Liu et al., CVPR 2019).

    The rule of *End-to-End Multi-Task Learning with Attention* (arXiv 1803.10704), equation 7:
    ``λ_k(t) = K exp(w_k(t-1) / T) / Σ_i exp(w_i(t-1) / T)`` with
    ``w_k(t-1) = L_k(t-1) / L_k(t-2)``, where ``L_k(t)`` is the mean of the raw loss over epoch t,
    K = 2 in each pair and T the temperature; the first two epochs have weights of 1. The weights of
    a pair sum to K.

    Here a window of ``interval`` iterations replaces an epoch: set ``interval`` to the iterations
    per epoch for the paper's timing. If a ratio is not finite, the weights stay unchanged.

    Args:
        pairs: see :class:`LossWeighting`.
        interval: iterations in a window, at least 2.
        temperature: the paper's T, 2.0 there; larger values keep the weights closer to 1.

    Raises:
        ValueError: for a temperature that is not positive; see :class:`LossWeighting`.
    """

    acts_per_window = True
    previous: Tensor  # (pairs, 2): means of the raw losses in the previous window

    def __init__(
        self,
        pairs: Mapping[str, tuple[str, str]],
        interval: int = 100,
        temperature: float = 2.0,
    ) -> None:
        super().__init__(pairs, (1.0, 1.0), interval)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a positive number, got {temperature!r}")
        self.temperature = float(temperature)
        self.register_buffer("previous", torch.zeros(len(self.pairs), 2))

    def next_lambdas(self, mean: Tensor, std: Tensor) -> Tensor:  # noqa: ARG002
        raw = mean / self.lambdas  # the weights were constant in the window
        rates = raw / self.previous  # not finite after the first window: the weights are kept
        self.previous = raw
        return usable_or(2 * torch.softmax(rates / self.temperature, dim=1), self.lambdas)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}"

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "temperature": self.temperature}
