"""Matching on a CPU: the same matches as the plain path of ``detector.matching``.

The plain path keeps the box that each anchor overlaps most; on a CPU, this argmax takes longer than
the overlaps themselves. Here only the overlap is kept, and the box is looked up at the end for the
few anchors that have a match, whose positions the host reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data.target import Targets
from losses.anchor_labels import BACKGROUND, IGNORED

# Overlaps held at a time: with their two temporaries they stay near the cores.
CHUNK_ELEMENTS = 1 << 19


def match_on_host(
    anchors: Tensor, targets: Targets, high: float, low: float, allow_low_quality: bool
) -> Tensor:
    """Match anchors image by image; arguments and result are those of ``match_anchors``."""
    columns = anchors.float().transpose(-1, -2)
    areas = (columns[..., 2, :] - columns[..., 0, :]) * (columns[..., 3, :] - columns[..., 1, :])
    columns = torch.cat([columns, areas.unsqueeze(-2)], dim=-2).expand(len(targets), -1, -1)
    return torch.stack(
        [
            _match_image(columns[image], targets.boxes_of(image), high, low, allow_low_quality)
            for image in range(len(targets))
        ]
    )


def _match_image(
    anchors: Tensor, boxes: Tensor, high: float, low: float, allow_low_quality: bool
) -> Tensor:
    """Match one image: ``(5, A)`` anchors with areas and ``(M, 4)`` boxes -> ``(A,)`` matches."""
    count = anchors.shape[1]
    if len(boxes) == 0 or count == 0:
        return torch.full((count,), BACKGROUND)
    boxes = boxes.float()
    best = torch.zeros(count)
    matched = torch.zeros(count, dtype=torch.bool)
    for chunk in boxes.split(max(1, CHUNK_ELEMENTS // count)):
        iou = pairwise_iou(chunk, anchors)
        torch.maximum(best, iou.amax(dim=0), out=best)
        if allow_low_quality:
            highest = iou.amax(dim=1, keepdim=True)
            # No anchor touches the box, or it has no area: it has no best one.
            highest.masked_fill_(~(highest > 0), 2)
            matched |= iou.sub_(highest).amax(dim=0) == 0  # ties included
    matched |= best >= high
    # Of a box and an anchor without area the IoU is 0 / 0: background.
    matches = torch.where(best >= low, IGNORED, BACKGROUND)
    rows = matched.nonzero().squeeze(1)
    matches[rows] = _most_overlapped(anchors, boxes, rows)
    return matches


def _most_overlapped(anchors: Tensor, boxes: Tensor, rows: Tensor) -> Tensor:
    """Return the box that each of some anchors overlaps most, ``(R,)`` int64; first of equals."""
    if len(rows) == 0:
        return rows
    chunks = rows.split(max(1, CHUNK_ELEMENTS // len(boxes)))
    return torch.cat(
        [pairwise_iou(boxes, anchors[:, chunk]).max(dim=0).indices for chunk in chunks]
    )


def pairwise_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """``(M, 4)`` boxes and ``(5, A)`` anchors with their areas -> ``(M, A)`` IoU.

    The operations and their order are those of ``torchvision.ops.box_iou``, so that ties agree.
    """
    x1, y1, x2, y2 = boxes.t().unsqueeze(2)
    left, top, right, bottom, areas = anchors
    inter = torch.minimum(x2, right).sub_(torch.maximum(x1, left)).clamp_(min=0)
    inter *= torch.minimum(y2, bottom).sub_(torch.maximum(y1, top)).clamp_(min=0)
    union = (x2 - x1) * (y2 - y1) + areas
    return inter.div_(union.sub_(inter))
