"""Shared parts of element-wise losses: computation in float32, shape checks and reduction."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Convert to float32 unless the values are float32 or float64.

    Losses are sums of many small terms, which half and bfloat16 lose, with or without autocast.
    """
    if values.dtype in (torch.float32, torch.float64):
        return values
    return values.float()


def reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    """Apply ``none``, ``mean`` or ``sum``; the mean of no elements is 0, with a gradient.

    Raises:
        ValueError: for any other reduction.
    """
    if reduction == "none":
        return loss
    if reduction == "sum" or (reduction == "mean" and loss.numel() == 0):
        return loss.sum()
    if reduction == "mean":
        return loss.mean()
    raise ValueError(f"Invalid reduction '{reduction}'; choose none, mean or sum")


def check_same_shape(first: Tensor, second: Tensor, names: str) -> None:
    """Check that two tensors have the same shape, without broadcasting; ``names`` names them.

    Raises:
        ValueError: the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"Invalid shapes: {names} must have the same shape, got {first.shape} and "
            f"{second.shape}"
        )
