"""Matching on a GPU in two kernels: the same matches as the plain path of ``detector.matching``.

The plain path writes every overlap to memory and reads it several times. Here an overlap stays in
a register: the first kernel finds the highest of each box, the second the best box of each anchor.
The device reads which slots hold a box, so that one captured graph can be used for all batches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from data.target import Targets
from detector.fast.box_kernels import load_corners, overlap
from losses.anchor_labels import BACKGROUND, IGNORED

NOTHING, UNDECIDED = tl.constexpr(BACKGROUND), tl.constexpr(IGNORED)
BLOCK = 512  # anchors of a program


def match_on_gpu(
    anchors: Tensor, targets: Targets, high: float, low: float, allow_low_quality: bool
) -> Tensor:
    """Match anchors as ``match_anchors`` does, with padding marked by a label of -1."""
    anchors, boxes = anchors.float().contiguous(), targets.boxes.float().contiguous()
    labels = targets.labels.contiguous()
    images, slots = labels.shape
    count = anchors.shape[-2]
    of_image = anchors.stride(0) if anchors.dim() == 3 else 0
    matches = torch.empty((images, count), dtype=torch.int64, device=anchors.device)
    # the bits of overlaps: those of floats that are not negative are in order as integers
    highest = torch.zeros((images, slots), dtype=torch.int32, device=anchors.device)
    grid = (max(1, triton.cdiv(count, BLOCK)), images)
    arguments = (anchors, boxes, labels, highest, count, slots, of_image)
    options = {"block": BLOCK, "num_warps": 4, "enable_fp_fusion": False}
    if allow_low_quality and slots:
        _highest_overlaps[grid](*arguments, **options)
    _best_boxes[grid](*arguments, matches, high, low, low_quality=allow_low_quality, **options)
    return matches


@triton.jit
def _highest_overlaps(  # type: ignore[no-untyped-def]
    anchors, boxes, labels, highest, count, slots, of_image, block: tl.constexpr
):
    """Compute the highest overlap of each box with any anchor."""
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * block + tl.arange(0, block)
    left, top, right, bottom = load_corners(anchors + image * of_image, rows, rows < count)
    for slot in range(slots):
        place = image * slots + slot
        if tl.load(labels + place) >= 0:
            x1, y1, x2, y2 = load_corners(boxes, place, True)
            iou = overlap(x1, y1, x2, y2, left, top, right, bottom)
            # rows beyond the last have no area and overlap nothing
            tl.atomic_max(highest + place, tl.max(iou.to(tl.int32, bitcast=True), axis=0))


@triton.jit
def _best_boxes(  # type: ignore[no-untyped-def]
    anchors, boxes, labels, highest, count, slots, of_image, matches, high, low,
    low_quality: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Find the box that each anchor overlaps most, if the overlap is large enough."""
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * block + tl.arange(0, block)
    left, top, right, bottom = load_corners(anchors + image * of_image, rows, rows < count)
    best = tl.full((block,), -1.0, tl.float32)  # below every overlap, as in the plain path
    best_slot = tl.zeros((block,), tl.int64)
    matched = rows < 0
    for slot in range(slots):
        place = image * slots + slot
        if tl.load(labels + place) >= 0:
            x1, y1, x2, y2 = load_corners(boxes, place, True)
            iou = overlap(x1, y1, x2, y2, left, top, right, bottom)
            best_slot = tl.where(iou > best, slot, best_slot)
            best = tl.maximum(best, iou)
            if low_quality:
                most = tl.load(highest + place)
                matched |= (iou.to(tl.int32, bitcast=True) == most) & (most > 0)
    matched |= best >= high
    unmatched = tl.where(best < low, NOTHING, UNDECIDED)
    tl.store(matches + image * count + rows, tl.where(matched, best_slot, unmatched), rows < count)
