"""Shared functions of kernels that compare boxes: loading corners, and the IoU of two boxes."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_corners(boxes, rows, inside):  # type: ignore[no-untyped-def]
    """Load x1, y1, x2, y2 of some rows of ``(N, 4)``; 0 (a box without area) outside."""
    return (
        tl.load(boxes + rows * 4, inside, 0.0),
        tl.load(boxes + rows * 4 + 1, inside, 0.0),
        tl.load(boxes + rows * 4 + 2, inside, 0.0),
        tl.load(boxes + rows * 4 + 3, inside, 0.0),
    )


@triton.jit
def overlap(x1, y1, x2, y2, left, top, right, bottom):  # type: ignore[no-untyped-def]
    """Compute IoU with the operations of ``torchvision.ops.box_iou`` in order, for equal rounding.

    Launch with ``enable_fp_fusion=False``: a fused multiplication and addition would round
    differently.
    """
    width = tl.maximum(tl.minimum(x2, right) - tl.maximum(x1, left), 0.0)
    height = tl.maximum(tl.minimum(y2, bottom) - tl.maximum(y1, top), 0.0)
    inter = width * height
    union = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - inter
    return tl.div_rn(inter, union)
