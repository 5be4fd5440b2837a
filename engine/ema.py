"""An exponential moving average (EMA) of a detector's weights, evaluated in their place."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class AveragedWeights:
    """An exponential moving average of parameters and buffers, kept in a copy of the detector.

    After iteration n the average moves to the weights by ``1 - d`` with ``d = min(decay, (1 + n) /
    (10 + n))``: it follows quickly while there is little to average (Abadi et al. 2015). The
    statistics of batch norm are averaged like the weights; tensors that are not floating point are
    copied.

    Args:
        detector: the detector to average; it is copied, and its frozen parts stay equal.
        decay: in 0 .. 1, for example 0.999: about ``1 / (1 - decay)`` iterations are averaged.

    Attributes:
        detector: the averaged copy; no parameter of it requires a gradient.
    """

    def __init__(self, detector: nn.Module, decay: float) -> None:
        self.detector = copy.deepcopy(detector).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def follow(self, detector: nn.Module, iterations: int) -> None:
        """Update the average after an iteration. Does not wait for the device.

        Args:
            detector: the trained detector.
            iterations: number of iterations before this one.
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
