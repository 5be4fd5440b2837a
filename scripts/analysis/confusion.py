"""Which class is taken for which."""

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
    """``(K + 1, K + 1)``: rows are what is there, columns what was said.

    The last row is background (nothing was there), the last column what was missed. Detections from
    the threshold on choose, from the highest score of an image down, the free object that they
    overlap most, whatever its class. What lies on crowds and difficult objects does not count.
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
