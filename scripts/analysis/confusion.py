"""Confusion matrix of the classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations
from engine.evaluation.detections import Detections
from scripts.analysis.overlaps import image_overlaps

IntArray = npt.NDArray[np.int64]


def confusion_matrix(
    detections: Detections, annotations: Annotations, iou: float, score_threshold: float
) -> IntArray:
    """Compute ``(K + 1, K + 1)``: rows are ground truth, columns predictions.

    The last row is background (no object is there), the last column missed objects. Detections
    scoring at least the threshold are matched, by descending score, to the free object of the image
    that they overlap most, of any class. Those on crowds and difficult objects do not count.
    """
    kinds = len(annotations.classes)
    matrix = np.zeros((kinds + 1, kinds + 1), dtype=np.int64)
    sure = detections.select(np.flatnonzero(detections.score >= score_threshold))
    free = annotations.counted
    for image in image_overlaps(sure, annotations, iou):
        left = image.iou.copy()
        for place, row in enumerate(image.rows.tolist()):
            best = int(left[place].argmax()) if left.shape[1] else -1
            if best >= 0 and left[place, best] >= iou:
                target = int(image.objects[best])
                matrix[annotations.labels[target], sure.label[row]] += 1
                free[target] = False
                left[:, best] = 0
            elif not image.ignored[place]:
                matrix[kinds, sure.label[row]] += 1
    matrix[:kinds, kinds] = np.bincount(annotations.labels[free], minlength=kinds)
    return matrix
