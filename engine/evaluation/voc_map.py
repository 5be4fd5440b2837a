"""PASCAL VOC average precision in the definitions of 2010-2012 (area) and of 2007 (11 points).

The rule of the official devkit (``VOCevaldet.m``, ``VOCap.m``): detections of a class are processed
by descending score; each is matched to the ground truth box of its image and class with the largest
IoU, and is correct if that reaches the threshold and no earlier detection has claimed the box.
Difficult boxes neither count as objects nor make the detections that lie on them wrong.

The devkit measures inclusive pixel boxes with ``+ 1``; in this project's coordinates
(``xmin - 1, ymin - 1, xmax, ymax``) that is the plain area.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations
from engine.evaluation.detections import Detections

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# MATLAB's 0:0.1:1 holds multiples of the double 0.1: 3 * 0.1 is 0.30000000000000004, which a recall
# of 3/10 does not reach.
ELEVEN_RECALLS: FloatArray = np.arange(11, dtype=np.float64) * 0.1


def voc_scores(
    detections: Detections, annotations: Annotations, iou: float = 0.5
) -> dict[str, dict[str, Any]]:
    """Score detections against ground truth at one IoU threshold.

    Crowd regions of COCO are treated as difficult boxes.

    Returns:
        ``{"area": {"mAP": float, "AP": {class: float}}, "11point": {...}}``. A class without ground
        truth (not counting difficult boxes) has None and is left out of the mean; if all classes
        are, the mean is None.
    """
    positives = count_objects(annotations)
    labels, recalls, precisions = _true_positives(detections, annotations, positives, iou)
    starts = np.searchsorted(labels, np.arange(len(positives) + 1))
    area: list[float | None] = []
    eleven: list[float | None] = []
    for label, count in enumerate(positives):
        one_class = slice(starts[label], starts[label + 1])
        recall, envelope = recalls[one_class], _envelope(precisions[one_class])
        area.append(_area_ap(recall, envelope) if count else None)
        eleven.append(_eleven_point_ap(recall, envelope) if count else None)
    return {
        "area": _named(annotations.classes, area),
        "11point": _named(annotations.classes, eleven),
    }


def count_objects(annotations: Annotations) -> IntArray:
    """Count the boxes of each class that are neither difficult nor crowd -> ``(K,)``."""
    counted = annotations.counted
    return np.bincount(annotations.labels[counted], minlength=len(annotations.classes))


def _named(classes: tuple[str, ...], values: list[float | None]) -> dict[str, Any]:
    present = [value for value in values if value is not None]
    mean = float(np.mean(present)) if present else None
    return {"mAP": mean, "AP": dict(zip(classes, values, strict=True))}


def _true_positives(
    detections: Detections, annotations: Annotations, positives: IntArray, iou: float
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Label, recall and precision at each true positive, by class and descending score.

    Precision only falls between them, so they determine the precision-recall curve.
    """
    order, right, ignored = match_detections(detections, annotations, iou)
    labels = detections.label[order].astype(np.int64)
    claims = np.flatnonzero(right)
    claimed = labels[claims]
    counted = np.concatenate([[0], np.cumsum(~ignored)])
    rank = counted[claims + 1] - counted[np.searchsorted(labels, claimed)]
    correct = np.arange(1, len(claims) + 1) - np.searchsorted(claimed, claimed)
    return claimed, correct / positives[claimed], correct / rank


def match_detections(
    detections: Detections, annotations: Annotations, iou: float = 0.5
) -> tuple[IntArray, BoolArray, BoolArray]:
    """Find the correct detections by the devkit's rule.

    Returns:
        Three ``(D,)`` arrays: rows of the detections by class and descending score; in that order,
        whether each claims an object; and whether it lies on a difficult one and does not count.
    """
    overlap, box = _best_overlaps(detections, annotations)
    order = _by_class_and_score(detections)
    box = box[order]
    on_box = (overlap[order] >= iou) & (box >= 0)
    # the appended value is for row -1, no box
    ignored = on_box & np.append(~annotations.counted, False)[box]
    candidates = np.flatnonzero(on_box & ~ignored)
    right = np.zeros(len(order), dtype=np.bool_)
    right[_first_for_each_box(candidates, box, len(annotations.boxes))] = True
    return order, right, ignored


def _first_for_each_box(candidates: IntArray, box: IntArray, boxes: int) -> IntArray:
    """The first of the detections that lie on the same box, in order."""
    first = np.full(boxes, -1, dtype=np.int64)
    first[box[candidates[::-1]]] = candidates[::-1]  # the last of several assignments wins
    return np.sort(first[first >= 0])


def _by_class_and_score(detections: Detections) -> IntArray:
    """The order by class, then descending score; ties keep their order, as in MATLAB's sort.

    Numpy's stable sort of floats takes three times as long as its fast one. So rank the scores with
    the fast one, equal scores equally, and sort distinct integers (class, rank, row).
    """
    total = len(detections)
    rows = np.argsort(-detections.score)
    descending = detections.score[rows]
    rank = np.concatenate([[0], np.cumsum(descending[1:] != descending[:-1])])[:total]
    keys = (detections.label[rows].astype(np.int64) * total + rank) * total + rows
    keys.sort()
    return keys % total


def _best_overlaps(detections: Detections, annotations: Annotations) -> tuple[FloatArray, IntArray]:
    """The largest IoU of each detection with a box of its image and class, and the row of that box.

    Without such a box the IoU is 0 and the row -1; of equal overlaps the first box wins. All
    detections are compared with the first box of their image and class, then the second, and so on:
    as many passes as the most crowded image and class has boxes, in memory linear in detections.
    """
    best, best_row = np.zeros(len(detections)), np.full(len(detections), -1, dtype=np.int64)
    truth_rows, groups, first, count = _group_ground_truth(annotations)
    if len(groups) == 0:
        return best, best_row
    keys = detections.image * len(annotations.classes) + detections.label
    group = np.minimum(np.searchsorted(groups, keys), len(groups) - 1)
    active = np.flatnonzero(groups[group] == keys)
    for nth in range(count.max()):
        active = active[count[group[active]] > nth]
        rows = truth_rows[first[group[active]] + nth]
        overlap = _paired_iou(
            detections.boxes.take(active, axis=0), annotations.boxes.take(rows, axis=0)
        )
        better = overlap > best[active]
        best[active[better]] = overlap[better]
        best_row[active[better]] = rows[better]
    return best, best_row


def _group_ground_truth(
    annotations: Annotations,
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Group the boxes by image and class.

    Returns:
        The rows of all boxes, sorted by group; and for each group its key ``image * K + label``,
        the position of its first row, and its number of rows.
    """
    images = annotations.object_images()
    keys = images * len(annotations.classes) + annotations.labels
    rows = np.argsort(keys, kind="stable")
    groups, first, count = np.unique(keys[rows], return_index=True, return_counts=True)
    return rows, groups, first, count


def _paired_iou(boxes_xyxy: FloatArray, others_xyxy: FloatArray) -> FloatArray:
    """``(P, 4)``, ``(P, 4)`` -> ``(P,)``: intersection over union of each pair, 0 if disjoint.

    >>> _paired_iou(np.array([[0.0, 0.0, 2.0, 2.0]]), np.array([[0.0, 0.0, 2.0, 1.0]])).tolist()
    [0.5]
    """
    x1, y1, x2, y2 = np.ascontiguousarray(boxes_xyxy.T)
    u1, v1, u2, v2 = np.ascontiguousarray(others_xyxy.T)
    width = np.maximum(np.minimum(x2, u2) - np.maximum(x1, u1), 0)
    height = np.maximum(np.minimum(y2, v2) - np.maximum(y1, v1), 0)
    intersection = width * height
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)


def _envelope(precision: FloatArray) -> FloatArray:
    """The highest precision at each recall or any higher recall."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def _area_ap(recall: FloatArray, envelope: FloatArray) -> float:
    """The area under the precision envelope, a step function of recall.

    >>> _area_ap(np.array([0.5, 1.0]), np.array([1.0, 0.5]))
    0.75
    """
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _eleven_point_ap(recall: FloatArray, envelope: FloatArray) -> float:
    """The mean of the envelope at eleven recalls, 0 beyond the highest recall reached.

    >>> _eleven_point_ap(np.array([0.5]), np.array([1.0]))  # reached: 0, 0.1, ... 0.5
    0.5454545454545454
    """
    reached = np.searchsorted(recall, ELEVEN_RECALLS)
    return float(np.sum(np.append(envelope, 0.0)[reached]) / len(ELEVEN_RECALLS))
