"""Proposals of a batch, which the RPN passes to the second stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.target import Targets


@dataclass(frozen=True)
class Proposals:
    """Boxes of ``B`` images in ``P`` slots each, without gradient.

    Attributes:
        boxes: ``(B, P, 4)`` float32 xyxy in pixels, the best first.
        valid: ``(B, P)`` bool: the slot is not empty.
    """

    boxes: Tensor
    valid: Tensor

    @classmethod
    def of_images(cls, boxes: Sequence[Tensor]) -> Proposals:
        """Pad ``(P_b, 4)`` boxes of each image with zeros to the largest number of one image."""
        most = max(len(image_boxes) for image_boxes in boxes)
        padded = boxes[0].new_zeros((len(boxes), most, 4))
        valid = torch.zeros((len(boxes), most), dtype=torch.bool, device=padded.device)
        for image, image_boxes in enumerate(boxes):
            padded[image, : len(image_boxes)] = image_boxes
            valid[image, : len(image_boxes)] = True
        return cls(padded, valid)

    def with_objects(self, targets: Targets) -> Proposals:
        """Append the objects' own boxes, from which the second stage samples, too."""
        boxes = torch.cat([self.boxes, targets.boxes], dim=1)
        return Proposals(boxes, torch.cat([self.valid, targets.labels >= 0], dim=1))
