"""Annotations from boxes and labels that are already in memory."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations
from data.errors import shown
from data.formats.segmentations import SegmentationColumns
from data.masks import MaskStore


def annotations_of(
    classes: Sequence[str],
    files: Sequence[str],
    sizes_hw: Sequence[tuple[int, int]],
    boxes_xyxy: Sequence[npt.ArrayLike],
    labels: Sequence[npt.ArrayLike],
    *,
    segmentations: Sequence[Sequence[Any]] | None = None,
    split: str = "train",
) -> Annotations:
    """Build annotations from images and their objects; none is difficult or a crowd.

    Args:
        classes: class names in label order.
        files: image files, relative to ``data.root``.
        sizes_hw: height and width of each image, in pixels.
        boxes_xyxy: ``(n, 4)`` for each image, in pixels, continuous coordinates: the first pixel
            spans 0 to 1.
        labels: ``(n,)`` for each image, 0-based indices into ``classes``.
        segmentations: ``n`` for each image, in COCO's format: polygons or run lengths.
        split: name of the split.

    Raises:
        ValueError: the lengths differ, a label is out of range, or a box has no area inside its
            image; the message names the image and the object.
        InputError: a segmentation does not fit its image.
    """
    if not len(files) == len(sizes_hw) == len(boxes_xyxy) == len(labels):
        raise ValueError(
            f"{len(files)} files, {len(sizes_hw)} sizes, {len(boxes_xyxy)} images with boxes and "
            f"{len(labels)} with labels: give one of each per image"
        )
    boxes_of_images = [np.asarray(each, np.float64).reshape(-1, 4) for each in boxes_xyxy]
    labels_of_images = [np.asarray(each).reshape(-1) for each in labels]
    for each in zip(files, sizes_hw, boxes_of_images, labels_of_images, strict=True):
        _check(*each, len(classes))
    counts = [len(each) for each in boxes_of_images]
    sizes = np.array(sizes_hw, np.int32).reshape(-1, 2)
    boxes = np.concatenate([np.zeros((0, 4)), *boxes_of_images])
    return Annotations(
        source=f"the {split} split",
        split=split,
        classes=tuple(classes),
        category_ids=np.arange(1, len(classes) + 1),
        names=np.array([posixpath.splitext(file)[0] for file in files], dtype=np.str_),
        files=np.array(files, dtype=np.str_),
        image_ids=np.arange(1, len(files) + 1),
        sizes=sizes,
        offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        boxes=boxes,
        labels=np.concatenate([np.zeros(0, np.int64), *labels_of_images]).astype(np.int32),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        difficult=np.zeros(len(boxes), np.bool_),
        crowd=np.zeros(len(boxes), np.bool_),
        masks=_masks(segmentations, files, np.repeat(sizes, counts, axis=0), counts),
    )


def _check(
    file: str,
    size_hw: tuple[int, int],
    boxes: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    num_classes: int,
) -> None:
    if len(boxes) != len(labels):
        raise ValueError(
            f"{shown(file)}: {len(boxes)} boxes and {len(labels)} labels: give one label per box"
        )
    height, width = size_hw
    low, high = np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], [width, height])
    for row in np.flatnonzero(~(high > low).all(axis=1))[:1]:
        raise ValueError(
            f"{shown(file)}: box {row}, {boxes[row].tolist()}, has no area inside its image of "
            f"{width} x {height}; boxes are x1, y1, x2, y2"
        )
    for row in np.flatnonzero(~np.isin(labels, np.arange(num_classes)))[:1]:
        raise ValueError(
            f"{shown(file)}: object {row} has the label {labels[row]}; labels must be 0 to "
            f"{num_classes - 1}"
        )


def _masks(
    segmentations: Sequence[Sequence[Any]] | None,
    files: Sequence[str],
    sizes_hw: npt.NDArray[np.int32],
    counts: Sequence[int],
) -> MaskStore | None:
    """Build the store of all objects; ``sizes_hw`` ``(N, 2)`` are the sizes of their images."""
    if segmentations is None:
        return None
    if [len(each) for each in segmentations] != list(counts):
        raise ValueError("segmentations: give one per object, None where there is none")
    image_rows = np.repeat(np.arange(len(files)), counts)
    columns = SegmentationColumns()
    for file, each in zip(files, segmentations, strict=True):
        for row, segmentation in enumerate(each):
            try:
                columns.add(segmentation)
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(f"{shown(file)}: object {row}: segmentation {error}") from error
    return columns.finish(sizes_hw, lambda row: str(files[image_rows[row]]))
