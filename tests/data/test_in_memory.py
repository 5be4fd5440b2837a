"""Annotations out of boxes that a program has already."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from data.formats.in_memory import annotations_of

GIVEN: dict[str, Any] = {
    "classes": ["cat", "dog"],
    "files": ["a/1.jpg", "2.jpg", "3.png"],
    "sizes_hw": [(20, 30), (40, 50), (60, 70)],
    "boxes_xyxy": [[[1, 2, 11, 12], [0, 0, 30, 20]], [], [[5, 5, 6, 8]]],
    "labels": [[0, 1], [], [1]],
}


def test_objects_stand_with_their_images() -> None:
    annotations = annotations_of(**GIVEN, split="mine")
    assert len(annotations) == 3
    assert [annotations.boxes[annotations.objects_of(row)].tolist() for row in range(3)] == [
        [[1, 2, 11, 12], [0, 0, 30, 20]], [], [[5, 5, 6, 8]],
    ]  # fmt: skip
    assert annotations.labels.tolist() == [0, 1, 1]
    assert annotations.areas.tolist() == [100, 600, 3]
    assert annotations.names.tolist() == ["a/1", "2", "3"]
    assert annotations.summary() == "the mine split: 3 images, 3 objects of 2 classes"
    assert annotations.training_counts(use_difficult=False).tolist() == [2, 0, 1]


def test_nothing_but_images_is_no_error() -> None:
    annotations = annotations_of([], ["a.v1/b"], [(5, 5)], [[]], [[]])
    assert annotations.names.tolist() == ["a.v1/b"]
    assert annotations.boxes.shape == (0, 4)
    assert len(annotations_of(["cat"], [], [], [], [])) == 0


def test_masks_come_with_their_objects() -> None:
    square = [[1, 2, 11, 2, 11, 12, 1, 12]]
    annotations = annotations_of(**GIVEN, segmentations=[[square, None], [], [None]])
    assert annotations.masks is not None
    assert annotations.masks.present().tolist() == [True, False, False]
    masks = annotations.decode_masks(0, np.array([0]))
    assert masks.shape == (1, 20, 30)
    assert masks.sum() == 100
    assert masks[0, 2:12, 1:11].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [[0, 1], []]}, "3 files, 3 sizes, 3 images with boxes and 2 with labels"),
        ({"labels": [[0], [], [1]]}, "'a/1.jpg': 2 boxes and 1 labels"),
        ({"labels": [[0, 1], [], [2]]}, "'3.png': object 0 has the label 2; labels must be 0 to 1"),
        ({"labels": [[0, 0.9], [], [1]]}, "'a/1.jpg': object 1 has the label 0.9"),
        ({"labels": [[0, -1], [], [1]]}, "'a/1.jpg': object 1 has the label -1"),
        ({"boxes_xyxy": [[[1, 2, 11, 12], [9, 9, 5, 5]], [], [[5, 5, 6, 8]]]}, "box 1, .* no area"),
        ({"boxes_xyxy": [[[1, 2, 11, 12], [30, 2, 40, 9]], [], [[5, 5, 6, 8]]]}, "of 30 x 20"),
        (
            {"boxes_xyxy": [[[1, 2, 11, 12], [0, 0, np.nan, 20]], [], [[5, 5, 6, 8]]]},
            "has no area",
        ),
        ({"segmentations": [[None], [], [None]]}, "segmentations: give one per object"),
        (
            {"segmentations": [[None, [[1, 2, 3]]], [], [None]]},
            "'a/1.jpg': object 1: segmentation has a part of 3 numbers",
        ),
    ],
)
def test_what_cannot_be_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        annotations_of(**{**GIVEN, **change})
