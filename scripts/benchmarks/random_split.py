"""Random annotations and detections of a whole split, in realistic numbers."""

from __future__ import annotations

import numpy as np

from data.annotations import Annotations
from engine.evaluation.detections import Detections, make_detections

SIZE_HW = (480, 640)
DIFFICULT, CROWD = 0.1, 0.01  # shares of the objects
NEAR = 0.4  # share of the detections that lie about an object


def random_annotations(images: int, classes: int, objects: int) -> Annotations:
    """Return ``objects`` random boxes of at least 8 px."""
    rng = np.random.default_rng(0)
    image = np.sort(rng.integers(0, images, objects))
    boxes = random_boxes(rng, objects)
    names = np.array([f"{number:06d}" for number in range(images)])
    return Annotations(
        source="drawn at random",
        split="test",
        classes=tuple(f"class {number}" for number in range(classes)),
        category_ids=np.arange(1, classes + 1),
        names=names,
        files=np.char.add(names, ".jpg"),
        image_ids=np.arange(1, images + 1),
        sizes=np.tile(np.array(SIZE_HW, np.int32), (images, 1)),
        offsets=np.searchsorted(image, np.arange(images + 1)),
        boxes=boxes,
        labels=rng.integers(0, classes, objects).astype(np.int32),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        difficult=rng.random(objects) < DIFFICULT,
        crowd=rng.random(objects) < CROWD,
        masks=None,
    )


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return ``(count, 4)`` float64 boxes xyxy in the image; the sides' logarithms are uniform."""
    limit = np.array(SIZE_HW[::-1], np.float64)
    wh = np.exp(rng.uniform(np.log(8), np.log(limit * 0.8), (count, 2)))
    corner = rng.random((count, 2)) * (limit - wh)
    return np.hstack([corner, corner + wh]).round(2)


def random_detections(annotations: Annotations, count: int) -> Detections:
    """Return random detections: some near an object, with its class and a higher score."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, len(annotations), count)
    label = rng.integers(0, len(annotations.classes), count)
    boxes, score = random_boxes(rng, count), rng.beta(1, 6, count)
    near = np.flatnonzero(rng.random(count) < NEAR)
    truth = rng.integers(0, len(annotations.boxes), len(near))
    images = annotations.object_images()
    image[near], label[near] = images[truth], annotations.labels[truth]
    sides = annotations.boxes[truth, 2:] - annotations.boxes[truth, :2]
    shifts = rng.normal(0, 0.1, (len(near), 4)) * np.hstack([sides, sides])
    boxes[near] = annotations.boxes[truth] + shifts
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    score[near] = rng.beta(2, 3, len(near))
    return make_detections(image, label, score, boxes)
