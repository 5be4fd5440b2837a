"""Precision and recall at each score, counted by hand and against the average precision."""

from __future__ import annotations

import numpy as np
import pytest
from annotated import annotate

from engine.evaluation.detections import make_detections
from engine.evaluation.precision_recall import THRESHOLDS, precision_recall

OBJECTS = [(0, 0, [0, 0, 10, 10]), (0, 0, [20, 0, 30, 10]), (0, 0, [40, 0, 50, 10])]


def at(threshold: float) -> int:
    return int(np.searchsorted(THRESHOLDS, threshold))


def test_counts_are_those_of_a_hand_made_case() -> None:
    annotations = annotate(OBJECTS, difficult=[2])
    detections = make_detections(
        image=[0, 0, 0, 0, 0],
        label=[0, 0, 0, 0, 1],
        score=[0.9, 0.8, 0.7, 0.6, 0.5],
        # right, a second one on the same object, on the difficult one, right, of another class
        boxes=[OBJECTS[0][2], OBJECTS[0][2], OBJECTS[2][2], OBJECTS[1][2], OBJECTS[1][2]],
    )
    curves = precision_recall(detections, annotations)
    assert list(curves) == ["cat"]  # nothing to find of the other class
    curve = curves["cat"]
    assert curve.objects == 2
    for threshold, right, wrong in ((0.95, 0, 0), (0.85, 1, 0), (0.75, 1, 1), (0.0, 2, 1)):
        assert (curve.right[at(threshold)], curve.wrong[at(threshold)]) == (right, wrong)
    assert curve.precision[at(0.95)] == 1.0
    assert curve.precision[0] == pytest.approx(2 / 3)
    assert curve.recall[0] == 1.0


def test_a_score_that_equals_a_threshold_reaches_it() -> None:
    detections = make_detections([0], [0], [0.5], [OBJECTS[0][2]])
    curve = precision_recall(detections, annotate(OBJECTS))["cat"]
    assert (curve.right > 0).tolist() == (THRESHOLDS <= 0.5).tolist()


def test_without_detections_nothing_is_wrong_and_nothing_found() -> None:
    curve = precision_recall(make_detections([], [], [], []), annotate(OBJECTS))["cat"]
    assert (curve.precision == 1).all()
    assert (curve.recall == 0).all()
