"""VOC average precision as Python trainers have long computed it: one detection at a time.

The baseline of ``benchmark.py voc``, after the algorithm (not the code) of py-faster-rcnn's
evaluation: for each class, by descending score, each detection is compared with the boxes of its
image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations
from engine.evaluation.detections import Detections

FloatArray = npt.NDArray[np.float64]
Objects = list[dict[str, Any]]

IOU = 0.5


def by_image(annotations: Annotations) -> Objects:
    """The boxes, labels and difficult flags of each image, as a parsed XML file holds them."""
    ignored = ~annotations.counted
    rows = [annotations.objects_of(image) for image in range(len(annotations))]
    return [
        {
            "boxes": annotations.boxes[part],
            "labels": annotations.labels[part],
            "difficult": ignored[part],
        }
        for part in rows
    ]


def voc_eval(
    detections: Detections, objects: Objects, classes: tuple[str, ...]
) -> dict[str, float]:
    """The area under the curve of each class that has objects, at IoU 0.5."""
    scores = {}
    for label, name in enumerate(classes):
        truth, positives = _objects_of_class(objects, label)
        rows = np.flatnonzero(detections.label == label)
        rows = rows[np.argsort(-detections.score[rows], kind="stable")]
        right, wrong = np.zeros(len(rows)), np.zeros(len(rows))
        for place, row in enumerate(rows):
            match = _judge(detections.boxes[row], truth[detections.image[row]])
            right[place], wrong[place] = match == "right", match == "wrong"
        if positives:
            scores[name] = _average_precision(np.cumsum(right), np.cumsum(wrong), positives)
    return scores


def _objects_of_class(objects: Objects, label: int) -> tuple[Objects, int]:
    truth = []
    positives = 0
    for image in objects:
        chosen = image["labels"] == label
        difficult = image["difficult"][chosen]
        found = [False] * int(chosen.sum())
        truth.append({"boxes": image["boxes"][chosen], "difficult": difficult, "found": found})
        positives += int((~difficult).sum())
    return truth, positives


def _judge(box: FloatArray, truth: dict[str, Any]) -> str:
    boxes = truth["boxes"]
    if len(boxes) == 0:
        return "wrong"
    width = np.minimum(boxes[:, 2], box[2]) - np.maximum(boxes[:, 0], box[0])
    height = np.minimum(boxes[:, 3], box[3]) - np.maximum(boxes[:, 1], box[1])
    inter = np.maximum(width, 0) * np.maximum(height, 0)
    union = (box[2] - box[0]) * (box[3] - box[1])
    union = union + (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) - inter
    overlaps = inter / union
    best = int(np.argmax(overlaps))
    if overlaps[best] < IOU:
        return "wrong"
    if truth["difficult"][best]:
        return "ignored"
    if truth["found"][best]:
        return "wrong"
    truth["found"][best] = True
    return "right"


def _average_precision(right: FloatArray, wrong: FloatArray, positives: int) -> float:
    recall = np.concatenate([[0.0], right / positives, [1.0]])
    precision = right / np.maximum(right + wrong, np.finfo(np.float64).eps)
    precision = np.concatenate([[0.0], precision, [0.0]])
    for place in range(len(precision) - 1, 0, -1):
        precision[place - 1] = max(precision[place - 1], precision[place])
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * precision[steps + 1]))
