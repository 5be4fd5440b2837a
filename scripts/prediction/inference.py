"""A detector over pictures that have no annotations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch

from data.annotations import Annotations
from data.images import Pixels, resize_image, resized_size
from data.target import Batch, pad_targets
from detector.preprocessing import padded
from engine.evaluation.detections import Detections
from engine.evaluation.evaluator import detect
from engine.evaluation.test_time_flip import with_flip
from engine.trained import Trained


@dataclass
class Looker:
    """Runs a detector over batches of pictures, and takes the time.

    Attributes:
        trained: the detector.
        pictures: how many it has seen.
        seconds: how long it took for them, from resized pixels to detections on the host.
    """

    trained: Trained
    pictures: int = 0
    seconds: float = field(default=0.0)

    def look(self, images: Sequence[Pixels]) -> Detections:
        """What is found in ``(H, W, 3)`` images; ``Detections.image`` counts them from 0.

        Those that need equally much padding go through the detector together: group norm counts
        padding, too, so that the company of a larger picture would change what is found in one.
        """
        bounds = self.trained.config.data.image_size
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        resized = [resized_size(size, bounds) for size in sizes]
        together: dict[tuple[int, int], list[int]] = {}
        for row, (height, width) in enumerate(resized):
            together.setdefault((padded(height), padded(width)), []).append(row)
        batches = [
            _batch({row: resize_image(images[row], resized[row]) for row in rows})
            for rows in together.values()
        ]
        start = time.perf_counter()
        detections = detect(
            with_flip(self.trained.detector, self.trained.config),
            batches,
            unannotated([str(number) for number in range(len(images))], sizes, self.trained),
            self.trained.device,
            self.trained.config.train.amp,
        )
        self.seconds += time.perf_counter() - start
        self.pictures += len(images)
        return detections


def _batch(images: Mapping[int, Pixels]) -> Batch:
    """Images by their number, without objects."""
    tensors = tuple(torch.from_numpy(image).permute(2, 0, 1) for image in images.values())
    boxes, labels = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
    targets = pad_targets([boxes] * len(images), [labels] * len(images))
    return Batch(tensors, targets, tuple(images))


def unannotated(
    names: Sequence[str], sizes_hw: Sequence[tuple[int, int]], trained: Trained, split: str = "test"
) -> Annotations:
    """Images without objects: what drawing and result files need to know of them.

    Image and category ids count from 1.
    """
    count = len(names)
    kinds = len(trained.classes)
    return Annotations(
        source="the images",
        split=split,
        classes=trained.classes,
        category_ids=np.arange(1, kinds + 1),
        names=np.array(names, dtype=np.str_),
        files=np.array(names, dtype=np.str_),
        image_ids=np.arange(1, count + 1),
        sizes=np.array(sizes_hw, dtype=np.int32).reshape(-1, 2),
        offsets=np.zeros(count + 1, dtype=np.int64),
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, dtype=np.int32),
        areas=np.zeros(0),
        difficult=np.zeros(0, dtype=np.bool_),
        crowd=np.zeros(0, dtype=np.bool_),
    )


def in_batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` items, the last one shorter."""
    while batch := list(islice(items, size)):
        yield batch
