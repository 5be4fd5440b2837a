"""COCO annotation files: ``annotations/instances_<split>.json`` and the images in ``<split>/``."""

from __future__ import annotations

import logging
import os
import posixpath
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations, arrange_objects
from data.errors import InputError, shown, some_of
from data.formats.coco_columns import (
    NO_AREA,
    ImageColumns,
    ObjectColumns,
    look_up,
    read_categories,
)
from data.formats.json_stream import stream_members
from data.image_sizes import OWN_FILES, Access, complete_sizes
from data.masks import object_area
from data.paths import check_inside, inner_path

log = logging.getLogger(__name__)


def load_coco(
    root: Path,
    split: str,
    classes: Sequence[str] | None = None,
    access: Access = OWN_FILES,
) -> Annotations:
    """Read one split of a COCO dataset; its images are only opened where the file lacks sizes.

    Args:
        root: the folder that holds ``annotations/instances_<split>.json`` and ``<split>/``.
        split: such as ``val2017``.
        classes: class names in label order, which must cover all objects; None takes the file's
            categories in their order. Names that are not a category are logged as a warning.
        access: how files are opened.

    Raises:
        InputError: the file cannot be used; the message names it and the object.
    """
    path = _annotation_file(root, split)
    if not access.follow_links:
        check_inside(root, path, str(root))
    images, objects, categories = ImageColumns(path), ObjectColumns(path), None
    found = set()
    for key, value in stream_members(path, ("images", "annotations")):
        found.add(key)
        if key == "images":
            for image in value:
                images.add(image)
        elif key == "annotations":
            for item in value:
                objects.add(item)
        elif key == "categories":
            categories = read_categories(path, value)
    if categories is None:
        raise InputError(
            f"{path}: has no 'categories'; add the list of classes: [{{'id': 1, 'name': ...}}, ...]"
        )
    if "annotations" not in found:
        raise InputError(f"{path}: has no 'annotations'; use a split that is annotated")
    if not len(images.ids):
        raise InputError(f"{path}: lists no images; add them under 'images', or use another split")
    files = [f"{split}/{file}" for file in images.files]
    given = np.array(images.sizes).reshape(-1, 2)
    sizes = complete_sizes(root, files, given, str(path), access)
    annotations = _build(split, path, images, objects, categories, files, sizes)
    return annotations if classes is None else _choose_classes(annotations, path, classes)


def load_category_ids(root: Path, split: str, follow_links: bool = False) -> dict[str, int]:
    """Read class name -> category id from the annotation file of one split.

    Raises:
        InputError: the file cannot be used, as in ``load_coco``.
    """
    path = _annotation_file(root, split)
    if not follow_links:
        check_inside(root, path, str(root))
    for key, value in stream_members(path, ("images", "annotations")):
        if key == "categories":
            return read_categories(path, value)
        if key in ("images", "annotations"):
            deque(value, maxlen=0)  # skip all elements without keeping them
    return read_categories(path, None)


def _annotation_file(root: Path, split: str) -> Path:
    split = inner_path(split, f"split {shown(split)} of {root}")
    path = root / "annotations" / f"instances_{split}.json"
    if os.path.isfile(path):
        return path
    present = sorted(file.stem[10:] for file in root.glob("annotations/instances_*.json"))
    cure = f"available splits: {some_of(present)}" if present else "check data.root and data.format"
    raise InputError(f"{path}: file not found; {cure}")


def _build(
    split: str,
    path: Path,
    images: ImageColumns,
    objects: ObjectColumns,
    categories: dict[str, int],
    files: list[str],
    sizes: npt.NDArray[np.int32],
) -> Annotations:
    image_rows, labels = look_up(images, objects, categories)
    boxes = objects.boxes_xyxy()
    object_sizes = sizes[image_rows]
    objects.check_inside(boxes, object_sizes)
    masks = objects.segmentations.finish(object_sizes, objects.where)
    rows, offsets, dropped_from = arrange_objects(image_rows, boxes, sizes)
    boxes, areas = boxes[rows], np.asarray(objects.areas)[rows]
    masks = None if masks is None else masks.select(rows)
    for row in np.flatnonzero(areas == NO_AREA).tolist():
        x1, y1, x2, y2 = boxes[row]
        of_mask = 0.0 if masks is None else object_area(masks, row)
        areas[row] = of_mask or (x2 - x1) * (y2 - y1)
    return Annotations(
        source=str(path),
        split=posixpath.basename(split),
        classes=tuple(categories),
        category_ids=np.array(list(categories.values()), np.int64),
        names=np.array([posixpath.splitext(file)[0] for file in images.files]),
        files=np.array(files),
        image_ids=np.array(images.ids),
        sizes=sizes,
        offsets=offsets,
        boxes=boxes,
        labels=labels[rows].astype(np.int32),
        areas=areas,
        difficult=np.asarray(objects.difficult)[rows].astype(np.bool_),
        crowd=np.asarray(objects.crowd)[rows].astype(np.bool_),
        masks=masks,
        dropped_from=dropped_from,
        coco_files=(str(path),),
    )


def _choose_classes(annotations: Annotations, path: Path, classes: Sequence[str]) -> Annotations:
    """Relabel to ``classes``; a validation file may lack categories that it has no objects of."""
    missing = [name for name in classes if name not in annotations.classes]
    if len(missing) == len(classes):
        raise InputError(
            f"{path}: none of the classes {some_of(classes)} is a category of the file; correct "
            f"data.classes or the file's categories: {some_of(annotations.classes)}"
        )
    chosen = annotations.relabel(classes)
    if missing:
        log.warning(
            "%s: has no category, and so no objects, for class %s; its categories are %s",
            path,
            some_of(missing),
            some_of(annotations.classes),
        )
    return chosen
