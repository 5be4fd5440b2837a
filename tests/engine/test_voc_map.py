"""VOC average precision against the official devkit and against the rule written out plainly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from annotated import annotate, random_annotations, random_detections

from data.annotations import Annotations
from data.formats.voc import load_voc
from engine.evaluation.comp4 import read_comp4
from engine.evaluation.detections import Detections, make_detections
from engine.evaluation.voc_map import count_objects, voc_scores

DEVKIT = Path(__file__).parent / "fixtures" / "voc_devkit"
SQUARE = (0.0, 0.0, 10.0, 10.0)


def plain_scores(
    detections: Detections, annotations: Annotations, iou: float
) -> dict[str, list[float | None]]:
    """The devkit's own loops: one class, one detection, one ground truth box at a time."""
    scores: dict[str, list[float | None]] = {"area": [], "11point": []}
    for label in range(len(annotations.classes)):
        recall, precision, positives = plain_curve(detections, annotations, label, iou)
        scores["area"].append(plain_area(recall, precision) if positives else None)
        scores["11point"].append(plain_eleven(recall, precision) if positives else None)
    return scores


def plain_curve(
    detections: Detections, annotations: Annotations, label: int, iou: float
) -> tuple[list[float], list[float], int]:
    truth = [row for row in range(len(annotations.boxes)) if annotations.labels[row] == label]
    ignored = annotations.difficult | annotations.crowd
    positives = sum(not ignored[row] for row in truth)
    mine = [row for row in range(len(detections)) if detections.label[row] == label]
    mine.sort(key=lambda row: -detections.score[row])  # stable, like MATLAB's sort
    taken, right, wrong = set(), 0, 0
    recall, precision = [], []
    for row in mine:
        best, best_truth = -np.inf, -1
        objects = annotations.objects_of(detections.image[row])
        for candidate in truth:
            if objects.start <= candidate < objects.stop:
                overlap = plain_iou(detections.boxes[row], annotations.boxes[candidate])
                if overlap > 0 and overlap > best:
                    best, best_truth = overlap, candidate
        if best < iou or best_truth in taken:
            wrong += 1
        elif not ignored[best_truth]:
            taken.add(best_truth)
            right += 1
        if positives:
            recall.append(right / positives)
            precision.append(right / (right + wrong) if right + wrong else 0.0)
    return recall, precision, positives


def plain_iou(box: np.ndarray, other: np.ndarray) -> float:
    """The devkit's, with its + 1 on 1-based inclusive corners."""
    a, b = (corners + np.array([1, 1, 0, 0]) for corners in (box, other))
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def plain_area(recall: list[float], precision: list[float]) -> float:
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for index in reversed(range(len(precision) - 1)):
        precision[index] = max(precision[index], precision[index + 1])
    steps = [index for index in range(1, len(recall)) if recall[index] != recall[index - 1]]
    return sum((recall[index] - recall[index - 1]) * precision[index] for index in steps)


def plain_eleven(recall: list[float], precision: list[float]) -> float:
    total = 0.0
    for threshold in np.arange(0, 1.1, 0.1):
        reached = [p for r, p in zip(recall, precision, strict=True) if r >= threshold]
        total += max(reached, default=0.0) / 11
    return total


def test_every_class_equals_the_official_devkit() -> None:
    expected = json.loads((DEVKIT / "expected.json").read_text())
    annotations = load_voc(DEVKIT, ["test"])
    scores = voc_scores(read_comp4(DEVKIT / "detections", annotations), annotations)
    for form in ("area", "11point"):
        assert scores[form]["mAP"] == pytest.approx(expected[form]["mAP"], abs=1e-9)
        assert scores[form]["AP"] == pytest.approx(expected[form]["AP"], abs=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_any_data_scores_as_the_rule_written_out_plainly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, classes = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    annotations = random_annotations(rng, images, classes, int(rng.integers(0, 40)))
    detections = random_detections(rng, annotations, int(rng.integers(0, 120)))
    iou = float(rng.choice([0.25, 0.5, 0.75]))
    scores = voc_scores(detections, annotations, iou)
    plain = plain_scores(detections, annotations, iou)
    for form in ("area", "11point"):
        assert list(scores[form]["AP"].values()) == pytest.approx(plain[form], abs=1e-12)


def test_one_perfect_detection_scores_one() -> None:
    scores = voc_scores(
        make_detections([0], [0], [0.5], [SQUARE]), annotate([(0, 0, SQUARE)], classes=["cat"])
    )
    assert scores["area"] == {"mAP": 1.0, "AP": {"cat": 1.0}}
    assert scores["11point"]["mAP"] == pytest.approx(1.0)


def test_an_overlap_of_exactly_the_threshold_is_right() -> None:
    half = (0.0, 0.0, 10.0, 5.0)
    scores = voc_scores(make_detections([0], [0], [0.5], [half]), annotate([(0, 0, SQUARE)]))
    assert scores["area"]["AP"]["cat"] == 1.0


def test_the_second_detection_of_an_object_is_wrong_even_if_it_fits_better() -> None:
    annotations = annotate([(0, 0, SQUARE), (0, 0, (50.0, 50.0, 60.0, 60.0))])
    boxes = [(0.0, 0.0, 10.0, 8.0), SQUARE, (50.0, 50.0, 60.0, 60.0)]
    detections = make_detections([0, 0, 0], [0, 0, 0], [0.9, 0.8, 0.7], boxes)
    # recall 1/2 at precision 1, then recall 1 at precision 2/3
    assert voc_scores(detections, annotations)["area"]["AP"]["cat"] == pytest.approx(0.5 + 1 / 3)


def test_of_equal_scores_the_first_comes_first() -> None:
    annotations = annotate([(0, 0, SQUARE)])
    wrong = (50.0, 50.0, 60.0, 60.0)
    for boxes, expected in (([SQUARE, wrong], 1.0), ([wrong, SQUARE], 0.5)):
        detections = make_detections([0, 0], [0, 0], [0.5, 0.5], boxes)
        assert voc_scores(detections, annotations)["area"]["AP"]["cat"] == expected


def test_of_equal_overlaps_the_first_object_is_claimed() -> None:
    annotations = annotate([(0, 0, SQUARE), (0, 0, SQUARE)], difficult=[1])
    detections = make_detections([0], [0], [0.9], [SQUARE])
    assert voc_scores(detections, annotations)["area"]["AP"]["cat"] == 1.0


def test_a_recall_of_three_tenths_does_not_reach_the_fourth_of_eleven_points() -> None:
    boxes = [(20.0 * number, 0.0, 20.0 * number + 10, 10.0) for number in range(10)]
    annotations = annotate([(0, 0, box) for box in boxes])
    detections = make_detections([0] * 3, [0] * 3, [0.9, 0.8, 0.7], boxes[:3])
    # 0, 0.1, 0.2 are reached; in floating point 3 * 0.1 > 3 / 10
    assert voc_scores(detections, annotations)["11point"]["AP"]["cat"] == pytest.approx(3 / 11)


@pytest.mark.parametrize("kind", ["difficult", "crowd"])
def test_ignored_objects_neither_count_nor_punish(kind: str) -> None:
    other = (50.0, 50.0, 60.0, 60.0)
    annotations = annotate([(0, 0, SQUARE), (0, 0, other)], **{kind: [1]})
    detections = make_detections([0] * 3, [0] * 3, [0.9, 0.8, 0.7], [other, other, SQUARE])
    assert count_objects(annotations).tolist() == [1, 0]
    assert voc_scores(detections, annotations)["area"]["AP"]["cat"] == 1.0


def test_a_class_without_objects_that_count_has_no_score_and_stays_out_of_the_mean() -> None:
    annotations = annotate([(0, 0, SQUARE), (0, 1, SQUARE)], difficult=[1])
    detections = make_detections([0, 0], [0, 1], [0.9, 0.9], [SQUARE, SQUARE])
    assert voc_scores(detections, annotations)["area"] == {
        "mAP": 1.0,
        "AP": {"cat": 1.0, "dog": None},
    }


def test_without_detections_scores_are_zero_and_without_objects_there_are_none() -> None:
    nothing = make_detections([], [], [], [])
    empty = voc_scores(nothing, annotate([(0, 0, SQUARE)]))
    assert empty["area"]["AP"] == empty["11point"]["AP"] == {"cat": 0.0, "dog": None}
    assert voc_scores(nothing, annotate())["area"] == {
        "mAP": None,
        "AP": {"cat": None, "dog": None},
    }
    found = make_detections([0], [0], [0.5], [SQUARE])
    assert voc_scores(found, annotate())["11point"]["mAP"] is None


def test_scores_do_not_depend_on_the_order_of_images_and_classes() -> None:
    rng = np.random.default_rng(0)
    annotations = random_annotations(rng, images=8, classes=4, objects=60)
    detections = random_detections(rng, annotations, count=300, scores=10**9)
    shuffled = detections.select(rng.permutation(len(detections)))
    assert voc_scores(shuffled, annotations) == voc_scores(detections, annotations)
