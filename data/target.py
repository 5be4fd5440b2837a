"""Batches and their targets: the contract between the data and the detectors.

Boxes are ``(xmin, ymin, xmax, ymax)`` in pixels of the image as the detector sees it (augmented and
resized), continuous coordinates with the origin at the outer corner of the top-left pixel. Labels
are 0-based class indices; a detector whose head has a background class shifts them itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST_SLOTS = 8  # minimum number of object slots per image, see ``with_few_shapes``


@dataclass(frozen=True)
class Targets:
    """The objects of ``B`` images, padded to ``M``, the largest number of objects in one of them.

    Padding keeps shapes static and lets losses run over the whole batch; ``counts`` lives on the
    host so that reading it never waits for the device.

    Attributes:
        boxes: ``(B, M, 4)`` float32, xyxy in pixels; zeros in the padding.
        labels: ``(B, M)`` int64 in ``0 .. classes - 1``; -1 in the padding.
        counts: the number of objects of each image, ``B`` host integers.
        masks: for each image ``(counts[b], height, width)`` uint8 of 0 and 1, or None.
    """

    boxes: Tensor
    labels: Tensor
    counts: tuple[int, ...]
    masks: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.counts)

    def boxes_of(self, image: int) -> Tensor:
        """``(counts[image], 4)``: the boxes of one image, without padding."""
        return self.boxes[image, : self.counts[image]]

    def labels_of(self, image: int) -> Tensor:
        """``(counts[image],)``: the labels of one image, without padding."""
        return self.labels[image, : self.counts[image]]

    def with_few_shapes(self) -> Targets:
        """Pad the objects to a power of two (at least 8), so that few tensor shapes occur."""
        slots = FEWEST_SLOTS
        while slots < self.labels.shape[1]:
            slots *= 2
        padding = slots - self.labels.shape[1]
        boxes = F.pad(self.boxes, (0, 0, 0, padding))
        return replace(self, boxes=boxes, labels=F.pad(self.labels, (0, padding), value=-1))

    def to(self, device: torch.device, non_blocking: bool = False) -> Targets:
        masks = self.masks
        if masks is not None:
            masks = tuple(mask.to(device, non_blocking=non_blocking) for mask in masks)
        return Targets(
            self.boxes.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.counts,
            masks,
        )


def pad_targets(
    boxes: Sequence[Tensor], labels: Sequence[Tensor], masks: Sequence[Tensor] | None = None
) -> Targets:
    """Pad per-image ``(N_b, 4)`` boxes, ``(N_b,)`` labels, ``(N_b, H_b, W_b)`` masks to Targets."""
    counts = tuple(len(image_boxes) for image_boxes in boxes)
    most = max(counts, default=0)
    device = boxes[0].device if boxes else None
    padded_boxes = torch.zeros((len(boxes), most, 4), dtype=torch.float32, device=device)
    padded_labels = torch.full((len(boxes), most), -1, dtype=torch.int64, device=device)
    for image, count in enumerate(counts):
        padded_boxes[image, :count] = boxes[image].reshape(-1, 4)
        padded_labels[image, :count] = labels[image]
    return Targets(padded_boxes, padded_labels, counts, None if masks is None else tuple(masks))


def check_targets(targets: object, images: int) -> Targets:
    """Check the targets that a detector was given to train on, and return them.

    Raises:
        ValueError: these are not ``Targets``, or not of the given number of images.
    """
    if not isinstance(targets, Targets):
        raise ValueError(
            f"a detector in training mode needs targets of type Targets, got "
            f"{type(targets).__name__}; data.target.pad_targets builds them from boxes and labels"
        )
    if len(targets) != images:
        raise ValueError(f"the targets are of {len(targets)} images, but there are {images}")
    return targets


@dataclass(frozen=True)
class Batch:
    """One batch on its way to the detector.

    Attributes:
        images: for each image ``(3, height, width)`` uint8, RGB, not yet padded or normalised.
        targets: the objects of the images.
        indices: the rows of the images in their ``Annotations`` (file names, original sizes).
        left_out: the rows of damaged images, which are scored as if nothing was detected in them.
    """

    images: tuple[Tensor, ...]
    targets: Targets
    indices: tuple[int, ...]
    left_out: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        images = tuple(image.to(device, non_blocking=non_blocking) for image in self.images)
        return replace(self, images=images, targets=self.targets.to(device, non_blocking))
