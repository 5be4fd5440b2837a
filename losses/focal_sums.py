"""Sums of the focal loss over anchors labeled with class indices, without one-hot labels.

``focal_sums`` is the plain mathematics. ``fast_focal_sums`` computes the same value and gradient on
a CPU in one pass: anchors times classes is by far the largest tensor of a training step, and every
elementwise operation reads and writes all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losses.anchor_labels import BACKGROUND, IGNORED
from losses.classification import sigmoid_focal_loss
from losses.triton_support import has_kernels

# Number of logits per chunk; with their few temporaries they stay in a core's cache.
CHUNK = 1 << 18

# From here on, in float32, softplus(x) is x and the sigmoid 1, and the exponential is still finite.
LARGEST_EXPONENT = 80.0


def fastest_focal_sums(device: torch.device) -> Callable[[Tensor, Tensor, float, float], Tensor]:
    """Return the fastest implementation of ``focal_sums`` for a device."""
    if device.type == "cpu":
        return fast_focal_sums
    if has_kernels(device):
        from losses.focal_kernels import focal_sums_on_gpu

        return focal_sums_on_gpu
    return focal_sums


def focal_sums(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2) -> Tensor:
    """Compute the focal loss of each image, summed over anchors and classes.

    Args:
        logits: ``(B, A, classes)``.
        labels: ``(B, A)`` int64: the class, -1 for background, -2 for ignored anchors. They are
            not checked on a GPU: a class out of range is an error only on a CPU.
        alpha: weight of the positives in 0..1, with 1 - alpha for the negatives; -1: no weights.
        gamma: exponent of the modulating factor, not negative.

    Returns:
        ``(B,)`` float32.

    Source: Lin et al., https://arxiv.org/abs/1708.02002, equation 5.
    """
    one_hot = (labels.unsqueeze(-1) == torch.arange(logits.shape[2], device=labels.device)).float()
    losses = sigmoid_focal_loss(logits, one_hot, alpha, gamma)
    return losses.masked_fill((labels == IGNORED).unsqueeze(-1), 0).sum(dim=(1, 2))


def fast_focal_sums(
    logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2
) -> Tensor:
    """Compute ``focal_sums`` with a closed-form gradient; it cannot be differentiated twice."""
    sums: Tensor = _FocalSums.apply(logits, labels, alpha, gamma)
    return sums


class _FocalSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
        # In float16, small gradients would underflow before the gradient scaler's factor applies.
        kept = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        gradient = torch.empty_like(logits, dtype=kept)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(gradient)
        at_once = max(1, CHUNK // max(1, logits.shape[2]))
        sums = [
            torch.stack(
                [
                    _chunk(*chunk, alpha, gamma)
                    for chunk in zip(
                        image.split(at_once),
                        image_labels.split(at_once),
                        image_gradient.split(at_once),
                        strict=True,
                    )
                ]
            ).sum()
            for image, image_labels, image_gradient in zip(logits, labels, gradient, strict=True)
        ]
        return torch.stack(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        scaled = torch.empty_like(gradient)
        # Single numbers stay in float32. As a tensor, the factors would be rounded to bfloat16,
        # which would change the weight of the loss for all anchors alike.
        for image, factor, output in zip(gradient, scale, scaled, strict=True):
            torch.mul(image, factor, out=output)
        return scaled.to(ctx.dtype), None, None, None


def _chunk(logits: Tensor, labels: Tensor, gradient: Tensor, alpha: float, gamma: float) -> Tensor:
    """``(N, classes)`` logits and ``(N,)`` labels -> their summed loss; fills ``gradient``.

    For a negative with probability p and s = softplus(x) = -log(1 - p):
    loss = (1 - alpha) p^gamma s, and its derivative with respect to the logit x is
    (1 - alpha) p^gamma (gamma (1 - p) s + p). A positive is the mirror image, x -> -x.
    """
    x = logits.float()
    loss, slope = _negatives(x, gamma)
    if alpha >= 0:
        loss *= 1 - alpha
        slope *= 1 - alpha
    rows = (labels != BACKGROUND).nonzero().squeeze(1)
    if len(rows):
        classes = labels[rows]
        counts = (classes != IGNORED).unsqueeze(1)
        classes = classes.clamp(min=0)
        positive_loss, positive_slope = _negatives(-x[rows, classes], gamma)
        weight = alpha if alpha >= 0 else 1.0
        loss[rows, classes] = weight * positive_loss
        slope[rows, classes] = -weight * positive_slope
        loss[rows] = loss[rows].where(counts, 0)
        slope[rows] = slope[rows].where(counts, 0)
    gradient.copy_(slope)
    return loss.sum()


def _negatives(x: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Compute loss and derivative of negatives with logits ``x``, without alpha."""
    exp = x.clamp(max=LARGEST_EXPONENT).exp_()
    above = exp + 1
    # log(1 + exp) plus the rounding error of 1 + exp; PyTorch's log1p takes three times as long.
    softplus = above.log().addcdiv_(exp - (above - 1), above)
    p = exp.div_(above)
    fade = p * p if gamma == 2 else p.pow(gamma)
    slope = softplus * gamma  # times 1 - p, plus p
    slope = torch.addcmul(slope, p, 1 - slope).mul_(fade)
    softplus += (x - LARGEST_EXPONENT).clamp_(min=0)
    return softplus.mul_(fade), slope
