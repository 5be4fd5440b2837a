"""How every element-wise loss begins (in float32) and ends (with a reduction)."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """float32 and float64 stay as they are, everything else becomes float32.

    Losses are sums of many small terms: half and bfloat16 lose them, with autocast or without.
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
    """Refuse two tensors that would only fit by broadcasting; ``names`` says which they are.

    Raises:
        ValueError: if the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"Invalid shapes: {names} must be equal in shape, got {first.shape} and {second.shape}"
        )
