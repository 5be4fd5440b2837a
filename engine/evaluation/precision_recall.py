"""Precision and recall of each class at each score: what TensorBoard draws."""

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
    """The detections of one class from each of ``THRESHOLDS`` on.

    Attributes:
        right: ``(T,)`` that claim an object.
        wrong: ``(T,)`` that do not.
        objects: objects that count.
    """

    right: Counts
    wrong: Counts
    objects: int

    @property
    def precision(self) -> npt.NDArray[np.float64]:
        """``(T,)``; 1 where nothing was detected: nothing was wrong either."""
        found = self.right + self.wrong
        return np.divide(self.right, found, out=np.ones(len(found)), where=found > 0)

    @property
    def recall(self) -> npt.NDArray[np.float64]:
        """``(T,)``."""
        return self.right / self.objects


def precision_recall(
    detections: Detections, annotations: Annotations, iou: float = 0.5
) -> Mapping[str, PrecisionRecall]:
    """The curve of each class that has objects, by the VOC rule at one IoU threshold."""
    order, right, ignored = match_detections(detections, annotations, iou)
    labels, scores = detections.label[order], detections.score[order]
    curves = {}
    for label, objects in enumerate(count_objects(annotations).tolist()):
        of_class = (labels == label) & ~ignored
        if objects:
            claimed = _from_each_threshold(scores[of_class & right])
            found = _from_each_threshold(scores[of_class])
            curves[annotations.classes[label]] = PrecisionRecall(claimed, found - claimed, objects)
    return curves


def _from_each_threshold(scores: npt.NDArray[np.float64]) -> Counts:
    """``(T,)``: how many scores reach each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores), THRESHOLDS, side="left")
