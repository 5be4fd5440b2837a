"""Test-time flip: a detector that also processes each image mirrored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from engine.config import Config

Detected = dict[str, Tensor]


class FlipTTA(nn.Module):
    """Detects in each image and in its left-right mirror image, and merges the detections.

    The detections of both go through another non-maximum suppression per class: an object found in
    both counts once, with the higher score.

    Args:
        detector: maps, in evaluation mode, a list of images to a list of dicts ``boxes (D, 4)``,
            ``labels (D,)``, ``scores (D,)`` and optionally ``masks (D, 1, M, M)`` relative to the
            boxes.
        nms_threshold: IoU above which a lower-scoring detection of the class is suppressed.
        most: maximum number of detections per image.
    """

    def __init__(self, detector: nn.Module, nms_threshold: float, most: int) -> None:
        super().__init__()
        self.detector = detector
        self.nms_threshold = nms_threshold
        self.most = most

    def forward(self, images: Sequence[Tensor]) -> list[Detected]:
        """``(3, H_b, W_b)`` images -> their detections, by descending score."""
        straight = self.detector(list(images))
        mirrored = self.detector([image.flip(-1) for image in images])
        return [
            self._merge(found, mirror_back(other, image.shape[-1]))
            for found, other, image in zip(straight, mirrored, images, strict=True)
        ]

    def _merge(self, one: Detected, other: Detected) -> Detected:
        both = {name: torch.cat([values, other[name]]) for name, values in one.items()}
        boxes, scores = both["boxes"].float(), both["scores"].float()
        kept = batched_nms(boxes, scores, both["labels"], self.nms_threshold)[: self.most]
        return {name: values[kept] for name, values in both.items()}


def with_flip(detector: nn.Module, config: Config) -> nn.Module:
    """Add test-time flip to a detector if ``evaluate.flip`` is set; its mode is kept."""
    if not config.evaluate.flip:
        return detector
    limits = config.detector
    mirrored = FlipTTA(detector, limits.nms_threshold, limits.detections_per_image)
    return mirrored.train(detector.training)


def mirror_back(detected: Detected, width: int) -> Detected:
    """Map detections in a mirrored image of width ``width`` pixels back to the original image."""
    x1, y1, x2, y2 = detected["boxes"].unbind(dim=1)
    mirrored = {**detected, "boxes": torch.stack((width - x2, y1, width - x1, y2), dim=1)}
    if "masks" in detected:
        mirrored["masks"] = detected["masks"].flip(-1)
    return mirrored
