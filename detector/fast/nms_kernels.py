"""Non-maximum suppression on a GPU for many lists of boxes at once, without synchronization.

torchvision processes one list after another, and the host reads the length of each result. Here the
first kernel writes, as bits, which boxes overlap too much; the second runs the greedy rule for all
lists at the same time, with exactly the same result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from detector.fast.box_kernels import load_corners, overlap

WORD = tl.constexpr(32)  # boxes in a word of bits
ROWS = 64  # boxes of a program of the first kernel


def keep_best(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Run greedy NMS: keep a box unless a better kept box overlaps it by more than ``threshold``.

    Args:
        boxes: ``(L, N, 4)`` float32 xyxy, best first.
        valid: ``(L, N)`` bool; other boxes are not kept and suppress nothing.
        threshold: IoU above which the lower-scoring box is suppressed.

    Returns:
        ``(L, N)`` bool.
    """
    lists, length = valid.shape
    words = triton.next_power_of_2(max(1, triton.cdiv(length, 32)))
    boxes, valid = boxes.float().contiguous(), valid.contiguous().view(torch.uint8)
    suppressors = torch.empty((lists, words * 32, words), dtype=torch.int32, device=boxes.device)
    kept = torch.empty((lists, words), dtype=torch.int32, device=boxes.device)
    grid = (triton.cdiv(words * 32, ROWS), words, lists)
    options = {"words": words, "enable_fp_fusion": False}
    _find_suppressors[grid](boxes, suppressors, length, threshold, tile_rows=ROWS, **options)
    _suppress_greedily[(lists,)](valid, suppressors, kept, length, **options)
    bits = kept.unsqueeze(2) >> torch.arange(32, dtype=torch.int32, device=kept.device)
    return (bits & 1).flatten(1)[:, :length].bool()


@triton.jit
def _find_suppressors(  # type: ignore[no-untyped-def]
    boxes, suppressors, length, threshold, words: tl.constexpr, tile_rows: tl.constexpr
):
    """Write a 32-bit word for each box: which of 32 earlier boxes overlap it too much."""
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    column = tl.program_id(1) * WORD + tl.arange(0, WORD)
    one = tl.program_id(2).to(tl.int64)
    x1, y1, x2, y2 = load_corners(boxes + one * length * 4, row, row < length)
    left, top, right, bottom = load_corners(boxes + one * length * 4, column, column < length)
    iou = overlap(
        x1[:, None], y1[:, None], x2[:, None], y2[:, None],
        left[None, :], top[None, :], right[None, :], bottom[None, :],
    )  # fmt: skip
    suppresses = (iou > threshold) & (column[None, :] < row[:, None])
    bits = tl.sum(suppresses.to(tl.int32) << tl.arange(0, WORD)[None, :], axis=1)
    place = (one * words * WORD + row) * words + tl.program_id(1)
    tl.store(suppressors + place, bits, row < words * WORD)


@triton.jit
def _suppress_greedily(valid, suppressors, kept, length, words: tl.constexpr):  # type: ignore[no-untyped-def]
    """Apply the greedy rule to one list, 32 boxes at a time."""
    one = tl.program_id(0).to(tl.int64)
    every = tl.arange(0, words)
    keep = tl.zeros((words,), tl.int32)  # of the boxes so far
    for word in range(words):
        row = word * WORD + tl.arange(0, WORD)
        start = suppressors + (one * words * WORD + row) * words
        earlier = tl.load(start[:, None] + every[None, :]) & keep[None, :]
        alive = tl.load(valid + one * length + row, row < length, 0) != 0
        alive = alive & (tl.max((earlier != 0).to(tl.int32), axis=1) == 0)
        # Among themselves: the first is right at once, and each round at least one more.
        own = tl.load(start + word)
        now = _pack(alive)
        before = now * 0  # with none alive there is nothing to do
        while now != before:
            before = now
            now = _pack(alive & ((own & now) == 0))
        keep = tl.where(every == word, now, keep)
    tl.store(kept + one * words + every, keep)


@triton.jit
def _pack(flags):  # type: ignore[no-untyped-def]
    return tl.sum(flags.to(tl.int32) << tl.arange(0, WORD), axis=0)
