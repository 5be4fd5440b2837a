"""A moving average of a detector's weights, which is evaluated in their place."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class AveragedWeights:
    """An exponential moving average of parameters and buffers, kept in a twin of the detector.

    After iteration n the average moves to the weights by ``1 - d`` with ``d = min(decay, (1 + n) /
    (10 + n))``: it follows fast as long as there is little to average (Abadi et al. 2015). The
    statistics of batch norm are averaged with the weights that they belong to; what is no floating
    point number is copied.

    Args:
        detector: is copied as it is; what is frozen in it stays equal.
        decay: in 0 .. 1, for example 0.999: about ``1 / (1 - decay)`` iterations are averaged.

    Attributes:
        detector: the twin; nothing in it requires a gradient.
    """

    def __init__(self, detector: nn.Module, decay: float) -> None:
        self.detector = copy.deepcopy(detector).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def follow(self, detector: nn.Module, iterations: int) -> None:
        """Move the average to the detector's weights after an iteration. Waits for no device.

        Args:
            iterations: how many there were before this one.
        """
        keep = min(self.decay, (1 + iterations) / (10 + iterations))
        averages, values = _tensors(self.detector), _tensors(detector)
        floats = [tensor.is_floating_point() for tensor in averages]
        torch._foreach_lerp_(_chosen(averages, floats), _chosen(values, floats), 1 - keep)
        for average, value, is_float in zip(averages, values, floats, strict=True):
            if not is_float:
                average.copy_(value)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _chosen(tensors: list[Tensor], chosen: list[bool]) -> list[Tensor]:
    return [tensor for tensor, keep in zip(tensors, chosen, strict=True) if keep]
