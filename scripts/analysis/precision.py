"""Precision-recall curves, best score thresholds, and calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations
from engine.evaluation.detections import Detections
from engine.evaluation.voc_map import count_objects, voc_scores
from scripts.analysis.crowds import judge_beside_crowds

FloatArray = npt.NDArray[np.float64]

BINS = 10
MOST_POINTS = 200  # of each curve in the report


def class_curves(
    detections: Detections, annotations: Annotations, iou: float
) -> dict[str, dict[str, Any]]:
    """Compute the precision-recall curve of each class with objects, by VOC's rule except crowds.

    Returns:
        ``{class: {"AP", "objects", "detections", "recall": [...], "precision": [...],
        "best_f1", "best_threshold"}}``, with the best F1 over all score thresholds and its
        threshold. ``AP`` is that of VOC's mAP, which treats crowds as difficult boxes.
    """
    ((order, right, ignored),) = judge_beside_crowds(detections, annotations, [iou])
    labels, scores = detections.label[order], detections.score[order]
    area = voc_scores(detections, annotations, iou)["area"]["AP"]
    curves = {}
    for label, (name, objects) in enumerate(
        zip(annotations.classes, count_objects(annotations).tolist(), strict=True)
    ):
        if objects:
            mine = (labels == label) & ~ignored
            curve = _curve(right[mine], scores[mine], objects)
            curves[name] = {"AP": area[name], "objects": objects, **curve}
    return curves


def _curve(right: npt.NDArray[np.bool_], scores: FloatArray, objects: int) -> dict[str, Any]:
    correct = np.cumsum(right)
    recall = correct / objects
    precision = correct / np.arange(1, len(right) + 1)
    f1 = 2 * correct / (np.arange(1, len(right) + 1) + objects)
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))  # no threshold separates equal scores
    best = int(ends[f1[ends].argmax()]) if len(f1) else None
    # The envelope changes where a detection is right: evenly over the others the points would miss
    # it where there are many.
    steps = np.flatnonzero(right)
    places = np.linspace(0, len(steps) - 1, min(MOST_POINTS, len(steps))).astype(int)
    chosen = np.union1d(steps[np.unique(places)], np.arange(len(right))[-1:])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return {
        "detections": len(right),
        "recall": recall[chosen].round(5).tolist(),
        "precision": envelope[chosen].round(5).tolist(),
        "best_f1": None if best is None else float(f1[best]),
        "best_threshold": None if best is None else float(scores[best]),
    }


def are_probabilities(scores: FloatArray) -> bool:
    """Return whether scores may be probabilities; other programs may write logits or percent."""
    return bool(((scores >= 0) & (scores <= 1)).all())


def calibration(detections: Detections, annotations: Annotations, iou: float) -> dict[str, Any]:
    """Compute the calibration: whether 80 % of the detections with a score of 0.8 are correct.

    Returns:
        ``{"error", "bins": [{"low", "high", "count", "score", "precision"}]}``. The error is the
        mean distance of score and precision over the detections (expected calibration error, Guo
        et al. 2017). Without detections, or if scores are not probabilities, it is None and the
        bins are empty.
    """
    ((order, right, ignored),) = judge_beside_crowds(detections, annotations, [iou])
    scores, right = detections.score[order][~ignored], right[~ignored]
    if not are_probabilities(scores):
        scores, right = scores[:0], right[:0]
    places = np.clip((scores * BINS).astype(int), 0, BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    means = np.bincount(places, scores, BINS) / np.maximum(counts, 1)
    shares = np.bincount(places, right, BINS) / np.maximum(counts, 1)
    error = float((counts * np.abs(means - shares)).sum() / len(scores)) if len(scores) else None
    return {
        "error": error,
        "bins": [
            {
                "low": place / BINS,
                "high": (place + 1) / BINS,
                "count": int(counts[place]),
                "score": float(means[place]) if counts[place] else None,
                "precision": float(shares[place]) if counts[place] else None,
            }
            for place in range(BINS)
        ],
    }
