"""Selection of the RPN's proposals on a GPU, for all levels of all images at once.

The proposals are those of ``detector.rpn``, where the host synchronizes with the GPU for each
image. Here it never does: only the GPU knows how many proposals an image has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.fast.nms_kernels import keep_best
from detector.proposals import Proposals


def suppress_on_gpu(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    corners: Tensor,
    *,
    smallest_side: float,
    score_threshold: float,
    nms_threshold: float,
    most: int,
) -> Proposals:
    """Clip the candidates, drop tiny and low-scoring ones, then NMS per level.

    Args:
        boxes: ``(B, k_l, 4)`` xyxy of each level.
        scores: ``(B, k_l)`` of each level, descending, not negative.
        corners: ``(B, 2)``: width and height of each image.
        smallest_side: drop boxes with a shorter side, in pixels.
        score_threshold: drop boxes with a lower score.
        nms_threshold: IoU above which the lower-scoring box of a level is suppressed.
        most: maximum number of proposals per image.

    Returns:
        The proposals of each image, best first.
    """
    longest = max(level.shape[1] for level in scores)
    candidates = torch.stack([_pad_rows(level, longest, 0.0) for level in boxes], 1)
    score = torch.stack([_pad_rows(level, longest, -1.0) for level in scores], 1)  # (B, levels, k)
    clipped = torch.minimum(candidates.clamp(min=0), corners.repeat(1, 2)[:, None, None])
    large = (clipped[..., 2:] - clipped[..., :2] >= smallest_side).all(dim=-1)
    valid = large & (score >= max(score_threshold, 0.0))
    # Shift levels apart like batched_nms, so that overlaps near the threshold round equally.
    span = torch.where(valid.unsqueeze(3), clipped, 0.0).amax(dim=(1, 2, 3)) + 1
    shift = span[:, None] * torch.arange(len(boxes), device=span.device)
    shifted = clipped + shift[..., None, None]
    keep = keep_best(shifted.flatten(0, 1), valid.flatten(0, 1), nms_threshold)
    score = torch.where(keep.view_as(score), score, -1.0).flatten(1)
    best = score.topk(min(most, score.shape[1]), dim=1)
    chosen = clipped.flatten(1, 2).gather(1, best.indices.unsqueeze(2).expand(-1, -1, 4))
    return Proposals(chosen, best.values >= 0)


def _pad_rows(values: Tensor, length: int, value: float) -> Tensor:
    """Pad ``(B, k)`` or ``(B, k, 4)`` to ``length`` rows per image."""
    missing = length - values.shape[1]
    return F.pad(values, (0, missing) if values.dim() == 2 else (0, 0, 0, missing), value=value)
