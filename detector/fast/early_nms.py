"""Non-maximum suppression that stops once enough boxes are kept.

Greedy suppression visits boxes by descending score, and a later box never changes what was decided
earlier: the first ``most`` survivors of the list are those of any prefix that has this many. Plain
suppression compares every pair, about the square of the list, to keep its first thousands.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms


def first_survivors(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, most: int
) -> Tensor:
    """Compute ``batched_nms(boxes, scores, groups, threshold)[:most]``, stable for equal scores.

    Args:
        boxes: ``(N, 4)`` xyxy.
        scores: ``(N,)``.
        groups: ``(N,)`` int64; boxes of different groups do not suppress each other.
        threshold: IoU above which the lower-scoring box is suppressed.
        most: maximum number of boxes to keep, at least 1.

    Returns:
        ``(K,)`` indices with ``K <= most``, best first.
    """
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():  # type: ignore[attr-defined]
        return batched_nms(boxes, scores, groups, threshold)[
            :most
        ]  # an exported program cannot loop on data
    ranking = scores.argsort(descending=True, stable=True)
    kept, seen = ranking[:0], 0
    while len(kept) < most and seen < len(ranking):
        # 1.5 times the wanted number was enough for trained detectors (docs/performance.md).
        end = max(2 * seen, most + most // 2)
        head = torch.cat([kept, ranking[seen:end]])
        survivors = batched_nms(boxes[head], scores[head], groups[head], threshold)
        kept, seen = head[survivors.sort().values], end
    return kept[:most]
