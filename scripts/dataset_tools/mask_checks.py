"""Checks of COCO segmentations against boxes, image and other objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from data.errors import InputError
from data.formats.segmentations import SegmentationColumns
from scripts.dataset_tools.box_checks import Box
from scripts.dataset_tools.image_checks import Size
from scripts.dataset_tools.problems import Problem, problem_of

Entry = Mapping[str, Any]

_LEAST_AGREEMENT = 0.5  # IoU of a box and the box around its mask


def whole_parts(outline: list[Any]) -> list[Any]:
    """Return the polygons of a segmentation that have at least three points."""
    return [part for part in outline if len(part) >= 6]


def check_parts(file: str, item: str, row: int, entry: Entry) -> Iterator[Problem]:
    """Yield a warning for polygons without area, which are ignored here."""
    outline = entry.get("segmentation")
    if isinstance(outline, list) and len(whole_parts(outline)) < len(outline):
        problem = "its segmentation has parts with fewer than three points, which have no area"
        cure = "remove them: other programs fail on them"
        yield Problem(file, item, problem, cure, "warning", "drop_parts", row)


def check_bare(file: str, entries: Mapping[str, Entry]) -> Iterator[Problem]:
    """Yield one warning for all objects without a mask if others have one.

    ``entries`` are the objects of the file by their names in messages.
    """
    bare = [item for item, entry in entries.items() if not _has_outline(entry)]
    if bare and len(bare) < len(entries):
        problem = (
            f"{len(bare)} of {len(entries)} objects have no segmentation, the first: {bare[0]}; "
            "Mask R-CNN uses their boxes as masks"
        )
        cure = "annotate their masks, or remove them if masks are to be trained"
        yield Problem(file, "", problem, cure, "warning", "none")


@dataclass(frozen=True)
class Masked:
    """A readable object: its name in messages, position, entry and box."""

    item: str
    row: int
    entry: Entry
    box: Box


def check_masks(file: str, objects: Sequence[Masked], size: Size) -> dict[int, Problem]:
    """Return the problems of the readable segmentations of an image, by row; size 0 is unknown."""
    if not all(size) or not objects:
        return {}
    columns = SegmentationColumns()
    for each in objects:
        columns.add(each.entry.get("segmentation"))
    try:
        store = columns.finish(np.array([size] * len(objects), np.int32), lambda _: "annotation")
    except InputError as error:
        if len(objects) == 1:
            item, row = objects[0].item, objects[0].row
            return {row: problem_of(error, "annotation", file, item, "drop_object", row)}
        alone = [check_masks(file, [each], size) for each in objects]
        return {row: problem for found in alone for row, problem in found.items()}
    if store is None:
        return {}
    problems = {}
    for index in np.flatnonzero(store.present()).tolist():
        each = objects[index]
        around = _box_around(store.polygons_of(index), store.rle_of(index), size)
        agreement = _overlap(_cut(around, size), _cut(each.box, size))
        if agreement < _LEAST_AGREEMENT and not each.entry.get("iscrowd"):
            problem = f"the box {_rounded(each.box)} does not fit its mask's, {_rounded(around)}"
            cure = "redraw one of them"
            problems[each.row] = Problem(
                file, each.item, problem, cure, "warning", "none", each.row
            )
    return problems


def _has_outline(entry: Entry) -> bool:
    outline = entry.get("segmentation")
    return bool(whole_parts(outline) if isinstance(outline, list) else outline)


def _box_around(polygons: list[Any], rle: bytes, size: Size) -> Box:
    if rle:
        x, y, w, h = coco_mask.toBbox({"size": list(size), "counts": rle}).tolist()
        return x, y, x + w, y + h
    points = np.concatenate(polygons).reshape(-1, 2)
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return x1, y1, x2, y2


def _cut(box: Box, size: Size) -> Box:
    """The part of a box that is in its image."""
    height, width = size
    return max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height)


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def _rounded(box: Box) -> list[float]:
    return [round(value, 1) for value in box]
