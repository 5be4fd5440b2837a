"""The focal loss of ``losses.focal_sums`` as two GPU kernels, each with one pass over the logits.

The plain path reads and writes the largest tensor of a training step repeatedly. Here the forward
pass reads it once, and the backward pass reads it once more and writes its gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from losses import anchor_labels

IGNORED = tl.constexpr(anchor_labels.IGNORED)
SMALLEST = tl.constexpr(1e-37)  # lower bound of a probability, as in losses.classification

BLOCK = 4096  # logits per program


def focal_sums_on_gpu(
    logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2
) -> Tensor:
    """Compute ``focal_sums`` with a closed-form gradient; it cannot be differentiated twice."""
    sums: Tensor = _FocalSums.apply(logits, labels, alpha, gamma)
    return sums


class _FocalSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
        logits = logits.contiguous()
        ctx.save_for_backward(logits, labels)
        ctx.options = _options(logits, labels, alpha, gamma)
        grid = _grid(logits)
        sums = torch.empty((grid[1], grid[0]), device=logits.device)
        _sum_blocks[grid](logits, labels, sums, **ctx.options)
        return sums.sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None]:
        logits, labels = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        _slopes[_grid(logits)](logits, labels, scale.contiguous(), gradient, **ctx.options)
        return gradient, None, None, None


def _grid(logits: Tensor) -> tuple[int, int]:
    """Blocks of an image, images."""
    return max(1, triton.cdiv(logits[0].numel(), BLOCK)), len(logits)


def _options(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> dict[str, Any]:
    return {
        "size": logits[0].numel(),
        "labels_stride": labels.stride(0),
        "alpha": alpha,
        "gamma": float(gamma),
        "classes": logits.shape[2],
        "has_alpha": alpha >= 0,
        "is_square": gamma == 2,
        "block": BLOCK,
        "num_warps": 8,
    }


@triton.jit
def _sum_blocks(  # type: ignore[no-untyped-def]
    logits, labels, sums, size, labels_stride, alpha, gamma,
    classes: tl.constexpr, has_alpha: tl.constexpr, is_square: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The loss of each block of each image."""
    loss, _ = _of_block(
        logits, labels, size, labels_stride, alpha, gamma, classes, has_alpha, is_square, block
    )
    place = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + place, tl.sum(loss, axis=0))


@triton.jit
def _slopes(  # type: ignore[no-untyped-def]
    logits, labels, scale, gradient, size, labels_stride, alpha, gamma,
    classes: tl.constexpr, has_alpha: tl.constexpr, is_square: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The derivative by each logit, times the scale of its image."""
    _, slope = _of_block(
        logits, labels, size, labels_stride, alpha, gamma, classes, has_alpha, is_square, block
    )
    image = tl.program_id(1).to(tl.int64)
    offsets = tl.program_id(0) * block + tl.arange(0, block)
    slope *= tl.load(scale + image)
    values = slope.to(gradient.dtype.element_ty)
    tl.store(gradient + image * size + offsets, values, offsets < size)


@triton.jit
def _of_block(  # type: ignore[no-untyped-def]
    logits, labels, size, labels_stride, alpha, gamma,
    classes: tl.constexpr, has_alpha: tl.constexpr, is_square: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Loss and derivative of the logits of this program."""
    image = tl.program_id(1).to(tl.int64)
    offsets = tl.program_id(0) * block + tl.arange(0, block)
    inside = offsets < size
    label = tl.load(labels + image * labels_stride + offsets // classes, inside, IGNORED)
    x = tl.load(logits + image * size + offsets, inside, 0.0).to(tl.float32)
    return _focal(x, label, offsets % classes, alpha, gamma, has_alpha, is_square)


@triton.jit
def _focal(  # type: ignore[no-untyped-def]
    x, label, column, alpha, gamma, has_alpha: tl.constexpr, is_square: tl.constexpr
):
    """Loss and derivative, as ``losses.focal_sums._chunk``; a positive is the mirror image."""
    positive = label == column
    z = tl.where(positive, -x, x)
    exp = tl.exp(-tl.abs(z))
    above = 1.0 + exp
    # log(1 + exp) and what 1 + exp lost to rounding
    softplus = tl.maximum(z, 0.0) + tl.log(above) + (exp - (above - 1.0)) / above
    p = tl.where(z >= 0, 1.0, exp) / above
    fade = p * p if is_square else tl.exp(gamma * tl.log(tl.maximum(p, SMALLEST)))
    if has_alpha:
        fade *= tl.where(positive, alpha, 1 - alpha)
    slope = fade * (gamma * (1 - p) * softplus + p)
    counts = label != IGNORED
    loss = tl.where(counts, fade * softplus, 0.0)
    return loss, tl.where(counts, tl.where(positive, -slope, slope), 0.0)
