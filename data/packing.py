"""Batches packed for the transfer from a worker process to the training process.

Every transferred tensor costs a file descriptor and a handshake (measured: 18 tensors 15 ms, one
tensor of the same bytes 2 ms). All pixels of a batch, images and masks, are therefore sent in one
tensor, and the few other numbers in the message itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from data.dataset import Sample
from data.target import Batch, Targets, pad_targets


@dataclass(frozen=True)
class PackedBatch:
    """The samples of one batch.

    Attributes:
        pixels: ``(P,)`` uint8: the images, each ``(H, W, 3)``, then the masks, each image's
            ``(N, H, W)``.
        sizes_hw: height and width of each image.
        boxes: ``(N, 4)`` float32 for each image.
        labels: ``(N,)`` int64 for each image.
        has_masks: whether masks follow the images.
        rows: the images' rows in the annotations.
        damaged: complaints about images that were replaced or skipped.
        left_out: the rows of images that were skipped.
        pinned: whether the batch is to be in page-locked memory.
    """

    pixels: Tensor
    sizes_hw: tuple[tuple[int, int], ...]
    boxes: tuple[npt.NDArray[np.float32], ...]
    labels: tuple[npt.NDArray[np.int64], ...]
    has_masks: bool
    rows: tuple[int, ...]
    damaged: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()
    pinned: bool = False

    def pin_memory(self) -> PackedBatch:
        """Pin the pixels; the loader's thread calls this, so that training need not wait for it."""
        return replace(self, pixels=self.pixels.pin_memory(), pinned=True)

    def unpack(self) -> Batch:
        """Unpack the batch; images (channels last) and masks are views of ``pixels``."""
        images, end = [], 0
        for height, width in self.sizes_hw:
            start, end = end, end + height * width * 3
            images.append(self.pixels[start:end].view(height, width, 3).permute(2, 0, 1))
        masks = self._masks(end) if self.has_masks else None
        return Batch(tuple(images), self._targets(masks), self.rows, self.left_out)

    def _masks(self, end: int) -> list[Tensor]:
        masks = []
        for (height, width), labels in zip(self.sizes_hw, self.labels, strict=True):
            start, end = end, end + height * width * len(labels)
            masks.append(self.pixels[start:end].view(len(labels), height, width))
        return masks

    def _targets(self, masks: Sequence[Tensor] | None) -> Targets:
        boxes = [torch.from_numpy(boxes) for boxes in self.boxes]
        labels = [torch.from_numpy(labels) for labels in self.labels]
        targets = pad_targets(boxes, labels, masks)
        if self.pinned:
            boxes_pinned, labels_pinned = targets.boxes.pin_memory(), targets.labels.pin_memory()
            targets = replace(targets, boxes=boxes_pinned, labels=labels_pinned)
        return targets


def pack(samples: Sequence[Sample], left_out: Mapping[int, str] | None = None) -> PackedBatch:
    """Pack samples into one batch; either all of them have masks or none has.

    Args:
        samples: the samples.
        left_out: complaints about images that have no sample, by row.
    """
    left_out = left_out or {}
    pictures = [sample.picture for sample in samples]
    masks = [picture.masks for picture in pictures if picture.masks is not None]
    blocks = [picture.image.reshape(-1) for picture in pictures]
    blocks += [mask.reshape(-1) for mask in masks]
    pixels = _empty_pixels(sum(block.size for block in blocks))
    if blocks:
        np.concatenate(blocks, out=pixels.numpy())
    return PackedBatch(
        pixels,
        tuple((picture.image.shape[0], picture.image.shape[1]) for picture in pictures),
        tuple(picture.boxes for picture in pictures),
        tuple(picture.labels for picture in pictures),
        bool(masks),
        tuple(sample.row for sample in samples),
        (*left_out.values(), *(complaint for sample in samples for complaint in sample.damaged)),
        tuple(left_out),
    )


def _empty_pixels(size: int) -> Tensor:
    """Allocate ``(size,)`` uint8, in a worker process in shared memory.

    Like torch's own collation, this saves the copy to shared memory (a fifth of the cost).
    """
    if get_worker_info() is None or size == 0:
        return torch.empty(size, dtype=torch.uint8)
    shared = torch.UntypedStorage._new_shared(size)
    return torch.empty(0, dtype=torch.uint8).set_(shared)
