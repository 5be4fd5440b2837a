"""Classification losses: focal, binary cross-entropy and softmax cross-entropy, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.elementwise import at_least_float32, check_same_shape, reduce_loss


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
) -> Tensor:
    """Compute the focal loss, with the values of ``torchvision.ops.sigmoid_focal_loss``.

    For half and bfloat16 inputs the result is float32; torchvision's keeps the input's type.

    Args:
        inputs: logits of any shape.
        targets: of the same shape, 1 for the positive class, 0 for the negative (or between).
        alpha: weight of the positives in 0..1, with 1 - alpha for the negatives; -1: no weights.
        gamma: exponent of the modulating factor, not negative; 0 gives the cross-entropy.
        reduction: ``none``, ``mean`` or ``sum``; the mean of no elements is 0.

    Raises:
        ValueError: for different shapes, an alpha or gamma out of range, an unknown reduction.

    Source: Lin et al., https://arxiv.org/abs/1708.02002, equation 5.
    """
    if not 0 <= alpha <= 1 and alpha != -1:
        raise ValueError(f"Invalid alpha value: {alpha}; choose a number in 0..1, or -1 for none")
    if not gamma >= 0:
        raise ValueError(f"Invalid gamma value: {gamma}; choose a non-negative number")
    logits, labels = at_least_float32(inputs), at_least_float32(targets)
    cross_entropy = binary_cross_entropy_with_logits(logits, labels, reduction="none")
    probability = torch.sigmoid(logits)
    miss = probability * (1 - labels) + (1 - probability) * labels  # 1 - p_t
    # The gradient of 0**gamma is infinite for gamma < 1.
    loss = miss.clamp(min=1e-37) ** gamma * cross_entropy
    if alpha >= 0:
        loss = (alpha * labels + (1 - alpha) * (1 - labels)) * loss
    return reduce_loss(loss, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,  # noqa: A002
    target: Tensor,
    reduction: str = "mean",
) -> Tensor:
    """Compute ``torch.nn.functional.binary_cross_entropy_with_logits`` in float32.

    Args:
        input: logits of any shape.
        target: of the same shape, in 0..1.
        reduction: ``none``, ``mean`` or ``sum``; the mean of no elements is 0.

    Raises:
        ValueError: for different shapes or an unknown reduction.
    """
    check_same_shape(input, target, "logits and targets")
    logits, labels = at_least_float32(input), at_least_float32(target)
    loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return reduce_loss(loss, reduction)


def cross_entropy(
    input: Tensor,  # noqa: A002
    target: Tensor,
    reduction: str = "mean",
) -> Tensor:
    """Compute ``torch.nn.functional.cross_entropy`` of class indices, in float32.

    Args:
        input: ``(N, classes)`` logits.
        target: ``(N,)`` int64 in ``0 .. classes - 1``.
        reduction: ``none``, ``mean`` or ``sum``; the mean of no rows is 0.

    Raises:
        ValueError: for other shapes or an unknown reduction.
    """
    if input.dim() != 2 or target.shape != input.shape[:1]:
        raise ValueError(
            f"Invalid shapes: logits must be (N, classes) and targets (N,), "
            f"got {tuple(input.shape)} and {tuple(target.shape)}"
        )
    loss = F.cross_entropy(at_least_float32(input), target, reduction="none")
    return reduce_loss(loss, reduction)
