"""Matching anchors and proposals to ground-truth boxes, and sampling them for a loss.

Everything here runs over the whole batch at once, with shapes that the host knows, so that nothing
waits for the device; on a CPU, ``detector.fast.host_matching`` is used instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.target import Targets
from detector.fast.host_matching import match_on_host
from losses.anchor_labels import BACKGROUND, IGNORED
from losses.triton_support import has_kernels

# Maximum number of IoU values held at a time; large, so that there are few kernels.
CHUNK_ELEMENTS = 1 << 23


def match_anchors(
    anchors: Tensor, targets: Targets, high: float, low: float, allow_low_quality: bool
) -> Tensor:
    """Match each anchor to the ground-truth box it overlaps most, like torchvision's ``Matcher``.

    Args:
        anchors: ``(A, 4)`` xyxy boxes shared by all images, or ``(B, A, 4)`` boxes of each image.
        targets: the ground truth of ``B`` images.
        high: anchors with at least this IoU are matched.
        low: anchors below this IoU are background; between ``low`` and ``high`` they are ignored.
        allow_low_quality: also match every anchor that has the highest IoU of some box (ties
            included), to the box that the *anchor* overlaps most. A box that no anchor touches gets
            no anchor (in torchvision, all anchors that touch no box, which thus become positive).

    Returns:
        ``(B, A)`` int64: index of the matched box in its image, -1 background, -2 ignored. With
        equal overlaps the first box wins.
    """
    match = match_batch
    if anchors.device.type == "cpu":
        match = match_on_host
    elif has_kernels(anchors.device):
        from detector.fast.matching_kernels import match_on_gpu as match
    return match(anchors, targets, high, low, allow_low_quality)


def match_batch(
    anchors: Tensor, targets: Targets, high: float, low: float, allow_low_quality: bool
) -> Tensor:
    """Match anchors for the whole batch at once, with shapes that the host knows.

    Arguments and result are those of ``match_anchors``.
    """
    # One row per coordinate, which the pairwise operations read contiguously.
    columns = anchors.float().transpose(-1, -2).contiguous().expand(len(targets), -1, -1)
    matches: dict[int, Tensor] = {}
    at_once = max(1, CHUNK_ELEMENTS // (8 * max(1, columns.shape[2])))
    # Images ordered by their number of boxes: those that still have boxes are then always a
    # prefix, and the cost follows the sum of the counts instead of the largest of them.
    order = sorted(range(len(targets)), key=lambda image: -targets.counts[image])
    for group in (order[start : start + at_once] for start in range(0, len(order), at_once)):
        group_matches = _match_ordered(
            torch.stack([columns[image] for image in group]),
            torch.stack([targets.boxes[image] for image in group]).float(),
            [targets.counts[image] for image in group],
            (high, low),
            allow_low_quality,
        )
        matches.update(zip(group, group_matches, strict=True))
    return torch.stack([matches[image] for image in range(len(targets))])


def _match_ordered(
    anchors: Tensor,
    boxes: Tensor,
    counts: list[int],
    thresholds: tuple[float, float],
    allow_low_quality: bool,
) -> Tensor:
    """Match by a running maximum over the boxes of images in descending order of ``counts``.

    ``(B, 4, A)`` anchors, one row per coordinate, and ``(B, M, 4)`` boxes -> ``(B, A)`` matches.
    At most about ``CHUNK_ELEMENTS`` IoU values are held at a time.
    """
    shape = (len(counts), anchors.shape[-1])
    # Below every IoU, so that an image without boxes is background whatever the thresholds.
    best_iou = torch.full(shape, -1.0, device=boxes.device)
    best_box = torch.zeros(shape, dtype=torch.int64, device=boxes.device)
    is_best_of_a_box = torch.zeros(shape, dtype=torch.bool, device=boxes.device)
    start = 0
    while start < counts[0]:
        active = sum(count > start for count in counts)
        stop = min(counts[0], start + max(1, CHUNK_ELEMENTS // max(1, active * shape[1])))
        iou = _pairwise_iou(boxes[:active, start:stop], anchors[:active])
        for row in range(active):
            if counts[row] < stop:
                iou[row, counts[row] - start :] = -1  # padding never wins
        chunk_iou, chunk_box = iou.max(dim=1)
        better = chunk_iou > best_iou[:active]
        best_iou[:active] = torch.where(better, chunk_iou, best_iou[:active])
        best_box[:active] = torch.where(better, chunk_box + start, best_box[:active])
        if allow_low_quality:
            highest = iou.amax(dim=2, keepdim=True)
            # Padding has no best anchor, nor has a box that no anchor touches: all would tie.
            highest.masked_fill_(highest <= 0, 2)
            is_best_of_a_box[:active] |= (iou == highest).any(dim=1)
        start = stop
    high, low = thresholds
    unmatched = torch.where(best_iou < low, BACKGROUND, IGNORED)
    return torch.where((best_iou >= high) | is_best_of_a_box, best_box, unmatched)


def _pairwise_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """``(B, M, 4)`` boxes and ``(B, 4, A)`` anchors -> ``(B, M, A)`` IoU.

    The operations and their order are those of ``torchvision.ops.box_iou``, so that ties agree.
    """
    x1, y1, x2, y2 = boxes.unsqueeze(3).unbind(dim=2)
    left, top, right, bottom = anchors.unsqueeze(1).unbind(dim=2)
    inter = torch.minimum(x2, right).sub_(torch.maximum(x1, left)).clamp_(min=0)
    inter *= torch.minimum(y2, bottom).sub_(torch.maximum(y1, top)).clamp_(min=0)
    union = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top)
    union -= inter
    return inter.div_(union)


def gather_matched(values: Tensor, matches: Tensor) -> Tensor:
    """Gather the value of each anchor's matched box.

    Args:
        values: ``(B, M)`` or ``(B, M, 4)``: labels or boxes of ``Targets``; M may be 0.
        matches: ``(B, N)`` from ``match_anchors``.

    Returns:
        ``(B, N)`` or ``(B, N, 4)``; without a match, some finite, meaningless value.
    """
    if values.shape[1] == 0:
        return values.new_zeros((*matches.shape, *values.shape[2:]))
    index = matches.clamp(min=0)
    if values.dim() == 3:
        index = index.unsqueeze(-1).expand(-1, -1, values.shape[2])
    return values.gather(1, index)


@dataclass(frozen=True)
class Samples:
    """The anchors or proposals of each image that a loss reads, in ``S`` slots per image.

    Attributes:
        indices: ``(B, S)`` int64 into the image's anchors or proposals.
        positive: ``(B, S)`` bool: the slot holds a sampled positive; positives come first.
        valid: ``(B, S)`` bool: the slot holds a sampled positive or negative; the others are empty.
    """

    indices: Tensor
    positive: Tensor
    valid: Tensor


class BalancedSampler:
    """Draws positives and negatives at random, with a maximum fraction of positives.

    This is torchvision's ``BalancedPositiveNegativeSampler`` for a whole batch, without reading a
    number from the device: it draws ``min(P, int(size * fraction))`` of P positives, and fills the
    rest with negatives as far as there are any. It uses the device's default random stream.

    Args:
        size: maximum number of samples per image.
        positive_fraction: maximum number of positives, as a fraction of ``size``.
    """

    def __init__(self, size: int, positive_fraction: float) -> None:
        self.size = size
        self.positive_fraction = positive_fraction

    def __call__(self, positive: Tensor, negative: Tensor) -> Samples:
        """``(B, N)`` and ``(B, N)`` bool -> Samples with ``min(size, N)`` slots per image."""
        candidates = positive.shape[1]
        key = torch.rand(positive.shape, device=positive.device)
        most_positive = min(int(self.size * self.positive_fraction), candidates)
        drawn = torch.where(positive, key, -1.0).topk(most_positive, dim=1)
        # Drawn positives come before all negatives, negatives in random order, the rest last.
        key = torch.where(negative, key, -1.0)
        first = torch.where(drawn.values >= 0, 2.0, key.gather(1, drawn.indices))
        key = key.scatter(1, drawn.indices, first)
        slots = key.topk(min(self.size, candidates), dim=1)
        return Samples(slots.indices, slots.values > 1, slots.values >= 0)
