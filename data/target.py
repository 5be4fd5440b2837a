"""What a batch holds: the one contract between the data and the detectors.

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

FEWEST_SLOTS = 8  # of an image, where shapes are to be few


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
        """The same objects, padded to a power of two: as many shapes as sizes, not as counts."""
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
    """Per-image ``(N_b, 4)`` boxes, ``(N_b,)`` labels and ``(N_b, H_b, W_b)`` masks -> Targets."""
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
    """What a detector was given to train on.

    Raises:
        ValueError: no ``Targets``, or those of another number of images.
    """
    if not isinstance(targets, Targets):
        raise ValueError(
            "a detector in training mode needs targets: Targets, as data.target.pad_targets makes "
            f"them of boxes and labels, got {type(targets).__name__}"
        )
    if len(targets) != images:
        raise ValueError(f"the targets are those of {len(targets)} images, and there are {images}")
    return targets


@dataclass(frozen=True)
class Batch:
    """One batch on its way to the detector.

    Attributes:
        images: for each image ``(3, height, width)`` uint8, RGB, not yet padded or normalised.
        targets: its objects.
        indices: the rows of the images in their ``Annotations`` (file names, original sizes).
        left_out: the rows of damaged images that are scored as if nothing had been found in them.
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
