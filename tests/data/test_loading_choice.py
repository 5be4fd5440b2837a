"""Which images and which of their objects are trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rectangles import (
    SIZES_HW,
    training,
)

from data.annotations import Annotations
from data.dataset import choose_images
from data.errors import InputError


def with_flags(annotations: Annotations, **flags: list[int]) -> Annotations:
    arrays = {}
    for name, rows in flags.items():
        arrays[name] = np.zeros(len(annotations.boxes), np.bool_)
        arrays[name][rows] = True
    return replace(annotations, **arrays)


def test_crowds_are_never_and_difficult_objects_on_request_trained_on(
    dataset: tuple[Path, Annotations],
) -> None:
    root, annotations = dataset
    row = 3  # of three objects
    first = int(annotations.offsets[row])
    flagged = with_flags(annotations, crowd=[first], difficult=[first + 1]).select([row])
    for use_difficult, labels in ((False, [2]), (True, [1, 2])):
        voc = {"use_difficult": use_difficult}
        with training((root, flagged), augment=(), batch_size=1, voc=voc) as loader:
            (batch,) = loader.epoch(0)
            assert batch.targets.labels.tolist() == [labels]
            assert batch.targets.masks is not None
            assert len(batch.targets.masks[0]) == len(labels)


def test_boxes_are_clipped_to_the_image_and_slivers_left_out(
    dataset: tuple[Path, Annotations],
) -> None:
    root, annotations = dataset
    first = int(annotations.offsets[3])
    boxes = annotations.boxes.copy()
    boxes[first] = [-9, -1, 200, 20.5]
    boxes[first + 1] = [5, 5, 5.9, 30]
    changed = replace(annotations, boxes=boxes).select([3])
    size_hw = SIZES_HW[3]
    with training((root, changed), augment=(), image_size=size_hw, batch_size=1) as loader:
        (batch,) = loader.epoch(0)
    assert batch.targets.boxes[0, 0].tolist() == [0, 0, size_hw[1], 20.5]
    assert batch.targets.labels.tolist() == [[0, 2]]


def test_empty_and_small_images_are_left_out_on_request(
    dataset: tuple[Path, Annotations],
) -> None:
    _, annotations = dataset
    assert choose_images(annotations, False, False, 0).tolist() == list(range(9))
    assert choose_images(annotations, False, True, 0).tolist() == [1, 2, 3, 5, 6, 7]
    assert choose_images(annotations, False, False, 40).tolist() == [0, 1, 2, 5, 6, 7, 8]
    with pytest.raises(InputError, match=r"none of its 9 images .* data\.min_image_side"):
        choose_images(annotations, False, False, 1000)


def test_a_split_without_an_object_to_train_on_is_refused(
    dataset: tuple[Path, Annotations],
) -> None:
    _, annotations = dataset
    without_objects = annotations.select([0, 4, 8])
    crowds = replace(annotations, crowd=np.ones(len(annotations.boxes), np.bool_))
    difficult = replace(annotations, difficult=np.ones(len(annotations.boxes), np.bool_))
    for left, flags in ((without_objects, ""), (crowds, "crowds"), (difficult, "difficult")):
        with pytest.raises(InputError, match=rf"{flags}: no object to train on .* data\.train"):
            choose_images(left, False, False, 0)
    assert len(choose_images(difficult, True, False, 0)) == len(difficult)


def test_boxes_that_stand_for_masks_are_counted_aloud(
    dataset: tuple[Path, Annotations], caplog: pytest.LogCaptureFixture
) -> None:
    root, annotations = dataset
    assert annotations.masks is not None
    with training(dataset):
        assert not caplog.messages
    parts, rle = annotations.masks.object_parts.copy(), annotations.masks.object_rle.copy()
    parts[1:3], rle[1:3] = 0, 0
    poorer = replace(
        annotations, masks=replace(annotations.masks, object_parts=parts, object_rle=rle)
    )
    total = len(annotations.boxes)
    with training((root, poorer)):
        (message,) = caplog.messages
        assert f"2 of {total} objects to train on have no segmentation" in message
    caplog.clear()
    with training((root, poorer), with_masks=False):
        assert not caplog.messages


def test_transforms_that_part_boxes_from_masks_are_refused_with_masks_alone(
    dataset: tuple[Path, Annotations],
) -> None:
    augment = [{"Erasing": {"p": 1}}]
    with (
        pytest.raises(InputError, match="Erasing: it cuts boxes"),
        training(dataset, augment=augment),
    ):
        pass
    with training(dataset, augment=augment, with_masks=False) as loader:
        assert len(list(loader.epoch(0))) == len(loader)


@pytest.mark.parametrize(
    "augment", [[], [{"HorizontalFlip": {"p": 1}}], [{"VerticalFlip": {"p": 1}}]]
)
def test_an_object_whose_mask_has_no_pixel_is_not_trained_on_whatever_the_transforms(
    dataset: tuple[Path, Annotations], augment: list[dict[str, dict[str, float]]]
) -> None:
    root, annotations = dataset
    assert annotations.masks is not None
    first = int(annotations.offsets[3])
    coordinates = annotations.masks.coordinates.copy()
    start, stop = annotations.masks.part_coordinates[first]
    coordinates[start:stop] = 500  # all corners in one point
    masks = replace(annotations.masks, coordinates=coordinates)
    changed = (root, replace(annotations, masks=masks).select([3]))
    for with_masks, labels in ((True, [[1, 2]]), (False, [[0, 1, 2]])):
        options = {"augment": augment, "batch_size": 1, "with_masks": with_masks}
        with training(changed, **options) as loader:
            (batch,) = loader.epoch(0)
            assert batch.targets.labels.tolist() == labels


def test_a_detector_of_masks_needs_masks(dataset: tuple[Path, Annotations]) -> None:
    root, annotations = dataset
    with (
        pytest.raises(InputError, match="has no segmentations"),
        training((root, replace(annotations, masks=None))),
    ):
        pass
