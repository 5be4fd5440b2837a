"""Average precision by the size of objects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data.annotations import Annotations
from engine.evaluation.coco_ap import coco_scores
from engine.evaluation.coco_engines import Engine
from engine.evaluation.detections import Detections

SIZES = {"small": "APs", "medium": "APm", "large": "APl"}
BOUNDS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}


def ap_by_size(
    detections: Detections,
    annotations: Annotations,
    engine: Engine = "pycocotools",
    show_progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Compute COCO's AP of small, medium and large objects, and the number of objects.

    COCO's bounds belong to both sizes: an object of 32 x 32 pixels is small and medium.

    Returns:
        ``{"all classes": {"AP", "small", "medium", "large", "small_objects", ...}, class: ...}``;
        AP is None if a class has no object of a size.
    """
    report = {"all classes": _row(detections, annotations, engine)}
    if len(annotations.classes) > 1:
        bar = tqdm(
            annotations.classes, "AP by size", delay=2, leave=False, disable=not show_progress
        )
        for label, name in enumerate(bar):
            if (annotations.labels == label).any():
                key = f"{name} (class)" if name in report else name  # one may be called as the row
                report[key] = _row(*_of_class(detections, annotations, label), engine)
    return report


def _row(detections: Detections, annotations: Annotations, engine: Engine) -> dict[str, Any]:
    scores = coco_scores(detections, annotations, "bbox", engine)
    counted = annotations.counted
    row: dict[str, Any] = {"AP": scores["AP"]}
    for size, name in SIZES.items():
        low, high = BOUNDS[size]
        inside = (annotations.areas >= low) & (annotations.areas <= high) & counted
        row[size] = scores[name]
        row[f"{size}_objects"] = int(inside.sum())
    return row


def _of_class(
    detections: Detections, annotations: Annotations, label: int
) -> tuple[Detections, Annotations]:
    """Return the same images with only one class."""
    mine = np.flatnonzero(detections.label == label)
    objects = np.flatnonzero(annotations.labels == label)
    return detections.select(mine), only_objects(annotations, objects)


def only_objects(annotations: Annotations, rows: npt.NDArray[np.int64]) -> Annotations:
    """Return all images with the given objects (ascending rows), without masks."""
    images = annotations.object_images()[rows]
    counts = np.bincount(images, minlength=len(annotations))
    return replace(
        annotations,
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes=annotations.boxes[rows],
        labels=annotations.labels[rows],
        areas=annotations.areas[rows],
        difficult=annotations.difficult[rows],
        crowd=annotations.crowd[rows],
        masks=None,
    )
