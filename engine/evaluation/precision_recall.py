"""Precision-recall curves of each class over score thresholds, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations
from engine.evaluation.detections import Detections
from engine.evaluation.voc_map import count_objects, match_detections

Counts = npt.NDArray[np.int64]

THRESHOLDS: npt.NDArray[np.float64] = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class PrecisionRecall:
    """Counts of one class at each score threshold in ``THRESHOLDS``.

    Attributes:
        right: ``(T,)`` true positives.
        wrong: ``(T,)`` false positives.
        objects: number of objects that count.
    """

    right: Counts
    wrong: Counts
    objects: int

    @property
    def precision(self) -> npt.NDArray[np.float64]:
        """Precision at each threshold, ``(T,)``; 1 without detections."""
        found = self.right + self.wrong
        return np.divide(self.right, found, out=np.ones(len(found)), where=found > 0)

    @property
    def recall(self) -> npt.NDArray[np.float64]:
        """Recall at each threshold, ``(T,)``."""
        return self.right / self.objects


def precision_recall(
    detections: Detections, annotations: Annotations, iou: float = 0.5
) -> Mapping[str, PrecisionRecall]:
    """Compute the curve of each class that has objects, by the VOC rule at one IoU threshold."""
    order, right, ignored = match_detections(detections, annotations, iou)
    labels, scores = detections.label[order], detections.score[order]
    curves = {}
    for label, objects in enumerate(count_objects(annotations).tolist()):
        of_class = (labels == label) & ~ignored
        if objects:
            claimed = _count_at_thresholds(scores[of_class & right])
            found = _count_at_thresholds(scores[of_class])
            curves[annotations.classes[label]] = PrecisionRecall(claimed, found - claimed, objects)
    return curves


def _count_at_thresholds(scores: npt.NDArray[np.float64]) -> Counts:
    """Count the scores that reach each threshold -> ``(T,)``."""
    return len(scores) - np.searchsorted(np.sort(scores), THRESHOLDS, side="left")
