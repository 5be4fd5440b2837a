"""Detection in images that have no annotations."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from data.annotations import Annotations
from data.formats.in_memory import annotations_of
from data.images import Pixels, resize_image, resized_size
from data.target import Batch, pad_targets
from detector.preprocessing import padded
from engine.evaluation.detections import Detections
from engine.evaluation.evaluator import detect
from engine.evaluation.flip_tta import with_flip
from engine.trained import Trained


class Predictor:
    """Runs a trained detector over images of any size.

    Args:
        trained: the detector, as returned by :func:`engine.trained.load_trained`.

    Attributes:
        images: number of images processed.
        seconds: time they took, from resized pixels to detections on the host.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self.images = 0
        self.seconds = 0.0

    def __call__(self, images: Sequence[Pixels]) -> Detections:
        """``(H, W, 3)`` RGB uint8 images -> their detections, in pixels of each image.

        ``Detections.image`` is an index into ``images``, ``Detections.label`` one into
        ``trained.classes``. Only images of equal padded size are batched together: group norm
        includes the padding, so a larger image in the batch would change the detections of a
        smaller one.
        """
        bounds = self.trained.config.data.image_size
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        resized = [resized_size(size, bounds) for size in sizes]
        groups: dict[tuple[int, int], list[int]] = {}
        for row, (height, width) in enumerate(resized):
            groups.setdefault((padded(height), padded(width)), []).append(row)
        batches = [
            _batch({row: resize_image(images[row], resized[row]) for row in rows})
            for rows in groups.values()
        ]
        start = time.perf_counter()
        detections = detect(
            with_flip(self.trained.detector, self.trained.config),
            batches,
            unannotated([str(row) for row in range(len(images))], sizes, self.trained.classes),
            self.trained.device,
            self.trained.config.train.amp,
        )
        self.seconds += time.perf_counter() - start
        self.images += len(images)
        return detections


def unannotated(
    names: Sequence[str],
    sizes_hw: Sequence[tuple[int, int]],
    classes: Sequence[str],
    split: str = "test",
) -> Annotations:
    """Build annotations without objects, for drawing and result files.

    Image and category ids count from 1.
    """
    nothing: list[tuple[()]] = [()] * len(names)
    images = annotations_of(classes, names, sizes_hw, nothing, nothing, split=split)
    return replace(images, source="the images", names=np.array(names, dtype=np.str_))


def _batch(images: Mapping[int, Pixels]) -> Batch:
    """Build a batch without objects from images by index."""
    tensors = tuple(torch.from_numpy(image).permute(2, 0, 1) for image in images.values())
    boxes, labels = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
    targets = pad_targets([boxes] * len(images), [labels] * len(images))
    return Batch(tensors, targets, tuple(images))
