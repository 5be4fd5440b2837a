"""Overlaps of detections and ground truth, image by image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations
from engine.evaluation.detections import Detections

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ImageOverlaps:
    """Overlaps in an image that has detections.

    Attributes:
        rows: ``(D,)`` rows of its detections by descending score; equal scores keep their order.
        objects: ``(N,)`` rows of its objects that count.
        iou: ``(D, N)`` IoU of detections and objects.
        ignored: ``(D,)`` bool: detection on a difficult object or in a crowd of its class.
    """

    rows: IntArray
    objects: IntArray
    iou: FloatArray
    ignored: BoolArray


def image_overlaps(
    detections: Detections, annotations: Annotations, threshold: float
) -> Iterator[ImageOverlaps]:
    """Yield the overlaps of every image with detections.

    Args:
        threshold: a detection is ignored if its share in a crowd, or its IoU with a difficult
            object, is at least this.
    """
    order = np.lexsort((-detections.score, detections.image))
    images, starts = np.unique(detections.image[order], return_index=True)
    for image, rows in zip(images.tolist(), np.split(order, starts)[1:], strict=True):
        span = annotations.objects_of(image)
        objects = np.arange(span.start, span.stop)
        left_out = annotations.difficult[objects] | annotations.crowd[objects]
        boxes = detections.boxes[rows]
        counted = objects[~left_out]
        ignored = _ignored(detections, annotations, rows, objects[left_out], threshold)
        yield ImageOverlaps(rows, counted, box_iou(boxes, annotations.boxes[counted]), ignored)


def _ignored(
    detections: Detections,
    annotations: Annotations,
    rows: IntArray,
    objects: IntArray,
    threshold: float,
) -> BoolArray:
    if not len(objects):
        return np.zeros(len(rows), dtype=np.bool_)
    boxes, others = detections.boxes[rows], annotations.boxes[objects]
    covered = np.where(
        annotations.crowd[objects], share_inside(boxes, others), box_iou(boxes, others)
    )
    same = detections.label[rows, None] == annotations.labels[objects]
    ignored: BoolArray = ((covered >= threshold) & same).any(axis=1)
    return ignored


def box_iou(boxes_xyxy: FloatArray, others_xyxy: FloatArray) -> FloatArray:
    """Compute IoU, ``(D, 4)``, ``(N, 4)`` -> ``(D, N)``; 0 without overlap.

    >>> box_iou(np.array([[0.0, 0.0, 2.0, 2.0]]), np.array([[0.0, 0.0, 2.0, 1.0]])).tolist()
    [[0.5]]
    """
    intersection = _intersection(boxes_xyxy, others_xyxy)
    union = _area(boxes_xyxy)[:, None] + _area(others_xyxy) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)


def share_inside(boxes_xyxy: FloatArray, others_xyxy: FloatArray) -> FloatArray:
    """Compute ``(D, N)``: the share of each box in each other one, COCO's overlap with crowds."""
    intersection = _intersection(boxes_xyxy, others_xyxy)
    area = np.broadcast_to(_area(boxes_xyxy)[:, None], intersection.shape)
    return np.divide(intersection, area, out=np.zeros_like(intersection), where=intersection > 0)


def _intersection(boxes_xyxy: FloatArray, others_xyxy: FloatArray) -> FloatArray:
    low = np.maximum(boxes_xyxy[:, None, :2], others_xyxy[None, :, :2])
    high = np.minimum(boxes_xyxy[:, None, 2:], others_xyxy[None, :, 2:])
    sides: FloatArray = np.maximum(high - low, 0)
    product: FloatArray = sides.prod(axis=2)
    return product


def _area(boxes_xyxy: FloatArray) -> FloatArray:
    area: FloatArray = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    return area
