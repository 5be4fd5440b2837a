"""Ground truth and detections made by hand or at random, for the tests of scores and files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.annotations import Annotations
from data.masks import MaskStore
from engine.evaluation.detections import Detections, make_detections


def annotate(
    objects: Sequence[tuple[int, int, Sequence[float]]] = (),
    images: int = 1,
    classes: Sequence[str] = ("cat", "dog"),
    size: tuple[int, int] = (100, 120),
    difficult: Sequence[int] = (),
    crowd: Sequence[int] = (),
    masks: MaskStore | None = None,
) -> Annotations:
    """``objects`` are (image, label, box), ordered by image; the last two name rows of them.

    Image ids are 7, 17, 27, ...; category ids 3, 6, 9, ...: not those of the rows.
    """
    image = np.array([number for number, _, _ in objects], dtype=np.int64)
    boxes = np.array([box for _, _, box in objects], dtype=np.float64).reshape(-1, 4)
    rows = np.arange(len(objects))
    return Annotations(
        source="made by hand",
        split="test",
        classes=tuple(classes),
        category_ids=np.arange(1, len(classes) + 1) * 3,
        names=np.array([f"image_{number}" for number in range(images)], dtype=str),
        files=np.array([f"image_{number}.jpg" for number in range(images)], dtype=str),
        image_ids=np.arange(images) * 10 + 7,
        sizes=np.tile(np.array(size, dtype=np.int32), (images, 1)),
        offsets=np.searchsorted(image, np.arange(images + 1)),
        boxes=boxes,
        labels=np.array([label for _, label, _ in objects], dtype=np.int32),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        difficult=np.isin(rows, difficult),
        crowd=np.isin(rows, crowd),
        masks=masks,
    )


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes on a coarse grid, so that overlaps of exactly a threshold happen."""
    corner = rng.integers(0, 12, (count, 2))
    return np.hstack([corner, corner + rng.integers(1, 8, (count, 2))]).astype(np.float64)


def random_annotations(
    rng: np.random.Generator, images: int, classes: int, objects: int
) -> Annotations:
    """Some classes and images without objects, some objects difficult, some crowds."""
    image = np.sort(rng.integers(0, images, objects))
    label = rng.integers(0, max(classes - 1, 1), objects)
    return annotate(
        list(zip(image.tolist(), label.tolist(), random_boxes(rng, objects), strict=True)),
        images=images,
        classes=[f"class {number}" for number in range(classes)],
        difficult=np.flatnonzero(rng.random(objects) < 0.2).tolist(),
        crowd=np.flatnonzero(rng.random(objects) < 0.1).tolist(),
    )


def random_detections(
    rng: np.random.Generator, annotations: Annotations, count: int, scores: int = 20
) -> Detections:
    """Half of them on the ground truth; few different scores, so that many are equal."""
    truth = rng.integers(0, max(len(annotations.boxes), 1), count)
    images = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    near = (rng.random(count) < 0.5) & (len(annotations.boxes) > 0)
    image = rng.integers(0, len(annotations), count)
    label = rng.integers(0, len(annotations.classes), count)
    boxes = random_boxes(rng, count)
    image[near] = images[truth[near]]
    label[near] = annotations.labels[truth[near]]
    boxes[near] = annotations.boxes[truth[near]] + rng.integers(-1, 2, (near.sum(), 4)) * [
        1,
        1,
        0,
        0,
    ]
    return make_detections(image, label, rng.integers(0, scores, count) / scores, boxes)


def rle_masks(rles: list[bytes]) -> MaskStore:
    """Ground truth masks that are all run-length strings."""
    ends = np.cumsum([len(rle) for rle in rles])
    return MaskStore(
        np.zeros((len(rles), 2), np.int64),
        np.zeros((0, 2), np.int64),
        np.zeros(0, np.int32),
        np.stack([np.append(0, ends[:-1]), ends], axis=1),
        np.frombuffer(b"".join(rles), np.uint8),
    )
