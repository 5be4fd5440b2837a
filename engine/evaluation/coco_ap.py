"""The twelve COCO scores for boxes or masks, computed from arrays in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from data.annotations import Annotations
from data.masks import encode_object
from engine.evaluation.coco_engines import (
    CocoInputs,
    CocoObjects,
    Engine,
    Kind,
    check_engine,
    compute_stats,
)
from engine.evaluation.detections import Detections, sides_of

# In the order of the API's summary; detections per image and class are cut to 1, 10 and 100.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

# COCO ignores ground truth outside the range of areas being scored; no range contains this one.
IGNORED_AREA = -1.0


def coco_scores(
    detections: Detections,
    annotations: Annotations,
    kind: Kind = "bbox",
    engine: Engine = "pycocotools",
) -> dict[str, float | None]:
    """Compute the twelve COCO scores; None where the API gives -1, for lack of ground truth.

    Crowd regions are the API's crowds. Difficult boxes of VOC do not count, nor does one
    detection on each. Without detections the scores are 0.

    Args:
        detections: detections of the split; with masks for ``kind="segm"``.
        annotations: ground truth; with masks for ``kind="segm"``, where an object without one
            counts as its box.
        kind: whether boxes or masks are compared.
        engine: the program that computes the scores; all give the same numbers.

    Raises:
        InputError: the engine is not installed.
    """
    check_engine(engine)
    present = np.unique(annotations.labels)
    if len(present) == 0:
        return dict.fromkeys(NAMES)
    # every mean leaves out classes without ground truth, so their detections do not matter
    relevant = detections.select(np.flatnonzero(np.isin(detections.label, present)))
    inputs = CocoInputs(
        _images(annotations),
        _ordinals(annotations.category_ids)[present],
        _truth_objects(annotations, kind),
        annotations.crowd,
        _detected_objects(relevant, annotations, kind),
        relevant.score,
        kind,
    )
    stats = compute_stats(inputs, engine)
    return {
        name: None if value < 0 else float(value) for name, value in zip(NAMES, stats, strict=True)
    }


def _images(annotations: Annotations) -> list[dict[str, Any]]:
    return [
        {"id": image_id, "height": height, "width": width}
        for image_id, (height, width) in zip(
            _ordinals(annotations.image_ids).tolist(), annotations.sizes.tolist(), strict=True
        )
    ]


def _truth_objects(annotations: Annotations, kind: Kind) -> CocoObjects:
    rows = annotations.object_images()
    areas = np.where(annotations.difficult, IGNORED_AREA, annotations.areas)
    masks = _true_masks(annotations) if kind == "segm" else None
    return _objects(rows, annotations.labels, annotations.boxes, areas, masks, annotations)


def _true_masks(annotations: Annotations) -> list[dict[str, Any]]:
    assert annotations.masks is not None
    return [
        encode_object(annotations.masks, row, annotations.boxes[row], size)
        for image, size in enumerate(annotations.sizes.tolist())
        for row in range(*annotations.objects_of(image).indices(len(annotations.boxes)))
    ]


def _detected_objects(detections: Detections, annotations: Annotations, kind: Kind) -> CocoObjects:
    """Detections with the areas of their boxes, or of their masks where masks are scored."""
    areas, masks = sides_of(detections.boxes).prod(axis=1), None
    if kind == "segm":
        assert detections.rles is not None
        sizes = annotations.sizes[detections.image].tolist()
        masks = [
            {"size": size, "counts": rle} for size, rle in zip(sizes, detections.rles, strict=True)
        ]
        # one by one: pycocotools fails on the areas of a list of more than 255 masks
        areas = np.array([coco_mask.area(mask) for mask in masks], dtype=np.float64)
    return _objects(detections.image, detections.label, detections.boxes, areas, masks, annotations)


def _objects(
    images: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int32],
    boxes: npt.NDArray[np.float64],
    areas: npt.NDArray[np.float64],
    masks: list[dict[str, Any]] | None,
    annotations: Annotations,
) -> CocoObjects:
    """Build the columns that objects and detections share."""
    xywh = np.hstack([boxes[:, :2], sides_of(boxes)])
    image_ids, category_ids = _ordinals(annotations.image_ids), _ordinals(annotations.category_ids)
    return CocoObjects(image_ids[images], category_ids[labels], xywh, areas, masks)


def _ordinals(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Map ids to 1, 2, ... in their order, which breaks ties of equal scores.

    The ids themselves may exceed what a float64, in which engines read them, can represent.
    """
    return np.unique(ids, return_inverse=True)[1].astype(np.int64) + 1
