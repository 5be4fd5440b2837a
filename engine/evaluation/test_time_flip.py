"""Test-time flip: a detector that also looks at each image's mirror image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from engine.config import Config

Detected = dict[str, Tensor]


class TestTimeFlip(nn.Module):
    """Two looks at each image, one of them mirrored left-right, and one list of detections.

    The detections of both looks go through another non-maximum suppression in each class: what both
    have found counts once, with the higher score.

    Args:
        detector: in evaluation mode it maps a list of images to a list of dicts ``boxes (D, 4)``,
            ``labels (D,)``, ``scores (D,)`` and perhaps ``masks (D, 1, M, M)`` relative to them.
        nms_threshold: IoU above which a lower-scoring detection of the class is suppressed.
        most: detections that an image keeps.
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
    """A detector as it is evaluated: with ``evaluate.flip`` it looks twice. Its mode stays."""
    if not config.evaluate.flip:
        return detector
    limits = config.detector
    mirrored = TestTimeFlip(detector, limits.nms_threshold, limits.detections_per_image)
    return mirrored.train(detector.training)


def mirror_back(detected: Detected, width: int) -> Detected:
    """Detections in the mirror image of an image ``width`` pixels wide, in the image itself."""
    x1, y1, x2, y2 = detected["boxes"].unbind(dim=1)
    mirrored = {**detected, "boxes": torch.stack((width - x2, y1, width - x1, y2), dim=1)}
    if "masks" in detected:
        mirrored["masks"] = detected["masks"].flip(-1)
    return mirrored
